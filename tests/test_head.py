"""Heads within bounds are parsed as http.client parses them; what goes beyond them is not read."""

from __future__ import annotations

import http.client
import io
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geventws.head import LONGEST_LINE, Fields, HeadTooLarge, read_fields

USUAL = b"Host: x\r\nA: 1\r\nB: 2\r\n\r\n"


class Dripping(io.RawIOBase):
    """Give a few octets at a time."""

    def __init__(self, octets, size):
        self.octets = octets
        self.size = size

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(self.size, len(self.octets), len(buffer))
        buffer[:count] = self.octets[:count]
        self.octets = self.octets[count:]
        return count


def make_reader(octets, size=LONGEST_LINE):
    return io.BufferedReader(Dripping(octets, size))


def read(octets, max_size=sys.maxsize, max_count=100, *, line_size=0, size=LONGEST_LINE):
    return read_fields(make_reader(octets, size), line_size, max_size, max_count)


def parse(file):
    return http.client.parse_headers(file).items()


@pytest.fixture(params=[pytest.param(LONGEST_LINE, id="whole"), pytest.param(1, id="octet by octet")])
def size(request):
    return request.param


@pytest.mark.parametrize(
    ("octets", "head"),
    [
        pytest.param(USUAL + b"body\n\r\n", USUAL, id="usual"),
        pytest.param(b"\r\nA: 1\r\n\r\n", b"\r\n", id="no field"),
        pytest.param(b"\nA: 1\r\n\r\n", b"\n", id="no field, LF"),
        pytest.param(b"A: 1\n\nB: 2\r\n\r\n", b"A: 1\n\n", id="LF"),
        pytest.param(b"A: 1\r\n\nB: 2\r\n\r\n", b"A: 1\r\n\n", id="LF at the end"),
        pytest.param(b"A: 1\n\r\nB: 2\r\n\r\n", b"A: 1\n\r\n", id="CR LF at the end"),
        pytest.param(b"A: 1\r\n 2\r\n\r\nx", b"A: 1\r\n 2\r\n\r\n", id="folded"),
        pytest.param(b"\rA: 1\r\n\r\nx", b"\rA: 1\r\n\r\n", id="CR"),
        pytest.param(b"A: 1\r\nB", b"A: 1\r\nB", id="the end within a line"),
        pytest.param(b"", b"", id="nothing"),
    ],
)
def test_what_is_read(octets, head, size):
    reader = make_reader(octets, size)
    assert read_fields(reader, 10, 1000, 5).getvalue() == head
    assert reader.read() == octets[len(head) :]


@pytest.mark.parametrize(
    ("max_size", "max_count", "limit"),
    [
        pytest.param(len(USUAL) + 10, 3, None, id="just within"),
        pytest.param(len(USUAL) + 9, 3, "max_head_size", id="an octet too large"),
        pytest.param(12, 3, "max_head_size", id="far too large"),
        pytest.param(10, 3, "max_head_size", id="nothing left behind the request line"),
        pytest.param(9, 3, "max_head_size", id="the request line is too large"),
        pytest.param(len(USUAL) + 10, 2, "max_header_count", id="too many"),
    ],
)
def test_limits(max_size, max_count, limit, size):
    if limit is None:
        assert read(USUAL, max_size, max_count, line_size=10, size=size).getvalue() == USUAL
        return
    with pytest.raises(HeadTooLarge) as caught:
        read(USUAL, max_size, max_count, line_size=10, size=size)
    assert caught.value.limit == limit
    assert caught.value.value == (max_count if limit == "max_header_count" else max_size)
    assert str(caught.value.value) in str(caught.value)


def test_no_more_is_read_than_the_limit():
    reader = make_reader(b"A: " + bytes(200000), 1000)
    with pytest.raises(HeadTooLarge):
        read_fields(reader, 10, 50000, 100)
    assert len(reader.read()) > 140000


def test_a_hundred_fields_can_be_parsed(size):
    octets = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(100)) + b"\r\n"
    assert parse(read(octets, size=size)) == [(f"X-{number}", str(number)) for number in range(100)]
    with pytest.raises(HeadTooLarge, match="more than 100 fields"):
        read(b"A: 1\r\n" + octets, size=size)


@pytest.mark.parametrize("line", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1])
def test_a_long_line_is_http_clients_to_judge(line):
    octets = b"A: 1\r\nB: " + b"x" * (line - 5) + b"\r\nC: 1\r\n\r\n"
    if line > LONGEST_LINE:
        with pytest.raises(http.client.LineTooLong):
            parse(read(octets))
    else:
        assert parse(read(octets)) == parse(io.BytesIO(octets))


FIELD = st.binary(max_size=8).map(lambda value: b"A: " + value)
LINE = st.sampled_from([b"A: 1", b" folded", b"", b"\r", b"no colon", b"B:" + b"y" * 30000]) | FIELD


@given(
    lines=st.lists(st.tuples(LINE, st.sampled_from([b"\r\n", b"\n"])), max_size=8),
    size=st.sampled_from([1, 7, 100, LONGEST_LINE]),
)
@example(lines=[(b"B:" + b"y" * 30000, b"\r\n")] * 3, size=LONGEST_LINE)
def test_any_head_is_parsed_as_it_ever_was(lines, size):
    octets = b"".join(line + end for line, end in lines) + b"\r\nbehind it"
    ours, stock = make_reader(octets, size), make_reader(octets, size)
    assert parse(read_fields(ours, 0, sys.maxsize, 100)) == parse(stock)
    assert ours.read() == stock.read()


class TestFields:
    def test_whole_lines_for_http_client(self):
        line = b"A: " + b"x" * 30000 + b"\r\n"
        fields = Fields(line * 3 + b"\r\n")
        blocks = list(iter(lambda: fields.readline(LONGEST_LINE + 1), b""))
        assert blocks == [line * 2, line + b"\r\n"]

    @pytest.mark.parametrize("arguments", [(), (-1,), (None,), (100,)])
    def test_single_lines_for_others(self, arguments):
        assert Fields(USUAL).readline(*arguments) == b"Host: x\r\n"

    def test_an_end_within_a_line(self):
        fields = Fields(b"A: 1\r\nB")
        assert [fields.readline(LONGEST_LINE + 1) for _ in range(3)] == [b"A: 1\r\n", b"B", b""]

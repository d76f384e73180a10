from __future__ import annotations

import sys
import tracemalloc
import zlib
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.deflate import DEFLATE_TAIL, DeflateParameters
from geventws.errors import InvalidPayload, MessageTooBig, ProtocolError
from geventws.frames import Opcode, WebSocketFrame, serialize_frame, serialize_message
from geventws.inbox import QUEUE_OVERHEAD, Fragment, Ping, Pong
from geventws.masking import COMPILED
from geventws.protocol import Protocol
from tests.octets import (
    FORGETFUL,
    NOISE,
    deflate,
    each_step,
    feed,
    from_client,
    inflate_frames,
    join_frames,
    make_compressed,
    receive,
    take_all,
)

# What a client's frames begin with in most examples: the mask bit, and a key that changes nothing.
ZERO_KEY = b"\0\0\0\0"
# "κόσμε", then the first two octets of a number beyond U+10FFFF.
BEYOND_UNICODE = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90"

# Where it becomes certain that octets are no UTF-8.
NOT_UTF_8 = [
    pytest.param(b"\xff", 0, id="ff"),
    pytest.param(b"abc\x80", 3, id="continuation first"),
    pytest.param(b"\xc0", 0, id="overlong of two"),
    pytest.param(b"a\xc3a", 2, id="two cut short"),
    pytest.param(b"\xe0\x9f", 1, id="overlong of three"),
    pytest.param(b"\xe2\x82a", 2, id="three cut short"),
    pytest.param(b"a\xed\xa0", 2, id="surrogate"),
    pytest.param(b"\xf0\x8f", 1, id="overlong of four"),
    pytest.param(b"\xf0\x9f\x98a", 3, id="four cut short"),
    pytest.param(b"\xf5", 0, id="f5"),
    pytest.param(BEYOND_UNICODE, 12, id="beyond Unicode"),
]


@pytest.fixture
def server():
    return Protocol()


@pytest.fixture
def client():
    return Protocol(is_client=True)


@each_step
class TestExamplesOfTheRFC:
    """RFC 6455, 5.7."""

    def test_unmasked_text(self, client, step):
        assert receive(client, b"\x81\x05\x48\x65\x6c\x6c\x6f", step) == ["Hello"]

    def test_masked_text(self, server, step):
        assert receive(server, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", step) == ["Hello"]

    def test_fragmented_text(self, client, step):
        assert receive(client, b"\x01\x03\x48\x65\x6c" + b"\x80\x02\x6c\x6f", step) == ["Hello"]

    def test_ping_and_pong(self, client, step):
        client.reports_control = True
        assert receive(client, b"\x89\x05\x48\x65\x6c\x6c\x6f", step) == [Ping(b"Hello")]

    def test_masked_pong(self, server, step):
        server.reports_control = True
        assert receive(server, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", step) == [Pong(b"Hello")]

    def test_256_octets(self, client, step):
        assert receive(client, b"\x82\x7e\x01\x00" + bytes(range(256)), step) == [bytes(range(256))]

    def test_64_kib(self, client, step):
        payload = bytes(range(256)) * 256
        # The octets in the middle add nothing one at a time.
        feed(client, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00", step)
        feed(client, payload[:-20], sys.maxsize)
        assert receive(client, payload[-20:], step) == [payload]


@each_step
class TestMessages:
    @pytest.mark.parametrize(
        ("octets", "events"),
        [
            pytest.param(b"\x81\x00", [""], id="empty text"),
            pytest.param(b"\x82\x00", [b""], id="empty binary"),
            pytest.param(b"\x82\x7d" + bytes(125), [bytes(125)], id="125 octets"),
            pytest.param(b"\x82\x7e\x00\x7e" + bytes(126), [bytes(126)], id="126 octets"),
            pytest.param(b"\x81\x04\xf0\x9f\x98\x80", ["\U0001f600"], id="four octets of UTF-8"),
            pytest.param(b"\x81\x03\xef\xbf\xbe", ["\ufffe"], id="a noncharacter"),
            pytest.param(b"\x81\x01\x00", ["\0"], id="NUL"),
            pytest.param(b"\x82\x01\xff", [b"\xff"], id="binary is not text"),
            pytest.param(b"\x81\x01a\x82\x01b\x81\x01c", ["a", b"b", "c"], id="three messages"),
            pytest.param(b"\x01\x00\x80\x00", [""], id="empty fragments"),
            pytest.param(b"\x01\x00\x00\x00\x80\x01a", ["a"], id="empty fragments and a last one"),
            pytest.param(b"\x02\x01a\x00\x00\x00\x01b\x80\x00", [b"ab"], id="an empty last fragment"),
            pytest.param(b"\x01\x01\xf0\x00\x02\x9f\x98\x80\x01\x80", ["\U0001f600"], id="a character in three"),
            pytest.param(b"\x01\x01a\x89\x01p\x80\x01b\x8a\x00", ["ab"], id="control frames in between"),
        ],
    )
    def test_unmasked(self, client, octets, events, step):
        assert receive(client, octets, step) == events
        assert client.failure is None

    def test_masked(self, server, step):
        octets = b"\x81\x84\1\2\3\4\x60\x60\x60\x60" + b"\x02\x81\x10\x20\x30\x40\x11" + b"\x80\x81\4\3\2\1\4"
        assert receive(server, octets, step) == ["abcd", b"\1\0"]

    def test_key_goes_on_behind_a_cut(self, server, step):
        payload = bytes(range(200))
        assert receive(server, serialize_frame(0x82, payload, 0xA1B2C3D4), step) == [payload]

    def test_huge_limits_are_none(self, step):
        protocol = Protocol(is_client=True, max_frame_size=sys.maxsize, max_message_size=sys.maxsize)
        assert receive(protocol, b"\x02\x7f\0\0\0\0\0\1\0\0" + bytes(65536) + b"\x80\x01a", max(step, 4096)) == [
            bytes(65536) + b"a"
        ]
        feed(protocol, b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", step)
        assert protocol.failure.close_code == 1009


class TestDiscard:
    def test_what_comes_is_checked_and_answered(self, client):
        client.reports_control = True
        feed(client, b"\x81\x01a\x89\x00\x01\x01b", sys.maxsize)
        client.discard()
        assert take_all(client) == []
        # What comes is still checked, pings are still answered, and the peer's Close still counts.
        assert receive(client, b"\x80\x01c\x81\x01d\x89\x01p\x88\x02\x03\xe8") == []
        assert len(client.replies) == 2
        assert (client.is_close_received, client.close_code) == (True, 1000)

    def test_compressed_character_that_is_half_there(self):
        # What follows is not inflated any more, so it cannot be missed.
        client = make_compressed(DeflateParameters(), is_client=True)
        # "\u00e9" as a block without compression, cut between its two octets.
        feed(client, b"\x41\x06\x00\x02\x00\xfd\xff\xc3", sys.maxsize)
        client.discard()
        assert receive(client, b"\x80\x02\xa9\x00\x81\x01a\x88\x00") == []
        assert (client.failure, client.is_close_received) == (None, True)

    def test_violation_while_discarding(self, client):
        client.discard()
        feed(client, b"\x81\x01\xff", sys.maxsize)
        assert client.failure.close_code == 1007


@each_step
class TestViolations:
    """A violation is kept; the messages before it stay, nothing behind it comes in."""

    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\xc1\x00", id="RSV1"),
            pytest.param(b"\xa1\x00", id="RSV2"),
            pytest.param(b"\x91\x00", id="RSV3"),
            pytest.param(b"\xc9\x00", id="RSV1 of a ping"),
            pytest.param(b"\x01\x00\xc0\x00", id="RSV1 of a continuation"),
            *(pytest.param(bytes([0x80 | opcode, 0]), id=f"opcode {opcode}") for opcode in (3, 4, 5, 6, 7)),
            *(pytest.param(bytes([0x80 | opcode, 0]), id=f"opcode {opcode}") for opcode in range(11, 16)),
            pytest.param(b"\x08\x00", id="fragmented close"),
            pytest.param(b"\x09\x00", id="fragmented ping"),
            pytest.param(b"\x0a\x00", id="fragmented pong"),
            pytest.param(b"\x89\x7e\x00\x7e" + bytes(126), id="ping of 126 octets"),
            pytest.param(b"\x8a\x7f" + bytes(6) + b"\x01\x00", id="pong with a long length"),
            pytest.param(b"\x88\x7e\x00\x02\x03\xe8", id="close with a long length"),
            pytest.param(b"\x80\x00", id="continuation of nothing"),
            pytest.param(b"\x00\x00", id="continuation of nothing, not the last"),
            pytest.param(b"\x01\x00\x80\x00\x80\x00", id="continuation of a complete message"),
            pytest.param(b"\x01\x01a\x81\x01b", id="a message within a message"),
            pytest.param(b"\x02\x01a\x02\x01b", id="a first fragment within a message"),
            pytest.param(b"\x02\x01a\x89\x00\x81\x00", id="a message within, behind a ping"),
            pytest.param(b"\x82\x7e\x00\x7d" + bytes(125), id="125 octets in 16 bits"),
            pytest.param(b"\x82\x7e\x00\x00", id="nothing in 16 bits"),
            pytest.param(b"\x82\x7f" + b"\0\0\0\0\0\0\xff\xff", id="65535 octets in 64 bits"),
            pytest.param(b"\x82\x7f" + b"\0\0\0\0\0\0\0\1", id="1 octet in 64 bits"),
            pytest.param(b"\x82\x7f\x80\0\0\0\0\0\0\0", id="most significant bit"),
            pytest.param(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", id="all bits"),
            pytest.param(b"\x81\x80\0\0\0\0", id="masked by a server"),
            pytest.param(b"\x88\x01\x03", id="close of one octet"),
            pytest.param(b"\x88\x02\x03\xec", id="close with 1004"),
            pytest.param(b"\x88\x02\x03\xed", id="close with 1005"),
            pytest.param(b"\x88\x02\x03\xee", id="close with 1006"),
            pytest.param(b"\x88\x02\x03\xf7", id="close with 1015"),
            pytest.param(b"\x88\x02\x00\x00", id="close with 0"),
            pytest.param(b"\x88\x02\x0b\xb7", id="close with 2999"),
            pytest.param(b"\x88\x02\x13\x88", id="close with 5000"),
        ],
    )
    def test_1002(self, client, octets, step):
        whole = b"\x81\x06before" + octets + b"\x81\x06behind" + b"\x88\x02\x03\xe8"
        events = receive(client, whole, step)
        assert type(client.failure) is ProtocolError
        assert client.failure.close_code == 1002
        assert str(client.failure)
        assert events == ["before"] + ([""] if octets.startswith(b"\x01\x00\x80") else [])
        assert not client.is_close_received

    def test_unmasked_by_a_client(self, server, step):
        assert receive(server, from_client(0x81, b"a") + b"\x81\x01b" + from_client(0x81, b"c"), step) == ["a"]
        assert type(server.failure) is ProtocolError
        assert "not masked" in str(server.failure)

    @pytest.mark.parametrize("octets", [case.values[0] for case in NOT_UTF_8], ids=[case.id for case in NOT_UTF_8])
    def test_1007(self, client, octets, step):
        assert receive(client, bytes([0x81, len(octets)]) + octets + b"\x81\x00", step) == []
        assert type(client.failure) is InvalidPayload
        assert client.failure.close_code == 1007

    @pytest.mark.parametrize("octets", [b"\xc3", b"a\xe2\x82", b"\xf0\x9f\x98"])
    def test_text_ends_within_a_character(self, client, octets, step):
        assert receive(client, bytes([0x81, len(octets)]) + octets, step) == []
        assert type(client.failure) is InvalidPayload

    @pytest.mark.parametrize("last", [b"", b"\xc3"], ids=["empty last fragment", "last fragment"])
    def test_fragments_end_within_a_character(self, client, last, step):
        assert receive(client, b"\x01\x02a\xc3" + bytes([0x80, len(last)]) + last, step) == []
        assert type(client.failure) is InvalidPayload

    def test_close_reason_not_utf_8(self, client, step):
        feed(client, b"\x88\x03\x03\xe8\xff", step)
        assert type(client.failure) is InvalidPayload
        assert not client.is_close_received


class TestFailFast:
    """8.1: text fails at the octet that makes it certain, wherever the frame's end is."""

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    @pytest.mark.parametrize("head", [b"\x81\x7d", b"\x01\x7d", b"\x81\x7e\xff\xff"], ids=["whole", "fragment", "long"])
    def test_within_a_frame(self, client, head, octets, index):
        feed(client, head + octets[:index], 1)
        assert client.failure is None
        feed(client, octets[index : index + 1], 1)
        assert client.failure.close_code == 1007

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    def test_masked(self, server, octets, index):
        frame = serialize_frame(0x81, octets.ljust(99), 0x3D21FA37)
        feed(server, frame[: 6 + index], 1)
        assert server.failure is None
        feed(server, frame[6 + index : 7 + index], 1)
        assert server.failure.close_code == 1007

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    def test_across_fragments(self, client, octets, index):
        fragments = [bytes([0 if place else 1, 1, octet]) for place, octet in enumerate(octets)]
        feed(client, b"".join(fragments[:index]), sys.maxsize)
        assert client.failure is None
        feed(client, fragments[index], sys.maxsize)
        assert client.failure.close_code == 1007

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    def test_across_fragments_with_pings_between(self, client, octets, index):
        feed(client, bytes([1, index]) + octets[:index] + b"\x89\x02\xff\xff", 1)
        assert client.failure is None
        feed(client, b"\x00\x01" + octets[index : index + 1], 1)
        assert client.failure.close_code == 1007

    # A header fails as soon as it can be judged: none of these frames has a payload, nor a masking key.
    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\xc1\x80", id="reserved bit"),
            pytest.param(b"\x83\x80", id="opcode"),
            pytest.param(b"\x89\xfe", id="long ping"),
            pytest.param(b"\x81\x05", id="not masked"),
            pytest.param(b"\x82\xfe\x00\x7d", id="not the shortest length"),
        ],
    )
    def test_header(self, server, octets):
        feed(server, octets[:-1], 1)
        assert server.failure is None
        feed(server, octets[-1:], 1)
        assert server.failure.close_code == 1002


# One frame of 1000 octets: it is taken as a whole once one part in sixteen, 63 octets, is there.
BIG_TEXT = "a\u00e9\u20ac\U0001f600" * 100
BIG = BIG_TEXT.encode()
# How many of its octets are there when something else happens.
PLACES = [0, 1, 62, 63, 64, 500, 501, 502, 503, 998, 999]


class TestLargeFrame:
    """A frame that is a whole message, and comes in parts."""

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("step", [1, 7, 63, sys.maxsize])
    @pytest.mark.parametrize("first", [0x81, 0x82], ids=["text", "binary"])
    def test_whole(self, server, place, step, first):
        octets = serialize_frame(first, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], sys.maxsize)
        assert take_all(server) == []
        events = receive(server, octets[8 + place :] + from_client(0x81, b"next"), step)
        assert events == [BIG_TEXT if first == 0x81 else BIG, "next"]
        assert [type(event) for event in events] == [str if first == 0x81 else bytes, str]
        assert server.failure is None

    @pytest.mark.parametrize("size", [2, 15, 16, 17, 125, 126, 4095, 65535, 65536, 100_000])
    @pytest.mark.parametrize("share", [17, 16, 2])
    def test_sizes(self, size, share):
        server = Protocol(max_frame_size=100_000)
        payload = bytes(index * 7 & 0xFF for index in range(size))
        octets = from_client(0x82, payload)
        cut = len(octets) - size + max(1, size // share)
        feed(server, octets[:cut], sys.maxsize)
        assert receive(server, octets[cut:] + from_client(0x82, b"next")) == [payload, b"next"]

    def test_one_after_the_other(self, server):
        """What begins in one buffer ends in the next, which begins another."""
        messages = [bytes([number]) * 1000 for number in range(20)]
        octets = b"".join(from_client(0x82, message) for message in messages)
        assert receive(server, octets, 700) == messages

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    @pytest.mark.parametrize("place", [0, 40, 62, 63, 64, 500])
    def test_text_fails_at_the_octet(self, server, octets, index, place):
        octets = serialize_frame(0x81, (b"x" * place + octets).ljust(1000), 0x3D21FA37)
        at = 8 + place + index
        feed(server, octets[:at], 1)
        assert server.failure is None
        feed(server, octets[at : at + 1], 1)
        assert type(server.failure) is InvalidPayload
        assert receive(server, octets[at + 1 :] + from_client(0x81, b"next")) == []

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    @pytest.mark.parametrize("cut", [8, 8 + 70, 8 + 600, 8 + 1000], ids=["head", "before", "behind", "all"])
    def test_text_fails_in_large_parts(self, server, octets, index, cut):
        frame = serialize_frame(0x81, (b"x" * 500 + octets).ljust(1000), 0x3D21FA37)
        feed(server, frame[:cut], sys.maxsize)
        feed(server, frame[cut:], sys.maxsize)
        assert type(server.failure) is InvalidPayload
        assert str(server.failure).startswith("text is not UTF-8: ")
        assert take_all(server) == []

    @pytest.mark.parametrize("end", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"], ids=bytes.hex)
    @pytest.mark.parametrize("cut", [1, 63, 500, 999, 1000])
    def test_text_ends_within_a_character(self, server, end, cut):
        frame = serialize_frame(0x81, b"x" * (1000 - len(end)) + end, 0x3D21FA37)
        feed(server, frame[: 8 + cut], sys.maxsize)
        feed(server, frame[8 + cut :] + from_client(0x81, b"next"), sys.maxsize)
        assert type(server.failure) is InvalidPayload
        assert take_all(server) == []

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("first", [0x81, 0x82], ids=["text", "binary"])
    @pytest.mark.parametrize("step", [1, sys.maxsize])
    def test_stream_within(self, server, place, first, step):
        octets = serialize_frame(first, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], step)
        server.stream()
        events = receive(server, octets[8 + place :] + from_client(0x82, b"next"), step)
        assert events == [Fragment(BIG_TEXT if first == 0x81 else BIG, True), b"next"]

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("step", [1, sys.maxsize])
    def test_skip_within(self, server, place, step):
        octets = serialize_frame(0x81, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], step)
        server.stream()
        server.skip_stream()
        assert receive(server, octets[8 + place :] + from_client(0x82, b"next"), step) == [b"next"]

    @pytest.mark.parametrize("place", PLACES)
    def test_skip_nothing(self, server, place):
        octets = serialize_frame(0x81, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], sys.maxsize)
        server.skip_stream()
        feed(server, octets[8 + place : 9 + place], sys.maxsize)
        server.skip_stream()
        assert receive(server, octets[9 + place :]) == [BIG_TEXT]

    @pytest.mark.parametrize("place", PLACES)
    def test_discard_within(self, server, place):
        octets = serialize_frame(0x81, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], sys.maxsize)
        server.discard()
        assert receive(server, octets[8 + place :] + from_client(0x89, b"?") + from_client(0x81, b"next")) == []
        assert server.replies == [b"\x8a\x01?"]
        assert server.failure is None

    @pytest.mark.parametrize("place", PLACES)
    def test_as_frames(self, place):
        server = Protocol(assembles=False)
        octets = serialize_frame(0x81, BIG, 0x3D21FA37)
        feed(server, octets[: 8 + place], sys.maxsize)
        assert receive(server, octets[8 + place :]) == [WebSocketFrame(1, BIG), BIG_TEXT]

    def test_limits_count_all_of_it(self):
        server = Protocol(max_frame_size=1000, max_message_size=1000)
        assert receive(server, from_client(0x82, BIG), 100) == [BIG]
        assert receive(server, from_client(0x02, bytes(500)) + from_client(0x80, bytes(500)), 100) == [bytes(1000)]
        assert receive(server, from_client(0x82, BIG), 100) == [BIG]
        feed(server, from_client(0x82, bytes(1001))[:4], 1)
        assert type(server.failure) is MessageTooBig

    @pytest.mark.parametrize("received", [0, 1, 1000, 16 * 65536 - 1])
    def test_announcing_takes_no_memory(self, received):
        """A sixteenth of it has to be there, and what is there may be held twice."""
        server = Protocol(max_frame_size=16 * 1048576, max_message_size=16 * 1048576)
        octets = bytearray(16) + b"\x82\xff" + (16 * 1048576).to_bytes(8, "big") + ZERO_KEY + bytes(received)
        tracemalloc.start()
        try:
            server.receive(octets, 16, len(octets))
            assert tracemalloc.get_traced_memory()[1] < 20_000 + 2.2 * received
        finally:
            tracemalloc.stop()
        assert server.failure is None

    def test_memory_is_that_of_the_message(self):
        size = 16 * 1048576
        server = Protocol(max_frame_size=size, max_message_size=size)
        server.receive_octets(b"\x82\xff" + size.to_bytes(8, "big") + ZERO_KEY)
        part = bytearray(16 + 1048576)
        tracemalloc.start()
        try:
            for _ in range(16):
                server.receive(part, 16, len(part))
            current, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert take_all(server) == [bytes(size)]
        assert current < size + 100_000
        # The plain build has a copy at the end.
        assert peak < (1 if COMPILED else 2) * size + 3 * len(part)

    def test_memory_is_free_when_it_fails(self):
        size = 16 * 1048576
        server = Protocol(max_frame_size=size, max_message_size=size)
        server.receive_octets(b"\x81\xff" + size.to_bytes(8, "big") + ZERO_KEY)
        part = bytearray(16 + 2 * 1048576)
        tracemalloc.start()
        try:
            server.receive(part, 16, len(part))
            server.receive_octets(b"\xff")
            assert tracemalloc.get_traced_memory()[0] < 100_000
        finally:
            tracemalloc.stop()
        assert type(server.failure) is InvalidPayload


class TestLimits:
    """1009, before any octet of the payload came."""

    @each_step
    def test_frame(self, step):
        protocol = Protocol(max_frame_size=1000)
        assert receive(protocol, from_client(0x82, bytes(1000)), step) == [bytes(1000)]
        feed(protocol, b"\x82\xfe\x03\xe9", step)
        assert type(protocol.failure) is MessageTooBig
        assert (protocol.failure.close_code, str(protocol.failure)) == (1009, "a frame has more than 1000 octets")

    @pytest.mark.parametrize("size", [65537, 2**31, 2**32 + 5, 2**63 - 1])
    def test_frame_with_64_bits(self, server, size):
        feed(server, b"\x82\xff" + size.to_bytes(8, "big"), 1)
        assert type(server.failure) is MessageTooBig

    def test_default_frame_size(self, server):
        assert receive(server, b"\x82\xff\0\0\0\0\0\1\0\0" + ZERO_KEY + bytes(65536)) == [bytes(65536)]

    def test_message_of_one_frame(self):
        protocol = Protocol(is_client=True, max_frame_size=1000, max_message_size=10)
        assert receive(protocol, b"\x81\x0a0123456789") == ["0123456789"]
        feed(protocol, b"\x82\x0b", 1)
        assert (protocol.failure.close_code, str(protocol.failure)) == (1009, "a message has more than 10 octets")

    @each_step
    def test_message_of_fragments(self, step):
        protocol = Protocol(is_client=True, max_message_size=10)
        assert receive(protocol, b"\x02\x05aaaaa\x00\x05bbbbb\x89\x05ppppp\x80\x00", step) == [b"aaaaabbbbb"]
        # The count begins anew with each message.
        assert receive(protocol, b"\x02\x05aaaaa\x00\x05bbbbb", step) == []
        assert protocol.failure is None
        feed(protocol, b"\x80\x01", step)
        assert protocol.failure.close_code == 1009

    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    def test_fragments(self, options):
        protocol = Protocol(is_client=True, **options)
        message = b"\x02\x00" + b"\x00\x00" * (65536 - 2)
        feed(protocol, message + b"\x80\x00", sys.maxsize)
        # An empty frame may end a message that has as many as are allowed.
        feed(protocol, message + b"\x00\x00\x80\x00", sys.maxsize)
        feed(protocol, message + b"\x00\x00", sys.maxsize)
        assert protocol.failure is None
        feed(protocol, b"\x89\x00\x80\x01", sys.maxsize)
        assert (protocol.failure.close_code, str(protocol.failure)) == (1009, "a message has more than 65536 fragments")

    @each_step
    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    def test_fewer_fragments(self, options, step):
        protocol = Protocol(is_client=True, max_fragment_count=3, **options)
        feed(protocol, b"\x02\x01a\x00\x01b\x80\x01c" + b"\x02\x00\x00\x00\x00\x00\x80\x00", step)
        assert protocol.failure is None
        feed(protocol, b"\x02\x01a\x00\x01b\x00\x01c\x00\x00", step)
        assert (protocol.failure.close_code, protocol.failure.limit) == (1009, "max_message_fragments")

    def test_one_fragment(self):
        protocol = Protocol(is_client=True, max_fragment_count=1)
        assert receive(protocol, b"\x82\x01a\x02\x01b\x80\x00") == [b"a", b"b"]
        feed(protocol, b"\x02\x01a\x80\x01", sys.maxsize)
        assert protocol.failure.close_code == 1009

    def test_each_says_which_option_it_is(self):
        for octets, limit in (
            (b"\x82\x7e\x03\xe9", "max_received_frame_size"),
            (b"\x82\x0b", "max_received_message_size"),
        ):
            protocol = Protocol(is_client=True, max_frame_size=1000, max_message_size=10)
            feed(protocol, octets, sys.maxsize)
            assert protocol.failure.limit == limit

    def test_messages_are_no_fragments(self, client):
        feed(client, b"\x82\x00" * (65536 + 5), sys.maxsize)
        assert client.failure is None
        assert client.queued_size == (65536 + 5) * QUEUE_OVERHEAD


@each_step
class TestClose:
    @pytest.mark.parametrize(
        ("octets", "code", "reason"),
        [
            pytest.param(b"\x88\x00", 1005, "", id="empty"),
            pytest.param(b"\x88\x02\x03\xe8", 1000, "", id="1000"),
            pytest.param(b"\x88\x02\x03\xeb", 1003, "", id="1003"),
            pytest.param(b"\x88\x02\x03\xef", 1007, "", id="1007"),
            pytest.param(b"\x88\x02\x03\xf6", 1014, "", id="1014"),
            pytest.param(b"\x88\x02\x0b\xb8", 3000, "", id="3000"),
            pytest.param(b"\x88\x07\x13\x87\xce\xbabye", 4999, "\u03babye", id="4999 with a reason"),
            pytest.param(b"\x88\x7d\x03\xe8" + b"r" * 123, 1000, "r" * 123, id="the longest reason"),
        ],
    )
    def test_code_and_reason(self, client, octets, code, reason, step):
        assert receive(client, b"\x81\x01a" + octets, step) == ["a"]
        assert (client.is_close_received, client.close_code, client.close_reason) == (True, code, reason)
        assert client.failure is None

    def test_nothing_counts_behind_it(self, client, step):
        assert receive(client, b"\x88\x00\x81\x01a\x89\x00\x88\x02\x03\xe8\xff\xff", step) == []
        assert (client.close_code, client.replies, client.failure) == (1005, [], None)

    def test_within_a_fragmented_message(self, client, step):
        assert receive(client, b"\x01\x01a\x88\x00\x80\x01b", step) == []
        assert client.is_close_received

    def test_masked(self, server, step):
        feed(server, from_client(0x88, b"\x03\xe9bye"), step)
        assert (server.close_code, server.close_reason) == (1001, "bye")


class TestOurClose:
    def test_server(self, server):
        assert server.sent_close_code is None
        assert server.serialize_close(1000, "bye") == b"\x88\x05\x03\xe8bye"
        assert server.sent_close_code == 1000

    def test_without_status(self, server):
        assert server.serialize_close(1005, "") == b"\x88\x00"
        assert server.sent_close_code == 1005

    def test_no_pong_behind_it(self, server):
        feed(server, from_client(0x89, b"first"), sys.maxsize)
        assert len(server.replies) == 1
        server.serialize_close(1000, "")
        assert server.replies == []
        # 5.5.1: "The application MUST NOT send any more data frames"; a Pong is of no more use either.
        assert receive(server, from_client(0x89, b"second") + from_client(0x82, b"a")) == [b"a"]
        assert server.replies == []


@each_step
class TestControlFrames:
    def test_ping_is_answered(self, server, step):
        assert receive(server, b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", step) == []
        assert server.replies == [b"\x8a\x05Hello"]

    def test_answers_keep_their_order(self, server, step):
        feed(server, from_client(0x89, b"1") + from_client(0x89) + from_client(0x89, b"x" * 125), step)
        assert server.replies == [b"\x8a\x011", b"\x8a\x00", b"\x8a\x7d" + b"x" * 125]

    def test_client_masks_its_answer(self, client, step):
        feed(client, b"\x89\x05Hello", step)
        [pong] = client.replies
        assert pong[:2] == b"\x8a\x85"
        assert receive(Protocol(assembles=False), pong) == [WebSocketFrame(Opcode.PONG, b"Hello")]

    def test_auto_pong_off(self, server, step):
        server.auto_pong = False
        server.reports_control = True
        assert receive(server, from_client(0x89, b"p"), step) == [Ping(b"p")]
        assert server.replies == []

    def test_not_reported_unless_asked_for(self, server, step):
        assert receive(server, from_client(0x89, b"p") + from_client(0x8A, b"q"), step) == []

    def test_latest_pong(self, server, step):
        assert server.latest_pong is None
        feed(server, from_client(0x8A, b"1") + from_client(0x8A, b"2"), step)
        assert server.latest_pong == b"2"

    def test_only_the_latest_answer_while_output_is_blocked(self, server, step):
        feed(server, from_client(0x89, b"1") + from_client(0x89, b"2"), step)
        server.is_output_blocked = True
        feed(server, from_client(0x89, b"3") + from_client(0x89, b"4"), step)
        assert server.replies == [b"\x8a\x014"]
        server.is_output_blocked = False
        feed(server, from_client(0x89, b"5"), step)
        assert server.replies == [b"\x8a\x014", b"\x8a\x015"]

    def test_the_latest_answers_while_output_is_blocked(self, step):
        server = Protocol(max_reply_count=3)
        server.is_output_blocked = True
        pings = [from_client(0x89, bytes([number])) for number in range(7)]
        for count, kept in ((2, [0, 1]), (3, [0, 1, 2]), (4, [1, 2, 3]), (7, [4, 5, 6])):
            server.replies.clear()
            feed(server, b"".join(pings[:count]), step)
            assert server.replies == [b"\x8a\x01" + bytes([number]) for number in kept]
        # What was made while it was not blocked gives way, too.
        server.is_output_blocked = False
        feed(server, b"".join(pings[:5]), step)
        assert len(server.replies) == 8
        server.is_output_blocked = True
        feed(server, pings[5], step)
        assert server.replies == [b"\x8a\x01" + bytes([number]) for number in (3, 4, 5)]

    def test_between_fragments_in_wire_order(self, server, step):
        server.reports_control = True
        octets = (
            from_client(0x01, b"Hel")
            + from_client(0x89, b"ping")
            + from_client(0x00, b"l")
            + from_client(0x8A)
            + from_client(0x80, b"o")
            + from_client(0x89)
        )
        assert receive(server, octets, step) == [Ping(b"ping"), Pong(b""), "Hello", Ping(b"")]


@each_step
class TestFrames:
    """With ``assembles=False`` every frame is an event, a message of one frame a message too."""

    def make(self, **options):
        return Protocol(is_client=True, assembles=False, **options)

    def test_every_frame(self, step):
        protocol = self.make()
        octets = b"\x81\x01a\x01\x02b\xc3\x89\x01p\x00\x00\x80\x01\xa9\x82\x01d\x8a\x00\x88\x02\x03\xe8"
        assert receive(protocol, octets, step) == [
            WebSocketFrame(Opcode.TEXT, b"a"),
            "a",
            WebSocketFrame(Opcode.TEXT, b"b\xc3", fin=False),
            WebSocketFrame(Opcode.PING, b"p"),
            WebSocketFrame(Opcode.CONTINUATION, b"", fin=False),
            WebSocketFrame(Opcode.CONTINUATION, b"\xa9"),
            WebSocketFrame(Opcode.BINARY, b"d"),
            b"d",
            WebSocketFrame(Opcode.PONG, b""),
            WebSocketFrame(Opcode.CLOSE, b"\x03\xe8"),
        ]
        assert protocol.is_close_received
        assert len(protocol.replies) == 1

    def test_reported_control_frames_come_twice(self, step):
        protocol = self.make()
        protocol.reports_control = True
        assert receive(protocol, b"\x89\x01p", step) == [WebSocketFrame(Opcode.PING, b"p"), Ping(b"p")]

    def test_order_is_checked(self, step):
        protocol = self.make()
        assert receive(protocol, b"\x01\x01a\x81\x01b", step) == [WebSocketFrame(Opcode.TEXT, b"a", fin=False)]
        assert protocol.failure.close_code == 1002

    def test_text_is_checked_across_frames(self, step):
        protocol = self.make()
        feed(protocol, b"\x01\x01\xe2\x00\x01\x82", step)
        assert protocol.failure is None
        feed(protocol, b"\x80\x01a", step)
        assert protocol.failure.close_code == 1007

    def test_limit_holds_across_frames(self, step):
        protocol = self.make(max_message_size=4)
        feed(protocol, b"\x02\x02ab\x80\x02cd\x02\x02ab\x80\x03", step)
        assert protocol.failure.close_code == 1009

    def test_discard(self, step):
        protocol = self.make()
        protocol.discard()
        assert receive(protocol, b"\x81\x01a\x01\x01b\x80\x01c\x89\x00", step) == []


class TestStream:
    @each_step
    def test_pieces_of_the_next_message_only(self, client, step):
        client.stream()
        octets = b"\x01\x03Hel\x89\x00\x00\x00\x80\x02lo" + b"\x81\x04next" + b"\x01\x01a\x80\x01b"
        assert receive(client, octets, step) == [
            Fragment("Hel", False),
            Fragment("", False),
            Fragment("lo", True),
            "next",
            "ab",
        ]

    @each_step
    def test_message_of_one_frame(self, client, step):
        client.stream()
        assert receive(client, b"\x82\x05Hello\x82\x01a", step) == [Fragment(b"Hello", True), b"a"]

    @each_step
    def test_a_character_is_in_one_piece(self, client, step):
        client.stream()
        octets = b"\x01\x02a\xe2\x00\x01\x82\x00\x02\xacb\x80\x00"
        assert receive(client, octets, step) == [
            Fragment("a", False),
            Fragment("", False),
            Fragment("\u20acb", False),
            Fragment("", True),
        ]

    @each_step
    def test_text_is_checked(self, client, step):
        client.stream()
        assert receive(client, b"\x01\x02a\xe2\x80\x01a", step) == [Fragment("a", False)]
        assert client.failure.close_code == 1007

    @each_step
    def test_message_in_progress(self, client, step):
        feed(client, b"\x02\x01a\x00\x01b\x00\x02c", step)
        client.stream()
        assert receive(client, b"d\x80\x01e", step) == [Fragment(b"abcd", False), Fragment(b"e", True)]

    @each_step
    def test_limit_is_that_of_the_message(self, step):
        protocol = Protocol(is_client=True, max_message_size=4)
        protocol.stream()
        assert receive(protocol, b"\x02\x02ab\x00\x02cd\x80\x01e", step) == [
            Fragment(b"ab", False),
            Fragment(b"cd", False),
        ]
        assert protocol.failure.close_code == 1009

    @each_step
    def test_skip_the_rest(self, client, step):
        client.reports_control = True
        client.stream()
        assert receive(client, b"\x01\x01a", step) == [Fragment("a", False)]
        client.skip_stream()
        assert receive(client, b"\x00\x02b\xe2\x89\x01p\x80\x02\x82\xac\x81\x04next", step) == [Ping(b"p"), "next"]

    @each_step
    def test_what_is_skipped_is_checked(self, client, step):
        client.stream()
        feed(client, b"\x01\x01a", step)
        client.skip_stream()
        feed(client, b"\x80\x01\xff", step)
        assert client.failure.close_code == 1007

    @each_step
    def test_skip_within_the_only_frame(self, client, step):
        client.stream()
        feed(client, b"\x82\x03", step)
        client.skip_stream()
        assert receive(client, b"abc\x82\x01d", step) == [b"d"]

    def test_skip_drops_the_queued_pieces_alone(self, client):
        client.reports_control = True
        client.stream()
        feed(client, b"\x02\x01a\x89\x01p\x00\x03bcd", sys.maxsize)
        client.skip_stream()
        assert receive(client, b"\x80\x01e\x82\x01f") == [Ping(b"p"), b"f"]

    def test_skip_a_message_that_is_complete(self, client):
        client.stream()
        feed(client, b"\x02\x01a\x80\x01b\x82\x04next\x02\x01c", sys.maxsize)
        client.skip_stream()
        assert receive(client, b"\x80\x01d") == [b"next", b"cd"]

    def test_skip_before_the_message_begins(self, client):
        client.stream()
        client.skip_stream()
        assert receive(client, b"\x02\x01a\x80\x01b") == [b"ab"]

    @each_step
    def test_stream_the_message_behind_a_skipped_one(self, client, step):
        client.stream()
        assert receive(client, b"\x02\x01a", step) == [Fragment(b"a", False)]
        client.skip_stream()
        client.stream()
        octets = b"\x00\x01b\x80\x01c" + b"\x02\x01d\x80\x01e" + b"\x82\x01f"
        assert receive(client, octets, step) == [Fragment(b"d", False), Fragment(b"e", True), b"f"]

    @each_step
    def test_skip_twice(self, client, step):
        client.stream()
        assert receive(client, b"\x02\x01a", step) == [Fragment(b"a", False)]
        client.skip_stream()
        client.stream()
        client.skip_stream()
        assert receive(client, b"\x80\x01b\x02\x01c\x80\x01d", step) == [b"cd"]


class TestSerialize:
    @pytest.mark.parametrize("width", ["a", "\u00e9", "\u20ac", "\U0001f600"], ids=["1", "2", "3", "4 octets"])
    @pytest.mark.parametrize("threshold", [4, 125, 126, 65535, 65536, 0])
    @pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])
    def test_text_is_as_its_octets(self, width, threshold, is_client):
        """The size that counts is that in octets, whatever the characters are."""
        protocol = Protocol(is_client=is_client, fragmentation_threshold=threshold)
        edge = threshold or 65536
        each = len(width.encode())
        for count in {0, 1, edge // each - 1, edge // each, edge // each + 1, 2 * edge // each + 1}:
            text = width * count
            if is_client:
                octets = protocol.serialize(Opcode.TEXT, text)
                assert len(octets) == len(protocol.serialize(Opcode.TEXT, text.encode()))
                large = {"max_frame_size": 2**20, "max_message_size": 2**20}
                assert receive(Protocol(**large), octets) == [text]
            else:
                octets = serialize_message(Opcode.TEXT, text.encode(), threshold)
                assert protocol.serialize(Opcode.TEXT, text) == octets
                assert protocol.serialize(Opcode.TEXT, text.encode()) == octets

    def test_surrogates_are_no_text(self, server):
        with pytest.raises(UnicodeEncodeError):
            server.serialize(Opcode.TEXT, "\ud800")

    @pytest.mark.parametrize(
        ("options", "threshold"),
        [
            pytest.param({}, 16384, id="default"),
            pytest.param({"fragmentation_threshold": 7}, 7, id="small"),
            pytest.param({"fragmentation_threshold": 0}, sys.maxsize // 4, id="none"),
            pytest.param({"is_client": True}, 0, id="masked"),
        ],
    )
    def test_plain_threshold(self, options, threshold):
        assert Protocol(**options).plain_threshold == threshold

    def test_no_plain_threshold_where_compression_was_agreed(self):
        assert make_compressed().plain_threshold == 0

    def test_server(self, server):
        assert server.serialize(Opcode.TEXT, b"Hello") == b"\x81\x05Hello"
        assert server.serialize(Opcode.BINARY, bytes(126)) == b"\x82\x7e\x00\x7e" + bytes(126)

    @pytest.mark.parametrize("size", [3, 200])
    def test_server_fragments(self, size):
        protocol = Protocol(fragmentation_threshold=150)
        octets = protocol.serialize(Opcode.BINARY, bytes(size))
        assert octets == (
            b"\x82\x03" + bytes(3) if size == 3 else b"\x02\x7e\0\x96" + bytes(150) + b"\x80\x32" + bytes(50)
        )

    def test_no_fragments(self):
        protocol = Protocol(fragmentation_threshold=0)
        assert protocol.serialize(Opcode.BINARY, bytes(65536)) == b"\x82\x7f\0\0\0\0\0\1\0\0" + bytes(65536)

    def test_small_threshold(self):
        protocol = Protocol(fragmentation_threshold=3)
        assert protocol.serialize(Opcode.TEXT, b"Hello") == b"\x01\x03Hel\x80\x02lo"

    @pytest.mark.parametrize(("threshold", "sizes"), [(0, [5]), (5, [5]), (2, [2, 2, 1])])
    def test_client_masks_each_frame(self, threshold, sizes):
        protocol = Protocol(is_client=True, fragmentation_threshold=threshold)
        octets = protocol.serialize(Opcode.TEXT, b"Hello")
        frames = receive(Protocol(assembles=False), octets)
        assert [len(frame.payload) for frame in frames if isinstance(frame, WebSocketFrame)] == sizes
        assert len(octets) == 5 + 6 * len(sizes)
        assert receive(Protocol(), octets) == ["Hello"]

    def test_client_keys_differ(self, client):
        # Two of four octets are equal once in 2**32 runs, three never in practice.
        assert len({client.serialize(Opcode.TEXT, b"") for _ in range(3)}) > 1

    def test_client_sends_an_empty_message(self, client):
        octets = client.serialize(Opcode.BINARY, b"")
        assert (octets[:2], len(octets)) == (b"\x82\x80", 6)

    def test_frame(self, server, client):
        assert server.serialize_frame(0x00, b"piece") == b"\x00\x05piece"
        assert receive(server, client.serialize_frame(0x82, b"piece")) == [b"piece"]

    def test_client_close(self, server, client):
        feed(server, client.serialize_close(1001, "bye"), sys.maxsize)
        assert (server.close_code, server.close_reason, client.sent_close_code) == (1001, "bye", 1001)


# permessage-deflate (RFC 7692)


@each_step
class TestCompressedExamplesOfTheRFC:
    """RFC 7692, 7.2.3."""

    @pytest.mark.parametrize(
        ("octets", "events"),
        [
            pytest.param(b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", ["Hello"], id="one block"),
            pytest.param(b"\x41\x03\xf2\x48\xcd\x80\x04\xc9\xc9\x07\x00", ["Hello"], id="fragments"),
            pytest.param(b"\xc1\x0b\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", ["Hello"], id="no compression"),
            pytest.param(b"\xc1\x08\xf3\x48\xcd\xc9\xc9\x07\x00\x00", ["Hello"], id="BFINAL"),
            pytest.param(b"\xc1\x0d\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", ["Hello"], id="two blocks"),
            pytest.param(b"\xc1\x01\x00", [""], id="empty text"),
            pytest.param(b"\xc2\x01\x00", [b""], id="empty binary"),
        ],
    )
    def test_messages(self, octets, events, step):
        client = make_compressed(is_client=True)
        assert receive(client, octets * 2, step) == events * 2
        assert client.failure is None

    def test_sharing_the_sliding_window(self, step):
        client = make_compressed(DeflateParameters(), is_client=True)
        octets = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00" + b"\xc1\x05\xf2\x00\x11\x00\x00"
        assert receive(client, octets, step) == ["Hello", "Hello"]


@each_step
class TestCompressedMessages:
    def test_masked(self, step):
        octets = from_client(0xC1, deflate(b"Hello")) + from_client(0xC2, deflate(NOISE[:300]))
        assert receive(make_compressed(), octets, step) == ["Hello", NOISE[:300]]

    def test_beside_others(self, step):
        client = make_compressed(DeflateParameters(), is_client=True)
        # 6: the bit is each message's own.
        octets = b"\x81\x01a\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00\x01\x01b\x80\x01c\xc1\x05\xf2\x00\x11\x00\x00\x82\x01d"
        assert receive(client, octets, step) == ["a", "Hello", "bc", "Hello", b"d"]

    def test_control_frames_in_between(self, step):
        client = make_compressed(is_client=True)
        client.reports_control = True
        octets = b"\x41\x03\xf2\x48\xcd\x89\x01p\x00\x00\x00\x02\xc9\xc9\x8a\x01q\x80\x02\x07\x00"
        assert receive(client, octets, step) == [Ping(b"p"), Pong(b"q"), "Hello"]
        assert len(client.replies) == 1

    @pytest.mark.parametrize("size", [0, 1, 3])
    def test_fragments(self, size, step):
        payload = "κόσμε".encode() * 30
        octets = deflate(payload)
        pieces = [octets[at : at + size] for at in range(0, len(octets), size)] if size else [b"", octets, b""]
        firsts = [0x41, *[0x00] * (len(pieces) - 2), 0x80]
        client = make_compressed(is_client=True)
        assert receive(client, join_frames(zip(firsts, pieces, strict=True)), step) == ["κόσμε" * 30]

    def test_large(self, step):
        payload = NOISE[:40_000] + bytes(200_000)
        client = make_compressed(is_client=True)
        assert receive(client, serialize_frame(0xC2, deflate(payload)), max(step, 1000)) == [payload]

    @pytest.mark.parametrize("size", [0, 1, 100])
    def test_message_without_an_octet(self, size, step):
        # A peer that leaves out even the octet of an empty message (7.2.3.6).
        client = make_compressed(DeflateParameters(), is_client=True)
        fragments = b"\x42\x00" + b"\x00\x00" * size + b"\x80\x00"
        assert receive(client, b"\xc1\x00" + fragments + b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", step) == [
            "",
            b"",
            "Hello",
        ]


@each_step
class TestReservedBits:
    """RSV1 is for the first frame of a message, where permessage-deflate was agreed (RFC 7692, 6.1)."""

    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\x41\x03\xf2\x48\xcd\xc0\x04\xc9\xc9\x07\x00", id="RSV1 of a continuation"),
            pytest.param(b"\x41\x03\xf2\x48\xcd\x40\x00", id="RSV1 of a continuation, not the last"),
            pytest.param(b"\x01\x01a\xc0\x00", id="RSV1 of a continuation of what is not compressed"),
            pytest.param(b"\xc8\x00", id="RSV1 of a close"),
            pytest.param(b"\xc9\x00", id="RSV1 of a ping"),
            pytest.param(b"\xca\x00", id="RSV1 of a pong"),
            pytest.param(b"\xa1\x00", id="RSV2"),
            pytest.param(b"\x91\x00", id="RSV3"),
            pytest.param(b"\xe1\x01\x00", id="RSV1 and RSV2"),
            pytest.param(b"\xd1\x01\x00", id="RSV1 and RSV3"),
            pytest.param(b"\xc3\x00", id="RSV1 of a reserved opcode"),
            pytest.param(b"\x41\x01\x00\xc1\x01\x00", id="a message within a message"),
        ],
    )
    def test_1002(self, octets, step):
        client = make_compressed(is_client=True)
        assert receive(client, b"\x81\x06before" + octets + b"\x81\x06behind", step) == ["before"]
        assert type(client.failure) is ProtocolError

    @pytest.mark.parametrize("first", [0xC1, 0x41, 0xC2, 0xC9])
    def test_without_agreement(self, client, first, step):
        feed(client, bytes([first, 0]), step)
        assert client.failure.close_code == 1002
        assert "no extension was negotiated" in str(client.failure)


class TestCompressedPayloads:
    """What is inflated is checked as what is not compressed (RFC 7692, 6.2)."""

    @each_step
    @pytest.mark.parametrize("octets", [case.values[0] for case in NOT_UTF_8], ids=[case.id for case in NOT_UTF_8])
    def test_text_is_checked(self, octets, step):
        client = make_compressed(is_client=True)
        assert receive(client, serialize_frame(0xC1, deflate(octets)) + b"\x81\x00", step) == []
        assert type(client.failure) is InvalidPayload

    @each_step
    @pytest.mark.parametrize("payload", [b"\xc3", b"a\xe2\x82", b"\xf0\x9f\x98"])
    def test_text_ends_within_a_character(self, payload, step):
        octets = deflate(payload)
        for frames in ([(0xC1, octets)], [(0x41, octets[:2]), (0x80, octets[2:])], [(0x41, octets), (0x80, b"")]):
            client = make_compressed(is_client=True)
            assert receive(client, join_frames(frames), step) == []
            assert type(client.failure) is InvalidPayload

    @each_step
    def test_binary_is_not(self, step):
        assert receive(make_compressed(is_client=True), serialize_frame(0xC2, deflate(b"\xff")), step) == [b"\xff"]

    @pytest.mark.parametrize(("octets", "index"), NOT_UTF_8)
    @pytest.mark.parametrize("first", [0xC1, 0x41], ids=["frame", "fragment"])
    def test_as_early_as_the_octet_is_inflated(self, first, octets, index):
        # A flushed block for each octet: whatever inflates, each comes with its block.
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        blocks = [
            compressor.compress(bytes([octet])) + compressor.flush(zlib.Z_SYNC_FLUSH) for octet in octets[: index + 1]
        ]
        client = make_compressed(is_client=True)
        feed(client, bytes([first, 0x7E, 0x10, 0x00]) + b"".join(blocks[:index]), sys.maxsize)
        assert client.failure is None
        feed(client, blocks[index], 1)
        assert client.failure.close_code == 1007

    def test_early_across_fragments_with_pings_between(self):
        client = make_compressed(is_client=True)
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        first, second = (
            compressor.compress(octets) + compressor.flush(zlib.Z_SYNC_FLUSH) for octets in (b"ab\xe2", b"\x82c")
        )
        feed(client, serialize_frame(0x41, first) + b"\x89\x02\xff\xff", 1)
        assert client.failure is None
        feed(client, serialize_frame(0x00, second), sys.maxsize)
        assert client.failure.close_code == 1007

    @each_step
    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\xff" * 10, id="no deflate stream"),
            pytest.param(b"\xf2\x00\x11\x00\x00", id="a context that was not taken over"),
            pytest.param(b"\x00\x05\x00\xfa\xff\x48\x65\x6c", id="breaks off"),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    def test_corrupt(self, octets, options, step):
        for frames in ([(0xC1, octets)], [(0x42, octets[:4]), (0x80, octets[4:])], [(0x42, octets), (0x80, b"")]):
            client = make_compressed(is_client=True, **options)
            events = receive(client, join_frames([*frames, (0x81, b"behind")]), step)
            assert [event for event in events if not isinstance(event, WebSocketFrame)] == []
            assert type(client.failure) is InvalidPayload
            assert client.failure.close_code == 1007

    def test_nothing_is_inflated_that_nobody_will_see(self):
        client = make_compressed(is_client=True)
        client.discard()
        assert receive(client, b"\xc1\x05\xf2\x00\x11\x00\x00" + b"\x41\x01\x06\x80\x00" + b"\x88\x02\x03\xe8") == []
        assert (client.failure, client.close_code) == (None, 1000)

    @each_step
    @pytest.mark.parametrize("at", range(1, 12))
    @pytest.mark.parametrize("style", ["assembled", "as frames", "streamed"])
    def test_discarded_within_a_message(self, style, at, step):
        # Wherever it was, in the middle of a character, too.
        octets = deflate("κόσμε".encode())
        for frames in ([(0xC1, octets)], [(0x41, octets[:6]), (0x80, octets[6:])]):
            client = make_compressed(is_client=True, assembles=style != "as frames")
            if style == "streamed":
                client.stream()
            whole = join_frames(frames) + b"\x88\x02\x03\xe8"
            feed(client, whole[:at], step)
            client.discard()
            assert receive(client, whole[at:], step) == []
            assert (client.failure, client.close_code) == (None, 1000)


class TestCompressedLimits:
    @each_step
    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    @pytest.mark.parametrize("is_fragmented", [False, True], ids=["frame", "fragments"])
    def test_inflated_size(self, is_fragmented, options, step):
        for size, code in ((1000, None), (1001, 1009), (100_000, 1009)):
            client = make_compressed(is_client=True, max_message_size=1000, **options)
            octets = deflate(bytes(size))
            frames = [(0x42, octets[:5]), (0x00, octets[5:]), (0x80, b"")] if is_fragmented else [(0xC2, octets)]
            events = receive(client, join_frames(frames) * 2, step)
            assert getattr(client.failure, "close_code", None) == code
            if code is None:
                messages = [event for event in events if not isinstance(event, WebSocketFrame)]
                assert messages == ([] if is_fragmented and options else [bytes(size)] * 2)
            else:
                assert client.failure.limit == "max_received_message_size"
                assert str(client.failure) == "a message inflates to more than 1000 octets"

    @pytest.mark.parametrize("memory_level", [1, 8, 9])
    @pytest.mark.parametrize("level", [0, 1, 9])
    @pytest.mark.parametrize("size", [1, 100, 5000, 60_000])
    def test_a_message_at_the_limit_that_does_not_shrink(self, size, level, memory_level):
        octets = deflate(NOISE[:size], level, memory_level)
        assert len(octets) > size
        for threshold in (0, 1000, 97):
            client = make_compressed(is_client=True, max_message_size=size)
            assert receive(client, serialize_message(0x42, octets, threshold)) == [NOISE[:size]]

    @pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
    def test_fragments_at_the_limit_that_do_not_shrink(self, size):
        # Each ends a block of its own, whose ends are longer than a small fragment's octets.
        server = make_compressed()
        pieces = [NOISE[at : at + size] for at in range(0, 10_000, size)]
        octets = [server.serialize_fragment(0 if at else 2, piece, True) for at, piece in enumerate(pieces)]
        octets.append(server.serialize_fragment(0x80, b"", True))
        payload = b"".join(pieces)
        client = make_compressed(is_client=True, max_message_size=len(payload))
        assert receive(client, b"".join(octets)) == [payload]
        assert client.failure is None

    def test_a_header_is_refused_that_cannot_be_within_the_limit(self):
        client = make_compressed(is_client=True, max_message_size=8000)
        feed(client, b"\xc2\x7e" + (10_024).to_bytes(2, "big"), sys.maxsize)
        assert client.failure is None
        client = make_compressed(is_client=True, max_message_size=8000)
        feed(client, b"\xc2\x7e" + (10_025).to_bytes(2, "big"), sys.maxsize)
        assert client.failure.close_code == 1009
        assert (str(client.failure), client.failure.limit) == (
            "a message has more than 8000 octets",
            "max_received_message_size",
        )

    def test_a_continuation_is_refused_that_cannot_be_within_the_limit(self):
        client = make_compressed(is_client=True, max_message_size=8000)
        empty = (b"\x00" + DEFLATE_TAIL) * 2004
        feed(client, serialize_frame(0x42, empty) + b"\x00\x0c", sys.maxsize)
        assert client.failure is None
        client = make_compressed(is_client=True, max_message_size=8000)
        feed(client, serialize_frame(0x42, empty) + b"\x00\x0d", sys.maxsize)
        assert client.failure.close_code == 1009

    def test_blocks_of_nothing_without_end(self):
        client = make_compressed(is_client=True, max_message_size=1000)
        feed(client, b"\x42\x00", sys.maxsize)
        count = 0
        while client.failure is None:
            feed(client, serialize_frame(0x00, (b"\x00" + DEFLATE_TAIL) * 20), sys.maxsize)
            count += 1
        assert client.failure.limit == "max_received_message_size"
        assert count < 30

    def test_what_is_not_compressed_has_the_limit_itself(self):
        client = make_compressed(is_client=True, max_message_size=10)
        assert receive(client, b"\x82\x0a" + bytes(10)) == [bytes(10)]
        feed(client, b"\x82\x0b", 1)
        assert client.failure.close_code == 1009
        client = make_compressed(is_client=True, max_message_size=10)
        # The one before was compressed, and had a fragment.
        feed(client, serialize_frame(0x42, deflate(bytes(10))) + b"\x80\x00" + b"\x02\x0a" + bytes(10), sys.maxsize)
        assert client.failure is None
        feed(client, b"\x80\x01", sys.maxsize)
        assert client.failure.close_code == 1009

    def test_frame_size_is_that_of_the_wire(self):
        client = make_compressed(is_client=True, max_frame_size=1000)
        assert receive(client, serialize_frame(0xC2, deflate(bytes(100_000)))) == [bytes(100_000)]
        feed(client, b"\xc2\x7e\x03\xe9", sys.maxsize)
        assert client.failure.limit == "max_received_frame_size"

    def test_number_of_fragments(self):
        client = make_compressed(is_client=True, max_fragment_count=3)
        octets = deflate(b"abc")
        frames = [(0x42, octets[:2]), (0x00, octets[2:4]), (0x00, octets[4:])]
        assert receive(client, join_frames([*frames, (0x80, b"")])) == [b"abc"]
        feed(client, join_frames([*frames, (0x00, b"")]), sys.maxsize)
        assert client.failure.limit == "max_message_fragments"

    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    def test_too_many_final_blocks(self, options):
        client = make_compressed(is_client=True, **options)
        feed(client, serialize_frame(0xC2, b"\x03\x00" * 1025), sys.maxsize)
        assert (client.failure.close_code, client.failure.limit) == (1009, "")


@each_step
class TestCompressedFrames:
    """With ``assembles=False`` frames come as they are on the wire, and a message of one frame inflated."""

    def test_every_frame(self, step):
        protocol = make_compressed(DeflateParameters(), is_client=True, assembles=False)
        octets = (
            b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"
            b"\x41\x03\xf2\x00\x11\x89\x01p\x80\x02\x00\x00"
            b"\x82\x01a\xc2\x01\x00\xc1\x05\xf2\x00\x11\x00\x00"
        )
        assert receive(protocol, octets, step) == [
            WebSocketFrame(Opcode.TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv1=True),
            "Hello",
            WebSocketFrame(Opcode.TEXT, b"\xf2\x00\x11", fin=False, rsv1=True),
            WebSocketFrame(Opcode.PING, b"p"),
            WebSocketFrame(Opcode.CONTINUATION, b"\x00\x00"),
            WebSocketFrame(Opcode.BINARY, b"a"),
            b"a",
            WebSocketFrame(Opcode.BINARY, b"\x00", rsv1=True),
            b"",
            WebSocketFrame(Opcode.TEXT, b"\xf2\x00\x11\x00\x00", rsv1=True),
            "Hello",
        ]
        assert protocol.failure is None

    def test_large(self, step):
        protocol = make_compressed(is_client=True, assembles=False)
        octets = deflate(bytes(100_000) + NOISE[:200])
        assert receive(protocol, serialize_frame(0xC2, octets), step) == [
            WebSocketFrame(Opcode.BINARY, octets, rsv1=True),
            bytes(100_000) + NOISE[:200],
        ]

    def test_text_is_checked(self, step):
        octets = deflate(b"abc\xff")
        for frames in ([(0xC1, octets)], [(0x41, octets[:3]), (0x80, octets[3:])], [(0x41, octets), (0x80, b"")]):
            protocol = make_compressed(is_client=True, assembles=False)
            feed(protocol, join_frames(frames), step)
            assert type(protocol.failure) is InvalidPayload

    def test_nothing_is_left_of_a_failed_message(self, step):
        protocol = make_compressed(is_client=True, assembles=False)
        feed(protocol, serialize_frame(0xC1, deflate(b"abc" * 100 + b"\xff")), step)
        assert take_all(protocol) == []

    def test_discard(self, step):
        protocol = make_compressed(is_client=True, assembles=False)
        protocol.discard()
        assert receive(protocol, b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00\x42\x00\x80\x01\x00", step) == []


class TestCompressedStream:
    def make_fragments(self, *pieces, opcode=0x41):
        """Return the frames of a message, each a flushed block, so that it can be inflated to its end."""
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        blocks = [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        return [serialize_frame(0 if at else opcode, block) for at, block in enumerate(blocks)] + [b"\x80\x01\x00"]

    @each_step
    def test_pieces(self, step):
        client = make_compressed(is_client=True)
        client.stream()
        frames = self.make_fragments(b"Hel", b"lo", b"!" * 1000)
        octets = frames[0] + b"\x89\x00" + b"".join(frames[1:]) + b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"
        assert receive(client, octets, step) == [
            Fragment("Hel", False),
            Fragment("lo", False),
            Fragment("!" * 1000, False),
            Fragment("", True),
            "Hello",
        ]

    @each_step
    def test_message_of_one_frame(self, step):
        client = make_compressed(is_client=True)
        client.stream()
        assert receive(client, serialize_frame(0xC2, deflate(NOISE[:999])) + b"\x82\x01a", step) == [
            Fragment(NOISE[:999], True),
            b"a",
        ]

    @each_step
    def test_a_character_is_in_one_piece(self, step):
        client = make_compressed(is_client=True)
        client.stream()
        octets = b"".join(self.make_fragments(b"a\xe2", b"\x82", b"\xacb"))
        assert receive(client, octets, step) == [
            Fragment("a", False),
            Fragment("", False),
            Fragment("\u20acb", False),
            Fragment("", True),
        ]

    @each_step
    def test_text_is_checked(self, step):
        client = make_compressed(is_client=True)
        client.stream()
        assert receive(client, b"".join(self.make_fragments(b"a\xe2", b"a")), step) == [Fragment("a", False)]
        assert client.failure.close_code == 1007

    @each_step
    def test_limit_is_that_of_the_message(self, step):
        client = make_compressed(is_client=True, max_message_size=1000)
        client.stream()
        octets = b"".join(self.make_fragments(bytes(600), bytes(401), opcode=0x42))
        assert receive(client, octets, step) == [Fragment(bytes(600), False)]
        assert client.failure.limit == "max_received_message_size"

    @each_step
    def test_message_in_progress(self, step):
        client = make_compressed(is_client=True)
        frames = self.make_fragments(b"ab", b"c", opcode=0x42)
        feed(client, frames[0], step)
        client.stream()
        assert receive(client, b"".join(frames[1:]), step) == [Fragment(b"abc", False), Fragment(b"", True)]

    @each_step
    def test_skip_the_rest(self, step):
        # What is skipped is inflated all the same, or the context would lack it.
        server = make_compressed(DeflateParameters())
        client = make_compressed(DeflateParameters(), is_client=True)
        frames = [
            server.serialize_fragment(first, b"Hello" if first < 0x80 else b"", True) for first in (1, 0, 0, 0x80)
        ]
        client.stream()
        assert receive(client, frames[0], step) == [Fragment("Hello", False)]
        client.skip_stream()
        octets = b"".join(frames[1:]) + server.serialize(1, b"Hello Hello")
        assert receive(client, octets, step) == ["Hello Hello"]


class TestBacklog:
    """Frames wait as they came while more is queued than may be: small ones may inflate to much."""

    MESSAGES: ClassVar = [bytes([number]) * 1000 for number in range(10)]

    def make(self, **options):
        return make_compressed(is_client=True, max_queued_size=2000, **options)

    def join(self):
        return b"".join(serialize_frame(0xC2, deflate(message)) for message in self.MESSAGES)

    @each_step
    def test_no_more_is_inflated(self, step):
        client = self.make()
        assert not client.has_backlog()
        feed(client, self.join(), step)
        # The second passes the limit.
        assert (client.queued_size, client.has_backlog()) == (2 * (1000 + QUEUE_OVERHEAD), True)
        messages = []
        while client.has_events():
            messages.append(client.take())
            client.parse_backlog()
            assert client.queued_size <= 2 * (1000 + QUEUE_OVERHEAD)
        assert messages == self.MESSAGES
        assert not client.has_backlog()

    @each_step
    def test_goes_on_with_what_comes_then(self, step):
        client = self.make()
        octets = self.join()
        feed(client, octets[:-5], step)
        while client.has_backlog():
            client.take()
            client.parse_backlog()
        assert receive(client, octets[-5:], step)[-1] == self.MESSAGES[-1]

    def test_nothing_to_go_on_with(self):
        client = self.make()
        client.parse_backlog()
        assert receive(client, self.join()[:10]) == []

    @each_step
    def test_violations_and_pings_wait_too(self, step):
        client = self.make()
        feed(client, self.join() + b"\x89\x01p\xc9\x00", step)
        assert (client.failure, client.replies) == (None, [])
        messages = []
        while client.has_events():
            messages.append(client.take())
            client.parse_backlog()
        assert messages == self.MESSAGES
        assert (client.failure.close_code, len(client.replies)) == (1002, 1)

    @each_step
    @pytest.mark.parametrize("options", [{}, {"assembles": False}], ids=["assembled", "as frames"])
    def test_what_is_discarded_leaves_room(self, options, step):
        client = self.make(**options)
        feed(client, self.join() + b"\x88\x02\x03\xe8", step)
        client.discard()
        client.parse_backlog()
        assert (client.has_events(), client.has_backlog(), client.close_code) == (False, False, 1000)

    def test_without_compression_there_is_none(self):
        client = Protocol(is_client=True, max_queued_size=2000)
        feed(client, b"".join(serialize_message(2, message, 0) for message in self.MESSAGES), sys.maxsize)
        assert not client.has_backlog()
        assert take_all(client) == self.MESSAGES


class TestSerializeCompressed:
    def test_one_frame(self):
        octets = make_compressed().serialize(Opcode.TEXT, b"Hello" * 10)
        assert octets[0] == 0xC1
        assert len(octets) < 20
        assert inflate_frames(octets) == ([0xC1], b"Hello" * 10)

    def test_bit_is_on_the_first_fragment_alone(self):
        server = make_compressed(fragmentation_threshold=1000)
        octets = server.serialize(Opcode.BINARY, (NOISE[:2500] + bytes(5000)))
        # What is fragmented is what goes out.
        assert inflate_frames(octets) == ([0x42, 0x00, 0x80], NOISE[:2500] + bytes(5000))

    @pytest.mark.parametrize("agreed", [FORGETFUL, DeflateParameters()], ids=["forgets", "takes over"])
    def test_threshold(self, agreed):
        server = make_compressed(agreed, deflate={"threshold": 20})
        assert server.serialize(Opcode.TEXT, b"a" * 19) == b"\x81\x13" + b"a" * 19
        assert inflate_frames(server.serialize(Opcode.TEXT, b"a" * 20)) == ([0xC1], b"a" * 20)

    @pytest.mark.parametrize("agreed", [FORGETFUL, DeflateParameters()], ids=["forgets", "takes over"])
    def test_not_this_one(self, agreed):
        server = make_compressed(agreed)
        client = make_compressed(agreed, is_client=True)
        octets = [server.serialize(Opcode.TEXT, b"Hello" * 10, compresses) for compresses in (True, False, True)]
        assert octets[1] == b"\x81\x32" + b"Hello" * 10
        assert receive(client, b"".join(octets)) == ["Hello" * 10] * 3

    def test_what_does_not_shrink_goes_as_it_is(self):
        server = make_compressed()
        assert server.serialize(Opcode.BINARY, NOISE[:100]) == b"\x82\x64" + NOISE[:100]
        assert server.serialize(Opcode.TEXT, b"") == b"\x81\x00"
        assert server.serialize(Opcode.TEXT, b"a") == b"\x81\x01a"

    def test_what_a_context_has_seen_goes_compressed(self):
        agreed = DeflateParameters()
        server, client = make_compressed(agreed), make_compressed(agreed, is_client=True)
        octets = [server.serialize(Opcode.BINARY, payload) for payload in (NOISE[:100], b"", NOISE[:100], b"a")]
        assert [each[0] for each in octets] == [0xC2] * 4
        assert len(octets[0]) > 102
        assert len(octets[2]) < 20
        assert receive(client, b"".join(octets)) == [NOISE[:100], b"", NOISE[:100], b"a"]

    @pytest.mark.parametrize("agreed", [FORGETFUL, DeflateParameters()], ids=["forgets", "takes over"])
    @pytest.mark.parametrize(("threshold", "count"), [(0, 1), (40, 6)])
    def test_client_masks_each_frame(self, threshold, count, agreed):
        client = make_compressed(agreed, is_client=True, fragmentation_threshold=threshold)
        server = make_compressed(agreed, assembles=False)
        octets = client.serialize(Opcode.BINARY, NOISE[:200] + bytes(50))
        frames = [event for event in receive(server, octets) if isinstance(event, WebSocketFrame)]
        assert [frame.rsv1 for frame in frames] == [True, *[False] * (count - 1)]
        assert receive(make_compressed(agreed), octets) == [NOISE[:200] + bytes(50)]

    def test_without_agreement(self, server):
        assert not server.compresses()
        assert server.serialize(Opcode.TEXT, b"Hello" * 10, True) == b"\x81\x32" + b"Hello" * 10
        assert make_compressed().compresses()

    @pytest.mark.parametrize("is_client", [False, True], ids=["server", "client"])
    @pytest.mark.parametrize("agreed", [FORGETFUL, DeflateParameters()], ids=["forgets", "takes over"])
    @pytest.mark.parametrize(
        "pieces", [[b"Hello"], [b""], [b"", b"a", b""], [b"Hello", NOISE[:1000], b"", b"Hello"], [bytes(70_000)] * 3]
    )
    def test_fragments(self, pieces, agreed, is_client):
        sender = make_compressed(agreed, is_client=is_client)
        receiver = make_compressed(agreed, is_client=not is_client)
        for _ in range(2):
            octets = [sender.serialize_fragment(0 if at else 2, piece, True) for at, piece in enumerate(pieces)]
            octets.append(sender.serialize_fragment(0x80, b"", True))
            assert [each[0] for each in octets] == [0x42, *[0x00] * (len(pieces) - 1), 0x80]
            assert receive(receiver, b"".join(octets)) == [b"".join(pieces)]
            # Others may go between two fragmented ones.
            assert receive(receiver, sender.serialize(Opcode.TEXT, b"between")) == ["between"]

    def test_fragments_that_are_not_compressed(self):
        server = make_compressed()
        octets = [server.serialize_fragment(*fragment, False) for fragment in ((1, b"Hel"), (0, b"lo"), (0x80, b""))]
        assert octets == [b"\x01\x03Hel", b"\x00\x02lo", b"\x80\x00"]

    def test_fragments_without_agreement(self, server):
        octets = [server.serialize_fragment(*fragment, True) for fragment in ((1, b"Hel"), (0, b"lo"), (0x80, b""))]
        assert octets == [b"\x01\x03Hel", b"\x00\x02lo", b"\x80\x00"]


class TestSharingKey:
    def test_the_same_parameters(self):
        assert Protocol().make_sharing_key() == Protocol().make_sharing_key() is not None
        agreed = DeflateParameters(True, False, 12, 9)
        assert make_compressed(agreed).make_sharing_key() == make_compressed(agreed).make_sharing_key()
        # How the other side compresses is of no matter.
        assert (
            make_compressed(agreed).make_sharing_key()
            == make_compressed(
                agreed._replace(client_max_window_bits=None, client_no_context_takeover=True)
            ).make_sharing_key()
        )

    def test_others(self):
        protocols = [
            Protocol(),
            Protocol(fragmentation_threshold=100),
            make_compressed(),
            make_compressed(fragmentation_threshold=100),
            make_compressed(DeflateParameters(True, True, 9)),
            make_compressed(deflate={"level": 9}),
            make_compressed(deflate={"memory_level": 9}),
            make_compressed(deflate={"threshold": 9}),
        ]
        keys = [protocol.make_sharing_key() for protocol in protocols]
        assert None not in keys
        assert len(set(keys)) == len(keys)

    def test_none(self):
        assert Protocol(is_client=True).make_sharing_key() is None
        assert make_compressed(is_client=True).make_sharing_key() is None
        assert make_compressed(DeflateParameters(False, True)).make_sharing_key() is None


def test_receive_octets(server):
    frame = from_client(0x81, b"Hello")
    server.receive_octets(b"")
    server.receive_octets(frame[:3])
    server.receive_octets(frame[3:8])
    server.receive_octets(frame[8:])
    assert take_all(server) == ["Hello"]


class TestTwoEndpoints:
    """Two protocols, each the other's peer."""

    @each_step
    @pytest.mark.parametrize("threshold", [0, 7, 16384])
    def test_talk_and_close(self, step, threshold):
        client = Protocol(is_client=True, fragmentation_threshold=threshold)
        server = Protocol(fragmentation_threshold=threshold)
        for message in ("", "\u03ba\u1f79\u03c3\u03bc\u03b5", "x" * 300):
            assert receive(server, client.serialize(Opcode.TEXT, message.encode()), step) == [message]
            assert receive(client, server.serialize(Opcode.BINARY, message.encode()), step) == [message.encode()]
        feed(server, client.serialize_frame(0x89, b"are you there"), step)
        feed(client, b"".join(server.replies), step)
        assert client.latest_pong == b"are you there"
        feed(server, client.serialize_close(4000, "enough"), step)
        feed(client, server.serialize_close(server.close_code, ""), step)
        assert (client.close_code, server.close_code, server.close_reason) == (4000, 4000, "enough")
        assert client.failure is server.failure is None


pings = st.none() | st.binary(max_size=125)


@st.composite
def conversations(draw):
    """Return frames as first octet and payload, and the events that they are."""
    frames, events = [], []
    for _ in range(draw(st.integers(0, 4))):
        text = draw(st.none() | st.text(max_size=30))
        # Some are large beside the pieces in which they come.
        times = draw(st.sampled_from([1, 1, 1, 20]))
        text = None if text is None else text * times
        payload = draw(st.binary(max_size=200)) * times if text is None else text.encode()
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        pieces = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for index, piece in enumerate(pieces):
            ping = draw(pings)
            if ping is not None:
                frames.append((0x89, ping))
                events.append(Ping(ping))
            opcode = 0 if index else 2 if text is None else 1
            frames.append((opcode | (0x80 if index == len(pieces) - 1 else 0), piece))
        events.append(payload if text is None else text)
    return frames, events


class TestAnySplit:
    @given(
        conversations(), st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2**32 - 1)
    )
    @settings(max_examples=100)
    def test_same_events(self, conversation, is_client, steps, key):
        frames, events = conversation
        octets = b"".join(serialize_frame(first, payload, None if is_client else key) for first, payload in frames)
        protocol = Protocol(is_client=is_client)
        protocol.reports_control = True
        at = 0
        while at < len(octets):
            step = steps[at % len(steps)]
            feed(protocol, octets[at : at + step], sys.maxsize)
            at += step
        assert protocol.failure is None
        assert take_all(protocol) == events
        assert len(protocol.replies) == sum(isinstance(event, Ping) for event in events)

    @given(conversations(), st.integers(1, 50))
    @settings(max_examples=50)
    def test_same_frames(self, conversation, step):
        frames, _ = conversation
        protocol = Protocol(is_client=True, assembles=False)
        found = receive(protocol, b"".join(serialize_frame(*frame) for frame in frames), step)
        found = [(frame.first_octet, frame.payload) for frame in found if isinstance(frame, WebSocketFrame)]
        assert found == frames

    @given(conversations(), st.integers(1, 50))
    @settings(max_examples=50)
    def test_same_text_when_streamed(self, conversation, step):
        frames, events = conversation
        client = Protocol(is_client=True)
        found = []
        for frame in frames:
            if frame[0] & 3:
                client.stream()
            found += receive(client, serialize_frame(*frame), step)
        messages = [event for event in events if not isinstance(event, Ping)]
        assert [piece.fin for piece in found].count(True) == len(messages)
        for message in messages:
            end = [piece.fin for piece in found].index(True) + 1
            pieces, found = found[:end], found[end:]
            assert type(message)().join(piece.payload for piece in pieces) == message

    @given(
        st.text(max_size=80).map(lambda text: text * 5) | st.binary(max_size=400),
        st.lists(st.integers(1, 120) | st.sampled_from(["stream", "skip"]), max_size=12),
        st.integers(0, 2**32 - 1),
    )
    @settings(max_examples=200)
    def test_streamed_and_skipped_anywhere(self, message, acts, key):
        """What becomes of a message in one frame is what was wanted last."""
        payload = message.encode() if isinstance(message, str) else message
        octets = serialize_frame(0x81 if isinstance(message, str) else 0x82, payload, key)
        head = len(octets) - len(payload)
        server = Protocol()
        feed(server, octets[:head], sys.maxsize)
        is_streaming = is_skipping = False
        at = head
        for act in acts:
            if at == len(octets):
                break
            if act == "stream":
                server.stream()
                is_streaming = True
            elif act == "skip":
                server.skip_stream()
                is_streaming, is_skipping = False, is_skipping or is_streaming
            else:
                feed(server, octets[at : at + act], sys.maxsize)
                at = min(at + act, len(octets))
        expected = [] if is_skipping else [Fragment(message, True)] if is_streaming else [message]
        assert receive(server, octets[at:]) == expected
        assert server.failure is None

    @given(st.binary(min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 12))
    @settings(max_examples=200)
    def test_text_or_not(self, payload, threshold, step):
        try:
            events = [payload.decode()]
        except UnicodeDecodeError:
            events = []
        client = Protocol(is_client=True)
        assert receive(client, serialize_message(1, payload, threshold), step) == events
        assert (client.failure is None) is bool(events)

    @given(st.binary(max_size=40), st.booleans())
    @settings(max_examples=200)
    def test_rubbish_never_raises(self, octets, is_client):
        whole, slow = Protocol(is_client=is_client), Protocol(is_client=is_client)
        for protocol in (whole, slow):
            protocol.reports_control = True
        assert receive(whole, octets) == receive(slow, octets, 1)
        for name in ("close_code", "close_reason", "is_close_received", "latest_pong", "sent_close_code"):
            assert getattr(whole, name) == getattr(slow, name)
        assert getattr(whole.failure, "close_code", None) == getattr(slow.failure, "close_code", None)


compressible = st.binary(max_size=100) | st.builds(
    lambda text, count: text * count, st.binary(max_size=9), st.integers(0, 300)
)
all_agreements = st.builds(
    DeflateParameters, st.booleans(), st.booleans(), st.none() | st.integers(8, 15), st.none() | st.integers(8, 15)
)


class TestAnyCompressedConversation:
    @given(
        st.lists(st.tuples(st.text(max_size=60) | compressible, st.booleans()), max_size=6),
        all_agreements,
        st.booleans(),
        st.sampled_from([0, 1, 5, 100]),
        st.sampled_from([0, 10, 50]),
        st.integers(1, 60) | st.just(sys.maxsize),
    )
    @settings(max_examples=150)
    def test_same_messages(self, messages, agreed, is_client, fragmentation_threshold, threshold, step):
        sender = make_compressed(
            agreed,
            is_client=is_client,
            fragmentation_threshold=fragmentation_threshold,
            deflate={"threshold": threshold},
        )
        receiver = make_compressed(agreed, is_client=not is_client)
        for message, compresses in messages:
            opcode, payload = (1, message.encode()) if isinstance(message, str) else (2, message)
            assert receive(receiver, sender.serialize(opcode, payload, compresses), step) == [message]
        assert receiver.failure is None

    @given(st.lists(compressible, min_size=1, max_size=6), all_agreements, st.booleans(), st.integers(1, 60))
    @settings(max_examples=100)
    def test_same_fragments(self, pieces, agreed, is_client, step):
        sender = make_compressed(agreed, is_client=is_client)
        receiver = make_compressed(agreed, is_client=not is_client)
        streaming = make_compressed(agreed, is_client=not is_client)
        for _ in range(2):
            octets = [sender.serialize_fragment(0 if at else 2, piece, True) for at, piece in enumerate(pieces)]
            octets.append(sender.serialize_fragment(0x80, b"", True))
            assert receive(receiver, b"".join(octets), step) == [b"".join(pieces)]
            streaming.stream()
            found = receive(streaming, b"".join(octets), step)
            assert [piece.fin for piece in found] == [False] * len(pieces) + [True]
            assert b"".join(piece.payload for piece in found) == b"".join(pieces)

    @given(st.binary(max_size=60), st.booleans(), st.booleans())
    @settings(max_examples=300)
    def test_rubbish_is_the_same_whole_and_octet_by_octet(self, octets, takes_over, assembles):
        agreed = DeflateParameters(not takes_over, not takes_over)
        octets = b"\xc1" + bytes([len(octets)]) + octets
        whole, slow = (
            make_compressed(agreed, is_client=True, assembles=assembles, max_message_size=500) for _ in range(2)
        )
        assert receive(whole, octets) == receive(slow, octets, 1)
        # Only what is too big and no text, too, may be called either.
        codes = {getattr(protocol.failure, "close_code", None) for protocol in (whole, slow)}
        assert len(codes) == 1 or codes == {1007, 1009}

"""Attacks on a whole server: what each one gets, and that a well-behaved client is served all the while.

A module's own tests show that it refuses what is wrong; these show that the server stands.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import time
import zlib

import gevent
import pytest
from gevent import socket
from gevent.event import AsyncResult

from geventws import ConnectionClosed
from geventws.errors import ProtocolError
from geventws.frames import is_sendable_close_code, parse_close
from tests.siege import MIB, ZERO_KEY, EchoServer, bystander, check_echo, make_bomb, make_large_frame, many_descriptors
from tests.support import (
    RawClient,
    make_frame,
    make_http,
    make_narrow_listener,
    make_tls_context,
    make_upgrade,
    open_client,
    run_hub,
    serve,
    wait_until,
)

KEY = b"\x37\xfa\x21\x3d"
#: How the application takes its messages, and what is below: each attack of octets is made on all three.
WAYS = ["listeners", "loop", "tls"]


class Fort:
    """Be an echo server under attack, and note how its connections end.

    ``ends`` gets the close code of each connection and who ended it; the bystander's is none of them. ``last`` is the
    last message that came.
    """

    def __init__(self, http, server, way):
        self.http = http
        self.server = server
        self.is_tls = way == "tls"
        self.path = "/loop" if way == "loop" else "/listeners"
        self.ends = []
        self.last = None
        server.on("request", self.decide)
        server.on("close", self.note_end)

    def decide(self, request):
        if request.resource == "/pending":
            return
        connection = request.accept()
        if request.resource == "/loop":
            with contextlib.suppress(ConnectionClosed):
                for message in connection:
                    self.last = message
                    connection.send(message)
        else:
            if request.resource != "/bystander":
                connection.on("message", self.note_message)
            connection.on("message", connection.send)

    def note_message(self, message):
        self.last = message

    def note_end(self, connection, code, reason):
        if connection.request_path != "/bystander":
            self.ends.append((code, connection.closed_by))

    def open(self, lines=()):
        return open_client(self.http, self.path, *lines, tls=self.is_tls)

    def take_end(self):
        """Wait until one more connection has ended; return its close code and who ended it."""
        wait_until(lambda: self.ends)
        return self.ends.pop(0)

    def count_attackers(self):
        return sum(connection.request_path != "/bystander" for connection in self.server.connections)


@contextlib.contextmanager
def besieged(way="listeners", *, listener=("127.0.0.1", 0), **options):
    """Run a `Fort` with a bystander in it; in the end no connection of an attacker may be left."""
    tls = {"ssl_context": make_tls_context()} if way == "tls" else {}
    with serve(http=make_http(answer_app, listener=listener, **tls), **options) as (http, server):
        fort = Fort(http, server, way)
        with bystander(http, "/bystander", tls=fort.is_tls):
            yield fort
            wait_until(lambda: not fort.count_attackers())


@pytest.fixture(params=WAYS)
def fort(request):
    with besieged(request.param) as made:
        yield made


def answer_app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"app"]


def read_close(client):
    """Return the code of the server's Close, which is the last that it sends."""
    first, payload = client.read_frame()
    assert first == 0x88, (first, payload)
    assert client.read_end() == b""
    return int.from_bytes(payload[:2], "big")


# Frames that break the rules


def make_header(first, length, *, mask=0x80):
    """Return a header with the length as it stands, shortest or not: its octets without the mask bit."""
    return bytes([first, length[0] | mask]) + length[1:] + KEY


def in_64_bits(size):
    return b"\x7f" + size.to_bytes(8, "big")


def in_16_bits(size):
    return b"\x7e" + size.to_bytes(2, "big")


BROKEN_FRAMES = [
    *(pytest.param(bytes([first, 2]) + b"hi", 1002, id=f"unmasked {first:#04x}") for first in (0x81, 0x82, 0x89, 0x8A)),
    pytest.param(b"\x88\x02\x03\xe8", 1002, id="unmasked close"),
    *(
        pytest.param(make_frame(b"hi", 0x80 | bits | opcode), 1002, id=f"reserved bits {bits:#x}, opcode {opcode}")
        for bits, opcode in itertools.product((0x10, 0x20, 0x40, 0x70), (1, 2, 8, 9, 10))
    ),
    pytest.param(make_frame("a", 0x01) + make_frame("b", 0xC0), 1002, id="reserved bit on a continuation"),
    *(
        pytest.param(make_frame(b"", 0x80 | opcode), 1002, id=f"reserved opcode {opcode}")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ),
    *(pytest.param(make_frame(b"", opcode), 1002, id=f"fragmented control frame {opcode}") for opcode in (8, 9, 10)),
    pytest.param(make_header(0x89, in_16_bits(126)), 1002, id="ping of 126"),
    pytest.param(make_header(0x88, in_64_bits(1 << 62)), 1002, id="close of 2^62"),
    pytest.param(make_frame("a", 0x80), 1002, id="continuation of nothing"),
    pytest.param(make_frame("a", 0x01) + make_frame("b", 0x81), 1002, id="message within a message"),
    pytest.param(make_header(0x82, in_64_bits(1 << 63)), 1002, id="2^63 octets"),
    pytest.param(make_header(0x82, in_64_bits((1 << 64) - 1)), 1002, id="2^64-1 octets"),
    pytest.param(make_header(0x82, in_64_bits((1 << 63) - 1)), 1009, id="2^63-1 octets"),
    pytest.param(make_header(0x82, in_64_bits(1 << 32)), 1009, id="2^32 octets"),
    pytest.param(make_header(0x82, in_64_bits(65537)), 1009, id="one octet above the limit"),
    *(pytest.param(make_header(0x81, in_16_bits(size)), 1002, id=f"{size} in 16 bits") for size in (0, 1, 125)),
    *(
        pytest.param(make_header(0x81, in_64_bits(size)), 1002, id=f"{size} in 64 bits")
        for size in (0, 125, 126, 65535)
    ),
    pytest.param(
        make_large_frame(bytes(65536), 0x02) + make_large_frame(bytes(65536), 0x00) * 15 + make_frame(b"x", 0x80),
        1009,
        id="a message of one octet above the limit",
    ),
    pytest.param(make_frame(b"", 0x01) + make_frame(b"", 0x00) * 100_000, 1009, id="100000 empty fragments"),
    pytest.param(make_frame(b"\x03", 0x88), 1002, id="close of one octet"),
    pytest.param(make_frame(b"\x03\xe8\xff", 0x88), 1007, id="close reason that is not UTF-8"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1002, id="an HTTP request"),
    pytest.param(make_upgrade(), 1002, id="a second handshake"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1002, id="a TLS handshake"),
    pytest.param(bytes(1000), 1002, id="zeros"),
    pytest.param(b"\xff" * 1000, 1002, id="ones"),
    # Nobody negotiated a compression.
    pytest.param(make_frame(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 0xC1), 1002, id="a compressed frame"),
]


@pytest.mark.parametrize(("octets", "code"), BROKEN_FRAMES)
def test_a_broken_frame_fails_the_connection(fort, octets, code):
    """What came before it is answered; the peer reads our Close and then the end, never a reset."""
    with fort.open() as client:
        client.send(make_frame("before") + octets)
        assert client.read_frame() == (0x81, b"before")
        assert read_close(client) == code
        assert fort.take_end() == (code, "local")


def test_everything_at_once(caplog):
    """All the broken frames, many times over and in all styles, while the bystander has its echoes."""
    with many_descriptors(4096), besieged() as fort:

        def attack(path, octets, code):
            with open_client(fort.http, path, early=octets) as client:
                assert read_close(client) == code

        attacks = [(param.values, path) for param in BROKEN_FRAMES for path in ("/listeners", "/loop")]
        attackers = [gevent.spawn(attack, path, *values) for values, path in attacks * 4]
        gevent.joinall(attackers, raise_error=True)
        assert sorted(fort.ends) == sorted((values[1], "local") for values, _ in attacks * 4)
    # What peers do wrong is no news; a busy machine may be.
    assert [record for record in caplog.records if "stood still" not in record.getMessage()] == []


@pytest.mark.parametrize("assembles", [True, False])
def test_fragments_as_frames_are_limited_too(assembles):
    with besieged(assemble_fragments=assembles) as fort, fort.open() as client:
        client.send(make_frame(b"", 0x01) + make_frame(b"", 0x00) * 100_000)
        assert read_close(client) == 1009
        assert fort.take_end() == (1009, "local")


# A conversation that keeps the rules, in any pieces

CONVERSATION = b"".join(
    (
        make_frame("Hello"),
        make_frame(b"\x00\xff" * 70, 0x82),
        make_frame("¡Hé", 0x01),
        make_frame(b"?", 0x89),
        make_frame("llo €", 0x00),
        make_frame(b"", 0x80),
        make_frame(b"", 0x8A),
        make_frame(b"", 0x89),
        make_frame(""),
    )
)
ECHOES = [(0x81, b"Hello"), (0x82, b"\x00\xff" * 70), (0x81, "¡Héllo €".encode()), (0x81, b"")]
PONGS = [(0x8A, b"?"), (0x8A, b"")]


def read_echoes(client):
    """Read the answers to the conversation; a Pong may come before an echo that was due earlier."""
    answers = [client.read_frame() for _ in ECHOES + PONGS]
    assert [answer for answer in answers if answer[0] != 0x8A] == ECHOES
    assert [answer for answer in answers if answer[0] == 0x8A] == PONGS


def test_every_split_of_every_frame(fort):
    with fort.open() as client:
        for cut in range(1, len(CONVERSATION)):
            client.send(CONVERSATION[:cut])
            # Now the server has read the first part.
            run_hub(2)
            client.send(CONVERSATION[cut:])
            read_echoes(client)
        for cut in range(1, 8):
            with fort.open() as other:
                close = make_frame(b"\x03\xe8", 0x88)
                other.send(close[:cut])
                run_hub(2)
                other.send(close[cut:])
                assert other.read_end() == b"\x88\x02\x03\xe8"
                assert fort.take_end() == (1000, "peer")


def test_segments_of_one_octet(fort):
    with RawClient(fort.http, tls=fort.is_tls) as client:
        for octet in make_upgrade(fort.path) + CONVERSATION:
            client.send(bytes([octet]))
            run_hub(1)
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        read_echoes(client)


@pytest.mark.parametrize("end", ["fin", "half", "reset"])
def test_a_frame_that_is_cut_off_at_any_octet(fort, end):
    frame = make_header(0x82, in_64_bits(65536)) + b"payload"
    for cut in range(1, len(frame)):
        with fort.open() as client:
            client.send(frame[:cut])
            if end == "fin":
                client.close()
            elif end == "reset":
                client.reset()
            else:
                client.shut_write()
                # Under TLS the alert comes, which this client could read no more.
                assert fort.is_tls or client.read_end() == b""
            assert fort.take_end() == (1006, "transport")


# Text that is not UTF-8

#: Characters of one to four octets.
TEXT = "Hé, 10 €: 𝄞!".encode()


@pytest.mark.parametrize("size", [1, 2, 3, 5, len(TEXT)])
def test_invalid_utf_8_at_each_offset_of_a_fragmented_message(fort, size):
    """The octet that makes it certain is the last that is sent: the server does not wait for more."""
    for offset, wrong in itertools.product(range(len(TEXT)), (b"\xff", b"\xc0", b"\xf5")):
        text = TEXT[:offset] + wrong + TEXT[offset + 1 :]
        fragments = []
        for start in range(0, offset + 1, size):
            fin = 0x80 if start + size >= len(text) else 0
            frame = make_frame(text[start : start + size], fin | (0 if start else 1))
            surplus = max(0, start + len(text[start : start + size]) - (offset + 1))
            fragments.append(frame[: len(frame) - surplus])
        with fort.open() as client:
            client.send(b"".join(fragments))
            assert read_close(client) == 1007, (offset, wrong)
            assert fort.take_end() == (1007, "local")


@pytest.mark.parametrize(
    "wrong",
    [b"\x80", b"\xc3", b"\xc1\xbf", b"\xe0\x9f\x80", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80"],
    ids=["continuation", "cut off", "overlong 2", "overlong 3", "surrogate", "overlong 4", "above U+10FFFF"],
)
def test_text_that_is_not_utf_8_in_two_fragments(fort, wrong):
    for cut in range(len(wrong) + 1):
        with fort.open() as client:
            client.send(make_frame(b"a" + wrong[:cut], 0x01) + make_frame(wrong[cut:], 0x80))
            assert read_close(client) == 1007, cut
            assert fort.take_end() == (1007, "local")


# Compressed messages

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"


def deflate(payload, *, ends=b""):
    """Compress a message (RFC 7692, 7.2.1); ``ends`` is what the last block ends with, where not as it should."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff") + ends


BROKEN_COMPRESSED = [
    pytest.param(make_frame(deflate(bytes(2 * MIB)), 0xC2), 1009, id="2 MiB in 2 KiB"),
    pytest.param(make_frame(make_bomb(60)[:65536], 0xC2), 1009, id="60 MiB in one frame"),
    pytest.param(
        make_frame(deflate(bytes(MIB + 1))[:500], 0x42) + make_frame(deflate(bytes(MIB + 1))[500:], 0x80),
        1009,
        id="one octet above the limit, in two frames",
    ),
    pytest.param(
        make_frame(make_bomb(16)[:8000], 0x42) + make_frame(make_bomb(16)[8000:], 0x00), 1009, id="unfinished"
    ),
    pytest.param(make_frame(b"\xff" * 100, 0xC2), 1007, id="no deflate data"),
    pytest.param(make_frame(bytes(100), 0xC1), 1007, id="stored blocks of wrong lengths"),
    pytest.param(make_frame(deflate(b"\xff" * 100), 0xC1), 1007, id="text that is not UTF-8"),
    pytest.param(make_frame(deflate(str(list(range(500))).encode())[:300], 0xC1), 1007, id="cut off"),
    pytest.param(make_frame(b"", 0x42) + make_frame(b"", 0xC0), 1002, id="RSV1 on a continuation"),
    pytest.param(make_frame(b"", 0xC9), 1002, id="RSV1 on a ping"),
    pytest.param(make_frame(b"", 0xE2), 1002, id="RSV2"),
]


@pytest.mark.parametrize(("octets", "code"), BROKEN_COMPRESSED)
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_compressed_message_fails_the_connection(way, octets, code):
    with besieged(way, permessage_deflate=True) as fort, fort.open(lines=[OFFER]) as client:
        assert b"permessage-deflate" in client.head
        client.send(make_frame(deflate(b"before"), 0xC1) + octets)
        assert client.read_frame() == (0x81, b"before")
        assert read_close(client) == code
        assert fort.take_end() == (code, "local")


# Close frames


def test_every_close_code():
    """A legal one is answered with itself; any other one breaks the protocol."""
    with besieged() as fort:
        for code in range(5001):
            expected = (code, "peer") if is_sendable_close_code(code) else (1002, "local")
            with fort.open() as client:
                client.send(make_frame(code.to_bytes(2, "big"), 0x88))
                assert read_close(client) == expected[0], code
                assert fort.take_end() == expected


def test_which_close_codes_are_legal():
    legal = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(65536):
        if code in legal:
            assert parse_close(code.to_bytes(2, "big")) == (code, "")
        else:
            with pytest.raises(ProtocolError):
                parse_close(code.to_bytes(2, "big"))


# Request heads


def repeat(line, *others):
    return make_upgrade("/listeners", line, *others)


HEADS = [
    pytest.param(repeat("Host: a", "Host: b"), 400, id="two hosts"),
    pytest.param(repeat("Sec-WebSocket-Key: a", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, id="two keys"),
    pytest.param(repeat("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13"), 426, id="two versions"),
    pytest.param(repeat("Origin: http://a", "Origin: http://b"), 400, id="two origins"),
    pytest.param(repeat("Upgrade: h2c", "Upgrade: websocket"), 101, id="two upgrades"),
    pytest.param(repeat("Connection: keep-alive", "Connection: Upgrade"), 101, id="two connections"),
    pytest.param(repeat("Upgrade: h2c,\r\n websocket"), 101, id="folded upgrade"),
    pytest.param(repeat("Sec-WebSocket-Key:\r\n\tdGhlIHNhbXBsZSBub25jZQ=="), 101, id="folded key"),
    pytest.param(repeat("Origin: http://a\r\n b"), 101, id="folded origin"),
    pytest.param(make_upgrade("/listeners").replace(b"Host:", b" Host:"), 400, id="folded first line"),
    pytest.param(make_upgrade("/" + "a" * 8175), 101, id="a request line of 8191"),
    pytest.param(make_upgrade("/" + "a" * 8176), 414, id="a request line of 8192"),
    pytest.param(make_upgrade("/" + "a" * 15000), 414, id="a request line of 15000"),
    pytest.param(repeat("X: " + "a" * 65536), 431, id="a line of 65536"),
    pytest.param(repeat("X: " + "a" * MIB), 431, id="a line of 1 MiB"),
    pytest.param(make_upgrade("/listeners", *(f"X-{number}: a" for number in range(100))), 431, id="105 fields"),
    pytest.param(make_upgrade("/listeners", *(f"X-{number}: a" for number in range(5000))), 431, id="5005 fields"),
    pytest.param(repeat("Sec-WebSocket-Key: \xe9GhlIHNhbXBsZSBub25jZQ=="), 400, id="a key beyond ASCII"),
    pytest.param(repeat("Sec-WebSocket-Extensions: \xe9"), 400, id="an extension beyond ASCII"),
    pytest.param(repeat("Sec-WebSocket-Version: \xb913"), 426, id="a version beyond ASCII"),
    pytest.param(repeat("X-\xe9: a"), 400, id="a name beyond ASCII"),
    pytest.param(repeat("X: \xe9\xff"), 101, id="a value beyond ASCII"),
    pytest.param(make_upgrade("/\xe9"), 101, id="a target beyond ASCII"),
    pytest.param(make_upgrade("/listeners", method="G\xc9T"), 400, id="a method beyond ASCII"),
    pytest.param(repeat("Upgrade: w\xe9bsocket"), 200, id="another upgrade, which is the application's"),
    pytest.param(repeat("X : a"), 400, id="a space before the colon"),
    pytest.param(repeat("Content-Length : 5") + b"hello", 400, id="a length with a space before the colon"),
    pytest.param(repeat(": a"), 400, id="no name"),
    pytest.param(repeat("X\0: a"), 400, id="NUL in a name"),
    pytest.param(repeat("garbage"), 400, id="a line without a colon"),
    pytest.param(repeat("garbage", "Content-Length: 5") + b"hello", 400, id="a length behind a line without a colon"),
    pytest.param(repeat("X: a\rgarbage"), 400, id="CR in a value"),
    pytest.param(repeat("Content-Length: 5") + b"hello", 400, id="a body"),
    pytest.param(repeat("Content-Length: 5"), 400, id="a body that does not come"),
    pytest.param(repeat("Content-Length: 15000") + bytes(15000), 400, id="a body of 15000"),
    pytest.param(repeat("Content-Length: 0", "Content-Length: 5") + b"hello", 400, id="two lengths"),
    pytest.param(repeat("Content-Length: -1"), 400, id="a negative length"),
    pytest.param(repeat("Content-Length: +0"), 400, id="a length with a sign"),
    pytest.param(repeat("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400, id="chunks"),
    pytest.param(repeat("Transfer-Encoding: gzip"), 400, id="another coding"),
    pytest.param(
        repeat("Content-Length: 31") + b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="a request as the body"
    ),
    pytest.param(make_upgrade(version="HTTP/1.0"), 400, id="HTTP/1.0"),
    pytest.param(make_upgrade(version="HTTP/2.0"), 400, id="HTTP/2.0"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="the preface of HTTP/2"),
    pytest.param(b"\xff" * 50 + b"\r\n\r\n", 400, id="octets"),
    pytest.param(b"\r\n" * 10, 400, id="empty lines"),
    pytest.param(make_frame("x") + make_upgrade("/listeners"), 400, id="a frame before"),
    pytest.param(b"garbage\r\n\r\n" + make_upgrade("/listeners"), 400, id="garbage before"),
]


@pytest.mark.parametrize(("octets", "status"), HEADS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_request_head(tls, octets, status, capfd):
    """One answer, and nothing of what followed is taken for another request."""
    with besieged("tls" if tls else "listeners") as fort, RawClient(fort.http, tls=tls) as client:
        with contextlib.suppress(ConnectionError):
            # The server may have answered, and ended the connection, before it is through.
            client.send(octets)
        assert int(client.read_head().split()[1]) == status
        if status == 101:
            check_echo(client, "still speaking")
        elif status == 200:
            assert client.read(3) == b"app"
        else:
            client.read(int(re.search(rb"(?i)content-length: (\d+)", client.head)[1]))
            assert client.read_end() == b""
            assert not fort.ends
    assert capfd.readouterr().err == ""


def test_requests_before_and_after_a_handshake(fort):
    """Those before are the application's; from the handshake on every octet is a frame's."""
    request = b"GET /app HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with RawClient(fort.http, tls=fort.is_tls) as client:
        client.send(request * 50 + make_upgrade(fort.path) + make_frame("first") + request)
        for _ in range(50):
            status, _, body = client.read_answer()
            assert (status, body) == (200, b"app")
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read_frame() == (0x81, b"first")
        assert read_close(client) == 1002
        assert fort.take_end() == (1002, "local")


@pytest.mark.parametrize(
    "lines",
    [
        ["Sec-WebSocket-Protocol: " + "a," * 30000],
        ["Sec-WebSocket-Protocol: a" + " " * 60000 + "b"],
        ["Sec-WebSocket-Extensions: " + "a;b=c," * 10000],
        ['Sec-WebSocket-Extensions: a;b="' + "\\" * 60000],
        ["Sec-WebSocket-Extensions: a;b" + " " * 60000 + "=c"],
        ["X-Forwarded-For: " + "10.0.0.1," * 6500],
        ["X-Forwarded-For: " + "[" * 60000],
        ["Connection: " + "a," * 30000 + "Upgrade"],
        ["Connection: a" + " ," * 30000 + "Upgrade"],
        ["Cookie: " + "a=b;" * 15000],
    ],
    ids=lambda lines: lines[0][:40],
)
def test_long_values_take_no_more_than_linear_time(lines):
    with besieged() as fort, RawClient(fort.http) as client:
        started = time.process_time()
        client.send(make_upgrade("/listeners", *lines))
        assert int(client.read_head().split()[1]) in (101, 400)
        # A few milliseconds, where a quadratic one takes minutes.
        assert time.process_time() - started < 0.5


# Slow ones


@pytest.mark.parametrize("way", ["listeners", "tls"])
def test_heads_that_drip(way):
    """The deadline is the head's: the octets that come do not put it off."""

    def drip(client):
        with contextlib.suppress(OSError):
            for octet in itertools.cycle(b"GET / HTTP/1.1 "):
                client.send(bytes([octet]))
                gevent.sleep(0.02)

    def suffer(fort):
        with RawClient(fort.http, tls=fort.is_tls) as client:
            dripping = gevent.spawn(drip, client)
            started = time.monotonic()
            try:
                assert client.read_answer()[0] == 408
            finally:
                dripping.kill()
            assert client.read_end() == b""
            assert 0.25 < time.monotonic() - started < 1.5

    with besieged(way, header_timeout=0.3) as fort:
        gevent.joinall([gevent.spawn(suffer, fort) for _ in range(30)], raise_error=True)
        assert not fort.ends
        assert fort.server.limit_counts["header_timeout"] == 30


def test_connections_that_say_nothing():
    with many_descriptors(4096), besieged(header_timeout=0.2) as fort, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(fort.http)) for _ in range(500)]
        for client in clients:
            assert client.read_end() == b""


@pytest.mark.parametrize(
    "octets", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(300)], ids=["silent", "cut off", "http", "zeros"]
)
def test_tls_handshakes_that_lead_nowhere(octets, capfd):
    """A connection ends with the TLS alert, or none, and with one line in the error log."""
    with besieged("tls", header_timeout=0.3) as fort, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(fort.http)) for _ in range(30)]
        for client in clients:
            client.send(octets)
        for client in clients:
            assert len(client.read_end()) in (0, 7)
        wait_until(lambda: len(fort.http.error_log) == 30)
        assert all(line.count("\n") == 1 for line in fort.http.error_log)
    assert capfd.readouterr().err == ""


def test_requests_that_nobody_decides():
    with besieged(accept_timeout=0.3) as fort, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(fort.http)) for _ in range(200)]
        for client in clients:
            client.send(make_upgrade("/pending"))
        wait_until(lambda: len(fort.server.pending_requests) == 200)
        for client in clients:
            assert client.read_answer()[0] == 503
            assert client.read_end() == b""
        assert not fort.server.pending_requests


@pytest.mark.parametrize("end", ["half", "reset"])
@pytest.mark.parametrize("way", ["listeners", "tls"])
def test_clients_that_go_while_their_requests_are_pending(way, end):
    with besieged(way) as fort, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(fort.http, tls=fort.is_tls)) for _ in range(20)]
        for client in clients:
            client.send(make_upgrade("/pending"))
        wait_until(lambda: len(fort.server.pending_requests) == 20)
        requests = list(fort.server.pending_requests)
        for client in clients:
            if end == "half":
                client.shut_write()
            else:
                client.reset()
        # The handlers' greenlets, and the descriptors, are free then.
        wait_until(lambda: not fort.server.pending_requests)
        if end == "half" and not fort.is_tls:
            assert [client.read_end() for client in clients] == [b""] * 20
        for request in requests:
            assert request.accept().state == "CLOSED"
        assert [fort.take_end() for _ in requests] == [(1006, "transport")] * 20


@pytest.mark.parametrize("way", ["listeners", "tls"])
def test_octets_before_the_decision_wait_in_the_kernel(way):
    """A client that sends without waiting for the 101 is stopped by TCP, and loses nothing."""
    with besieged(way) as fort, RawClient(fort.http, tls=fort.is_tls) as client:
        frame = make_large_frame(bytes(65536))
        accepted = AsyncResult()
        count = 400

        def flood():
            client.send(make_upgrade("/pending"))
            for _ in range(count):
                client.send(frame)

        flooding = gevent.spawn(flood)
        wait_until(lambda: fort.server.pending_requests)
        run_hub(50)
        assert not flooding.ready()
        (request,) = fort.server.pending_requests
        connection = request.accept()
        connection.on("message", lambda message: accepted.set(connection) if message == "end" else None)
        flooding.get()
        client.send(make_frame("end"))
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert accepted.get() is connection
        client.send(make_frame(b"", 0x88))
        assert client.read_end() == b"\x88\x00"


def test_too_large_a_frame_in_the_segment_of_the_handshake(fort):
    with RawClient(fort.http, tls=fort.is_tls) as client:
        client.send(make_upgrade(fort.path) + make_frame("a") + make_large_frame(bytes(70000)))
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read_frame() == (0x81, b"a")
        assert read_close(client) == 1009
        assert fort.take_end() == (1009, "local")


# Those who leave


@pytest.mark.parametrize("moment", ["idle", "in a head", "in a frame", "unread", "pending"])
def test_five_hundred_resets_at_once(moment):
    with many_descriptors(4096), besieged() as fort:
        clients = [RawClient(fort.http) for _ in range(500)]
        paths = itertools.cycle(["/listeners", "/loop"])
        for client, path in zip(clients, paths, strict=False):
            if moment == "in a head":
                client.send(make_upgrade()[:50])
                continue
            client.send(make_upgrade("/pending" if moment == "pending" else path))
            if moment != "pending":
                client.read_head()
        if moment == "pending":
            wait_until(lambda: len(fort.server.pending_requests) == 500)
        for client in clients:
            if moment == "in a frame":
                client.send(make_frame("abc" * 100)[:200])
            elif moment == "unread":
                # The replies are there, or on their way.
                client.send(make_frame("abc") * 10)
            client.reset()
        if moment == "pending":
            wait_until(lambda: not fort.server.pending_requests)
        elif moment != "in a head":
            assert [fort.take_end() for _ in clients] == [(1006, "transport")] * 500


# Those who do not read


@pytest.mark.parametrize("way", WAYS)
def test_a_ping_flood_from_a_client_that_does_not_read(way):
    """While it does not read, only the latest ping is answered (RFC 6455, 5.5.3)."""
    with besieged(way, listener=make_narrow_listener()) as fort, fort.open() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        count = 30_000
        for start in range(0, count, 1000):
            numbers = range(start, start + 1000)
            client.send(b"".join(make_frame(b"%06d" % number * 10, 0x89, ZERO_KEY) for number in numbers))
        (connection,) = (each for each in fort.server.connections if each.request_path == fort.path)
        client.send(make_frame("end"))
        # Now all of it was read, and answered as far as the kernel took the answers.
        wait_until(lambda: fort.last == "end")
        assert 0 < connection.buffered_amount < MIB
        answered = []
        while (frame := client.read_frame())[0] == 0x8A:
            assert frame[1] == frame[1][:6] * 10
            answered.append(int(frame[1][:6]))
        assert frame == (0x81, b"end")
        assert len(answered) == len(set(answered)) < count
        assert {0, count - 1} < set(answered)


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_sends_and_never_reads_its_echoes(way):
    """The server stops reading it, and drops it once it took nothing for `send_timeout`."""
    mark = 100_000
    marks = {"send_high_water_mark": mark, "receive_high_water_mark": mark}
    with besieged(way, listener=make_narrow_listener(), send_timeout=0.5, **marks) as fort, fort.open() as client:
        (connection,) = (each for each in fort.server.connections if each.request_path == fort.path)
        frame = make_frame(bytes(1000), 0x82, ZERO_KEY)
        largest = sent = 0
        with contextlib.suppress(OSError):
            while True:
                client.send(frame * 10)
                sent += 10
                largest = max(largest, connection.buffered_amount)
        assert fort.take_end() == (1006, "transport")
        assert "the peer took no octet for 0." in connection.close_cause
        assert largest <= mark + len(frame)
        # What the kernels of both sides hold, and both marks: a flood is stopped, not swallowed.
        assert sent * len(frame) < 20 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("style", ["event", "loop"])
class TestMemory:
    """What an attack may cost beyond what the server has at rest.

    ``measure_memory.py`` makes the same attacks larger, and prints the figures.
    """

    @contextlib.contextmanager
    def bounded(self, style, size, *flags):
        """Run a server that grows by less than ``size``, writes nothing to standard error, and ends in order."""
        with EchoServer("--style", style, "--send-timeout", "1", *flags) as server:
            with open_client(server) as client:
                check_echo(client, "warm")
            before = server.read_memory()
            with bystander(server):
                yield server
            assert server.read_memory("VmHWM") - before < size
            assert server.terminate() == (0, "")

    def test_headers_that_announce_a_lot(self, style):
        with self.bounded(style, MIB) as server:
            for size in (1 << 63, (1 << 63) - 1, 1 << 40, 1 << 31, 65537):
                with open_client(server, early=make_header(0x82, in_64_bits(size))) as client:
                    assert read_close(client) == (1002 if size >> 63 else 1009)

    def test_unfinished_messages_of_many_fragments(self, style):
        fragments = make_frame(b"a", 0x01) + make_frame(b"a", 0x00) * 60_000
        with self.bounded(style, 2 * MIB) as server, contextlib.ExitStack() as stack:
            for _ in range(10):
                client = stack.enter_context(open_client(server))
                client.send(fragments + make_frame(b"?", 0x89))
                # The last one was read.
                assert client.read_frame() == (0x8A, b"?")

    def test_bombs(self, style):
        """However much a message would inflate to, no more than ``max_received_message_size`` of it is made."""
        gibibyte = make_large_frame(make_bomb(1024), 0xC2)
        bombs = [
            gibibyte,
            make_frame(make_bomb(60), 0xC2, ZERO_KEY),
            # In fragments, and behind messages that are as large as a message may be.
            make_frame(make_bomb(1)[:500], 0x42) + make_large_frame(make_bomb(1024)[500:], 0x80),
            make_frame(make_bomb(1), 0xC2, ZERO_KEY) * 20 + gibibyte,
        ]
        flags = ["--permessage-deflate", "--max-received-frame-size", str(2 * MIB)]
        with self.bounded(style, 12 * MIB, *flags) as server:
            for octets in bombs:
                with open_client(server, "/", OFFER) as client:
                    client.send(octets)
                    while (frame := client.read_frame())[0] != 0x88:
                        # The echo of a message that was within the limit.
                        assert len(frame[1]) < 65536
                    assert frame[1][:2] == (1009).to_bytes(2, "big")

    def test_a_ping_flood_from_a_client_that_does_not_read(self, style):
        with self.bounded(style, 2 * MIB) as server, open_client(server) as client:
            pings = make_frame(bytes(119), 0x89, ZERO_KEY) * 500
            for _ in range(500):
                client.send(pings)
            client.send(make_frame("end"))
            while (frame := client.read_frame())[0] == 0x8A:
                pass
            assert frame == (0x81, b"end")

    def test_clients_that_never_read_their_echoes(self, style):
        """A queue of received messages and one of echoes, each at its high-water mark, is all that such a peer gets."""
        count = 5
        with self.bounded(style, count * 3 * MIB) as server:

            def flood():
                with open_client(server) as client, contextlib.suppress(OSError):
                    while True:
                        client.send(make_large_frame(bytes(65536)))

            gevent.joinall([gevent.spawn(flood) for _ in range(count)], raise_error=True)

    def test_a_broadcast_to_clients_that_never_read(self, style):
        """The octets of a broadcast are there once, however many peers they wait for; then those peers are failed."""
        with self.bounded(style, 6 * MIB) as server, contextlib.ExitStack() as stack:
            slow = [stack.enter_context(open_client(server, "/broadcast")) for _ in range(30)]
            publisher = stack.enter_context(open_client(server, "/broadcast"))
            message = make_frame(bytes(60_000), 0x82, ZERO_KEY)
            for _ in range(300):
                publisher.send(message)
                while not publisher.read_frame()[0] & 0x80:
                    pass
            for client in slow:
                # What the kernel had; the rest was discarded when it became a slow consumer.
                assert len(client.read_end()) < 300 * 60_000

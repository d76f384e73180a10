"""permessage-deflate over sockets: whatever waits, the peer inflates it, in the order in which it was sent."""

from __future__ import annotations

import contextlib
import random
import zlib

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.queue import Queue

from geventws import ConnectionClosed, DeflateOptions, WebSocketFrame
from geventws.deflate import DEFLATE_TAIL, Compressors, Deflate
from tests.support import (
    make_frame,
    make_http,
    make_narrow_listener,
    make_tls_context,
    open_client,
    paired,
    record,
    run_hub,
    serve,
    wait_until,
)

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
TAKING_OVER = DeflateOptions(server_no_context_takeover=False, client_no_context_takeover=False, threshold=0)
FORGETTING = DeflateOptions(threshold=0)
NOISE = random.Random(7692).randbytes(200_000)

each_way = pytest.mark.parametrize(
    "options", [pytest.param(TAKING_OVER, id="takes over"), pytest.param(FORGETTING, id="forgets")]
)


class Reader:
    """Read messages as a peer that agreed on permessage-deflate, with an inflater that is not ours."""

    def __init__(self, client, takes_over, bits=15):
        self.client = client
        self.takes_over = takes_over
        self.bits = bits
        self.inflater = zlib.decompressobj(-bits)
        self.control = []
        self.compressed_count = 0
        self.size = 0

    def read(self):
        """Return the next message, None for a Close; control frames are put aside."""
        payload = b""
        message_first = 0
        while True:
            first, piece = self.client.read_frame()
            if first & 0x08:
                self.control.append((first, piece))
                if first == 0x88:
                    return None
                continue
            # One message's frames are contiguous, and RSV1 is on the first alone.
            assert bool(first & 0x0F) is not bool(message_first)
            assert not first & (0x30 if first & 0x0F else 0x70)
            message_first = message_first or first
            payload += piece
            self.size += len(piece)
            if first & 0x80:
                return self.inflate(payload) if message_first & 0x40 else payload

    def inflate(self, payload):
        self.compressed_count += 1
        if not self.takes_over:
            self.inflater = zlib.decompressobj(-self.bits)
        return self.inflater.decompress(payload + DEFLATE_TAIL)

    def read_all(self):
        return list(iter(self.read, None))


@contextlib.contextmanager
def connected(options, *, tls=False, **others):
    """Give a server, a connection whose kernel buffers are small, and the reader at its other end."""
    extras = {"ssl_context": make_tls_context()} if tls else {}
    http = make_http(listener=make_narrow_listener(), **extras)
    with serve(http=http, permessage_deflate=options, **others) as (_, server):
        accepted = Queue()
        server.on("request", lambda request: accepted.put(request.accept()))
        with open_client(http, "/", OFFER, tls=tls) as client:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                client.sock.setsockopt(socket.SOL_SOCKET, option, 65536)
            yield server, accepted.get(), Reader(client, not options.server_no_context_takeover)


def make_messages(count):
    """Return messages that are alike, of many sizes: a compressor refers to those before."""
    sizes = (5, 300, 20_000, 1, 4000, 70_000, 130)
    for number in range(count):
        size = sizes[number % len(sizes)]
        yield b"%06d" % number + NOISE[:size] + b"." * size


class TestOrder:
    @each_way
    @pytest.mark.parametrize("tls", [pytest.param(False, id="plain"), pytest.param(True, id="tls")])
    def test_every_way_to_send(self, options, tls):
        with connected(options, tls=tls, send_high_water_mark=1 << 30) as (server, connection, reader):
            sent = []
            for number, message in enumerate(make_messages(120)):
                kind = number % 8
                sent.append(message)
                if kind == 0:
                    connection.send(message)
                elif kind == 1:
                    assert connection.send_nowait(message)
                elif kind == 2:
                    assert server.broadcast(message) == 1
                elif kind == 3:
                    connection.send_fragments([message[:7], b"", message[7:]])
                elif kind == 4:
                    connection.send(message, compress=False)
                elif kind == 5:
                    future = connection.send_threadsafe(message)
                    wait_until(future.done)
                    assert future.result(0)
                elif kind == 6:
                    connection.send_frame(WebSocketFrame(2, message[:3], fin=False))
                    connection.send_frame(WebSocketFrame(0, message[3:]))
                else:
                    connection.send_fragments([message[:9], message[9:]], compress=False)
                connection.ping(b"%d" % number)
            assert connection.buffered_amount > 500_000
            connection.close(4000, "behind all")
            assert reader.read_all() == sent
            pings = [(0x89, b"%d" % number) for number in range(120)]
            assert reader.control == [*pings, (0x88, b"\x0f\xa0behind all")]
            # Five kinds of eight; what does not shrink goes as it is where no context has seen it.
            if options is TAKING_OVER:
                assert reader.compressed_count == 75
            else:
                assert 50 < reader.compressed_count < 75

    @each_way
    def test_while_nothing_waits(self, options):
        with connected(options) as (server, connection, reader):
            for message in make_messages(60):
                for send in (connection.send, connection.send_nowait, server.broadcast):
                    send(message)
                    assert reader.read() == message
                connection.send_fragments([message, message])
                assert reader.read() == message * 2

    @each_way
    @pytest.mark.parametrize("tls", [pytest.param(False, id="plain"), pytest.param(True, id="tls")])
    def test_many_greenlets_send_to_a_slow_reader(self, options, tls):
        with connected(options, tls=tls, send_high_water_mark=30_000) as (_, connection, reader):

            def send_all(name):
                for number, message in enumerate(make_messages(8)):
                    if (name + number) % 5:
                        connection.send(b"%02d" % name + message, compress=bool((name + number) % 3))
                    else:
                        connection.send_fragments([b"%02d" % name, message])

            senders = [gevent.spawn(send_all, name) for name in range(15)]
            received = [reader.read() for _ in range(15 * 8)]
            gevent.joinall(senders, raise_error=True)
            for name in range(15):
                own = [message for message in received if message.startswith(b"%02d" % name)]
                assert own == [b"%02d" % name + message for message in make_messages(8)]

    @each_way
    def test_behind_a_fragmented_message(self, options):
        with connected(options, send_high_water_mark=1 << 30) as (server, connection, reader):
            goes_on = Event()

            def pieces():
                yield b"first "
                goes_on.wait()
                yield b"second " * 30_000

            waiting = [gevent.spawn(connection.send_fragments, pieces())]
            run_hub()
            waiting += [gevent.spawn(connection.send, b"sent" + NOISE[:5000]) for _ in range(3)]
            run_hub()
            assert connection.send_nowait(b"nowait" + NOISE[:5000])
            assert server.broadcast(b"broadcast" + NOISE[:5000]) == 1
            connection.ping(b"between")
            goes_on.set()
            gevent.joinall(waiting[:1])
            connection.send(b"last" + NOISE[:5000])
            connection.close()
            assert reader.read_all() == [
                b"first " + b"second " * 30_000,
                *[b"sent" + NOISE[:5000]] * 3,
                *(name + NOISE[:5000] for name in (b"nowait", b"broadcast", b"last")),
            ]
            assert reader.control[0] == (0x89, b"between")
            gevent.joinall(waiting, raise_error=True)

    @each_way
    def test_corked_replies(self, options):
        with connected(options, send_high_water_mark=1 << 30) as (server, connection, reader):

            def reply(message):
                text = message * 100
                connection.send(text + "1")
                connection.send(text + "2", compress=False)
                if message == "b":
                    connection.ping(b"p")
                    server.broadcast(text + "3")
                connection.send_nowait(text + "4")
                connection.send(text + "5")

            connection.on("message", reply)
            expected = []
            for _ in range(50):
                reader.client.send(b"".join(make_frame(letter) for letter in "abcd"))
                for letter in b"abcd":
                    numbers = b"12345" if letter == ord("b") else b"1245"
                    expected += [bytes([letter]) * 100 + bytes([number]) for number in numbers]
            assert [reader.read() for _ in expected] == expected

    @each_way
    def test_corked_replies_while_output_waits(self, options):
        with connected(options, send_high_water_mark=1 << 30) as (_, connection, reader):
            sent = [NOISE + b"%d" % number for number in range(5)]
            for message in sent:
                connection.send_nowait(message)
            assert connection.buffered_amount > 500_000
            connection.on("message", lambda message: connection.send(message.encode() + NOISE[:3000]))
            reader.client.send(b"".join(make_frame(str(number)) for number in range(40)))
            # The answer to this Close goes behind all that.
            reader.client.send(make_frame(b"\x03\xe8", 0x88))
            sent += [b"%d" % number + NOISE[:3000] for number in range(40)]
            assert reader.read_all() == sent

    @each_way
    def test_echo_of_a_conversation(self, options):
        # Both directions at once, each with its own context.
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        with connected(options) as (_, connection, reader):
            connection.on("message", connection.send)
            messages = list(make_messages(50))

            def talk():
                nonlocal compressor
                for message in messages:
                    if options is FORGETTING:
                        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
                    payload = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
                    half = len(payload) // 2
                    reader.client.send(make_frame(payload[:half], 0x42))
                    reader.client.send(make_frame(payload[half:-4], 0x80))

            talking = gevent.spawn(talk)
            assert [reader.read() for _ in messages] == messages
            talking.get()

    def test_a_context_makes_messages_small(self):
        with connected(TAKING_OVER) as (_, connection, reader):
            sizes = []
            for _ in range(3):
                connection.send(NOISE[:5000])
                assert reader.read() == NOISE[:5000]
                sizes.append(reader.size)
                reader.size = 0
            assert sizes[0] > 5000
            assert max(sizes[1:]) < 500


class TestSlowConsumers:
    @each_way
    @pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
    def test_what_is_left_can_be_inflated(self, options, policy):
        with connected(options, slow_consumer=policy, send_high_water_mark=100_000) as (server, connection, reader):
            sent = [b"%05d" % number + NOISE[number : number + 3000] for number in range(600)]
            received, fragmented = [], []
            for number, message in enumerate(sent):
                if number % 2:
                    connection.send_nowait(message)
                else:
                    server.broadcast(message)
                connection.ping()
                if number % 100 == 50:
                    fragmented.append(gevent.spawn(connection.send_fragments, [b"f" + message, message]))
                    # The peer reads a little, then nothing for a while.
                    run_hub()
                    received.append(reader.read())
            assert connection.dropped_message_count > 100
            closing = gevent.spawn(close_behind, connection, fragmented)
            received += reader.read_all()
            closing.get()
            whole = [message for message in received if not message.startswith(b"f")]
            assert len(whole) == 600 - connection.dropped_message_count
            assert set(whole) <= set(sent)
            assert whole == sorted(whole)
            assert [message for message in received if message.startswith(b"f")] == [
                b"f" + sent[number] * 2 for number in range(50, 600, 100)
            ]


def close_behind(connection, senders):
    gevent.joinall(senders, raise_error=True)
    connection.close()


@pytest.fixture
def calls(monkeypatch):
    """Count what is compressed: in the compressors that connections share, and in contexts of their own."""
    counted = {"shared": 0, "own": 0}
    compress_shared, compress = Compressors.compress, Deflate.compress

    def count_shared(self, payload, key):
        counted["shared"] += 1
        return compress_shared(self, payload, key)

    def count(self, payload):
        counted["own"] += self.sharing_key is None
        return compress(self, payload)

    monkeypatch.setattr(Compressors, "compress", count_shared)
    monkeypatch.setattr(Deflate, "compress", count)
    return counted


class TestBroadcast:
    OFFERS = (
        None,
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
        "permessage-deflate",
        "permessage-deflate",
        None,
    )

    @contextlib.contextmanager
    def connect_all(self, **options):
        http = make_http(listener=make_narrow_listener())
        with (
            serve(http=http, permessage_deflate=TAKING_OVER, **options) as (_, server),
            contextlib.ExitStack() as stack,
        ):
            accepted = Queue()
            server.on("request", lambda request: accepted.put(request.accept()))
            connections, readers = [], []
            for offer in self.OFFERS:
                lines = [] if offer is None else [f"Sec-WebSocket-Extensions: {offer}"]
                client = stack.enter_context(open_client(http, "/", *lines))
                bits = 9 if offer is not None and "=9" in offer else 15
                readers.append(Reader(client, offer == "permessage-deflate", bits))
                connections.append(accepted.get())
            yield server, connections, readers

    def test_compressed_once_for_those_that_share(self, calls):
        with self.connect_all() as (server, _, readers):
            for count, message in enumerate((NOISE[:500] + bytes(5000), NOISE[:500] + bytes(6000)), 1):
                assert server.broadcast(message) == 8
                assert [reader.read() for reader in readers] == [message] * 8
                # Two windows among the four that share, and two contexts.
                assert calls == {"shared": count * 2, "own": count * 2}
            assert [reader.compressed_count for reader in readers] == [0, 2, 2, 2, 2, 2, 2, 0]
            sizes = [reader.size for reader in readers]
            assert sizes[1] == sizes[2] == sizes[3]
            assert sizes[5] == sizes[6] < sizes[1] < sizes[0]

    def test_not_compressed(self, calls):
        with self.connect_all() as (server, _, readers):
            assert server.broadcast(bytes(5000), compress=False) == 8
            assert [reader.read() for reader in readers] == [bytes(5000)] * 8
            assert calls == {"shared": 0, "own": 0}

    def test_once_also_for_those_that_wait(self, calls):
        with self.connect_all(send_high_water_mark=1 << 30) as (server, connections, readers):
            first = NOISE * 40
            for connection in connections[1::2]:
                connection.send_nowait(first, compress=False)
                assert connection.buffered_amount
            messages = [b"%d" % number + NOISE[:300] + bytes(3000) for number in range(20)]
            for message in messages:
                assert server.broadcast(message) == 8
            # Those that wait have not compressed anything so far.
            assert calls == {"shared": 40, "own": 20}
            for number, reader in enumerate(readers):
                expected = [first, *messages] if number % 2 else messages
                assert [reader.read() for _ in expected] == expected
            assert calls == {"shared": 40, "own": 40}
            wait_until(lambda: not any(connection.buffered_amount for connection in connections))

    def test_mixed_with_messages_of_each_connection(self):
        with self.connect_all(send_high_water_mark=1 << 30) as (server, connections, readers):
            for number in range(30):
                server.broadcast(b"all %d" % number + NOISE[:3000])
                for place, connection in enumerate(connections):
                    connection.send_nowait(b"%d of %d" % (number, place) + NOISE[:3000])
            for place, reader in enumerate(readers):
                for number in range(30):
                    assert reader.read() == b"all %d" % number + NOISE[:3000]
                    assert reader.read() == b"%d of %d" % (number, place) + NOISE[:3000]


class TestReceiving:
    """What the peer compresses, through a connection's whole house."""

    HELLO = b"\xf2\x48\xcd\xc9\xc9\x07\x00"

    def test_messages_and_extensions(self):
        with paired("/", OFFER, permessage_deflate=True) as (client, connection):
            assert connection.extensions == [
                ("permessage-deflate", [("server_no_context_takeover", None), ("client_no_context_takeover", None)])
            ]
            client.send(make_frame(self.HELLO, 0xC1) + make_frame("plain") + make_frame(self.HELLO, 0xC2))
            assert [connection.receive() for _ in range(3)] == ["Hello", "plain", b"Hello"]

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            pytest.param(make_frame(b"\xf2\x00\x11\x00\x00", 0xC1), 1007, id="corrupt"),
            pytest.param(make_frame(b"\x00\x01\x00\xfe\xff\xff\x00", 0xC1), 1007, id="not UTF-8"),
            pytest.param(make_frame(HELLO, 0xC9), 1002, id="a compressed ping"),
            pytest.param(make_frame(HELLO, 0xE1), 1002, id="RSV2"),
        ],
    )
    def test_failures(self, frame, code):
        with paired("/", OFFER, permessage_deflate=True) as (client, connection):
            closes = record(connection, "close")
            client.send(frame)
            assert client.read_frame() == (0x88, client_close(connection, code))
            assert closes.get()[1] == code

    def test_what_inflates_above_the_limit(self):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        octets = (compressor.compress(bytes(1_000_001)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        with paired("/", OFFER, permessage_deflate=True, max_received_message_size=1_000_000) as (client, connection):
            client.send(make_frame(octets, 0xC2))
            with pytest.raises(ConnectionClosed) as caught:
                connection.receive()
            assert caught.value.code == 1009
            assert client.read_frame()[1][:2] == b"\x03\xf1"

    def test_fragments(self):
        with paired("/", OFFER, permessage_deflate=True) as (client, connection):
            client.send(make_frame(self.HELLO[:3], 0x41))
            pieces = connection.receive_fragments()
            client.send(make_frame(self.HELLO[3:], 0x80))
            assert "".join(pieces) == "Hello"

    def test_frames(self):
        with paired("/", OFFER, permessage_deflate=True, assemble_fragments=False) as (client, connection):
            events = record(connection, "frame", "message")
            client.send(make_frame(self.HELLO, 0xC1))
            assert events.get() == ("frame", WebSocketFrame(1, self.HELLO, rsv1=True))
            assert events.get() == ("message", "Hello")


def client_close(connection, code):
    """Return the payload of the Close that tells of a failure."""
    wait_until(lambda: connection.close_code is not None)
    assert connection.close_code == code
    return code.to_bytes(2, "big") + connection.close_reason.encode()[:123]

"""How octets leave and enter a connection, over real sockets; its own life is `test_sending`'s business."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import sys
import time

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event

from geventws import ConnectionClosed, ConnectionConfig, WebSocketConnection
from geventws.frames import next_frame, serialize_message
from geventws.inbox import QUEUE_OVERHEAD
from geventws.sockets import detach
from geventws.transport import CORK_SIZE, PUMP_SIZE, WRITE_SIZE
from tests.support import CERTIFICATE, Metered, make_frame, record, wait_until

MIB = 1048576


@contextlib.contextmanager
def connected(pair, **options):
    """Give a started connection and the socket at its other end."""
    ours, peer = pair
    connection = WebSocketConnection(detach(ours), ConnectionConfig(**options))
    connection._start()
    try:
        yield connection, peer
    finally:
        peer.close()
        connection.drop(skip_close_frame=True)


class Drained(Metered):
    """Be the stream of a peer that reads as quickly as we write; ``received`` is what it read."""

    def __init__(self, stream, peer):
        super().__init__(stream, None)
        self.peer = peer
        self.received = bytearray()

    def send(self, octets, start, stop):
        self.peer.settimeout(0.0)
        at = start
        while at < stop:
            at += max(super().send(octets, at, stop), 0)
            with contextlib.suppress(BlockingIOError):
                while piece := self.peer.recv(65536):
                    self.received += piece
        return stop - start


@contextlib.contextmanager
def metered(room, **options):
    """Give a started connection, its stream that takes so many octets at first, and the socket at its other end."""
    ours, peer = gevent.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    stream = Metered(detach(ours), room)
    connection = WebSocketConnection(stream, ConnectionConfig(send_high_water_mark=4 * MIB, **options))
    connection._start()
    try:
        yield connection, stream, peer
    finally:
        peer.close()
        connection.drop(skip_close_frame=True)


@pytest.fixture
def pair():
    return gevent.socket.socketpair()


@pytest.fixture
def narrow():
    """Give a pair whose kernel buffers hold little, and above which everything waits in the connection."""
    ours, peer = gevent.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return ours, peer


@pytest.fixture
def records():
    """Give a pair on which each write arrives as it was made."""
    if sys.platform != "linux":
        pytest.skip("sockets that keep the bounds of writes are Linux's")
    return gevent.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def make_tls_pair():
    server = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    client = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(CERTIFICATE)
    ours, peer = gevent.socket.socketpair()
    accepting = gevent.spawn(server.wrap_socket, ours, server_side=True)
    peer = client.wrap_socket(peer, server_hostname="localhost")
    return accepting.get(), peer


def receive_exactly(sock, size):
    octets = bytearray()
    while len(octets) < size and (piece := sock.recv(min(size - len(octets), 65536))):
        octets += piece
    return bytes(octets)


def receive_to_end(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def count_in_kernel(sock):
    """Read what the kernel has now; the hub has no turn meanwhile."""
    sock.settimeout(0.0)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(65536):
            size += len(piece)
    sock.settimeout(None)
    return size


def split_frames(octets):
    """Split octets of the server into frames: first octet and payload."""
    frames, at = [], 0
    while at < len(octets):
        stop = next_frame(octets, at)
        header = {126: 4, 127: 10}.get(octets[at + 1], 2)
        frames.append((octets[at], octets[at + header : stop]))
        at = stop
    return frames


class TestOrder:
    def test_at_once_while_nothing_waits(self, pair):
        with connected(pair) as (connection, peer):
            connection.send("Hello")
            connection.send(b"Hi")
            connection.ping(b"?")
            assert connection.buffered_amount == 0
            assert count_in_kernel(peer) == 14

    def test_of_the_calls_while_the_peer_does_not_read(self, narrow):
        sizes = [5, 40_000, 0, 100_000, 1, 300, 70_000, 65_535, 200_000, 7, 7, 7]
        messages = [bytes([number]) * size for number, size in enumerate(sizes)]
        with connected(narrow, send_high_water_mark=MIB) as (connection, peer):
            for message in messages:
                connection.send(message)
            expected = b"".join(serialize_message(2, message, 16384) for message in messages)
            assert connection.buffered_amount > 400_000
            assert receive_exactly(peer, len(expected)) == expected
            assert connection.buffered_amount == 0

    def test_of_many_greenlets(self, narrow):
        with connected(narrow, send_high_water_mark=20_000) as (connection, peer):
            messages = [bytes([number]) * 30_000 for number in range(20)]
            sending = [gevent.spawn(connection.send, message) for message in messages]
            expected = b"".join(serialize_message(2, message, 16384) for message in messages)
            assert receive_exactly(peer, len(expected)) == expected
            gevent.joinall(sending, raise_error=True)

    def test_close_is_behind_everything(self, narrow):
        with connected(narrow) as (connection, peer):
            connection.send("x" * 100_000)
            connection.close(4000, "enough")
            peer.sendall(make_frame(b"\x0f\xa0", 0x88))
            octets = receive_to_end(peer)
            assert octets == serialize_message(1, b"x" * 100_000, 16384) + b"\x88\x08\x0f\xa0enough"
            assert connection.wait_closed()


class TestControlFrames:
    @pytest.mark.parametrize("make_pair", [gevent.socket.socketpair, make_tls_pair], ids=["plain", "TLS"])
    def test_ping_passes_between_the_fragments(self, make_pair):
        message = bytes(range(256)) * 4096
        with connected(make_pair(), send_high_water_mark=4 * MIB) as (connection, peer):
            connection.send(message)
            connection.send("behind")
            left = connection.buffered_amount
            assert left > MIB // 4
            connection.ping(b"now")
            total = len(serialize_message(2, message, 16384)) + 8 + 5
            octets = receive_exactly(peer, total)
            assert connection.buffered_amount == 0
        frames = split_frames(octets)
        place = frames.index((0x89, b"now"))
        # It waits behind what the kernel has, and one write, which ends with a frame.
        before = octets.index(b"\x89\x03now")
        assert before < total - left + WRITE_SIZE + 16388
        del frames[place]
        assert frames.pop() == (0x81, b"behind")
        assert [first for first, _ in frames] == [0x02, *[0x00] * 62, 0x80]
        assert b"".join(payload for _, payload in frames) == message

    def test_waits_behind_one_frame_where_the_peer_is_quick(self, pair):
        """What one turn may move has gone out, and the kernel would take more."""
        ours, peer = pair
        message = bytes(range(256)) * 16384
        stream = Drained(detach(ours), peer)
        connection = WebSocketConnection(stream, ConnectionConfig(send_high_water_mark=8 * MIB))
        connection._start()
        connection.send_nowait(message)
        before = len(stream.received)
        assert PUMP_SIZE < before < len(message)
        connection.ping(b"now")
        wait_until(lambda: not connection.buffered_amount)
        assert before <= stream.received.index(b"\x89\x03now") <= before + 16388
        octets = stream.received.replace(b"\x89\x03now", b"")
        assert octets == serialize_message(2, message, 16384)
        peer.close()
        connection.drop(skip_close_frame=True)

    def test_not_within_a_frame(self, narrow):
        with connected(narrow, fragment_outgoing_messages=False, send_high_water_mark=4 * MIB) as (connection, peer):
            connection.send(bytes(MIB))
            connection.ping(b"later")
            octets = receive_exactly(peer, MIB + 10 + 7)
        assert split_frames(octets) == [(0x82, bytes(MIB)), (0x89, b"later")]

    def test_more_than_one_write_of_them(self, narrow):
        """Then they are on the wire in parts, too, and the message between whose frames they stand goes on behind."""
        message = bytes(range(256)) * 2048
        pings = [number.to_bytes(125, "big") for number in range(1000)]
        with connected(narrow, send_high_water_mark=4 * MIB) as (connection, peer):
            connection.send(message)
            for payload in pings:
                connection.ping(payload)
            octets = receive_exactly(peer, len(serialize_message(2, message, 16384)) + len(pings) * 127)
            assert connection.buffered_amount == 0
        frames = split_frames(octets)
        assert [payload for first, payload in frames if first & 0x08] == pings
        assert b"".join(payload for first, payload in frames if not first & 0x08) == message

    def test_keep_their_order(self, narrow):
        with connected(narrow) as (connection, peer):
            connection.send(bytes(200_000))
            for number in range(5):
                connection.ping(bytes([number]))
            connection.pong(b"unasked")
            octets = receive_exactly(peer, len(serialize_message(2, bytes(200_000), 16384)) + 5 * 3 + 9)
        control = [frame for frame in split_frames(octets) if frame[0] & 0x08]
        assert control == [*((0x89, bytes([number])) for number in range(5)), (0x8A, b"unasked")]

    def test_only_the_latest_pong_while_the_peer_does_not_read(self, narrow):
        with connected(narrow) as (connection, peer):
            pings = record(connection, "ping")
            connection.send(bytes(100_000))
            for number in range(5):
                peer.sendall(make_frame(bytes([number]), 0x89))
                assert pings.get() == ("ping", bytes([number]))
            octets = receive_exactly(peer, len(serialize_message(2, bytes(100_000), 16384)) + 3)
            frames = split_frames(octets)
            assert [frame for frame in frames if frame[0] == 0x8A] == [(0x8A, b"\4")]
            # Once the peer reads, each is answered again.
            peer.sendall(make_frame(b"5", 0x89) + make_frame(b"6", 0x89))
            assert receive_exactly(peer, 6) == b"\x8a\x015\x8a\x016"


# Frames of 16 KiB: 13 of them, in all 200,052 octets.
LONG = bytes(range(256)) * 781 + bytes(64)
LONG_FRAMES = serialize_message(2, LONG, 16384)
BOUNDS = [0]
while BOUNDS[-1] < len(LONG_FRAMES):
    BOUNDS.append(next_frame(LONG_FRAMES, BOUNDS[-1]))


class TestPartOfAMessage:
    """The kernel takes some octets of a message that is sent from where it lies."""

    @pytest.mark.parametrize("message", [b"0123456789", "0123456789"], ids=["binary", "text"])
    def test_ends_anywhere(self, message):
        expected = serialize_message(1 if isinstance(message, str) else 2, b"0123456789", 3)
        for room in range(len(expected) + 1):
            with metered(room, fragmentation_threshold=3) as (connection, stream, peer):
                connection.send(message)
                assert connection.buffered_amount == len(expected) - room
                connection.send("behind")
                connection.ping(b"?")
                stream.room = None
                octets = receive_exactly(peer, len(expected) + 10 + 3)
                assert connection.buffered_amount == 0
                whole = b"" if room == len(expected) else expected
                assert octets.startswith(whole)
                assert sorted(split_frames(octets)) == sorted(
                    [*split_frames(expected), *split_frames(b"\x01\x03beh\x80\x03ind"), (0x89, b"?")]
                )

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7])
    def test_octet_after_octet(self, step):
        expected = serialize_message(2, b"0123456789", 4) + b"\x81\x01x\x88\x02\x03\xe8"
        with metered(step, fragmentation_threshold=4) as (connection, stream, peer):
            connection.send(b"0123456789")
            connection.send("x")
            connection.close()
            octets = b""
            while len(octets) < len(expected):
                octets += peer.recv(100)
                stream.room = step
            assert octets == expected

    @pytest.mark.parametrize(
        "room",
        [
            *(pytest.param(octets, id=f"{octets} octets") for octets in range(6)),
            *(pytest.param(BOUNDS[1] + octets, id=f"second frame {octets:+}") for octets in range(-1, 6)),
            pytest.param(BOUNDS[7] - 16000, id="within the seventh"),
            pytest.param(len(LONG_FRAMES) - WRITE_SIZE - 1, id="the rest is more than one write"),
            pytest.param(len(LONG_FRAMES) - WRITE_SIZE, id="the rest is one write"),
            pytest.param(len(LONG_FRAMES) - 1, id="all but one octet"),
        ],
    )
    def test_ping_waits_behind_a_frame_or_a_write(self, room):
        with metered(room) as (connection, stream, peer):
            connection.send(LONG)
            connection.send("behind")
            connection.ping(b"now")
            stream.room = None
            octets = receive_exactly(peer, len(LONG_FRAMES) + 8 + 5)
            assert connection.buffered_amount == 0
        place = octets.index(b"\x89\x03now")
        end = next(bound for bound in BOUNDS if bound > room)
        assert place == (end if len(LONG_FRAMES) - room > WRITE_SIZE else len(LONG_FRAMES))
        assert octets[:place] + octets[place + 5 :] == LONG_FRAMES + b"\x81\x06behind"

    @pytest.mark.parametrize("bound", [0, 1, 2, 7, 12])
    @pytest.mark.parametrize("more", [0, 1, 4, 3000])
    def test_drop_says_close_between_two_frames_alone(self, bound, more):
        room = BOUNDS[bound] + more
        with metered(room) as (connection, stream, peer):
            connection.send(LONG)
            assert connection.buffered_amount == len(LONG_FRAMES) - room
            stream.room = None
            connection.drop(4000, "out")
            assert connection.buffered_amount == 0
            close = b"" if more else b"\x88\x05\x0f\xa0out"
            assert receive_to_end(peer) == LONG_FRAMES[:room] + close

    def test_close_is_behind_the_rest(self):
        with metered(20_000) as (connection, stream, peer):
            connection.send(LONG)
            connection.close(4000, "enough")
            stream.room = None
            peer.sendall(make_frame(b"\x0f\xa0", 0x88))
            assert receive_to_end(peer) == LONG_FRAMES + b"\x88\x08\x0f\xa0enough"
            assert connection.wait_closed()
            assert connection.closed_by == "local"

    def test_break_at_the_first_octet(self):
        with metered(None) as (connection, _, peer):
            peer.close()
            with pytest.raises(ConnectionClosed, match=f"the connection broke: .* {len(LONG_FRAMES)} octets unsent"):
                connection.send(LONG)
            assert connection.wait_closed()
            assert (connection.close_code, connection.closed_by) == (1006, "transport")

    def test_break_tells_how_much_is_unsent(self):
        with metered(20_000) as (connection, _, peer):
            connection.send(LONG)
            connection.send("behind")
            peer.close()
            with pytest.raises(ConnectionClosed):
                connection.receive()
            assert connection.close_cause.endswith(f", {len(LONG_FRAMES) - 20_000 + 8} octets unsent")

    @pytest.mark.parametrize("is_message_text", [False, True], ids=["binary", "text"])
    def test_more_frames_than_one_system_call_takes(self, pair, is_message_text):
        """Up to 128 frames leave from where the message lies."""
        message = ("0123456789" * 50) if is_message_text else b"0123456789" * 50
        with connected(pair, fragmentation_threshold=3) as (connection, peer):
            for size in (0, 3, 4, 383, 384, 385, 386, 500):
                connection.send(message[:size])
                connection.send("behind")
                # The hub had no turn so far.
                assert connection.buffered_amount == 0
            octets = b"".join(
                serialize_message(1 if is_message_text else 2, (b"0123456789" * 50)[:size], 3)
                + serialize_message(1, b"behind", 3)
                for size in (0, 3, 4, 383, 384, 385, 386, 500)
            )
            assert receive_exactly(peer, len(octets)) == octets
            assert connection.buffered_amount == 0

    @pytest.mark.parametrize("threshold", [1, 125, 126, 127, 65535, 65536])
    def test_slow_reader_gets_all(self, narrow, threshold):
        """The kernel cuts where it likes, and the peer takes a few octets at a time."""
        message = "".join(map(chr, range(32, 127))) * 1500
        expected = serialize_message(1, message.encode(), threshold)
        with connected(narrow, fragmentation_threshold=threshold, send_high_water_mark=MIB) as (connection, peer):
            connection.send(message)
            connection.ping(b"now")
            connection.close()
            octets = b""
            while len(octets) < len(expected) + 5 + 4:
                octets += peer.recv(3000)
        assert octets.endswith(b"\x88\x02\x03\xe8")
        assert octets.replace(b"\x89\x03now", b"")[:-4] == expected


class TestBufferedAmount:
    def test_is_what_the_kernel_did_not_take(self, narrow):
        with connected(narrow, send_high_water_mark=MIB) as (connection, peer):
            total = 0
            for size in (100, 50_000, 3, 70_000, 125, 126, 200_000):
                connection.send(bytes(size))
                total += len(serialize_message(2, bytes(size), 16384))
            connection.ping(b"1234")
            total += 6
            taken = 0
            while connection.buffered_amount:
                taken += count_in_kernel(peer)
                assert connection.buffered_amount == total - taken
                # Now the hub moves on as far as the kernel lets it.
                gevent.sleep(0)
            taken += count_in_kernel(peer)
            assert taken == total

    def test_cork_counts(self, records):
        amounts = []
        with connected(records) as (connection, peer):

            @connection.on("message")
            def answer(message):
                connection.send(message)
                amounts.append(connection.buffered_amount)

            peer.send(make_frame("a") + make_frame("b"))
            assert peer.recv(65536) == b"\x81\x01a\x81\x01b"
            assert amounts == [3, 0]


class TestHighWaterMark:
    def test_send_waits_until_half_of_it(self, narrow):
        with connected(narrow, send_high_water_mark=100_000) as (connection, peer):
            drains = record(connection, "drain")
            message = bytes(150_000)
            assert not connection.output_buffer_full
            sending = gevent.spawn(connection.send, message)
            wait_until(lambda: connection.output_buffer_full)
            assert not sending.ready()
            assert connection.buffered_amount > 100_000
            size = len(serialize_message(2, message, 16384))
            taken = 0
            while not sending.ready():
                assert connection.buffered_amount > 50_000
                taken += count_in_kernel(peer)
                gevent.sleep(0)
                gevent.idle()
            sending.get()
            assert connection.buffered_amount <= 50_000
            assert not connection.output_buffer_full
            assert drains.get() == ("drain",)
            assert len(receive_exactly(peer, size - taken)) == size - taken
            assert drains.empty()

    def test_tiny_messages_count_with_an_overhead(self, narrow):
        with connected(narrow, send_high_water_mark=50 * QUEUE_OVERHEAD) as (connection, peer):
            connection.send(bytes(5_000))
            while connection.buffered_amount == 0:
                connection.send(bytes(5_000))
            sent = gevent.spawn(lambda: [connection.send(b"") for _ in range(1000)])
            wait_until(lambda: connection.output_buffer_full)
            assert connection.buffered_amount < 25 * QUEUE_OVERHEAD + 5_004
            draining = gevent.spawn(receive_to_end, peer)
            sent.get()
            connection.drop(skip_close_frame=True)
            assert draining.get().endswith(b"\x82\x00")


class TestCork:
    def test_replies_to_a_burst_leave_together(self, records):
        with connected(records) as (connection, peer):
            connection.on("message", connection.send)
            peer.send(make_frame("a") + make_frame("b") + make_frame(b"c", 0x82))
            assert peer.recv(65536) == b"\x81\x01a\x81\x01b\x82\x01c"
            peer.send(make_frame("d"))
            assert peer.recv(65536) == b"\x81\x01d"

    def test_replies_of_a_loop_leave_together(self, records):
        with connected(records) as (connection, peer):

            def loop():
                for message in connection:
                    connection.send(message)

            looping = gevent.spawn(loop)
            peer.send(make_frame("a") + make_frame("b") + make_frame("c"))
            assert peer.recv(65536) == b"\x81\x01a\x81\x01b\x81\x01c"
            peer.send(make_frame(b"\x03\xe8", 0x88))
            looping.get()

    def test_reply_does_not_wait_for_a_listener_that_blocks(self, records):
        gate = Event()
        with connected(records) as (connection, peer):

            @connection.on("message")
            def answer(message):
                connection.send(message)
                gate.wait()

            peer.send(make_frame("a") + make_frame("b"))
            assert peer.recv(65536) == b"\x81\x01a"
            gate.set()
            assert peer.recv(65536) == b"\x81\x01b"

    def test_reply_does_not_wait_for_a_listener_that_computes(self, records):
        with connected(records) as (connection, peer):

            @connection.on("message")
            def answer(message):
                connection.send(message)
                end = time.monotonic() + 0.002
                while time.monotonic() < end:
                    pass

            peer.send(make_frame("a") + make_frame("b") + make_frame("c"))
            assert [peer.recv(65536) for _ in range(3)] == [b"\x81\x01a", b"\x81\x01b", b"\x81\x01c"]

    def test_large_cork_leaves_early(self, records):
        answers = [bytes([number]) * 20_000 for number in range(12)]
        waiting = iter(answers)
        with connected(records, fragment_outgoing_messages=False) as (connection, peer):
            connection.on("message", lambda _: connection.send(next(waiting)))
            peer.send(make_frame("x") * 12)
            expected = b"".join(serialize_message(2, answer, 0) for answer in answers)
            writes = []
            while sum(map(len, writes)) < len(expected):
                writes.append(peer.recv(300_000))
            assert b"".join(writes) == expected
            assert max(map(len, writes)) <= CORK_SIZE + 20_004

    def test_close_takes_the_cork_along(self, records):
        with connected(records) as (connection, peer):

            @connection.on("message")
            def answer(message):
                connection.send(message)
                if message == "b":
                    connection.close()

            peer.send(make_frame("a") + make_frame("b") + make_frame("c"))
            octets = b""
            while len(octets) < 10:
                octets += peer.recv(65536)
            assert octets == b"\x81\x01a\x81\x01b\x88\x02\x03\xe8"

    def test_ping_goes_behind_the_cork(self, records):
        with connected(records) as (connection, peer):

            @connection.on("message")
            def answer(message):
                connection.send(message)
                connection.ping(message.encode())

            peer.send(make_frame("a") + make_frame("b"))
            octets = b""
            while len(octets) < 12:
                octets += peer.recv(65536)
            assert octets == b"\x81\x01a\x89\x01a\x81\x01b\x89\x01b"

    @pytest.mark.parametrize("size", [100_000, 1000], ids=["large", "small"])
    def test_answer_to_a_close_is_behind_a_corked_reply(self, pair, size):
        """The reply to the first of two messages is corked, or more than one write, when the Close is answered."""
        reply = "x" * size
        with connected(pair) as (connection, peer):
            peer.sendall(make_frame("a") + make_frame("b") + make_frame(b"\x0f\xa0", 0x88))

            def loop():
                for message in connection:
                    if message == "a":
                        connection.send(reply)

            with pytest.raises(ConnectionClosed):
                gevent.spawn(loop).get()
            assert receive_to_end(peer) == serialize_message(1, reply.encode(), 16384) + b"\x88\x02\x0f\xa0"


class TestReading:
    @pytest.mark.parametrize("make_pair", [gevent.socket.socketpair, make_tls_pair], ids=["plain", "TLS"])
    def test_more_than_one_reading_holds(self, make_pair):
        messages = [bytes([number]) * 60_000 for number in range(20)]
        with connected(make_pair()) as (connection, peer):
            sending = gevent.spawn(peer.sendall, b"".join(make_frame(message, 0x82) for message in messages))
            assert [connection.receive() for _ in messages] == messages
            sending.get()

    @pytest.mark.parametrize("make_pair", [gevent.socket.socketpair, make_tls_pair], ids=["plain", "TLS"])
    def test_stops_above_the_mark_and_goes_on(self, make_pair):
        messages = [bytes([number]) * 60_000 for number in range(40)]
        with connected(make_pair(), receive_high_water_mark=100_000) as (connection, peer):
            sending = gevent.spawn(peer.sendall, b"".join(make_frame(message, 0x82) for message in messages))
            for _ in range(50):
                gevent.idle()
            # Nobody takes the messages, so the peer cannot get rid of them.
            assert not sending.ready()
            assert [connection.receive() for _ in messages] == messages
            sending.get()

    def test_goes_on_behind_a_message_that_nobody_wanted_to_the_end(self, pair):
        with connected(pair, receive_high_water_mark=1000) as (connection, peer):
            peer.sendall(make_frame(bytes(900), 0x02))
            pieces = connection.receive_fragments()
            assert next(pieces) == bytes(900)
            peer.sendall(make_frame(bytes(900), 0x00) + make_frame(bytes(900), 0x00))
            for _ in range(10):
                gevent.idle()
            pieces.close()
            peer.sendall(make_frame(b"end", 0x80) + make_frame("next"))
            assert connection.receive(timeout=2) == "next"


class TestBroken:
    def test_messages_before_it_still_count(self, narrow):
        with connected(narrow) as (connection, peer):
            connection.send(bytes(100_000))
            assert connection.buffered_amount
            peer.sendall(make_frame("last"))
            peer.close()
            assert connection.receive() == "last"
            with pytest.raises(ConnectionClosed) as caught:
                connection.receive()
            assert (caught.value.code, connection.closed_by) == (1006, "transport")
            assert connection.buffered_amount == 0

    def test_sender_that_waits_learns_of_it(self, narrow):
        with connected(narrow, send_high_water_mark=1000) as (connection, peer):
            sending = gevent.spawn(connection.send, bytes(100_000))
            wait_until(lambda: connection.output_buffer_full)
            peer.close()
            with pytest.raises(ConnectionClosed):
                sending.get()

    def test_reset(self):
        with gevent.socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            peer = gevent.socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        with connected((ours, peer)) as (connection, _):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with pytest.raises(ConnectionClosed, match="the connection broke") as caught:
                connection.receive()
            assert caught.value.code == 1006

    def test_send_that_fails_at_once(self, pair):
        with connected(pair) as (connection, peer):
            peer.close()
            with pytest.raises(ConnectionClosed, match="the connection broke"):
                connection.send("a")
            assert connection.wait_closed()
            assert connection.close_code == 1006


class TestDrop:
    def test_says_close_where_no_frame_is_cut(self, pair):
        with connected(pair) as (connection, peer):
            connection.send("a")
            connection.drop(4000, "out")
            assert receive_to_end(peer) == b"\x81\x01a\x88\x05\x0f\xa0out"

    @pytest.mark.parametrize("make_pair", [gevent.socket.socketpair, make_tls_pair], ids=["plain", "TLS"])
    def test_says_nothing_in_the_middle_of_a_frame(self, make_pair):
        with connected(make_pair(), fragment_outgoing_messages=False, send_high_water_mark=4 * MIB) as (
            connection,
            peer,
        ):
            connection.send(bytes(MIB))
            connection.send("behind")
            assert connection.buffered_amount
            connection.drop(4000, "out")
            assert connection.buffered_amount == 0
            octets = receive_to_end(peer)
            assert octets[:10] == b"\x82\x7f\0\0\0\0\0\x10\0\0"
            assert octets[10:] == bytes(len(octets) - 10)
            assert len(octets) < MIB

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
from geventws.transport import CORK_SIZE, WRITE_SIZE
from tests.support import CERTIFICATE, make_frame, record, wait_until

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

from __future__ import annotations

import _socket
import contextlib
import errno
import gc
import os
import socket
import ssl
import struct
import sys
import time

import gevent
import gevent.socket
import gevent.ssl
import pytest

from geventws.frames import serialize_message
from geventws.masking import COMPILED
from geventws.sockets import (
    END,
    WAIT_READ,
    WAIT_WRITE,
    PlainStream,
    Stream,
    TLSStream,
    detach,
    is_ended,
    monotonic,
    set_options,
)
from tests.support import CERTIFICATE

compiled_only = pytest.mark.skipif(not COMPILED, reason="in the plain build a socket object does it")
RESET_ON_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def make_tcp_pair():
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        peer = gevent.socket.create_connection(listener.getsockname())
        return listener.accept()[0], peer


@pytest.fixture(params=[gevent.socket.socketpair, make_tcp_pair], ids=["Unix", "TCP"])
def plain(request):
    """Give a stream and the gevent socket at its other end."""
    ours, peer = request.param()
    stream = detach(ours)
    yield stream, peer
    peer.close()
    stream.close()


@pytest.fixture
def wide():
    """Give a stream whose kernel takes much at once, and the socket at its other end."""
    ours, peer = gevent.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    stream = detach(ours)
    yield stream, peer
    peer.close()
    stream.close()


@pytest.fixture(scope="module")
def contexts():
    server = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    client = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(CERTIFICATE)
    return server, client


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def tls(request, contexts):
    """Give a stream, the SSL socket at its other end, and the SSL socket that the stream took over."""
    server, client = contexts
    client.maximum_version = ssl.TLSVersion[request.param.replace(".", "_")]
    ours, peer = make_tcp_pair()
    accepting = gevent.spawn(server.wrap_socket, ours, server_side=True)
    peer = client.wrap_socket(peer, server_hostname="localhost")
    ours = accepting.get()
    assert peer.version() == request.param
    stream = detach(ours)
    yield stream, peer, ours
    peer.close()
    stream.close()


def receive(stream, size=65536):
    """Wait until there is something, and return it; the octets around it must be untouched."""
    buffer = bytearray(b"\xaa" * (16 + size))
    while (moved := stream.receive_into(buffer, 16)) == WAIT_READ:
        gevent.socket.wait_read(stream.fd)
    assert moved >= 0
    assert buffer[:16] == b"\xaa" * 16
    assert buffer[16 + moved :] == b"\xaa" * (size - moved)
    return bytes(buffer[16 : 16 + moved])


def receive_exactly(sock, size):
    octets = bytearray()
    while len(octets) < size and (piece := sock.recv(size - len(octets))):
        octets += piece
    return bytes(octets)


def fill(stream, octets):
    """Send until nothing more is taken; return how much was."""
    total = 0
    while (moved := stream.send(octets, 0, len(octets))) > 0:
        total += moved
    assert moved == WAIT_WRITE
    return total


class TestPlainStream:
    def test_receive(self, plain):
        stream, peer = plain
        assert stream.receive_into(bytearray(100), 16) == WAIT_READ
        peer.sendall(b"Hello")
        assert receive(stream) == b"Hello"
        assert stream.receive_into(bytearray(100), 16) == WAIT_READ

    def test_receive_into_what_is_left_of_the_buffer(self, plain):
        stream, peer = plain
        peer.sendall(b"Hello")
        assert receive(stream, 3) == b"Hel"
        assert receive(stream, 3) == b"lo"

    def test_end(self, plain):
        stream, peer = plain
        peer.sendall(b"last")
        peer.shutdown(socket.SHUT_WR)
        assert receive(stream) == b"last"
        assert receive(stream) == b""
        assert stream.receive_into(bytearray(100), 0) == END

    def test_send(self, plain):
        stream, peer = plain
        assert stream.send(b"Hello", 0, 5) == 5
        assert stream.send(b"--Hello--", 2, 7) == 5
        assert stream.send(b"Hello, world", 5, 12) == 7
        assert receive_exactly(peer, 17) == b"HelloHello, world"

    def test_send_more_than_the_kernel_takes(self, plain):
        stream, peer = plain
        sent = fill(stream, bytes(range(256)) * 256)
        stream.shut_write()
        assert len(receive_exactly(peer, sent + 1)) == sent

    def test_writable_again(self, plain):
        stream, peer = plain
        sent = fill(stream, bytes(65536))
        receive_exactly(peer, sent)
        gevent.socket.wait_write(stream.fd)
        assert stream.send(b"more", 0, 4) == 4
        assert receive_exactly(peer, 4) == b"more"

    def test_send_to_a_peer_that_is_gone(self, plain):
        stream, peer = plain
        peer.close()
        with pytest.raises(OSError, match=f"{os.strerror(errno.EPIPE)}|{os.strerror(errno.ECONNRESET)}"):
            send_for_ever(stream)

    def test_shut_write(self, plain):
        stream, peer = plain
        stream.send(b"last", 0, 4)
        stream.shut_write()
        assert receive_exactly(peer, 5) == b"last"
        peer.sendall(b"still heard")
        assert receive(stream) == b"still heard"

    def test_shut_write_when_the_peer_is_gone(self, plain):
        stream, peer = plain
        peer.setsockopt(*RESET_ON_CLOSE)
        peer.close()
        stream.shut_write()
        stream.shut_write()

    def test_close(self, plain):
        stream, peer = plain
        fd = stream.fd
        stream.close()
        assert stream.fd == -1
        assert receive_exactly(peer, 1) == b""
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)
        stream.close()
        stream.shut_write()

    def test_after_close(self, plain):
        stream, _ = plain
        stream.close()
        for call in (lambda: stream.receive_into(bytearray(100), 0), lambda: stream.send(b"a", 0, 1)):
            with pytest.raises(OSError, match=r"."):
                call()

    def test_nothing_hides_above_the_kernel(self, plain):
        stream, peer = plain
        peer.sendall(b"Hello")
        assert receive(stream, 1) == b"H"
        assert not stream.has_pending()
        assert not stream.must_retry()

    def test_reset(self):
        ours, peer = make_tcp_pair()
        stream = detach(ours)
        peer.setsockopt(*RESET_ON_CLOSE)
        peer.close()
        with pytest.raises(ConnectionResetError):
            receive(stream)
        stream.close()

    def test_one_that_was_not_made_owns_no_descriptor(self):
        with pytest.raises(TypeError):
            PlainStream()
        os.fstat(0)

    @compiled_only
    def test_forgotten(self):
        """The descriptor goes with the stream, as it does with a socket object."""
        ours, peer = gevent.socket.socketpair()
        stream = detach(ours)
        del stream
        gc.collect()
        assert receive_exactly(peer, 1) == b""
        peer.close()


def send_frames_for_ever(stream, message):
    while True:
        stream.send_frames(2, message, 16384)


def frames(message, threshold):
    payload = message.encode() if isinstance(message, str) else message
    return serialize_message(1 if isinstance(message, str) else 2, payload, threshold)


class TestSendFrames:
    @compiled_only
    # Below and above what is copied, and one system call takes: 4096 octets, 128 frames.
    @pytest.mark.parametrize(
        ("size", "threshold"),
        [
            *((size, 16384) for size in (0, 1, 125, 126, 4095, 4096, 4097, 16383, 16384, 16385, 32768, 32769)),
            *((size, 2**61) for size in (0, 4097, 65535, 65536, 100_000)),
            *((size, 1) for size in (0, 1, 2, 127, 128)),
            *((size, 125) for size in (125, 126, 250, 251, 15999, 16000)),
            *((size, 126) for size in (126, 127, 252, 253)),
            *((size, 65535) for size in (65535, 65536)),
            *((size, 65536) for size in (65536, 65537)),
        ],
    )
    @pytest.mark.parametrize("is_text", [False, True], ids=["binary", "text"])
    def test_whole(self, wide, size, threshold, is_text):
        stream, peer = wide
        payload = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
        message = payload.decode() if is_text else payload
        expected = frames(message, threshold)
        assert stream.send_frames(1 if is_text else 2, message, threshold) == len(expected)
        assert receive_exactly(peer, len(expected)) == expected

    @pytest.mark.parametrize(
        ("size", "threshold"), [(129, 1), (16001, 125), (1_000_000, 100), (128 * 16384 + 1, 16384)]
    )
    def test_more_than_128_frames_are_for_others(self, wide, size, threshold):
        stream, peer = wide
        assert stream.send_frames(2, bytes(size), threshold) == 0
        stream.send(b"-", 0, 1)
        assert receive_exactly(peer, 1) == b"-"

    @compiled_only
    @pytest.mark.parametrize("size", [4096, 4097, 1_000_000])
    @pytest.mark.parametrize("threshold", [8000, 16384, 2**61])
    def test_what_the_kernel_takes(self, plain, size, threshold):
        """Again and again until it takes nothing: what it took are the first octets of the frames."""
        stream, peer = plain
        message = bytes(range(256)) * (size // 256) + bytes(size % 256)
        expected = b""
        while moved := stream.send_frames(2, message, threshold):
            expected += frames(message, threshold)[:moved]
        assert expected
        stream.shut_write()
        assert receive_exactly(peer, len(expected) + 1) == expected

    @pytest.mark.parametrize("message", ["\u00e9", "\u20ac", "\U0001f600", "x" * 200 + "\u00e9", "\ud800"], ids=ascii)
    def test_text_beyond_ascii_is_for_others(self, plain, message):
        stream, peer = plain
        assert stream.send_frames(1, message, 16384) == 0
        stream.send(b"-", 0, 1)
        assert receive_exactly(peer, 1) == b"-"

    @pytest.mark.skipif(COMPILED, reason="the compiled build sends it")
    def test_plain_build_leaves_it_to_others(self, plain):
        stream, peer = plain
        assert stream.send_frames(1, "Hello", 16384) == 0
        stream.send(b"-", 0, 1)
        assert receive_exactly(peer, 1) == b"-"

    @compiled_only
    @pytest.mark.parametrize("message", [b"a", b"a" * 10_000, "a" * 20_000], ids=len)
    def test_peer_that_is_gone(self, plain, message):
        stream, peer = plain
        peer.close()
        with pytest.raises(OSError, match=f"{os.strerror(errno.EPIPE)}|{os.strerror(errno.ECONNRESET)}"):
            send_frames_for_ever(stream, message)

    @compiled_only
    def test_after_close(self, plain):
        stream, _ = plain
        stream.close()
        for message in (b"a", b"a" * 5000):
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                stream.send_frames(2, message, 16384)

    def test_tls_leaves_it_to_others(self, tls):
        stream, peer, _ = tls
        assert stream.send_frames(1, "Hello", 16384) == 0
        stream.send(b"-", 0, 1)
        assert receive_exactly(peer, 1) == b"-"

    def test_base(self):
        assert Stream(None, -1).send_frames(1, "Hello", 16384) == 0


class TestDetach:
    @pytest.mark.parametrize("make_pair", [gevent.socket.socketpair, make_tcp_pair], ids=["Unix", "TCP"])
    def test_its_former_holder_cannot_close_it(self, make_pair):
        ours, peer = make_pair()
        fd = ours.fileno()
        stream = detach(ours)
        ours.close()
        assert type(stream) is PlainStream
        assert (ours.fileno(), stream.fd) == (-1, fd)
        peer.sendall(b"Hello")
        assert receive(stream) == b"Hello"
        stream.close()
        peer.close()

    def test_default_timeout_does_not_make_it_wait(self):
        ours, peer = gevent.socket.socketpair()
        _socket.setdefaulttimeout(20.0)
        try:
            stream = detach(ours)
        finally:
            _socket.setdefaulttimeout(None)
        before = time.monotonic()
        assert stream.receive_into(bytearray(10), 0) == WAIT_READ
        assert time.monotonic() - before < 10
        stream.close()
        peer.close()

    def test_tls(self, tls):
        stream, peer, ours = tls
        assert type(stream) is TLSStream
        # pywsgi does so at the end of its handler.
        ours.close()
        peer.sendall(b"Hello")
        assert receive(stream) == b"Hello"
        assert stream.send(b"Hi", 0, 2) == 2
        assert receive_exactly(peer, 2) == b"Hi"


class TestTLSStream:
    def test_receive(self, tls):
        stream, peer, _ = tls
        assert stream.receive_into(bytearray(100), 16) == WAIT_READ
        peer.sendall(b"Hello")
        assert receive(stream) == b"Hello"
        assert stream.receive_into(bytearray(100), 16) == WAIT_READ

    def test_all_records_at_once(self, tls):
        stream, peer, _ = tls
        for piece in (b"one ", b"two ", b"three"):
            peer.sendall(piece)
        assert receive_all(stream, 13) == b"one two three"

    def test_rest_of_a_record_is_pending(self, tls):
        stream, peer, _ = tls
        peer.sendall(b"Hello")
        assert receive(stream, 2) == b"He"
        assert stream.has_pending()
        assert receive(stream, 3) == b"llo"
        assert not stream.has_pending()

    def test_end(self, tls):
        stream, peer, _ = tls
        peer.sendall(b"last")
        peer.close()
        assert receive_all(stream, 4) == b"last"
        assert receive(stream) == b""

    def test_octets_before_a_reset_count(self, tls):
        stream, peer, _ = tls
        peer.sendall(b"last")
        peer.setsockopt(*RESET_ON_CLOSE)
        peer.close()
        assert receive_all(stream, 4) == b"last"
        moved = stream.receive_into(bytearray(100), 0)
        assert moved == END

    def test_rubbish(self, tls):
        stream, peer, _ = tls
        send_rubbish(peer)
        with pytest.raises(ssl.SSLError):
            receive(stream)

    def test_octets_before_rubbish_count(self, tls):
        stream, peer, _ = tls
        peer.sendall(b"last")
        send_rubbish(peer)
        assert receive_all(stream, 4) == b"last"
        # OpenSSL reports it once, and that may have been while the octets before it were moved.
        with contextlib.suppress(ssl.SSLError):
            assert receive(stream) == b""

    def test_send(self, tls):
        stream, peer, _ = tls
        assert stream.send(b"--Hello--", 2, 7) == 5
        assert receive_exactly(peer, 5) == b"Hello"

    def test_retry_with_the_same_octets(self, tls):
        stream, peer, _ = tls
        assert stream.must_retry()
        octets = bytes(range(256)) * 64
        sent = fill(stream, octets)
        receiving = gevent.spawn(receive_exactly, peer, sent + len(octets))
        while (moved := stream.send(octets, 0, len(octets))) == WAIT_WRITE:
            gevent.socket.wait_write(stream.fd)
        assert moved == len(octets)
        assert receiving.get() == octets * (sent // len(octets) + 1)

    def test_send_to_a_peer_that_is_gone(self, tls):
        stream, peer, _ = tls
        peer.setsockopt(*RESET_ON_CLOSE)
        peer.close()
        with pytest.raises(OSError, match=r"."):
            send_for_ever(stream)

    def test_shut_write(self, tls):
        stream, peer, _ = tls
        # Strict: an end without close_notify would raise.
        peer.suppress_ragged_eofs = False
        stream.send(b"last", 0, 4)
        stream.shut_write()
        assert receive_exactly(peer, 5) == b"last"
        # What comes now is for discarding, but it does come, and then the end.
        assert stream.receive_into(bytearray(100), 0) == WAIT_READ
        peer.sendall(b"too late")
        assert receive(stream)
        assert not stream.has_pending()
        peer.close()
        while receive(stream):
            pass

    def test_shut_write_when_the_peer_is_gone(self, tls):
        stream, peer, _ = tls
        peer.setsockopt(*RESET_ON_CLOSE)
        peer.close()
        stream.shut_write()
        stream.shut_write()

    def test_close(self, tls):
        stream, peer, _ = tls
        peer.suppress_ragged_eofs = False
        fd = stream.fd
        stream.close()
        assert stream.fd == -1
        assert receive_exactly(peer, 1) == b""
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)
        stream.close()
        stream.shut_write()


def send_for_ever(stream):
    """Send until it fails: TCP takes the first octets, and learns from the answer."""
    while True:
        stream.send(b"Hello", 0, 5)


def send_rubbish(sock):
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.sendall(b"this is no TLS record")


def receive_all(stream, size):
    """Receive so many octets; on a slow machine the records come apart."""
    octets = b""
    while len(octets) < size:
        octets += receive(stream)
    return octets


@pytest.mark.parametrize("pair", [gevent.socket.socketpair, make_tcp_pair], ids=["Unix", "TCP"])
class TestIsEnded:
    def test_octets_are_not_taken(self, pair):
        ours, peer = pair()
        with ours, peer:
            assert not is_ended(ours)
            peer.sendall(b"last")
            gevent.socket.wait_read(ours.fileno())
            assert not is_ended(ours)
            peer.shutdown(socket.SHUT_WR)
            # What was sent hides the end.
            assert not is_ended(ours)
            assert ours.recv(10) == b"last"
            assert is_ended(ours)
            assert is_ended(ours)
            assert ours.recv(10) == b""

    def test_a_broken_connection(self, pair):
        ours, peer = pair()
        with ours:
            peer.setsockopt(*RESET_ON_CLOSE)
            peer.close()
            gevent.socket.wait_read(ours.fileno())
            assert is_ended(ours)

    def test_a_closed_socket(self, pair):
        ours, peer = pair()
        peer.close()
        ours.close()
        assert is_ended(ours)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_plain_stream_that_is_dropped_leaves_no_descriptor():
    ours, peer = gevent.socket.socketpair()
    with peer:
        stream = detach(ours)
        fd = stream.fd
        os.fstat(fd)
        del stream
        gc.collect()
        assert peer.recv(1) == b""
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)


def test_a_closed_plain_stream_that_is_dropped_leaves_its_number_to_others():
    ours, peer = gevent.socket.socketpair()
    with peer:
        stream = detach(ours)
        fd = stream.fd
        stream.close()
        other = os.open(os.devnull, os.O_RDONLY)
        os.dup2(other, fd)
        del stream
        gc.collect()
        os.fstat(fd)
        for number in {other, fd}:
            os.close(number)


def test_the_base_moves_nothing():
    ours, peer = socket.socketpair()
    stream = Stream(ours, ours.fileno())
    for call in (lambda: stream.receive_into(bytearray(10), 0), lambda: stream.send(b"a", 0, 1)):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            call()
    stream.close()
    peer.close()


def test_monotonic():
    before = time.monotonic()
    now = monotonic()
    assert before <= now <= time.monotonic()


@pytest.mark.skipif(sys.platform != "linux", reason="the option has another name elsewhere")
@pytest.mark.parametrize(("seconds", "idle"), [(7.0, 7), (20.4, 20), (0.2, 1)])
def test_keepalive_idle(seconds, idle):
    with socket.socket() as sock:
        set_options(sock, no_delay=False, keepalive_idle=seconds)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle


def test_options_of_a_socket_that_has_none():
    left, right = socket.socketpair()
    with left, right:
        # No error: a Unix socket has neither Nagle's algorithm nor probes.
        set_options(left, no_delay=True, keepalive_idle=1.0)

"""Octets in and out of one connected socket, never waiting.

A `Stream` owns the descriptor once pywsgi or the client let it go. Where the package is compiled, a
plain socket is read and written by system calls without a Python object between; TLS goes through
gevent's ``SSLSocket``. This is the only module that calls ``recv``, ``send`` or ``close``.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

# Not from ``ssl``: gevent cannot patch that module well once somebody imported it.
from _ssl import SSLWantReadError, SSLWantWriteError
from typing import Any

from gevent.socket import socket as GeventSocket  # noqa: N812

try:
    import cython
except ImportError:
    from geventws import _cython as cython

from geventws.masking import count_octets, is_octets

__all__ = [
    "END",
    "WAIT_READ",
    "WAIT_WRITE",
    "PlainStream",
    "Stream",
    "TLSStream",
    "detach",
    "is_ended",
    "is_tls",
    "monotonic",
    "set_options",
]

#: `Stream.receive_into`: the peer has ended its side.
END = 0
#: Nothing could be moved: try again when the descriptor is readable.
WAIT_READ = -1
#: Nothing could be moved: try again when the descriptor is writable.
WAIT_WRITE = -2


def monotonic() -> float:
    """Return the monotonic clock in seconds; in the compiled package no object is looked up for it."""
    if cython.compiled:
        if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
            return geventws_monotonic()  # type: ignore[name-defined,no-any-return]  # noqa: F821
    return time.monotonic()


class Stream:
    """Be what the two kinds of stream have in common."""

    __slots__ = ("_sock", "fd")

    def __init__(self, sock: Any, fd: int) -> None:
        self._sock = sock
        self.fd = fd

    def receive_into(self, buffer: bytearray, start: int) -> int:
        """Move what is there into ``buffer[start:]``.

        Returns:
            The number of octets, `END`, `WAIT_READ` or `WAIT_WRITE`.

        Raises:
            OSError: The connection is broken.
        """
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def send(self, octets: bytes, start: int, stop: int) -> int:
        """Move ``octets[start:stop]``, or a first part of it, to the kernel.

        Returns:
            The number of octets, `WAIT_READ` or `WAIT_WRITE`; then call again with the same ``start`` and ``stop``.

        Raises:
            OSError: The connection is broken.
        """
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def send_frames(self, opcode: int, message: str | bytes, threshold: int) -> int:
        """Move a message to the kernel from where it lies, as unmasked frames of at most ``threshold`` octets (5.4).

        Returns:
            How many octets of the serialised frames were moved, 0 where that cannot be done.

        Raises:
            OSError: The connection is broken.
        """
        return 0

    def has_pending(self) -> bool:
        """Tell whether octets wait above the kernel, where no watcher sees them (TLS)."""
        return False

    def must_retry(self) -> bool:
        """Tell whether a `send` that moved nothing must be repeated with the same octets (TLS)."""
        return False

    def shut_write(self) -> None:
        """End our side: the peer reads what was sent, and then the end."""
        try:
            self._sock.shutdown(_socket.SHUT_WR)
        except OSError:  # The peer was quicker.
            return

    def close(self) -> None:
        """Close the descriptor; every watcher of it must be closed before."""
        self.fd = -1
        try:
            self._sock.close()
        except OSError:  # ECONNRESET from the close of a broken connection is no news.
            return


class PlainStream(Stream):
    """Move octets of a TCP or Unix socket; where there are system calls, there need be no socket object."""

    __slots__ = ()

    def __cinit__(self) -> None:
        """Own no descriptor so far: number 0 is one."""
        if cython.compiled:
            self.fd = -1

    def __dealloc__(self) -> None:
        """Do what a socket object does in the plain build: leave no descriptor behind."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                if self._sock is None and self.fd >= 0:
                    geventws_close(self.fd)  # type: ignore[name-defined]  # noqa: F821

    def receive_into(self, buffer: bytearray, start: int) -> int:
        """See `Stream.receive_into`."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                moved = geventws_recv(  # type: ignore[name-defined]  # noqa: F821
                    self.fd,
                    PyByteArray_AS_STRING(buffer) + start,  # type: ignore[name-defined]  # noqa: F821
                    len(buffer) - start,
                )
                if moved >= 0:
                    return moved  # type: ignore[no-any-return]
                if moved == -errno_again or moved == -errno_would_block:  # type: ignore[name-defined]  # noqa: F821
                    return WAIT_READ
                raise _make_os_error(-moved)
        try:
            with memoryview(buffer) as view:
                return self._sock.recv_into(view[start:])  # type: ignore[no-any-return]
        except BlockingIOError:
            return WAIT_READ

    def send(self, octets: bytes, start: int, stop: int) -> int:
        """See `Stream.send`."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                moved = geventws_send(  # type: ignore[name-defined]  # noqa: F821
                    self.fd,
                    PyBytes_AS_STRING(octets) + start,  # type: ignore[name-defined]  # noqa: F821
                    stop - start,
                )
                if moved >= 0:
                    return moved  # type: ignore[no-any-return]
                if moved == -errno_again or moved == -errno_would_block:  # type: ignore[name-defined]  # noqa: F821
                    return WAIT_WRITE
                raise _make_os_error(-moved)
        try:
            if not start and stop == len(octets):
                return self._sock.send(octets)  # type: ignore[no-any-return]
            with memoryview(octets) as view:
                return self._sock.send(view[start:stop])  # type: ignore[no-any-return]
        except BlockingIOError:
            return WAIT_WRITE

    def send_frames(self, opcode: int, message: str | bytes, threshold: int) -> int:
        """See `Stream.send_frames`."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                if not is_octets(message):
                    return 0
                moved = geventws_send_frames(  # type: ignore[name-defined]  # noqa: F821
                    self.fd,
                    opcode,
                    address(message),  # type: ignore[name-defined]  # noqa: F821
                    count_octets(message),
                    threshold,
                )
                if moved >= 0:
                    return moved  # type: ignore[no-any-return]
                if moved != -errno_again and moved != -errno_would_block:  # type: ignore[name-defined]  # noqa: F821
                    raise _make_os_error(-moved)
        return 0

    def shut_write(self) -> None:
        """See `Stream.shut_write`."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                geventws_shut_write(self.fd)  # type: ignore[name-defined]  # noqa: F821
                return
        super().shut_write()

    def close(self) -> None:
        """See `Stream.close`."""
        if cython.compiled:
            if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
                if self._sock is None:
                    if self.fd >= 0:
                        geventws_close(self.fd)  # type: ignore[name-defined]  # noqa: F821
                    self.fd = -1
                    return
        super().close()


class TLSStream(Stream):
    """Move octets of a ``gevent.ssl.SSLSocket``."""

    __slots__ = ("_keep",)

    def __init__(self, sock: GeventSocket) -> None:
        # One more reference on the socket's file count: pywsgi's own close then only marks it.
        self._keep = sock.makefile("rb", 0)
        sock.settimeout(0.0)
        super().__init__(sock, sock.fileno())

    def receive_into(self, buffer: bytearray, start: int) -> int:
        """See `Stream.receive_into`; takes record after record until none is left or the buffer is full."""
        filled = start
        with memoryview(buffer) as view:
            while filled < len(buffer):
                try:
                    moved = self._sock.recv_into(view[filled:])
                except (SSLWantReadError, BlockingIOError):
                    # The latter once our side is shut: the socket is a plain one then.
                    return filled - start or WAIT_READ
                except SSLWantWriteError:
                    return filled - start or WAIT_WRITE
                except OSError:
                    # What came before the connection broke still counts; the next call meets the break.
                    if filled > start:
                        return filled - start
                    raise
                if not moved:
                    return filled - start or END
                filled += moved
        return filled - start

    def send(self, octets: bytes, start: int, stop: int) -> int:
        """See `Stream.send`."""
        try:
            with memoryview(octets) as view:
                return self._sock._sslobj.write(view[start:stop])  # type: ignore[no-any-return]
        except SSLWantReadError:
            return WAIT_READ
        except SSLWantWriteError:
            return WAIT_WRITE

    def has_pending(self) -> bool:
        """See `Stream.has_pending`."""
        return bool(self._sock.pending())

    def must_retry(self) -> bool:
        """See `Stream.must_retry`."""
        return True

    def shut_write(self) -> None:
        """See `Stream.shut_write`; what is received from now on is not decrypted, and only good for discarding."""
        self._notify_close()
        super().shut_write()

    def _notify_close(self) -> None:
        """Send close_notify (RFC 8446, 6.1), without waiting for the peer's."""
        try:
            if self._sock._sslobj is not None:
                self._sock._sslobj.shutdown()
        except OSError:  # The peer's is not there yet, or the peer is gone.
            return

    def close(self) -> None:
        """See `Stream.close`."""
        self._notify_close()
        self.fd = -1
        try:
            self._keep.close()
            self._sock.close()
        except OSError:  # As above.
            return


def _make_os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def detach(sock: GeventSocket) -> Stream:
    """Take a connected gevent socket away from whoever holds it; its own ``close`` then does nothing.

    Args:
        sock: A ``gevent.socket.socket`` or ``gevent.ssl.SSLSocket`` that nobody waits on.
    """
    if is_tls(sock):
        return TLSStream(sock)
    family, kind, proto = sock.family, sock.type, sock.proto
    fd = sock.detach()
    # gevent made the descriptor non-blocking.
    if cython.compiled:
        if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
            return PlainStream(None, fd)
    bare = _socket.socket(family, kind, proto, fileno=fd)
    if bare.gettimeout() is not None:
        # ``socket.setdefaulttimeout`` was called, and a socket with a time-out waits.
        bare.settimeout(0.0)
    return PlainStream(bare, fd)


def is_tls(sock: Any) -> bool:
    """Tell whether a gevent socket is a TLS one."""
    # The plain one looks far for an attribute that it lacks.
    return type(sock) is not GeventSocket and hasattr(sock, "do_handshake")


def is_ended(sock: GeventSocket) -> bool:
    """Tell whether the peer of a plain socket has ended its side, or the connection is broken; takes nothing."""
    if cython.compiled:
        if GEVENTWS_HAS_SYSCALLS:  # type: ignore[name-defined]  # noqa: F821
            return bool(geventws_is_ended(sock.fileno()))  # type: ignore[name-defined]  # noqa: F821
    try:
        return not sock._sock.recv(1, _socket.MSG_PEEK)  # type: ignore[attr-defined]
    except BlockingIOError:
        return False
    except OSError:
        return True


def set_options(sock: Any, *, no_delay: bool, keepalive_idle: float | None) -> None:
    """Set the options of a TCP socket; a Unix socket has none of them, and a broken one takes none.

    Args:
        sock: The socket.
        no_delay: Whether small segments leave at once (seed: disableNagleAlgorithm).
        keepalive_idle: Seconds of silence after which TCP probes the peer, where the system has a choice
            (seed: useNativeKeepalive); None for no probes.
    """
    try:
        if no_delay:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        if keepalive_idle is None:
            return
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        option = getattr(_socket, "TCP_KEEPIDLE", None) or getattr(_socket, "TCP_KEEPALIVE", None)
        if option is not None:
            sock.setsockopt(_socket.IPPROTO_TCP, option, max(1, round(keepalive_idle)))
    except OSError:
        return

"""What goes on at a server beside the load that is measured: connections that do nothing, and bad neighbours."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence

_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# One final binary frame of 4 KiB, masked with zeros.
_FRAME = b"\x82\xfe" + struct.pack("!H", 4096) + bytes(4 + 4096)
#: What the load generator does as a neighbour.
_LOADS = {
    "flood": "--connections 1 --in-flight 256 --size 32 --text",
    "1m": "--connections 1 --in-flight 1 --size 1048576 --binary",
}


def open_connection(port: int) -> socket.socket:
    """Do an opening handshake, and return the socket."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.sendall(_UPGRADE)
    head = b""
    while b"\r\n\r\n" not in head:
        octets = sock.recv(4096)
        head += octets
        if not octets or not head.startswith(b"HTTP/1.1 101 "[: len(head)]):
            sock.close()
            raise OSError(f"the upgrade of an idle connection was answered by {head!r}")
    return sock


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """Hold connections that do nothing.

    Nobody answers the server's pings, so this must end before it takes the silence for death.

    Raises:
        OSError: The server did not accept one, or has ended one meanwhile.
    """
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(open_connection(port)) for _ in range(count)]
        yield
        ended = sum(_is_ended(sock) for sock in socks)
        if ended:
            raise OSError(f"the server ended {ended} of {count} idle connections")


def _is_ended(sock: socket.socket) -> bool:
    """Tell whether the peer has closed; a Ping that waits to be read is no end."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


@contextlib.contextmanager
def neighbour(kind: str, port: int, load: Sequence[str]) -> Iterator[None]:
    """Let something else go on; ``load`` is the command line of a load generator that runs long enough."""
    if not kind:
        yield
    elif kind == "deaf":
        with _deaf_client(port):
            yield
    else:
        process = subprocess.Popen(
            [*load, *_LOADS[kind].split(), "127.0.0.1", str(port), "/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
            if process.poll() is not None:
                raise OSError(f"the load beside it ended early, with {process.returncode}")
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _deaf_client(port: int) -> Iterator[None]:
    """Send messages to be echoed for as long as the server takes them, and read nothing."""

    def flood() -> None:
        # The end of the socket ends it.
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(_FRAME)

    sock = open_connection(port)
    sock.settimeout(None)
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        sock.close()

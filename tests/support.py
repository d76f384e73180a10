"""What the tests over real sockets share: an http server on a free port, and a client that speaks in literal octets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import sys
from pathlib import Path

import gevent
from gevent import socket, ssl, subprocess
from gevent.event import AsyncResult
from gevent.pywsgi import WSGIServer
from gevent.queue import Queue

import geventws
from geventws import WebSocketServer
from geventws.frames import serialize_message
from geventws.sockets import WAIT_WRITE, Stream

EXAMPLES = Path(__file__).parent.parent / "examples"
#: A certificate for localhost and its key in one file, made for these tests alone.
CERTIFICATE = str(Path(__file__).with_name("certificate.pem"))
#: The key of RFC 6455, 1.3, and what answers it.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


class Log(list):
    """Be the log of an http server: a list of what was written."""

    write = list.append

    def flush(self):
        pass


def make_http(app=None, listener=("127.0.0.1", 0), **options):
    """Make an http server that is not started; its logs are lists."""
    return WSGIServer(listener, app, **{"log": Log(), "error_log": Log(), **options})


def make_upgrade(path="/", *headers, method="GET", version="HTTP/1.1", leave_out=()):
    """Return the octets of an upgrade request; ``headers`` are lines, and take the place of those of the same name."""
    lines = [
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    replaced = {name.lower() for name in leave_out} | {line.partition(":")[0].lower() for line in headers}
    kept = [line for line in lines if line.partition(":")[0].lower() not in replaced]
    return "\r\n".join([f"{method} {path} {version}", *kept, *headers, "", ""]).encode("latin-1")


def make_tls_context():
    """Make a server's TLS context; gevent's, for the standard library's would block the hub."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@contextlib.contextmanager
def serve(app=None, *, http=None, **options):
    """Run an http server with a `WebSocketServer` on it; ``http`` may be one that is not started yet."""
    http = make_http(app) if http is None else http
    server = WebSocketServer(http_server=http, **options)
    with running(http):
        try:
            yield http, server
        finally:
            server.unmount()
            for connection in server.connections:
                connection.drop(1001, skip_close_frame=True)


@contextlib.contextmanager
def running(*https):
    """Start http servers, and stop them in the end."""
    for http in https:
        http.start()
    try:
        yield https[0]
    finally:
        for http in https:
            http.stop(timeout=1)


def record(emitter, *names):
    """Return a queue that gets ``(name, *arguments)`` of every event from now on."""
    queue = Queue()
    for name in names:
        emitter.on(name, lambda *args, name=name: queue.put((name, *args)))
    return queue


class RawClient:
    """Send literal octets, and read exactly what is asked for.

    ``head`` is the head of the last answer that was read.
    """

    def __init__(self, http, *, tls=False):
        if isinstance(http.address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(http.address)
        else:
            self.sock = socket.create_connection(("127.0.0.1", http.server_port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(CERTIFICATE)
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.buffered = b""
        self.head = b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def send(self, octets):
        self.sock.sendall(octets)

    def read(self, count):
        """Return exactly ``count`` octets."""
        while len(self.buffered) < count:
            octets = self.sock.recv(65536)
            if not octets:
                raise EOFError(f"the server ended after {self.buffered!r}")
            self.buffered += octets
        octets, self.buffered = self.buffered[:count], self.buffered[count:]
        return octets

    def read_head(self):
        """Return an HTTP head, its blank line included."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        self.head = head
        return head

    def read_answer(self):
        """Return the status, the fields by lower-case name and the body, whose length is given, of an HTTP answer."""
        status_line, *lines = self.read_head().decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(status_line.split()[1]), fields, self.read(int(fields.get("content-length", 0)))

    def read_frame(self):
        """Return the first octet and the payload of an unmasked frame."""
        first, length = self.read(2)
        if length > 125:
            length = int.from_bytes(self.read(2 if length == 126 else 8), "big")
        return first, self.read(length)

    def read_end(self):
        """Return what still comes until the server ends; a reset counts as an end."""
        with contextlib.suppress(ConnectionResetError):
            while octets := self.sock.recv(65536):
                self.buffered += octets
        octets, self.buffered = self.buffered, b""
        return octets

    def shut_write(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """End the connection by a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self.sock.close()


def open_client(http, path="/", *headers, early=b"", tls=False):
    """Return a `RawClient` behind its opening handshake; the 101 is its ``head``."""
    client = RawClient(http, tls=tls)
    try:
        client.send(make_upgrade(path, *headers) + early)
        head = client.read_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
    except BaseException:
        client.close()
        raise
    return client


def mask(payload, key=b"\x37\xfa\x21\x3d"):
    """Mask a payload with the key of RFC 6455, 5.7."""
    return bytes(octet ^ key[index % 4] for index, octet in enumerate(payload))


def make_frame(payload, first=0x81, key=b"\x37\xfa\x21\x3d"):
    """Return a client's frame: by default a text message."""
    payload = payload.encode() if isinstance(payload, str) else payload
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([first]) + length + key + mask(payload, key)


def wait_until(condition):
    """Let the hub run until a condition holds that no event tells of; the test's time limit ends the wait."""
    while not condition():
        gevent.sleep(0.001)


def run_child(source, *arguments, timeout=60):
    """Run Python source in a child process with this package on its path; returns its standard output."""
    child = start_child(source, *arguments)
    try:
        output, errors = child.communicate(timeout=timeout)
    except BaseException:
        child.kill()
        child.wait()
        raise
    assert child.returncode == 0, f"exit status {child.returncode}\n{output}\n{errors}"
    return output


def start_child(source, *arguments):
    """Start a child process with this package, and these helpers, on its path."""
    paths = [str(Path(geventws.__file__).parent.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        env=environment,
        # Not the project's folder, which -c would put first: the package under test may be the installed one.
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Metered(Stream):
    """Hand the octets of another stream on, as if the kernel had room for so many of what is sent; None for any."""

    def __init__(self, stream, room):
        super().__init__(stream, stream.fd)
        self.stream = stream
        self.room = room

    def receive_into(self, buffer, start):
        return self.stream.receive_into(buffer, start)

    def send(self, octets, start, stop):
        if self.room is not None:
            if not self.room:
                return WAIT_WRITE
            stop = min(stop, start + self.room)
        moved = self.stream.send(octets, start, stop)
        if self.room is not None:
            self.room -= max(moved, 0)
        return moved

    def send_frames(self, opcode, message, threshold):
        payload = message.encode() if isinstance(message, str) else message
        octets = serialize_message(opcode, payload, threshold)
        return max(self.send(octets, 0, len(octets)), 0)

    def shut_write(self):
        self.stream.shut_write()


@contextlib.contextmanager
def paired(path="/", *headers, early=b"", tls=False, is_narrow=False, **options):
    """Yield a raw client and the connection that was accepted for it, without a listener so far.

    ``is_narrow`` keeps the buffers of the kernel small, so that output soon waits.
    """
    options_of_http = {"ssl_context": make_tls_context()} if tls else {}
    listener = make_narrow_listener() if is_narrow else ("127.0.0.1", 0)
    accepted = AsyncResult()
    with serve(http=make_http(listener=listener, **options_of_http), **options) as (http, server):
        server.on("request", lambda request: accepted.set(request.accept()))
        with open_client(http, path, *headers, early=early, tls=tls) as client:
            if is_narrow:
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    client.sock.setsockopt(socket.SOL_SOCKET, option, 65536)
            yield client, accepted.get()


def make_narrow_listener():
    """Return a listening socket whose connections have small buffers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def run_hub(turns=5):
    """Let the hub become idle so often: what has arrived is read and delivered then."""
    for _ in range(turns):
        # Not `sleep(0)`, which returns before the loop has looked at any socket.
        gevent.idle()


def in_thread(function, *args, **options):
    """Call what blocks; this thread's hub runs meanwhile, and with it the test's time limit."""
    return gevent.get_hub().threadpool.apply(function, args, options)


class Example:
    """Run a program of examples/, and know the addresses that it printed."""

    def __init__(self, name, *arguments):
        paths = [str(Path(geventws.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self.child = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), "--port", "0", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()

    def read_address(self):
        """Return the next address that it printed, without the last slash; comes when the program is ready."""
        line = self.child.stdout.readline()
        match = re.fullmatch(r"listening on (\w+://[\w.]+:\d+)/\n", line)
        assert match, line + self.child.stderr.read()
        return match[1]

    def stop(self, number=signal.SIGTERM):
        self.child.send_signal(number)

    def check_end(self):
        """Wait for the end, which must be a clean one."""
        _, errors = self.child.communicate()
        assert self.child.returncode == 0, errors
        assert "Traceback" not in errors

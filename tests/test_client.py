"""`connect`: what it asks for, what it refuses, how it fails, and that no failure leaves a socket behind."""

from __future__ import annotations

import contextlib
import re
import ssl as stdlib_ssl
import threading

import gevent
import pytest
from gevent import Timeout, socket, ssl
from gevent.event import AsyncResult, Event
from websockets.sync.server import serve as serve_websockets

import geventws
from geventws import (
    ClientConfig,
    ConfigurationError,
    ConnectError,
    ConnectionClosed,
    CookieError,
    HandshakeError,
    SubprotocolError,
    connect,
)
from geventws.client import MAX_FIELD_COUNT, MAX_HEAD_SIZE, _parse_url
from geventws.handshake import accept_key
from tests.support import CERTIFICATE, make_http, record, run_child, serve

HELLO = b"\x81\x05Hello"
SWITCH = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HEAD_OF_A_BAD_ANSWER = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)


class Peer:
    """Be one server's side of one connection, by hand; `head` is the request's when it was read."""

    def __init__(self, sock):
        self.sock = sock
        self.head = ""

    def read_request(self):
        octets = b""
        while not octets.endswith(b"\r\n\r\n"):
            octets += self.read(1)
        self.head = octets.decode("latin-1")

    def read(self, count):
        octets = b""
        while len(octets) < count:
            part = self.sock.recv(count - len(octets))
            assert part, "the client ended early"
            octets += part
        return octets

    def make_switch(self, *lines):
        key = re.search(r"Sec-WebSocket-Key: (.*)\r\n", self.head)[1]
        head = [SWITCH + f"Sec-WebSocket-Accept: {accept_key(key)}", *lines, "", ""]
        return "\r\n".join(head).encode("latin-1")

    def switch(self, *lines, behind=b""):
        self.read_request()
        self.sock.sendall(self.make_switch(*lines) + behind)

    def end(self):
        """See the client close its socket; a reset is an end, too, and octets in between do not matter."""
        with contextlib.suppress(ConnectionResetError):
            while self.sock.recv(65536):
                pass


def listen(host="127.0.0.1"):
    """Return a listening socket; gevent's `create_server` would make one of the standard library."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.bind((host, 0))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def peer(play, host="127.0.0.1"):
    """Serve one connection with a function that takes a `Peer`; gives the port, and raises what the function raised."""
    with listen(host) as listener:

        def serve_one():
            sock, _ = listener.accept()
            with sock:
                play(Peer(sock))

        greenlet = gevent.spawn(serve_one)
        try:
            yield listener.getsockname()[1]
            greenlet.get()
        finally:
            greenlet.kill()


def end(connection):
    connection.drop(1001, skip_close_frame=True)


@contextlib.contextmanager
def serve_tls(**options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    http = make_http(ssl_context=context)
    with serve(http=http, **options) as (http, server):
        server.on("request", lambda request: request.accept().on("message", request.connection.send))
        yield http.server_port


def make_context(cafile=CERTIFICATE):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile)
    return context


# What is asked for


def test_the_request_holds_what_was_given():
    requests = []

    def play(peer):
        peer.switch("Sec-WebSocket-Protocol: superchat")
        requests.append(peer.head)
        peer.end()

    with peer(play) as port:
        connection = connect(
            f"ws://127.0.0.1:{port}/a%20b?x=1&y",
            subprotocols=["chat", "superchat"],
            origin="https://example.com",
            cookies={"id": "4711", "__Host-theme": "dark"},
            headers={"X-Forwarded-For": "192.0.2.1"},
        )
        assert connection.subprotocol == "superchat"
        assert connection.request_path == "/a%20b?x=1&y"
        assert connection.remote_address == "127.0.0.1"
        assert connection.remote_addresses == ["127.0.0.1"]
        assert connection.connected
        end(connection)
    key = re.search(r"Sec-WebSocket-Key: ([A-Za-z0-9+/]{22}==)\r\n", requests[0])[1]
    assert requests[0] == (
        "GET /a%20b?x=1&y HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: chat, superchat\r\n"
        "Origin: https://example.com\r\n"
        "X-Forwarded-For: 192.0.2.1\r\n"
        "Cookie: id=4711; __Host-theme=dark\r\n"
        "\r\n"
    )


def test_the_package_has_it():
    assert geventws.connect is connect


def test_a_server_of_ours_sees_the_request():
    with serve() as (http, server):
        requests = record(server, "request")
        server.on("request", lambda request: request.accept("chat"))
        connection = connect(
            f"ws://user:pass@localhost:{http.server_port}/?a=b",
            subprotocols=["chat"],
            cookies=[("one", "1"), ("two", "2")],
            headers=[("X-One", "1")],
        )
        _, request = requests.get()
        assert request.environ["HTTP_AUTHORIZATION"] == "Basic dXNlcjpwYXNz"
        assert request.environ["HTTP_X_ONE"] == "1"
        assert request.cookies == [("one", "1"), ("two", "2")]
        assert request.origin is None
        assert connection.subprotocol == "chat"
        connection.close()
        assert connection.wait_closed(5)


def test_a_host_header_takes_the_place_of_the_url():
    def play(peer):
        peer.switch()
        assert "\r\nHost: example.com\r\n" in peer.head
        peer.end()

    with peer(play) as port:
        end(connect(f"ws://127.0.0.1:{port}", headers={"Host": "example.com"}))


def test_an_address_of_ipv6_stands_in_brackets():
    def play(peer):
        peer.switch()
        assert f"\r\nHost: [::1]:{port}\r\n" in peer.head
        peer.end()

    try:
        listen("::1").close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with peer(play, "::1") as port:
        connection = connect(f"ws://[::1]:{port}/")
        assert connection.remote_address == "::1"
        end(connection)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("ws://example.com", ("ws", "example.com", 80, "example.com", "/", None), id="bare"),
        pytest.param("WSS://Example.COM/", ("wss", "example.com", 443, "example.com", "/", None), id="case"),
        pytest.param("ws://h:443/", ("ws", "h", 443, "h:443", "/", None), id="port of the other scheme"),
        pytest.param("wss://h:443/", ("wss", "h", 443, "h", "/", None), id="default port"),
        pytest.param("ws://h:/", ("ws", "h", 80, "h", "/", None), id="empty port"),
        pytest.param("ws://h?a=/&b", ("ws", "h", 80, "h", "/?a=/&b", None), id="query without a path"),
        pytest.param("ws://h/ä?ö", ("ws", "h", 80, "h", "/%C3%A4?%C3%B6", None), id="path outside ASCII"),
        pytest.param("ws://h/%2f%zz", ("ws", "h", 80, "h", "/%2f%zz", None), id="escapes stay"),
        pytest.param(
            "ws://bücher.example/", ("ws", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/", None), id="idna"
        ),
        pytest.param("ws://[::1]:8/", ("ws", "::1", 8, "[::1]:8", "/", None), id="ipv6"),
        pytest.param("ws://[fe80::1%25eth0]/", ("ws", "fe80::1%eth0", 80, "[fe80::1]", "/", None), id="ipv6 with zone"),
        pytest.param("ws://u@h/", ("ws", "h", 80, "h", "/", "Basic dTo="), id="user alone"),
        pytest.param("ws://@h/", ("ws", "h", 80, "h", "/", None), id="empty user"),
        pytest.param("ws://u%40x:p:%C3%A4@h/", ("ws", "h", 80, "h", "/", "Basic dUB4OnA6w6Q="), id="user and password"),
    ],
)
def test_a_url_is_taken_apart(url, expected):
    assert _parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        pytest.param("http://h/", "ws:// or wss://", id="scheme"),
        pytest.param("//h/", "ws:// or wss://", id="no scheme"),
        pytest.param("", "ws:// or wss://", id="empty"),
        pytest.param("ws:///path", "no host", id="no host"),
        pytest.param("ws:path", "no host", id="no authority"),
        pytest.param("ws://:80/", "no host", id="a port alone"),
        pytest.param("ws://h/#x", "fragment", id="fragment"),
        pytest.param("ws://h/#", "fragment", id="empty fragment"),
        pytest.param("ws://h/a b", "' ' must be percent-encoded", id="space"),
        pytest.param(" ws://h/", "' ' must be percent-encoded", id="leading space"),
        pytest.param("ws://h/\r\nX: y", r"'\\r' must be percent-encoded", id="line break"),
        pytest.param("ws://h\\@other/", "must be percent-encoded", id="backslash"),
        pytest.param("ws://h:65536/", "port is malformed", id="port too large"),
        pytest.param("ws://h:x/", "port is malformed", id="port no number"),
        pytest.param("ws://h:0/", "from 1 to 65535", id="port 0"),
        pytest.param("ws://[::1/", "malformed", id="bracket left open"),
        pytest.param("ws://[v1.x]/", "malformed|IPv6", id="no ipv6 address"),
        pytest.param("ws://a..b/", "no host name", id="empty label"),
        pytest.param(f"ws://{'a' * 64}/", "no host name", id="long label"),
        pytest.param("ws://a%2fb/", "no host name", id="escape in the host"),
        pytest.param("ws://-a/", "no host name", id="name that looks like an option"),
        pytest.param("ws://u%3Av:p@h/", "colon", id="colon in the user name"),
    ],
)
def test_a_bad_url_is_refused(url, rule):
    with pytest.raises(ValueError, match=rule):
        connect(url)


def test_no_message_shows_the_password():
    for url in ("ws://u:secret@h:x/", "ws://u:secret@h/#", "ws://u:secret@a..b/", "ws://u:secret@127.0.0.1:1/"):
        with pytest.raises((ValueError, ConnectError)) as caught:
            connect(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "rule"),
    [
        pytest.param({"url": b"ws://h/"}, TypeError, "url must be a str", id="url of another type"),
        pytest.param({"subprotocols": "chat"}, TypeError, "not one str", id="one str as subprotocols"),
        pytest.param({"subprotocols": ["a b"]}, SubprotocolError, "token", id="subprotocol no token"),
        pytest.param({"subprotocols": ["a", "a"]}, SubprotocolError, "twice", id="subprotocol twice"),
        pytest.param({"origin": "a\r\nb"}, ValueError, "Origin", id="origin with a line break"),
        pytest.param({"cookies": {"a": "b;c"}}, CookieError, "';'", id="cookie value"),
        pytest.param({"cookies": {"a b": "c"}}, CookieError, "token", id="cookie name"),
        pytest.param(
            {"cookies": {"a": "b"}, "headers": {"cookie": "c=d"}}, ValueError, "Cookie is given", id="two Cookie fields"
        ),
        pytest.param(
            {"url": "ws://u@h", "headers": {"authorization": "x"}}, ValueError, "Authorization is", id="two users"
        ),
        pytest.param({"headers": {"Upgrade": "x"}}, ValueError, "Upgrade", id="header of the handshake"),
        pytest.param({"headers": [("X", "a\nb")]}, ValueError, "control", id="header with a line break"),
        pytest.param({"headers": [("X", 1)]}, TypeError, "must be str", id="header of another type"),
        pytest.param({"connect_timeout": 0}, ConfigurationError, "connect_timeout", id="option out of range"),
        pytest.param({"path": "/"}, ConfigurationError, "path", id="option of the server"),
        pytest.param({"ssl_context": make_context()}, ValueError, "wss://", id="TLS context without TLS"),
        pytest.param({"server_hostname": "h"}, ValueError, "wss://", id="TLS name without TLS"),
        pytest.param({"url": "wss://h", "server_hostname": ""}, ValueError, "server_hostname", id="empty TLS name"),
        pytest.param(
            {"url": "wss://h", "ssl_context": stdlib_ssl.create_default_context()},
            ValueError,
            r"gevent\.ssl\.SSLContext",
            id="TLS context of the standard library",
        ),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_opened(arguments, error, rule):
    with pytest.raises(error, match=rule):
        connect(**{"url": "ws://host.invalid/", **arguments})


# The answer


def test_octets_behind_the_answer_are_frames():
    def play(peer):
        peer.switch(behind=HELLO + b"\x82\x01\x00\x81\x03")
        peer.sock.sendall(b"abc")
        peer.end()

    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        assert [connection.receive() for _ in range(3)] == ["Hello", b"\x00", "abc"]
        end(connection)


def test_an_answer_may_come_octet_by_octet():
    def play(peer):
        peer.read_request()
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in peer.make_switch() + HELLO:
            peer.sock.sendall(bytes([octet]))
            gevent.sleep(0)
        peer.end()

    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        assert connection.receive() == "Hello"
        end(connection)


def test_messages_wait_for_the_first_listener():
    def play(peer):
        peer.switch(behind=HELLO)
        told.wait()
        peer.sock.sendall(b"\x88\x02\x03\xe8")
        # The answer to the Close, masked.
        assert peer.read(8)[:2] == b"\x88\x82"

    told = Event()
    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        events = record(connection, "message", "close")
        assert events.get() == ("message", "Hello")
        told.set()
        assert events.get() == ("close", 1000, "")
        assert connection.closed_by == "peer"


@pytest.mark.parametrize(
    "interim",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="one"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 \r\n\r\n", id="two"),
    ],
)
def test_interim_answers_are_passed_over(interim):
    def play(peer):
        peer.read_request()
        peer.sock.sendall(interim + peer.make_switch() + HELLO)
        peer.end()

    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        assert connection.receive() == "Hello"
        end(connection)


def test_a_refusal_has_status_and_headers():
    with serve() as (http, server):
        server.on("request", lambda request: request.reject(403, "not you", [("X-Why", "a"), ("X-Why", "b")]))
        with pytest.raises(HandshakeError, match="403 'Forbidden'") as caught:
            connect(f"ws://127.0.0.1:{http.server_port}/")
    assert caught.value.status == 403
    assert [value for name, value in caught.value.headers if name == "x-why"] == ["a", "b"]
    assert ("x-websocket-reject-reason", "not you") in caught.value.headers


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        pytest.param(f"HTTP/1.1 101 \r\n{HEAD_OF_A_BAD_ANSWER}\r\n", "does not match the key", id="accept"),
        pytest.param("HTTP/1.1 101 \r\nConnection: Upgrade\r\n\r\n", "Upgrade header", id="upgrade"),
        pytest.param("HTTP/1.1 101 \r\nBad Name: x\r\n\r\n", "malformed header field", id="malformed field"),
        pytest.param("HTTP/1.1 abc\r\n\r\n", "status line", id="status line"),
        pytest.param("HTTP/2 101\r\n\r\n", "not HTTP/1.1", id="HTTP/2"),
        pytest.param("SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1.1", id="another protocol, which goes on to wait"),
        pytest.param("H", "ended the connection", id="end within the first octets"),
    ],
)
def test_a_wrong_answer_is_refused_and_the_socket_closed(answer, rule):
    def play(peer):
        peer.read_request()
        peer.sock.sendall(answer.encode())
        if len(answer) > 1:
            peer.end()

    with peer(play) as port, pytest.raises((HandshakeError, ConnectError), match=rule):
        connect(f"ws://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        pytest.param(["Sec-WebSocket-Protocol: other"], "subprotocol that was not offered", id="subprotocol"),
        pytest.param(
            ["Sec-WebSocket-Extensions: permessage-deflate"], "extension that was not offered", id="extension"
        ),
    ],
)
def test_an_answer_with_what_was_not_offered_is_refused(lines, rule):
    def play(peer):
        peer.switch(*lines)
        peer.end()

    with peer(play) as port, pytest.raises(HandshakeError, match=rule):
        connect(f"ws://127.0.0.1:{port}/", subprotocols=["chat"])


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        pytest.param("HTTP/1.1 101 \r\nX: " + "a" * MAX_HEAD_SIZE, f"more than {MAX_HEAD_SIZE} octets", id="endless"),
        pytest.param(
            "HTTP/1.1 101 \r\nX: " + "a" * (MAX_HEAD_SIZE - 20) + "\r\n\r\n", "more than", id="a little too long"
        ),
        pytest.param("HTTP/1.1 100 \r\n\r\n" * 4000, "more than", id="interim answers without end"),
        pytest.param(
            "HTTP/1.1 200 \r\n" + "X: y\r\n" * (MAX_FIELD_COUNT + 1) + "\r\n", "header fields", id="many fields"
        ),
    ],
)
def test_too_large_an_answer_is_refused(answer, rule):
    def play(peer):
        peer.read_request()
        with contextlib.suppress(OSError):
            peer.sock.sendall(answer.encode())
        peer.end()

    with peer(play) as port, pytest.raises(ConnectError, match=rule):
        connect(f"ws://127.0.0.1:{port}/")


def test_the_largest_answer_is_taken():
    def play(peer):
        peer.read_request()
        head = peer.make_switch()[:-2] + b"X: y\r\n" * (MAX_FIELD_COUNT - 4) + b"X: "
        peer.sock.sendall(head + b"a" * (MAX_HEAD_SIZE - len(head) - 4) + b"\r\n\r\n" + HELLO)
        peer.end()

    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        assert connection.receive() == "Hello"
        end(connection)


# Failures


def test_a_refused_connection_has_the_systems_error_as_its_cause():
    with listen() as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError, match=rf"^ws://127.0.0.1:{port}: ") as caught:
        connect(f"ws://127.0.0.1:{port}/")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_an_unknown_name():
    with pytest.raises(ConnectError, match=r"^ws://name\.invalid: "):
        connect("ws://name.invalid/", connect_timeout=5)


def test_a_server_that_ends_without_an_answer():
    with peer(Peer.read_request) as port, pytest.raises(ConnectError, match="ended the connection"):
        connect(f"ws://127.0.0.1:{port}/")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_server_that_never_answers(scheme):
    with peer(Peer.end) as port, pytest.raises(ConnectError, match=r"no connection within 0.2 s"):
        connect(f"{scheme}://127.0.0.1:{port}/", connect_timeout=0.2)


def test_one_deadline_covers_an_answer_that_drips():
    def play(peer):
        peer.read_request()
        with contextlib.suppress(OSError):
            peer.sock.sendall(b"HTTP/1.1 101 \r\nX: ")
            while True:
                peer.sock.sendall(b"a")
                gevent.sleep(0.01)

    with peer(play) as port, pytest.raises(ConnectError, match=r"within 0.2 s"):
        connect(f"ws://127.0.0.1:{port}/", config=ClientConfig(connect_timeout=0.2))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_time_out_of_the_callers_passes_through(scheme):
    def play(peer):
        peer.read(1)
        gevent.kill(caller, timeout)
        peer.end()

    caller = gevent.getcurrent()
    timeout = Timeout()
    with peer(play) as port:
        with pytest.raises(Timeout) as caught:
            connect(f"{scheme}://127.0.0.1:{port}/", connect_timeout=None)
        assert caught.value is timeout


def test_a_killed_greenlet_closes_the_socket():
    def play(peer):
        peer.read_request()
        asked.set()
        peer.end()

    asked = Event()
    with peer(play) as port:
        greenlet = gevent.spawn(connect, f"ws://127.0.0.1:{port}/")
        asked.wait()
        greenlet.kill()
        assert isinstance(greenlet.value, gevent.GreenletExit)


# Options, and the connection


def test_the_options_hold_for_the_connection():
    def play(peer):
        peer.switch(behind=b"\x81\x06Hello!")
        # Close 1009, masked.
        assert peer.read(2)[0] == 0x88
        peer.end()

    with peer(play) as port:
        connection = connect(
            f"ws://127.0.0.1:{port}/", config={"max_received_frame_size": 1}, max_received_message_size=5
        )
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == 1009


def test_the_options_of_tcp():
    with serve(auto_accept_connections=True) as (http, _):
        url = f"ws://127.0.0.1:{http.server_port}/"
        connection = connect(url, disable_nagle_algorithm=False, use_native_keepalive=True)
        connection.close()
        assert connection.wait_closed(5)


def test_frames_are_masked():
    def play(peer):
        peer.switch()
        first, second, *key = peer.read(6)
        assert (first, second) == (0x81, 0x85)
        assert bytes(octet ^ key[index % 4] for index, octet in enumerate(peer.read(5))) == b"Hello"
        masks.append(bytes(key))
        assert peer.read(2) == b"\x81\x85"
        masks.append(peer.read(4))
        peer.end()

    masks = []
    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        connection.send("Hello")
        connection.send("Hello")
        gevent.sleep(0)
        end(connection)
    assert masks[0] != masks[1]


def test_a_masked_frame_of_the_server_fails_the_connection():
    def play(peer):
        peer.switch(behind=b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        peer.end()

    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        with pytest.raises(ConnectionClosed) as caught:
            connection.receive()
        assert caught.value.code == 1002


def test_the_client_waits_for_the_server_to_end_tcp():
    def play(peer):
        peer.switch()
        assert peer.read(8)[:2] == b"\x88\x82"
        peer.sock.sendall(b"\x88\x02\x03\xe8")
        closed.get()
        # RFC 6455, 7.1.1: the server ends the connection first.
        peer.sock.shutdown(socket.SHUT_WR)
        peer.end()

    closed = AsyncResult()
    with peer(play) as port:
        connection = connect(f"ws://127.0.0.1:{port}/")
        connection.close()
        assert connection.wait_closed(5)
        assert (connection.close_code, connection.closed_by) == (1000, "local")
        closed.set()


def test_a_library_of_others_as_the_server():
    def echo(connection):
        for message in connection:
            connection.send(message)

    with serve_websockets(echo, "127.0.0.1", 0, subprotocols=["chat"], compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            connection = connect(f"ws://127.0.0.1:{server.socket.getsockname()[1]}/", subprotocols=["chat"])
            for message in ("", "Grüße", b"\x00\xff", "a" * 100_000):
                connection.send(message)
                assert connection.receive(5) == message
            connection.close(1000, "enough")
            assert connection.wait_closed(5)
            assert (connection.subprotocol, connection.close_code) == ("chat", 1000)
        finally:
            # It waits for the client's end of TCP, which needs our hub.
            gevent.get_hub().threadpool.apply(server.shutdown)
            thread.join()


# TLS


def test_tls_with_a_context():
    with serve_tls() as port:
        connection = connect(f"wss://localhost:{port}/", ssl_context=make_context())
        connection.send("a" * 300_000)
        assert connection.receive(5) == "a" * 300_000
        connection.close()
        assert connection.wait_closed(5)
        assert connection.close_code == 1000


def test_tls_with_the_systems_certificates(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)
    with serve_tls() as port:
        connection = connect(f"wss://127.0.0.1:{port}/")
        connection.send("Hello")
        assert connection.receive(5) == "Hello"
        connection.close()
        assert connection.wait_closed(5)


def test_tls_for_another_name():
    with serve_tls() as port:
        connection = connect(f"wss://127.0.0.1:{port}/", ssl_context=make_context(), server_hostname="localhost")
        connection.close()
        assert connection.wait_closed(5)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        pytest.param({"ssl_context": make_context(), "server_hostname": "example.com"}, "Hostname mismatch", id="name"),
        pytest.param({}, "CERTIFICATE_VERIFY_FAILED", id="unknown issuer"),
    ],
)
def test_a_certificate_that_does_not_verify(arguments, rule):
    with serve_tls() as port, pytest.raises(ConnectError, match=rule) as caught:
        connect(f"wss://localhost:{port}/", **arguments)
    assert isinstance(caught.value.__cause__, stdlib_ssl.SSLError)


def test_tls_where_there_is_none():
    def play(peer):
        peer.read(1)
        peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.end()

    with peer(play) as port, pytest.raises(ConnectError, match="SSL"):
        connect(f"wss://127.0.0.1:{port}/", ssl_context=make_context())


def test_the_standard_librarys_context_is_gevents_where_it_is_patched():
    output = run_child(
        """
from gevent import monkey
monkey.patch_all()
import ssl, sys
from gevent.pywsgi import WSGIServer
from geventws import WebSocketServer, connect
http = WSGIServer(("127.0.0.1", 0), None, log=None, certfile=sys.argv[1], keyfile=sys.argv[1])
server = WebSocketServer(http_server=http, auto_accept_connections=True)
server.on("connect", lambda connection: connection.on("message", connection.send))
http.start()
connection = connect(f"wss://localhost:{http.server_port}/", ssl_context=ssl.create_default_context(cafile=sys.argv[1]))
connection.send("patched")
print(connection.receive(5))
connection.close()
connection.wait_closed(5)
http.stop()
""",
        CERTIFICATE,
    )
    assert output == "patched\n"

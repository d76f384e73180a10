"""What the handler does with the octets of an upgrade request, and of the plain HTTP around it."""

from __future__ import annotations

import os
import socket as stdlib_socket

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIHandler

from geventws import ServerConfig, WebSocketHandler, WebSocketServer
from geventws.host import get_host
from tests.support import (
    RawClient,
    make_frame,
    make_http,
    make_tls_context,
    make_upgrade,
    open_client,
    record,
    running,
    serve,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
#: 8192 octets is what the buffer of a request holds, the head included.
BURST = b"".join(make_frame(f"{index:0100}") for index in range(200))


def app(environ, start_response):
    body = b"the application"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def echo(request):
    connection = request.accept()
    connection.on("message", connection.send)


@pytest.fixture(params=[pytest.param(False, id="plain"), pytest.param(True, id="TLS")])
def tls(request):
    return request.param


@pytest.fixture
def http(tls):
    return make_http(app, **({"ssl_context": make_tls_context()} if tls else {}))


# Octets that come with the handshake


def test_frames_in_the_segment_of_the_handshake(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with RawClient(http, tls=tls) as client:
            client.send(make_upgrade() + make_frame("one") + make_frame("two"))
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            assert [client.read_frame(), client.read_frame()] == [(0x81, b"one"), (0x81, b"two")]


def test_more_than_the_buffer_holds(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http, early=BURST, tls=tls) as client:
            assert [client.read_frame()[1] for _ in range(200)] == [b"%0100d" % index for index in range(200)]


@pytest.mark.parametrize("cut", [1, 2, 6, 7])
def test_a_frame_that_is_split(http, tls, cut):
    frame = make_frame("Hello")
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http, early=frame[:cut], tls=tls) as client:
            client.send(frame[cut:])
            assert client.read_frame() == (0x81, b"Hello")


def test_a_handshake_octet_by_octet(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with RawClient(http, tls=tls) as client:
            for octet in make_upgrade() + make_frame("x"):
                client.send(bytes([octet]))
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            assert client.read_frame() == (0x81, b"x")


def test_a_close_in_the_segment_of_the_handshake(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http, early=make_frame(b"\x03\xe8", 0x88), tls=tls) as client:
            assert client.read_frame() == (0x88, b"\x03\xe8")
            assert client.read_end() == b""


def test_a_violation_in_the_segment_of_the_handshake(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http, early=b"\x81\x05Hello", tls=tls) as client:
            first, payload = client.read_frame()
            assert (first, payload[:2]) == (0x88, b"\x03\xea")


# HTTP before it


def test_keep_alive_then_upgrade(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with RawClient(http, tls=tls) as client:
            for _ in range(2):
                client.send(GET)
                assert client.read_answer()[0] == 200
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            assert client.read_answer()[0] == 200
            client.send(make_upgrade())
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            client.send(make_frame("x"))
            assert client.read_frame() == (0x81, b"x")


def test_pipelining(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with RawClient(http, tls=tls) as client:
            client.send(GET + GET + make_upgrade() + make_frame("x"))
            assert client.read_answer()[0] == client.read_answer()[0] == 200
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            assert client.read_frame() == (0x81, b"x")


def test_a_refusal_ends_the_connection(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", lambda request: request.reject())
        with RawClient(http, tls=tls) as client:
            client.send(make_upgrade() + GET)
            assert client.read_answer()[0] == 403
            assert client.read_end() == b""


def test_a_body_that_never_comes_is_not_waited_for(http, tls):
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with RawClient(http, tls=tls) as client:
            client.send(make_upgrade("/", "Content-Length: 5", method="POST"))
            assert client.read_answer()[0] == 400
            assert client.read_end() == b""


@pytest.mark.parametrize("line", ["garbage", ": a", "Content-Length : 5", "X: a\rb"])
def test_a_line_that_is_no_header_field(line):
    """What pywsgi passes over, or stops at, might have been what a proxy before it has seen: a body, say."""
    with serve(app) as (http, server):
        server.on("request", echo)
        with RawClient(http) as client:
            client.send(make_upgrade("/", line, "Content-Length: 5") + b"hello")
            status, fields, _ = client.read_answer()
            assert status == 400
            assert fields["x-websocket-reject-reason"] == "a line of the request's head is no header field"
            assert client.read_end() == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/9\r\n\r\n",
        # As many as no handler with a config and no mount lets through to http.client.
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
    ids=["version", "fields", "length"],
)
def test_a_broken_head_is_one_line_in_the_log(octets, capfd):
    class Handler(WebSocketHandler):
        # No limit on the number of fields but pywsgi's own.
        config = None

    with running(make_http(app, handler_class=Handler)) as http, RawClient(http) as client:
        client.send(octets)
        assert client.read_answer()[0] == 400
        assert client.read_end() == b""
    assert len(http.error_log) == 1
    assert http.error_log[0].count("\n") == 1
    assert capfd.readouterr().err == ""


def test_tls_echo_of_a_long_message():
    http = make_http(ssl_context=make_tls_context())
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http, tls=True) as client:
            for _ in range(20):
                client.send(make_frame(bytes(50000), 0x82))
            received = 0
            while received < 20 * 50000:
                received += len(client.read_frame()[1])
            assert received == 20 * 50000


def test_a_tls_client_that_closes_is_seen():
    http = make_http(ssl_context=make_tls_context())
    with serve(http=http) as (_, server):
        server.on("request", echo)
        closed = record(server, "close")
        open_client(http, tls=True).close()
        assert closed.get()[2] == 1006


@pytest.mark.skipif(not hasattr(stdlib_socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    http = make_http(app, listener)
    with serve(http=http, use_native_keepalive=True) as (_, server):
        server.on("request", echo)
        connections = record(server, "connect")
        with open_client(http, "/", "X-Forwarded-For: 203.0.113.7", early=make_frame("x")) as client:
            assert client.read_frame() == (0x81, b"x")
            connection = connections.get()[1]
            assert connection.remote_address == "203.0.113.7"
            assert connection.remote_addresses == ["203.0.113.7"]
        with open_client(http):
            connection = connections.get()[1]
            assert (connection.remote_address, connection.remote_addresses) == ("", [])
        assert http.log[0].startswith("- - - [")


# The access log


def test_the_101_is_logged_once_at_accept():
    with serve() as (http, server):
        server.on("request", echo)
        closed = record(server, "close")
        with RawClient(http) as client:
            client.send(GET + make_upgrade("/ws?x"))
            client.read_answer()
            head = client.read_head()
            assert len(http.log) == 2
            assert f'"GET /ws?x HTTP/1.1" 101 {len(head)} ' in http.log[1]
        closed.get()
    assert len(http.log) == 2


def test_the_log_of_a_loop():
    with serve() as (http, server):
        server.on("request", lambda request: list(request.accept()))
        closed = record(server, "close")
        with open_client(http) as client:
            assert len(http.log) == 1
            client.send(make_frame(b"\x03\xe8", 0x88))
            closed.get()
    assert len(http.log) == 1


def test_the_log_of_a_refusal():
    with serve() as (http, server):
        server.on("request", echo)
        with RawClient(http) as client:
            client.send(make_upgrade(method="POST"))
            client.read_end()
    assert len(http.log) == 1
    assert '"POST / HTTP/1.1" 400 ' in http.log[0]


# The http server's pool


def test_an_event_style_connection_keeps_no_slot():
    http = make_http(app, spawn=1)
    with serve(http=http) as (_, server):
        server.on("request", echo)
        with open_client(http) as first, open_client(http) as second, RawClient(http) as third:
            third.send(GET)
            assert third.read_answer()[0] == 200
            for client in (first, second):
                client.send(make_frame("x"))
                assert client.read_frame() == (0x81, b"x")


def test_a_loop_keeps_its_slot():
    http = make_http(app, spawn=1)
    with serve(http=http) as (_, server):
        server.on("request", lambda request: list(request.accept()))
        with open_client(http) as client, RawClient(http) as second:
            second.send(GET)
            with gevent.Timeout(0.05, False):
                pytest.fail(f"the second client got {second.read(1)!r}")
            client.send(make_frame(b"\x03\xe8", 0x88))
            assert second.read_answer()[0] == 200


# Options of the socket


@pytest.mark.parametrize(
    ("options", "no_delay", "keepalive", "idle"),
    [
        pytest.param({}, True, False, None, id="default"),
        pytest.param({"disable_nagle_algorithm": False}, False, False, None, id="Nagle"),
        pytest.param({"use_native_keepalive": True, "keepalive_interval": 33.2}, True, True, 33, id="keepalive"),
        pytest.param({"use_native_keepalive": True, "keepalive": False}, True, False, None, id="no keepalive"),
    ],
)
def test_options_of_the_socket(options, no_delay, keepalive, idle):
    copies = []
    with serve(**options) as (http, server):

        @server.on("request")
        def decide(request):
            copies.append(stdlib_socket.socket(fileno=os.dup(request._handler.socket.fileno())))
            request._handler.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            request.accept()

        with open_client(http), copies[0] as copy:
            assert bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is no_delay
            assert bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keepalive
            if idle is not None and hasattr(stdlib_socket, "TCP_KEEPIDLE"):
                assert copy.getsockopt(socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE) == idle


# Without a mount


def make_view(view):
    """Make an http server whose view takes the upgrade requests."""
    return make_http(view, handler_class=WebSocketHandler)


def get_request(environ):
    return environ["geventws.request"]


def test_a_view_accepts_and_its_end_is_the_connections():
    def view(environ, start_response):
        request = get_request(environ)
        connection = request.accept("chat")
        assert request.resource == "/x"
        connection.send(connection.receive())
        return []

    with running(make_view(view)) as http, open_client(http, "/x", "Sec-WebSocket-Protocol: chat") as client:
        assert b"\r\nSec-WebSocket-Protocol: chat\r\n" in client.head
        client.send(make_frame("Hello"))
        assert client.read_frame() == (0x81, b"Hello")
        assert client.read_frame() == (0x88, b"\x03\xe8")
        client.send(make_frame(b"\x03\xe8", 0x88))
        assert client.read_end() == b""
        assert len(http.log) == 1


def test_a_view_that_answers_after_the_accept():
    """A framework makes a response of whatever its view returns: none of it reaches the wire."""

    def view(environ, start_response):
        get_request(environ).accept()
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written")
        return [b"returned"]

    with running(make_view(view)) as http, open_client(http) as client:
        assert client.read_frame() == (0x88, b"\x03\xe8")
        client.send(make_frame(b"\x03\xe8", 0x88))
        assert client.read_end() == b""
        assert len(http.log) == 1
        assert " 101 " in http.log[0]


def test_a_view_that_is_a_generator():
    def view(environ, start_response):
        get_request(environ).accept().send("Hello")
        yield b"not sent"

    with running(make_view(view)) as http, open_client(http) as client:
        assert client.read_frame() == (0x81, b"Hello")
        assert client.read_frame() == (0x88, b"\x03\xe8")


def test_a_generator_that_rejects_with_a_response():
    def view(environ, start_response):
        def refuse(environ, start_response):
            start_response("403 Forbidden", [("Content-Length", "2")])
            return [b"no"]

        get_request(environ).reject(refuse)
        yield b"not sent"

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[::2] == (403, b"no")
        assert client.read_end() == b""


def test_a_view_that_raises(caplog, capfd):
    def view(environ, start_response):
        get_request(environ).accept()
        raise ZeroDivisionError("an error of the view")

    with running(make_view(view)) as http, open_client(http) as client:
        assert client.read_frame() == (0x88, b"\x03\xf3")
        assert client.read_end() == b""
        assert len(http.log) == 1
    assert "an error of the view" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_view_whose_framework_catches():
    def view(environ, start_response):
        get_request(environ).accept()
        start_response("500 Internal Server Error", [])
        return [b"sorry"]

    with running(make_view(view)) as http, open_client(http) as client:
        assert client.read_frame() == (0x88, b"\x03\xf3")


def test_a_view_that_raises_before_the_accept(capfd):
    def view(environ, start_response):
        raise ZeroDivisionError("an error of the view")

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[0] == 500
    assert "an error of the view" in capfd.readouterr().err


@pytest.mark.parametrize("is_stopping", [True, False])
def test_a_view_that_is_killed(is_stopping):
    views = []

    def view(environ, start_response):
        connection = get_request(environ).accept()
        views.append(gevent.getcurrent())
        connection.receive()

    with running(make_view(view)) as http, open_client(http) as client:
        wait_until(lambda: views)
        if is_stopping:
            http.close()
            assert client.read_frame() == (0x88, b"\x03\xe9")
        views[0].kill()
        if not is_stopping:
            assert client.read_frame() == (0x88, b"\x03\xf3")
            assert client.read_end() == b""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("Sec-WebSocket-Version: 8", 426, id="handshake"),
        pytest.param("Sec-WebSocket-Protocol: other", 500, id="subprotocol"),
    ],
)
def test_what_a_peer_can_make_a_view_raise_is_one_line(line, expected, caplog, capfd):
    def view(environ, start_response):
        get_request(environ).accept("chat")

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade("/", line))
        assert client.read_answer()[0] == expected
        assert client.read_end() == b""
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def test_a_broken_handshake_in_a_view():
    def view(environ, start_response):
        get_request(environ).accept()

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade("/", "Sec-WebSocket-Version: 8"))
        status, fields, _ = client.read_answer()
        assert (status, fields["sec-websocket-version"], fields["connection"]) == (426, "13", "close")
        assert client.read_end() == b""


def test_a_view_cannot_ignore():
    raised = Event()

    def view(environ, start_response):
        with pytest.raises(RuntimeError, match="view"):
            get_request(environ).ignore()
        raised.set()
        return app(environ, start_response)

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[0] == 200
        assert raised.is_set()


def test_a_view_that_answers_itself():
    """The request is over with the view: what comes then on the connection is another one."""
    requests = []

    def view(environ, start_response):
        requests.append(environ.get("geventws.request"))
        return app(environ, start_response)

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[0] == 200
        client.send(GET)
        assert client.read_answer()[0] == 200
        assert requests[1] is None
        with pytest.raises(RuntimeError, match="answered by its view"):
            requests[0].accept()


def test_an_accept_behind_the_beginning_of_a_response():
    def view(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])(b"o")
        with pytest.raises(RuntimeError, match="begun"):
            get_request(environ).accept()
        return [b"k"]

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[::2] == (200, b"ok")


def test_the_options_of_views():
    class Handler(WebSocketHandler):
        config = ServerConfig(max_received_message_size=5, header_timeout=0.05)

    def view(environ, start_response):
        connection = get_request(environ).accept()
        connection.send(connection.receive())
        connection.receive()

    with running(make_http(view, handler_class=Handler)) as http:
        with open_client(http) as client:
            client.send(make_frame("12345") + make_frame("123456"))
            assert client.read_frame() == (0x81, b"12345")
            first, payload = client.read_frame()
            assert (first, payload[:2]) == (0x88, b"\x03\xf1")
        with RawClient(http) as client:
            client.send(b"GET")
            assert client.read_answer()[0] == 408
        counts = WebSocketHandler.limit_counts(http)
        assert counts["header_timeout"] == 1
        with pytest.raises(TypeError):
            counts["header_timeout"] = 0


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        pytest.param({"max_connections": 1}, "max_connections", 503, id="connections"),
        pytest.param({"max_connections_per_address": 1}, "max_connections_per_address", 503, id="address"),
        pytest.param({"allowed_origins": ["https://a.example"]}, "allowed_origins", 403, id="origin"),
    ],
)
def test_whom_a_view_does_not_accept(options, name, expected, caplog):
    class Handler(WebSocketHandler):
        config = ServerConfig(**options)

    def view(environ, start_response):
        return list(get_request(environ).accept())

    with running(make_http(view, handler_class=Handler)) as http:
        with open_client(http, "/", "Origin: https://a.example") as client, RawClient(http) as other:
            other.send(make_upgrade())
            assert other.read_answer()[0] == expected
            assert other.read_end() == b""
            assert WebSocketHandler.limit_counts(http)[name] == 1
            client.send(make_frame(b"\x03\xe8", 0x88))
            assert client.read_frame() == (0x88, b"\x03\xe8")
        open_client(http, "/", "Origin: https://a.example").close()
        wait_until(lambda: not get_host(http).connections)
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text


def test_what_a_view_does_not_accept_itself_has_no_place():
    """Another library may answer it: its connections are none of ours."""

    class Handler(WebSocketHandler):
        config = ServerConfig(max_connections=1, max_pending_requests=1, allowed_origins=[])

    go_on = Event()

    def view(environ, start_response):
        go_on.wait()
        return app(environ, start_response)

    with running(make_http(view, handler_class=Handler)) as http, RawClient(http) as one, RawClient(http) as two:
        for client in (one, two):
            client.send(make_upgrade())
        gevent.idle()
        go_on.set()
        for client in (one, two):
            assert client.read_answer()[0] == 200
        assert not any(WebSocketHandler.limit_counts(http).values())


def test_without_a_mount_a_view_has_the_header_timeout_of_its_config_alone():
    class Handler(WebSocketHandler):
        config = None

    def view(environ, start_response):
        assert "geventws.request" not in environ
        return app(environ, start_response)

    with running(make_http(view, handler_class=Handler)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[0] == 200


def test_a_tls_handshake_for_a_view_has_the_header_timeout_of_its_config():
    class Handler(WebSocketHandler):
        config = ServerConfig(header_timeout=0.05)

    http = make_http(app, handler_class=Handler, ssl_context=make_tls_context())
    assert WebSocketHandler.limit_counts(http)["header_timeout"] == 0
    with running(http), RawClient(http) as client:
        assert client.read_end() == b""
        wait_until(lambda: http.error_log)
        assert WebSocketHandler.limit_counts(http)["header_timeout"] == 1


def test_mounts_come_before_the_view():
    def view(environ, start_response):
        get_request(environ).accept().send("the view")
        return []

    http = make_view(view)
    server = WebSocketServer(http_server=http, path="/server")

    @server.on("request")
    def decide(request):
        if request.resource_url.query:
            request.ignore()
        else:
            request.accept().send("the server")

    with running(http):
        for path, text in (("/server", b"the server"), ("/server?ignore", b"the view"), ("/", b"the view")):
            with open_client(http, path) as client:
                assert client.read_frame() == (0x81, text)
        wait_until(lambda: not server.connections)


def test_what_nobody_claims_reaches_the_application_as_it_came():
    seen = []

    def application(environ, start_response):
        seen.append(environ)
        return app(environ, start_response)

    def ask(handler_class):
        http = make_http(application, handler_class=handler_class)
        if handler_class is WSGIHandler:
            WebSocketServer(http_server=http)
        with running(http), RawClient(http) as client:
            client.send(make_upgrade() + b"raw octets")
            assert client.read_answer()[0] == 200
            environ = seen.pop()
            kind = type(environ["wsgi.input"])
            return {name: value for name, value in environ.items() if isinstance(value, str | bool | tuple)} | {
                "wsgi.input": kind,
                "REMOTE_PORT": None,
                "SERVER_PORT": None,
            }

    class Stock(WSGIHandler):
        pass

    stock_http = make_http(application)
    with running(stock_http), RawClient(stock_http) as client:
        client.send(make_upgrade() + b"raw octets")
        assert client.read_answer()[0] == 200
    environ = seen.pop()
    stock = {name: value for name, value in environ.items() if isinstance(value, str | bool | tuple)}
    stock |= {"wsgi.input": type(environ["wsgi.input"]), "REMOTE_PORT": None, "SERVER_PORT": None}
    assert stock["SERVER_SOFTWARE"].startswith("gevent/")
    assert ask(WSGIHandler) == stock
    assert ask(WebSocketHandler) == stock

"""Mounting, who answers an upgrade request, the events of a server, and how it ends."""

from __future__ import annotations

import gc
import logging
import ssl
import weakref
from io import BytesIO
from types import MappingProxyType

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from geventws import (
    ConfigurationError,
    InvalidState,
    ServerConfig,
    SubprotocolError,
    WebSocketHandler,
    WebSocketServer,
)
from geventws.host import get_host
from tests.support import (
    ACCEPT,
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


def app(environ, start_response):
    body = b"the application"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def accept(request):
    request.accept()


def echo(request):
    connection = request.accept()
    connection.on("message", connection.send)


def ask(http, octets=None):
    """Send an upgrade request, or something else, and return the answer's status, fields and body."""
    with RawClient(http) as client:
        client.send(make_upgrade() if octets is None else octets)
        return client.read_answer()


# Mounting


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda http: WebSocketServer(http_server=http), id="keyword"),
        pytest.param(lambda http: WebSocketServer({"http_server": http}), id="mapping"),
        pytest.param(lambda http: WebSocketServer(ServerConfig(http_server=http)), id="config"),
        pytest.param(lambda http: WebSocketServer().mount(http_server=http), id="mount"),
        pytest.param(lambda http: WebSocketServer().mount({"path": "/no"}, http_server=http, path="/"), id="override"),
    ],
)
def test_a_server_is_mounted(make):
    http = make_http(app)
    server = make(http)
    server.on("request", echo)
    assert server.mounted
    assert server.config.http_server is http
    with running(http), open_client(http) as client:
        assert ACCEPT in client.head
        client.send(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        assert client.read_frame() == (0x81, b"Hello")


def test_a_server_that_is_not_mounted():
    server = WebSocketServer()
    assert not server.mounted
    assert server.config is None
    server.unmount()
    server.close_all_connections()
    server.shut_down(timeout=1)
    assert server.broadcast("nobody") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"frame_size": 1}, "frame_size", id="unknown"),
        pytest.param({"keepalive": 1}, "keepalive", id="type"),
        pytest.param({"close_timeout": 0}, "close_timeout", id="range"),
        pytest.param({"closeTimeout": 5000}, "close_timeout here, in seconds", id="name of the seed"),
        pytest.param({"auto_accept_connections": True, "path": "/x"}, "path", id="contradiction"),
    ],
)
def test_a_wrong_option_changes_nothing(options, message):
    http = make_http()
    server = WebSocketServer()
    with pytest.raises(ConfigurationError, match=message):
        server.mount(http_server=http, **options)
    assert not server.mounted
    assert server.config is None
    assert http.handler_class is WSGIHandler
    assert not hasattr(http, "application")


@pytest.mark.parametrize(
    "options", [pytest.param({}, id="missing"), pytest.param({"http_server": []}, id="empty list")]
)
def test_mount_needs_an_http_server(options):
    with pytest.raises(ConfigurationError, match="http_server"):
        WebSocketServer().mount(**options)


def make_handler(*args):
    return WSGIHandler(*args)


def test_a_list_with_a_wrong_handler_class_changes_nothing():
    good, bad = make_http(), make_http(handler_class=make_handler)
    server = WebSocketServer()
    with pytest.raises(ConfigurationError, match="handler_class"):
        server.mount(http_server=[good, bad])
    assert not server.mounted
    assert good.handler_class is WSGIHandler


def test_mounting_twice():
    http = make_http()
    server = WebSocketServer(http_server=http)
    with pytest.raises(InvalidState, match="unmount"):
        server.mount(http_server=make_http())
    server.unmount()
    server.mount(http_server=http)
    assert server.mounted


def test_mount_after_start_and_unmount():
    http = make_http(app)
    server = WebSocketServer()
    server.on("request", echo)
    with running(http):
        assert ask(http)[0] == 200
        server.mount(http_server=http)
        with open_client(http) as client:
            server.unmount()
            server.unmount()
            assert not server.mounted
            assert ask(http)[2] == b"the application"
            client.send(make_frame("still here"))
            assert client.read_frame() == (0x81, b"still here")
            assert len(server.connections) == 1


def test_a_connection_accepted_before_mount_keeps_its_handler():
    http = make_http(app)
    with running(http), RawClient(http) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.read_answer()[0] == 200
        server = WebSocketServer(http_server=http)
        server.on("request", accept)
        client.send(make_upgrade())
        assert client.read_answer()[0] == 200


def test_a_connection_accepted_before_unmount_asks_the_servers_of_the_moment():
    http = make_http(app)
    server = WebSocketServer(http_server=http)
    server.on("request", accept)
    with running(http), RawClient(http) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.read_answer()[0] == 200
        server.unmount()
        client.send(make_upgrade())
        assert client.read_answer()[0] == 200


def test_an_http_server_without_application_answers_404_until_unmount():
    http = make_http()
    server = WebSocketServer(http_server=http)
    server.on("request", accept)
    with running(http):
        assert ask(http, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 404
        open_client(http).close()
    server.unmount()
    assert not hasattr(http, "application")


def test_an_application_that_came_later_stays():
    http = make_http()
    server = WebSocketServer(http_server=http)
    http.application = app
    server.unmount()
    assert http.application is app


class ShoutingHandler(WSGIHandler):
    def get_environ(self):
        return super().get_environ() | {"shouts": "yes"}


class TestHandlerClass:
    def test_the_class_default_comes_back(self):
        http = make_http(app)
        server = WebSocketServer(http_server=http)
        assert issubclass(http.handler_class, WebSocketHandler)
        server.unmount()
        assert "handler_class" not in vars(http)

    def test_a_users_own_is_derived_from_and_comes_back(self):
        http = make_http(app, handler_class=ShoutingHandler)
        server = WebSocketServer(http_server=http)
        assert issubclass(http.handler_class, ShoutingHandler)
        requests = record(server, "request")
        with running(http), RawClient(http) as client:
            client.send(make_upgrade())
            _, request = requests.get()
            assert request.environ["shouts"] == "yes"
            request.reject()
            assert client.read_answer()[0] == 403
        server.unmount()
        assert http.handler_class is ShoutingHandler

    @pytest.mark.parametrize("order", [pytest.param((0, 1), id="in order"), pytest.param((1, 0), id="out of order")])
    def test_two_mounts(self, order):
        http = make_http(app, handler_class=ShoutingHandler)
        servers = [WebSocketServer(http_server=http), WebSocketServer(http_server=http)]
        servers[order[0]].unmount()
        assert issubclass(http.handler_class, WebSocketHandler)
        servers[order[1]].unmount()
        assert http.handler_class is ShoutingHandler

    def test_a_web_socket_handler_of_the_user_stays(self):
        http = make_http(app, handler_class=WebSocketHandler)
        server = WebSocketServer(http_server=http)
        assert http.handler_class is WebSocketHandler
        server.unmount()
        assert http.handler_class is WebSocketHandler

    def test_one_that_was_put_there_since_stays(self):
        http = make_http(app)
        server = WebSocketServer(http_server=http)
        http.handler_class = ShoutingHandler
        server.unmount()
        assert http.handler_class is ShoutingHandler

    def test_it_works_again_after_a_second_mount(self):
        http = make_http(app)
        server = WebSocketServer(http_server=http)
        server.unmount()
        server.mount(http_server=http)
        server.on("request", accept)
        with running(http):
            open_client(http).close()


def test_ws_and_wss_at_once():
    plain, tls = make_http(), make_http(ssl_context=make_tls_context())
    server = WebSocketServer(http_server=[plain, tls])
    server.on("request", echo)
    with running(plain, tls), open_client(plain) as client, open_client(tls, tls=True) as secure:
        for each in (client, secure):
            each.send(make_frame("hello"))
            assert each.read_frame() == (0x81, b"hello")
        assert len(server.connections) == 2
        assert server.broadcast("all") == 2
        assert client.read_frame() == secure.read_frame() == (0x81, b"all")
        client.close()
        secure.close()
        wait_until(lambda: not server.connections)


# Who answers an upgrade request


def test_plain_http_is_the_applications():
    with serve(app, auto_accept_connections=True) as (http, _):
        assert ask(http, b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")[0] == 200
        with RawClient(http) as client:
            for _ in range(2):
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
                assert client.read_answer()[2] == b"the application"


def test_without_a_listener_nobody_claims():
    with serve(app) as (http, server):
        assert ask(http)[0] == 200
        server.on("request", accept)
        open_client(http).close()
        server.off("request", accept)
        assert ask(http)[0] == 200


def test_path():
    with serve(app, path="/chat") as (http, server):
        server.on("request", accept)
        for target in ("/chat", "/chat?a=/", "/ch%61t", "http://localhost/chat?x"):
            open_client(http, target).close()
        for target in ("/", "/chat/", "/Chat", "/chat/room"):
            assert ask(http, make_upgrade(target))[0] == 200


def test_servers_are_asked_in_mount_order():
    http = make_http(app)
    asked = []
    first = WebSocketServer(http_server=http, path="/a")
    second = WebSocketServer(http_server=http)
    third = WebSocketServer(http_server=http)

    def make_listener(name, answer):
        def decide(request):
            asked.append(name)
            answer(request)

        return decide

    first.on("request", make_listener("first", lambda request: request.ignore()))
    second.on("request", make_listener("second", lambda request: request.ignore()))
    third.on("request", make_listener("third", lambda request: request.reject(410)))
    with running(http):
        assert ask(http, make_upgrade("/a"))[0] == 410
        assert asked == ["first", "second", "third"]
        assert ask(http, make_upgrade("/b"))[0] == 410
        assert asked[3:] == ["second", "third"]
        third.unmount()
        assert ask(http, make_upgrade("/a"))[0] == 200
        second.unmount()
        first.unmount()
        assert ask(http, make_upgrade("/a"))[0] == 200
        assert len(asked) == 7


def test_the_claimer_alone_answers_a_failure():
    http = make_http(app)
    first = WebSocketServer(http_server=http, allowed_origins=["https://example.com"])
    second = WebSocketServer(http_server=http)
    for server in (first, second):
        server.on("request", accept)
    errors = [record(first, "upgrade_error"), record(second, "upgrade_error")]
    with running(http):
        assert ask(http)[0] == 403
        assert errors[0].get()[1].status == 403
        assert errors[1].empty()
        open_client(http, "/", "Origin: https://example.com").close()
        wait_until(lambda: not first.connections)


def test_ignore_later_from_another_greenlet():
    with serve(app) as (http, server):
        requests = record(server, "request")
        with RawClient(http) as client:
            client.send(make_upgrade())
            requests.get()[1].ignore()
            assert client.read_answer()[2] == b"the application"
            assert not server.pending_requests
            # The application's answer does not end the connection.
            client.send(make_upgrade())
            requests.get()[1].reject(404)
            assert client.read_answer()[0] == 404
            assert client.read_end() == b""


def test_a_server_that_is_unmounted_meanwhile_is_not_asked():
    http = make_http(app)
    first, second = WebSocketServer(http_server=http), WebSocketServer(http_server=http)
    second.on("request", accept)

    @first.on("request")
    def decide(request):
        second.unmount()
        request.ignore()

    with running(http):
        assert ask(http)[0] == 200


# Failed handshakes


@pytest.mark.parametrize(
    ("request_octets", "status", "reason"),
    [
        pytest.param(make_upgrade(leave_out=["Sec-WebSocket-Key"]), 400, "Sec-WebSocket-Key", id="no key"),
        pytest.param(make_upgrade("/", "Sec-WebSocket-Key: c2hvcnQ="), 400, "Sec-WebSocket-Key", id="short key"),
        pytest.param(make_upgrade("/", "Sec-WebSocket-Version: 8"), 426, "Sec-WebSocket-Version", id="version"),
        pytest.param(make_upgrade(leave_out=["Connection"]), 400, "Connection", id="no connection"),
        pytest.param(make_upgrade(leave_out=["Host"]), 400, "Host", id="no host"),
        pytest.param(make_upgrade(method="POST"), 400, "GET", id="method"),
        pytest.param(make_upgrade(version="HTTP/1.0"), 400, "HTTP/1.1", id="HTTP/1.0"),
        pytest.param(make_upgrade("/", "Content-Length: 5"), 400, "body", id="body"),
        pytest.param(make_upgrade("/", "Transfer-Encoding: chunked"), 400, "body", id="chunked body"),
        pytest.param(make_upgrade("/", "Sec-WebSocket-Extensions: ,;,"), 400, "Extensions", id="extensions"),
    ],
)
def test_a_failed_handshake(request_octets, status, reason):
    with serve(app) as (http, server), RawClient(http) as client:
        events = record(server, "request", "upgrade_error", "connect")
        client.send(request_octets)
        answer, fields, body = client.read_answer()
        assert answer == status
        assert reason in fields["x-websocket-reject-reason"]
        assert fields["connection"] == "close"
        assert fields["content-type"].startswith("text/plain")
        assert body.decode() == fields["x-websocket-reject-reason"] + "\n"
        assert fields.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert client.read_end() == b""
        name, error = events.get()
        assert (name, error.status, str(error)) == ("upgrade_error", status, fields["x-websocket-reject-reason"])
        assert events.empty()


def test_a_failed_handshake_by_head_has_no_body():
    with serve(app) as (http, server), RawClient(http) as client:
        server.on("request", accept)
        client.send(make_upgrade(method="HEAD"))
        head = client.read_head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert client.read_end() == b""


def test_a_request_without_connection_field_is_no_http_of_the_application():
    with serve(app) as (http, server):
        server.on("request", accept)
        assert ask(http, make_upgrade("/", "Upgrade: h2c, WebSocket"))[0] == 101


@pytest.mark.parametrize(
    ("origins", "line", "status"),
    [
        pytest.param(["https://example.com"], "Origin: https://example.com", 101, id="allowed"),
        pytest.param(["https://example.com"], "Origin: https://example.org", 403, id="another"),
        pytest.param(["https://example.com"], "Origin: https://example.com:8443", 403, id="another port"),
        pytest.param(["https://example.com"], "Origin: HTTPS://EXAMPLE.COM", 403, id="exact"),
        pytest.param(["https://example.com"], "X-Nothing: x", 403, id="missing"),
        pytest.param(["https://example.com", None], "X-Nothing: x", 101, id="missing and allowed"),
        pytest.param([], "Origin: null", 403, id="none at all"),
        pytest.param(None, "Origin: https://example.org", 101, id="any"),
    ],
)
def test_allowed_origins(origins, line, status):
    with serve(allowed_origins=origins) as (http, server):
        server.on("request", accept)
        events = record(server, "request", "upgrade_error")
        assert ask(http, make_upgrade("/", line))[0] == status
        assert events.get()[0] == ("request" if status == 101 else "upgrade_error")
        assert server.limit_counts["allowed_origins"] == (0 if status == 101 else 1)


class TestAutoAccept:
    def test_first_subprotocol_any_origin_any_path(self):
        with serve(auto_accept_connections=True) as (http, server):
            events = record(server, "request", "connect")
            lines = ("Sec-WebSocket-Protocol: Chat, echo", "Origin: https://anywhere.example")
            with open_client(http, "/any/path?x", *lines) as client:
                assert b"\r\nSec-WebSocket-Protocol: Chat\r\n" in client.head
                name, connection = events.get()
                assert (name, connection.subprotocol) == ("connect", "Chat")
                assert connection.request_path == "/any/path?x"
                assert events.empty()

    def test_no_subprotocol(self):
        with serve(auto_accept_connections=True) as (http, _), open_client(http) as client:
            assert b"Sec-WebSocket-Protocol" not in client.head

    def test_an_illegal_token(self):
        with serve(auto_accept_connections=True) as (http, server):
            events = record(server, "connect", "upgrade_error")
            assert ask(http, make_upgrade("/", "Sec-WebSocket-Protocol: a/b"))[0] == 400
            assert events.get()[0] == "upgrade_error"
            assert events.empty()


# Limits of number


class TestHeadLimits:
    """Of every request on that http server, upgrade or not."""

    @pytest.fixture(params=[pytest.param(False, id="plain"), pytest.param(True, id="TLS")])
    def tls(self, request):
        return request.param

    def check_431(self, http, client, request_line='"GET / HTTP/1.1"'):
        status, fields, body = client.read_answer()
        assert (status, body) == (431, b"")
        assert fields["connection"] == "close"
        assert client.read_end() == b""
        assert len(http.error_log) == 1
        assert f"{request_line} 431 " in http.log[-1]

    def make_head(self, size):
        """Return a head of so many octets."""
        head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Padding: \r\n\r\n"
        return head.replace(b": \r", b": " + b"x" * (size - len(head)) + b"\r")

    def test_size(self, tls, capfd):
        http = make_http(app, **({"ssl_context": make_tls_context()} if tls else {}))
        with serve(http=http, max_head_size=1000) as (http, server), RawClient(http, tls=tls) as client:
            client.send(self.make_head(1000))
            assert client.read_answer()[0] == 200
            client.send(self.make_head(1001))
            self.check_431(http, client)
            assert "more than 1000 octets" in http.error_log[0]
            assert server.limit_counts["max_head_size"] == 1
            assert capfd.readouterr().err == ""

    def test_the_default_size(self):
        with serve(app) as (http, _), RawClient(http) as client:
            client.send(self.make_head(65536))
            assert client.read_answer()[0] == 200
            client.send(self.make_head(65537))
            self.check_431(http, client)

    def test_what_never_ends_is_refused_when_it_is_too_large(self):
        with serve(app, max_head_size=20000, header_timeout=None) as (http, _), RawClient(http) as client:
            client.send(self.make_head(20004)[:-3])
            self.check_431(http, client)

    def test_a_client_that_goes_on_sending_is_told_all_the_same(self):
        """To close the connection over what it sends would be a reset."""
        with serve(app) as (http, _), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\n" + b"".join(b"%060000d: x\r\n" % number for number in range(200)))
            self.check_431(http, client)

    def test_a_client_that_neither_stops_nor_ends(self, monkeypatch):
        monkeypatch.setattr("geventws.handler._LINGER_TIME", 0.05)
        with serve(app, max_head_size=1000) as (http, _), RawClient(http) as client:
            client.send(self.make_head(1001))
            self.check_431(http, client)
            wait_until(lambda: is_refused(client))

    def test_a_client_that_is_gone(self, capfd):
        with serve(app, max_head_size=1000, header_timeout=None) as (http, server), RawClient(http) as client:
            client.send(self.make_head(1001))
            client.reset()
            wait_until(lambda: http.log)
            assert " 431 " in http.log[0]
            assert server.limit_counts["max_head_size"] == 1
            assert capfd.readouterr().err == ""

    def test_count(self, capfd):
        with serve(app, max_header_count=3) as (http, server), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\n\r\n")
            assert client.read_answer()[0] == 200
            client.send(b"GET /x HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n")
            self.check_431(http, client, '"GET /x HTTP/1.1"')
            assert "more than 3 fields" in http.error_log[0]
            assert server.limit_counts["max_header_count"] == 1
            assert capfd.readouterr().err == ""

    def test_the_default_count(self, capfd):
        def count(environ, start_response):
            start_response("200 OK", [("Content-Length", "2")])
            return [b"%d" % sum(name.startswith("HTTP_X_") for name in environ)]

        with serve(count) as (http, _), RawClient(http) as client:
            lines = [b"X-%d: x\r\n" % number for number in range(100)]
            client.send(b"GET / HTTP/1.1\r\n" + b"".join(lines[:99]) + b"Connection: keep-alive\r\n\r\n")
            assert client.read_answer()[::2] == (200, b"99")
            client.send(b"GET / HTTP/1.1\r\n" + b"".join(lines) + b"Host: x\r\n\r\n")
            self.check_431(http, client)
            assert capfd.readouterr().err == ""

    def test_an_upgrade_request(self):
        with serve(max_header_count=6) as (http, server):
            server.on("request", accept)
            open_client(http, "/", "A: 1").close()
            with RawClient(http) as client:
                client.send(make_upgrade("/", "A: 1", "B: 2"))
                self.check_431(http, client)

    def test_the_smallest_of_several_counts(self):
        http = make_http(app)
        servers = [WebSocketServer(http_server=http, max_head_size=size) for size in (None, 1000, 2000)]
        with running(http):
            with RawClient(http) as client:
                client.send(self.make_head(1001))
                self.check_431(http, client)
            assert [server.limit_counts["max_head_size"] for server in servers] == [0, 1, 0]
            servers[1].unmount()
            with RawClient(http) as client:
                client.send(self.make_head(1001))
                assert client.read_answer()[0] == 200

    def test_none_is_stock(self, capfd):
        with serve(app, max_head_size=None) as (http, _), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A: %060000d\r\n" % 0 for _ in range(5)) + b"\r\n")
            assert client.read_answer()[0] == 200
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: %070000d\r\n\r\n" % 0)
            assert client.read_answer()[0] == 400
            assert "Line too long" in http.error_log[0]
            assert capfd.readouterr().err == ""

    def test_a_request_line_that_pywsgi_refuses_is_not_waited_for(self):
        with serve(app, max_head_size=100) as (http, server):
            for line, status in ((b"nonsense\r\n", 400), (b"GET /" + b"x" * 8200, 414), (b"GET /%0100d\r\n" % 0, 431)):
                with RawClient(http) as client:
                    client.send(line if status != 431 else line.replace(b"\r", b" HTTP/1.1\r"))
                    assert client.read_answer()[0] == status
            assert server.limit_counts["max_head_size"] == 1

    def test_a_handler_class_that_parses_in_its_own_way(self):
        class Parsing(WSGIHandler):
            def MessageClass(self, rfile, *args):  # noqa: N802
                lines.extend(iter(rfile.readline, b"\r\n"))
                return super().MessageClass(BytesIO(b"\r\n"))

        lines = []
        http = make_http(app, handler_class=Parsing)
        with serve(http=http, max_head_size=100) as (http, _), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n\r\n")
            assert client.read_answer()[0] == 200
            assert lines == [b"Host: x\r\n", b"A: 1\r\n"]
            client.send(self.make_head(101))
            self.check_431(http, client)


def is_refused(client):
    """Send an octet, and tell whether that fails."""
    try:
        client.send(b"x")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


class TestPlaces:
    """Connections and pending requests, of all and of one address."""

    def check_503(self, http, server, name, *lines):
        errors = record(server, "upgrade_error")
        before = server.limit_counts[name]
        status, fields, body = ask(http, make_upgrade("/", *lines))
        assert (status, fields["connection"]) == (503, "close")
        assert body.decode() == fields["x-websocket-reject-reason"] + "\n"
        error = errors.get()[1]
        assert (error.status, str(error)) == (503, fields["x-websocket-reject-reason"])
        assert server.limit_counts[name] == before + 1

    @pytest.mark.parametrize("style", ["event", "loop", "automatic"])
    def test_connections(self, style):
        automatic = {"auto_accept_connections": True} if style == "automatic" else {}
        with serve(max_connections=2, **automatic) as (http, server):
            if style == "event":
                server.on("request", accept)
            elif style == "loop":
                server.on("request", lambda request: list(request.accept()))
            with open_client(http) as client, open_client(http):
                self.check_503(http, server, "max_connections")
                client.close()
                wait_for_connections(server, 1)
                with open_client(http):
                    self.check_503(http, server, "max_connections")
                assert len(server.limit_counts) > server.limit_counts["max_connections"] == 2

    def test_pending_requests_have_places_too(self):
        with serve(max_connections=1) as (http, server), RawClient(http) as client:
            requests = record(server, "request")
            client.send(make_upgrade())
            request = requests.get()[1]
            self.check_503(http, server, "max_connections")
            connection = request.accept()
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            self.check_503(http, server, "max_connections")
            connection.drop()
            with RawClient(http) as other:
                other.send(make_upgrade())
                requests.get()

    @pytest.mark.parametrize("end", ["reject", "ignore", "accept", "fail", "reset", "expire"])
    def test_a_request_frees_its_place(self, end):
        with serve(app, max_connections=1, accept_timeout=0.02 if end == "expire" else None) as (http, server):
            requests = record(server, "request")
            for _ in range(2):
                with RawClient(http) as client:
                    client.send(make_upgrade())
                    request = requests.get()[1]
                    if end == "reset":
                        client.reset()
                    elif end == "accept":
                        request.accept().drop()
                    elif end == "fail":
                        with pytest.raises(SubprotocolError):
                            request.accept("chat")
                    elif end != "expire":
                        getattr(request, end)()
                    wait_until(lambda: not server.pending_requests and not server.connections)
            assert server.limit_counts["max_connections"] == 0

    def test_they_are_those_of_all_http_servers(self):
        https = [make_http(), make_http()]
        server = WebSocketServer(http_server=https, max_connections=1)
        server.on("request", accept)
        with running(*https), open_client(https[0]):
            self.check_503(https[1], server, "max_connections")
            server.close_all_connections()
            wait_until(lambda: not server.connections)

    def test_each_server_has_its_own(self):
        http = make_http()
        first, second = (WebSocketServer(http_server=http, path=path, max_connections=1) for path in ("/a", "/b"))
        first.on("request", accept)
        second.on("request", accept)
        with running(http), open_client(http, "/a"), open_client(http, "/b"):
            assert len(first.connections) == len(second.connections) == 1
            assert ask(http, make_upgrade("/b"))[0] == 503
            assert (first.limit_counts["max_connections"], second.limit_counts["max_connections"]) == (0, 1)

    def test_an_address_is_the_clients_behind_a_trusted_proxy(self):
        with serve(max_connections_per_address=1) as (http, server):
            server.on("request", accept)
            lines = [f"X-Forwarded-For: 203.0.113.{number}" for number in range(3)]
            with open_client(http, "/", lines[0]) as client, open_client(http, "/", lines[1]), open_client(http):
                self.check_503(http, server, "max_connections_per_address", lines[0])
                self.check_503(http, server, "max_connections_per_address")
                open_client(http, "/", lines[2]).close()
                client.close()
                wait_for_connections(server, 2)
                open_client(http, "/", lines[0]).close()

    def test_an_address_that_a_client_claims_does_not_help(self):
        with serve(max_connections_per_address=1, trusted_proxies=[]) as (http, server):
            server.on("request", accept)
            with open_client(http):
                self.check_503(http, server, "max_connections_per_address", "X-Forwarded-For: 203.0.113.1")

    def test_pending_requests(self):
        with serve(max_pending_requests=1) as (http, server):
            requests = record(server, "request")
            with RawClient(http) as client, RawClient(http) as second:
                client.send(make_upgrade())
                request = requests.get()[1]
                self.check_503(http, server, "max_pending_requests")
                request.accept()
                second.send(make_upgrade())
                requests.get()[1].reject()
                assert second.read_answer()[0] == 403
                assert server.limit_counts["max_pending_requests"] == 1

    def test_the_origin_comes_first(self):
        with serve(max_connections=1, allowed_origins=[None]) as (http, server):
            server.on("request", accept)
            with open_client(http):
                assert ask(http, make_upgrade("/", "Origin: https://example.com"))[0] == 403
                assert server.limit_counts["max_connections"] == 0

    def test_another_mount_may_set_other_limits(self):
        with serve(max_connections=1) as (http, server):
            server.on("request", accept)
            with open_client(http):
                self.check_503(http, server, "max_connections")
                server.unmount()
                server.mount(http_server=http, max_connections=2)
                with open_client(http):
                    self.check_503(http, server, "max_connections")


# Limits of time


class TestAcceptTimeout:
    def test_a_forgotten_request(self):
        with serve(accept_timeout=0.05) as (http, server):
            requests = record(server, "request")
            status, fields, _ = ask(http)
            assert status == 503
            assert "0.05" in fields["x-websocket-reject-reason"]
            assert fields["connection"] == "close"
            request = requests.get()[1]
            assert request.resolved
            with pytest.raises(InvalidState, match="answered 503"):
                request.accept()
            wait_until(lambda: not server.pending_requests)
            assert server.limit_counts["accept_timeout"] == 1

    def test_while_the_listener_blocks(self, caplog):
        with serve(accept_timeout=0.05) as (http, server):
            go_on = Event()
            ended = Event()

            @server.on("request")
            def decide(request):
                go_on.wait()
                try:
                    request.accept()
                finally:
                    ended.set()

            assert ask(http)[0] == 503
            go_on.set()
            ended.wait()
            wait_until(lambda: not server.pending_requests)
            assert "answered 503" in caplog.text
            assert not server.connections

    def test_none_waits(self):
        with serve(accept_timeout=None) as (http, server), RawClient(http) as client:
            requests = record(server, "request")
            client.send(make_upgrade())
            requests.get()[1].accept()
            assert client.read_head().startswith(b"HTTP/1.1 101 ")


class TestHeaderTimeout:
    def check_408(self, http, client):
        status, fields, _ = client.read_answer()
        assert status == 408
        assert fields["connection"] == "close"
        assert client.read_end() == b""
        assert len(http.error_log) == 1
        assert '"" 408 ' in http.log[-1]

    def test_a_head_that_drips(self, capsys):
        with serve(app, header_timeout=0.1) as (http, _), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")

            def drip():
                for _ in range(1000):
                    client.send(b"X")
                    gevent.sleep(0.01)

            dripping = gevent.spawn(drip)
            try:
                self.check_408(http, client)
            finally:
                dripping.kill()
            assert capsys.readouterr().err == ""

    def test_half_a_request_line(self):
        with serve(app, header_timeout=0.05) as (http, _), RawClient(http) as client:
            client.send(b"GET")
            self.check_408(http, client)

    def test_a_silent_first_connection(self):
        with serve(app, header_timeout=0.05) as (http, server), RawClient(http) as client:
            assert client.read_end() == b""
            assert len(http.error_log) == 1
            assert server.limit_counts["header_timeout"] == 1

    def test_keep_alive_is_exempt_and_the_next_head_is_not(self):
        with serve(app, header_timeout=0.05) as (http, server), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.read_answer()[0] == 200
            with gevent.Timeout(0.15, False):
                client.read(1)
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.read_answer()[0] == 200
            assert not http.error_log
            assert server.limit_counts["header_timeout"] == 0
            client.send(b"G")
            self.check_408(http, client)
            assert server.limit_counts["header_timeout"] == 1

    def test_a_slow_body_and_a_slow_application_are_exempt(self):
        def slow(environ, start_response):
            environ["wsgi.input"].read()
            gevent.sleep(0.1)
            return app(environ, start_response)

        with serve(slow, header_timeout=0.05) as (http, _), RawClient(http) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
            with gevent.Timeout(0.1, False):
                client.read(1)
            client.send(b"x")
            assert client.read_answer()[0] == 200

    def test_the_smallest_of_several_counts(self):
        http = make_http(app)
        WebSocketServer(http_server=http, header_timeout=20)
        WebSocketServer(http_server=http, header_timeout=0.05)
        WebSocketServer(http_server=http, header_timeout=None)
        with running(http), RawClient(http) as client:
            client.send(b"G")
            self.check_408(http, client)

    def test_a_handler_class_with_an_idle_time_out_of_its_own(self):
        class Impatient(WSGIHandler):
            def read_requestline(self):
                assert not self.rfile.closed
                self.socket.settimeout(0.05)
                try:
                    return super().read_requestline()
                finally:
                    self.socket.settimeout(None)

        http = make_http(app, handler_class=Impatient)
        with serve(http=http), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.read_answer()[0] == 200
            assert client.read_end() == b""
            assert not http.error_log

    @pytest.mark.parametrize("start", ["before", "after"])
    @pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01"], ids=["silent", "half a record"])
    @pytest.mark.parametrize("spawn", ["default", gevent.spawn_raw, 5], ids=["greenlet", "raw greenlet", "pool"])
    def test_a_tls_handshake_that_is_never_complete(self, start, octets, spawn, capfd):
        http = make_http(app, ssl_context=make_tls_context(), spawn=spawn)
        server = WebSocketServer()
        if start == "before":
            server.mount(http_server=http, header_timeout=0.05)
        with running(http):
            if start == "after":
                server.mount(http_server=http, header_timeout=0.05)
            with RawClient(http) as client:
                client.send(octets)
                assert client.read_end() == b""
                wait_until(lambda: http.error_log)
                port = client.sock.getsockname()[1]
                assert http.error_log == [
                    f"the TLS handshake of ('127.0.0.1', {port}) failed: it was not complete within 0.05 s\n"
                ]
            assert server.limit_counts["header_timeout"] == 1
            assert not http.log
            server.unmount()
            server.mount(http_server=http)
            with RawClient(http, tls=True) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.read_answer()[0] == 200
        assert capfd.readouterr().err == ""

    def test_a_tls_handshake_that_drips(self):
        """Its octets do not move the deadline."""
        with (
            serve(http=make_http(ssl_context=make_tls_context()), header_timeout=0.1) as (http, server),
            RawClient(http) as client,
        ):
            client.send(b"\x16\x03\x01\x10\x00")
            wait_until(lambda: is_refused(client))
            assert server.limit_counts["header_timeout"] == 1

    def test_none_leaves_a_tls_handshake_alone(self):
        with serve(app, http=make_http(app, ssl_context=make_tls_context()), header_timeout=None) as (http, _):
            with RawClient(http) as client, gevent.Timeout(0.1, False):
                client.read(1)
            with RawClient(http, tls=True) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.read_answer()[0] == 200
            # The first client ended within it.
            assert [line for line in http.error_log if "EOF" not in line] == []

    def test_a_time_out_of_the_tls_socket_itself_passes(self, capfd):
        class Impatient(type(make_tls_context())):
            def wrap_socket(self, sock, **options):
                sock.settimeout(0.05)
                return super().wrap_socket(sock, **options)

        context = Impatient(ssl.PROTOCOL_TLS_SERVER)
        with serve(http=make_http(ssl_context=context)) as (http, server), RawClient(http) as client:
            assert client.read_end() == b""
            assert server.limit_counts["header_timeout"] == 0
        assert "timed out" in capfd.readouterr().err

    def test_another_time_out_passes(self, capfd):
        class Impatient(WSGIHandler):
            def read_requestline(self):
                with gevent.Timeout(0.05):
                    return super().read_requestline()

        http = make_http(app, handler_class=Impatient)
        with serve(http=http), RawClient(http) as client:
            assert client.read_end() == b""
            assert not http.error_log
        assert "Timeout: 0.05 seconds" in capfd.readouterr().err

    def test_none_is_stock(self):
        with serve(app, header_timeout=None) as (http, _), RawClient(http) as client:
            client.send(b"GET / HTTP/1.1\r\n")
            with gevent.Timeout(0.1, False):
                client.read(1)
            client.send(b"Host: x\r\n\r\n")
            assert client.read_answer()[0] == 200

    def test_a_timeout_of_the_application_passes(self, capfd):
        def impatient(environ, start_response):
            with gevent.Timeout(0.001):
                Event().wait()

        with serve(impatient) as (http, _):
            assert ask(http, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 500
        assert "Timeout" in capfd.readouterr().err


# Options of the connection, end to end


def check_close(client, code):
    """Read frames up to a Close, and check its code."""
    first, payload = client.read_frame()
    assert (first, int.from_bytes(payload[:2], "big")) == (0x88, code)


@pytest.mark.parametrize(
    ("options", "octets", "code"),
    [
        pytest.param({"max_received_frame_size": 5}, b"\x81\x86", 1009, id="frame size"),
        pytest.param({"max_received_message_size": 5}, b"\x81\x86", 1009, id="message size, one frame"),
        pytest.param({"max_received_message_size": 5}, make_frame("abc", 0x01) + b"\x80\x83", 1009, id="fragments"),
        pytest.param({}, b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x01", 1009, id="default frame size"),
    ],
)
def test_what_is_too_big(options, octets, code):
    with serve(**options) as (http, server):
        server.on("request", echo)
        with open_client(http) as client:
            client.send(octets + bytes(4))
            check_close(client, code)
            assert client.read_end() == b""


@pytest.mark.parametrize(
    ("options", "octets"),
    [
        pytest.param({"fragmentation_threshold": 2}, b"\x01\x02ab\x00\x02cd\x80\x01e", id="threshold"),
        pytest.param({"fragmentation_threshold": 2, "fragment_outgoing_messages": False}, b"\x81\x05abcde", id="off"),
        pytest.param({}, b"\x81\x05abcde", id="default"),
    ],
)
def test_fragmenting(options, octets):
    with serve(**options) as (http, server):
        server.on("request", echo)
        with open_client(http) as client:
            client.send(make_frame("abcde"))
            assert client.read(len(octets)) == octets


def test_frames_that_are_not_assembled():
    with serve(assemble_fragments=False) as (http, server):
        frames = []

        @server.on("request")
        def decide(request):
            request.accept().on("frame", lambda frame: frames.append((frame.opcode, bytes(frame.payload), frame.fin)))

        with open_client(http) as client:
            client.send(make_frame("a", 0x01) + make_frame("b", 0x80))
            wait_until(lambda: len(frames) == 2)
        assert frames == [(1, b"a", False), (0, b"b", True)]


class TestKeepalive:
    QUICK = MappingProxyType({"keepalive_interval": 0.05, "keepalive_grace_period": 0.05})

    def test_a_silent_peer_is_dropped(self):
        with serve(**self.QUICK) as (http, server):
            server.on("request", accept)
            closed = record(server, "close")
            with open_client(http) as client:
                assert client.read(2) == b"\x89\x00"
                assert closed.get()[2] == 1006

    def test_a_pong_keeps_it(self):
        with serve(**self.QUICK) as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                for _ in range(4):
                    assert client.read(2) == b"\x89\x00"
                    client.send(b"\x8a\x80\x00\x00\x00\x00")
                assert len(server.connections) == 1

    def test_nobody_is_dropped_where_that_is_off(self):
        with serve(**self.QUICK, drop_connection_on_keepalive_timeout=False) as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                assert client.read(8) == b"\x89\x00" * 4
                assert len(server.connections) == 1

    @pytest.mark.parametrize("options", [{"keepalive": False}, {"use_native_keepalive": True}], ids=["off", "native"])
    def test_no_pings(self, options):
        with serve(**self.QUICK, **options) as (http, server):
            server.on("request", accept)
            with open_client(http) as client, gevent.Timeout(0.15, False):
                pytest.fail(f"the server sent {client.read(1)!r}")


def test_close_timeout():
    with serve(close_timeout=0.05) as (http, server):
        server.on("request", accept)
        closed = record(server, "close")
        with open_client(http) as client:
            wait_until(lambda: server.connections)
            server.close_all_connections()
            check_close(client, 1000)
            assert closed.get()[2] == 1006
            assert client.read_end() == b""


def test_send_high_water_mark_and_send_timeout():
    with serve(send_high_water_mark=50000, send_timeout=0.05) as (http, server):
        sent = []

        @server.on("request")
        def decide(request):
            connection = request.accept()
            while True:
                connection.send(bytes(50000))
                sent.append(connection.buffered_amount)

        closed = record(server, "close")
        with open_client(http):
            # The sender waits at the mark; the client never reads.
            assert closed.get()[2] == 1006
        assert max(sent) <= 50000


def test_receive_high_water_mark():
    with serve(receive_high_water_mark=10000) as (http, server):
        server.on("request", accept)
        with open_client(http) as client:
            (connection,) = wait_for_connections(server, 1)
            sending = gevent.spawn(lambda: [client.send(make_frame(bytes(60000), 0x82)) for _ in range(500)])
            with gevent.Timeout(0.2, False):
                sending.join()
            assert not sending.ready(), "nobody takes the messages, and 30 MB were read"
            sending.kill()
            assert server.limit_counts["receive_high_water_mark"] == 1
            assert connection.receive() == bytes(60000)


def wait_for_connections(server, count):
    wait_until(lambda: len(server.connections) == count)
    return tuple(server.connections)


# Events


def test_order_of_events():
    order = []
    with serve() as (http, server):
        wire = Event()

        @server.on("request")
        def decide(request):
            order.append("request")
            request.on("resolved", lambda request: order.append(f"resolved {request.resolved} {client_saw()}"))
            request.on("accepted", lambda connection: order.append("accepted"))
            connection = request.accept()
            order.append("returned")
            connection.on("message", order.append)
            connection.on("close", lambda code, reason: (order.append(f"close {code} {reason}"), wire.set()))

        def client_saw():
            return len(http.log)

        @server.on("connect")
        def connected(connection):
            order.append(f"connect {client_saw()}")
            gevent.sleep(0)

        server.on("close", lambda connection, code, reason: order.append(f"server close {code} {reason}"))
        with RawClient(http) as client:
            client.send(make_upgrade() + make_frame("first") + make_frame(b"\x03\xe8bye", 0x88))
            wire.wait()
    assert order == [
        "request",
        "resolved True 0",
        "connect 1",
        "accepted",
        "returned",
        "first",
        "server close 1000 bye",
        "close 1000 bye",
    ]


def test_an_unknown_event():
    for name in ("upgradeError", "message"):
        with pytest.raises(ValueError, match=name):
            WebSocketServer().on(name, print)


def test_once_and_off():
    with serve() as (http, server):
        seen = []
        server.on("request", accept)
        server.once("connect", seen.append)
        listener = server.on("close", lambda *args: seen.append("close"))
        server.off("close", listener)
        for _ in range(2):
            open_client(http).close()
        wait_until(lambda: not server.connections)
        assert len(seen) == 1


class TestListenersThatRaise:
    def test_request_is_answered_500(self, caplog):
        with serve(app) as (http, server):

            @server.on("request")
            def decide(request):
                raise ZeroDivisionError("an error of the application")

            status, fields, _ = ask(http)
            assert status == 500
            assert fields["connection"] == "close"
            assert "ZeroDivisionError: an error of the application" in caplog.text
            assert ask(http, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200

    def test_request_after_accept_closes_1011(self, caplog):
        with serve() as (http, server):

            @server.on("request")
            def decide(request):
                request.accept()
                raise ZeroDivisionError("an error of the application")

            with open_client(http) as client:
                assert client.read_frame() == (0x88, b"\x03\xf3")
                assert client.read_end() == b""
            assert len(caplog.records) == 1
            assert "an error of the application" in caplog.text

    def test_request_after_reject_is_logged(self, caplog):
        with serve() as (http, server):

            @server.on("request")
            def decide(request):
                request.reject(404)
                raise ZeroDivisionError("an error of the application")

            assert ask(http)[0] == 404
            assert "an error of the application" in caplog.text

    def test_connect_closes_1011(self, caplog):
        with serve() as (http, server):
            server.on("request", accept)
            closed = record(server, "close")

            @server.on("connect")
            def connected(connection):
                raise ZeroDivisionError("an error of the application")

            with open_client(http) as client:
                assert client.read_frame() == (0x88, b"\x03\xf3")
                assert closed.get()[2] == 1011
            assert "an error of the application" in caplog.text

    @pytest.mark.parametrize("name", ["close", "upgrade_error"])
    def test_others_are_logged(self, name, caplog):
        with serve() as (http, server):
            server.on("request", accept)
            heard = Event()

            @server.on(name)
            def listener(*args):
                heard.set()
                raise ZeroDivisionError("an error of the application")

            ask(http, make_upgrade(method="POST"))
            open_client(http).close()
            heard.wait()
            wait_until(lambda: not server.connections)
            assert "an error of the application" in caplog.text
            open_client(http).close()

    @pytest.mark.parametrize("name", ["resolved", "accepted"])
    def test_a_requests_are_logged(self, name, caplog):
        with serve() as (http, server):

            @server.on("request")
            def decide(request):
                @request.on(name)
                def listener(thing):
                    raise ZeroDivisionError("an error of the application")

                echo(request)

            with open_client(http) as client:
                client.send(make_frame("x"))
                assert client.read_frame() == (0x81, b"x")
            assert "an error of the application" in caplog.text

    def test_a_subprotocol_error_is_one_line(self, caplog):
        with serve() as (http, server):
            server.on("request", lambda request: request.accept("chat"))
            assert ask(http)[0] == 500
            assert "chat" in caplog.text
            assert "Traceback" not in caplog.text
            assert [each.levelno for each in caplog.records] == [logging.ERROR]

    @pytest.mark.parametrize("name", ["connect", "request"])
    def test_an_exception_that_is_no_error(self, name):
        """A BaseException is not logged and forgotten: it passes, and the connection ends."""
        with serve() as (http, server):
            closed = record(server, "close")

            @server.on("request")
            def decide(request):
                request.accept()
                if name == "request":
                    raise gevent.GreenletExit

            if name == "connect":

                @server.on("connect")
                def connected(connection):
                    raise gevent.GreenletExit

            with open_client(http) as client:
                assert client.read_frame() == (0x88, b"\x03\xf3")
                assert client.read_end() == b""
                assert closed.get()[2] == 1011

    @pytest.mark.parametrize("name", ["upgrade_error", "request"])
    def test_a_killed_listener_ends_the_connection_of_http(self, name):
        with serve(app) as (http, server), RawClient(http) as client:
            server.on("request", accept)

            @server.on(name)
            def listener(thing):
                raise gevent.GreenletExit

            client.send(make_upgrade(method="POST" if name == "upgrade_error" else "GET"))
            client.read_end()
        open_count = len(http.log)
        assert open_count == 1

    def test_a_killed_request_listener_answers_500(self):
        with serve() as (http, server):

            @server.on("request")
            def decide(request):
                raise gevent.GreenletExit

            assert ask(http)[0] == 500


# What is there


def test_views():
    with serve() as (http, server):
        requests = record(server, "request")
        assert (len(server.connections), len(server.pending_requests)) == (0, 0)
        with RawClient(http) as client:
            client.send(make_upgrade())
            request = requests.get()[1]
            assert list(server.pending_requests) == [request]
            pending, connections = server.pending_requests, server.connections
            connection = request.accept()
            client.read_head()
            assert connection in connections
            assert connections == {connection}
            assert connections & {connection, 1} == {connection}
            assert repr(connection) in repr(connections)
            assert not hasattr(connections, "add")
            with pytest.raises(AttributeError):
                server.connections = ()
            for _ in connections:
                connection.drop()
            assert len(connections) == 0
        wait_until(lambda: not pending)


def test_a_request_that_was_accepted_in_a_loop_is_pending_no_more():
    with serve() as (http, server):
        server.on("request", lambda request: list(request.accept()))
        with open_client(http):
            wait_for_connections(server, 1)
            assert not server.pending_requests


def test_limit_counts():
    http = make_http(app)
    server = WebSocketServer()
    counts = server.limit_counts
    assert counts
    assert not any(counts.values())
    server.mount(http_server=http, accept_timeout=0.01)
    server.on("request", lambda request: None)
    with running(http):
        for count in (1, 2):
            assert ask(http)[0] == 503
            assert counts["accept_timeout"] == count
            server.unmount()
            server.mount(http_server=http, accept_timeout=0.01)
        assert sum(counts.values()) == 2
        with pytest.raises(TypeError):
            counts["accept_timeout"] = 0
        assert not any(WebSocketHandler.limit_counts(http).values())


class TestBroadcast:
    def test_text_and_binary(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as one, open_client(http) as two:
                wait_until(lambda: len(server.connections) == 2)
                assert server.broadcast("text") == 2
                assert server.broadcast(b"binary") == 2
                assert server.broadcast(memoryview(b"view")) == 2
                for client in (one, two):
                    assert client.read(6) == b"\x81\x04text"
                    assert client.read(8) == b"\x82\x06binary"
                    assert client.read(6) == b"\x82\x04view"

    def test_exclude(self):
        with serve() as (http, server):
            server.on("request", accept)
            connected = record(server, "connect")
            with open_client(http) as one, open_client(http) as two:
                first, second = connected.get()[1], connected.get()[1]
                assert server.broadcast("two", exclude=[first]) == 1
                assert server.broadcast("one", exclude=second) == 1
                assert server.broadcast("none", exclude={first, second}) == 0
                assert server.broadcast("all") == 2
                received = {one.read(10), two.read(10)}
                assert received == {b"\x81\x03one\x81\x03all", b"\x81\x03two\x81\x03all"}

    def test_one_that_closes_is_left_out(self):
        with serve() as (http, server):
            server.on("request", accept)
            connected = record(server, "connect")
            with open_client(http), open_client(http) as two:
                connected.get()[1].close()
                connected.get()
                assert server.broadcast("x") == 1
                assert two.read_frame() == (0x81, b"x")

    def test_it_is_fragmented(self):
        with serve(fragmentation_threshold=2) as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                server.broadcast("abc")
                assert client.read(7) == b"\x01\x02ab\x80\x01c"

    def test_a_slow_consumer_does_not_stop_the_others(self):
        with serve(send_high_water_mark=100000, fragment_outgoing_messages=False) as (http, server):
            server.on("request", accept)
            closed = record(server, "close")
            with open_client(http), open_client(http) as reader:
                wait_until(lambda: len(server.connections) == 2)
                while closed.empty():
                    server.broadcast(bytes(50000))
                    assert reader.read_frame() == (0x82, bytes(50000))
                    # The reader never has to wait, so the hub would not have its turn.
                    gevent.sleep(0)
                assert closed.get()[2] == 1013
                assert server.broadcast("x") == 1
                assert reader.read_frame() == (0x81, b"x")

    def test_another_thread(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_for_connections(server, 1)
                with pytest.raises(InvalidState, match="thread"):
                    gevent.get_hub().threadpool.apply(server.broadcast, ("x",))
                server.broadcast("y")
                assert client.read_frame() == (0x81, b"y")

    def test_another_type(self):
        with pytest.raises(TypeError, match="int"):
            WebSocketServer().broadcast(1)


# The end


class TestCloseAllConnections:
    def test_the_closing_handshake(self):
        with serve() as (http, server):
            server.on("request", accept)
            closed = record(server, "close")
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                server.close_all_connections()
                assert [connection.state for connection in server.connections] == ["CLOSING"]
                assert client.read_frame() == (0x88, b"\x03\xe8")
                client.send(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
                assert closed.get()[2:] == (1000, "")
                assert server.mounted
            open_client(http).close()

    def test_code_and_reason(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                server.close_all_connections(4000, "enough")
                assert client.read_frame() == (0x88, b"\x0f\xa0enough")

    @pytest.mark.parametrize("where", ["pending", "in its listener"])
    def test_pending_requests_get_503(self, where):
        with serve() as (http, server):
            come, go = Event(), Event()

            @server.on("request")
            def decide(request):
                come.set()
                if where != "pending":
                    go.wait()

            with RawClient(http) as client:
                client.send(make_upgrade())
                come.wait()
                gevent.sleep(0)
                server.close_all_connections()
                status, fields, _ = client.read_answer()
                assert (status, fields["connection"]) == (503, "close")
                go.set()
                assert client.read_end() == b""
            wait_until(lambda: not server.pending_requests)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [pytest.param((1005,), ValueError, id="code"), pytest.param((1000, "x" * 124), ValueError, id="reason")],
    )
    def test_wrong_arguments(self, arguments, error):
        server = WebSocketServer()
        for method in (server.close_all_connections, lambda *args: server.shut_down(None, *args)):
            with pytest.raises(error):
                method(*arguments)


class TestShutDown:
    def test_it_returns_at_once(self):
        with serve(app) as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                server.shut_down()
                assert not server.mounted
                assert client.read_frame() == (0x88, b"\x03\xe9")
                assert ask(http)[0] == 200

    def test_a_timeout_waits_for_the_handshakes(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                (connection,) = server.connections
                shutting = gevent.spawn(server.shut_down, 20, 1012, "restart")
                assert client.read_frame() == (0x88, b"\x03\xf4restart")
                assert not shutting.ready()
                client.send(b"\x88\x82\x00\x00\x00\x00\x03\xf4")
                shutting.get()
                assert (connection.state, connection.close_code) == ("CLOSED", 1012)

    def test_what_is_left_is_dropped(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as client:
                wait_until(lambda: server.connections)
                (connection,) = server.connections
                server.shut_down(timeout=0.05)
                assert connection.state == "CLOSED"
                assert not server.connections
                assert client.read_frame() == (0x88, b"\x03\xe9")
                assert client.read_end() == b""

    def test_spread(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http) as one, open_client(http) as two:
                wait_until(lambda: len(server.connections) == 2)
                server.shut_down(spread=0.2)
                wait_until(lambda: any(connection.state == "CLOSING" for connection in server.connections))
                assert sorted(connection.state for connection in server.connections) == ["CLOSING", "OPEN"]
                for client in (one, two):
                    assert client.read_frame() == (0x88, b"\x03\xe9")

    def test_a_timeout_shorter_than_the_spread(self):
        with serve() as (http, server):
            server.on("request", accept)
            with open_client(http), open_client(http):
                wait_until(lambda: len(server.connections) == 2)
                server.shut_down(timeout=0.05, spread=1000)
                assert not server.connections

    def test_pending_requests(self):
        with serve() as (http, server), RawClient(http) as client:
            requests = record(server, "request")
            client.send(make_upgrade())
            requests.get()
            server.shut_down(timeout=1, spread=0.01)
            assert client.read_answer()[0] == 503

    @pytest.mark.parametrize("options", [{"timeout": -1}, {"spread": -1}])
    def test_negative_times(self, options):
        with pytest.raises(ValueError, match="negative"):
            WebSocketServer().shut_down(**options)


@pytest.mark.parametrize("method", ["close", "stop"])
@pytest.mark.parametrize("mounts", [1, 2])
def test_the_end_of_the_http_server_is_1001(method, mounts):
    http = make_http(app)
    server = WebSocketServer(http_server=http)
    for _ in range(mounts - 1):
        WebSocketServer(http_server=http)
    server.on("request", echo)
    closed = record(server, "close")
    with running(http), open_client(http) as client:
        wait_until(lambda: server.connections)
        ending = gevent.spawn(getattr(http, method))
        assert client.read_frame() == (0x88, b"\x03\xe9")
        if method == "close":
            ending.get()
        else:
            assert not ending.ready()
        client.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9")
        assert closed.get()[2:] == (1001, "")
        ending.get()


def test_stop_waits_no_longer_than_its_timeout():
    with serve() as (http, server):
        server.on("request", accept)
        with open_client(http):
            wait_until(lambda: server.connections)
            with gevent.Timeout(1):
                http.stop(timeout=0.05)


@pytest.mark.parametrize("style", ["loop", "event"])
def test_stop_with_a_pool(style):
    http = make_http(app, spawn=Pool(10))
    server = WebSocketServer(http_server=http)

    @server.on("request")
    def decide(request):
        connection = request.accept()
        if style == "loop":
            for message in connection:
                connection.send(message)

    closed = record(server, "close")
    with running(http), open_client(http) as client:
        wait_until(lambda: server.connections)
        # The client does not answer: the handler's greenlet is killed in the end.
        http.stop(timeout=0.05)
        assert client.read_frame() == (0x88, b"\x03\xe9")
        client.send(b"\x88\x82\x00\x00\x00\x00\x03\xe9")
        assert closed.get()[2] == 1001
        assert not http.pool


def test_a_greenlet_killed_in_its_loop():
    pool = Pool(10)
    http = make_http(app, spawn=pool)
    server = WebSocketServer(http_server=http)
    server.on("request", lambda request: list(request.accept()))
    closed = record(server, "close")
    with running(http), open_client(http) as client:
        wait_until(lambda: server.connections)
        pool.kill()
        assert client.read_frame() == (0x88, b"\x03\xf3")
        assert closed.get()[2] == 1011


def test_a_request_that_is_pending_when_its_greenlet_is_killed():
    http = make_http(app, spawn=Pool(10))
    server = WebSocketServer(http_server=http)
    requests = record(server, "request")
    with running(http), RawClient(http) as client:
        client.send(make_upgrade())
        request = requests.get()[1]
        http.stop(timeout=0.01)
        assert client.read_answer()[0] == 503
        with pytest.raises(InvalidState):
            request.accept()


def test_a_request_accepted_after_the_end_of_the_http_server():
    http = make_http(app)
    server = WebSocketServer(http_server=http)
    requests = record(server, "request")
    with running(http), RawClient(http) as client:
        client.send(make_upgrade())
        request = requests.get()[1]
        http.close()
        request.accept()
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read_frame() == (0x88, b"\x03\xe9")


def test_start_again_after_stop():
    http = make_http(app)
    server = WebSocketServer(http_server=http)
    server.on("request", echo)
    for _ in range(2):
        with running(http), open_client(http) as client:
            client.send(make_frame("x"))
            assert client.read_frame() == (0x81, b"x")
            client.close()
            wait_until(lambda: not server.connections)


@pytest.mark.parametrize("style", ["event", "later", "rejected", "expired"])
def test_nothing_keeps_a_request(style):
    http = make_http(app)
    server = WebSocketServer(http_server=http, accept_timeout=0.05)
    references = []

    @server.on("request")
    def decide(request):
        references.extend(weakref.ref(thing) for thing in (request, request._handler))
        assert request.http.GET is not None
        if style == "event":
            request.accept()
        elif style == "later":
            gevent.spawn(request.accept)
        elif style == "rejected":
            request.reject()

    with running(http), RawClient(http) as client:
        client.send(make_upgrade())
        client.read_head()
        wait_until(lambda: not server.pending_requests)
        del client

        def collected():
            gc.collect()
            return all(reference() is None for reference in references)

        wait_until(collected)


def test_two_mounts_under_tls():
    http = make_http(app, ssl_context=make_tls_context())
    servers = [WebSocketServer(http_server=http, path=path) for path in ("/a", "/b")]
    for server in servers:
        server.on("request", accept)
    with running(http), open_client(http, "/a", tls=True), open_client(http, "/b", tls=True):
        assert [len(server.connections) for server in servers] == [1, 1]


def test_tls_context_of_the_standard_library_is_refused():
    http = WSGIServer(("127.0.0.1", 0), None, ssl_context=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="ssl_context that does not cooperate with gevent"):
            WebSocketServer(http_server=http)
        # What a handler of views may have put around it does not hide it.
        get_host(http)

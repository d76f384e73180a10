"""What a request tells, and how it is accepted, rejected and ignored."""

from __future__ import annotations

import socket

import gevent
import pytest
import webob
import webob.exc
from gevent.event import Event

from geventws import CookieError, InvalidState, SubprotocolError, WebSocketHandler
from tests.support import (
    KEY,
    RawClient,
    make_frame,
    make_http,
    make_tls_context,
    make_upgrade,
    open_client,
    record,
    serve,
    wait_until,
)


def app(environ, start_response):
    body = b"the application"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def ask(decide, *lines, path="/", octets=None, **options):
    """Let ``decide`` look at one request; returns the answer to it, 403 where it does not decide."""
    failures = []
    with serve(app, **options) as (http, server):

        @server.on("request")
        def listener(request):
            try:
                decide(request)
            except BaseException as error:
                failures.append(error)
                raise
            finally:
                if not request.resolved:
                    request.reject()

        with RawClient(http) as client:
            client.send(make_upgrade(path, *lines) if octets is None else octets)
            answer = client.read_answer()
            answer[1]["head"] = client.head
        wait_until(lambda: not server.connections)
    if failures:
        raise failures[0]
    return answer


# What it tells


def test_the_attributes():
    def decide(request):
        assert request.host == "example.com:8000"
        assert request.key == KEY
        assert request.resource == "/a%20b/c?x=1&y=%C3%A4&x=2&z"
        assert request.resource_url.path == "/a b/c"
        assert request.resource_url.query.getall("x") == ["1", "2"]
        assert dict(request.resource_url.query.mixed()) == {"x": ["1", "2"], "y": "ä", "z": ""}
        assert request.origin == "https://example.com"
        assert request.websocket_version == 13
        assert request.remote_address == "127.0.0.1"
        assert request.remote_addresses == ["127.0.0.1"]
        assert request.requested_subprotocols == ["Chat", "super-chat", "v1.x"]
        assert request.requested_extensions == [("permessage-deflate", [("a", "1"), ("b", None)]), ("x-y", [])]
        assert request.cookies == [("a", "1"), ("b", "x=y"), ("a", "ü"), ("q", "quoted"), ("bad", "%FF")]
        assert request.resolved is False
        assert request.environ["PATH_INFO"] == "/a b/c"
        assert "/a%20b/c" in repr(request)
        assert "127.0.0.1" in repr(request)

    lines = [
        "Host: example.com:8000",
        "Origin: https://example.com",
        "Sec-WebSocket-Protocol: Chat, super-chat",
        "Sec-WebSocket-Protocol: v1.x",
        'Sec-WebSocket-Extensions: permessage-deflate; a=1; b, x-y"'[:-1],
        'Cookie: a=1; b=x=y; a=%C3%BC; q="quoted"; bad=%FF',
    ]
    assert ask(decide, *lines, path="/a%20b/c?x=1&y=%C3%A4&x=2&z")[0] == 403


def test_what_is_absent():
    def decide(request):
        assert request.origin is None
        assert request.requested_subprotocols == []
        assert request.requested_extensions == []
        assert request.cookies == []
        assert request.resource_url == ("/", {})

    ask(decide)


def test_broken_escapes_do_not_raise():
    def decide(request):
        assert request.resource_url.path == "/\ufffd"
        assert request.resource_url.query["a"] == "\ufffd"
        assert request.resource_url.query["b"] == "%zz"

    ask(decide, path="/%ff?a=%ff&b=%zz")


def test_the_absolute_form_of_a_target():
    def decide(request):
        assert request.resource == "http://localhost/chat?x=1"
        assert request.resource_url.path == "/chat"
        assert request.resource_url.query["x"] == "1"

    ask(decide, path="http://localhost/chat?x=1")


def test_http_is_a_webob_request():
    def decide(request):
        assert isinstance(request.http, webob.Request)
        assert request.http is request.http
        assert request.http.path == "/x"
        assert request.http.headers["User-Agent"] == "test"

    ask(decide, "User-Agent: test", path="/x")


@pytest.mark.parametrize(
    ("options", "line", "address", "addresses"),
    [
        pytest.param(
            {}, "203.0.113.7, 10.1.2.3", "203.0.113.7", ["203.0.113.7", "10.1.2.3", "127.0.0.1"], id="proxies"
        ),
        pytest.param({}, "[2001:db8::1]:443", "2001:db8::1", ["2001:db8::1", "127.0.0.1"], id="brackets and port"),
        pytest.param({"trusted_proxies": []}, "203.0.113.7", "127.0.0.1", ["127.0.0.1"], id="nobody is trusted"),
        pytest.param(
            {"trusted_proxies": None}, "1.1.1.1, 8.8.8.8", "1.1.1.1", ["1.1.1.1", "8.8.8.8", "127.0.0.1"], id="all"
        ),
        pytest.param({"ignore_x_forwarded_for": True}, "203.0.113.7", "127.0.0.1", ["127.0.0.1"], id="ignored"),
    ],
)
def test_remote_address(options, line, address, addresses):
    connections = []

    def decide(request):
        assert (request.remote_address, request.remote_addresses) == (address, addresses)
        connections.append(request.accept())

    ask(decide, f"X-Forwarded-For: {line}", **options)
    assert (connections[0].remote_address, connections[0].remote_addresses) == (address, addresses)


def test_several_fields_of_x_forwarded_for():
    def decide(request):
        assert request.remote_addresses == ["203.0.113.7", "10.0.0.1", "127.0.0.1"]

    ask(decide, "X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 10.0.0.1")


def test_parse_cookies_and_parse_extensions_off():
    def decide(request):
        assert request.cookies == []
        assert request.requested_extensions == []
        request.accept()

    lines = ["Cookie: a=1", "Sec-WebSocket-Extensions: ;;not, parsed"]
    assert ask(decide, *lines, parse_cookies=False, parse_extensions=False)[0] == 101


# Accepting


def test_the_least_answer():
    _, fields, _ = ask(lambda request: request.accept())
    assert fields["head"] == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_everything_in_the_answer():
    class Cookie:
        name = "b"
        value = "2"
        path = "/"
        domain = None
        expires = None
        max_age = 60
        secure = True
        http_only = True
        same_site = "Lax"

    def decide(request):
        cookies = [{"name": "a", "value": "1"}, Cookie()]
        connection = request.accept("CHAT", request.origin, cookies, {"X-One": "1"})
        assert connection.subprotocol == "Chat"
        assert connection.request_path == "/x?y"
        assert connection.websocket_version == 13
        assert connection.extensions == []
        assert connection.connected

    lines = ("Sec-WebSocket-Protocol: other, Chat", "Origin: https://example.com")
    _, fields, _ = ask(decide, *lines, path="/x?y")
    head = fields["head"]
    assert b"\r\nSec-WebSocket-Protocol: Chat\r\n" in head
    assert b"\r\nOrigin: https://example.com\r\n" in head
    assert b"\r\nSet-Cookie: a=1\r\n" in head
    assert b"\r\nSet-Cookie: b=2; " in head
    assert b"\r\nX-One: 1\r\n" in head


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(("other",), SubprotocolError, id="not offered"),
        pytest.param(("a b",), SubprotocolError, id="no token"),
        pytest.param((None, "a\r\nb"), ValueError, id="origin"),
        pytest.param((None, None, [{"name": "a", "value": "b;c"}]), CookieError, id="cookie"),
        pytest.param((None, None, [1]), Exception, id="no cookie"),
        pytest.param((None, None, (), [("X-A", "b\r\nX-C: d")]), ValueError, id="CR LF"),
        pytest.param((None, None, (), [("X-A", "b\0")]), ValueError, id="NUL"),
        pytest.param((None, None, (), [("X-A", "\u20ac")]), ValueError, id="not latin-1"),
        pytest.param((None, None, (), [("X-A", 1)]), TypeError, id="no str"),
        pytest.param((None, None, (), [("connection", "close")]), ValueError, id="Connection"),
        pytest.param((None, None, (), [("Upgrade", "x")]), ValueError, id="Upgrade"),
        pytest.param((None, None, (), [("Content-Length", "0")]), ValueError, id="Content-Length"),
        pytest.param((None, None, (), [("Transfer-Encoding", "x")]), ValueError, id="Transfer-Encoding"),
        pytest.param((None, None, (), [("Sec-WebSocket-Accept", "x")]), ValueError, id="Sec-WebSocket-"),
    ],
)
@pytest.mark.parametrize("later", [pytest.param(False, id="in the listener"), pytest.param(True, id="later")])
def test_a_failed_check_answers_500_and_raises(arguments, error, later):
    with serve() as (http, server), RawClient(http) as client:
        requests = record(server, "request")
        connects = record(server, "connect")
        raised = []
        resolved = []

        def try_to_accept(request):
            request.on("resolved", resolved.append)
            with pytest.raises(error) as caught:
                request.accept(*arguments)
            raised.append(caught.value)
            assert request.resolved
            with pytest.raises(InvalidState, match="answered 500"):
                request.accept()

        if not later:
            server.on("request", try_to_accept)
        client.send(make_upgrade("/", "Sec-WebSocket-Protocol: chat"))
        _, request = requests.get()
        if later:
            try_to_accept(request)
        status, fields, _ = client.read_answer()
        assert status == 500
        assert fields["connection"] == "close"
        assert client.read_end() == b""
        wait_until(lambda: not server.pending_requests)
        assert len(raised) == 1
        assert resolved == [request]
        assert connects.empty()


def test_messages_are_held_until_accept_returns():
    with serve() as (http, server):
        received = []
        done = Event()

        @server.on("connect")
        def connected(connection):
            connection.on("message", received.append)
            gevent.sleep(0.01)
            assert received == []

        @server.on("request")
        def decide(request):
            request.accept()
            assert received == []
            done.set()

        with open_client(http, early=make_frame("one")) as client:
            client.send(make_frame("two"))
            done.wait()
            wait_until(lambda: received == ["one", "two"])


def test_accept_from_another_greenlet():
    with serve() as (http, server), RawClient(http) as client:
        requests = record(server, "request")
        client.send(make_upgrade() + make_frame("early"))
        request = requests.get()[1]
        events = record(request, "accepted", "rejected", "resolved")
        connection = request.accept()
        assert [events.get()[0], events.get()[0]] == ["resolved", "accepted"]
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert connection.receive() == "early"
        connection.send("late")
        assert client.read_frame() == (0x81, b"late")
        wait_until(lambda: not server.pending_requests)
        assert list(server.connections) == [connection]


def test_a_loop_in_the_listener_closes_1000_when_it_returns():
    with serve() as (http, server):

        @server.on("request")
        def decide(request):
            connection = request.accept()
            assert connection.receive() == "x"

        with open_client(http, early=make_frame("x")) as client:
            assert client.read_frame() == (0x88, b"\x03\xe8")


# A client that is gone


class TestClientGone:
    def check(self, server, request, events, connections):
        connection = request.accept()
        assert connection.state == "CLOSED" or not connection.connected
        name, connected = connections.get()
        assert (name, connected) == ("connect", connection)
        assert connections.get()[:1] == ("close",)
        assert (connection.close_code, connection.closed_by) == (1006, "transport")
        assert connection.state == "CLOSED"
        assert not server.connections
        assert [events.get()[0], events.get()[0]] == ["resolved", "accepted"]

    @pytest.mark.parametrize("tls", [pytest.param(False, id="plain"), pytest.param(True, id="TLS")])
    def test_while_pending(self, tls, tls_http):
        with serve(http=tls_http if tls else None) as (http, server):
            requests = record(server, "request")
            connections = record(server, "connect", "close")
            with RawClient(http, tls=tls) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
            wait_until(lambda: not server.pending_requests)
            assert request.is_client_gone
            self.check(server, request, record(request, "resolved", "accepted"), connections)

    @pytest.mark.parametrize("tls", [pytest.param(False, id="plain"), pytest.param(True, id="TLS")])
    def test_in_the_listener(self, tls, tls_http):
        with serve(http=tls_http if tls else None) as (http, server):
            connections = record(server, "connect", "close")
            come, go, done = Event(), Event(), Event()

            @server.on("request")
            def decide(request):
                come.set()
                go.wait()
                self.check(server, request, record(request, "resolved", "accepted"), connections)
                done.set()

            with RawClient(http, tls=tls) as client:
                client.send(make_upgrade())
                come.wait()
            # One turn of the hub, for the end to pass the loopback.
            gevent.sleep(0)
            go.set()
            done.wait()

    def test_nothing_is_written(self):
        with serve() as (http, server):
            requests = record(server, "request")

            @server.on("connect")
            def connected(connection):
                with pytest.raises(Exception, match=r"broke|closed"):
                    connection.send("greeting")

            with RawClient(http) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
                client.shut_write()
                wait_until(lambda: request.is_client_gone)
                request.accept()
                assert client.read_end() == b""

    def test_with_early_octets_it_is_seen_after_the_101(self):
        with serve() as (http, server):
            requests = record(server, "request")
            closed = record(server, "close")
            with RawClient(http) as client:
                client.send(make_upgrade() + make_frame("last words"))
                request = requests.get()[1]
                client.shut_write()
                connection = request.accept()
                assert connection.receive() == "last words"
                assert client.read_head().startswith(b"HTTP/1.1 101 ")
                assert closed.get()[2] == 1006

    @pytest.mark.parametrize("how", ["accept", "reject", "response"])
    @pytest.mark.parametrize("tls", [pytest.param(False, id="plain"), pytest.param(True, id="TLS")])
    def test_a_loss_that_shows_only_when_something_is_written(self, tls, how):
        class Blind(WebSocketHandler):
            def is_client_gone(self):
                return False

        http = make_http(handler_class=Blind, **({"ssl_context": make_tls_context()} if tls else {}))
        with serve(http=http, accept_timeout=None) as (_, server):
            requests = record(server, "request")
            closed = record(server, "close")
            with RawClient(http, tls=tls) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
                client.reset()
            wait_until(lambda: is_reset(request))
            if how == "accept":
                connection = request.accept()
                assert closed.get() == ("close", connection, 1006, "")
            else:
                request.reject(403 if how == "reject" else webob.exc.HTTPForbidden())
            assert request.is_client_gone
            wait_until(lambda: not server.pending_requests)

    def test_a_reset_while_pending(self):
        with serve() as (http, server):
            requests = record(server, "request")
            with RawClient(http) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
                client.reset()
            wait_until(lambda: not server.pending_requests)
            assert request.is_client_gone

    def test_it_is_rejected(self):
        with serve() as (http, server):
            requests = record(server, "request")
            with RawClient(http) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
            wait_until(lambda: request.is_client_gone and not server.pending_requests)
            events = record(request, "resolved", "rejected")
            request.reject()
            assert [events.get()[0], events.get()[0]] == ["resolved", "rejected"]

    def test_octets_that_come_while_it_is_pending_are_kept(self):
        with serve() as (http, server):
            requests = record(server, "request")
            with RawClient(http) as client:
                client.send(make_upgrade())
                request = requests.get()[1]
                client.send(make_frame("early"))
                wait_until(lambda: request._watcher is None)
                client.send(make_frame("bird"))
                connection = request.accept()
                assert (connection.receive(), connection.receive()) == ("early", "bird")


def is_reset(request):
    """Look at the TCP state in ``tcp_info``: 7 is CLOSE."""
    return request._handler.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07"


@pytest.fixture
def tls_http():
    return make_http(ssl_context=make_tls_context())


# Rejecting


@pytest.mark.parametrize(
    ("arguments", "status", "fields", "body"),
    [
        pytest.param({}, 403, {}, b"Forbidden\n", id="default"),
        pytest.param({"status": 404}, 404, {}, b"Not Found\n", id="status"),
        pytest.param({"status": 499}, 499, {}, b"Unknown\n", id="status without a name"),
        pytest.param({"reason": "no"}, 403, {"x-websocket-reject-reason": "no"}, b"no\n", id="reason"),
        pytest.param(
            {"reason": "n\u00f6 \u20ac"},
            403,
            {"x-websocket-reject-reason": "n\u00f6 ?"},
            b"n\xc3\xb6 \xe2\x82\xac\n",
            id="text",
        ),
        pytest.param({"headers": [("X-A", "1")]}, 403, {"x-a": "1"}, b"Forbidden\n", id="headers"),
        pytest.param({"headers": {"X-A": "1"}}, 403, {"x-a": "1"}, b"Forbidden\n", id="mapping"),
        pytest.param(
            {"body": "\u00e4"}, 403, {"content-type": "text/plain; charset=utf-8"}, b"\xc3\xa4", id="str body"
        ),
        pytest.param(
            {"body": b"\x00", "headers": {"Content-Type": "x/y"}}, 403, {"content-type": "x/y"}, b"\0", id="body"
        ),
        pytest.param(
            {"status": 302, "headers": {"Location": "/x"}}, 302, {"location": "/x"}, b"Found\n", id="redirect"
        ),
        pytest.param({"status": 204, "body": "x"}, 204, {}, b"", id="no content"),
        pytest.param({"status": webob.exc.HTTPForbidden("sorry")}, 403, {}, None, id="WebOb error"),
        pytest.param({"status": webob.Response("body", 401)}, 401, {}, b"body", id="WebOb response"),
    ],
)
def test_reject(arguments, status, fields, body):
    with serve(app) as (http, server), RawClient(http) as client:
        requests = record(server, "request", "connect")
        errors = record(server, "upgrade_error")
        client.send(make_upgrade())
        request = requests.get()[1]
        events = record(request, "accepted", "rejected", "resolved")
        request.reject(**arguments)
        answer, got, octets = client.read_answer()
        assert answer == status
        assert got["connection"] == "close"
        assert got | fields == got
        assert body is None or octets == body
        assert client.read_end() == b""
        assert [events.get(), events.get()] == [("resolved", request), ("rejected", request)]
        assert requests.empty()
        assert errors.empty()
        assert f'"GET / HTTP/1.1" {status} ' in http.log[0]


def test_a_response_of_unknown_length():
    def stream(environ, start_response):
        start_response("403 Forbidden", [("Connection", "keep-alive")])
        yield b"in "
        yield b"pieces"

    with serve() as (http, server), RawClient(http) as client:
        server.on("request", lambda request: request.reject(stream))
        client.send(make_upgrade())
        assert b"\r\nTransfer-Encoding: chunked\r\n" in client.read_head()
        assert client.head.count(b"onnection: ") == 1
        assert b"Connection: close" in client.head
        assert client.read_end() == b"3\r\nin \r\n6\r\npieces\r\n0\r\n\r\n"


def test_a_response_that_raises(caplog):
    def fail(environ, start_response):
        raise ZeroDivisionError

    status, fields, _ = ask_raising(lambda request: request.reject(fail), ZeroDivisionError)
    assert (status, fields["connection"]) == (500, "close")


def ask_raising(decide, error):
    answers = []
    with serve() as (http, server), RawClient(http) as client:

        @server.on("request")
        def listener(request):
            with pytest.raises(error):
                decide(request)
            answers.append(request.resolved)

        client.send(make_upgrade())
        answer = client.read_answer()
        assert answers == [True]
        return answer


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"status": 101}, ValueError, id="101"),
        pytest.param({"status": 600}, ValueError, id="600"),
        pytest.param({"status": True}, TypeError, id="bool"),
        pytest.param({"status": "403"}, TypeError, id="str"),
        pytest.param({"reason": "a\r\nb"}, ValueError, id="CR LF in the reason"),
        pytest.param({"reason": 1}, TypeError, id="reason"),
        pytest.param({"body": 5}, TypeError, id="body"),
        pytest.param({"headers": [("A", "b\nc")]}, ValueError, id="LF in a header"),
        pytest.param({"headers": [("Connection", "keep-alive")]}, ValueError, id="Connection"),
        pytest.param({"headers": [("Content-Length", "1")]}, ValueError, id="Content-Length"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, error):
    def decide(request):
        with pytest.raises(error):
            request.reject(**arguments)
        assert not request.resolved
        request.reject(418)

    assert ask(decide)[0] == 418


@pytest.mark.parametrize("first", ["accept", "reject", "ignore"])
@pytest.mark.parametrize("second", ["accept", "reject", "ignore"])
def test_a_second_answer(first, second):
    def decide(request):
        getattr(request, first)()
        with pytest.raises(InvalidState, match="once"):
            getattr(request, second)()

    assert ask(decide)[0] == {"accept": 101, "reject": 403, "ignore": 200}[first]


def test_an_unknown_event():
    def decide(request):
        with pytest.raises(ValueError, match="connect"):
            request.on("connect", print)

    ask(decide)


def test_ignore_emits_resolved():
    seen = []

    def decide(request):
        request.on("resolved", seen.append)
        request.ignore()
        assert seen == [request]

    assert ask(decide)[2] == b"the application"


@pytest.mark.parametrize("name", ["resolved", "accepted"])
def test_a_listener_that_is_killed_leaves_no_pending_request(name):
    with serve() as (http, server), RawClient(http) as client:
        requests = record(server, "request")
        client.send(make_upgrade())
        request = requests.get()[1]

        @request.on(name)
        def listener(thing):
            raise gevent.GreenletExit

        with pytest.raises(gevent.GreenletExit):
            request.accept()
        wait_until(lambda: not server.pending_requests)
        if name == "resolved":
            assert client.read_end() == b""
        else:
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            client.send(make_frame(b"\x03\xe8", 0x88))
            assert client.read_frame() == (0x88, b"\x03\xe8")

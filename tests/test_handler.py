"""What the handler does with the octets of an upgrade request, and of the plain HTTP around it."""

from __future__ import annotations

import os
import re
import socket as stdlib_socket

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIHandler

from geventws import ServerConfig, WebSocketHandler, WebSocketServer
from geventws.host import get_host
from tests.support import (
    Log,
    RawClient,
    make_frame,
    make_http,
    make_narrow_listener,
    make_tls_context,
    make_upgrade,
    open_client,
    record,
    run_hub,
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


# The two ways of reading the head of an upgrade request

HEADS = [
    pytest.param(make_upgrade(), id="least"),
    pytest.param(make_upgrade("/a%20b/%c3%a9%2f?c=%26&d+e&d"), id="escapes"),
    pytest.param(make_upgrade("//a//b?"), id="slashes"),
    pytest.param(make_upgrade("http://other.example:1/a?b=http://c"), id="absolute form"),
    pytest.param(make_upgrade("/", "Connection: close, Upgrade"), id="close, Upgrade"),
    pytest.param(make_upgrade("/", "Connection: close"), id="close"),
    pytest.param(make_upgrade("/", "Connection: keep-alive", "connection: upgrade"), id="keep-alive"),
    pytest.param(make_upgrade("/", "Upgrade: h2c", "Upgrade: WebSocket"), id="two upgrades"),
    pytest.param(make_upgrade("/", "Upgrade: h2c"), id="another upgrade"),
    pytest.param(make_upgrade("/", "X-A: 1", "x-a: 2", "Cookie: a=1", "Cookie: b=2; c"), id="duplicates"),
    pytest.param(make_upgrade("/", "Origin: a", "Origin: b"), id="two origins"),
    pytest.param(make_upgrade("/", "X_Forwarded_For: 192.0.2.1", "Content_Length: 5", "X_A: 1"), id="underscores"),
    pytest.param(make_upgrade("/", "X-A: \t b\t ", "X-B:", "X-C:  ", "Origin:https://a.example  "), id="blanks"),
    pytest.param(make_upgrade("/", "X-A: Gr\xfc\xdfe \x85\xa0"), id="beyond ASCII"),
    pytest.param(make_upgrade("/", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 10.0.0.1"), id="proxies"),
    pytest.param(
        make_upgrade("/", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate; x=1"),
        id="offers",
    ),
    pytest.param(make_upgrade("/", "Content-Type: text/plain", "Expect: 100-continue"), id="as with a body"),
    pytest.param(make_upgrade("/", "Sec-WebSocket-Version: 8"), id="error"),
]


class Encounter:
    """Be what one upgrade request meets, a server, a view or the application, and know what it was to them.

    It is sent whole, or with its first octet alone, so that pywsgi parses its head.
    """

    def __init__(self, who, octets, *, is_whole, tls=False):
        self.who = who
        self.is_whole = is_whole
        self.handler = None
        self.seen = []
        options = {"ssl_context": make_tls_context()} if tls else {}
        http = make_http(self.view, handler_class=WebSocketHandler if who == "a view" else WSGIHandler, **options)
        if who != "a view":
            WebSocketServer(http_server=http).on("request", self.decide)
        with running(http), RawClient(http, tls=tls) as client:
            client.send(GET)
            client.read_answer()
            if not is_whole:
                client.send(octets[:1])
                run_hub()
            client.send(octets if is_whole else octets[1:])
            self.head = client.read_head()
            client.shut_write()
            client.read_end()
            wait_until(lambda: len(http.log) == 2)
        self.log = re.sub(r"\[.*?\]| [\d.]+$", "", http.log[-1])

    def decide(self, request):
        self.note(request._handler, request)
        if self.who == "the application":
            request.ignore()
        else:
            request.accept()

    def view(self, environ, start_response):
        request = environ.get("geventws.request")
        if request is not None:
            self.note(request._handler, request)
        elif "HTTP_UPGRADE" in environ and self.handler is not None:
            self.note(self.handler, None)
        elif "HTTP_UPGRADE" in environ:
            self.seen.append(list_values(environ))
        if request is None or request.error is not None:
            return app(environ, start_response)
        request.accept()
        return []

    def note(self, handler, request):
        assert (handler._head is not None) is self.is_whole
        self.handler = handler
        names = ("command", "path", "request_version", "content_length")
        # pywsgi's own has an end of line that nothing needs.
        self.seen.append({name: getattr(handler, name) for name in names} | {"line": handler.requestline.rstrip()})
        self.seen.append([handler.headers.items(), handler.get_path()])
        if request is None:
            self.seen.append(handler.close_connection)
        else:
            names = ("host", "key", "origin", "remote_address", "remote_addresses", "requested_extensions")
            names += ("requested_subprotocols", "resource", "resource_url", "websocket_version", "cookies")
            self.seen.append({name: getattr(request, name) for name in names} | {"error": str(request.error)})
        self.seen.append(list_values(handler.environ))


def list_values(environ):
    """Return what a WSGI environment says of the request, and the kind of its other values."""
    return {
        name: value if isinstance(value, str | bool | tuple) else type(value)
        for name, value in environ.items()
        if name not in ("REMOTE_PORT", "SERVER_PORT", "geventws.request")
    }


@pytest.mark.parametrize("who", ["a server", "a view", "the application"])
@pytest.mark.parametrize("octets", HEADS)
def test_a_head_is_the_same_whoever_parses_it(who, octets):
    whole, split = (Encounter(who, octets, is_whole=is_whole) for is_whole in (True, False))
    # A server refuses what is wrong before anybody sees it.
    assert whole.seen or re.match(b"HTTP/1.1 4(00|26) ", whole.head)
    assert whole.seen == split.seen
    assert whole.log == split.log
    # But for the time in an answer of the application.
    assert whole.head.partition(b"\r\nDate")[0] == split.head.partition(b"\r\nDate")[0]


@pytest.mark.parametrize("who", ["a server", "the application"])
def test_a_head_is_the_same_under_tls(who):
    whole, split = (Encounter(who, make_upgrade(), is_whole=is_whole, tls=True) for is_whole in (True, False))
    assert (whole.seen, whole.log) == (split.seen, split.log)


@pytest.mark.parametrize(("more", "status"), [(0, 101), (-1, 431)])
@pytest.mark.parametrize("limit", ["max_head_size", "max_header_count"])
def test_limits_of_an_upgrade_request(limit, more, status):
    octets = make_upgrade()
    value = (len(octets) if limit == "max_head_size" else 5) + more
    with serve(app, **{limit: value}) as (http, server), RawClient(http) as client:
        server.on("request", echo)
        client.send(octets + make_frame("x"))
        assert client.read_head().startswith(b"HTTP/1.1 %d " % status)
        assert server.limit_counts[limit] == (status == 431)


def test_a_large_head():
    """Larger than what a reader holds, so pywsgi parses it."""
    with serve() as (http, server):
        server.on("request", lambda request: request.accept().send(str(len(dict(request.cookies)["a"]))))
        with open_client(http, "/", f"Cookie: a={20000 * 'x'}") as client:
            assert client.read_frame() == (0x81, b"20000")


def test_where_nobody_takes_upgrade_requests_the_bounds_are_pywsgis():
    class Handler(WebSocketHandler):
        config = None

    octets = [make_upgrade("/", *(f"X-{number}: a" for number in range(count))) for count in (94, 95)]
    with running(make_http(app, handler_class=Handler)) as http, RawClient(http) as client:
        client.send(octets[0])
        assert client.read_answer()[0] == 200
        client.send(octets[1])
        assert client.read_answer()[0] == 400


def test_header_timeout_is_over_with_the_head():
    with serve(header_timeout=0.05) as (http, server):

        @server.on("request")
        def decide(request):
            gevent.sleep(0.1)
            echo(request)

        with open_client(http, early=make_frame("x")) as client:
            assert client.read_frame() == (0x81, b"x")
            assert not server.limit_counts["header_timeout"]


@pytest.mark.parametrize("octets", [b"G", make_upgrade()[:-1]], ids=["hardly begun", "all but an octet"])
def test_header_timeout_of_an_upgrade_request(octets):
    with serve(app, header_timeout=0.05) as (http, server), RawClient(http) as client:
        for _ in range(2):
            client.send(GET)
            assert client.read_answer()[0] == 200
            gevent.sleep(0.1)
        client.send(octets)
        assert client.read_answer()[0] == 408
        assert client.read_end() == b""
        assert server.limit_counts["header_timeout"] == 1


def test_without_header_timeout():
    with serve(app, header_timeout=None) as (http, server):
        server.on("request", echo)
        with RawClient(http) as client:
            client.send(GET + make_upgrade() + make_frame("x"))
            assert client.read_answer()[0] == 200
            assert client.read_head().startswith(b"HTTP/1.1 101 ")
            assert client.read_frame() == (0x81, b"x")


def test_a_client_that_breaks_off_before_its_first_octet():
    http = make_http(app, spawn=1)
    with serve(http=http), RawClient(http) as client:
        run_hub()
        client.reset()
        # There is a place for it only once the handler of the first has ended.
        with RawClient(http) as second:
            second.send(GET)
            assert second.read_answer()[0] == 200
    assert (len(http.log), http.error_log) == (1, [])


def test_header_timeout_goes_with_the_mount():
    http = make_http(app)
    server = WebSocketServer(http_server=http, header_timeout=5)
    with running(http), RawClient(http) as client:
        client.send(GET)
        assert client.read_answer()[0] == 200
        server.unmount()
        for octets in (GET, make_upgrade(), GET):
            client.send(octets)
            assert client.read_answer()[0] == 200
    assert http.error_log == []


# What a request knows when the handler goes on, or has ended


def test_the_environment_of_a_request_whose_handler_has_ended():
    requests = []
    with serve() as (http, server):

        @server.on("request")
        def decide(request):
            requests.append(request)
            echo(request)

        with open_client(http, "/a%20b?c=d", "Cookie: e=f", "X-G: h") as client:
            (request,) = requests
            wait_until(lambda: request._handler.rfile is None)
            assert request.environ["PATH_INFO"] == "/a b"
            assert request.environ["HTTP_X_G"] == "h"
            assert request.environ is request.http.environ
            assert request.cookies == [("e", "f")]
            assert request.resource_url.query["c"] == "d"
            assert request._handler.headers["x-g"] == "h"
            client.send(make_frame("x"))
            assert client.read_frame() == (0x81, b"x")


@pytest.mark.parametrize("who", ["a server", "a view"])
def test_each_request_of_a_connection_has_its_own_environment(who):
    requests = []

    def view(environ, start_response):
        if who == "a view":
            requests.append(environ.get("geventws.request"))
        return app(environ, start_response)

    http = make_http(view, handler_class=WebSocketHandler)
    if who == "a server":
        server = WebSocketServer(http_server=http)

        @server.on("request")
        def decide(request):
            requests.append(request)
            request.ignore()

    with running(http), RawClient(http) as client:
        for path in ("/1", "/2"):
            client.send(make_upgrade(path, f"Cookie: a={path}"))
            assert client.read_answer()[0] == 200
        client.send(GET)
        assert client.read_answer()[0] == 200
        assert [request.environ["PATH_INFO"] for request in requests[:2]] == ["/1", "/2"]
        assert [request.cookies for request in requests[:2]] == [[("a", "/1")], [("a", "/2")]]


def test_what_a_view_reads_before_it_accepts_does_not_come_again():
    def view(environ, start_response):
        request = get_request(environ)
        octets = environ["wsgi.input"].read(1)
        connection = request.accept()
        connection.send(octets)
        connection.send(connection.receive())
        return []

    with running(make_view(view)) as http, RawClient(http) as client:
        client.send(make_upgrade())
        run_hub()
        client.send(b"?" + make_frame("x"))
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert [client.read_frame(), client.read_frame()] == [(0x82, b"?"), (0x81, b"x")]


# What a user's handler class overrides


def mount_on(handler_class, **options):
    """Make an http server with a handler class, and a server that notes its requests and accepts them."""
    http = make_http(app, handler_class=handler_class)
    server = WebSocketServer(http_server=http, **options)
    requests = record(server, "request")
    server.on("request", echo)
    return http, requests


@pytest.mark.parametrize("base", [WSGIHandler, WebSocketHandler])
def test_get_environ(base):
    class Handler(base):
        def get_environ(self):
            environ = super().get_environ()
            return {**environ, "REMOTE_ADDR": "192.0.2.1", "PATH_INFO": environ["PATH_INFO"].removeprefix("/prefix")}

    http, requests = mount_on(Handler, path="/chat")
    with running(http), open_client(http, "/prefix/chat"):
        request = requests.get()[1]
        assert request.remote_address == "192.0.2.1"
        assert request.resource_url.path == "/chat"


@pytest.mark.parametrize("base", [WSGIHandler, WebSocketHandler])
@pytest.mark.parametrize("name", ["read_requestline", "read_request", "MessageClass"])
def test_how_a_head_is_read(base, name):
    calls = []

    def note(self, *args):
        calls.append(name)
        return getattr(super(handler_class, self), name)(*args)

    handler_class = type("Handler", (base,), {name: note})
    http, _ = mount_on(type("Sub", (handler_class,), {}))
    with running(http), open_client(http, early=make_frame("x")) as client:
        assert client.read_frame() == (0x81, b"x")
    assert calls.count(name) == 1


@pytest.mark.parametrize("base", [WSGIHandler, WebSocketHandler])
@pytest.mark.parametrize("log", [None, Log], ids=["without a log", "with a log"])
@pytest.mark.parametrize("name", ["log_request", "format_request"])
def test_how_a_request_is_logged(base, log, name):
    codes = []

    def note(self):
        codes.append(self.code)
        return getattr(super(handler_class, self), name)()

    handler_class = type("Handler", (base,), {name: note})
    http = make_http(app, handler_class=type("Sub", (handler_class,), {}), log=log and log())
    with serve(http=http) as (http, server):
        server.on("request", echo)
        with open_client(http):
            assert 101 in codes
        with RawClient(http) as client:
            client.send(GET)
            assert client.read_answer()[0] == 200
            wait_until(lambda: 200 in codes)
    assert log is None or [line.split('"')[2].split()[0] for line in http.log] == ["101", "200"]


def test_without_a_log_no_line_is_made(monkeypatch):
    made = []
    monkeypatch.setattr(WSGIHandler, "format_request", lambda self: made.append(self.code) or "")
    for log, codes in ((None, []), (Log(), [101])):
        with serve(http=make_http(log=log)) as (http, server):
            server.on("request", echo)
            open_client(http).close()
        assert made == codes


@pytest.mark.skipif(not hasattr(stdlib_socket, "AF_UNIX"), reason="no Unix sockets here")
def test_an_address_that_the_http_server_has_for_all(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    with serve(http=make_http(app, listener, environ={"REMOTE_ADDR": "192.0.2.1"})) as (http, server):
        server.on("request", echo)
        connections = record(server, "connect")
        with open_client(http):
            assert connections.get()[1].remote_address == "192.0.2.1"


def test_a_101_that_the_kernel_does_not_take_at_once():
    with serve(http=make_http(app, make_narrow_listener())) as (http, server):
        server.on("request", lambda request: request.accept(headers={"X-Long": 200000 * "y"}).send("Hello"))
        with RawClient(http) as client:
            client.send(make_upgrade())
            head = client.read(200000)
            head += client.read_head()
            assert head.count(b"y") == 200000
            assert client.read_frame() == (0x81, b"Hello")
            assert f" 101 {len(head)} " in http.log[0]


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

"""What is kept on an http server, and how its end reaches the connections."""

from __future__ import annotations

import signal

import gevent
import pytest

from geventws import WebSocketHandler, WebSocketServer
from geventws.config import ServerConfig
from geventws.host import HeadLimits, Mount, get_host
from tests.support import (
    RawClient,
    make_frame,
    make_http,
    make_tls_context,
    open_client,
    record,
    run_hub,
    running,
    start_child,
    wait_until,
)


def test_an_http_server_has_one():
    http = make_http()
    host = get_host(http)
    assert get_host(http) is host
    WebSocketServer(http_server=http)
    assert get_host(http) is host
    assert get_host(make_http()) is not host


@pytest.mark.parametrize(
    ("mounted", "own", "expected"),
    [
        pytest.param([], None, (None, None, None), id="nothing"),
        pytest.param([], (3.0, 5, 7), (3.0, 5, 7), id="the handler's own"),
        pytest.param([(4.0, 9, 8), (None, None, 9), (2.0, 99, 9)], None, (2.0, 9, 8), id="the smallest mount"),
        pytest.param([(4.0, 9, 9)], (3.0, 8, 7), (3.0, 8, 7), id="the handler's is smaller"),
        pytest.param([(None, None, 5)], None, (None, None, 5), id="none of them"),
    ],
)
def test_head_limits(mounted, own, expected):
    host = get_host(make_http())
    for values in mounted:
        host.add_mount(Mount(host, None, make_config(values)))
    assert host.get_head_limits(None if own is None else make_config(own)) == expected


def make_config(values):
    return ServerConfig(**dict(zip(HeadLimits._fields, values, strict=True)))


def test_head_limits_follow_the_mounts():
    host = get_host(make_http())
    mounts = [Mount(host, None, ServerConfig(header_timeout=seconds)) for seconds in (3, 2)]
    seen = []
    for change, mount in zip((host.add_mount, host.add_mount, host.remove_mount), (*mounts, mounts[1]), strict=True):
        change(mount)
        seen.append([host.get_head_limits(own).header_timeout for own in (None, ServerConfig(header_timeout=1), None)])
    assert seen == [[3, 1, 3], [2, 1, 2], [3, 1, 3]]
    host.remove_mount(mounts[1])
    assert host.mounts == mounts[:1]


def test_a_limit_of_all_requests_is_counted_for_those_who_set_the_smallest():
    http = make_http()
    host = get_host(http)
    seconds = (4.0, None, 2.0, 2.0)
    servers = [WebSocketServer(http_server=http, header_timeout=each) for each in seconds]
    host.count_limit("header_timeout", 2.0, ServerConfig(header_timeout=2.0))
    assert [server.limit_counts["header_timeout"] for server in servers] == [0, 0, 1, 1]
    assert WebSocketHandler.limit_counts(http)["header_timeout"] == 1
    host.count_limit("header_timeout", 2.0, None)
    assert [server.limit_counts["header_timeout"] for server in servers] == [0, 0, 2, 2]
    assert WebSocketHandler.limit_counts(http)["header_timeout"] == 1


def test_is_stopping():
    http = make_http()
    host = get_host(http)
    with running(http):
        assert not host.is_stopping()
        http.close()
        assert host.is_stopping()
    with running(http):
        assert not host.is_stopping()


def test_connections_of_a_view_learn_of_the_end():
    def view(environ, start_response):
        list(environ["geventws.request"].accept())
        return []

    http = make_http(view, handler_class=WebSocketHandler)
    with running(http), open_client(http) as client:
        wait_until(lambda: get_host(http).connections)
        http.close()
        assert client.read_frame() == (0x88, b"\x03\xe9")
        client.send(make_frame(b"\x03\xe9", 0x88))
        assert client.read_end() == b""
        wait_until(lambda: not get_host(http).connections)


def test_stop_in_the_hub_does_not_wait():
    """A signal handler of the standard library runs there."""
    http = make_http()
    server = WebSocketServer(http_server=http)
    server.on("request", lambda request: request.accept())
    errors = []

    def stop():
        try:
            http.stop()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    with running(http), open_client(http) as client:
        wait_until(lambda: server.connections)
        gevent.get_hub().loop.run_callback(stop)
        assert client.read_frame() == (0x88, b"\x03\xe9")
        assert not errors


def test_stop_twice():
    http = make_http()
    WebSocketServer(http_server=http)
    with running(http):
        http.stop()
        http.stop()
        http.close()


CHILD = """
import signal, sys
import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from geventws import WebSocketServer

style, pool = sys.argv[1:]
http = WSGIServer(("127.0.0.1", 0), log=None, spawn=Pool(10) if pool == "pool" else "default")
server = WebSocketServer(http_server=http)

@server.on("request")
def decide(request):
    connection = request.accept()
    if style == "event":
        connection.on("message", connection.send)
    else:
        for message in connection:
            connection.send(message)

server.on("close", lambda connection, code, reason: print("closed", code, connection.closed_by, flush=True))
gevent.signal_handler(signal.SIGTERM, http.stop)
http.start()
print(http.server_port, flush=True)
http.serve_forever()
print("done", flush=True)
"""


class Address:
    def __init__(self, port):
        self.server_port = port
        self.address = ("127.0.0.1", port)


@pytest.mark.parametrize("style", ["event", "loop"])
@pytest.mark.parametrize("pool", ["pool", "no pool"])
def test_sigterm(style, pool):
    with start_child(CHILD, style, pool) as child:
        try:
            http = Address(int(child.stdout.readline()))
            with open_client(http) as client, RawClient(http):
                client.send(make_frame("Hello"))
                assert client.read_frame() == (0x81, b"Hello")
                child.send_signal(signal.SIGTERM)
                assert client.read_frame() == (0x88, b"\x03\xe9")
                client.send(make_frame(b"\x03\xe9", 0x88))
                assert client.read_end() == b""
            output, errors = child.communicate()
            assert output == "closed 1001 local\ndone\n"
            assert errors == ""
            assert child.returncode == 0
        finally:
            if child.poll() is None:
                child.kill()


def test_a_listener_of_close_may_ask_the_host():
    http = make_http()
    server = WebSocketServer(http_server=http)
    server.on("request", lambda request: request.accept())
    closed = record(server, "close")
    with running(http):
        with open_client(http):
            wait_until(lambda: get_host(http).connections)
        connection = closed.get()[1]
        assert connection not in get_host(http).connections


@pytest.mark.parametrize(
    "octets", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(300)], ids=["http", "cut off", "zeros"]
)
@pytest.mark.parametrize("end", ["shut", "reset"])
def test_a_failed_tls_handshake_is_one_line_in_the_log(octets, end, capfd):
    http = make_http(ssl_context=make_tls_context())
    WebSocketServer(http_server=http, header_timeout=None)
    with running(http):
        with RawClient(http) as client:
            port = client.sock.getsockname()[1]
            client.send(octets)
            if end == "shut":
                client.shut_write()
                client.read_end()
            else:
                run_hub()
                client.reset()
            wait_until(lambda: http.error_log)
        with RawClient(http, tls=True) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.read_answer()[0] == 404
    (line,) = http.error_log
    assert line.startswith(f"the TLS handshake of ('127.0.0.1', {port}) failed: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert capfd.readouterr().err == ""

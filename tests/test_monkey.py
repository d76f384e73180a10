"""The main scenarios where gevent has patched the standard library, in a child process."""

from __future__ import annotations

import pytest

from tests.support import run_child

PATCH = """
from gevent import monkey
monkey.patch_all()
import socket, sys, threading, time
from gevent.pywsgi import WSGIServer
import geventws
from geventws import WebSocketHandler, WebSocketServer
from support import RawClient, make_frame, make_http, make_tls_context, make_upgrade, open_client, running, serve

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

SCENARIOS = {
    "event style with a listener that sleeps": """
with serve(app) as (http, server):
    @server.on("request")
    def decide(request):
        connection = request.accept()
        @connection.on("message")
        def listener(message):
            time.sleep(0.01)
            connection.send(message)
    with open_client(http, early=make_frame("early")) as one, open_client(http) as two:
        two.send(make_frame("two"))
        assert one.read_frame() == (0x81, b"early")
        assert two.read_frame() == (0x81, b"two")
        assert server.broadcast("all") == 2
        assert one.read_frame() == two.read_frame() == (0x81, b"all")
""",
    "loop style and the closing handshake": """
with serve(app) as (http, server):
    @server.on("request")
    def decide(request):
        for message in request.accept():
            request.connection.send(message)
    with open_client(http) as client:
        client.send(make_frame("x") + make_frame(b"\\x03\\xe8", 0x88))
        assert client.read_frame() == (0x81, b"x")
        assert client.read_frame() == (0x88, b"\\x03\\xe8")
        assert client.read_end() == b""
""",
    "TLS": """
with serve(http=make_http(app, ssl_context=make_tls_context())) as (http, server):
    server.on("request", lambda request: request.accept().on("message", lambda message: None))
    with open_client(http, tls=True, early=make_frame("x")) as client:
        client.send(make_frame(b"\\x03\\xe8", 0x88))
        assert client.read_frame() == (0x88, b"\\x03\\xe8")
""",
    "accept in a patched thread": """
with serve(app) as (http, server), RawClient(http) as client:
    def decide(request):
        threading.Thread(target=lambda: request.accept().send("from a thread")).start()
    server.on("request", decide)
    client.send(make_upgrade())
    assert client.read_head().startswith(b"HTTP/1.1 101 ")
    assert client.read_frame() == (0x81, b"from a thread")
""",
    "send_threadsafe from a native thread": """
with serve(app) as (http, server):
    connections = []
    server.on("request", lambda request: connections.append(request.accept()))
    with open_client(http) as client:
        while not connections:
            time.sleep(0.001)
        start_native = monkey.get_original("_thread", "start_new_thread")
        start_native(lambda: connections[0].send_threadsafe("native"), ())
        assert client.read_frame() == (0x81, b"native")
""",
    "a view": """
def view(environ, start_response):
    geventws.accept(environ).send("view")
    return []

with running(make_http(view, handler_class=WebSocketHandler)) as http, open_client(http) as client:
    assert client.read_frame() == (0x81, b"view")
    assert client.read_frame() == (0x88, b"\\x03\\xe8")
""",
    "time-outs and the end": """
with serve(app, header_timeout=0.05, accept_timeout=0.05) as (http, server):
    with RawClient(http) as client:
        client.send(b"GET")
        assert client.read_answer()[0] == 408
    server.on("request", lambda request: None)
    with RawClient(http) as client:
        client.send(make_upgrade())
        assert client.read_answer()[0] == 503
    server.on("request", lambda request: request.accept())
    with open_client(http) as client:
        threading.Thread(target=http.stop).start()
        assert client.read_frame() == (0x88, b"\\x03\\xe9")
""",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    assert run_child(PATCH + SCENARIOS[name] + "\nprint('done')") == "done\n"

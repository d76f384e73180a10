"""Upgrade requests in the views of Flask, Bottle, Pyramid and Django, and beside other WebSocket libraries."""

from __future__ import annotations

import warnings

import bottle
import django
import flask
import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler as DjangoApplication
from django.http import HttpResponse
from django.urls import path

import geventws
from geventws import InvalidState, WebSocketHandler, WebSocketServer
from tests.support import (
    ACCEPT,
    RawClient,
    make_frame,
    make_http,
    make_upgrade,
    open_client,
    record,
    running,
    start_child,
    wait_until,
)

with warnings.catch_warnings():
    # Pyramid imports what setuptools has deprecated.
    warnings.simplefilter("ignore")
    from pyramid.config import Configurator
    from pyramid.response import Response

GET = b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def shout(connection):
    for message in connection:
        connection.send(message.upper())


def talk(environ):
    """Be what every view does, once through each of the two ways."""
    if environ["PATH_INFO"] == "/environ":
        shout(environ["geventws.request"].accept("chat"))
    else:
        shout(geventws.accept(environ, "chat"))


def refuse(environ):
    environ["geventws.request"].reject(410, "no more")


def make_flask():
    app = flask.Flask(__name__)

    @app.route("/environ", websocket=True)
    @app.route("/accept", websocket=True)
    def view():
        talk(flask.request.environ)
        return "not sent"

    @app.route("/raises", websocket=True)
    def raises():
        geventws.accept(flask.request.environ)
        raise ZeroDivisionError

    @app.route("/refuses", websocket=True)
    def refuses():
        refuse(flask.request.environ)
        return "not sent"

    @app.route("/page")
    def page():
        return "a page"

    return app


def make_bottle():
    app = bottle.Bottle()

    @app.get("/environ")
    @app.get("/accept")
    def view():
        talk(bottle.request.environ)
        return "not sent"

    @app.get("/raises")
    def raises():
        geventws.accept(bottle.request.environ)
        raise ZeroDivisionError

    @app.get("/refuses")
    def refuses():
        refuse(bottle.request.environ)
        return "not sent"

    @app.get("/page")
    def page():
        return "a page"

    return app


def make_pyramid():
    def view(request):
        talk(request.environ)
        return Response("not sent")

    def raises(request):
        geventws.accept(request.environ)
        raise ZeroDivisionError

    def refuses(request):
        refuse(request.environ)
        return Response("not sent")

    with Configurator() as config:
        views = {"environ": view, "accept": view, "raises": raises, "refuses": refuses}
        for name, each in (views | {"page": lambda request: Response("a page")}).items():
            config.add_route(name, f"/{name}")
            config.add_view(each, route_name=name)
        return config.make_wsgi_app()


def django_view(request):
    talk(request.environ)
    return HttpResponse("not sent")


def django_raises(request):
    geventws.accept(request.META)
    raise ZeroDivisionError


def django_refuses(request):
    refuse(request.environ)
    return HttpResponse("not sent")


urlpatterns = [
    path("environ", django_view),
    path("accept", django_view),
    path("raises", django_raises),
    path("refuses", django_refuses),
    path("page", lambda request: HttpResponse("a page", headers={"Content-Length": "6"})),
]


def make_django():
    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
        django.setup()
    return DjangoApplication()


@pytest.fixture(
    params=[make_flask, make_bottle, make_pyramid, make_django], ids=["flask", "bottle", "pyramid", "django"]
)
def make_app(request):
    return request.param


@pytest.mark.parametrize("name", ["/environ", "/accept"])
def test_a_view_talks(make_app, name):
    http = make_http(make_app(), handler_class=WebSocketHandler)
    with running(http), open_client(http, name, "Sec-WebSocket-Protocol: chat", early=make_frame("one")) as client:
        assert ACCEPT in client.head
        assert b"\r\nSec-WebSocket-Protocol: chat\r\n" in client.head
        assert client.read_frame() == (0x81, b"ONE")
        client.send(make_frame("two") + make_frame(b"\x03\xe8", 0x88))
        assert client.read_frame() == (0x81, b"TWO")
        assert client.read_frame() == (0x88, b"\x03\xe8")
        assert client.read_end() == b""
        assert len(http.log) == 1
        assert f'"GET {name} HTTP/1.1" 101 ' in http.log[0]
        with RawClient(http) as second:
            second.send(GET)
            assert second.read_answer()[::2] == (200, b"a page")


def test_a_view_that_returns_closes(make_app):
    http = make_http(make_app(), handler_class=WebSocketHandler)
    with running(http), open_client(http, "/accept", "Sec-WebSocket-Protocol: chat") as client:
        client.send(make_frame(b"\x03\xe9", 0x88))
        assert client.read_frame() == (0x88, b"\x03\xe9")
        assert client.read_end() == b""


def test_a_view_that_raises_is_1011(make_app, capfd):
    http = make_http(make_app(), handler_class=WebSocketHandler)
    with running(http), open_client(http, "/raises") as client:
        assert client.read_frame() == (0x88, b"\x03\xf3")
        client.send(make_frame(b"\x03\xf3", 0x88))
        assert client.read_end() == b""
    assert "HTTP/1.1" not in capfd.readouterr().out


def test_a_view_rejects(make_app):
    http = make_http(make_app(), handler_class=WebSocketHandler)
    with running(http), RawClient(http) as client:
        client.send(make_upgrade("/refuses"))
        status, fields, body = client.read_answer()
        assert (status, fields["connection"], body) == (410, "close", b"no more\n")
        assert client.read_end() == b""
        assert len(http.log) == 1


def test_a_mount_beside_the_views(make_app):
    http = make_http(make_app())
    server = WebSocketServer(http_server=http, path="/mounted")
    server.on("request", lambda request: request.accept().on("message", print))
    closed = record(server, "close")
    with running(http), RawClient(http) as client:
        client.send(GET)
        assert client.read_answer()[::2] == (200, b"a page")
        with open_client(http, "/mounted"):
            pass
        assert closed.get()[2] == 1006
        with open_client(http, "/mounted"):
            wait_until(lambda: server.connections)


@pytest.mark.parametrize("environ", [{}, {"REQUEST_METHOD": "GET"}])
def test_accept_without_a_request(environ):
    with pytest.raises(InvalidState, match="handler_class=WebSocketHandler"):
        geventws.accept(environ)


FLASK_SOCK = """
from gevent import monkey
monkey.patch_all()
import sys
import flask
from flask_sock import Sock
from gevent.pywsgi import WSGIServer
from geventws import WebSocketHandler, WebSocketServer

app = flask.Flask(__name__)
sock = Sock(app)

@sock.route("/sock")
def shout(ws):
    while True:
        ws.send(ws.receive().upper())

options = {"handler_class": WebSocketHandler} if sys.argv[1] == "class" else {}
http = WSGIServer(("127.0.0.1", 0), app, log=None, **options)
server = WebSocketServer()
if sys.argv[1] == "mount":
    server.mount(http_server=http, path="/geventws")
    server.on("request", lambda request: request.accept().send("geventws"))
http.start()
print(http.server_port, flush=True)
http.serve_forever()
"""


class Address:
    def __init__(self, port):
        self.server_port = port
        self.address = ("127.0.0.1", port)


@pytest.mark.parametrize("how", ["class", "mount"])
def test_flask_sock_works_beside_it(how):
    pytest.importorskip("flask_sock")
    with start_child(FLASK_SOCK, how) as child:
        try:
            http = Address(int(child.stdout.readline()))
            with open_client(http, "/sock") as client:
                assert ACCEPT in client.head
                client.send(make_frame("hello"))
                assert client.read_frame() == (0x81, b"HELLO")
            if how == "mount":
                with open_client(http, "/geventws") as client:
                    assert client.read_frame() == (0x81, b"geventws")
        finally:
            child.kill()
            child.communicate()

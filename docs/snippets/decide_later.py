import gevent
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

doors_open = Event()


def app(environ, start_response):
    doors_open.set()
    start_response("204 No Content", [])
    return []


http = WSGIServer(("127.0.0.1", 8000), app)
server = WebSocketServer(http_server=http, accept_timeout=30)


@server.on("request")
def decide(request):
    gevent.spawn(admit, request)


def admit(request):
    doors_open.wait()
    if not request.resolved:
        connection = request.accept()
        connection.on("message", connection.send)


http.serve_forever()

from contextvars import ContextVar

from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

user: ContextVar[str] = ContextVar("user")
count: ContextVar[int] = ContextVar("count", default=0)

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


def describe():
    # Any depth of calls below: no argument carries the user.
    return f"message {count.get()} of {user.get()}"


@server.on("request")
def decide(request):
    user.set(request.resource_url.query["user"])
    connection = request.accept()

    @connection.on("message")
    def answer(message):
        count.set(count.get() + 1)
        connection.send(describe())


http.serve_forever()

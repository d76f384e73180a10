import hashlib

import gevent
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


def compute(password):
    return hashlib.scrypt(password.encode(), salt=b"salt", n=1024, r=8, p=1).hex()


@server.on("request")
def decide(request):
    connection = request.accept()

    @connection.on("message")
    def answer(message):
        # This greenlet waits; the hub, and with it everybody else, goes on.
        connection.send(gevent.get_hub().threadpool.apply(compute, (message,)))


http.serve_forever()

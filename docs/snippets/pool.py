from contextlib import suppress

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from geventws import ConnectionClosed, WebSocketServer

http = WSGIServer(("127.0.0.1", 8000), spawn=Pool(1))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()
    # A loop in this greenlet would keep its slot of the pool; in a greenlet of its own it keeps none.
    gevent.spawn(talk, connection)


def talk(connection):
    with suppress(ConnectionClosed):
        for message in connection:
            connection.send(message)
    connection.close()


http.serve_forever()

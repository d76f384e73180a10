import gevent
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


def look_up(seconds):
    gevent.sleep(seconds)
    return "found"


@server.on("request")
def decide(request):
    connection = request.accept()

    @connection.on("message")
    def answer(message):
        result = "too slow"
        # The with block ends the timeout whatever happens; one that goes on would strike another connection's listener.
        with gevent.Timeout(0.1, False):
            result = look_up(float(message))
        connection.send(result)


http.serve_forever()

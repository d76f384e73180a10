import signal

import gevent
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
http.stop_timeout = 10
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", connection.send)


gevent.signal_handler(signal.SIGTERM, http.stop)
http.serve_forever()
print("every connection is closed")

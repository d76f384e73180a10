import logging

from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
logger = logging.getLogger("ends")

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()

    @connection.on("message")
    def square(message):
        connection.send(str(int(message) ** 2))


@server.on("close")
def log_end(connection, code, reason):
    logger.info("%s %r, ended by %s: %s", code, reason, connection.closed_by, connection.close_cause)


@server.on("upgrade_error")
def log_refusal(error):
    logger.info("refused with %s: %s", error.status, error)


http.serve_forever()

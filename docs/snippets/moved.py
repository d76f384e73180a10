from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http, keepalive_interval=20.0, close_timeout=5.0)


@server.on("request")
def decide(request):
    if request.origin != "http://example.com":
        request.reject(403, "wrong origin")
        return
    connection = request.accept("echo", request.origin)

    @connection.on("message")
    def answer(message):
        connection.send(message)

    @connection.on("close")
    def report(code, reason):
        print(f"{connection.remote_address} left: {code} {reason}")


http.serve_forever()

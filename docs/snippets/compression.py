from gevent.pywsgi import WSGIServer

from geventws import DeflateOptions, WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http, permessage_deflate=DeflateOptions(level=6, threshold=512))


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", connection.send)


http.serve_forever()

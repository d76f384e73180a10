from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer, tune_memory

tune_memory()
http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(
    http_server=http, max_received_frame_size=16 * 1024 * 1024, max_received_message_size=16 * 1024 * 1024
)


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", connection.send)


http.serve_forever()

import hashlib

from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http, max_received_message_size=1024 * 1024 * 1024)


@server.on("request")
def decide(request):
    connection = request.accept()
    digest = hashlib.sha256()
    size = 0
    for piece in connection.receive_fragments(timeout=30):
        digest.update(piece)
        size += len(piece)
    connection.send(f"{size} octets, {digest.hexdigest()}")
    connection.send_fragments(f"line {number}\n" for number in range(3))


http.serve_forever()

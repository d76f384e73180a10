import json
import secrets

from gevent.pywsgi import WSGIServer

from geventws import DeflateOptions, WebSocketServer

ROOMS = [f"room number {number}" for number in range(100)]

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http, permessage_deflate=DeflateOptions(threshold=1024))


@server.on("request")
def decide(request):
    connection = request.accept()
    # It holds a secret, which the size of a compressed message could give away.
    connection.send(json.dumps({"token": secrets.token_hex(16), "rooms": ROOMS}), compress=False)

    @connection.on("message")
    def search(words):
        connection.send(json.dumps([room for room in ROOMS if words in room]))


http.serve_forever()

from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http, trusted_proxies=["127.0.0.1"])


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.send(f"you are {connection.remote_address}")
    connection.send(" <- ".join(reversed(connection.remote_addresses)))


http.serve_forever()

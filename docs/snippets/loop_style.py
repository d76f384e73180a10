from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

http = WSGIServer(("127.0.0.1", 8000))
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.send("What is your name?")
    name = connection.receive(timeout=60)
    for message in connection:
        connection.send(f"{name} said {message}")


http.serve_forever()

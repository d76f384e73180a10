from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

PAGE = b"""<body><script>socket = new WebSocket("ws://" + location.host)
socket.onopen = () => socket.send("it works")
socket.onmessage = (event) => document.body.append(event.data)</script>"""


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [PAGE]


http = WSGIServer(("127.0.0.1", 8000), app)
server = WebSocketServer(http_server=http)


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", connection.send)


http.serve_forever()

from flask import Flask
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

app = Flask(__name__)


@app.get("/")
def home():
    return "Hello over HTTP"


http = WSGIServer(("127.0.0.1", 8000), app)
server = WebSocketServer(http_server=http, path="/ws")


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.send("Hello over WebSocket")
    connection.on("message", connection.send)


http.serve_forever()

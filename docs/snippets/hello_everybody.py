from flask import Flask
from gevent.pywsgi import WSGIServer

from geventws import WebSocketServer

app = Flask(__name__)


@app.get("/")
def home():
    return f"{len(server.connections)} are here"


@app.post("/announce/<text>")
def announce(text):
    return f"{server.broadcast(text)} have been told"


http = WSGIServer(("127.0.0.1", 8000), app)
server = WebSocketServer(http_server=http, path="/ws")


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", server.broadcast)


@server.on("connect")
def greet(connection):
    server.broadcast("somebody came", exclude=[connection])


@server.on("close")
def miss(connection, code, reason):
    server.broadcast(f"somebody left ({code})")


http.serve_forever()

from flask import Flask

from geventws import WebSocketServer

app = Flask(__name__)
server = WebSocketServer()


@server.on("request")
def decide(request):
    connection = request.accept()
    connection.on("message", server.broadcast)


@app.route("/")
def page():
    return f"{len(server.connections)} are in this worker"

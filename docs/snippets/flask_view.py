from flask import Flask, request
from gevent.pywsgi import WSGIServer

import geventws

app = Flask(__name__)


@app.route("/ws/<name>", websocket=True)
def talk(name):
    connection = geventws.accept(request.environ)
    for message in connection:
        connection.send(f"{name}: {message}")
    return ""


http = WSGIServer(("127.0.0.1", 8000), app, handler_class=geventws.WebSocketHandler)
http.serve_forever()

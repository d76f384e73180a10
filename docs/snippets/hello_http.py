from flask import Flask
from gevent.pywsgi import WSGIServer

app = Flask(__name__)


@app.get("/")
def home():
    return "Hello over HTTP"


http = WSGIServer(("127.0.0.1", 8000), app)
http.serve_forever()

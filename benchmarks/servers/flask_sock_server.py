"""flask-sock on gevent's WSGIServer in a monkey-patched process, as its documentation deploys it.

It compresses wherever the client offers it.
"""

from gevent import monkey

monkey.patch_all()

from typing import Any

from flask import Flask
from flask_sock import Sock
from gevent.pywsgi import WSGIServer
from options import BACKLOG, LARGEST, QUESTION, make_gevent_tls_context, parse_options, tell_ready

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": LARGEST}
sock = Sock(app)
everybody: set[Any] = set()


@sock.route("/")  # type: ignore[untyped-decorator]
def echo(websocket: Any) -> None:
    """Send every message back; flask-sock takes the exception that ends the loop."""
    while True:
        websocket.send(websocket.receive())


@sock.route("/broadcast")  # type: ignore[untyped-decorator]
def broadcast(websocket: Any) -> None:
    """Send every message to everybody."""
    everybody.add(websocket)
    try:
        while True:
            message = websocket.receive()
            for receiver in list(everybody):
                receiver.send(message)
    finally:
        everybody.remove(websocket)


@sock.route("/sink")  # type: ignore[untyped-decorator]
def tally(websocket: Any) -> None:
    """Count messages."""
    count = 0
    while True:
        if websocket.receive() == QUESTION:
            websocket.send(str(count))
            count = 0
        else:
            count += 1


options = parse_options()
# The files' names instead would be read again for every connection.
tls: dict[str, Any] = {"ssl_context": make_gevent_tls_context(options.tls)} if options.tls else {}
http = WSGIServer(("127.0.0.1", options.port), app, log=None, backlog=BACKLOG, **tls)
http.start()
tell_ready()
http.serve_forever()

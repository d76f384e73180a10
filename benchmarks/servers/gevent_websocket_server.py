"""gevent-websocket: its handler on gevent's WSGIServer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler
from options import BACKLOG, QUESTION, make_gevent_tls_context, parse_options, tell_ready

everybody: set[Any] = set()


def converse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve one connection; a client that leaves is a WebSocketError."""
    answer = {"/": echo, "/broadcast": broadcast}.get(environ["PATH_INFO"], tally)
    websocket = environ["wsgi.websocket"]
    with contextlib.suppress(WebSocketError):
        answer(websocket)
    return []


def echo(websocket: Any) -> None:
    """Send every message back."""
    while (message := websocket.receive()) is not None:
        websocket.send(message)


def broadcast(websocket: Any) -> None:
    """Send every message to everybody."""
    everybody.add(websocket)
    try:
        while (message := websocket.receive()) is not None:
            for receiver in list(everybody):
                receiver.send(message)
    finally:
        everybody.remove(websocket)


def tally(websocket: Any) -> None:
    """Count messages."""
    count = 0
    while (message := websocket.receive()) is not None:
        if message == QUESTION:
            websocket.send(str(count))
            count = 0
        else:
            count += 1


options = parse_options()
# The files' names instead would be read again for every connection.
tls: dict[str, Any] = {"ssl_context": make_gevent_tls_context(options.tls)} if options.tls else {}
http = WSGIServer(
    ("127.0.0.1", options.port), converse, handler_class=WebSocketHandler, log=None, backlog=BACKLOG, **tls
)
http.start()
tell_ready()
http.serve_forever()

"""websockets: its server with a thread for each connection."""

from __future__ import annotations

import contextlib
from typing import Any

from options import BACKLOG, LARGEST, QUESTION, make_tls_context, parse_options, tell_ready
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

everybody: set[Any] = set()


def converse(websocket: Any) -> None:
    """Serve one connection; a client that leaves without a Close is a ConnectionClosed."""
    answer = {"/": echo, "/broadcast": broadcast}.get(websocket.request.path, tally)
    try:
        answer(websocket)
    except ConnectionClosed:
        pass
    finally:
        everybody.discard(websocket)


def echo(websocket: Any) -> None:
    """Send every message back."""
    for message in websocket:
        websocket.send(message)


def broadcast(websocket: Any) -> None:
    """Send every message to everybody."""
    everybody.add(websocket)
    for message in websocket:
        for receiver in list(everybody):
            # One that has just left.
            with contextlib.suppress(ConnectionClosed):
                receiver.send(message)


def tally(websocket: Any) -> None:
    """Count messages."""
    count = 0
    for message in websocket:
        if message == QUESTION:
            websocket.send(str(count))
            count = 0
        else:
            count += 1


options = parse_options()
with serve(
    converse,
    "127.0.0.1",
    options.port,
    ssl=make_tls_context(options.tls),
    compression="deflate" if options.deflate else None,
    max_size=LARGEST,
) as server:
    server.socket.listen(BACKLOG)
    tell_ready()
    server.serve_forever()

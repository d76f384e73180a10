"""Echo every message, in loop style: each connection has a greenlet, and its code reads from top to bottom."""

from __future__ import annotations

import argparse
import signal

import gevent
from gevent.pywsgi import WSGIServer

from geventws import WebSocketRequest, WebSocketServer


def talk(request: WebSocketRequest) -> None:
    """Accept every request, and send each message back until the client leaves."""
    connection = request.accept(None, request.origin)
    for message in connection:
        connection.send(message)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    http = WSGIServer(("127.0.0.1", parser.parse_args().port), None)
    server = WebSocketServer(http_server=http)
    server.on("request", talk)
    for number in (signal.SIGINT, signal.SIGTERM):
        # stop() tells every client goodbye with 1001, and waits for their answers.
        gevent.signal_handler(number, http.stop)
    http.start()
    print(f"listening on ws://127.0.0.1:{http.server_port}/", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()

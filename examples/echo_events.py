"""Echo every message, in event style: a listener is called for each, and an idle connection costs no greenlet."""

from __future__ import annotations

import argparse
import signal

import gevent
from gevent.pywsgi import WSGIServer

from geventws import WebSocketRequest, WebSocketServer


def decide(request: WebSocketRequest) -> None:
    """Accept every request, and send each message back to where it came from."""
    connection = request.accept(None, request.origin)
    connection.on("message", connection.send)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    http = WSGIServer(("127.0.0.1", parser.parse_args().port), None)
    server = WebSocketServer(http_server=http)
    server.on("request", decide)
    for number in (signal.SIGINT, signal.SIGTERM):
        # stop() tells every client goodbye with 1001, and waits for their answers.
        gevent.signal_handler(number, http.stop)
    http.start()
    print(f"listening on ws://127.0.0.1:{http.server_port}/", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()

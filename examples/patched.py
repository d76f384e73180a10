"""Use `requests` and `threading` beside WebSockets, in a monkey-patched process.

A client names a path, and gets what the site answers for it. The threads are greenlets after the patching, and
`requests` lets the others run while it waits.
"""

# ruff: noqa: E402 - the patching comes before everything that it is to reach.

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import queue
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import requests
from gevent.pywsgi import WSGIServer

from geventws import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

jobs: queue.Queue[tuple[WebSocketConnection, str]] = queue.Queue()


def answer_page(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Be the site: a page for every path."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"the page at {environ['PATH_INFO']}".encode()]


def work(site: str) -> None:
    """Fetch what clients ask for, for ever."""
    while True:
        connection, path = jobs.get()
        try:
            # The site stands in the code: a client must not choose where the server connects to.
            response = requests.get(f"{site}/{path.lstrip('/')}", timeout=10)
            connection.send(f"{response.status_code} {response.text}")
        except requests.RequestException as error:
            connection.send(f"failed: {type(error).__name__}")
        except ConnectionClosed:
            print("the client left before its page came", flush=True)


def decide(request: WebSocketRequest) -> None:
    """Accept every request; each message is the path of a page."""
    connection = request.accept(None, request.origin)
    connection.on("message", lambda path: jobs.put((connection, str(path))))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    http = WSGIServer(("127.0.0.1", parser.parse_args().port), answer_page)
    server = WebSocketServer(http_server=http)
    server.on("request", decide)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, http.stop)
    http.start()
    for _ in range(4):
        threading.Thread(target=work, args=(f"http://127.0.0.1:{http.server_port}",), daemon=True).start()
    print(f"listening on ws://127.0.0.1:{http.server_port}/", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()

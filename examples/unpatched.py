"""Use `requests` beside WebSockets without monkey-patching: what blocks runs in gevent's thread pool.

A client names a path, and gets what the site answers for it. While `requests` blocks its thread, the greenlet
that asked for it waits, and all others run.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import requests
from gevent.pywsgi import WSGIServer
from gevent.threadpool import ThreadPool

from geventws import WebSocketConnection, WebSocketRequest, WebSocketServer

pool = ThreadPool(4)


def answer_page(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Be the site: a page for every path."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"the page at {environ['PATH_INFO']}".encode()]


def fetch(url: str) -> str:
    """Block a thread until a page is there; nothing of the connection may be touched here."""
    try:
        response = requests.get(url, timeout=10)
    except requests.RequestException as error:
        return f"failed: {type(error).__name__}"
    return f"{response.status_code} {response.text}"


def answer(connection: WebSocketConnection, site: str, path: str) -> None:
    """Send a client the page that it asked for."""
    # The site stands in the code: a client must not choose where the server connects to.
    connection.send(pool.apply(fetch, (f"{site}/{path.lstrip('/')}",)))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    http = WSGIServer(("127.0.0.1", parser.parse_args().port), answer_page)
    server = WebSocketServer(http_server=http)

    def decide(request: WebSocketRequest) -> None:
        connection = request.accept(None, request.origin)
        site = f"http://127.0.0.1:{http.server_port}"
        connection.on("message", lambda path: answer(connection, site, str(path)))

    server.on("request", decide)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, http.stop)
    http.start()
    print(f"listening on ws://127.0.0.1:{http.server_port}/", flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()

"""geventws under gunicorn, in event style, with one worker process or several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.app.wsgiapp import run
from options import BACKLOG, parse_options, tell_ready

from geventws import WebSocketRequest, WebSocketServer


def answer_http(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Be the application beside the WebSockets."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"This is the HTTP side.\n"]


def post_worker_init(worker: Any) -> None:
    """Begin in a worker, whose socket listens already; gunicorn finds this hook by its name."""
    server = WebSocketServer()

    @server.on("request")
    def decide(request: WebSocketRequest) -> None:
        connection = request.accept()
        connection.on("message", connection.send)

    server.mount(http_server=worker.http_servers)
    tell_ready()


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    options = parse_options(parser)
    settings = {
        "config": __file__,
        "bind": f"127.0.0.1:{options.port}",
        "workers": options.workers,
        "worker-class": "geventws.integrations.gunicorn.Worker",
        "worker-connections": BACKLOG,
        "backlog": BACKLOG,
        "log-level": "error",
    }
    sys.argv = ["gunicorn", *(f"--{name}={value}" for name, value in settings.items()), "gunicorn_server:answer_http"]
    run()


if __name__ == "__main__":
    main()

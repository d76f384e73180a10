"""geventws beside a WSGI application on one WSGIServer, in event style or in loop style."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from options import BACKLOG, LARGEST, QUESTION, make_gevent_tls_context, parse_options, tell_ready

import geventws
from geventws import DeflateOptions, WebSocketConnection, WebSocketRequest, WebSocketServer

Message = str | bytes


def answer_http(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Be the application beside the WebSockets."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"This is the HTTP side.\n"]


def serve_in_event_style(server: WebSocketServer) -> None:
    """Let listeners answer: no connection has a greenlet."""

    @server.on("request")
    def decide(request: WebSocketRequest) -> None:
        connection = request.accept()
        if request.resource == "/":
            connection.on("message", connection.send)
        elif request.resource == "/broadcast":
            connection.on("message", server.broadcast)
        else:
            connection.on("message", make_counter(connection))


def make_counter(connection: WebSocketConnection) -> Callable[[Message], None]:
    """Return the listener of a connection whose messages are counted."""
    count = 0

    def tally(message: Message) -> None:
        nonlocal count
        if message == QUESTION:
            connection.send(str(count))
            count = 0
        else:
            count += 1

    return tally


def serve_in_loop_style(server: WebSocketServer) -> None:
    """Give each connection a greenlet that loops over its messages, its own: that of the http server then ends."""

    @server.on("request")
    def decide(request: WebSocketRequest) -> None:
        connection = request.accept()
        if request.resource == "/":
            answer: Callable[[Message], Any] = connection.send
        elif request.resource == "/broadcast":
            answer = server.broadcast
        else:
            answer = make_counter(connection)
        gevent.spawn(run_loop, connection, answer)


def run_loop(connection: WebSocketConnection, answer: Callable[[Message], Any]) -> None:
    """Answer the messages of a connection; a client that leaves without a Close ends the loop as well."""
    with contextlib.suppress(geventws.ConnectionClosed):
        for message in connection:
            answer(message)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--style", choices=["event", "loop"], default="event")
    parser.add_argument("--build", choices=["compiled", "plain"], help="refuse to run on the other one")
    compression = parser.add_argument_group("with --deflate")
    compression.add_argument("--level", type=int, default=3)
    compression.add_argument("--bits", type=int, default=15)
    compression.add_argument("--memory-level", type=int, default=8)
    compression.add_argument("--takeover", action="store_true")
    return parse_options(parser)


def make_deflate(options: argparse.Namespace) -> DeflateOptions | bool:
    """Make the value of ``permessage_deflate``."""
    if not options.deflate:
        return False
    return DeflateOptions(
        server_no_context_takeover=not options.takeover,
        client_no_context_takeover=not options.takeover,
        server_max_window_bits=options.bits,
        client_max_window_bits=options.bits,
        level=options.level,
        memory_level=options.memory_level,
    )


def main() -> None:
    """Serve until a signal ends the process."""
    options = parse()
    if options.build and (options.build == "compiled") != geventws.COMPILED:
        sys.exit(f"the build of geventws that is installed here is not the {options.build} one")
    # The messages of 1 MiB, and new connections, are what it is for.
    geventws.tune_memory()
    # The files' names instead would be read again for every connection.
    tls: dict[str, Any] = {"ssl_context": make_gevent_tls_context(options.tls)} if options.tls else {}
    http = WSGIServer(("127.0.0.1", options.port), answer_http, log=None, backlog=BACKLOG, **tls)
    server = WebSocketServer(
        http_server=http,
        max_received_frame_size=LARGEST,
        max_received_message_size=LARGEST,
        permessage_deflate=make_deflate(options),
    )
    serve = serve_in_event_style if options.style == "event" else serve_in_loop_style
    serve(server)
    http.start()
    tell_ready()
    http.serve_forever()


if __name__ == "__main__":
    main()

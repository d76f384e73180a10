"""Be the server whose instructions and system calls `guard.py` counts; it speaks to it over standard input and output.

It prints its port and its process's number. For each octet that it reads it calls ``getppid``, which nothing else here
does: callgrind writes what it has counted and begins again, and strace shows where one count ends. Then it answers with
an octet.
"""

from __future__ import annotations

import gc
import os
import socket

import gevent
from gevent.pywsgi import WSGIServer

import geventws
from geventws import ConnectionClosed, WebSocketRequest, WebSocketServer


def echo_events(request: WebSocketRequest) -> None:
    """Echo in event style."""
    connection = request.accept()
    connection.on("message", connection.send)


def echo_in_loop(request: WebSocketRequest) -> None:
    """Echo in loop style, in the greenlet of the request."""
    connection = request.accept()
    try:
        while True:
            connection.send(connection.receive())
    except ConnectionClosed:
        pass


def mark() -> None:
    """Begin another count, or end with the driver."""
    octet = os.read(0, 1)
    if not octet:
        os._exit(0)
    os.getppid()
    os.write(1, octet)


def main() -> None:
    """Serve until standard input ends."""
    if not geventws.COMPILED:
        raise SystemExit("the guard counts the compiled build, and this is the plain one")
    http = WSGIServer(("127.0.0.1", 0), log=None)
    WebSocketServer(http_server=http, path="/event").on("request", echo_events)
    WebSocketServer(http_server=http, path="/deflate", permessage_deflate=True).on("request", echo_events)
    WebSocketServer(http_server=http, path="/loop").on("request", echo_in_loop)
    room = WebSocketServer(http_server=http, path="/broadcast")
    room.on("request", lambda request: request.accept().on("message", room.broadcast))
    http.start()
    # A connection is there when its request is: else the count would depend on which comes first.
    http.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    # A collection would fall into one count and not into the other.
    gc.disable()
    watcher = gevent.get_hub().loop.io(0, 1)
    watcher.start(mark)
    print(http.server_port, os.getpid(), flush=True)
    http.serve_forever()


if __name__ == "__main__":
    main()

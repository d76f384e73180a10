"""The peer that is tested: an echo server, or a client that visits the suite's server and echoes there.

Ready when it has printed one line with the build and, as a server, its address.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys

import gevent
from gevent.pywsgi import WSGIServer

import geventws
from geventws import ConnectError, ConnectionClosed, DeflateOptions, HandshakeError, WebSocketServer

MIB = 1 << 20
AGENT = "geventws"


def make_options(deflate):
    options = {
        # 9.1.6 and 9.2.6 send 16 MiB in one frame.
        "max_received_frame_size": 16 * MIB,
        "max_received_message_size": 16 * MIB,
        # 9.3.1 and 9.4.1 send 65536 fragments, which is the default limit.
        "max_message_fragments": 1 << 17,
    }
    if deflate != "off":
        # Without a threshold, for the suite's messages of 16 octets are about compression, too.
        is_fresh = deflate == "fresh"
        options["permessage_deflate"] = DeflateOptions(
            threshold=0, server_no_context_takeover=is_fresh, client_no_context_takeover=is_fresh
        )
    return options


def echo(connection, style):
    """Send every message back; in loop style this returns when the connection ends."""
    if style == "event":
        connection.on("message", connection.send)
        return
    # A fault of the suite's own making ends the loop, and is for the suite to judge.
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            connection.send(message)


def serve(style, options):
    http = WSGIServer(("127.0.0.1", 0), None, log=None)
    server = WebSocketServer(options, http_server=http)
    server.on("request", lambda request: echo(request.accept(), style))
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, http.stop)
    http.start()
    announce("server", f"ws://127.0.0.1:{http.server_port}/")
    http.serve_forever()


def visit(url, style, options):
    announce("client")
    with contextlib.closing(geventws.connect(f"{url}/getCaseCount")) as connection:
        count = json.loads(connection.receive())
    for case in range(1, count + 1):
        try:
            connection = geventws.connect(f"{url}/runCase?case={case}&agent={AGENT}", config=options)
        except (ConnectError, HandshakeError) as error:
            print(f"case {case} of {count}: {error}", file=sys.stderr)
            continue
        echo(connection, style)
        connection.wait_closed()
    geventws.connect(f"{url}/updateReports?agent={AGENT}").wait_closed()


def announce(role, address=""):
    build = "compiled" if geventws.COMPILED else "plain"
    print(f"geventws {geventws.__version__}, {build}, {role} {address}".rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("url", nargs="?", help="of the suite's server, for a client")
    parser.add_argument("--style", choices=["event", "loop"], default="event")
    parser.add_argument("--build", choices=["compiled", "plain"], help="refuse to run on the other one")
    parser.add_argument(
        "--deflate", choices=["fresh", "takeover", "off"], default="fresh", help="whether a compressor keeps its window"
    )
    given = parser.parse_args()
    if given.build and (given.build == "compiled") != geventws.COMPILED:
        sys.exit(f"the build of geventws that is installed here is not the {given.build} one")
    options = make_options(given.deflate)
    if given.role == "server":
        serve(given.style, options)
    else:
        visit(given.url, given.style, options)


if __name__ == "__main__":
    main()

"""What every server here is told on its command line, and tells in return.

Each of them echoes at ``/``, sends every message to all clients of ``/broadcast``, and at ``/sink`` counts messages
until it is asked. None of them logs requests, and all take messages of 16 MiB.
"""

from __future__ import annotations

import argparse
import ssl

#: Octets of the largest message that is taken.
LARGEST = 1 << 24
#: Connections that may wait for accept(): thousands of clients come at once.
BACKLOG = 16384
#: The text that a client of ``/sink`` sends to get the number of messages since it last did.
QUESTION = "count?"


def parse_options(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parse the options that all servers have, beside those that ``parser`` has already."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls", metavar="PEM", help="a file with a certificate and its key")
    parser.add_argument("--deflate", action="store_true")
    return parser.parse_args()


def make_tls_context(pem: str | None) -> ssl.SSLContext | None:
    """Make the TLS context of a server of the standard library's kind; None without a certificate."""
    if pem is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def make_gevent_tls_context(pem: str) -> ssl.SSLContext:
    """Make one that waits through gevent."""
    # Most servers here do without gevent.
    from gevent.ssl import SSLContext  # noqa: PLC0415

    context: ssl.SSLContext = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def tell_ready() -> None:
    """Say that clients may come; the runner waits for this line."""
    print("ready", flush=True)

"""Serve ws and wss at once, on two ports: whoever writes on one is heard on both.

A certificate for trying it out::

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
        -keyout key.pem -out certificate.pem
"""

from __future__ import annotations

import argparse
import signal

import gevent
from gevent import ssl
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from geventws import WebSocketRequest, WebSocketServer

server = WebSocketServer()


def decide(request: WebSocketRequest) -> None:
    """Accept every request; each message goes to all clients, whichever port they came by."""
    connection = request.accept(None, request.origin)
    connection.on("message", server.broadcast)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("certificate", help="path of the certificate chain, as PEM")
    parser.add_argument("key", help="path of the private key, as PEM")
    parser.add_argument("--port", type=int, default=8000, help="of ws; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--tls-port", type=int, default=8443, help="of wss, likewise (default: %(default)s)")
    arguments = parser.parse_args()

    # gevent's own: a context of the standard library would block the whole process.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate, arguments.key)
    plain = WSGIServer(("127.0.0.1", arguments.port), None)
    secure = WSGIServer(("127.0.0.1", arguments.tls_port), None, ssl_context=context)
    server.mount(http_server=[plain, secure])
    server.on("request", decide)

    stopping = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stopping.set)
    plain.start()
    secure.start()
    print(f"listening on ws://127.0.0.1:{plain.server_port}/", flush=True)
    print(f"listening on wss://localhost:{secure.server_port}/", flush=True)
    stopping.wait()
    # All clients are told goodbye with 1001, and have so many seconds to answer.
    server.shut_down(timeout=5)
    plain.stop()
    secure.stop()


if __name__ == "__main__":
    main()

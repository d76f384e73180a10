"""WebSockets (RFC 6455) for web applications on gevent and WSGI: Flask, Django, Pyramid, Bottle.

Mount a `WebSocketServer` on a ``gevent.pywsgi.WSGIServer``, look at each `WebSocketRequest`, accept or
reject it, and talk through its `WebSocketConnection`.
"""

from __future__ import annotations

from geventws._version import __version__
from geventws.client import connect
from geventws.config import ClientConfig, ConnectionConfig, ServerConfig
from geventws.connection import WebSocketConnection
from geventws.deflate import DeflateOptions
from geventws.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionClosed,
    CookieError,
    HandshakeError,
    InvalidPayload,
    InvalidState,
    MessageTooBig,
    ProtocolError,
    SubprotocolError,
    WebSocketError,
)
from geventws.frames import CloseCode, Opcode, WebSocketFrame
from geventws.handler import WebSocketHandler
from geventws.masking import COMPILED
from geventws.memory import tune_memory
from geventws.request import WebSocketRequest, accept
from geventws.server import WebSocketServer

__all__ = [
    "COMPILED",
    "ClientConfig",
    "CloseCode",
    "ConfigurationError",
    "ConnectError",
    "ConnectionClosed",
    "ConnectionConfig",
    "CookieError",
    "DeflateOptions",
    "HandshakeError",
    "InvalidPayload",
    "InvalidState",
    "MessageTooBig",
    "Opcode",
    "ProtocolError",
    "ServerConfig",
    "SubprotocolError",
    "WebSocketConnection",
    "WebSocketError",
    "WebSocketFrame",
    "WebSocketHandler",
    "WebSocketRequest",
    "WebSocketServer",
    "__version__",
    "accept",
    "connect",
    "tune_memory",
]

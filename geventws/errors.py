"""Every exception of the package, and what each one stands for.

A wrong argument raises ``TypeError`` or ``ValueError``; everything else that geventws raises is a
`WebSocketError`. Errors that a peer caused (`ProtocolError` and below) carry the close code that
ends the connection; errors of an opening handshake carry the HTTP status that answers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ConfigurationError",
    "ConnectError",
    "ConnectionClosed",
    "CookieError",
    "HandshakeError",
    "InvalidPayload",
    "InvalidState",
    "MessageTooBig",
    "ProtocolError",
    "SubprotocolError",
    "WebSocketError",
]


class WebSocketError(Exception):
    """Be the base of every error of geventws."""


class ConfigurationError(WebSocketError, ValueError):
    """Report an option that is unknown, missing, of the wrong type or out of range."""


class HandshakeError(WebSocketError):
    """Report an opening handshake that breaks RFC 6455, 4.2.1 or 4.2.2.

    Attributes:
        status: The HTTP status that answers it.
        headers: The ``(name, value)`` pairs that go with that answer.
    """

    def __init__(self, message: str, status: int = 400, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = list(headers)


class SubprotocolError(WebSocketError, ValueError):
    """Report a subprotocol that is no token, or that the client did not offer."""


class CookieError(WebSocketError, ValueError):
    """Report a cookie that RFC 6265, 4.1.1 does not allow in ``Set-Cookie``."""


class InvalidState(WebSocketError, RuntimeError):
    """Report a call that the object's state, or the calling greenlet, does not allow."""


class ConnectionClosed(WebSocketError):
    """Report that the connection is closing or closed.

    Attributes:
        code: The close code (RFC 6455, 7.1.5); None while the closing handshake runs.
        reason: The close reason, ``""`` when there is none.
        cause: One sentence that says who ended the connection, and why; as `WebSocketConnection.close_cause`.
    """

    def __init__(self, code: int | None, reason: str = "", cause: str = "") -> None:
        super().__init__(cause or f"connection closed ({code})")
        self.code = code
        self.reason = reason
        self.cause = cause

    def __reduce__(self) -> tuple[type[ConnectionClosed], tuple[int | None, str, str]]:
        """Keep the three attributes when the error is pickled or copied."""
        return type(self), (self.code, self.reason, self.cause)


class ConnectError(WebSocketError, OSError):
    """Report that the client could not open a connection: address, TLS, time-out or answer."""


class ProtocolError(WebSocketError):
    """Report a frame that breaks RFC 6455; the connection fails with ``close_code``.

    Attributes:
        limit: The option whose limit was exceeded, ``""`` where none was.
    """

    close_code = 1002
    limit = ""


class InvalidPayload(ProtocolError):
    """Report text or a close reason that is not UTF-8 (RFC 6455, 8.1), or compressed data that is corrupt."""

    close_code = 1007


class MessageTooBig(ProtocolError):
    """Report a frame or message above a limit of the receiver (RFC 6455, 7.4.1)."""

    close_code = 1009

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit

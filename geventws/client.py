"""`connect`: open a WebSocket connection from the client's side (RFC 6455, 4.1).

Strategy: everything that the caller gave is checked, and the whole request is made, before a name is looked
up. One `gevent.Timeout` then covers name, TCP, TLS and handshake. Until the connection takes the socket
over, one ``except`` closes it, whatever went wrong; `OSError` and the time-out become `ConnectError` in
one place, and nothing is caught that is not this module's: a time-out or a kill of the caller's passes through.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from gevent import Timeout, socket, ssl

from geventws.config import ClientConfig, make_config
from geventws.connection import WebSocketConnection
from geventws.cookies import serialize_cookie
from geventws.deflate import check_answer, make_offer
from geventws.errors import ConnectError, HandshakeError
from geventws.handshake import (
    check_response,
    check_response_fields,
    make_key,
    parse_response,
    read_extensions,
    serialize_request,
)
from geventws.sockets import detach, set_options

if TYPE_CHECKING:
    from collections.abc import Iterable
    from urllib.parse import SplitResult

    from geventws.deflate import DeflateOptions, DeflateParameters
    from geventws.handshake import Response

__all__ = ["MAX_FIELD_COUNT", "MAX_HEAD_SIZE", "connect"]

#: Octets of the answer's head, interim answers included: what servers accept of a request is far below it.
MAX_HEAD_SIZE = 65536
#: Header fields of one head; http.client draws the line at 100.
MAX_FIELD_COUNT = 128

_RECEIVE_SIZE = 8192
_HEAD_END = b"\r\n\r\n"
_HEAD_START = b"HTTP/1."
_DEFAULT_PORTS = {"ws": 80, "wss": 443}

# urlsplit drops some of them without a word; browsers read a backslash as a slash, and another host with it.
_find_illegal = re.compile(r"[\x00-\x20\x7f\\]").search
_is_name = re.compile(r"[a-z0-9_][a-z0-9_.-]*").fullmatch
_NOT_ASCII = re.compile(r"[^\x21-\x7e]+")


def connect(
    url: str,
    *,
    subprotocols: Iterable[str] = (),
    origin: str | None = None,
    cookies: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    config: ClientConfig | Mapping[str, object] | None = None,
    **options: Any,
) -> WebSocketConnection:
    """Open a connection to a WebSocket server (RFC 6455, 4.1).

    Blocks for ``connect_timeout`` seconds at most. The connection reads from the start; messages wait for the first
    ``message`` listener or ``receive()``.

    Args:
        url: ``ws://`` or ``wss://``. User and password in it go out as Basic Authorization (RFC 7617), in clear text
            with ``ws://``. Characters outside ASCII are encoded; spaces must be. A fragment is refused (RFC 6455, 3).
        subprotocols: To offer, the preferred one first.
        origin: What the Origin field says; None for none.
        cookies: Names and values of the Cookie field; values are checked, never encoded.
        headers: Further request fields, as pairs or a mapping; a Host among them takes the place of the URL's.
        ssl_context: For ``wss://``; None makes one that verifies against the system's certificates.
        server_hostname: The name to ask for and to verify in TLS; None takes the URL's host.
        config: The options, as a `ClientConfig` or a mapping.
        **options: Options that override those of ``config``.

    Returns:
        The connection; ``remote_address`` is the server's address.

    Raises:
        ConnectError: Name, TCP or TLS failed, the server ended the connection, its answer is too large, or all
            this took longer than ``connect_timeout``. Its cause is the system's own error.
        HandshakeError: The server refused, with ``status`` and ``headers`` of its answer; or its answer breaks the
            RFC, without headers.
        ConfigurationError: An option is unknown, of a wrong type or out of range.
        CookieError: A cookie is illegal.
        SubprotocolError: A subprotocol is no token, or is offered twice.
        TypeError: An argument is of a wrong type.
        ValueError: The URL, the origin or a header is illegal, or an argument of TLS does not fit.
    """
    checked = make_config(ClientConfig, config, options)
    opening = _Opening(url, subprotocols, origin, _collect_fields(cookies, headers), checked.deflate_options)
    opening.prepare_tls(ssl_context, server_hostname)
    timer = Timeout.start_new(checked.connect_timeout)
    try:
        return opening.run(checked)
    except Timeout as expired:
        if expired is not timer:
            raise
        raise ConnectError(f"{opening}: no connection within {checked.connect_timeout} s") from None
    except OSError as error:
        raise ConnectError(f"{opening}: {error}") from error
    finally:
        timer.close()


class _Opening:
    """Carry one opening handshake from its checked arguments to the connection."""

    def __init__(
        self,
        url: str,
        subprotocols: Iterable[str],
        origin: str | None,
        fields: list[tuple[str, str]],
        deflate: DeflateOptions | None,
    ) -> None:
        self._url = parsed = _parse_url(url)
        self._key = make_key()
        self._subprotocols = subprotocols if isinstance(subprotocols, str) else list(subprotocols)
        if parsed.authorization is not None:
            fields = _add_field(fields, "Authorization", parsed.authorization)
        self._deflate = deflate
        self._extensions = [] if deflate is None else [make_offer(deflate)]
        self._request = serialize_request(
            parsed.authority,
            parsed.target,
            self._key,
            subprotocols=self._subprotocols,
            extensions=self._extensions,
            origin=origin,
            headers=fields,
        )
        self._context: ssl.SSLContext | None = None
        self._server_hostname: str | None = None

    def __str__(self) -> str:
        """Name the server, without what may be secret in the URL."""
        return f"{self._url.scheme}://{self._url.authority}"

    def prepare_tls(self, context: ssl.SSLContext | None, server_hostname: str | None) -> None:
        """Check and keep what TLS needs, before there is a socket to close."""
        if self._url.scheme == "ws":
            if context is not None or server_hostname is not None:
                raise ValueError("ssl_context and server_hostname are for wss:// alone")
            return
        context = _make_context() if context is None else context
        if not isinstance(context, ssl.SSLContext):
            # The standard library's own would block all greenlets.
            raise ValueError(
                "ssl_context must be a gevent.ssl.SSLContext (create_default_context makes none without "
                f"monkey-patching), not a {type(context).__module__}.{type(context).__qualname__}"
            )
        self._context = context
        self._server_hostname = self._url.host.partition("%")[0] if server_hostname is None else server_hostname
        # The context checks the name when it makes a TLS object, and this one needs no socket.
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=self._server_hostname)

    def run(self, config: ClientConfig) -> WebSocketConnection:
        """Connect, and start the connection."""
        sock: Any = socket.create_connection((self._url.host, self._url.port), timeout=None)
        try:
            set_options(sock, no_delay=config.disable_nagle_algorithm, keepalive_idle=config.native_keepalive_idle)
            if self._context is not None:
                # The handshake in a call of its own: when a constructor is interrupted, nobody has the socket.
                sock = self._context.wrap_socket(
                    sock, server_hostname=self._server_hostname, do_handshake_on_connect=False
                )
                sock.do_handshake()
            sock.sendall(self._request)
            response, early = _read_response(sock)
            subprotocol = check_response(response, self._key, self._subprotocols, self._extensions)
            agreed = self._read_agreement(response)
            remote_address: str = sock.getpeername()[0]
            stream = detach(sock)
        except BaseException:
            sock.close()
            raise
        connection = WebSocketConnection(
            stream,
            config,
            is_client=True,
            deflate=agreed,
            subprotocol=subprotocol,
            request_path=self._url.target,
            remote_address=remote_address,
            remote_addresses=[remote_address],
            early=early,
        )
        connection._start()
        return connection

    def _read_agreement(self, response: Response) -> DeflateParameters | None:
        if self._deflate is None:
            return None
        try:
            return check_answer(read_extensions(response.headers), self._deflate)
        except ValueError as error:
            raise HandshakeError(f"the server's answer to permessage-deflate is illegal: {error}") from None


def _make_context() -> ssl.SSLContext:
    # Not create_default_context: its contexts are the standard library's unless gevent has patched that.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


class _URL(NamedTuple):
    scheme: str
    host: str
    port: int
    #: What the Host field says.
    authority: str
    target: str
    authorization: str | None


def _parse_url(url: str) -> _URL:
    """Parse and check a URL (RFC 6455, 3); the messages leave out what may be a password."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    if illegal := _find_illegal(url):
        raise ValueError(f"url: {illegal[0]!r} must be percent-encoded")
    if "#" in url:
        raise ValueError("url: a fragment has no meaning in WebSocket (RFC 6455, 3)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url: the host or the port is malformed") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("url: it must begin with ws:// or wss://")
    if port == 0:
        raise ValueError("url: the port must be from 1 to 65535")
    host, authority = _parse_host(parts)
    default_port = _DEFAULT_PORTS[parts.scheme]
    if port is not None and port != default_port:
        authority = f"{authority}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # RFC 3987, 3.1: what is no character of a URI is UTF-8, percent-encoded.
    target = _NOT_ASCII.sub(lambda match: quote(match[0]), target)
    return _URL(parts.scheme, host, port or default_port, authority, target, _make_authorization(parts))


def _parse_host(parts: SplitResult) -> tuple[str, str]:
    """Return the host as it is looked up, and as the Host field has it."""
    host = parts.hostname or ""
    if "[" in parts.netloc:
        host = unquote(host)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("url: there is no IPv6 address between the brackets") from None
        # RFC 6874, 4: the zone is this machine's business.
        return host, f"[{host.partition('%')[0]}]"
    try:
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError(f"url: {host!r} is no host name") from None
    if not _is_name(host):
        raise ValueError(f"url: {host!r} is no host name" if host else "url: there is no host")
    return host, host


def _make_authorization(parts: SplitResult) -> str | None:
    """Return the value of Authorization for the URL's user and password (RFC 7617, 2); None without any."""
    user_information = parts.netloc.rpartition("@")[0]
    if not user_information:
        return None
    user, password = map(unquote_to_bytes, user_information.partition(":")[::2])
    if b":" in user:
        raise ValueError("url: a user name cannot hold a colon (RFC 7617, 2)")
    return "Basic " + base64.b64encode(user + b":" + password).decode("ascii")


def _collect_fields(
    cookies: Mapping[str, str] | Iterable[tuple[str, str]], headers: Mapping[str, str] | Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the caller's request fields, cookies among them."""
    fields = check_response_fields(headers)
    pairs = list(cookies.items() if isinstance(cookies, Mapping) else cookies)
    if not pairs:
        return fields
    # A name with a prefix promises two attributes (RFC 6265bis, 4.1.3), which a request does not show.
    promised = {"secure": True, "path": "/"}
    cookie_pairs = [serialize_cookie({"name": name, "value": value, **promised}) for name, value in pairs]
    return _add_field(fields, "Cookie", "; ".join(pair.partition(";")[0] for pair in cookie_pairs))


def _add_field(fields: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    if any(given.lower() == name.lower() for given, _ in fields):
        raise ValueError(f"{name} is given twice: among the headers, and by the URL or the cookies")
    return [*fields, (name, value)]


def _read_response(sock: Any) -> tuple[Response, bytes]:
    """Read the answer to the opening handshake, and what came behind it.

    Raises:
        HandshakeError: It is no answer of HTTP/1.1.
        OSError: It is too large, or ends early.
    """
    received = bytearray()
    start = 0
    while True:
        stop = _read_head(sock, received, start)
        response = parse_response(bytes(received[start:stop]))
        # RFC 9110, 15.2: a client must be able to take interim answers before the final one.
        if response.status == 101 or response.status >= 200:
            return response, bytes(received[stop:])
        start = stop


def _read_head(sock: Any, received: bytearray, start: int) -> int:
    """Read until there is a whole head behind ``start``; returns where it ends."""
    looked = start
    while (end := received.find(_HEAD_END, looked)) < 0 and len(received) < MAX_HEAD_SIZE:
        looked = max(start, len(received) - len(_HEAD_END) + 1)
        octets = sock.recv(_RECEIVE_SIZE)
        if not octets:
            raise OSError("the server ended the connection before its answer was complete")
        received += octets
        # Another protocol's greeting has no end that would be worth waiting for.
        if not _HEAD_START.startswith(bytes(received[start : start + len(_HEAD_START)])):
            raise HandshakeError("the server's answer is not HTTP/1.1")
    stop = end + len(_HEAD_END)
    if end < 0 or stop > MAX_HEAD_SIZE:
        raise OSError(f"the head of the server's answer has more than {MAX_HEAD_SIZE} octets")
    if received.count(b"\n", start, end) > MAX_FIELD_COUNT:
        raise OSError(f"the server's answer has more than {MAX_FIELD_COUNT} header fields")
    return stop

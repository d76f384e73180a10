"""The opening handshake of both sides (RFC 6455, 4).

Strategy: header fields in, values out; who reads and writes them is none of its business. A request
is always parsed as far as it goes, and what is wrong with it is a value (`Opening.error`), for the
server has to answer and to report it. What one's own side wants to send raises at once, before an octet leaves.
Text that the other side sent stands in no message but escaped: messages go into header fields and logs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from geventws import headers as grammar
from geventws.cookies import serialize_cookies
from geventws.errors import HandshakeError, SubprotocolError
from geventws.headers import Extension, check_field, has_token, is_field_value, is_token, parse_list, unfold

__all__ = [
    "GUID",
    "Headers",
    "Opening",
    "Response",
    "accept_key",
    "check_response",
    "check_response_fields",
    "choose_subprotocol",
    "is_upgrade",
    "make_key",
    "parse_opening",
    "parse_response",
    "read_extensions",
    "serialize_request",
    "serialize_switch",
]

#: Lower-case name → values in order, each character one octet. They may still hold the CR LF of a folded line. What is
#: no header field stands under a name that is no token.
Headers = Mapping[str, Sequence[str]]

#: 1.3: what no server puts behind the key by accident.
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_VERSION = "13"

# 4.2.1, item 5: base64 of 16 octets. The last digit carries two bits only: with the others zero, a nonce has one form.
_is_key = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch
_parse_http_version = re.compile(r"HTTP/([0-9])\.([0-9])").fullmatch
_is_version_number = re.compile(r"[0-9]{1,3}").fullmatch
# RFC 3986, 3.2: neither user information nor anything that ends the authority.
_is_host = re.compile(r"[\x21\x22\x24-\x2e\x30-\x3e\x41-\x7e]+").fullmatch
# 3: the resource name begins with a slash and has no fragment.
_is_target = re.compile(r"/[\x21\x22\x24-\x7e]*").fullmatch
_parse_status_line = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?").fullmatch
_FOLD = re.compile(r"\r\n[ \t]+")

_OWN_FIELDS = frozenset({"connection", "upgrade", "content-length", "transfer-encoding"})
_OWN_PREFIX = "sec-websocket-"


def accept_key(key: str) -> str:
    """Return the value of ``Sec-WebSocket-Accept`` for a key (4.2.2, item 5.4)."""
    digest = hashlib.sha1((key + GUID).encode("latin-1"), usedforsecurity=False).digest()
    return b2a_base64(digest, newline=False).decode("ascii")


class Opening(NamedTuple):
    """Hold what a client asked for in its opening handshake (4.1).

    Attributes:
        host: The value of ``Host``; ``""`` when absent.
        key: The value of ``Sec-WebSocket-Key``; ``""`` when absent.
        version: The number in ``Sec-WebSocket-Version``; None when absent or no number.
        origin: The value of ``Origin`` as sent; None when absent.
        subprotocols: The offered subprotocols in order, as spelled; not validated.
        extensions: The offered extensions in order; empty when malformed.
        error: The first rule that the request breaks, with the status that answers it; None for a good one.
    """

    host: str
    key: str
    version: int | None
    origin: str | None
    subprotocols: list[str]
    extensions: list[Extension]
    error: HandshakeError | None


def is_upgrade(headers: Headers) -> bool:
    """Tell whether a request asks for an upgrade to WebSocket (4.2.1, item 3)."""
    return has_token(_read_values(headers, "upgrade"), "websocket")


def parse_opening(method: str, http_version: str, headers: Headers, *, parse_extensions: bool = True) -> Opening:
    """Parse and check a client's opening handshake (4.2.1); nothing raises.

    Args:
        method: The request's method.
        http_version: As the request line has it: ``"HTTP/1.1"``.
        headers: The request's fields.
        parse_extensions: False leaves ``Sec-WebSocket-Extensions`` unread: an empty list, and no error.
    """
    extensions, extensions_error = _read_extensions(headers if parse_extensions else {})
    hosts = _read_values(headers, "host")
    keys = _read_values(headers, "sec-websocket-key")
    versions = _read_values(headers, "sec-websocket-version")
    origins = _read_values(headers, "origin")
    error = (
        _find_request_error(method, http_version, headers)
        or _find_field_error(hosts, keys, versions)
        or _find_body_error(headers)
        or _find_origin_error(origins)
        or extensions_error
    )
    return Opening(
        host=hosts[0] if hosts else "",
        key=keys[0] if keys else "",
        version=int(versions[0]) if versions and _is_version_number(versions[0]) else None,
        origin=origins[0] if origins else None,
        subprotocols=_read_list(headers, "sec-websocket-protocol"),
        extensions=extensions,
        error=error,
    )


def _read_values(headers: Headers, name: str) -> list[str]:
    values = headers.get(name)
    return [] if values is None else list(map(unfold, values))


def _read_list(headers: Headers, name: str) -> list[str]:
    return [item for value in _read_values(headers, name) for item in parse_list(value)]


def _read_extensions(headers: Headers) -> tuple[list[Extension], HandshakeError | None]:
    values = _read_values(headers, "sec-websocket-extensions")
    if not values:
        return [], None
    try:
        # 9.1: several fields are the same as one with their values joined.
        return grammar.parse_extensions(",".join(values)), None
    except ValueError as fault:
        return [], HandshakeError(f"malformed Sec-WebSocket-Extensions: {fault}")


def _find_request_error(method: str, http_version: str, headers: Headers) -> HandshakeError | None:
    if method != "GET":
        return HandshakeError("the method of an opening handshake is GET")
    if http_version != "HTTP/1.1":
        parsed = _parse_http_version(http_version)
        if parsed is None or parsed.groups() < ("1", "1"):
            return HandshakeError("an opening handshake needs HTTP/1.1 or later")
    if not is_upgrade(headers):
        return HandshakeError("the Upgrade header does not contain websocket")
    if not has_token(_read_values(headers, "connection"), "upgrade"):
        return HandshakeError("the Connection header does not contain Upgrade")
    if "" in headers or not is_token("".join(headers)):
        # RFC 9112, 5.1: with "Content-Length :" a body would be read as frames.
        return HandshakeError("a line of the request's head is no header field")
    return None


def _find_field_error(hosts: list[str], keys: list[str], versions: list[str]) -> HandshakeError | None:
    if len(hosts) != 1 or not hosts[0]:
        return HandshakeError("the Host header must be given exactly once")
    if len(keys) != 1 or not _is_key(keys[0]):
        return HandshakeError("the Sec-WebSocket-Key header must be given exactly once, as 16 octets in base64")
    if not versions:
        return HandshakeError("the Sec-WebSocket-Version header is missing")
    if versions != [_VERSION]:
        # 4.4: the server names the versions that it speaks.
        supported = [("Sec-WebSocket-Version", _VERSION)]
        return HandshakeError(f"the only supported Sec-WebSocket-Version is {_VERSION}", 426, supported)
    return None


def _find_body_error(headers: Headers) -> HandshakeError | None:
    # The octets of a body would be read as frames, or as the next request by a proxy in between.
    if "transfer-encoding" in headers or set(_read_values(headers, "content-length")) - {"0"}:
        return HandshakeError("an opening handshake has no body")
    return None


def _find_origin_error(origins: list[str]) -> HandshakeError | None:
    # A control octet is no business of an origin, and would make the usual accept(…, request.origin) fail.
    if len(origins) > 1 or not all(map(is_field_value, origins)):
        return HandshakeError("the Origin header is given more than once, or holds a control octet")
    return None


def choose_subprotocol(wanted: str | None, offered: Sequence[str]) -> str | None:
    """Choose one of the offered subprotocols, compared without regard to case.

    Args:
        wanted: The subprotocol that the server wants to speak; None or ``""`` for none.
        offered: What the client offered.

    Returns:
        The subprotocol in the client's spelling.

    Raises:
        SubprotocolError: It is not a token, or was not offered.
    """
    if wanted is None or wanted == "":
        return None
    _check_subprotocol(wanted)
    candidates = [subprotocol for subprotocol in offered if subprotocol.lower() == wanted.lower()]
    if not candidates:
        raise SubprotocolError(f"subprotocol {wanted!r} was not offered by the client")
    # Two offers may differ in case alone; the very one that was asked for comes first.
    return candidates[candidates.index(wanted) if wanted in candidates else 0]


def _check_subprotocol(subprotocol: str) -> str:
    if not isinstance(subprotocol, str) or not is_token(subprotocol):
        raise SubprotocolError(f"subprotocol {subprotocol!r} is not a token (RFC 6455, 4.1)")
    return subprotocol


def check_response_fields(headers: Iterable[tuple[str, str]] | Mapping[str, str]) -> list[tuple[str, str]]:
    """Check the header fields that a user adds to a request or a response.

    Args:
        headers: Pairs or a mapping of names and values.

    Returns:
        The pairs.

    Raises:
        TypeError: A name or a value is not a ``str``.
        ValueError: A name or a value is illegal, or the field belongs to the handshake itself.
    """
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    for name, value in fields:
        check_field(name, value)
        if name.lower() in _OWN_FIELDS or name.lower().startswith(_OWN_PREFIX):
            raise ValueError(f"header field {name!r}: set by the opening handshake itself")
    return fields


def serialize_switch(
    key: str,
    subprotocol: str | None,
    extensions: Sequence[Extension],
    origin: str | None,
    cookies: Iterable[object],
    headers: Iterable[tuple[str, str]] | Mapping[str, str],
) -> list[tuple[str, str]]:
    """Serialize the header fields of the 101 that accepts a connection (4.2.2, item 5).

    Args:
        key: The client's key, checked.
        subprotocol: The chosen one in the client's spelling; None or ``""`` for none.
        extensions: The accepted ones; without any, there is no such field.
        origin: Value of an ``Origin`` field in the response; None or ``""`` for none.
        cookies: Cookies to set, as `geventws.cookies.serialize_cookies` takes them.
        headers: Further fields.

    Raises:
        SubprotocolError: The subprotocol is not a token.
        CookieError: A cookie is illegal, or given twice.
        TypeError: A name or a value of a field is not a ``str``.
        ValueError: The origin, an extension or a further field is illegal.
    """
    fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_key(key))]
    if subprotocol:
        fields.append(("Sec-WebSocket-Protocol", _check_subprotocol(subprotocol)))
    if extensions:
        fields.append(("Sec-WebSocket-Extensions", grammar.serialize_extensions(extensions)))
    if origin:
        check_field("Origin", origin)
        fields.append(("Origin", origin))
    if cookies:
        fields += [("Set-Cookie", value) for value in serialize_cookies(cookies)]
    return fields + check_response_fields(headers) if headers else fields


def make_key() -> str:
    """Return a fresh random key for ``Sec-WebSocket-Key`` (4.1, item 7)."""
    return base64.b64encode(os.urandom(16)).decode("ascii")


def serialize_request(
    host: str,
    target: str,
    key: str,
    *,
    subprotocols: Iterable[str] = (),
    extensions: Iterable[Extension] = (),
    origin: str | None = None,
    headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
) -> bytes:
    """Serialize a client's opening handshake (4.1).

    Args:
        host: Value of ``Host``: name or address, and the port unless it is the scheme's own.
        target: Path and query, percent-encoded.
        key: A key from `make_key`.
        subprotocols: Offered subprotocols, the preferred one first.
        extensions: Offered extensions, the preferred one first.
        origin: Value of ``Origin``; None for none.
        headers: Further fields; a ``Host`` among them takes the place of ``host``.

    Raises:
        SubprotocolError: A subprotocol is not a token, or is offered twice.
        TypeError: ``subprotocols`` is one ``str``, or a name or a value of a field is none.
        ValueError: Another argument is illegal, or ``Host`` or ``Origin`` is given twice.
    """
    if not _is_target(target):
        raise ValueError(f"request target {target!r}: must begin with /, be percent-encoded and have no fragment")
    if not _is_key(key):
        raise ValueError("the key must be 16 octets in base64")
    host, further = _read_client_fields(host, origin, headers)
    fields = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", _VERSION),
        ("Sec-WebSocket-Protocol", _serialize_subprotocols(subprotocols)),
        ("Sec-WebSocket-Extensions", grammar.serialize_extensions(extensions)),
    ]
    lines = [": ".join(field) for field in [*(own for own in fields if own[1]), *further]]
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def _read_client_fields(
    host: str, origin: str | None, headers: Iterable[tuple[str, str]] | Mapping[str, str]
) -> tuple[str, list[tuple[str, str]]]:
    """Return the value of ``Host`` and the other fields that are not the handshake's own."""
    fields = check_response_fields(headers)
    if origin is not None:
        fields = check_response_fields([("Origin", origin), *fields])
    hosts = [value for name, value in fields if name.lower() == "host"] or [host]
    if not _is_host(hosts[0]):
        raise ValueError(f"host {hosts[0]!r}: must be a name or an address, with a port or without")
    fields = [field for field in fields if field[0].lower() != "host"]
    if len(hosts) > 1 or sum(name.lower() == "origin" for name, _ in fields) > 1:
        raise ValueError("Host or Origin is given twice")
    return hosts[0], fields


def _serialize_subprotocols(subprotocols: Iterable[str]) -> str:
    if isinstance(subprotocols, str):
        raise TypeError("subprotocols must be a list of str, not one str")
    offered = list(map(_check_subprotocol, subprotocols))
    # 4.1, item 10: "all of which MUST be unique strings".
    if len(set(offered)) < len(offered):
        raise SubprotocolError("a subprotocol is offered twice (RFC 6455, 4.1)")
    return ", ".join(offered)


@dataclass(frozen=True, slots=True)
class Response:
    """Hold the head of the answer to an opening handshake.

    Attributes:
        status: The status code.
        reason: The reason phrase, ``""`` when there is none.
        headers: Lower-case name → values in order.
    """

    status: int
    reason: str
    headers: dict[str, list[str]]


def parse_response(head: bytes) -> Response:
    """Parse the head of a response, strictly (RFC 9112, 4 and 5).

    Args:
        head: From the status line to the blank line at its end.

    Raises:
        HandshakeError: The octets are no such head.
    """
    text, end, rest = head.decode("latin-1").partition("\r\n\r\n")
    if not end or rest:
        raise HandshakeError("the response head does not end with its blank line")
    # RFC 9112, 5.2: a user agent must replace a fold with spaces.
    status_line, *lines = _FOLD.sub(" ", text).split("\r\n")
    match = _parse_status_line(status_line)
    if not match:
        raise HandshakeError("the response does not begin with an HTTP/1.1 status line")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, value = _parse_field(line)
        headers.setdefault(name.lower(), []).append(value)
    return Response(int(match[1]), match[2] or "", headers)


def _parse_field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    # RFC 9112, 5.1: no space before the colon; 2.2: no bare CR.
    if not colon or not is_token(name) or not is_field_value(value):
        raise HandshakeError("the response has a malformed header field")
    return name, value


def check_response(
    response: Response, key: str, subprotocols: Sequence[str], extensions_offered: Iterable[Extension] = ()
) -> str | None:
    """Check a server's answer to the opening handshake (4.1, after the request).

    Args:
        response: The answer.
        key: The key that the request had.
        subprotocols: The subprotocols that it offered.
        extensions_offered: The extensions that it offered; their parameters are not looked at.

    Returns:
        The subprotocol that the server chose; None if it chose none.

    Raises:
        HandshakeError: The server refused (with the status and the headers of its answer), or its
            answer breaks the RFC.
    """
    headers = response.headers
    if response.status != 101:
        pairs = [(name, value) for name, values in headers.items() for value in values]
        raise HandshakeError(f"the server answered {response.status} {response.reason!a}", response.status, pairs)
    if not is_upgrade(headers):
        raise HandshakeError("the response's Upgrade header does not contain websocket")
    if not has_token(headers.get("connection", ()), "upgrade"):
        raise HandshakeError("the response's Connection header does not contain Upgrade")
    if headers.get("sec-websocket-accept") != [accept_key(key)]:
        raise HandshakeError("the response's Sec-WebSocket-Accept header does not match the key")
    offered = {name for name, _ in extensions_offered}
    if any(name not in offered for name, _ in read_extensions(headers)):
        raise HandshakeError("the server chose an extension that was not offered")
    return _read_chosen_subprotocol(headers, subprotocols)


def read_extensions(headers: Headers) -> list[Extension]:
    """Read the extensions of an answer.

    Raises:
        HandshakeError: The field is malformed.
    """
    extensions, error = _read_extensions(headers)
    if error:
        raise error
    return extensions


def _read_chosen_subprotocol(headers: Headers, offered: Sequence[str]) -> str | None:
    chosen = _read_values(headers, "sec-websocket-protocol")
    if len(chosen) > 1 or not all(subprotocol in offered for subprotocol in chosen):
        raise HandshakeError("the server chose a subprotocol that was not offered, or more than one")
    return chosen[0] if chosen else None

"""Cookies: the request's ``Cookie`` and the response's ``Set-Cookie`` (RFC 6265).

Rules: what a client sends is read leniently, for a foreign cookie of the same domain must never
cost a handshake; what is sent is checked strictly and goes out as given, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from geventws.errors import CookieError
from geventws.headers import is_token, unfold

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["parse_cookies", "serialize_cookie", "serialize_cookies"]

_OWS = " \t"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_find_broken_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search
# 4.1.1: cookie-octet.
_find_illegal_in_value = re.compile(r"[^\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]").search
# 4.1.1: av-octet, "any CHAR except CTLs or ';'".
_find_illegal_in_path = re.compile(r"[^\x20-\x3a\x3c-\x7e]").search
# 4.1.1: a subdomain of RFC 1034, 3.5, whose labels may begin with a digit (RFC 1123, 2.1).
_is_label = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?").fullmatch


def parse_cookies(header: str) -> list[tuple[str, str | None]]:
    """Parse the value of ``Cookie``, leniently (RFC 6265, 5.4); no value fails.

    Args:
        header: The value as WSGI hands it over: each character is one octet.

    Returns:
        Names and values in order, duplicates kept. A value lost one pair of double quotes and is
        percent-decoded as UTF-8, so that it may hold any character; one that cannot be decoded stays raw. A piece
        without ``=`` is a name with the value None.
    """
    return [_parse_pair(pair) for piece in unfold(header).split(";") if (pair := piece.strip(_OWS))]


def _parse_pair(pair: str) -> tuple[str, str | None]:
    name, equals, value = pair.partition("=")
    if not equals:
        return _decode_octets(name), None
    return _decode_octets(name.rstrip(_OWS)), _decode_escapes(_strip_quotes(value.lstrip(_OWS)))


def _strip_quotes(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _decode_escapes(value: str) -> str:
    # A value is decoded wholly or not at all: half a decoding could not be told from what was sent.
    if "%" in value and not _find_broken_escape(value):
        try:
            return unquote_to_bytes(value.encode("latin-1")).decode("utf-8")
        except UnicodeError:
            pass
    return _decode_octets(value)


def _decode_octets(text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def serialize_cookies(cookies: Iterable[object]) -> list[str]:
    """Serialize several cookies, each as the value of one ``Set-Cookie``.

    Args:
        cookies: Mappings or objects as `serialize_cookie` takes them.

    Raises:
        CookieError: One is illegal, two have the same name, domain and path, or the argument is
            no list of cookies.
    """
    if isinstance(cookies, str | bytes | Mapping) or not isinstance(cookies, Iterable):
        raise CookieError(f"cookies must be a list of cookies, not {type(cookies).__name__}")
    values = []
    seen = set()
    for cookie in cookies:
        fields = _read_fields(cookie)
        values.append(_serialize_fields(fields))
        # 5.3, item 11: what a user agent takes for one and the same cookie; it lets the last one win.
        identity = fields["name"], str(fields["domain"] or "").lower().removeprefix("."), fields["path"]
        if identity in seen:
            raise CookieError(f"cookie {fields['name']!r}: given twice with the same domain and path")
        seen.add(identity)
    return values


def serialize_cookie(cookie: object) -> str:
    """Serialize a cookie as the value of ``Set-Cookie`` (RFC 6265, 4.1.1); nothing is encoded.

    Args:
        cookie: A mapping or an object with ``name`` and ``value``, and any of ``path``, ``domain``,
            ``expires`` (a ``datetime``; UTC if naive), ``max_age`` (seconds, or a ``timedelta``,
            rounded up; zero and less delete the cookie), ``secure``, ``http_only`` (booleans) and ``same_site``
            (``"Strict"``, ``"Lax"`` or ``"None"``, in any case). An absent one is None.

    Raises:
        CookieError: A field is missing, unknown, of the wrong type, or holds what the RFC does not allow.
    """
    return _serialize_fields(_read_fields(cookie))


def _read_fields(cookie: object) -> dict[str, object]:
    if not isinstance(cookie, Mapping):
        return {field: getattr(cookie, field, None) for field in _FIELDS}
    for key in cookie:
        if key not in _FIELDS:
            ours = _FIELD_BY_SEED_NAME.get(str(key).replace("-", "").replace("_", "").lower())
            hint = f"the name here is {ours!r}" if ours else f"known are {', '.join(_FIELDS)}"
            raise CookieError(f"cookie {cookie.get('name')!r}: unknown field {key!r}; {hint}")
    return {field: cookie.get(field) for field in _FIELDS}


def _serialize_fields(fields: dict[str, object]) -> str:
    try:
        pieces = [f"{_check_name(fields['name'])}={_check_value(fields['value'])}"]
        pieces += [write(fields[field]) for field, write in _ATTRIBUTES.items() if fields[field] is not None]
        _check_promises(fields)
    except ValueError as fault:
        raise CookieError(f"cookie {fields['name']!r}: {fault}") from None
    return "; ".join(piece for piece in pieces if piece)


def _check_name(name: object) -> str:
    if name is None:
        raise ValueError("a cookie is a mapping or an object with a name and a value")
    name = _check_str("name", name)
    if not is_token(name):
        raise ValueError("the name must be a token (RFC 6265, 4.1.1)")
    return name


def _check_value(value: object) -> str:
    value = _check_str("value", value)
    _check_characters("value", _find_illegal_in_value(_strip_quotes(value)))
    return value


def _check_str(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field} must be a str, not {type(value).__name__}")
    # The plain text, also of a member of an enumeration, which formats itself as its name.
    return str.__str__(value)


def _check_characters(field: str, illegal: re.Match[str] | None) -> None:
    # The value itself stays out of the message: it is often a secret, and messages are logged.
    if illegal:
        raise ValueError(f"{field} holds {illegal[0]!r}, which RFC 6265, 4.1.1 does not allow; encode it first")


def _serialize_path(path: object) -> str:
    path = _check_str("path", path)
    _check_characters("path", _find_illegal_in_path(path))
    if not path:
        raise ValueError("path is empty; leave it out")
    return f"Path={path}"


def _serialize_domain(domain: object) -> str:
    domain = _check_str("domain", domain)
    # 4.1.2.3: a leading dot is not permitted, but much in use, and user agents ignore it.
    labels = domain.removeprefix(".").split(".")
    if len(domain) > 254 or not all(map(_is_label, labels)):
        raise ValueError("domain is not a host name (RFC 6265, 4.1.1); international names go in their xn-- form")
    return f"Domain={domain}"


def _serialize_expires(expires: object) -> str:
    if not isinstance(expires, datetime):
        raise ValueError(f"expires must be a datetime, not {type(expires).__name__}")
    try:
        utc = expires.replace(tzinfo=timezone.utc) if expires.tzinfo is None else expires.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("expires lies outside the years 1601 to 9999 in UTC") from None
    if utc.year < 1601:
        # 5.1.1, item 5: user agents ignore such a date, and keep the cookie that it should delete.
        raise ValueError("expires lies before the year 1601 (RFC 6265, 5.1.1)")
    # Not strftime: its names of days and months follow the locale.
    return f"Expires={_DAYS[utc.weekday()]}, {utc.day:02} {_MONTHS[utc.month - 1]} {utc.year} {utc:%H:%M:%S} GMT"


def _serialize_max_age(max_age: object) -> str:
    if isinstance(max_age, timedelta):
        # Up, so that a positive age below one second does not delete the cookie.
        max_age = -(-max_age // timedelta(seconds=1))
    if not isinstance(max_age, int) or isinstance(max_age, bool):
        raise ValueError(f"max_age must be an int (seconds) or a timedelta, not {type(max_age).__name__}")
    return f"Max-Age={int(max_age)}"


def _serialize_secure(secure: object) -> str:
    return "Secure" if _check_bool("secure", secure) else ""


def _serialize_http_only(http_only: object) -> str:
    return "HttpOnly" if _check_bool("http_only", http_only) else ""


def _check_bool(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be a bool, not {type(value).__name__}")
    return value


def _serialize_same_site(same_site: object) -> str:
    policy = _check_str("same_site", same_site).capitalize()
    if policy not in {"Strict", "Lax", "None"}:
        raise ValueError('same_site must be "Strict", "Lax" or "None"')
    return f"SameSite={policy}"


_ATTRIBUTES: dict[str, Callable[[object], str]] = {
    "path": _serialize_path,
    "domain": _serialize_domain,
    "expires": _serialize_expires,
    "max_age": _serialize_max_age,
    "secure": _serialize_secure,
    "http_only": _serialize_http_only,
    "same_site": _serialize_same_site,
}

_FIELDS = ("name", "value", *_ATTRIBUTES)

# "maxAge", "maxage", "max-age" and their like all come to the same letters.
_FIELD_BY_SEED_NAME = {field.replace("_", ""): field for field in _FIELDS}


def _check_promises(fields: dict[str, object]) -> None:
    """Check what SameSite and the prefixes of names demand of other attributes; else user agents drop the cookie."""
    secure = fields["secure"]
    if not secure and str(fields["same_site"] or "").lower() == "none":
        raise ValueError('same_site "None" needs secure')
    # User agents compare the prefixes without regard to case.
    name = str(fields["name"]).lower()
    if not secure and name.startswith(("__secure-", "__host-")):
        raise ValueError("a name that begins with __Secure- or __Host- needs secure")
    if name.startswith("__host-") and (fields["path"] != "/" or fields["domain"] is not None):
        raise ValueError('a name that begins with __Host- needs the path "/" and no domain')

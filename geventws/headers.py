"""The grammars that header fields of the opening handshake share (RFC 9110, 5.5 and 5.6; RFC 6455, 9.1).

Strategy: every text is split at its delimiters first and its pieces are checked afterwards, each
character once, so that no header can cost more than time linear in its length.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Extension",
    "check_field",
    "has_token",
    "is_field_value",
    "is_token",
    "parse_extensions",
    "parse_list",
    "serialize_extensions",
    "unfold",
]

#: The name of an extension, and its parameters in order; the value of a parameter without one is None.
Extension = tuple[str, list[tuple[str, str | None]]]

# str.strip() without an argument also takes U+0085 and U+00A0, which are octets of UTF-8 text in a latin-1 str.
_OWS = " \t"

_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_field_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_UNFOLD = re.compile(r"[\r\n\0]")
_QUOTED_PAIR = re.compile(r"\\(.)")


def is_token(text: str) -> bool:
    """Tell whether a text is a token (RFC 9110, 5.6.2)."""
    return _is_token(text) is not None


def is_field_value(text: str) -> bool:
    """Tell whether a text may be a field value (RFC 9110, 5.5): latin-1, and no control octet but the tab."""
    return _is_field_value(text) is not None


def unfold(value: str) -> str:
    """Put a space for each CR, LF and NUL of a received value, and trim it (RFC 9110, 5.5; RFC 9112, 5.2)."""
    if not value.isprintable():
        value = _UNFOLD.sub(" ", value)
    return value.strip(_OWS)


def parse_list(value: str) -> list[str]:
    """Parse a comma-separated list (RFC 9110, 5.6.1) of items without quoted strings.

    Returns:
        The items in their original spelling, trimmed but not validated; empty ones are left out.
    """
    return [item for piece in value.split(",") if (item := piece.strip(_OWS))]


def has_token(values: Iterable[str], token: str) -> bool:
    """Tell whether the lists that the values of a repeated field hold contain a token, in any case."""
    token = token.lower()
    for value in values:
        if value.lower() == token:
            return True
        if "," in value and token in [item.lower() for item in parse_list(value)]:
            return True
    return False


def parse_extensions(value: str) -> list[Extension]:
    """Parse the value of ``Sec-WebSocket-Extensions`` (RFC 6455, 9.1).

    Returns:
        The extensions in order, with quoted values unescaped; empty for a value without any.

    Raises:
        ValueError: The value does not follow the grammar.
    """
    # 9.1: a quoted value must be a token once it is unescaped, so no delimiter can stand inside the quotes.
    return [_parse_extension(item) for item in parse_list(value)]


def _parse_extension(item: str) -> Extension:
    name, *parameters = (piece.strip(_OWS) for piece in item.split(";"))
    if not is_token(name):
        raise ValueError("the name of an extension is not a token")
    return name, [_parse_parameter(parameter) for parameter in parameters]


def _parse_parameter(parameter: str) -> tuple[str, str | None]:
    name, equals, value = parameter.partition("=")
    name = name.rstrip(_OWS)
    if not is_token(name):
        raise ValueError("the name of an extension parameter is not a token")
    return name, _parse_parameter_value(value.lstrip(_OWS)) if equals else None


def _parse_parameter_value(value: str) -> str:
    if value.startswith('"'):
        if len(value) < 2 or not value.endswith('"'):
            raise ValueError("the quoted value of an extension parameter is not closed, or holds a delimiter")
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    if not is_token(value):
        raise ValueError("the value of an extension parameter is not a token")
    return value


def serialize_extensions(extensions: Iterable[tuple[str, Iterable[tuple[str, str | None]]]]) -> str:
    """Serialize a list of extensions as the value of ``Sec-WebSocket-Extensions`` (RFC 6455, 9.1).

    Raises:
        ValueError: A name or a value is not a token.
    """
    return ", ".join(
        "; ".join([_check_token(name), *(_serialize_parameter(*parameter) for parameter in parameters)])
        for name, parameters in extensions
    )


def _serialize_parameter(name: str, value: str | None) -> str:
    return _check_token(name) if value is None else f"{_check_token(name)}={_check_token(value)}"


def _check_token(text: str) -> str:
    if not is_token(text):
        raise ValueError(f"extension: {text!r} is not a token")
    return text


def check_field(name: str, value: str) -> None:
    """Check a header field that is about to be sent (RFC 9110, 5.1 and 5.5).

    Raises:
        TypeError: The name or the value is not a ``str``.
        ValueError: The name is not a token, or the value holds CR, LF, NUL, another control
            octet but the tab, or a character outside latin-1.
    """
    for text in (name, value):
        if not isinstance(text, str):
            raise TypeError(f"header field {name!r}: name and value must be str, not {type(text).__name__}")
    if not is_token(name):
        raise ValueError(f"header field {name!r}: the name is not a token")
    if not is_field_value(value):
        raise ValueError(f"header field {name!r}: the value holds a control octet or a character outside latin-1")

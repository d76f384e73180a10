"""The checks of option values: what is taken, in which form it is kept, and the words that refuse the rest.

Strategy: a check takes an option's name and its value and returns the value to keep, or raises
`ConfigurationError` that names the option, the rule and what was given.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Iterable

from gevent import ssl
from gevent.pywsgi import WSGIServer

from geventws.deflate import DeflateOptions
from geventws.errors import ConfigurationError
from geventws.proxies import Network, parse_networks

__all__ = [
    "MOST_FIELDS",
    "check_count",
    "check_count_or_none",
    "check_deflate",
    "check_flag",
    "check_header_count",
    "check_http_server",
    "check_http_servers",
    "check_origins",
    "check_path",
    "check_policy",
    "check_proxies",
    "check_size",
    "check_size_or_none",
    "check_time",
    "check_time_or_none",
    "parse_trusted_proxies",
]

# http.client, with which pywsgi parses a head, takes no more.
MOST_FIELDS = 100

# RFC 6454, 6.2 in its usual shape: "*" and "@" stay out because an origin holding them matches nothing.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>0|[1-9][0-9]{0,4}))?"
)
# "null" stands for an opaque origin; Chromium sends "file://" for a page that was opened from a file.
_ORIGINS_WITHOUT_HOST = frozenset({"null", "file://"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ORIGIN_RULE = (
    'serialised origins (scheme://host[:port] in lower case, without a path or the default port, or "null") or None'
)

# What `send_nowait`, `send_threadsafe` and ``broadcast`` do above the send mark.
_POLICIES = ("close", "drop_newest", "drop_oldest")


def _refusal(name: str, value: object, rule: str) -> ConfigurationError:
    return ConfigurationError(f"{name} must be {rule}, not {value!r}")


def check_flag(name: str, value: object) -> bool:
    """Take True or False."""
    if not isinstance(value, bool):
        raise _refusal(name, value, "True or False")
    return value


def _check_whole(name: str, value: object, words: str, most: int = sys.maxsize) -> int:
    # sys.maxsize: the compiled modules keep sizes in a Py_ssize_t.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _refusal(name, value, f"an int from 1 to {most}{words}")
    return value


def check_size(name: str, value: object) -> int:
    """Take a number of octets."""
    return _check_whole(name, value, ", in octets")


def check_size_or_none(name: str, value: object) -> int | None:
    """Take a number of octets, or None."""
    return None if value is None else _check_whole(name, value, ", in octets, or None")


def check_count(name: str, value: object) -> int:
    """Take a number of things."""
    return _check_whole(name, value, "")


def check_count_or_none(name: str, value: object) -> int | None:
    """Take a number of things, or None."""
    return None if value is None else _check_whole(name, value, ", or None")


def check_deflate(name: str, value: object) -> bool | DeflateOptions:
    """Take what ``permessage_deflate`` may be."""
    if not isinstance(value, bool | DeflateOptions):
        raise _refusal(name, value, "True, False or a DeflateOptions")
    return value


def check_policy(name: str, value: object) -> str:
    """Take a slow-consumer policy."""
    if not isinstance(value, str) or value not in _POLICIES:
        raise _refusal(name, value, f"one of {', '.join(map(repr, _POLICIES))}")
    return value


def _to_seconds(value: object) -> float | None:
    """Return a time as a float, None for what is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def check_time(name: str, value: object) -> float:
    """Take seconds."""
    seconds = _to_seconds(value)
    if seconds is None:
        raise _refusal(name, value, "a finite number of seconds above 0")
    return seconds


def check_time_or_none(name: str, value: object) -> float | None:
    """Take seconds, or None."""
    seconds = _to_seconds(value)
    if seconds is None and value is not None:
        raise _refusal(name, value, "a finite number of seconds above 0, or None")
    return seconds


def check_header_count(name: str, value: object) -> int:
    """Take a number of header fields."""
    return _check_whole(name, value, "", MOST_FIELDS)


def check_path(name: str, value: object) -> str | None:
    """Take a path of requests, or None."""
    if value is None or (isinstance(value, str) and value.startswith("/") and "?" not in value):
        return value
    raise _refusal(name, value, 'None or a str that starts with "/" and holds no "?"')


def _check_items(name: str, value: object, rule: str) -> tuple[object, ...]:
    """Return the items of an iterable; a str is refused, since its items are single characters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _refusal(name, value, rule)
    return tuple(value)


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return text in _ORIGINS_WITHOUT_HOST
    port = match["port"]
    return port is None or (int(port) <= 65535 and port != _DEFAULT_PORTS.get(match["scheme"]))


def check_origins(name: str, value: object) -> tuple[object, ...] | None:
    """Take serialised origins (RFC 6454, 6.2), or None."""
    if value is None:
        return None
    origins = _check_items(name, value, f"None or an iterable of {_ORIGIN_RULE}")
    for origin in origins:
        if origin is not None and not (isinstance(origin, str) and _is_origin(origin)):
            raise ConfigurationError(f"{name} must hold {_ORIGIN_RULE}, not {origin!r}")
    return origins


def check_proxies(name: str, value: object) -> tuple[str, ...] | None:
    """Take addresses and networks, or None."""
    if value is None:
        return None
    items = _check_items(name, value, "None or an iterable of addresses and networks")
    proxies = tuple(item for item in items if isinstance(item, str))
    if len(proxies) < len(items):
        raise _refusal(name, value, "None or an iterable of str")
    try:
        parse_trusted_proxies(proxies)
    except ValueError as error:
        raise ConfigurationError(f"{name} must hold addresses and networks (192.0.2.0/24): {error}") from error
    return proxies


def check_http_server(name: str, value: object) -> WSGIServer | tuple[WSGIServer, ...] | None:
    """Take one http server, several, or None."""
    if value is None or isinstance(value, WSGIServer):
        return value
    rule = "a gevent.pywsgi.WSGIServer or a list of them"
    items = _check_items(name, value, rule)
    servers = tuple(item for item in items if isinstance(item, WSGIServer))
    if len(servers) < len(items):
        raise _refusal(name, value, rule)
    return servers


def check_http_servers(value: object) -> tuple[WSGIServer, ...]:
    """Check that there is an http server to mount on.

    Args:
        value: A ``ServerConfig.http_server``: one ``WSGIServer``, several of them, or None.

    Returns:
        The servers in the given order, at least one.

    Raises:
        ConfigurationError: There is none, something else is among them, or one is there twice.
    """
    checked = check_http_server("http_server", value)
    servers = (checked,) if isinstance(checked, WSGIServer) else checked
    if not servers:
        raise ConfigurationError(
            f"http_server is required: a gevent.pywsgi.WSGIServer or a list of them, not {value!r}"
        )
    if len({id(server) for server in servers}) < len(servers):
        raise ConfigurationError(f"http_server must hold each WSGIServer once, not {value!r}")
    for server in servers:
        _check_tls(server)
    return servers


def _check_tls(server: WSGIServer) -> None:
    """Refuse a TLS context that would stop the whole process at its first connection."""
    wrap = getattr(server, "wrap_socket", None)
    # A mount before may have put something around it.
    context = None if wrap is None else getattr(inspect.unwrap(wrap), "__self__", None)
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise ConfigurationError(
            "http_server has an ssl_context that does not cooperate with gevent: it must be a gevent.ssl.SSLContext, "
            "or the process be monkey-patched (gevent.ssl.create_default_context makes none without that)"
        )


@functools.lru_cache(maxsize=64)
def parse_trusted_proxies(proxies: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse the networks of ``trusted_proxies`` once, however many requests ask for them.

    Raises:
        ValueError: An item is neither an address nor a network.
    """
    return parse_networks(proxies)

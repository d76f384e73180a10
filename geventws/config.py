"""Every option of a server and of a client: its default, its unit, its reason, its check.

Names and defaults follow the seed, the WebSocketServer reference that geventws implements, in snake_case;
`ClientConfig` has the limits of its client. Times are seconds, sizes are octets.

Strategy: an option is one field of a frozen dataclass, made by `option`, which keeps all that there is
to know about it in the field's metadata. Everything else reads that metadata: the check at
construction, the messages about unknown names, the command line's help and the documentation's table.
No configuration object holds a value that was not checked.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from gevent.pywsgi import WSGIServer

from geventws.checks import (
    MOST_FIELDS,
    check_count,
    check_count_or_none,
    check_deflate,
    check_flag,
    check_header_count,
    check_http_server,
    check_origins,
    check_path,
    check_policy,
    check_proxies,
    check_size,
    check_size_or_none,
    check_time,
    check_time_or_none,
    parse_trusted_proxies,
)
from geventws.deflate import DeflateOptions
from geventws.errors import ConfigurationError
from geventws.proxies import DEFAULT_TRUSTED_PROXIES, Network

__all__ = [
    "ClientConfig",
    "ConnectionConfig",
    "OptionRow",
    "ServerConfig",
    "list_limits",
    "make_config",
    "option",
    "options_table",
]

_T = TypeVar("_T")
_ConfigT = TypeVar("_ConfigT", bound="ConnectionConfig")

_KIB = 1024
_MIB = 1024 * _KIB

# A time beyond an hour is nearly always one that was meant in milliseconds.
_LONGEST_EXPECTED_TIME = 3600.0

_UNIT_WORDS = {"s": ", in seconds", "octets": ", in octets"}


def option(
    default: _T,
    *,
    check: Callable[[str, object], object],
    seed: str | None = None,
    unit: str = "",
    help: str = "",  # noqa: A002 - argparse's word, and the command line's use of it
    exceeded: str = "",
) -> _T:
    """Make the dataclass field of one option.

    Args:
        default: What holds when the option is not given.
        check: Takes the option's name and value, returns the value to keep, or raises `ConfigurationError`.
        seed: The option's camelCase name in the seed, None for an option of geventws's own.
        unit: ``"s"``, ``"octets"`` or ``""``.
        help: What the option decides, in one sentence.
        exceeded: What happens when the limit is exceeded, ``""`` for an option that is no limit; it makes
            the option one of `list_limits`, whose every case is counted.

    Returns:
        The field; its metadata holds the other arguments under their names.
    """
    return field(
        default=default, metadata={"check": check, "seed": seed, "unit": unit, "help": help, "exceeded": exceeded}
    )


def _changed(name: str, default: _T) -> _T:
    """Make the field of an inherited option that differs in its default alone."""
    return field(default=default, metadata=ConnectionConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """Hold the options that a connection of either side needs.

    Raises:
        ConfigurationError: A value has the wrong type or is out of range.
    """

    # Four times the fragmentation threshold: what one frame can make this side buffer stays small.
    max_received_frame_size: int = option(
        64 * _KIB,
        check=check_size,
        seed="maxReceivedFrameSize",
        unit="octets",
        help="The largest payload that one received frame may have.",
        exceeded="The connection fails with 1009 before the payload is buffered.",
    )
    # Bounds the memory that one connection costs while a message of many fragments comes in.
    max_received_message_size: int = option(
        _MIB,
        check=check_size,
        seed="maxReceivedMessageSize",
        unit="octets",
        help="The largest message that is received, whether it comes in one frame or in many.",
        exceeded="The connection fails with 1009.",
    )
    # Nobody needs more, and each fragment costs time whatever its size.
    max_message_fragments: int = option(
        65536,
        check=check_count,
        help="How many frames a received message may come in; a last empty one does not count.",
        exceeded="The connection fails with 1009.",
    )
    # RFC 6455, 5.5.3: the answer to the latest Ping is one to all before it.
    max_queued_pongs: int = option(
        1,
        check=check_count,
        help="How many answers to Pings wait while the peer does not read.",
        exceeded="The oldest is dropped for the latest.",
    )
    # Off, as it is in the seed: it costs time for each message, and secrets beside what an attacker chooses
    # must not be compressed together.
    permessage_deflate: bool | DeflateOptions = option(  # noqa: RUF009 - makes a field
        False,
        check=check_deflate,
        help="Compress messages where the peer agrees (RFC 7692): True, or a DeflateOptions.",
    )
    # On, so that pings and pongs find gaps in a large message.
    fragment_outgoing_messages: bool = option(
        True,
        check=check_flag,
        seed="fragmentOutgoingMessages",
        help="Send a message above the fragmentation threshold in several frames.",
    )
    # One TLS record holds at most 16 KiB, so a longer frame gains nothing there.
    fragmentation_threshold: int = option(
        16 * _KIB,
        check=check_size,
        seed="fragmentationThreshold",
        unit="octets",
        help="The largest payload of a frame that is sent; a longer message is fragmented, unless "
        "fragment_outgoing_messages is off.",
    )
    # On, because a peer that vanished without a FIN is noticed in no other way while nothing is sent.
    keepalive: bool = option(
        True, check=check_flag, seed="keepalive", help="Ping a peer that has been silent for the keepalive interval."
    )
    # Below the 30 to 60 seconds after which common proxies and NAT tables forget an idle connection.
    keepalive_interval: float = option(
        20.0,
        check=check_time,
        seed="keepaliveInterval",
        unit="s",
        help="The silence after which a ping goes out; any received octet starts it afresh.",
    )
    # On, because an unanswered ping that changes nothing would leave dead connections in place.
    drop_connection_on_keepalive_timeout: bool = option(
        True,
        check=check_flag,
        seed="dropConnectionOnKeepaliveTimeout",
        help="Drop a peer that stays silent after a ping; off, it is pinged every interval and kept.",
    )
    # Many round trips on the slowest links; together with the interval a dead peer is gone in half a minute.
    keepalive_grace_period: float = option(
        10.0,
        check=check_time,
        seed="keepaliveGracePeriod",
        unit="s",
        help="The time that a peer has to send anything after a ping left for it.",
        exceeded="The connection is dropped, 1006.",
    )
    # Off: the kernel's probes prove a live TCP stack, not a live program, and do not pass proxies.
    use_native_keepalive: bool = option(
        False,
        check=check_flag,
        seed="useNativeKeepalive",
        help="Let TCP keepalive watch the peer, idle for the keepalive interval, in place of pings.",
    )
    # On, because most programs want messages and not their parts.
    assemble_fragments: bool = option(
        True,
        check=check_flag,
        seed="assembleFragments",
        help="Deliver whole messages; off, every frame is a frame event, and only a message of a single frame is a "
        "message event too.",
    )
    # A live peer answers in a round trip; a dead one must not hold its descriptor for long.
    close_timeout: float = option(
        5.0,
        check=check_time,
        seed="closeTimeout",
        unit="s",
        help="The time that the closing handshake may take, whichever side started it.",
        exceeded="The socket is closed.",
    )
    # On, because Nagle's delay meets the peer's delayed ACK: up to 40 ms for a small message.
    disable_nagle_algorithm: bool = option(
        True,
        check=check_flag,
        seed="disableNagleAlgorithm",
        help="Send small messages at once (TCP_NODELAY) instead of gathering them in the kernel.",
    )
    # One message of the default size limit.
    receive_high_water_mark: int = option(
        _MIB,
        check=check_size,
        unit="octets",
        help="How much may wait for the application, each message counted as its octets and 128 more.",
        exceeded="Reading stops until half of it is left.",
    )
    # The same on the way out: a few thousand slow peers still fit into the memory of a small machine.
    send_high_water_mark: int = option(
        _MIB,
        check=check_size,
        unit="octets",
        help="How much may wait for the peer, each message counted as its octets and 128 more.",
        exceeded="send waits until half of it is left.",
    )
    # A stream with a gap misleads more programs than a connection that ends, and is opened again.
    slow_consumer: str = option(
        "close",
        check=check_policy,
        help="What send_nowait, send_threadsafe and broadcast do above the send mark.",
        exceeded='"close" fails the connection, 1013; "drop_newest" drops the message, "drop_oldest" the oldest ones.',
    )
    # Leaves TCP the time for several retransmissions, and bounds what a peer that never reads can hold.
    send_timeout: float | None = option(
        30.0,
        check=check_time_or_none,
        unit="s",
        help="How long output may be pending without the kernel taking one octet; None waits for ever.",
        exceeded="The connection is dropped, 1006.",
    )

    def __post_init__(self) -> None:
        """Check every value, and keep the form that its check gives it."""
        long_times = []
        for item in fields(self):
            value = item.metadata["check"](item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            if item.metadata["unit"] == "s" and value is not None and value > _LONGEST_EXPECTED_TIME:
                long_times.append(f"{item.name}={value}")
        self._check_together()
        if long_times:
            warnings.warn(
                f"{', '.join(long_times)}: more than an hour; times are in seconds, not milliseconds",
                UserWarning,
                stacklevel=_count_own_frames(),
            )

    @property
    def native_keepalive_idle(self) -> float | None:
        """Return the seconds of silence after which TCP itself probes the peer, None where it does not."""
        return self.keepalive_interval if self.keepalive and self.use_native_keepalive else None

    @property
    def deflate_options(self) -> DeflateOptions | None:
        """Return the options of permessage-deflate, None where it is off."""
        if self.permessage_deflate is True:
            return DeflateOptions()
        return self.permessage_deflate or None

    @property
    def sends_keepalive_pings(self) -> bool:
        """Tell whether pings of ours watch the peer."""
        return self.keepalive and not self.use_native_keepalive

    def _check_together(self) -> None:
        """Refuse options that contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ConnectionConfig):
    """Hold the options of a `WebSocketServer` or `WebSocketHandler`.

    Raises:
        ConfigurationError: A value has the wrong type or is out of range, or two options contradict each other.
    """

    http_server: WSGIServer | Collection[WSGIServer] | None = option(  # noqa: RUF009 - makes a field
        None,
        check=check_http_server,
        seed="httpServer",
        help="The WSGIServer to mount on, or a list of them (ws and wss at once); mounting requires it.",
    )
    # Off, because it lets pages of every origin in.
    auto_accept_connections: bool = option(
        False,
        check=check_flag,
        seed="autoAcceptConnections",
        help="Accept every request with its first subprotocol, whatever its path and origin, without a request event.",
    )
    # Off is safe here, unlike in the seed: the header counts only when a trusted proxy sent it.
    ignore_x_forwarded_for: bool = option(
        False,
        check=check_flag,
        seed="ignoreXForwardedFor",
        help="Take the TCP peer for the client, whatever X-Forwarded-For says.",
    )
    parse_extensions: bool = option(
        True,
        check=check_flag,
        seed="parseExtensions",
        help="Parse Sec-WebSocket-Extensions; off, the list is empty and no extension is negotiated.",
    )
    parse_cookies: bool = option(
        True, check=check_flag, seed="parseCookies", help="Parse the Cookie header; off, the list is empty."
    )
    path: str | None = option(
        None,
        check=check_path,
        help="Claim only requests for exactly this path, without its query; None claims any path.",
    )
    # None, as in the seed; a server that knows its users by cookie should set it (RFC 6455, 10.2).
    allowed_origins: Collection[str | None] | None = option(
        None,
        check=check_origins,
        help="Serialised origins that may connect, None among them for a request without Origin; None allows any.",
        exceeded="Any other origin is answered 403 before the request event.",
    )
    # Where a proxy of one's own stands; no client on the Internet connects from such an address.
    trusted_proxies: Collection[str] | None = option(
        DEFAULT_TRUSTED_PROXIES,
        check=check_proxies,
        help="Addresses and networks whose X-Forwarded-For is believed, Unix sockets always; None believes any peer.",
    )
    # Room for a slow look-up in the application, and an end for a request that it forgot.
    accept_timeout: float | None = option(
        60.0,
        check=check_time_or_none,
        unit="s",
        help="How long a request may be neither accepted nor rejected; None waits for ever.",
        exceeded="The request is answered 503.",
    )
    # None: what a machine can carry depends on what the application does with a connection.
    max_connections: int | None = option(
        None,
        check=check_count_or_none,
        help="How many connections the server may have, pending requests among them; None sets no limit.",
        exceeded="The request is answered 503 before the request event.",
    )
    # None: behind NAT, or a proxy that is not trusted, thousands of users have one address.
    max_connections_per_address: int | None = option(
        None,
        check=check_count_or_none,
        help="The same for each client address that is known; None sets no limit.",
        exceeded="The request is answered 503 before the request event.",
    )
    # Each holds a greenlet and a descriptor for up to accept_timeout; more than this is a look-up that does not keep
    # up, or a flood.
    max_pending_requests: int | None = option(
        1024,
        check=check_count_or_none,
        help="How many requests may be neither accepted nor rejected at a time; None sets no limit.",
        exceeded="The request is answered 503 before the request event.",
    )
    # A head is a few packets; a client that drips it octet by octet holds a greenlet and a descriptor.
    header_timeout: float | None = option(
        10.0,
        check=check_time_or_none,
        unit="s",
        help="How long a whole request head, and a TLS handshake before it, may take, for every request on that http "
        "server; None is pywsgi's own way.",
        exceeded="408, and the connection ends.",
    )
    # Twice what nginx hands on, so that no proxy has to know of it; pywsgi alone takes 6.5 MB from each connection.
    max_head_size: int | None = option(
        64 * _KIB,
        check=check_size_or_none,
        unit="octets",
        help="The largest request head, the request line included, for every request on that http server; None is "
        "pywsgi's own way.",
        exceeded="431, and the connection ends.",
    )
    max_header_count: int = option(
        MOST_FIELDS,
        check=check_header_count,
        help="How many fields a request head may have, for every request on that http server; a folded one counts "
        "as its lines.",
        exceeded="431, and the connection ends.",
    )

    # A quarter of the memory of a machine of 1 GiB, and what 256 peers that do not read hold at their marks.
    max_queued_output: int | None = option(
        256 * _MIB,
        check=check_size_or_none,
        unit="octets",
        help="How much may wait to be sent on all connections together, counted as for the send mark; None: no limit.",
        exceeded="The connection on which the most waits fails with 1013.",
    )

    @property
    def trusted_networks(self) -> tuple[Network, ...] | None:
        """Return ``trusted_proxies`` as networks, None where any peer is trusted."""
        return None if self.trusted_proxies is None else parse_trusted_proxies(tuple(self.trusted_proxies))

    def _check_together(self) -> None:
        if self.permessage_deflate and not self.parse_extensions:
            raise ConfigurationError("permessage_deflate needs parse_extensions=True")
        if not self.auto_accept_connections:
            return
        for name in ("path", "allowed_origins"):
            if getattr(self, name) is not None:
                raise ConfigurationError(f"auto_accept_connections accepts everything: it does not go with {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig(ConnectionConfig):
    """Hold the options of a `WebSocketClient`.

    Raises:
        ConfigurationError: A value has the wrong type or is out of range.
    """

    # The limits of the seed's client: a client chose its server, and has one of it, not thousands.
    max_received_frame_size: int = _changed("max_received_frame_size", _MIB)
    max_received_message_size: int = _changed("max_received_message_size", 8 * _MIB)
    # Three lost SYNs (1, 2 and 4 seconds) and some time for TLS and the answer.
    connect_timeout: float | None = option(
        10.0,
        check=check_time_or_none,
        unit="s",
        help="How long name look-up, TCP, TLS and the opening handshake may take together; None waits for ever.",
        exceeded="Connecting fails.",
    )


def make_config(cls: type[_ConfigT], config: object = None, options: Mapping[str, object] | None = None) -> _ConfigT:
    """Make a configuration from a given one and the options that override it.

    Args:
        cls: The class that is wanted.
        config: An instance of ``cls``, a mapping of options, or None for the defaults.
        options: Values that replace those of ``config``.

    Returns:
        A checked instance; ``config`` itself when it is one and nothing overrides it.

    Raises:
        ConfigurationError: An option is unknown, of the wrong type or out of range, two contradict each
            other, or ``config`` is something else.
    """
    values: dict[str, Any] = dict(options or {})
    if isinstance(config, cls):
        _check_names(type(config), values)
        if not values:
            return config
        given = {item.name: getattr(config, item.name) for item in fields(config)}
        return type(config)(**(given | values))
    if isinstance(config, Mapping):
        values = {**config, **values}
    elif config is not None:
        raise ConfigurationError(f"config must be a {cls.__name__}, a mapping or None, not {config!r}")
    _check_names(cls, values)
    return cls(**values)


class OptionRow(NamedTuple):
    """Hold one row of the documentation's table of options."""

    seed: str
    name: str
    default: str
    unit: str
    meaning: str


def options_table(cls: type[ConnectionConfig] = ServerConfig) -> list[OptionRow]:
    """List the options of a class for the documentation.

    Returns:
        One row for each option, in the order of definition; ``seed`` is ``"—"`` for an option of geventws's own.
    """
    return [
        OptionRow(
            seed=item.metadata["seed"] or "—",
            name=item.name,
            default=_format_default(item.default),
            unit=item.metadata["unit"],
            meaning=f"{item.metadata['help']} {item.metadata['exceeded']}".rstrip(),
        )
        for item in fields(cls)
    ]


def list_limits(cls: type[ConnectionConfig] = ServerConfig) -> list[str]:
    """List the names of the options that are limits: something happens when they are exceeded."""
    return [item.name for item in fields(cls) if item.metadata["exceeded"]]


def _format_default(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_names(cls: type[ConnectionConfig], names: Iterable[object]) -> None:
    known = {item.name for item in fields(cls)}
    for name in names:
        if name not in known:
            raise ConfigurationError(_explain_unknown(cls, name))


def _explain_unknown(cls: type[ConnectionConfig], name: object) -> str:
    """Say that an option does not exist, and which one may have been meant."""
    by_seed = {item.metadata["seed"]: item for item in fields(cls) if item.metadata["seed"]}
    if name in by_seed:
        meant = by_seed[name]
        return f"{name} is called {meant.name} here{_UNIT_WORDS.get(meant.metadata['unit'], '')}"
    message = f"{cls.__name__} has no option {name!r}"
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    close = difflib.get_close_matches(snake_case, [item.name for item in fields(cls)], n=1)
    return f"{message}; did you mean {close[0]}?" if close else message


def _count_own_frames() -> int:
    """Return the ``stacklevel`` that makes a warning of the caller point at the line outside this package."""
    package = __name__.partition(".")[0]
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame = frame.f_back
        level += 1
    return level

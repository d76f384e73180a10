"""Which servers are compared, in which scenarios, and how a user chooses among them.

Strategy: both are tables. A server has features, a scenario needs some of them, and each scenario is run on the servers
that have all that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

_ALL = frozenset({"echo", "connect", "broadcast", "sink", "many", "tls", "deflate"})


class Server(NamedTuple):
    """Describe one server.

    Attributes:
        name: What the tables and the selection call it.
        command: Its command line, split at spaces; the names in braces are the runner's programs.
        features: What it can do: echo, connect (it ends TCP after the closing handshake), broadcast, sink (count
            messages), many (10,000 connections), tls, deflate, workers, scale (it is worth the scenarios about numbers
            of connections and bad neighbours).
        workers: How many processes serve, each of which prints that it is ready.
    """

    name: str
    command: str
    features: frozenset[str] = _ALL
    workers: int = 1


class Scenario(NamedTuple):
    """Describe one scenario.

    Attributes:
        name: What the tables and the selection call it.
        title: What it does, in a line.
        connections: How many connections the load generator has.
        load: Its further options.
        path: What it connects to.
        needs: The features that a server must have; ``tls`` and ``deflate`` are switched on at both ends.
        unit: What is counted; ``memory`` and ``latency`` for scenarios that are about these.
        idle: How many connections are open beside those of the load generator, and do nothing.
        beside: What else goes on meanwhile: see neighbours.py.
    """

    name: str
    title: str
    connections: int
    load: str
    path: str = "/"
    needs: frozenset[str] = frozenset({"echo"})
    unit: str = "message"
    idle: int = 0
    beside: str = ""


_GEVENTWS = "{python} geventws_server.py --build compiled"
_DEFLATE = frozenset({"deflate"})
_WORKERS = frozenset({"workers"})

SERVERS = (
    Server("c-echo", "{tools}/echo", _ALL - {"broadcast", "sink"} | {"scale"}),
    Server("geventws", f"{_GEVENTWS} --style event", _ALL | {"scale"}),
    Server("geventws-loop", f"{_GEVENTWS} --style loop", _ALL | {"scale"}),
    Server("geventws-plain", "{plain} geventws_server.py --build plain --style event"),
    Server("picows", "{python} picows_server.py", _ALL - _DEFLATE | {"scale"}),
    Server("aiohttp", "{python} aiohttp_server.py"),
    Server("uvicorn", "{python} uvicorn_server.py"),
    Server("websockets", "{python} websockets_asyncio_server.py"),
    # A thread for each of 10,000 connections is more than most machines allow.
    Server("websockets-threads", "{python} websockets_threads_server.py", _ALL - {"many"}),
    Server("granian", "{python} granian_server.py", _ALL - _DEFLATE),
    Server("gevent-websocket", "{python} gevent_websocket_server.py", _ALL - _DEFLATE),
    # It leaves TCP open as for a further HTTP request, and takes two descriptors for each connection.
    Server("flask-sock", "{python} flask_sock_server.py", _ALL - {"connect", "many"}),
    Server("npm-ws", "{node} ws_server.js"),
    Server("npm-websocket", "{node} websocket_server.js", _ALL - _DEFLATE),
    # As others compress, so that replies of the same size are compared: the levels and windows are theirs.
    Server("geventws-level-1", f"{_GEVENTWS} --takeover --level 1", _DEFLATE),
    Server("geventws-level-6", f"{_GEVENTWS} --takeover --level 6", _DEFLATE),
    Server("geventws-12-bits", f"{_GEVENTWS} --takeover --level 6 --bits 12 --memory-level 5", _DEFLATE),
    Server("gunicorn-geventws-1", "{python} gunicorn_server.py --workers 1", _WORKERS, 1),
    Server("gunicorn-geventws-2", "{python} gunicorn_server.py --workers 2", _WORKERS, 2),
    Server("uvicorn-1", "{python} uvicorn_server.py --workers 1", _WORKERS, 1),
    Server("uvicorn-2", "{python} uvicorn_server.py --workers 2", _WORKERS, 2),
)

_COUNTS = (100, 1000, 10000)
_SCALE = frozenset({"echo", "scale"})
_ORDINARY = "16 ordinary connections, 2,000 messages of 32 octets a second in all"
_PACED = "--in-flight 8 --size 32 --text --rate 2000"

_ECHOES = (
    Scenario("latency", "one connection, one text of 125 octets in flight", 1, "--size 125 --text"),
    Scenario("small", "64 connections, one text of 32 octets in flight each", 64, "--size 32 --text"),
    Scenario(
        "pipelined", "64 connections, 16 texts of 32 octets in flight each", 64, "--in-flight 16 --size 32 --text"
    ),
    Scenario("16k", "16 connections, one binary message of 16 KiB in flight each", 16, "--size 16384 --binary"),
    Scenario("1m", "4 connections, one binary message of 1 MiB in flight each", 4, "--size 1048576 --binary"),
    Scenario(
        "connect",
        "32 at a time: TCP connection, upgrade, one echo, close",
        32,
        "--mode connect --size 32 --text",
        needs=frozenset({"connect"}),
        unit="connection",
    ),
)

SCENARIOS = (
    *_ECHOES,
    Scenario("idle-1000", "1,000 connections that echoed once", 1000, "--mode idle --size 32 --text", unit="memory"),
    Scenario(
        "idle-10000",
        "10,000 connections that echoed once",
        10000,
        "--mode idle --size 32 --text",
        needs=frozenset({"echo", "many"}),
        unit="memory",
    ),
    *(
        Scenario(
            f"broadcast-{count}",
            f"each text of 128 octets goes to all {count:,} connections",
            count,
            "--mode broadcast --size 128 --text",
            path="/broadcast",
            needs=frozenset({"broadcast"} if count < 1000 else {"broadcast", "many"}),
            unit="delivery",
        )
        for count in (500, 5000)
    ),
    Scenario(
        "fan-in",
        "1,000 connections send texts of 32 octets, nobody answers",
        1000,
        "--mode fan-in --size 32 --text",
        path="/sink",
        needs=frozenset({"sink"}),
    ),
    Scenario(
        "deflate",
        "16 connections, one JSON text of 4 KiB in flight each, compressed both ways",
        16,
        "--size 4096 --text",
        needs=_DEFLATE,
    ),
    *(
        echo._replace(name=f"{echo.name}-tls", title=f"{echo.title}; over TLS", needs=echo.needs | {"tls"})
        for echo in _ECHOES
        if echo.name in {"latency", "small", "16k", "connect"}
    ),
    Scenario(
        "workers",
        "64 connections, one text of 32 octets in flight each; servers of several processes",
        64,
        "--size 32 --text",
        needs=_WORKERS,
    ),
    *(
        Scenario(f"all-{count}", f"{count:,} connections, all active", count, "--size 32 --text", needs=_SCALE)
        for count in _COUNTS
    ),
    *(
        Scenario(
            f"few-{count}",
            f"64 active connections beside {count:,} idle ones",
            64,
            "--size 32 --text",
            needs=_SCALE,
            idle=count,
        )
        for count in _COUNTS
    ),
    *(
        Scenario(
            f"connect-{count}",
            f"32 at a time: connection, upgrade, echo, close, beside {count:,} idle ones",
            32,
            "--mode connect --size 32 --text",
            needs=_SCALE,
            unit="connection",
            idle=count,
        )
        for count in _COUNTS
    ),
    Scenario("alone", f"{_ORDINARY}, and nothing else", 16, _PACED, needs=_SCALE, unit="latency"),
    Scenario(
        "beside-deaf",
        f"{_ORDINARY}, beside one that sends all it can and never reads",
        16,
        _PACED,
        needs=_SCALE,
        unit="latency",
        beside="deaf",
    ),
    Scenario(
        "beside-flood",
        f"{_ORDINARY}, beside one with 256 messages in flight",
        16,
        _PACED,
        needs=_SCALE,
        unit="latency",
        beside="flood",
    ),
    Scenario(
        "beside-1m",
        f"{_ORDINARY}, beside one that echoes messages of 1 MiB",
        16,
        _PACED,
        needs=_SCALE,
        unit="latency",
        beside="1m",
    ),
)

_RowT = TypeVar("_RowT", Server, Scenario)


def select(rows: Iterable[_RowT], wanted: str) -> list[_RowT]:
    """Return the rows whose names are wanted, in the order of the table.

    Args:
        rows: `SERVERS` or `SCENARIOS`.
        wanted: Names or shell patterns between commas or spaces; ``""`` for all.

    Raises:
        ValueError: A name or pattern that no row has.
    """
    rows = list(rows)
    patterns = wanted.replace(",", " ").split()
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            raise ValueError(f"there is no {pattern!r}; there are {', '.join(row.name for row in rows)}")
    return [row for row in rows if not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns)]

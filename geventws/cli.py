"""The command line: ``geventws echo``, ``geventws demo`` and ``geventws connect URL``.

Strategy: each option of a configuration becomes a flag by what its dataclass field says of it. A flag's
text is converted where it can be and then goes to the option's own check, so the rule of a refused value is worded
in one place. A command that cannot go on raises `CommandError`: one line, and an exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import types
import typing
import warnings
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent import ssl
from gevent.event import Event
from gevent.os import tp_read
from gevent.pywsgi import WSGIServer
from webob import Response

from geventws._version import __version__
from geventws.client import connect
from geventws.config import ClientConfig, ConnectionConfig, ServerConfig, make_config, options_table
from geventws.demo import ChatRoom
from geventws.demo import application as demo_application
from geventws.errors import ConfigurationError, ConnectError, ConnectionClosed, HandshakeError, SubprotocolError
from geventws.memory import tune_memory
from geventws.server import WebSocketServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from geventws.connection import WebSocketConnection
    from geventws.frames import WebSocketFrame
    from geventws.request import WebSocketRequest

__all__ = ["CommandError", "main"]

#: Exit statuses, as is usual: something failed, or the command line was wrong.
FAILED = 1
MISUSED = 2

_BROADCAST_PATH = "/broadcast"
_CLEAN_CLOSE_CODES = frozenset({1000, 1001, 1005})
_READ_SIZE = 65536
#: Seconds that a server has to answer a ping, before its answers to the last lines are given up.
_ANSWER_TIMEOUT = 1.0
#: An option that is an object of the program, and not for a command line.
_NOT_FLAGS = frozenset({"http_server"})
_METAVARS = {"s": "SECONDS", "octets": "OCTETS"}


class CommandError(Exception):
    """Report why a command ends.

    Attributes:
        status: The exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 1 when something failed, 2 for a wrong command line.
    """
    given = _make_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = given.run(given)
    except CommandError as error:
        print(f"geventws {given.command}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Nobody reads our output any more; Python would stumble over that once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


def _show_warning(message: Warning | str, *_context: object, **_more: object) -> None:
    print(f"geventws: {message}", file=sys.stderr)


# The flags


class _Parser(argparse.ArgumentParser):
    """Refuse in one line: the usage would take a screen."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        self.exit(MISUSED, f"{self.prog}: {message}\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="geventws", description="WebSocket servers and a client, on gevent.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"geventws {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    echo = _add_command(commands, "echo", _run_echo, "serve an echo server")
    _add_address(echo)
    echo.add_argument(
        "--style", choices=["event", "loop"], default="event", help="how its code gets the messages (default: event)"
    )
    _add_options(echo, ServerConfig)

    demo = _add_command(commands, "demo", _run_demo, "serve the example page, a chat room")
    _add_address(demo)

    client = _add_command(commands, "connect", _run_connect, "send the lines of standard input, print what comes back")
    client.add_argument("url", metavar="URL", help="ws:// or wss://")
    client.add_argument("--subprotocol", action="append", default=[], metavar="NAME", help="to offer; repeatable")
    client.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a further request header; repeatable"
    )
    client.add_argument("--origin", help="what the Origin header says")
    client.add_argument("--binary", action="store_true", help="send the lines as binary messages")
    _add_options(client, ClientConfig)
    return parser


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", default="8000", help="the port; 0 takes a free one (default: 8000)")
    parser.add_argument("--certfile", metavar="FILE", help="the certificate for TLS, in PEM")
    parser.add_argument("--keyfile", metavar="FILE", help="its key (default: in the certificate's file)")


def _add_options(parser: argparse.ArgumentParser, cls: type[ConnectionConfig]) -> None:
    """Add a flag for each option of a configuration."""
    group = parser.add_argument_group(f"{cls.__name__}, where none stands for None")
    types_by_name = typing.get_type_hints(cls)
    for row in options_table(cls):
        if row.name in _NOT_FLAGS:
            continue
        text = f"{row.meaning} (default: {row.default})".replace("%", "%%")
        kind = _Kind(types_by_name[row.name])
        if kind.is_flag:
            group.add_argument(_name_flag(row.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            action = "append" if kind.is_list else "store"
            group.add_argument(_name_flag(row.name), action=action, metavar=_METAVARS.get(row.unit, "VALUE"), help=text)


def _name_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Kind:
    """Tell from an option's type how the command line writes its values."""

    def __init__(self, annotation: Any) -> None:
        members = set(typing.get_args(annotation)) if _is_union(annotation) else {annotation}
        self._members = members
        self.is_flag = bool in members
        lists = [member for member in members if typing.get_origin(member) is Collection]
        self.is_list = bool(lists)
        self._items_may_be_none = any(_is_union(item) for member in lists for item in typing.get_args(member))

    def convert(self, text: Any) -> object:
        """Return the value that a flag's text stands for; the text itself where it stands for none."""
        if self.is_flag:
            return text
        if self.is_list:
            items = [None if item == "none" else item for item in text]
            return None if items == [None] and not self._items_may_be_none else items
        if text == "none" and types.NoneType in self._members:
            return None
        for number in (int, float):
            if number in self._members:
                with contextlib.suppress(ValueError):
                    return number(text)
        return text


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _read_options(cls: type[ConnectionConfig], given: argparse.Namespace) -> dict[str, object]:
    """Return the options that were given, checked."""
    types_by_name = typing.get_type_hints(cls)
    options: dict[str, object] = {}
    try:
        for item in fields(cls):
            text = getattr(given, item.name, None)
            if text is not None:
                value = _Kind(types_by_name[item.name]).convert(text)
                options[item.name] = item.metadata["check"](_name_flag(item.name), value)
        make_config(cls, options)
    except ConfigurationError as error:
        raise CommandError(str(error), MISUSED) from None
    return options


# Serving


def _make_http(given: argparse.Namespace, application: Any) -> WSGIServer:
    if not given.port.isdecimal() or int(given.port) > 65535:
        raise CommandError(f"--port must be a number from 0 to 65535, not {given.port!r}", MISUSED)
    if given.keyfile is not None and given.certfile is None:
        raise CommandError("--keyfile needs --certfile", MISUSED)
    tls: dict[str, Any] = {}
    if given.certfile is not None:
        tls["ssl_context"] = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(given.certfile, given.keyfile)
        except OSError as error:
            message = f"--certfile and --keyfile must be PEM files that belong together: {error}"
            raise CommandError(message, MISUSED) from None
    return WSGIServer((given.host, int(given.port)), application, log=None, **tls)


def _serve(http: WSGIServer, given: argparse.Namespace, announcement: str, stop_timeout: float) -> int:
    """Serve until a signal comes, then close the connections with 1001.

    Args:
        http: With everything mounted.
        given: The command line.
        announcement: Printed when connections can come; ``%s`` stands for the address behind the scheme's name.
        stop_timeout: Seconds for the closing handshakes.
    """
    try:
        http.start()
    except OSError as error:
        raise CommandError(f"cannot listen there: {error.strerror or error}", FAILED) from None
    host = str(given.host or http.server_host)
    host = f"[{host}]" if ":" in host else host
    ended = Event()
    with _on_signal(lambda _number: ended.set()):
        print(announcement % f"{'' if given.certfile is None else 's'}://{host}:{http.server_port}/", flush=True)
        ended.wait()
        http.stop(stop_timeout)
    return 0


@contextlib.contextmanager
def _on_signal(end: Callable[[int], object]) -> Iterator[None]:
    """Call a function with the number of SIGTERM or of Ctrl-C; a second signal ends the process at once."""
    received: list[int] = []

    def take(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        end(number)

    handlers = [gevent.signal_handler(number, take, number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for handler in handlers:
            handler.cancel()


def _run_demo(given: argparse.Namespace) -> int:
    http = _make_http(given, demo_application)
    room = ChatRoom(http)
    assert room.server.config is not None
    announcement = "The chat is at http%s (open it in two windows; Ctrl-C ends it)"
    return _serve(http, given, announcement, room.server.config.close_timeout)


def _run_echo(given: argparse.Namespace) -> int:
    tune_memory()
    options = _read_options(ServerConfig, given)
    config = make_config(ServerConfig, options)
    page = Response("A WebSocket echo server.\n", content_type="text/plain", charset="utf-8")
    http = _make_http(given, page)
    if config.path in (None, _BROADCAST_PATH):
        # In front of the other one, and a server of its own: what it broadcasts reaches this path alone.
        room_options = {**options, "path": _BROADCAST_PATH, "auto_accept_connections": False}
        room = WebSocketServer(room_options, http_server=http)
        _begin_with(room, given.style, lambda _connection: room.broadcast)
    server = WebSocketServer(options, http_server=http)
    if config.assemble_fragments or given.style == "loop":
        _begin_with(server, given.style, lambda connection: connection.send)
    else:
        server.on("request", _accept)
        server.on("connect", lambda connection: connection.on("frame", functools.partial(_echo_frame, connection)))
    return _serve(http, given, "listening on ws%s", config.close_timeout)


def _begin_with(
    server: WebSocketServer, style: str, choose: Callable[[WebSocketConnection], Callable[[str | bytes], object]]
) -> None:
    """Let what is chosen for a connection take its messages, in event style or in loop style."""
    server.on("request", _accept)
    # Not in the request listener: with --auto-accept-connections there is no request.
    if style == "loop":
        server.on("connect", lambda connection: gevent.spawn(_run_loop, connection, choose(connection)))
    else:
        server.on("connect", lambda connection: connection.on("message", choose(connection)))


def _accept(request: WebSocketRequest) -> None:
    # A subprotocol that is no token was answered 500 by then.
    with contextlib.suppress(SubprotocolError):
        request.accept(next(iter(request.requested_subprotocols), None))


def _run_loop(connection: WebSocketConnection, take: Callable[[str | bytes], object]) -> None:
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            take(message)


def _echo_frame(connection: WebSocketConnection, frame: WebSocketFrame) -> None:
    is_control = frame.opcode & 0x08
    if not is_control:
        connection.send_frame(frame)


# The client


def _run_connect(given: argparse.Namespace) -> int:
    connection = _connect(given)
    with _on_signal(lambda _number: connection.close(1001)), contextlib.suppress(ConnectionClosed):
        chosen = "" if connection.subprotocol is None else f", subprotocol {connection.subprotocol}"
        print(f"connected to {connection.remote_address}{chosen}", file=sys.stderr)
        sender = gevent.spawn(_send_lines, connection, given.binary)
        try:
            for message in connection:
                _show_message(message)
        finally:
            sender.kill()
    is_clean = connection.close_code in _CLEAN_CLOSE_CODES
    why = connection.close_reason or ("" if is_clean else connection.close_cause)
    print(_escape(f"closed: {connection.close_code} {why}".rstrip()), file=sys.stderr)
    return 0 if is_clean else FAILED


def _connect(given: argparse.Namespace) -> WebSocketConnection:
    options = _read_options(ClientConfig, given)
    headers = [_parse_header(header) for header in given.header]
    caller = gevent.getcurrent()
    try:
        with _on_signal(lambda number: gevent.kill(caller, SystemExit(128 + number))):
            return connect(
                given.url, subprotocols=given.subprotocol, origin=given.origin, headers=headers, config=options
            )
    except (ConnectError, HandshakeError) as error:
        raise CommandError(_escape(str(error)), FAILED) from None
    except ValueError as error:
        raise CommandError(_escape(str(error)), MISUSED) from None


def _parse_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise CommandError(f"--header must be 'NAME: VALUE', not {text!r}", MISUSED)
    return name, value.strip()


def _send_lines(connection: WebSocketConnection, is_binary: bool) -> None:
    """Send each line of standard input as a message, then close with 1000."""
    with contextlib.suppress(ConnectionClosed):
        for line in _read_lines():
            connection.send(line if is_binary else line.decode("utf-8", "replace"))
        _await_answers(connection)
        connection.close()


def _read_lines() -> Iterator[bytes]:
    """Yield the lines of standard input without their ends.

    A thread reads them: a terminal that was made non-blocking would be that for our output, and for the shell, too.
    """
    rest = b""
    while octets := tp_read(sys.stdin.fileno(), _READ_SIZE):
        *lines, rest = (rest + octets).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _await_answers(connection: WebSocketConnection) -> None:
    """Wait until the server has answered what it answers at once: after our Close we take no message.

    A Pong may overtake the answers to messages that came before the ping, but not those that the server
    has sent before it read the ping: hence the second one.
    """
    answered = Event()
    connection.on("pong", lambda _payload: answered.set())
    for _ in range(2):
        answered.clear()
        connection.ping()
        if not answered.wait(_ANSWER_TIMEOUT):
            return


def _show_message(message: str | bytes) -> None:
    """Print a message: text as it is, binary as hexadecimal digits."""
    text = message.hex() if isinstance(message, bytes) else message
    # To a terminal a control character is a command.
    print(_escape(text) if sys.stdout.isatty() else text, flush=True)


def _escape(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )

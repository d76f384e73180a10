"""`WebSocketServer`: mount it on gevent's http servers, and decide about upgrade requests (seed: WebSocketServer)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import gevent
from gevent.pywsgi import WSGIHandler
from greenlet import GreenletExit

from geventws.checks import check_http_servers
from geventws.config import ServerConfig, make_config
from geventws.connection import WebSocketConnection
from geventws.dispatch import get_dispatcher
from geventws.errors import ConfigurationError, HandshakeError, InvalidState, SubprotocolError
from geventws.events import Emitter
from geventws.frames import check_close
from geventws.handler import WebSocketHandler
from geventws.headers import is_token
from geventws.host import Mount, get_host
from geventws.prepared import PreparedMessage
from geventws.registry import Registry
from geventws.sending import check_message, send_to_all
from geventws.sockets import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gevent.pywsgi import WSGIServer

    from geventws.request import WebSocketRequest

__all__ = ["WebSocketServer"]

logger = logging.getLogger("geventws")

_Item = TypeVar("_Item")


class _View(Set[_Item], Generic[_Item]):
    """Show a set without letting anybody change it; iterating is safe while it changes."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[_Item, object]) -> None:
        self._items = items

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[_Item]:
        return iter(tuple(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(tuple(self._items))

    @classmethod
    def _from_iterable(cls, items: Iterable[_Item]) -> set[_Item]:  # type: ignore[override]
        """Let ``&``, ``|`` and ``-`` give a plain set."""
        return set(items)


class _Placement:
    """Put a mount onto an http server, and take it away again without disturbing other mounts."""

    def __init__(self, http_server: WSGIServer, mount: Mount) -> None:
        self._http_server = http_server
        self._mount = mount

    def put(self) -> None:
        http_server = self._http_server
        self._mount.host.add_mount(self._mount)
        base = http_server.handler_class
        if not issubclass(base, WebSocketHandler):
            own = "handler_class" in vars(http_server)
            bases = (WebSocketHandler,) if base is WSGIHandler else (WebSocketHandler, base)
            made = type("WebSocket" + base.__name__, bases, {"config": None, "replaced": base if own else None})
            http_server.handler_class = made
        if getattr(http_server, "application", None) is None:
            http_server.application = _answer_not_found

    def take(self) -> None:
        http_server = self._http_server
        self._mount.host.remove_mount(self._mount)
        if self._mount.host.mounts:
            return
        if vars(http_server).get("application") is _answer_not_found:
            del http_server.application
        made = vars(http_server).get("handler_class")
        # A class that somebody put there since is not ours to take away.
        if made is not None and "replaced" in vars(made):
            if made.replaced is None:
                del http_server.handler_class
            else:
                http_server.handler_class = made.replaced


class WebSocketServer(Emitter):
    """Accept WebSocket connections on pywsgi servers (seed: WebSocketServer).

    Events: ``request(request)``, ``connect(connection)``, ``close(connection, code, reason)``,
    ``upgrade_error(error)``. Listeners run in greenlets and may block; one that raises is logged.
    """

    EVENTS: ClassVar[frozenset[str]] = frozenset({"request", "connect", "close", "upgrade_error"})

    def __init__(self, config: ServerConfig | Mapping[str, object] | None = None, /, **options: Any) -> None:
        """Make a server; where anything is given, `mount` it.

        Args:
            config: The options, as a `ServerConfig` or a mapping.
            **options: Options that override those of ``config``.

        Raises:
            ConfigurationError: As `mount`.
        """
        super().__init__()
        self._config: ServerConfig | None = None
        self._placements: list[_Placement] = []
        self._registry = Registry()
        if config is not None or options:
            self.mount(config, **options)

    def mount(self, config: ServerConfig | Mapping[str, object] | None = None, /, **options: Any) -> WebSocketServer:
        """Attach the server to one or many http servers, before or after their ``start()`` (seed: mount).

        Their ``handler_class`` is derived from, not replaced; one without an application answers 404 until `unmount`.
        Connections that were accepted before keep the handler that they have.

        Args:
            config: The options, as a `ServerConfig` or a mapping.
            **options: Options that override those of ``config``; ``http_server`` is required.

        Returns:
            The server itself.

        Raises:
            ConfigurationError: An option is unknown, of a wrong type or out of range; nothing has changed then.
            InvalidState: The server is mounted.
        """
        if self.mounted:
            raise InvalidState("the server is mounted: unmount it first")
        checked = make_config(ServerConfig, config, options)
        http_servers = check_http_servers(checked.http_server)
        for http_server in http_servers:
            if not isinstance(http_server.handler_class, type):
                raise ConfigurationError(
                    "http_server has a handler_class that is no class: WebSocketServer derives from it and needs one"
                )
        self._config = checked
        for http_server in http_servers:
            placement = _Placement(http_server, Mount(get_host(http_server), self, checked))
            placement.put()
            self._placements.append(placement)
        return self

    def unmount(self) -> None:
        """Detach from the http servers; connections and pending requests stay (seed: unmount). Idempotent."""
        placements, self._placements = self._placements, []
        for placement in placements:
            placement.take()

    def close_all_connections(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake on all connections, answer pending requests 503 (seed: closeAllConnections).

        Returns at once.

        Raises:
            TypeError: ``code`` is no int, or ``reason`` no str.
            ValueError: The code may not be sent, or the reason has over 123 octets.
        """
        check_close(code, reason)
        self._close_all("close_all_connections", code, reason)

    def _close_all(self, why: str, code: int, reason: str) -> None:
        self._expire_pending()
        for connection in tuple(self._registry.connections):
            connection._close_for(why, int(code), reason)

    def _expire_pending(self) -> None:
        for request in tuple(self._registry.pending):
            request.expire("the server closes all connections")

    def shut_down(self, timeout: float | None = None, code: int = 1001, reason: str = "", spread: float = 0.0) -> None:
        """Unmount, and close all connections (seed: shutDown).

        Args:
            timeout: Seconds to wait for the closing handshakes, then what is left is dropped; None returns at once.
            code: The close code.
            reason: At most 123 octets of UTF-8.
            spread: Seconds over which the closes are spread, so that the clients do not all come back at once.

        Raises:
            TypeError: ``code`` is no int, or ``reason`` no str.
            ValueError: The code may not be sent, the reason has over 123 octets, or a time is negative.
        """
        check_close(code, reason)
        if spread < 0 or (timeout is not None and timeout < 0):
            raise ValueError("timeout and spread are seconds, and not negative")
        self.unmount()
        if not spread:
            self._close_all("shut_down", code, reason)
            closing = None
        else:
            self._expire_pending()
            closing = gevent.spawn(self._close_spread, code, reason, spread)
        if timeout is None:
            return
        deadline = monotonic() + timeout
        for connection in tuple(self._registry.connections):
            connection.wait_closed(max(0.0, deadline - monotonic()))
        if closing is not None:
            closing.kill()
        for connection in tuple(self._registry.connections):
            connection._drop_for("the time-out of shut_down", int(code), reason)

    def _close_spread(self, code: int, reason: str, spread: float) -> None:
        connections = tuple(self._registry.connections)
        started = monotonic()
        for count, connection in enumerate(connections, 1):
            connection._close_for("shut_down", int(code), reason)
            # By the clock: no sleep is exact, and with many connections what each has too much would add up.
            gevent.sleep(max(0.0, started + spread * count / len(connections) - monotonic()))

    def broadcast(
        self,
        message: str | bytes | bytearray | memoryview,
        *,
        exclude: Iterable[WebSocketConnection] | WebSocketConnection = (),
        compress: bool = True,
    ) -> int:
        """Send a message to all connections, serialised once (seed: broadcast, broadcastUTF, broadcastBytes).

        Never waits: a connection above its ``send_high_water_mark`` is a slow consumer, and ``slow_consumer`` says what
        becomes of it. It is compressed once for all connections without a context of their own.

        Args:
            message: Sent as text or binary by its type.
            exclude: Connections that do not get it, or one.
            compress: False leaves it as it is where permessage-deflate was agreed.

        Returns:
            The number of connections that it was queued for.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
            InvalidState: Called in another thread than the server's.
        """
        prepared = PreparedMessage(*check_message(message), compress, is_droppable=True)
        # A connection iterates over its messages: taken for a collection, it would wait for one.
        excluded = {exclude} if isinstance(exclude, WebSocketConnection) else set(exclude)
        if self._registry.has_connections_of_others():
            raise InvalidState("broadcast was called in another thread than the connections': use send_threadsafe")
        return send_to_all(tuple(self._registry.connections), prepared, excluded)

    @property
    def config(self) -> ServerConfig | None:
        """The options of the last `mount`; None before."""
        return self._config

    @property
    def mounted(self) -> bool:
        """Whether the server is attached to http servers."""
        return bool(self._placements)

    @property
    def connections(self) -> Set[WebSocketConnection]:
        """The connections from ``accept`` until their ``close`` event: a live, read-only view."""
        return _View(self._registry.connections)

    @property
    def pending_requests(self) -> Set[WebSocketRequest]:
        """The requests that nobody has accepted or rejected yet: a live, read-only view."""
        return _View(self._registry.pending)

    @property
    def limit_counts(self) -> Mapping[str, int]:
        """How often each limit was exceeded since the server was made, by the option's name: live, read-only."""
        return MappingProxyType(self._registry.limit_counts)

    # What the handler asks

    def _claims(self, path: str) -> bool:
        """Tell whether an upgrade request for a path is this server's."""
        config = self._config
        if config is None or (config.path is not None and config.path != path):
            return False
        return config.auto_accept_connections or bool(self._get_listeners("request"))

    def _decide(self, request: WebSocketRequest) -> None:
        """Check a request, let the application decide, and block until it has."""
        error = request.error or _check_automatic(request) or request._admit()
        if error is not None:
            request.refuse(error)
            self._emit_logged("upgrade_error", error)
            return
        try:
            if request.config.auto_accept_connections:
                request.accept(next(iter(request.requested_subprotocols), None), request.origin)
            else:
                self._await_decision(request)
        finally:
            self._registry.remove_request(request)

    def _await_decision(self, request: WebSocketRequest) -> None:
        timer = None
        if request.config.accept_timeout is not None:
            timer = get_dispatcher().loop.timer(request.config.accept_timeout)
            timer.start(self._on_accept_timeout, request, update=True)
        try:
            self._emit_request(request)
            if not request.resolved:
                request.wait()
        finally:
            if timer is not None:
                timer.close()

    def _on_accept_timeout(self, request: WebSocketRequest) -> None:
        if not request.resolved:
            self._registry.count_limit("accept_timeout")
            request.expire(f"the server did not decide within {request.config.accept_timeout} s")

    def _emit_request(self, request: WebSocketRequest) -> None:
        try:
            self._emit("request", request)
        except BaseException as error:
            if request.connection is not None:
                request.connection._on_listener_raised()
            elif not request.resolved:
                request.refuse(HandshakeError("internal server error", 500))
            if not isinstance(error, Exception):
                raise
            if isinstance(error, SubprotocolError):
                # A peer can cause it at will, so it is worth one line.
                logger.error("a request listener raised for %r: %s", request, error)
            elif request.connection is None:
                logger.exception("a request listener raised for %r", request)
            return
        if request.connection is not None:
            request.connection._end_loop()

    def _connection_opened(self, connection: WebSocketConnection) -> None:
        try:
            self._emit("connect", connection)
        except BaseException as error:
            connection._on_listener_raised()
            if not isinstance(error, Exception):
                raise

    def _connection_closed(self, connection: WebSocketConnection) -> None:
        self._emit_logged("close", connection, connection.close_code, connection.close_reason)

    def _emit_logged(self, name: str, *args: object) -> None:
        try:
            self._emit(name, *args)
        except GreenletExit:
            raise
        except Exception:
            logger.exception("a %s listener of the server raised", name)


def _check_automatic(request: WebSocketRequest) -> HandshakeError | None:
    """Look whether a request can be accepted without being asked about."""
    offered = request.requested_subprotocols
    if request.config.auto_accept_connections and offered and not is_token(offered[0]):
        return HandshakeError("the first subprotocol is no token")
    return None


def _answer_not_found(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Be the WSGI application of an http server that has none."""
    body = b"Not Found\n"
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

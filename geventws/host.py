"""What geventws keeps on one http server: who is mounted there, and the connections that came from it.

The handler asks it at each upgrade request, so a connection that was accepted before a mount or after
an unmount meets the servers of that moment. ``close`` and ``stop`` of the http server are wrapped on
the instance: pywsgi no longer knows connections that were let go, and they are to learn of its end. So is
``wrap_socket``, for a TLS handshake comes before there is a handler.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent import Timeout, get_hub
from gevent.ssl import SSLError
from greenlet import GreenletExit, getcurrent

from geventws.config import ServerConfig
from geventws.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.pywsgi import WSGIServer

    from geventws.connection import WebSocketConnection
    from geventws.request import WebSocketRequest

__all__ = ["HeadLimits", "Host", "Mount", "get_host"]

_ATTRIBUTE = "_geventws_host"


class Mount:
    """Be the owner of connections: one WebSocketServer on one http server, or views alone.

    Attributes:
        host: The http server's side.
        server: The WebSocketServer; None for connections that a view accepted.
        config: Its options.
        registry: The server's, or that of the http server's views.
    """

    __slots__ = ("config", "host", "registry", "server")

    def __init__(self, host: Host, server: Any, config: ServerConfig) -> None:
        self.host = host
        self.server = server
        self.config = config
        self.registry: Registry = host.views if server is None else server._registry
        self.registry.limit_output(config.max_queued_output)

    def count_limit(self, name: str) -> None:
        """Note that a limit, an option's name, was exceeded."""
        self.registry.count_limit(name)

    def connection_opened(self, request: WebSocketRequest, connection: WebSocketConnection) -> None:
        """Register a connection in the place of its request, and let the server emit ``connect``."""
        self.registry.add_connection(request, connection)
        self.host.connections.add(connection)
        if self.server is not None:
            self.server._connection_opened(connection)

    def connection_closed(self, connection: WebSocketConnection) -> None:
        """Forget a connection, and let the server emit ``close``."""
        self.registry.remove_connection(connection)
        self.host.connections.discard(connection)
        if self.server is not None:
            self.server._connection_closed(connection)

    def is_stopping(self) -> bool:
        """Tell whether the http server was closed or stopped."""
        return self.host.is_stopping()


class HeadLimits(NamedTuple):
    """Hold the options that cover every request on an http server, each None where nobody sets it."""

    header_timeout: float | None = None
    max_head_size: int | None = None
    max_header_count: int | None = None


class Host:
    """Know the mounts and connections of an http server.

    Attributes:
        mounts: In the order in which they are asked.
        connections: All that came from this http server and still live.
        views: The registry of those among them that views accepted.
    """

    def __init__(self, http_server: WSGIServer) -> None:
        self.mounts: list[Mount] = []
        self.connections: set[WebSocketConnection] = set()
        self.views = Registry()
        # The limits that were asked for last, and with which config: they are needed for each request.
        self._head_limits: tuple[ServerConfig | None, HeadLimits] | None = None
        self._http_server = http_server
        self._close = http_server.close
        self._stop = http_server.stop
        http_server.close = self._close_all  # type: ignore[method-assign]
        http_server.stop = self._stop_all  # type: ignore[method-assign]
        wrap = getattr(http_server, "wrap_socket", None)
        if wrap is not None:
            http_server.wrap_socket = self._limit_handshake(wrap)  # type: ignore[method-assign,misc]

    def is_stopping(self) -> bool:
        """Tell whether the http server was closed or stopped."""
        return not self._http_server.started

    def add_mount(self, mount: Mount) -> None:
        """Ask a mount from now on, after those that are there."""
        self.mounts.append(mount)
        self._head_limits = None

    def remove_mount(self, mount: Mount) -> None:
        """Ask a mount no longer; it may be gone already."""
        if mount in self.mounts:
            self.mounts.remove(mount)
        self._head_limits = None

    def get_head_limits(self, config: ServerConfig | None) -> HeadLimits:
        """Return the smallest of each limit that the mounts and a handler's own config set."""
        if self._head_limits is None or self._head_limits[0] is not config:
            configs = [each for each, _ in self._list_configs(config)]
            limits = HeadLimits(*(_find_smallest(configs, name) for name in HeadLimits._fields))
            self._head_limits = config, limits
        return self._head_limits[1]

    def count_limit(self, name: str, value: float, config: ServerConfig | None) -> None:
        """Note that a limit of all requests was exceeded, for each of those who set it to this, the smallest value."""
        for each, registry in self._list_configs(config):
            if getattr(each, name) == value:
                registry.count_limit(name)

    def _list_configs(self, config: ServerConfig | None) -> list[tuple[ServerConfig, Registry]]:
        """List who has a say about each request: the mounts, and the handler with its own config for views."""
        configs = [(mount.config, mount.registry) for mount in self.mounts]
        return configs if config is None else [*configs, (config, self.views)]

    def _limit_handshake(self, wrap: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands in for ``http_server.wrap_socket``: within ``header_timeout``, a failure one line."""

        # With a `__wrapped__`, which leads to the TLS context for who looks for it.
        @functools.wraps(wrap)
        def wrap_socket(sock: Any, **options: Any) -> Any:
            config = getattr(self._http_server.handler_class, "config", None)
            config = config if isinstance(config, ServerConfig) else None
            seconds = self.get_head_limits(config).header_timeout
            client = _name_client(sock)
            # The TLS socket closes itself for an OSError, which a Timeout is not.
            expired = TimeoutError(f"it was not complete within {seconds} s")
            try:
                with Timeout(seconds, expired):
                    return wrap(sock, **options)
            except TimeoutError as error:
                if error is not expired or seconds is None:
                    raise
                self.count_limit("header_timeout", seconds, config)
                failure: OSError = error
            except (SSLError, ConnectionError) as error:
                failure = error
            # gevent writes a traceback for each, and a client can cause these at will.
            self._http_server.error_log.write(f"the TLS handshake of {client} failed: {failure}\n")
            raise GreenletExit

        return wrap_socket

    def _close_all(self) -> None:
        """Stand in for ``http_server.close``: connections learn of it, nothing waits."""
        self._close()
        for connection in tuple(self.connections):
            connection._close_for("the http server is closed", 1001)

    def _stop_all(self, timeout: float | None = None) -> None:
        """Stand in for ``http_server.stop``: give the closing handshakes its time-out."""
        if timeout is None:
            timeout = self._http_server.stop_timeout
        deadline = time.monotonic() + timeout
        self._stop(timeout)
        if getcurrent() is get_hub():
            # A signal handler of the standard library runs there: nothing may wait.
            return
        for connection in tuple(self.connections):
            connection.wait_closed(max(0.0, deadline - time.monotonic()))


def _name_client(sock: Any) -> Any:
    with contextlib.suppress(OSError):
        return sock.getpeername()
    return "a client that is gone"


def _find_smallest(configs: list[ServerConfig], name: str) -> Any:
    values = (getattr(config, name) for config in configs)
    return min((value for value in values if value is not None), default=None)


def get_host(http_server: WSGIServer) -> Host:
    """Return the one `Host` of an http server."""
    host: Host | None = getattr(http_server, _ATTRIBUTE, None)
    if host is None:
        host = Host(http_server)
        setattr(http_server, _ATTRIBUTE, host)
    return host

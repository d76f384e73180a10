"""What geventws keeps on one http server: who is mounted there, and the connections that came from it.

The handler asks it at each upgrade request, so a connection that was accepted before a mount or after
an unmount meets the servers of that moment. ``close`` and ``stop`` of the http server are wrapped on
the instance: pywsgi no longer knows connections that were let go, and they are to learn of its end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gevent import get_hub
from greenlet import getcurrent

if TYPE_CHECKING:
    from gevent.pywsgi import WSGIServer

    from geventws.config import ServerConfig
    from geventws.connection import WebSocketConnection

__all__ = ["Host", "Mount", "get_host"]

_ATTRIBUTE = "_geventws_host"


class Mount:
    """Be the owner of connections: one WebSocketServer on one http server, or views alone.

    Attributes:
        host: The http server's side.
        server: The WebSocketServer; None for connections that a view accepted.
        config: Its options.
    """

    __slots__ = ("config", "host", "server")

    def __init__(self, host: Host, server: Any, config: ServerConfig) -> None:
        self.host = host
        self.server = server
        self.config = config

    def connection_opened(self, connection: WebSocketConnection) -> None:
        """Register a connection, and let the server emit ``connect``."""
        self.host.connections.add(connection)
        if self.server is not None:
            self.server._connection_opened(connection)

    def connection_closed(self, connection: WebSocketConnection) -> None:
        """Forget a connection, and let the server emit ``close``."""
        self.host.connections.discard(connection)
        if self.server is not None:
            self.server._connection_closed(connection)

    def count_limit(self, name: str) -> None:
        """Count that a limit was exceeded."""

    def is_stopping(self) -> bool:
        """Tell whether the http server was closed or stopped."""
        return self.host.is_stopping()


class Host:
    """Know the mounts and connections of an http server.

    Attributes:
        mounts: In the order in which they are asked.
        connections: All that came from this http server and still live.
    """

    def __init__(self, http_server: WSGIServer) -> None:
        self.mounts: list[Mount] = []
        self.connections: set[WebSocketConnection] = set()
        self._http_server = http_server
        self._close = http_server.close
        self._stop = http_server.stop
        http_server.close = self._close_all  # type: ignore[method-assign]
        http_server.stop = self._stop_all  # type: ignore[method-assign]

    def is_stopping(self) -> bool:
        """Tell whether the http server was closed or stopped."""
        return not self._http_server.started

    def header_timeout(self, config: ServerConfig | None) -> float | None:
        """Return the smallest ``header_timeout`` of the mounts and of a handler's own config."""
        configs = [mount.config for mount in self.mounts]
        if config is not None:
            configs.append(config)
        return min((each.header_timeout for each in configs if each.header_timeout is not None), default=None)

    def _close_all(self) -> None:
        """Stand in for ``http_server.close``: connections learn of it, nothing waits."""
        self._close()
        for connection in tuple(self.connections):
            connection.close(1001)

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


def get_host(http_server: WSGIServer) -> Host:
    """Return the one `Host` of an http server."""
    host: Host | None = getattr(http_server, _ATTRIBUTE, None)
    if host is None:
        host = Host(http_server)
        setattr(http_server, _ATTRIBUTE, host)
    return host

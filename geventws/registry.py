"""Who is connected and who waits, how many and from where, and how often which limit was exceeded.

Strategy: a place is taken before a request may be decided, and kept by its connection, with nothing in between: so
many as the limits say never become more. Whatever is asked at each request is counted while it changes, and no answer
walks over the connections.

There is one registry for each `WebSocketServer`, on however many http servers it is mounted, and one for the views of
each http server.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

from geventws.budget import OutputBudget
from geventws.config import ServerConfig, list_limits
from geventws.dispatch import get_thread_id
from geventws.errors import HandshakeError

if TYPE_CHECKING:
    from geventws.connection import WebSocketConnection
    from geventws.request import WebSocketRequest

__all__ = ["Registry"]

_Key = TypeVar("_Key")

#: What a request is told that exceeds a limit.
_REFUSALS = {
    "max_connections": "the server has no place for more than {} connections",
    "max_connections_per_address": "the server has no place for more than {} connections from one address",
    "max_pending_requests": "no more than {} requests may wait for a decision",
}


class Registry:
    """Keep the connections and the pending requests of one owner, and count.

    Attributes:
        budget: What the connections have queued together.
        connections: The connections from ``accept`` until their ``close`` event, with their addresses.
        limit_counts: How often each limit was exceeded, by its option's name.
        pending: The requests that are not decided yet, with their addresses.
    """

    __slots__ = ("_address_counts", "_thread_counts", "budget", "connections", "limit_counts", "pending")

    def __init__(self) -> None:
        self.connections: dict[WebSocketConnection, str] = {}
        self.pending: dict[WebSocketRequest, str] = {}
        self.limit_counts: dict[str, int] = dict.fromkeys(list_limits(ServerConfig), 0)
        self._address_counts: dict[str, int] = {}
        self._thread_counts: dict[int, int] = {}
        self.budget = OutputBudget(sys.maxsize, self._relieve)

    def count_limit(self, name: str) -> None:
        """Note that a limit, an option's name, was exceeded."""
        self.limit_counts[name] += 1

    def admit(self, request: WebSocketRequest) -> HandshakeError | None:
        """Give a request a place; where there is none, return why, and count it."""
        full = self._find_full(request.config, request.remote_address)
        if full is not None:
            self.count_limit(full)
            return HandshakeError(_REFUSALS[full].format(getattr(request.config, full)), 503)
        self.pending[request] = request.remote_address
        _increment(self._address_counts, request.remote_address)
        return None

    def _find_full(self, config: ServerConfig, address: str) -> str | None:
        """Return the limit that one more request from an address would exceed."""
        limit = config.max_connections_per_address
        # Unix sockets have no address.
        if limit is not None and address and self._address_counts.get(address, 0) >= limit:
            return "max_connections_per_address"
        limit = config.max_connections
        if limit is not None and len(self.connections) + len(self.pending) >= limit:
            return "max_connections"
        limit = config.max_pending_requests
        if limit is not None and len(self.pending) >= limit:
            return "max_pending_requests"
        return None

    def remove_request(self, request: WebSocketRequest) -> None:
        """Free the place of a request, unless it has none any more."""
        address = self.pending.pop(request, None)
        if address is not None:
            _decrement(self._address_counts, address)

    def add_connection(self, request: WebSocketRequest, connection: WebSocketConnection) -> None:
        """Let a connection take the place of its request."""
        self.remove_request(request)
        self.connections[connection] = connection.remote_address
        _increment(self._address_counts, connection.remote_address)
        _increment(self._thread_counts, get_thread_id())

    def remove_connection(self, connection: WebSocketConnection) -> None:
        """Free the place of a connection that has ended; called in the thread that it belongs to."""
        _decrement(self._address_counts, self.connections.pop(connection))
        _decrement(self._thread_counts, get_thread_id())

    def limit_output(self, size: int | None) -> None:
        """Let the connections queue so many octets together; None for any number."""
        self.budget.limit = sys.maxsize if size is None else size

    def _relieve(self, budget: OutputBudget) -> None:
        """Fail the connections with the most output until the others are within the budget."""
        while budget.total > budget.limit:
            candidates = [
                connection
                for connection in tuple(self.connections)
                if connection.close_code is None and not connection._is_foreign()
            ]
            slowest = max(candidates, key=_get_output, default=None)
            if slowest is None or not slowest.buffered_amount:
                return
            self.count_limit("max_queued_output")
            slowest._discard_slow(
                f"{budget.total} octets wait on all connections of the server, and {slowest.buffered_amount} of them, "
                "the most, on this one"
            )

    def has_connections_of_others(self) -> bool:
        """Tell whether a connection belongs to another thread than the calling one."""
        own = get_thread_id()
        return any(thread_id != own for thread_id in tuple(self._thread_counts))


def _get_output(connection: WebSocketConnection) -> int:
    return connection.buffered_amount


def _increment(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] = counts.get(key, 0) + 1


def _decrement(counts: dict[_Key, int], key: _Key) -> None:
    left = counts.get(key, 0) - 1
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)

"""What all connections of a server may have waiting to be sent, together.

Strategy: each connection tells of changes, which only happen where the kernel takes no more. Above the limit somebody
else chooses who has to go, and does it at once: a greenlet that broadcasts in a loop lets nothing else run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OutputBudget"]


class OutputBudget:
    """Add up the queued output of connections.

    Attributes:
        limit: Octets that may wait together, each message counted as its octets and an overhead; it may be set.
        total: Octets that wait.
    """

    __slots__ = ("_is_relieving", "_relieve", "limit", "total")

    def __init__(self, limit: int, relieve: Callable[[OutputBudget], None]) -> None:
        """Start with nothing queued.

        Args:
            limit: As the attribute.
            relieve: Called when the total is above the limit; it makes connections discard their output.
        """
        self.limit = limit
        self.total = 0
        self._relieve = relieve
        self._is_relieving = False

    def change(self, difference: int) -> None:
        """Note that a connection has so many octets more, or less, in its queue."""
        self.total += difference
        if self.total > self.limit and difference > 0 and not self._is_relieving:
            self._is_relieving = True
            try:
                self._relieve(self)
            finally:
                self._is_relieving = False

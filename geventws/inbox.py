"""What was received and waits for the application: the inbox of a connection, and the events in it.

Strategy: a message is a ``str`` or ``bytes``, everything else an event of its own type. Each counts as its octets and
an overhead. Taken ones leave a gap at the front of the list, which is closed now and then, not each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from geventws.masking import count_octets, is_octets

if TYPE_CHECKING:
    from geventws.frames import WebSocketFrame

__all__ = ["QUEUE_OVERHEAD", "Fragment", "Inbox", "Ping", "Pong"]

#: What a queued message counts beside its octets: without it, millions of tiny messages would pass
#: under a high-water mark.
QUEUE_OVERHEAD = 128
# The same as a C number in the compiled package, where a module's global is an object.
_OVERHEAD = QUEUE_OVERHEAD


class Ping(NamedTuple):
    """Report a Ping that the peer sent (5.5.2)."""

    payload: bytes


class Pong(NamedTuple):
    """Report a Pong that the peer sent (5.5.3)."""

    payload: bytes


class Fragment(NamedTuple):
    """Hold one piece of a message that is streamed; ``fin`` marks the last one."""

    payload: str | bytes
    fin: bool


class Inbox:
    """Keep events in the order in which they came.

    Attributes:
        queued_size: The events, each counted as its octets and `QUEUE_OVERHEAD`.
        is_discarding: Whether all that comes is dropped.
    """

    __slots__ = ("_inbox", "_taken", "is_discarding", "queued_size")

    def __init__(self) -> None:
        self._inbox: list[object] = []
        self._taken = 0
        self.queued_size = 0
        self.is_discarding = False

    def _queue_message(self, message: str | bytes, size: int) -> None:
        """Queue a message of so many octets."""
        if not self.is_discarding:
            self._inbox.append(message)
            self.queued_size += size + _OVERHEAD

    def _queue(self, event: Ping | Pong | Fragment | WebSocketFrame) -> None:
        if not self.is_discarding:
            self._inbox.append(event)
            self.queued_size += _weigh(event)

    def has_events(self) -> bool:
        """Tell whether `take` has something to give."""
        return self._taken < len(self._inbox)

    def take(self) -> object:
        """Remove the oldest event: a message (str, bytes), `WebSocketFrame`, `Fragment`, `Ping` or `Pong`."""
        event = self._inbox[self._taken]
        self._inbox[self._taken] = None
        self._taken += 1
        if self._taken == len(self._inbox):
            self._inbox.clear()
            self._taken = 0
            self.queued_size = 0
        else:
            self.queued_size -= _weigh(event)
            if self._taken >= 1024 and self._taken * 2 >= len(self._inbox):
                del self._inbox[: self._taken]
                self._taken = 0
        return event

    def is_next_control(self) -> bool:
        """Tell whether the oldest event is a Ping or a Pong."""
        return self._taken < len(self._inbox) and type(self._inbox[self._taken]) in (Ping, Pong)

    def discard(self) -> None:
        """Drop what is queued, and all that comes."""
        self.is_discarding = True
        self._inbox.clear()
        self._taken = 0
        self.queued_size = 0

    def _drop_fragments(self) -> None:
        kept = [event for event in self._inbox[self._taken :] if type(event) is not Fragment]
        self._inbox[:] = kept
        self._taken = 0
        self.queued_size = sum(map(_weigh, kept))


def _weigh(event: object) -> int:
    """Count what `Inbox.queued_size` holds for an event: octets and an overhead."""
    if type(event) is bytes or type(event) is str:
        return (count_octets(event) if is_octets(event) else len(event.encode())) + _OVERHEAD  # type: ignore[union-attr]
    return _weigh(event.payload)  # type: ignore[attr-defined]

"""One greenlet for the listeners of all connections that have something to deliver.

Strategy: a connection with news goes onto the *ready list* of its hub. At the end of the loop
iteration one dispatcher greenlet runs through the list; so two greenlet switches are paid for each
iteration, not for each message. A listener that blocks takes its greenlet along: control is back in
the hub, and a fresh dispatcher takes over what is left of the list (the baton is passed). The
blocked one goes on with its own connection when it wakes, helps with the list, and parks if no
other is parked, else it ends. An idle connection owns no greenlet.

What a peer may take is measured by a clock that stands still while the hub does, `Dispatcher.now`: a listener that
computes, or a process that was stopped, must not look like peers that are silent. A timer that comes late tells of
a stall; one for each hub, and none for a hub without connections.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

try:
    import cython
except ImportError:
    from geventws import _cython as cython
from geventws.deflate import Compressors
from geventws.events import Emitter
from geventws.protocol import HEADROOM
from geventws.sockets import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

__all__ = ["Deliverable", "Dispatcher", "get_dispatcher"]

logger = logging.getLogger("geventws")

#: Octets that one readiness reads at most, of any connection: what the kernel holds for one socket
#: mostly fits, and the other connections wait no longer than its parsing takes.
RECEIVE_SIZE = 262144
#: Seconds after which the dispatcher goes back to the hub, so that what arrived meanwhile is read.
BATON_TIME = 0.002
# The same as a C number in the compiled package, where a module's global is an object.
_BATON_TIME = BATON_TIME
#: Seconds between two beats of a hub's heart: rare enough to cost nothing.
HEARTBEAT = 0.5
#: Seconds that a beat may be late: more is a stall of the hub. No shorter one matters to a time-out of seconds.
STALL_TIME = 0.5
#: A time that never comes.
NEVER = float("inf")

if cython.compiled:
    geventws_import_greenlet()  # type: ignore[name-defined]  # noqa: F821

_get_ident: Callable[[], int] = get_original("_thread", "get_ident")


def get_thread_id() -> int:
    """Return the native thread's number, also where gevent has patched ``_thread``."""
    if cython.compiled:
        return PyThread_get_thread_ident()  # type: ignore[name-defined,no-any-return]  # noqa: F821
    return _get_ident()


def get_current() -> greenlet:
    """Return the running greenlet."""
    if cython.compiled:
        return geventws_get_current()  # type: ignore[name-defined,no-any-return]  # noqa: F821
    return getcurrent()


def switch_to(target: greenlet) -> None:
    """Call `greenlet.switch` itself: gevent's hub overrides it with a look-up that its own waiting needs."""
    if cython.compiled:
        geventws_switch(target)  # type: ignore[name-defined]  # noqa: F821
    else:
        greenlet.switch(target)


class Deliverable(Emitter):
    """Be what the ready list holds: something with listeners, and with news for them."""

    __slots__ = ()

    def deliver(self, runner: greenlet, now: float) -> float:
        """Call the listeners for one turn; overridden.

        Args:
            runner: The greenlet that this is called in.
            now: What `monotonic` tells.

        Returns:
            What it tells afterwards.
        """
        raise NotImplementedError


class Dispatcher:
    """Keep the ready list of one hub, and the buffer that all its connections read into.

    Attributes:
        hub: The hub; so are ``loop`` its loop and ``thread_id`` its thread.
        passes_events: Whether the loop tells its watchers of errors (libuv).
        buffer: Where received octets lie until they are parsed; the first `HEADROOM` are the parser's.
        compressors: What connections without a context of their own compress with.
        connection_count: The connections that live on this hub.
        stalled: The seconds that the hub stood still in all, as far as its heart told.
    """

    __slots__ = (
        "__weakref__",
        "_again",
        "_heart",
        "_is_scheduled",
        "_latest_beat",
        "_now",
        "_parked",
        "_ready",
        "_taken",
        "buffer",
        "compressors",
        "connection_count",
        "hub",
        "loop",
        "passes_events",
        "stalled",
        "thread_id",
    )

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.loop: Any = hub.loop
        self.passes_events = "libuv" in type(self.loop).__module__
        self.thread_id = get_thread_id()
        self.buffer = bytearray(HEADROOM + RECEIVE_SIZE)
        self.compressors = Compressors()
        # Those before the index are taken.
        self._ready: list[Deliverable | None] = []
        self._taken = 0
        self._parked: greenlet | None = None
        self._is_scheduled = False
        self._again: Any = self.loop.timer(0.0)
        self.connection_count = 0
        self.stalled = 0.0
        # The time that was told last; nothing is later than it when the hub stands still.
        self._now = 0.0
        # When the next beat is overdue.
        self._latest_beat = NEVER
        # A loop that has nothing else to wait for may end.
        self._heart: Any = self.loop.timer(HEARTBEAT, HEARTBEAT, ref=False)

    # The clock

    def now(self) -> float:
        """Return the seconds of a monotonic clock that stands still while the hub does."""
        now = monotonic()
        if now <= self._latest_beat:
            self._now = now - self.stalled
        return self._now

    def enter(self) -> None:
        """Learn of a connection; while there is one, the heart beats."""
        self.connection_count += 1
        if self.connection_count == 1:
            self._latest_beat = monotonic() + HEARTBEAT + STALL_TIME
            self._heart.start(self._beat, update=True)

    def leave(self) -> None:
        """Learn that a connection's descriptor is closed."""
        self.connection_count -= 1
        if not self.connection_count:
            self._latest_beat = NEVER
            self._heart.stop()

    def _beat(self) -> None:
        now = monotonic()
        late = now - self._latest_beat + STALL_TIME
        self._latest_beat = now + HEARTBEAT + STALL_TIME
        if late > STALL_TIME:
            # The clock goes on from where it stopped.
            self.stalled = now - self._now
            self.log(
                logging.WARNING,
                "the hub stood still for at least %.1f s: something computed or blocked in it, or the process was "
                "stopped; no time-out of its connections (%d) counts that",
                late,
                self.connection_count,
            )
        self._now = now - self.stalled

    def log(self, level: int, message: str, *args: object) -> None:
        """Log in a greenlet of its own: a handler may block, which the hub cannot, and others should not here."""
        if logger.isEnabledFor(level):
            spawn(logger.log, level, message, *args)

    # The ready list

    def add(self, connection: Deliverable) -> None:
        """Put a connection that is not there yet at the end of the ready list."""
        self._ready.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.run_callback(self._pass_baton)

    def _pass_baton(self) -> None:
        """Switch to a dispatcher greenlet; comes back when it parks, ends or blocks."""
        runner = self._parked
        self._parked = None
        if runner is None or runner.dead:
            runner = greenlet(self._run, self.hub)
        try:
            runner.switch()
        finally:
            self._is_scheduled = len(self._ready) > 0
            if self._is_scheduled:
                # By a timer, not by `run_callback`: gevent runs up to fifty callbacks before it polls again,
                # and what has arrived meanwhile would wait for so many rounds.
                self._again.start(self._pass_baton, update=False)

    def _run(self) -> None:
        while True:
            self._deliver()
            if self._parked is not None:
                return
            current = getcurrent()
            self._parked = current
            try:
                self.hub.switch()
            finally:
                # Somebody may throw into a parked greenlet: it must not be taken for a parked one then.
                if self._parked is current:
                    self._parked = None

    def _deliver(self) -> None:
        runner = get_current()
        started = now = monotonic()
        while self._ready:
            try:
                now = self._take().deliver(runner, now)
            except BaseException:  # noqa: BLE001
                # `deliver` has its own handling; what comes here is our fault and must not take the baton along.
                self.hub.handle_error(self, *sys.exc_info())
                now = monotonic()
            if now - started > _BATON_TIME:
                return

    def _take(self) -> Deliverable:
        connection: Deliverable = self._ready[self._taken]  # type: ignore[assignment]
        self._ready[self._taken] = None
        self._taken += 1
        if self._taken == len(self._ready):
            self._ready.clear()
            self._taken = 0
        elif self._taken >= 1024 and self._taken * 2 >= len(self._ready):
            del self._ready[: self._taken]
            self._taken = 0
        return connection


def get_dispatcher() -> Dispatcher:
    """Return the dispatcher of the calling thread's hub."""
    hub: Any = get_hub()
    # Kept on the hub, so that it goes with it.
    dispatcher: Dispatcher | None = getattr(hub, "_geventws_dispatcher", None)
    if dispatcher is None or dispatcher.loop is not hub.loop:
        dispatcher = hub._geventws_dispatcher = Dispatcher(hub)
    return dispatcher

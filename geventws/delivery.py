"""How messages reach the application: to listeners by the dispatcher, or to the greenlet that receives.

Strategy: messages wait in the protocol's inbox. In event style the dispatcher delivers them to the
listeners, in turns; in loop style the greenlet that waits in ``receive`` is switched to straight
from the hub. Either way one thing at a time, in wire order, ``close`` last.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from gevent import Timeout
from greenlet import GreenletExit

try:
    import cython
except ImportError:
    from geventws import _cython as cython
from geventws.dispatch import get_current, switch_to
from geventws.errors import ConnectionClosed, InvalidState
from geventws.frames import CloseCode, WebSocketFrame
from geventws.inbox import Fragment, Ping, Pong
from geventws.sending import Sender
from geventws.sockets import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greenlet import greenlet

    from geventws.endpoint import Handover

__all__ = ["Receiver"]

logger = logging.getLogger("geventws")

#: Messages, and seconds, after which a connection's turn ends, so that no peer starves another.
TURN_COUNT = 64
TURN_TIME = 0.001

#: Close codes after which a loop over the messages simply ends.
CLEAN_CODES = frozenset({1000, 1001, 1005})


class Receiver(Sender):
    """Receive messages, and deliver events."""

    __slots__ = (
        "_deliverer",
        "_frame_listeners",
        "_is_close_emitted",
        "_is_drain_due",
        "_is_ready",
        "_is_receiving",
        "_is_waiting",
        "_message_listeners",
        "_receiver",
        "_taken_at",
    )

    def __init__(self, handover: Handover) -> None:
        super().__init__(handover)
        self._message_listeners: tuple[Any, ...] = ()
        self._frame_listeners: tuple[Any, ...] = ()
        self._is_ready = False
        self._deliverer: Any = None
        self._is_close_emitted = False
        self._is_drain_due = False
        self._is_receiving = False
        # The greenlet that called `receive` last, and whether it waits to be switched to.
        self._receiver: Any = None
        self._is_waiting = False
        self._taken_at = 0.0

    # Receiving

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Wait for the next message and return it; one greenlet at a time.

        Args:
            timeout: Seconds; None waits as long as the connection lives.

        Raises:
            TimeoutError: No message came in time.
            ConnectionClosed: There is no more message; ``code`` and ``reason`` tell why.
            InvalidState: Another greenlet receives, there are ``message`` or ``frame`` listeners, or this is the hub.
        """
        self._begin_receiving()
        try:
            while True:
                event = self._next_event(timeout)
                if type(event) is str or type(event) is bytes:
                    return event
                self._emit_event(event)
        finally:
            self._is_receiving = False

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages until a clean close (1000, 1001, 1005); another one raises ConnectionClosed."""
        return self

    def __next__(self) -> str | bytes:
        """Return the next message; see `receive`."""
        try:
            return self.receive()
        except ConnectionClosed:
            if self._close_code in CLEAN_CODES:
                raise StopIteration from None
            raise

    def receive_fragments(self, timeout: float | None = None) -> Iterator[str | bytes]:
        """Iterate over the pieces of the next message while it arrives, within the size limits.

        Args:
            timeout: Seconds to wait for each piece.

        Raises:
            TimeoutError: A piece did not come in time.
            ConnectionClosed: As `receive`, also in the middle of a message.
            InvalidState: As `receive`, or ``assemble_fragments`` is off.
        """
        if not self._config.assemble_fragments:
            raise InvalidState("receive_fragments needs assemble_fragments=True: every frame is an event here")
        return _iterate_fragments(self, timeout)

    def _next_piece(self, timeout: float | None) -> tuple[str | bytes, bool]:
        """Return the next piece of a streamed message, and whether it is the last one."""
        self._begin_receiving()
        try:
            if not self._protocol.has_events():
                self._protocol.stream()
            while True:
                event = self._next_event(timeout)
                if type(event) is str or type(event) is bytes:
                    return event, True
                if type(event) is Fragment:
                    return event.payload, event.fin
                self._emit_event(event)
        finally:
            self._is_receiving = False

    def _skip_stream(self) -> None:
        self._protocol.skip_stream()
        if self._read_watcher is not None and not self._is_reading:
            self._resume_reading()

    def _begin_receiving(self) -> None:
        if self._is_receiving:
            raise InvalidState("another greenlet is receiving from this connection")
        if self._message_listeners or self._frame_listeners:
            raise InvalidState("receive is not for a connection with message or frame listeners")
        self._receiver = get_current()
        if self._receiver is self._dispatcher.hub or self._is_foreign():
            raise InvalidState("receive was called in the hub or in another thread")
        if not self._is_started:
            self._start()
        self._is_receiving = True

    def _next_event(self, timeout: float | None) -> Any:
        protocol = self._protocol
        deadline = None
        if protocol.replies and self._stream.fd >= 0:
            # An early message is taken at once, without a turn of the hub: the Pongs before it go first.
            self._send_replies()
        while (
            not protocol.has_events()
            or (self._is_paused and self._is_open)
            or (protocol.reports_control and self._is_control_next())
        ):
            if protocol.has_events():
                self._make_ready()
            else:
                if protocol.failure is not None or protocol.is_close_received:
                    self._settle()
                if self._is_closed:
                    raise self._make_closed_error()
            self._flush()
            if timeout is None:
                self._wait_for_event()
            else:
                now = monotonic()
                deadline = now + timeout if deadline is None else deadline
                self._wait_for_event_until(deadline - now, timeout)
        event = protocol.take()
        if protocol.has_events():
            # As in `_deliver_turn`, for a loop that computes; what was read since the last message says that it waited.
            now = monotonic()
            received = self._last_received + self._dispatcher.stalled
            self._is_prompt = now - max(self._taken_at, received) < TURN_TIME
            self._taken_at = now
        if not self._is_reading:
            self._resume_reading()
        return event

    def _is_control_next(self) -> bool:
        """Tell whether the oldest event is for listeners, which the dispatcher calls; after ``close`` they get none."""
        protocol = self._protocol
        while self._is_close_emitted and protocol.is_next_control():
            protocol.take()
        return not protocol.has_events() or bool(protocol.is_next_control())

    def _wait_for_event(self) -> None:
        self._is_waiting = True
        try:
            switch_to(self._dispatcher.hub)
        finally:
            # Whoever throws into this greenlet must not leave it to be switched to later.
            self._is_waiting = False

    def _wait_for_event_until(self, left: float, timeout: float) -> None:
        timer = Timeout.start_new(max(left, 0))
        try:
            self._wait_for_event()
        except Timeout as expired:
            if expired is not timer:
                raise
            raise TimeoutError(f"no message came within {timeout} s") from None
        finally:
            timer.close()

    def _resume_reading(self) -> None:
        """Read again once the inbox fell to half its mark."""
        if self._protocol.queued_size <= self._receive_mark // 2:
            self._update_reading()

    def _wake(self) -> None:
        if self._is_receiving:
            if self._is_waiting:
                switch_to(self._receiver)
        elif self._is_ready:
            return
        elif self._message_listeners and not self._is_paused:
            self._is_ready = True
            self._dispatcher.add(self)
        else:
            self._make_ready()

    def _wake_receiver(self) -> None:
        if self._is_waiting:
            switch_to(self._receiver)

    # Delivering

    def _check_listener(self, name: str) -> None:
        if name in ("message", "frame") and self._is_receiving:
            raise InvalidState(f"a {name} listener is not for a connection that somebody receives from")

    def _listeners_changed(self, name: str) -> None:
        if name == "message":
            self._message_listeners = self._get_listeners(name)
        elif name == "frame":
            self._frame_listeners = self._get_listeners(name)
        elif name in ("ping", "pong"):
            self._protocol.reports_control = bool(self._get_listeners("ping") or self._get_listeners("pong"))
        self._make_ready()

    def _make_ready(self) -> None:
        if not self._is_ready and self._has_work():
            self._is_ready = True
            self._dispatcher.add(self)

    def _has_work(self) -> bool:
        if self._is_close_emitted or not self._is_started:
            return False
        return self._is_closed or self._is_drain_due or self._has_deliverable()

    def _has_deliverable(self) -> bool:
        """Tell whether the oldest event has somebody to go to."""
        if not self._protocol.has_events() or (self._is_paused and self._is_open):
            return False
        # A frame listener gets nothing where fragments are assembled: the messages wait for one of theirs.
        if self._message_listeners or (self._frame_listeners and not self._config.assemble_fragments):
            return True
        return bool(self._protocol.is_next_control())

    def deliver(self, runner: greenlet, now: float) -> float:
        """See `Deliverable.deliver`; called by the dispatcher."""
        self._deliverer = runner
        try:
            return self._deliver_in_context(now)
        except BaseException:  # noqa: BLE001
            self._on_listener_raised()
            return monotonic()
        finally:
            self._deliverer = None
            self._is_ready = False
            self._make_ready()
            if self._is_waiting and self._protocol.has_events():
                # Pings and pongs were before its message.
                self._dispatcher.loop.run_callback(self._wake_receiver)

    def _deliver_in_context(self, now: float) -> float:
        if not cython.compiled:
            return self._context.run(self._deliver_turn, now)
        # What `Context.run` does, without a call by way of objects.
        PyContext_Enter(self._context)  # type: ignore[name-defined]  # noqa: F821
        try:
            return self._deliver_turn(now)
        finally:
            PyContext_Exit(self._context)  # type: ignore[name-defined]  # noqa: F821

    def _deliver_turn(self, now: float) -> float:
        protocol = self._protocol
        if self._is_drain_due:
            self._is_drain_due = False
            self._emit("drain")
            now = monotonic()
        count = 0
        started = before = now
        while self._has_deliverable():
            event = protocol.take()
            if (type(event) is str or type(event) is bytes) and len(self._message_listeners) == 1:
                self._emit_message(event)
            else:
                self._emit_event(event)
            now = monotonic()
            # A reply must not wait for the next message's listener where that computes for long.
            self._is_prompt = now - before < TURN_TIME
            before = now
            count += 1
            if count >= TURN_COUNT or now - started >= TURN_TIME:
                break
        self._flush()
        if not self._is_reading:
            self._resume_reading()
        if not self._has_deliverable():
            if (protocol.failure is not None or protocol.is_close_received) and not protocol.has_events():
                self._settle()
            if self._is_closed and not self._is_close_emitted:
                self._emit_close()
                now = monotonic()
        return now

    def _emit_message(self, message: object) -> None:
        """Call the only message listener, the way that nearly all messages take."""
        listener = self._message_listeners[0]
        if callable(listener):
            listener(message)
        else:
            self._emit("message", message)

    def _emit_event(self, event: Any) -> None:
        kind = type(event)
        if kind is str or kind is bytes:
            self._emit("message", event)
        elif kind is WebSocketFrame:
            self._emit("frame", event)
        elif kind is Ping:
            self._emit("ping", event.payload)
        elif kind is Pong:
            self._emit("pong", event.payload)

    def _on_started(self) -> None:
        self._make_ready()

    def _on_drained(self) -> None:
        if self._get_listeners("drain"):
            self._is_drain_due = True
            self._make_ready()

    def _on_closed(self) -> None:
        self._take_deferred()
        if self._is_receiving:
            self._dispatcher.loop.run_callback(self._wake_receiver)
        if not self._is_close_emitted:
            self._make_ready()

    def _emit_close(self) -> None:
        """Emit ``error`` and ``close``, the server's first; never twice."""
        self._is_close_emitted = True
        if not self._is_receiving:
            self._receiver = None
        owner = self._owner
        self._owner = None
        if owner is not None:
            owner.connection_closed(self)
        if self._listeners is None:
            return
        if self._error is not None:
            try:
                self._emit("error", self._error)
            except BaseException:  # noqa: BLE001
                self._on_listener_raised()
        try:
            self._emit("close", self._close_code, self._close_reason)
        finally:
            # The last event: what the listeners hold, often this connection, goes now and not with the next collection.
            self._listeners = None
            self._message_listeners = self._frame_listeners = ()

    def _on_listener_raised(self) -> None:
        """End the connection whose listener raised: 1011 (7.4.1)."""
        kind, error, traceback = sys.exc_info()
        if isinstance(error, ConnectionClosed) and (not self._is_open or self._broken is not None):
            # It was told of its own connection's end, which is no fault.
            return
        if isinstance(error, GreenletExit):
            self._abandon("killed")
            return
        if isinstance(error, (KeyboardInterrupt, SystemExit, SystemError)):
            self._dispatcher.hub.handle_error(self, kind, error, traceback)
        else:
            logger.error("a listener of %r raised", self, exc_info=error)
        if isinstance(error, Exception) and self._error is None:
            self._error = error
        self._fail(CloseCode.INTERNAL_ERROR.value, "", f"we failed it: a listener raised {type(error).__name__}")

    def _end_loop(self) -> None:
        """Close a connection whose request listener looped over the messages and has returned."""
        if self._receiver is get_current():
            self._close_for("its loop ended")

    def _abandon(self, how: str) -> None:
        """End a connection whose greenlet was killed: 1001 when the http server stops, else 1011."""
        if self._owner is not None and self._owner.is_stopping():
            self._close_for(f"its greenlet was {how}, for the http server stops", CloseCode.GOING_AWAY.value)
        else:
            self._fail(CloseCode.INTERNAL_ERROR.value, "", f"we failed it: its greenlet was {how}")


def _iterate_fragments(connection: Receiver, timeout: float | None) -> Iterator[str | bytes]:
    fin = False
    try:
        while not fin:
            piece, fin = connection._next_piece(timeout)
            if piece:
                yield piece
    finally:
        if not fin:
            connection._skip_stream()

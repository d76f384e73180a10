"""How octets move between the kernel and one connection: watchers, the cork and the output queue.

Strategy: the hub calls when the descriptor is readable or writable; nothing here waits. While
nothing is pending, a write is one system call. What the kernel does not take stays in the *wire*,
and what follows waits in the queue; the wire always ends between two frames, so that a control
frame can go in there. An entry of the queue is frames, or a `PreparedMessage` that becomes frames when
it moves to the wire: compressed in the order in which the peer inflates, and open to be dropped until
then. Watchers are closed before the descriptor, in one place: a watcher on a closed descriptor aborts
the process.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from gevent.core import READ, WRITE  # type: ignore[import-not-found]

from geventws.dispatch import Deliverable
from geventws.frames import measure_message, next_frame
from geventws.inbox import QUEUE_OVERHEAD
from geventws.protocol import HEADROOM
from geventws.sockets import WAIT_READ, WAIT_WRITE

if TYPE_CHECKING:
    from geventws.budget import OutputBudget
    from geventws.dispatch import Dispatcher
    from geventws.prepared import PreparedMessage
    from geventws.sockets import Stream
    from geventws.trace import FrameTrace

__all__ = ["CORK_SIZE", "WRITE_SIZE", "Transport", "drop_oldest"]

#: Octets of one write: a control frame waits behind so many, and the rest of a frame, at most.
WRITE_SIZE = 65536
#: Octets above which corked replies leave although more messages wait.
CORK_SIZE = 65536
# The same as C numbers in the compiled package, where a module's global is an object.
_START = HEADROOM
_WRITE_SIZE = WRITE_SIZE
_CORK_SIZE = CORK_SIZE
#: Octets that one writability moves, then the other connections have their turn.
PUMP_SIZE = 1048576


class Transport(Deliverable):
    """Own the stream of a connection, its watchers and what waits to be sent.

    Subclasses say what received octets mean: they override ``_on_readable`` and the two hooks.
    """

    __slots__ = (
        "_accounted_size",
        "_broken",
        "_budget",
        "_control",
        "_cork",
        "_cork_size",
        "_discarded_size",
        "_dispatcher",
        "_frame_at",
        "_is_full",
        "_is_reading",
        "_last_progress",
        "_message",
        "_message_at",
        "_output_size",
        "_queue",
        "_read_watcher",
        "_send_mark",
        "_stream",
        "_trace",
        "_waits_for_read_to_write",
        "_waits_for_write_to_read",
        "_wire",
        "_wire_at",
        "_wire_stop",
        "_write_watcher",
    )

    def __init__(self, stream: Stream, dispatcher: Dispatcher, send_mark: int) -> None:
        super().__init__()
        self._stream = stream
        self._dispatcher = dispatcher
        # The stream of a client that was gone before the 101 is closed already.
        if stream.fd >= 0:
            dispatcher.enter()
        self._send_mark = send_mark
        self._read_watcher: Any = None
        self._write_watcher: Any = None
        self._waits_for_write_to_read = False
        self._waits_for_read_to_write = False
        self._broken: OSError | None = None
        self._cork: list[bytes] | None = None
        self._cork_size = 0
        self._queue: deque[bytes | PreparedMessage] | None = None
        self._control: list[bytes] | None = None
        self._message: bytes | None = None
        self._message_at = 0
        self._wire: bytes | None = None
        self._wire_at = 0
        self._wire_stop = 0
        # Where a frame of the wire begins, at or before `_wire_at`.
        self._frame_at = 0
        self._output_size = 0
        # What all connections of a server may have queued together, and what of ours it knows.
        self._budget: OutputBudget | None = None
        self._accounted_size = 0
        self._is_full = False
        self._is_reading = False
        self._last_progress = 0.0
        # Octets that were to be sent, and never will be.
        self._discarded_size = 0
        # Where the headers of frames are noted as these move to the kernel.
        self._trace: FrameTrace | None = None

    # Reading

    def _start_reading(self) -> None:
        if self._read_watcher is None:
            self._read_watcher = self._dispatcher.loop.io(self._stream.fd, READ)
        if not self._is_reading:
            self._is_reading = True
            # Only libuv has events to tell of: it gives a watcher up when the socket is broken.
            self._read_watcher.start(self._on_readable, pass_events=self._dispatcher.passes_events)
            if self._stream.has_pending():
                self._read_soon()

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._read_watcher.stop()

    def _read_soon(self) -> None:
        self._dispatcher.loop.run_callback(self._on_readable)

    def _on_readable(self, events: int = READ) -> None:
        """Read and go on; overridden. ``events`` is negative where libuv gave the watcher up."""
        raise NotImplementedError

    def _receive(self) -> int:
        """Read once into the shared buffer; returns as `Stream.receive_into`."""
        size = self._stream.receive_into(self._dispatcher.buffer, _START)
        if self._waits_for_read_to_write and size > 0:
            self._waits_for_read_to_write = False
            self._dispatcher.loop.run_callback(self._on_writable)
        if size < 0 and size == WAIT_WRITE:
            self._waits_for_write_to_read = True
            self._wait_writable()
        return size

    # Writing

    def _write(self, octets: bytes) -> None:
        """Send whole frames behind everything that waits."""
        if self._cork is not None:
            octets = self._uncork(octets)
        size = len(octets)
        if self._wire is None and size <= _WRITE_SIZE and self._broken is None:
            if self._trace is not None:
                self._trace.note_sent(octets, 0, size)
            sent = self._send(octets, 0, size)
            if sent == size:
                return
            self._set_wire(octets)
            self._wire_at = sent
            self._output_size += size - sent
            self._last_progress = self._dispatcher.now()
            self._on_output_pending()
        elif self._broken is None:
            self._enqueue(octets)
        self._note_fullness()

    def _send_frames(self, opcode: int, message: str | bytes, threshold: int) -> int:
        """Give a message to the kernel from where it lies, nothing waiting before it; returns how much that took."""
        if self._wire is not None or self._cork is not None or self._broken is not None or self._trace is not None:
            return 0
        try:
            return self._stream.send_frames(opcode, message, threshold)
        except OSError as error:
            # A text that is tried is ASCII, and as long as its octets.
            size = measure_message(len(message), threshold)
            self._discarded_size += size
            self._break(error)
            return size

    def _write_rest(self, octets: bytes, sent: int) -> None:
        """Send what is left of frames when the kernel has taken some of them and no more."""
        self._set_wire(octets)
        self._wire_at = sent
        self._output_size += len(octets) - sent
        self._last_progress = self._dispatcher.now()
        if len(octets) - sent > _WRITE_SIZE:
            self._cut_wire()
        self._wait_writable()
        self._on_output_pending()
        self._note_fullness()

    def _note_fullness(self) -> None:
        if self._output_size > self._send_mark:
            self._is_full = True
        self._account()

    def _account(self) -> None:
        """Tell the server's budget of a change; it may end this connection, or another one."""
        difference = self._output_size - self._accounted_size
        if difference and self._budget is not None:
            self._accounted_size = self._output_size
            self._budget.change(difference)

    def _enqueue(self, entry: bytes | PreparedMessage) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(entry)
        self._output_size += len(entry) + QUEUE_OVERHEAD
        if self._wire is None:
            self._last_progress = self._dispatcher.now()
            self._pump()
            if self._has_output():
                self._on_output_pending()

    def _write_control(self, octets: bytes) -> None:
        """Send control frames, before messages that wait (5.4: they may stand between fragments)."""
        if self._wire is None:
            self._write(octets)
        elif self._broken is None:
            if self._control is None:
                self._control = []
            self._control.append(octets)
            self._output_size += len(octets)
            self._account()

    def _cork_message(self, octets: bytes) -> None:
        """Keep a reply until the listener had all messages; it leaves in this loop iteration at the latest."""
        if self._cork is None:
            self._cork = []
            self._dispatcher.loop.run_callback(self._flush)
        self._cork.append(octets)
        self._cork_size += len(octets)
        if self._cork_size > _CORK_SIZE:
            self._flush()

    def _uncork(self, octets: bytes) -> bytes:
        cork: list[bytes] = self._cork  # type: ignore[assignment]
        self._cork = None
        self._cork_size = 0
        cork.append(octets)
        return b"".join(cork)

    def _flush(self) -> None:
        """Send what is corked."""
        if self._cork is not None:
            self._write(self._uncork(b""))

    def _send(self, octets: bytes, start: int, stop: int) -> int:
        """Give octets to the kernel; returns how many it took."""
        try:
            sent = self._stream.send(octets, start, stop)
        except OSError as error:
            if self._wire is None:
                self._discarded_size += stop - start
            self._break(error)
            return stop - start
        if sent == WAIT_READ:
            self._waits_for_read_to_write = True
            return 0
        if sent == WAIT_WRITE:
            self._wait_writable()
            return 0
        if start + sent < stop:
            self._wait_writable()
        return sent

    def _break(self, error: OSError) -> None:
        """Give up writing; reading goes on, for the peer's last messages may still be there."""
        self._broken = error
        self._discard_output()
        self._dispatcher.loop.run_callback(self._on_broken)

    def _wait_writable(self) -> None:
        if self._write_watcher is None:
            self._write_watcher = self._dispatcher.loop.io(self._stream.fd, WRITE)
        if not self._write_watcher.active:
            self._write_watcher.start(self._on_writable)

    def _on_writable(self) -> None:
        if self._stream.fd < 0:
            return
        if self._waits_for_write_to_read:
            self._waits_for_write_to_read = False
            self._read_soon()
        self._pump()
        if self._write_watcher is not None and (self._wire is None or self._waits_for_read_to_write):
            self._write_watcher.stop()

    def _pump(self) -> None:
        """Move what waits to the kernel, until that takes no more."""
        moved = 0
        while self._wire is not None or self._load_wire():
            if moved > PUMP_SIZE:
                self._wait_writable()
            else:
                sent = self._send(self._wire, self._wire_at, self._wire_stop)  # type: ignore[arg-type]
                if self._broken is not None:
                    return
                moved += sent
                self._wire_at += sent
                self._output_size -= sent
            if self._wire_at < self._wire_stop:
                if self._wire_stop - self._wire_at > _WRITE_SIZE:
                    self._cut_wire()
                break
            self._wire = None
        if moved:
            self._last_progress = self._dispatcher.now()
        if self._is_full and self._output_size <= self._send_mark // 2:
            self._is_full = False
            self._on_output_drained()
        if self._wire is None:
            self._on_output_empty()
        self._account()

    def _load_wire(self) -> bool:
        """Choose what goes out next; False when nothing waits."""
        if self._control:
            self._set_wire(b"".join(self._control))
            self._control = None
        elif self._message is not None:
            self._load_part()
        elif self._queue:
            octets = self._take_queued()
            if len(octets) > WRITE_SIZE:
                self._message = octets
                self._message_at = 0
                self._load_part()
            else:
                self._set_wire(self._gather(octets) if self._queue else octets)
        else:
            return False
        if self._trace is not None:
            self._trace.note_sent(self._wire, self._wire_at, self._wire_stop)  # type: ignore[arg-type]
        return True

    def _take_queued(self) -> bytes:
        """Take the next frames out of the queue."""
        entry = self._queue.popleft()  # type: ignore[union-attr]
        octets = entry if isinstance(entry, bytes) else self._serialize(entry)
        self._output_size += len(octets) - len(entry) - QUEUE_OVERHEAD
        return octets

    def _set_wire(self, octets: bytes) -> None:
        self._wire = octets
        self._wire_at = self._frame_at = 0
        self._wire_stop = len(octets)

    def _load_part(self) -> None:
        """Take the next frames of a long message: all, as far as the kernel may take them now, for each write costs."""
        message: bytes = self._message  # type: ignore[assignment]
        stop = self._message_at
        size = PUMP_SIZE if self._may_cut() else WRITE_SIZE
        while stop < len(message) and stop - self._message_at < size:
            stop = next_frame(message, stop)
        self._wire = message
        self._wire_at = self._frame_at = self._message_at
        self._wire_stop = stop
        self._message_at = stop
        if stop >= len(message):
            self._message = None

    def _may_cut(self) -> bool:
        """Tell whether frames may leave the wire again: not what must be repeated as it is, or was noted as sent."""
        return self._trace is None and not self._stream.must_retry()

    def _cut_wire(self) -> None:
        """Keep no more than one frame on the wire, when the kernel has not taken all of a long message."""
        if not self._may_cut() or (self._message is not None and self._message is not self._wire):
            # Control frames are on the wire, within a message that goes on behind them.
            return
        stop = self._find_frame()
        if stop < self._wire_stop:
            self._wire_stop = self._message_at = stop
            self._message = self._wire

    def _find_frame(self) -> int:
        """Find the frame that is sent now; returns where it ends."""
        wire: bytes = self._wire  # type: ignore[assignment]
        stop = next_frame(wire, self._frame_at)
        while stop <= self._wire_at:
            self._frame_at = stop
            stop = next_frame(wire, stop)
        return stop

    def _gather(self, octets: bytes) -> bytes:
        """Join small messages, for one system call."""
        parts = [octets]
        size = len(octets)
        queue: deque[bytes | PreparedMessage] = self._queue  # type: ignore[assignment]
        while queue and size + len(queue[0]) <= WRITE_SIZE:
            octets = self._take_queued()
            size += len(octets)
            parts.append(octets)
        return b"".join(parts)

    def _drop_queued(self, excess: int) -> int:
        """Drop messages from the queue, as `drop_oldest`; returns how many."""
        if self._queue is None:
            return 0
        count, size = drop_oldest(self._queue, excess)
        self._output_size -= size
        self._account()
        return count

    def _has_output(self) -> bool:
        return self._wire is not None or self._cork is not None

    def _count_waiting(self) -> int:
        """Count the octets that wait, without the overhead of queued messages."""
        overhead = len(self._queue) * QUEUE_OVERHEAD if self._queue is not None else 0
        return self._output_size - overhead + self._cork_size

    def _count_unsent(self) -> int:
        """Count the octets that did not reach the kernel, those that were discarded included."""
        return self._discarded_size + self._count_waiting()

    def _is_frame_cut(self) -> bool:
        """Tell whether a frame is half sent: nothing but its rest may follow then."""
        if self._wire is None:
            return False
        if self._stream.must_retry():
            return True
        self._find_frame()
        return self._frame_at != self._wire_at

    def _discard_output(self) -> None:
        """Forget what waits; ask `_is_frame_cut` before."""
        self._discarded_size += self._count_waiting()
        self._cork = self._queue = self._control = None
        self._message = self._wire = None
        self._cork_size = self._output_size = 0
        self._account()
        if self._write_watcher is not None and not self._waits_for_write_to_read:
            self._write_watcher.stop()

    def _close_transport(self) -> None:
        """Close the watchers and then the descriptor: the only place that does."""
        for watcher in (self._read_watcher, self._write_watcher):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._read_watcher = self._write_watcher = None
        self._is_reading = False
        if self._stream.fd >= 0:
            self._stream.close()
            self._dispatcher.leave()
        self._discard_output()

    # Hooks

    def _serialize(self, message: PreparedMessage) -> bytes:
        """Make frames of a message that waited; overridden."""
        raise NotImplementedError

    def _on_output_pending(self) -> None:
        """The kernel takes no more for now."""

    def _on_output_drained(self) -> None:
        """The output fell from above the high-water mark to half of it."""

    def _on_output_empty(self) -> None:
        """Everything is in the kernel."""

    def _on_broken(self) -> None:
        """A write failed; called by the hub."""


def drop_oldest(queue: deque[bytes | PreparedMessage], excess: int) -> tuple[int, int]:
    """Drop the oldest messages that a slow consumer may lose, until what is gone counted ``excess`` or none is left.

    Returns:
        How many they were, and what they counted: octets and an overhead each.
    """
    count = size = at = 0
    while size < excess and at < len(queue):
        entry = queue[at]
        if isinstance(entry, bytes) or not entry.is_droppable:
            at += 1
            continue
        del queue[at]
        size += len(entry) + QUEUE_OVERHEAD
        count += 1
    return count, size

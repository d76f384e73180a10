"""How a connection lives and ends: what was read is acted on, closing handshake, failures, drops.

Strategy: three states, and one function, `Endpoint._end`, that leads to the last of them. What ends
reading (the peer's Close, a violation) is acted on by `_settle` once the messages before it are
delivered, so that a listener may still answer them; `close_timeout` bounds that. After a Close of
ours for a failure the connection *lingers*: it is closed for the application, while the write side is
shut and what still comes is read and discarded, so that the peer sees the Close and not a reset.

The way to an end gives its sentence, and `_end` adds the figures: so every end tells its cause alike, to
the application, in the errors and in the log.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.event import Event

from geventws.deflate import Deflate, DeflateOptions
from geventws.errors import ConnectionClosed
from geventws.frames import CloseCode, is_sendable_close_code
from geventws.protocol import HEADROOM, Protocol
from geventws.sockets import END
from geventws.trace import FrameTrace
from geventws.transport import Transport

if TYPE_CHECKING:
    from geventws.config import ConnectionConfig
    from geventws.deflate import DeflateParameters
    from geventws.dispatch import Dispatcher
    from geventws.prepared import PreparedMessage
    from geventws.sockets import Stream

__all__ = ["Endpoint", "Handover"]

logger = logging.getLogger("geventws")

# A C number in the compiled package, where a module's global is an object.
_START = HEADROOM
#: A deadline that never comes.
NEVER = float("inf")


class Handover(NamedTuple):
    """Hold what a connection begins with, for all the layers that it has.

    Attributes:
        stream: What it takes over.
        dispatcher: That of its hub.
        config: The limits and times.
        is_client: Which side this is.
        deflate: The agreement about permessage-deflate, None for none.
        early: Octets that came with the opening handshake.
    """

    stream: Stream
    dispatcher: Dispatcher
    config: ConnectionConfig
    is_client: bool
    deflate: DeflateParameters | None
    early: bytes


class Endpoint(Transport):
    """Own the protocol of a connection and its state.

    Subclasses say when it takes too long, and how messages reach the application: they override the hooks at the end.
    """

    __slots__ = (
        "_close_cause",
        "_close_code",
        "_close_deadline",
        "_close_reason",
        "_closed_by",
        "_closed_event",
        "_config",
        "_context",
        "_error",
        "_has_early",
        "_is_client",
        "_is_closed",
        "_is_lingering",
        "_is_open",
        "_is_paused",
        "_is_started",
        "_last_received",
        "_owner",
        "_protocol",
        "_receive_mark",
        "_silence",
        "_unsent_size",
        "_waiting_pongs",
    )

    def __init__(self, handover: Handover) -> None:
        stream, dispatcher, config, is_client, deflate, early = handover
        super().__init__(stream, dispatcher, config.send_high_water_mark)
        self._config = config
        self._receive_mark = config.receive_high_water_mark
        self._is_client = is_client
        self._protocol = Protocol(
            is_client=is_client,
            max_frame_size=config.max_received_frame_size,
            max_message_size=config.max_received_message_size,
            max_fragment_count=config.max_message_fragments,
            max_reply_count=config.max_queued_pongs,
            max_queued_size=config.receive_high_water_mark,
            fragmentation_threshold=config.fragmentation_threshold if config.fragment_outgoing_messages else 0,
            assembles=config.assemble_fragments,
            deflate=None if deflate is None else self._make_deflate(deflate),
        )
        if logger.isEnabledFor(logging.DEBUG):
            self._trace = self._protocol.trace = FrameTrace(is_client=is_client)
        self._has_early = bool(early)
        if early:
            self._protocol.receive_octets(early)
        self._context = contextvars.copy_context()
        self._is_started = False
        # CLOSING is what is neither.
        self._is_open = True
        self._is_closed = False
        self._owner: Any = None
        self._close_code: int | None = None
        self._close_reason = ""
        self._closed_by: str | None = None
        self._close_cause = ""
        # How long the peer was silent, and what was not sent, when it closed.
        self._silence = 0.0
        self._unsent_size = 0
        self._closed_event: Any = None
        self._error: Exception | None = None
        self._is_lingering = False
        self._is_paused = False
        self._close_deadline = NEVER
        self._last_received = self._dispatcher.now()
        # The Pongs of ours that wait for a gap in the output.
        self._waiting_pongs: list[bytes] | None = None

    def _make_deflate(self, agreed: DeflateParameters) -> Deflate:
        return Deflate(
            agreed,
            self._config.deflate_options or DeflateOptions(),
            self._dispatcher.compressors,
            is_client=self._is_client,
            max_message_size=self._config.max_received_message_size,
        )

    def _start(self) -> None:
        """Begin to read and to deliver: the opening handshake is through."""
        if self._is_started:
            return
        self._is_started = True
        if not self._is_closed:
            self._update_reading()
            self._start_timer()
            if self._has_early:
                # They may be whole messages, and nothing more may come.
                self._read_soon()
        self._on_started()

    # Reading

    def _on_readable(self, events: int = 0) -> None:
        try:
            self._read(events < 0)
        except BaseException:  # noqa: BLE001
            # Nothing may leave a callback of the hub: the loop would stop the watcher and go on without us.
            self._break_down(sys.exc_info()[1])

    def _read(self, to_end: bool) -> None:
        if self._stream.fd < 0:
            return
        if not self._is_lingering and self._is_held():
            self._after_receive()
            return
        if self._protocol.has_backlog() and not self._is_lingering:
            self._protocol.parse_backlog()
            if not to_end:
                self._after_receive()
                return
        try:
            size = self._receive()
            while to_end and size > 0:
                # libuv stopped the watcher: whatever is left has to be read now.
                self._take(size)
                size = self._receive()
        except OSError as error:
            self._lose(f"the connection broke: {error}", error)
            return
        if size > 0:
            self._take(size)
            self._after_receive()
        elif size == END:
            self._on_end_of_stream()
        else:
            # Early octets were parsed before there was anything to read.
            self._after_receive()

    def _take(self, size: int) -> None:
        self._last_received = self._dispatcher.now()
        if not self._is_lingering:
            self._protocol.receive(self._dispatcher.buffer, _START, _START + size)

    def _after_receive(self) -> None:
        """Act on what was parsed; wakes the application last, and trusts nothing after that."""
        if self._is_reading and self._stream.has_pending():
            self._read_soon()
        if self._is_lingering:
            return
        protocol = self._protocol
        if protocol.replies:
            self._send_replies()
        if protocol.latest_pong is not None:
            self._note_pong()
        if protocol.failure is not None or protocol.is_close_received:
            self._on_reading_over()
        if protocol.has_events():
            if self._is_reading and protocol.queued_size > self._receive_mark:
                self._count_limit("receive_high_water_mark")
                self._stop_reading()
            self._wake()

    def _send_replies(self) -> None:
        """Send the Pongs; while the peer does not read, only the latest are kept (5.5.3)."""
        replies = self._protocol.replies
        if self._wire is None:
            octets = b"".join(replies)
            replies.clear()
            self._write_control(octets)
            return
        self._protocol.is_output_blocked = True
        if self._waiting_pongs is None or not self._control:
            self._waiting_pongs = []
        for octets in replies[-self._config.max_queued_pongs :]:
            if len(self._waiting_pongs) == self._config.max_queued_pongs:
                self._drop_pong()
            self._waiting_pongs.append(octets)
            self._write_control(octets)
        replies.clear()

    def _drop_pong(self) -> None:
        """Let the oldest Pong that waits go: a later one answers for it."""
        octets = self._waiting_pongs.pop(0)  # type: ignore[union-attr]
        if self._control is not None and octets in self._control:
            self._control.remove(octets)
            self._output_size -= len(octets)
            self._count_limit("max_queued_pongs")

    def _on_reading_over(self) -> None:
        self._stop_reading()
        if not self._protocol.has_events():
            self._settle()
        else:
            self._limit_closing()

    def _on_end_of_stream(self) -> None:
        # A peer that ended its side may still read: what waits for it goes out first.
        if self._is_lingering:
            if self._broken is None and self._has_output():
                self._stop_reading()
            else:
                self._hang_up()
        elif self._broken is not None:
            self._lose(f"the connection broke: {self._broken}", self._broken)
        elif self._protocol.is_close_received:
            # Early octets may have brought it, and nobody have looked at them yet.
            self._after_receive()
        else:
            self._flush()
            self._lose("the peer ended the connection without a Close", None, may_read=True)

    def _on_broken(self) -> None:
        # Written from another side than the hub's callbacks, or from within one: end what can be read.
        if self._stream.fd < 0:
            return
        self._on_readable(-1)
        if self._stream.fd >= 0 and not self._is_closed and not self._protocol.is_close_received:
            self._on_end_of_stream()

    def _is_held(self) -> bool:
        """Tell whether reading is paused, by the application or by the high-water mark."""
        if not self._is_open:
            return False
        return self._is_paused or self._protocol.queued_size > self._receive_mark

    def _update_reading(self) -> None:
        """Read, or stop reading, as the state and the inbox ask for."""
        if self._stream.fd < 0:
            return
        protocol = self._protocol
        over = protocol.failure is not None or protocol.is_close_received
        if self._is_lingering or not (over or self._is_held()):
            self._start_reading()
            if protocol.has_backlog():
                self._read_soon()
        else:
            self._stop_reading()

    # The closing handshake

    def _send_close(self, code: int, reason: str) -> None:
        """Queue our Close behind everything that waits (5.5.1)."""
        self._flush()
        self._write(self._protocol.serialize_close(code, reason))

    def _start_closing(self, code: int, reason: str, why: str) -> None:
        """Begin the closing handshake (7.1.2); ``why`` may be empty."""
        self._is_open = False
        self._protocol.discard()
        if self._broken is None:
            self._closed_by = "local"
            self._close_cause = f"we closed with {code}" + (f" ({why})" if why else "")
            self._send_close(code, reason)
        else:
            # A loop that a failed `send` has ended closes, too: what ends the connection is the break.
            self._close_cause = f"the connection broke: {self._broken}"
        self._wake_senders()
        if self._protocol.is_close_received or self._protocol.failure is not None:
            # The peer's Close was waiting for its turn behind the messages that are discarded now.
            self._settle()
            return
        self._update_reading()
        if not self._has_output():
            self._on_output_empty()

    def _settle(self) -> None:
        """Act on what ended reading, once the messages before it are delivered."""
        if self._is_closed:
            return
        protocol = self._protocol
        if protocol.failure is not None:
            self._error = protocol.failure
            if protocol.failure.limit:
                self._count_limit(protocol.failure.limit)
            self._fail(protocol.failure.close_code, str(protocol.failure), f"we failed it: {protocol.failure}")
        elif protocol.is_close_received:
            self._answer_close()

    def _answer_close(self) -> None:
        """Answer the peer's Close with its code, or take it as the answer to ours (7.1.5)."""
        protocol = self._protocol
        if protocol.sent_close_code is None:
            self._is_open = False
            self._closed_by = "peer"
            self._close_cause = f"the peer closed with {protocol.close_code}"
            self._send_close(protocol.close_code, "")
            self._wake_senders()
            # The application had its time for the messages before it; now the peer has its own.
            self._close_deadline = NEVER
            self._limit_closing()
        if self._broken is not None or not self._has_output():
            self._finish_closing()

    def _finish_closing(self, cause: str = "") -> None:
        """Both Closes are through: end the TCP connection, the server first (7.1.1); ``cause`` tells what is not."""
        protocol = self._protocol
        self._end(protocol.close_code, protocol.close_reason, self._closed_by or "peer", cause)
        if self._is_client or self._has_unread():
            self._linger(shuts_write=not self._is_client)
        else:
            self._hang_up()

    def _has_unread(self) -> bool:
        """Look for octets behind the peer's Close: closing over them would be a reset that swallows our Close."""
        try:
            return self._broken is None and self._receive() > 0
        except OSError:
            return False

    def _fail(self, code: int, reason: str, cause: str) -> None:
        """Fail the connection (7.1.7): our Close behind what is queued, then nothing is taken any more."""
        if self._is_closed:
            return
        self._protocol.discard()
        if self._broken is None and self._protocol.sent_close_code is None:
            self._send_close(code, reason)
        self._end(code, reason, "local", cause)
        self._linger(shuts_write=True)

    def _lose(self, cause: str, error: OSError | None, *, may_read: bool = False) -> None:
        """Note that TCP ended without a closing handshake: 1006 (7.1.5)."""
        if self._is_lingering:
            self._hang_up()
            return
        if self._protocol.failure is not None:
            self._settle()
            return
        if self._protocol.is_close_received:
            if self._closed_by is None:
                self._closed_by = "peer"
                self._close_cause = f"the peer closed with {self._protocol.close_code}, and did not wait for an answer"
            self._finish_closing(cause if self._has_output() else "")
            return
        if error is not None:
            self._error = error
        self._end(CloseCode.ABNORMAL_CLOSURE.value, "", self._closed_by or "transport", cause)
        if may_read and self._has_output():
            self._linger(shuts_write=False)
        else:
            self._hang_up()

    def _lose_opening(self) -> None:
        self._lose("the client was gone before the opening handshake was complete", None)

    def _end(self, code: int, reason: str, by: str, cause: str) -> None:
        """Reach CLOSED, once; whoever waits is told.

        An empty ``cause`` says that the closing handshake, whose own cause is known, ended in order.
        """
        if self._is_closed:
            return
        self._is_open = False
        self._is_closed = True
        self._close_code = code
        self._close_reason = reason
        self._closed_by = by
        if cause and cause != self._close_cause:
            self._close_cause = f"{self._close_cause}, and {cause}" if self._close_cause else cause
        self._silence = self._dispatcher.now() - self._last_received
        self._unsent_size = self._count_unsent()
        self._close_deadline = NEVER
        self._log_end(is_orderly=not cause)
        if self._closed_event is not None:
            self._closed_event.set()
        self._wake_senders()
        self._on_closed()

    def _describe_end(self) -> str:
        """Tell why the connection ends or has ended, and how it stands or stood then; ``""`` while it is open."""
        if not self._is_closed:
            return self._close_cause
        return _add_figures(self._close_cause, self._silence, self._unsent_size)

    def _describe_break(self) -> str:
        """Tell of a broken connection that is not closed yet."""
        silence = self._dispatcher.now() - self._last_received
        return _add_figures(f"the connection broke: {self._broken}", silence, self._count_unsent())

    def _log_end(self, *, is_orderly: bool) -> None:
        """Tell the log, and of an end that is none in order also the last frames; both are for those who debug."""
        trace = self._trace
        self._trace = self._protocol.trace = None
        if not logger.isEnabledFor(logging.DEBUG):
            return
        story = (self, self._close_code, self._closed_by, self._describe_end())
        if trace is None or is_orderly:
            self._dispatcher.log(logging.DEBUG, "%r ended with %d by %s: %s", *story)
        else:
            frames = trace.describe() or "none"
            self._dispatcher.log(logging.DEBUG, "%r ended with %d by %s: %s; the last frames: %s", *story, frames)

    def _linger(self, *, shuts_write: bool) -> None:
        """Read and discard until the peer is gone, or `close_timeout` has passed."""
        if self._stream.fd < 0:
            return
        if self._broken is not None:
            self._hang_up()
            return
        self._is_lingering = True
        self._protocol.replies.clear()
        self._limit_closing()
        self._update_reading()
        if shuts_write and not self._has_output():
            self._stream.shut_write()
        self._read_soon()

    def _hang_up(self) -> None:
        """Close the descriptor, and all that watches it."""
        self._is_lingering = False
        self._stop_timer()
        self._close_transport()
        self._on_transport_closed()

    def _break_down(self, error: BaseException | None) -> None:
        """End a connection on which our own code failed."""
        logger.error("a connection ends with 1011: internal error", exc_info=error)
        try:
            self._fail(CloseCode.INTERNAL_ERROR.value, "", "we failed it: internal error")
        except Exception:
            logger.exception("a connection could not be closed in order")
            self._end(CloseCode.INTERNAL_ERROR.value, "", "local", "we failed it: internal error")
            self._hang_up()

    def _drop(self, code: int, reason: str, skip_close_frame: bool, by: str, cause: str) -> None:
        """End now: nothing that waits is sent or delivered."""
        is_cut = self._is_frame_cut()
        self._protocol.discard()
        self._discard_output()
        says_close = not (
            skip_close_frame
            or is_cut
            or self._broken is not None
            or self._protocol.sent_close_code is not None
            or not is_sendable_close_code(code)
        )
        if says_close:
            self._write(self._protocol.serialize_close(code, reason))
        self._end(code, reason, by, cause)
        if says_close:
            self._linger(shuts_write=True)
        else:
            self._hang_up()

    def _make_closed_error(self) -> ConnectionClosed:
        if self._is_closed:
            return ConnectionClosed(self._close_code, self._close_reason, self._describe_end())
        return ConnectionClosed(None, "", "the connection is closing: " + self._close_cause)

    # Output

    def _serialize(self, message: PreparedMessage) -> bytes:
        return message.serialize(self._protocol)

    def _on_output_drained(self) -> None:
        self._wake_senders()

    def _on_output_empty(self) -> None:
        protocol = self._protocol
        protocol.is_output_blocked = False
        self._waiting_pongs = None
        self._on_ping_sent()
        if self._is_lingering:
            self._stream.shut_write()
            self._start_reading()
        elif not self._is_open and not self._is_closed:
            if protocol.is_close_received:
                self._finish_closing()
            else:
                self._limit_closing()

    def _count_limit(self, name: str) -> None:
        """Let the owner, if there is one, note that a limit, an option's name, was exceeded."""
        if self._owner is not None:
            self._owner.count_limit(name)

    # Hooks

    def _make_closed_event(self) -> Any:
        if self._closed_event is None:
            self._closed_event = Event()
            if self._is_closed:
                self._closed_event.set()
        return self._closed_event

    def _start_timer(self) -> None:
        """Begin to watch the time."""

    def _stop_timer(self) -> None:
        """Watch it no longer."""

    def _limit_closing(self) -> None:
        """Let the closing handshake, or lingering, take ``close_timeout`` from now on, unless it has its limit."""

    def _note_pong(self) -> None:
        """A Pong came."""

    def _on_ping_sent(self) -> None:
        """Everything is in the kernel, and with it a ping that waited."""

    def _on_started(self) -> None:
        """Delivery may begin."""

    def _wake(self) -> None:
        """Messages came: let the application have them."""

    def _wake_senders(self) -> None:
        """Let those that wait above the high-water mark look again."""

    def _on_closed(self) -> None:
        """The state is CLOSED: the application is to learn of it."""

    def _on_transport_closed(self) -> None:
        """The descriptor is closed."""


def _add_figures(cause: str, silence: float, unsent_size: int) -> str:
    return f"{cause}; silent for {silence:.3f} s, {unsent_size} octets unsent"

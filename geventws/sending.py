"""How an application's messages go out, and who waits for that: the send family of a connection.

Strategy: while nothing waits, a message is serialised at once. While received messages wait for the application its
replies are corked: they leave in one system call. A greenlet that sends above the high-water mark
has its message queued and then waits; so the order is that of the calls. Whoever may not wait meets the
slow-consumer policy there. Behind a fragmented message that is not complete the others are kept in order.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from geventws.deadlines import Timekeeper
from geventws.dispatch import get_current, get_thread_id
from geventws.errors import ConnectionClosed, InvalidState, ProtocolError
from geventws.frames import (
    MAX_CONTROL_PAYLOAD_SIZE,
    CloseCode,
    Opcode,
    WebSocketFrame,
    check_close,
    is_sendable_close_code,
    measure_message,
    parse_close,
)
from geventws.inbox import QUEUE_OVERHEAD
from geventws.masking import count_octets
from geventws.prepared import PreparedMessage
from geventws.transport import drop_oldest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from geventws.endpoint import Handover

__all__ = ["Sender", "check_message", "send_to_all"]

logger = logging.getLogger("geventws")

_TEXT = 1
_BINARY = 2


class Sender(Timekeeper):
    """Send messages, frames and our Close."""

    __slots__ = (
        "_deferred",
        "_deferred_size",
        "_drained",
        "_dropped_count",
        "_is_dropping",
        "_is_prompt",
        "_is_sending_fragments",
    )

    def __init__(self, handover: Handover) -> None:
        super().__init__(handover)
        # Whether the application answers at once, so that its replies may be corked.
        self._is_prompt = True
        self._drained: Any = None
        self._is_sending_fragments = False
        self._deferred: deque[bytes | PreparedMessage] | None = None
        self._deferred_size = 0
        self._dropped_count = 0
        self._is_dropping = False

    @property
    def buffered_amount(self) -> int:
        """The octets that wait to be sent, corked ones included."""
        return self._count_waiting() + self._count_deferred()

    @property
    def dropped_message_count(self) -> int:
        """The messages that this slow consumer lost, where ``slow_consumer`` is a policy that drops them."""
        return self._dropped_count

    @property
    def output_buffer_full(self) -> bool:
        """Whether the output is above ``send_high_water_mark`` (seed: outputBufferFull)."""
        return bool(self._is_full)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake and return (RFC 6455, 7.1.2; seed: close).

        What was sent before goes out first; messages that were not delivered yet, and those that still come,
        are discarded. `wait_closed` waits for the end. A second call does nothing.

        Raises:
            TypeError: ``code`` is no int, or ``reason`` no str.
            ValueError: The code may not be sent (7.4), or the reason has over 123 octets.
            InvalidState: Called in another thread.
        """
        check_close(code, reason)
        self._check_thread("close")
        if self._is_open:
            self._start_closing(int(code), reason, "")

    def _close_for(self, why: str, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake for a reason that ``close_cause`` tells; in any thread."""
        if self._is_foreign():
            self._dispatcher.loop.run_callback_threadsafe(self._close_for, why, code, reason)
        elif self._is_open:
            self._start_closing(code, reason, why)

    def send(self, message: str | bytes | bytearray | memoryview, *, compress: bool = True) -> None:
        """Send a message, as text or binary by its type (seed: send).

        Blocks while more than ``send_high_water_mark`` waits to be sent, until half of it has left. Any number of
        greenlets may send at once: the order is that of the calls. When a ``gevent.Timeout`` of the caller
        strikes, the message stays queued.

        Args:
            message: str goes out as text, the others as binary.
            compress: False leaves this message as it is where permessage-deflate was agreed.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
            ConnectionClosed: The connection is closing or closed, or became so while this waited.
            InvalidState: Called in the hub itself, or in another thread.
        """
        if not self._is_open or self._is_foreign() or self._is_in_hub():
            self._refuse_to_send()
        if type(message) is str:
            self._send_message(_TEXT, message, compress)
        elif type(message) is bytes:
            self._send_message(_BINARY, message, compress)
        else:
            opcode, payload = check_message(message)
            self._send_message(opcode, payload, compress)
        if self._is_full:
            self._wait_for_drain()

    def send_text(self, message: str, *, compress: bool = True) -> None:
        """Send a text message (seed: sendUTF); see `send`.

        Raises:
            TypeError: ``message`` is no str.
        """
        if not isinstance(message, str):
            raise TypeError(f"send_text takes a str, not {type(message).__name__}")
        self.send(message, compress=compress)

    def send_bytes(self, message: bytes | bytearray | memoryview, *, compress: bool = True) -> None:
        """Send a binary message (seed: sendBytes); see `send`.

        Raises:
            TypeError: ``message`` is not bytes-like.
        """
        if isinstance(message, str):  # type: ignore[unreachable]
            raise TypeError("send_bytes takes bytes, not str")
        self.send(message, compress=compress)

    def send_nowait(self, message: str | bytes | bytearray | memoryview, *, compress: bool = True) -> bool:
        """Send a message without ever waiting; hub callbacks may call it.

        A peer that has not taken ``send_high_water_mark`` octets is a slow consumer, and what happens is what
        ``slow_consumer`` says: the connection fails with 1013, or the newest or the oldest messages are dropped. Only
        messages sent by this method, `send_threadsafe` and ``broadcast`` are ever dropped.

        Args:
            message: As for `send`.
            compress: As for `send`.

        Returns:
            Whether the message was queued; False when it was lost.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
            ConnectionClosed: The connection is closing or closed.
            InvalidState: Called in another thread.
        """
        if self._is_foreign():
            raise InvalidState("send_nowait was called in another thread than the connection's: use send_threadsafe")
        if not self._is_open:
            raise self._make_closed_error()
        opcode, payload = check_message(message)
        return self._send_prepared(PreparedMessage(opcode, payload, compress, is_droppable=True))

    def send_threadsafe(
        self, message: str | bytes | bytearray | memoryview, *, compress: bool = True
    ) -> concurrent.futures.Future[bool]:
        """Send a message from any thread; does not block.

        Args:
            message: As for `send`.
            compress: As for `send`.

        Returns:
            A future of what `send_nowait` returns or raises. The thread of the connection's own hub must not wait for
            it.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
        """
        opcode, payload = check_message(message)
        prepared = PreparedMessage(opcode, payload, compress, is_droppable=True)
        future: concurrent.futures.Future[bool] = concurrent.futures.Future()
        self._dispatcher.loop.run_callback_threadsafe(self._send_for_thread, prepared, future)
        return future

    def send_frame(self, frame: WebSocketFrame) -> None:
        """Send one frame (seed: sendFrame); it is masked where this side has to.

        Blocks as `send` does. Fragments are the caller's: those of one message must come in one piece.

        Raises:
            ValueError: A reserved bit or opcode, or a control frame that is fragmented or over 125 octets.
            InvalidState: A continuation without a beginning, or a message within a fragmented one.
            ConnectionClosed: As `send`.
        """
        if not self._is_open or self._is_in_hub() or self._is_foreign():
            self._refuse_to_send()
        _check_frame(frame)
        if frame.opcode == Opcode.CLOSE:
            self.close(*_parse_own_close(frame.payload))
            return
        octets = self._protocol.serialize_frame(frame.first_octet, bytes(frame.payload))
        if frame.opcode & 0x08:
            self._flush()
            self._write_control(octets)
            return
        if bool(frame.opcode) is self._is_sending_fragments:
            raise InvalidState(
                "a message is begun within a fragmented one" if frame.opcode else "a continuation continues nothing"
            )
        self._is_sending_fragments = True
        self._send_fragment(octets, frame.fin)

    def _send_fragment(self, fragment: bytes | PreparedMessage, fin: bool) -> None:
        self._write_entry(fragment)
        if fin:
            self._end_fragments()
        if self._is_full or not self._is_open:
            self._wait_for_drain()

    def send_fragments(self, fragments: Iterable[str | bytes], *, compress: bool = True) -> None:
        """Send one message of unknown length, a frame for each piece (seed: fragmentAndSend).

        Blocks as `send` does. Other greenlets' messages wait until this one is complete; pings may pass.

        Args:
            fragments: All str or all bytes-like; at least one. It may block between two pieces.
            compress: False leaves the message as it is where permessage-deflate was agreed.

        Raises:
            TypeError: A piece is of another type than the first.
            ValueError: There is no piece.
            ConnectionClosed: As `send`. An exception of the iterable ends the connection with 1011 and goes on.
        """
        if not self._is_open or self._is_foreign() or self._is_in_hub():
            self._refuse_to_send()
        if self._is_sending_fragments:
            self._wait_for_turn()
        self._is_sending_fragments = True
        opcode = 0
        try:
            for piece in fragments:
                kind, payload = check_message(piece)
                if opcode and kind != opcode:
                    raise TypeError("the pieces of one message must be all str or all bytes")
                if not self._is_open:
                    raise self._make_closed_error()
                first = 0 if opcode else kind
                opcode = kind
                self._send_fragment(PreparedMessage(first, payload, compress, is_fragment=True), False)
        except BaseException:
            if opcode and self._is_open:
                # Half a message cannot be taken back.
                self._fail(CloseCode.INTERNAL_ERROR.value, "", "we failed it: a fragmented message broke off")
            self._end_fragments()
            raise
        if not opcode:
            self._end_fragments()
            raise ValueError("send_fragments needs at least one piece")
        if not self._is_open:
            raise self._make_closed_error()
        self._send_fragment(PreparedMessage(0x80, b"", compress, is_fragment=True), True)

    def ping(self, payload: bytes = b"") -> None:
        """Send a Ping (RFC 6455, 5.5.2); does not block.

        Raises:
            ValueError: The payload has more than 125 octets.
            ConnectionClosed: The connection is closing or closed.
        """
        payload = self._check_control("ping", payload)
        self._send_ping(payload)

    def pong(self, payload: bytes = b"") -> None:
        """Send a Pong (RFC 6455, 5.5.3), for where `auto_pong` is off; does not block.

        Raises:
            ValueError: The payload has more than 125 octets.
            ConnectionClosed: The connection is closing or closed.
        """
        payload = self._check_control("pong", payload)
        self._flush()
        self._write_control(self._protocol.serialize_frame(0x8A, payload))

    def _check_control(self, name: str, payload: bytes) -> bytes:
        if isinstance(payload, str):  # type: ignore[unreachable]
            # bytes(str) would raise, too, but speak of encodings.
            raise TypeError(f"the payload of a {name} must be bytes-like, not str")
        payload = bytes(payload)
        if len(payload) > MAX_CONTROL_PAYLOAD_SIZE:
            raise ValueError(f"the payload of a {name} has {len(payload)} octets; at most 125 may be sent (5.5)")
        self._check_thread(name)
        if not self._is_open:
            raise self._make_closed_error()
        return payload

    def _check_thread(self, name: str) -> None:
        if self._is_foreign():
            raise InvalidState(f"{name} was called in another thread than the connection's")

    def _is_foreign(self) -> bool:
        return bool(get_thread_id() != self._dispatcher.thread_id)

    def _is_in_hub(self) -> bool:
        return bool(get_current() is self._dispatcher.hub)

    def _refuse_to_send(self) -> None:
        if self._is_foreign():
            raise InvalidState("send was called in another thread than the connection's: use send_threadsafe")
        if not self._is_open:
            raise self._make_closed_error()
        raise InvalidState("send was called in the hub, where it could not wait: use send_nowait")

    def _send_message(self, opcode: int, message: str | bytes, compresses: bool) -> None:
        if self._is_sending_fragments:
            self._wait_behind_fragments(self._defer(PreparedMessage(opcode, _encode(message), compresses)))
        elif self._wire is not None and self._protocol.compresses():
            self._write_entry(PreparedMessage(opcode, _encode(message), compresses))
        elif self._is_prompt and self._protocol.has_events():
            self._cork_message(self._protocol.serialize(opcode, message, compresses))
        else:
            self._write_message(opcode, message, compresses)
            if self._broken is not None:
                raise ConnectionClosed(None, "", self._describe_break())
        if not self._is_open:
            # The message itself was more than the server's budget for output.
            raise self._make_closed_error()

    def _write_message(self, opcode: int, message: str | bytes, compresses: bool) -> None:
        """Send a message, without a copy of it if that is possible."""
        sent = 0
        threshold = self._protocol.plain_threshold
        if threshold:
            sent = self._send_frames(opcode, message, threshold)
            if sent and sent == measure_message(count_octets(message), threshold):
                return
        octets = self._protocol.serialize(opcode, message, compresses)
        if sent:
            self._write_rest(octets, sent)
        else:
            self._write(octets)

    def _write_entry(self, entry: bytes | PreparedMessage) -> None:
        """Send frames, or a message that is serialised only when it moves to the wire."""
        if isinstance(entry, bytes):
            self._write(entry)
        elif self._wire is None:
            self._write(self._serialize(entry))
        else:
            self._flush()
            # The output of all connections together may have become too much, and ended this one.
            if self._broken is None and self._is_open:
                self._enqueue(entry)
                self._note_fullness()

    def _send_prepared(self, message: PreparedMessage) -> bool:
        """Send a message without waiting; `broadcast` shares it among connections. Returns whether it is queued."""
        # Looked at before: one message may be larger than the mark, whose peer is not slow for that.
        if self._measure_output() > self._send_mark and not self._make_room():
            return False
        if self._is_sending_fragments:
            self._defer(message)
        else:
            self._write_entry(message)
        return bool(self._is_open)

    def _measure_output(self) -> int:
        return self._output_size + self._cork_size + self._deferred_size

    def _count_deferred(self) -> int:
        return self._deferred_size - (len(self._deferred) * QUEUE_OVERHEAD if self._deferred is not None else 0)

    def _count_unsent(self) -> int:
        return self._discarded_size + self._count_waiting() + self._count_deferred()

    def _defer(self, message: PreparedMessage) -> deque[bytes | PreparedMessage]:
        """Keep a message until the fragmented one before it is complete."""
        if self._deferred is None:
            self._deferred = deque()
        self._deferred.append(message)
        self._deferred_size += len(message) + QUEUE_OVERHEAD
        return self._deferred

    def _take_deferred(self) -> deque[bytes | PreparedMessage] | None:
        """Return what was kept behind a fragmented message, and keep it no longer."""
        deferred = self._deferred
        self._deferred = None
        self._deferred_size = 0
        return deferred

    # Slow consumers

    def _make_room(self) -> bool:
        """Apply the slow-consumer policy; tells whether the next message may be queued."""
        # What is corked waits for the application alone.
        self._flush()
        if self._measure_output() <= self._send_mark or not self._is_open:
            return bool(self._is_open)
        policy = self._config.slow_consumer
        self._count_limit("slow_consumer")
        if policy == "close":
            self._discard_slow(f"a slow consumer, {self.buffered_amount} octets wait")
            return False
        if not self._is_dropping:
            # Once until the peer has caught up: it may be thousands of messages.
            self._is_dropping = True
            self._dispatcher.log(
                logging.WARNING,
                "%r is a slow consumer, %d octets wait: its %s messages are dropped",
                self,
                self.buffered_amount,
                policy.removeprefix("drop_"),
            )
        if policy == "drop_oldest" and self._drop_oldest():
            return True
        self._dropped_count += 1
        return False

    def _drop_oldest(self) -> bool:
        """Drop what is older than the next message, as far as it may be; tells whether there is room then."""
        self._dropped_count += self._drop_queued(self._measure_output() - self._send_mark)
        if self._deferred is not None:
            count, size = drop_oldest(self._deferred, self._measure_output() - self._send_mark)
            self._dropped_count += count
            self._deferred_size -= size
        return self._measure_output() <= self._send_mark

    def _discard_slow(self, cause: str) -> None:
        """Fail the connection of a peer that does not keep up: what waits is not sent."""
        self._drop(CloseCode.TRY_AGAIN_LATER.value, "slow consumer", False, "local", f"we failed it: {cause}")

    def _send_for_thread(self, message: PreparedMessage, future: concurrent.futures.Future[bool]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if not self._is_open:
                raise self._make_closed_error()
            is_queued = self._send_prepared(message)
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        else:
            future.set_result(is_queued)

    def _end_fragments(self) -> None:
        """Let the others send again, what waited for this first."""
        self._is_sending_fragments = False
        for message in self._take_deferred() or ():
            if self._is_open:
                self._write_entry(message)
        if not self._is_full:
            self._is_dropping = False
        self._release_senders()

    def _wait_behind_fragments(self, deferred: deque[bytes | PreparedMessage]) -> None:
        """Wait until what was kept has gone out; it keeps its place also when the caller gives up waiting."""
        while self._deferred is deferred:
            self._wait_for_senders()
            if not self._is_open:
                raise self._make_closed_error()

    def _wait_for_turn(self) -> None:
        """Wait until nobody is in the middle of a fragmented message."""
        while self._is_sending_fragments:
            self._wait_for_senders()
            if not self._is_open:
                raise self._make_closed_error()

    def _wait_for_drain(self) -> None:
        """Wait until the output is at half the high-water mark, or nothing more may be sent."""
        if self._is_full:
            self._count_limit("send_high_water_mark")
        while self._is_full and self._is_open:
            self._wait_for_senders()
        if not self._is_open:
            raise self._make_closed_error()

    def _wait_for_senders(self) -> None:
        if self._drained is None:
            self._drained = Event()
        self._drained.wait()

    def _release_senders(self) -> None:
        drained = self._drained
        self._drained = None
        if drained is not None:
            drained.set()

    def _wake_senders(self) -> None:
        self._is_dropping = False
        self._release_senders()
        if self._is_open:
            self._on_drained()

    # Hooks

    def _on_drained(self) -> None:
        """Learn that there is room to send again."""


def send_to_all(connections: tuple[Sender, ...], message: PreparedMessage, excluded: Container[object]) -> int:
    """Send a message to the open ones of some connections, without waiting; returns how many have it queued."""
    count = 0
    for connection in connections:
        if not connection._is_open or (excluded and connection in excluded):
            continue
        try:
            if connection._send_prepared(message) and connection._is_open:
                count += 1
        except Exception:
            logger.exception("broadcasting to %r failed", connection)
    return count


def _encode(message: str | bytes) -> bytes:
    return message if type(message) is bytes else message.encode()  # type: ignore[union-attr]


def check_message(message: object) -> tuple[int, bytes]:
    """Return the opcode and the payload of what an application wants to send."""
    if isinstance(message, str):
        return _TEXT, message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return _BINARY, bytes(message)
    raise TypeError(f"a message must be str or bytes-like, not {type(message).__name__}")


def _check_frame(frame: WebSocketFrame) -> None:
    opcode = frame.opcode
    if opcode not in Opcode.__members__.values():
        raise ValueError(f"opcode {opcode} is reserved (5.2)")
    if frame.rsv1 or frame.rsv2 or frame.rsv3:
        raise ValueError("a reserved bit is set, and no extension was negotiated (5.2)")
    if opcode & 0x08 and not frame.fin:
        raise ValueError("a control frame may not be fragmented (5.5)")
    if opcode & 0x08 and len(frame.payload) > MAX_CONTROL_PAYLOAD_SIZE:
        raise ValueError(f"a control frame has {len(frame.payload)} octets; at most 125 may be sent (5.5)")


def _parse_own_close(payload: bytes) -> tuple[int, str]:
    try:
        code, reason = parse_close(payload)
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    return (code if is_sendable_close_code(code) else CloseCode.NORMAL_CLOSURE.value), reason

"""`WebSocketConnection`: what an application holds (seed: WebSocketConnection).

Strategy: messages wait in the protocol's inbox. In event style the dispatcher delivers them to the
listeners, in turns; in loop style the greenlet that waits in ``receive`` is switched to straight
from the hub. Replies sent while further messages wait are corked: they leave in one system call.
"""

from __future__ import annotations

import concurrent.futures
import logging
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from gevent import Timeout
from gevent.event import Event
from greenlet import GreenletExit, getcurrent, greenlet

from geventws.dispatch import get_dispatcher, get_thread_id
from geventws.endpoint import Endpoint
from geventws.errors import ConnectionClosed, InvalidState, ProtocolError
from geventws.frames import (
    MAX_CONTROL_PAYLOAD_SIZE,
    CloseCode,
    Opcode,
    WebSocketFrame,
    check_close,
    is_sendable_close_code,
    parse_close,
)
from geventws.protocol import QUEUE_OVERHEAD, Fragment, Ping, Pong
from geventws.sockets import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from geventws.config import ConnectionConfig
    from geventws.sockets import Stream

__all__ = ["WebSocketConnection", "check_message"]

logger = logging.getLogger("geventws")

#: Messages, and seconds, after which a connection's turn ends, so that no peer starves another.
TURN_COUNT = 64
TURN_TIME = 0.001
#: `greenlet.switch` itself: gevent's hub overrides it with a look-up that its own waiting needs.
_switch_to = greenlet.switch

_TEXT = 1
_BINARY = 2
#: Close codes after which a loop over the messages simply ends.
CLEAN_CODES = frozenset({1000, 1001, 1005})


class WebSocketConnection(Endpoint):
    """Send and receive messages (seed: WebSocketConnection).

    Events: ``message(str | bytes)``, ``frame(WebSocketFrame)``, ``ping(payload)``, ``pong(payload)``,
    ``drain()``, ``error(exception)``, ``close(code, reason)``. They come one at a time, in wire order,
    in greenlets that may block; ``close`` is the last.

    All methods belong to the greenlets of the hub that accepted the connection, `send_threadsafe`
    excepted. Only `send` and its family, `receive`, iteration and `wait_closed` may block.

    Attributes:
        data: Free for the application.
        extensions: The extensions in use, as ``(name, [(parameter, value)])``.
        remote_address: The client's address (the server's, on the client's side).
        remote_addresses: What ``X-Forwarded-For`` says, then the TCP peer.
        request_path: The raw request target.
        subprotocol: The accepted subprotocol in the client's spelling, or None.
        websocket_version: 13.
    """

    __slots__ = (
        "__weakref__",
        "_deferred",
        "_deliverer",
        "_drained",
        "_frame_listeners",
        "_is_close_emitted",
        "_is_drain_due",
        "_is_prompt",
        "_is_ready",
        "_is_receiving",
        "_is_sending_fragments",
        "_is_waiting",
        "_message_listeners",
        "_receiver",
        "_taken_at",
        "data",
        "extensions",
        "remote_address",
        "remote_addresses",
        "request_path",
        "subprotocol",
        "websocket_version",
    )

    EVENTS: ClassVar[frozenset[str]] = frozenset({"message", "frame", "close", "error", "ping", "pong", "drain"})

    def __init__(
        self,
        stream: Stream,
        config: ConnectionConfig,
        *,
        is_client: bool = False,
        subprotocol: str | None = None,
        request_path: str = "/",
        remote_address: str = "",
        remote_addresses: Iterable[str] = (),
        early: bytes = b"",
    ) -> None:
        """Take over a stream behind an opening handshake; applications get connections from ``accept`` or ``connect``.

        Args:
            stream: Its descriptor belongs to the connection from now on.
            config: The limits and times.
            is_client: Which side this is.
            subprotocol: As the attribute; so are the others.
            request_path: The raw request target.
            remote_address: The client's address.
            remote_addresses: All addresses that are known of it.
            early: Octets that came with the opening handshake.
        """
        super().__init__(stream, get_dispatcher(), config, is_client=is_client, early=early)
        self.data: Any = None
        self.subprotocol = subprotocol
        self.extensions: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.request_path = request_path
        self.remote_address = remote_address
        self.remote_addresses = list(remote_addresses)
        self.websocket_version = 13
        self._message_listeners: tuple[Any, ...] = ()
        self._frame_listeners: tuple[Any, ...] = ()
        self._is_ready = False
        self._deliverer: Any = None
        self._is_close_emitted = False
        self._is_prompt = True
        self._is_drain_due = False
        self._is_receiving = False
        # The greenlet that called `receive` last, and whether it waits to be switched to.
        self._receiver: Any = None
        self._is_waiting = False
        self._taken_at = 0.0
        self._drained: Any = None
        self._is_sending_fragments = False
        self._deferred: list[bytes] | None = None

    def __repr__(self) -> str:
        """Name the state, the peer and the path."""
        return f"<WebSocketConnection {self.state} {self.remote_address or 'unix'} {self.request_path}>"

    # What is known of it

    @property
    def state(self) -> str:
        """``"OPEN"``, ``"CLOSING"`` or ``"CLOSED"``."""
        if self._is_open:
            return "OPEN"
        return "CLOSED" if self._is_closed else "CLOSING"

    @property
    def connected(self) -> bool:
        """Whether the state is OPEN."""
        return bool(self._is_open)

    @property
    def close_code(self) -> int | None:
        """The close code (RFC 6455, 7.1.5), None until the connection is closed."""
        return self._close_code

    @property
    def close_reason(self) -> str:
        """The reason that came with the close code, ``""`` without one."""
        return self._close_reason

    @property
    def sent_close_code(self) -> int | None:
        """The code of our own Close, None until there is one."""
        code: int | None = self._protocol.sent_close_code
        return code

    @property
    def closed_by(self) -> str | None:
        """``"local"``, ``"peer"`` or ``"transport"``; None while the connection is open."""
        return self._closed_by

    @property
    def close_cause(self) -> str:
        """One sentence with figures: who ended the connection, and why."""
        return self._close_cause

    @property
    def buffered_amount(self) -> int:
        """The octets that wait to be sent, corked ones included."""
        waiting = len(self._queue) * QUEUE_OVERHEAD if self._queue is not None else 0
        deferred = sum(map(len, self._deferred)) if self._deferred is not None else 0
        return self._output_size - waiting + self._cork_size + deferred

    @property
    def output_buffer_full(self) -> bool:
        """Whether the output is above ``send_high_water_mark`` (seed: outputBufferFull)."""
        return bool(self._is_full)

    @property
    def latency(self) -> float | None:
        """The seconds between the last ping that was answered and its Pong; None before."""
        return self._latency

    @property
    def auto_pong(self) -> bool:
        """Whether pings are answered without the application (seed: the ping event's cancel)."""
        return bool(self._protocol.auto_pong)

    @auto_pong.setter
    def auto_pong(self, value: bool) -> None:
        self._protocol.auto_pong = value

    # Sending

    def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Send a message, as text or binary by its type (seed: send).

        Blocks while more than ``send_high_water_mark`` waits to be sent, until half of it has left. Any number of
        greenlets may send at once: the order is that of the calls. When a ``gevent.Timeout`` of the caller
        strikes, the message stays queued.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
            ConnectionClosed: The connection is closing or closed, or became so while this waited.
            InvalidState: Called in the hub itself, or in another thread.
        """
        if not self._is_open or self._is_foreign() or getcurrent() is self._dispatcher.hub:
            self._refuse_to_send()
        if type(message) is str:
            self._send_message(_TEXT, message.encode())
        elif type(message) is bytes:
            self._send_message(_BINARY, message)
        else:
            opcode, payload = check_message(message)
            self._send_message(opcode, payload)
        if self._is_full:
            self._wait_for_drain()

    def send_text(self, message: str) -> None:
        """Send a text message (seed: sendUTF); see `send`.

        Raises:
            TypeError: ``message`` is no str.
        """
        if not isinstance(message, str):
            raise TypeError(f"send_text takes a str, not {type(message).__name__}")
        self.send(message)

    def send_bytes(self, message: bytes | bytearray | memoryview) -> None:
        """Send a binary message (seed: sendBytes); see `send`.

        Raises:
            TypeError: ``message`` is not bytes-like.
        """
        if isinstance(message, str):  # type: ignore[unreachable]
            raise TypeError("send_bytes takes bytes, not str")
        self.send(message)

    def send_nowait(self, message: str | bytes | bytearray | memoryview) -> None:
        """Send a message without ever waiting; hub callbacks may call it.

        A peer that has not taken ``send_high_water_mark`` octets is a slow consumer: the connection is failed with
        1013, and the message is lost.

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
        self._send_queued(self._protocol.serialize(opcode, payload))

    def send_threadsafe(self, message: str | bytes | bytearray | memoryview) -> concurrent.futures.Future[None]:
        """Send a message from any thread; does not block.

        Returns:
            A future that is done when the message is queued; its exception is that of `send_nowait`. The thread of
            the connection's own hub must not wait for it.

        Raises:
            TypeError: ``message`` is neither str nor bytes-like.
        """
        opcode, payload = check_message(message)
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._dispatcher.loop.run_callback_threadsafe(self._send_for_thread, opcode, payload, future)
        return future

    def send_frame(self, frame: WebSocketFrame) -> None:
        """Send one frame (seed: sendFrame); it is masked where this side has to.

        Blocks as `send` does. Fragments are the caller's: those of one message must come in one piece.

        Raises:
            ValueError: A reserved bit or opcode, or a control frame that is fragmented or over 125 octets.
            InvalidState: A continuation without a beginning, or a message within a fragmented one.
            ConnectionClosed: As `send`.
        """
        if not self._is_open or getcurrent() is self._dispatcher.hub or self._is_foreign():
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

    def _send_fragment(self, octets: bytes, fin: bool) -> None:
        self._write(octets)
        if fin:
            self._end_fragments()
        if self._is_full:
            self._wait_for_drain()

    def send_fragments(self, fragments: Iterable[str | bytes]) -> None:
        """Send one message of unknown length, a frame for each piece (seed: fragmentAndSend).

        Blocks as `send` does. Other greenlets' messages wait until this one is complete; pings may pass.

        Args:
            fragments: All str or all bytes-like; at least one. It may block between two pieces.

        Raises:
            TypeError: A piece is of another type than the first.
            ValueError: There is no piece.
            ConnectionClosed: As `send`. An exception of the iterable ends the connection with 1011 and goes on.
        """
        if not self._is_open or self._is_foreign() or getcurrent() is self._dispatcher.hub:
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
                self._send_fragment(self._protocol.serialize_frame(first, payload), False)
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
        self._send_fragment(self._protocol.serialize_frame(0x80, b""), True)

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
        if self._is_foreign():
            raise InvalidState(f"{name} was called in another thread than the connection's")
        if not self._is_open:
            raise self._make_closed_error()
        return payload

    def _is_foreign(self) -> bool:
        return bool(get_thread_id() != self._dispatcher.thread_id)

    def _refuse_to_send(self) -> None:
        if self._is_foreign():
            raise InvalidState("send was called in another thread than the connection's: use send_threadsafe")
        if not self._is_open:
            raise self._make_closed_error()
        raise InvalidState("send was called in the hub, where it could not wait: use send_nowait")

    def _send_message(self, opcode: int, payload: bytes) -> None:
        octets = self._protocol.serialize(opcode, payload)
        if self._is_sending_fragments:
            self._wait_behind_fragments(self._defer(octets))
        elif self._is_prompt and self._protocol.has_events():
            self._cork_message(octets)
        else:
            self._write(octets)
            if self._broken is not None:
                raise ConnectionClosed(None, "", f"the connection broke: {self._broken}")

    def _send_queued(self, octets: bytes) -> None:
        """Send a serialised message without waiting; `broadcast` shares the octets among connections."""
        deferred = sum(map(len, self._deferred)) if self._deferred is not None else 0
        if self._output_size + self._cork_size + deferred > self._send_mark:
            # Looked at before: one message may be larger than the mark, whose peer is not slow for that.
            self._discard_slow(f"we failed it: a slow consumer, {self.buffered_amount} octets wait")
        elif self._is_sending_fragments:
            self._defer(octets)
        else:
            self._write(octets)

    def _defer(self, octets: bytes) -> list[bytes]:
        """Keep a message until the fragmented one before it is complete."""
        if self._deferred is None:
            self._deferred = []
        self._deferred.append(octets)
        return self._deferred

    def _discard_slow(self, cause: str) -> None:
        self._deferred = None
        self._drop(CloseCode.TRY_AGAIN_LATER.value, "slow consumer", False, "local", cause)

    def _send_for_thread(self, opcode: int, payload: bytes, future: concurrent.futures.Future[None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if not self._is_open:
                raise self._make_closed_error()
            self._send_queued(self._protocol.serialize(opcode, payload))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        else:
            future.set_result(None)

    def _end_fragments(self) -> None:
        """Let the others send again, what waited for this first."""
        self._is_sending_fragments = False
        deferred = self._deferred
        self._deferred = None
        if deferred is not None and self._is_open:
            for octets in deferred:
                self._write(octets)
        self._release_senders()

    def _wait_behind_fragments(self, deferred: list[bytes]) -> None:
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
        while self._is_full:
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
        self._release_senders()
        if self._is_open and self._get_listeners("drain"):
            self._is_drain_due = True
            self._make_ready()

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
        self._receiver = getcurrent()
        if self._receiver is self._dispatcher.hub or self._is_foreign():
            raise InvalidState("receive was called in the hub or in another thread")
        if not self._is_started:
            self._start()
        self._is_receiving = True

    def _next_event(self, timeout: float | None) -> Any:
        protocol = self._protocol
        deadline = None
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
            self._is_prompt = now - max(self._taken_at, self._last_received) < TURN_TIME
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
            _switch_to(self._dispatcher.hub)
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
                _switch_to(self._receiver)
        elif self._is_ready:
            return
        elif self._message_listeners and not self._is_paused:
            self._is_ready = True
            self._dispatcher.add(self)
        else:
            self._make_ready()

    def _wake_receiver(self) -> None:
        if self._is_waiting:
            _switch_to(self._receiver)

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

    def deliver(self) -> None:
        """Deliver what waits, for one turn; called by the dispatcher."""
        self._deliverer = getcurrent()
        try:
            self._context.run(self._deliver_turn)
        except BaseException:  # noqa: BLE001
            self._on_listener_raised()
        finally:
            self._deliverer = None
            self._is_ready = False
            self._make_ready()
            if self._is_waiting and self._protocol.has_events():
                # Pings and pongs were before its message.
                self._dispatcher.loop.run_callback(self._wake_receiver)

    def _deliver_turn(self) -> None:
        protocol = self._protocol
        if self._is_drain_due:
            self._is_drain_due = False
            self._emit("drain")
        count = 0
        started = before = monotonic()
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

    def _on_closed(self) -> None:
        self._deferred = None
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
        if self._receiver is getcurrent():
            self.close()

    def _abandon(self, how: str) -> None:
        """End a connection whose greenlet was killed: 1001 when the http server stops, else 1011."""
        if self._owner is not None and self._owner.is_stopping():
            self.close(CloseCode.GOING_AWAY.value)
        else:
            self._fail(CloseCode.INTERNAL_ERROR.value, "", f"we failed it: its greenlet was {how}")

    # Flow and end

    def pause(self) -> None:
        """Stop reading and delivering (seed: pause); the peer is not dropped for silence meanwhile."""
        self._is_paused = True
        self._update_reading()

    def resume(self) -> None:
        """Undo `pause`."""
        self._is_paused = False
        self._update_reading()
        self._make_ready()
        if self._is_receiving and self._protocol.has_events():
            self._dispatcher.loop.run_callback(self._wake_receiver)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake and return (RFC 6455, 7.1.2; seed: close).

        What was sent before goes out first; messages that were not delivered yet, and those that still come,
        are discarded. `wait_closed` waits for the end. A second call does nothing.

        Raises:
            TypeError: ``code`` is no int, or ``reason`` no str.
            ValueError: The code may not be sent (7.4), or the reason has over 123 octets.
        """
        check_close(code, reason)
        if self._is_open:
            self._start_closing(int(code), reason)

    def drop(self, code: int = 1002, reason: str = "", skip_close_frame: bool = False) -> None:
        """End the connection now (seed: drop): what waits is neither sent nor delivered.

        Called in a greenlet, ``close`` is emitted before this returns, unless another greenlet is in a listener of this
        connection: then as soon as that one returns. From the hub, the dispatcher emits it.

        Args:
            code: The close code; one that may not be sent needs ``skip_close_frame``.
            reason: At most 123 octets of UTF-8.
            skip_close_frame: Whether to end without a Close. None goes out either where a frame is half sent.

        Raises:
            TypeError: ``code`` is no int, or ``reason`` no str.
            ValueError: The code may not be sent (7.4), or the reason has over 123 octets.
        """
        check_close(1000 if skip_close_frame and isinstance(code, int) else code, reason)
        if self._is_closed:
            return
        self._deferred = None
        self._drop(code, reason, skip_close_frame, "local", f"we dropped it with {code}")
        current = getcurrent()
        if current is self._dispatcher.hub or self._is_close_emitted:
            return
        if self._deliverer is None:
            self._context.run(self._emit_close_now)
        elif self._deliverer is current:
            self._emit_close_now()

    def _emit_close_now(self) -> None:
        try:
            self._emit_close()
        except BaseException:  # noqa: BLE001
            self._on_listener_raised()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until the state is CLOSED; any number of greenlets may.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Returns:
            Whether the connection is closed.
        """
        return bool(self._make_closed_event().wait(timeout)) or self._is_closed


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


def _iterate_fragments(connection: WebSocketConnection, timeout: float | None) -> Iterator[str | bytes]:
    fin = False
    try:
        while not fin:
            piece, fin = connection._next_piece(timeout)
            if piece:
                yield piece
    finally:
        if not fin:
            connection._skip_stream()

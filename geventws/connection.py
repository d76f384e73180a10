"""`WebSocketConnection`: what an application holds (seed: WebSocketConnection).

The layers below it each answer one question: `geventws.transport` moves octets, `geventws.endpoint` lives and
ends, `geventws.deadlines` watches the time, `geventws.sending` and `geventws.delivery` are the two directions.
Here is what is known of a connection, and what stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from greenlet import getcurrent

from geventws.deflate import serialize_parameters
from geventws.delivery import Receiver
from geventws.dispatch import get_dispatcher
from geventws.endpoint import Handover
from geventws.frames import check_close

if TYPE_CHECKING:
    from collections.abc import Iterable

    from geventws.config import ConnectionConfig
    from geventws.deflate import DeflateParameters
    from geventws.headers import Extension
    from geventws.sockets import Stream

__all__ = ["WebSocketConnection"]


class WebSocketConnection(Receiver):
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
        deflate: DeflateParameters | None = None,
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
            deflate: The agreement about permessage-deflate, None for none.
            subprotocol: As the attribute; so are the others.
            request_path: The raw request target.
            remote_address: The client's address.
            remote_addresses: All addresses that are known of it.
            early: Octets that came with the opening handshake.
        """
        super().__init__(Handover(stream, get_dispatcher(), config, is_client, deflate, early))
        self.data: Any = None
        self.subprotocol = subprotocol
        self.extensions: list[Extension] = [] if deflate is None else [serialize_parameters(deflate)]
        self.request_path = request_path
        self.remote_address = remote_address
        self.remote_addresses = list(remote_addresses)
        self.websocket_version = 13

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
        """One sentence: who ended the connection, why, how long the peer was silent, and how much was unsent."""
        return self._describe_end()

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

    # Flow and end

    def pause(self) -> None:
        """Stop reading and delivering (seed: pause); the peer is not dropped for silence meanwhile.

        Raises:
            InvalidState: Called in another thread.
        """
        self._check_thread("pause")
        self._is_paused = True
        self._update_reading()

    def resume(self) -> None:
        """Undo `pause`.

        Raises:
            InvalidState: Called in another thread.
        """
        self._check_thread("resume")
        self._is_paused = False
        self._update_reading()
        self._make_ready()
        if self._is_receiving and self._protocol.has_events():
            self._dispatcher.loop.run_callback(self._wake_receiver)

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
            InvalidState: Called in another thread.
        """
        check_close(1000 if skip_close_frame and isinstance(code, int) else code, reason)
        self._check_thread("drop")
        self._drop_and_emit(code, reason, skip_close_frame, f"we dropped it with {code}")

    def _drop_for(self, why: str, code: int, reason: str) -> None:
        """Drop the connection for a reason that ``close_cause`` tells."""
        self._drop_and_emit(code, reason, False, f"we dropped it with {code} ({why})")

    def _drop_and_emit(self, code: int, reason: str, skip_close_frame: bool, cause: str) -> None:
        if self._is_closed:
            return
        self._drop(code, reason, skip_close_frame, "local", cause)
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

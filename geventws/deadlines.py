"""When a connection takes too long: keepalive, the closing handshake, output that does not move.

Strategy: there is one timer for the three. It never moves when octets arrive: when it fires it looks at
what happened since, and sleeps for what is left. It may run before the input of the same loop iteration
is read, so nobody is dropped for silence before one more read found nothing.

All of it is measured by the hub's own clock, which stands still while the hub does: a peer has its whole
time, whatever holds up this process.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from geventws.endpoint import Endpoint

if TYPE_CHECKING:
    from geventws.endpoint import Handover

__all__ = ["Timekeeper"]

#: A deadline that never comes.
NEVER = float("inf")


class Timekeeper(Endpoint):
    """Ping a silent peer, and end what takes longer than its time-out."""

    __slots__ = (
        "_latency",
        "_ping_payload",
        "_ping_sent_at",
        "_ping_time",
        "_stuck_since",
        "_timer",
        "_timer_deadline",
    )

    def __init__(self, handover: Handover) -> None:
        super().__init__(handover)
        self._timer: Any = None
        self._timer_deadline = NEVER
        self._latency: float | None = None
        # The progress of the output after which `send_timeout` was met once.
        self._stuck_since = NEVER
        self._ping_payload: bytes | None = None
        self._ping_sent_at = self._last_received
        # When the keepalive ping that waits for an answer went to the kernel; 0.0 without one.
        self._ping_time = 0.0

    # The timer

    def _start_timer(self) -> None:
        self._set_deadline(self._next_deadline(self._dispatcher.now()))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        self._timer_deadline = NEVER

    def _set_deadline(self, when: float) -> None:
        """Let the timer fire at ``when`` at the latest."""
        if when >= self._timer_deadline or self._stream.fd < 0:
            return
        self._stop_timer()
        self._timer_deadline = when
        # A millisecond at least: libuv has no finer timers, and one that is due at once again must not spin.
        self._timer = self._dispatcher.loop.timer(max(0.001, when - self._dispatcher.now()))
        # Without `update` the loop would count from its own, older idea of now.
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        try:
            self._stop_timer()
            self._check_deadlines(self._dispatcher.now())
            self._set_deadline(self._next_deadline(self._dispatcher.now()))
        except BaseException:  # noqa: BLE001
            # Nothing may leave a callback of the hub: the connection would live on without its timer.
            self._break_down(sys.exc_info()[1])

    def _check_deadlines(self, now: float) -> None:
        if now >= self._close_deadline:
            self._on_close_deadline()
        elif now >= self._send_deadline():
            self._on_send_timeout()
        if self._is_open and self._config.sends_keepalive_pings:
            self._check_keepalive(now)

    def _next_deadline(self, now: float) -> float:
        when = min(self._close_deadline, self._send_deadline())
        if self._is_open and self._config.sends_keepalive_pings:
            if self._ping_time == NEVER:
                return when
            if self._ping_time and self._last_received < self._ping_time:
                if self._config.drop_connection_on_keepalive_timeout:
                    return min(when, self._ping_time + self._config.keepalive_grace_period)
                return min(when, self._ping_time + self._config.keepalive_interval)
            when = min(when, (now if self._is_held() else self._last_received) + self._config.keepalive_interval)
        return when

    # Closing, and output that does not move

    def _limit_closing(self) -> None:
        if self._close_deadline == NEVER:
            self._close_deadline = self._dispatcher.now() + self._config.close_timeout
            self._set_deadline(self._close_deadline)

    def _on_close_deadline(self) -> None:
        self._close_deadline = NEVER
        if self._is_lingering:
            self._hang_up()
            return
        if not self._is_open and not self._protocol.is_close_received:
            # The peer's Close may have come, and our own hub had no time to read it.
            self._on_readable()
        if self._is_closed:
            return
        self._count_limit("close_timeout")
        timeout = self._config.close_timeout
        if self._is_open:
            # The application did not take the messages before the peer's Close, or before the violation, in time.
            self._settle()
        elif self._protocol.is_close_received:
            self._finish_closing(f"the peer did not take the rest within {timeout:.3f} s")
        else:
            self._lose(f"the peer sent no Close within {timeout:.3f} s", None)

    def _on_send_timeout(self) -> None:
        """Drop a peer that takes nothing, unless there is room now that our own hub had no time to fill."""
        if self._stuck_since != self._last_progress:
            # Timers come before the news of room: those have their turn before this comes again. To write at once
            # would find what little room the kernel makes for a peer that does not read, and count it as progress.
            self._stuck_since = self._last_progress
            return
        self._count_limit("send_timeout")
        stuck = self._dispatcher.now() - self._last_progress
        self._lose(f"the peer took no octet for {stuck:.3f} s", None)

    def _on_output_pending(self) -> None:
        self._set_deadline(self._send_deadline())

    def _send_deadline(self) -> float:
        if self._wire is None or self._config.send_timeout is None:
            return NEVER
        return self._last_progress + self._config.send_timeout

    # Keepalive

    def _check_keepalive(self, now: float) -> None:
        if self._is_held() or self._protocol.is_close_received or self._protocol.failure is not None:
            # We do not read: the peer's silence is ours. A ping all the same, for it breaks where the peer is gone.
            self._ping_time = 0.0
            is_due = now - self._ping_sent_at >= self._config.keepalive_interval
            if is_due and self._is_held() and not self._has_output():
                self._send_ping(b"")
                self._ping_payload = None
            return
        if self._ping_time == NEVER:
            return
        if not self._ping_time or self._last_received >= self._ping_time:
            if now - self._last_received >= self._config.keepalive_interval:
                self._ping_keepalive()
            else:
                self._ping_time = 0.0
        elif not self._config.drop_connection_on_keepalive_timeout:
            if now - self._ping_time >= self._config.keepalive_interval:
                self._ping_keepalive()
        elif now - self._ping_time >= self._config.keepalive_grace_period:
            self._check_once_more()

    def _ping_keepalive(self) -> None:
        self._send_ping(b"")
        # NEVER until the kernel has its last octet.
        self._ping_time = NEVER if self._has_output() else self._dispatcher.now()

    def _on_ping_sent(self) -> None:
        if self._ping_time == NEVER:
            # A ping passes the messages that wait: its answer may have come before they were through.
            self._ping_time = self._dispatcher.now() if self._last_received <= self._ping_sent_at else 0.0
            self._set_deadline(self._next_deadline(self._dispatcher.now()))

    def _check_once_more(self) -> None:
        """Drop a silent peer, unless something came that our own hub had no time to read."""
        before = self._last_received
        self._on_readable()
        if self._last_received > before or not self._is_open or self._is_held():
            return
        self._count_limit("keepalive_grace_period")
        self._lose(f"the peer did not answer a ping within {self._config.keepalive_grace_period:.3f} s", None)

    def _send_ping(self, payload: bytes) -> None:
        self._flush()
        self._ping_payload = payload
        self._ping_sent_at = self._dispatcher.now()
        self._write_control(self._protocol.serialize_frame(0x89, payload))

    def _note_pong(self) -> None:
        if self._protocol.latest_pong == self._ping_payload:
            self._latency = self._last_received - self._ping_sent_at
            self._ping_payload = None
        self._protocol.latest_pong = None

"""The protocol without input and output (RFC 6455): octets in, messages and replies out.

Strategy: `Protocol.receive` parses a buffer that its caller owns and shares among connections; what
is complete becomes one object in the inbox (``str``, ``bytes`` or an event), what is not is copied
out of the buffer before `receive` returns. A violation never raises out of `receive`: it is kept in
`Protocol.failure`, so that the messages before it are delivered first. The application's side goes
through `serialize`, `serialize_frame` and `serialize_close`, which give octets for the wire.

Both sides are this one class: a client masks what it sends and refuses masked frames (5.1).
"""

from __future__ import annotations

import os
import sys
from codecs import utf_8_decode
from typing import TYPE_CHECKING

from geventws import frames
from geventws.deflate import DEFLATE_TAIL
from geventws.errors import InvalidPayload, MessageTooBig, ProtocolError
from geventws.frames import MAX_CONTROL_PAYLOAD_SIZE, WebSocketFrame, parse_close
from geventws.inbox import Fragment, Inbox, Ping, Pong
from geventws.masking import (
    allocate,
    complete,
    count_octets,
    extend_unmasked,
    is_octets,
    unmask,
    unmask_into,
    unmask_text,
)

if TYPE_CHECKING:
    from geventws.deflate import Deflate
    from geventws.trace import FrameTrace

__all__ = ["HEADROOM", "Protocol"]

#: Octets that `Protocol.receive` needs free in front of the received ones: a header that was cut
#: off by the end of the last buffer, at most 13 of its 14 octets, goes there.
HEADROOM = 16
# RFC 7692, 6: the "Per-Message Compressed" bit is RSV1 of a message's first frame.
_RSV1 = 0x40
# What a compressed message may have above its limit on the wire: some, and the begin and end of a block a fragment.
_SLACK = 1024
_FRAGMENT_SLACK = 8
# Memory for a payload is taken as a whole once so much of it, one part in sixteen, is there.
_TRUST = 16
#: What no limit exceeds, so that the sum of two sizes fits into a Py_ssize_t.
_HUGE = sys.maxsize // 4


class Protocol(Inbox):
    """Keep the state of one connection's protocol.

    Attributes:
        replies: Serialised Pongs that wait to be sent.
        is_output_blocked: Set by the owner while the peer does not read: only the latest Pong is kept (5.5.3).
        failure: The violation that ended reading, or None.
        is_close_received: Whether the peer's Close came; then ``close_code`` and ``close_reason`` are its.
        sent_close_code: The code of our own Close once it is serialised, else None.
        latest_pong: The payload of the last Pong that came in, or None.
        plain_threshold: The octets of a frame where messages go out as they are, 0 where they are masked or compressed.
        trace: Where the headers of received frames are noted, None for nowhere.
    """

    __slots__ = (
        "_assembles",
        "_backlog",
        "_control",
        "_deflate",
        "_first_octet",
        "_fragment_count",
        "_head",
        "_inflated",
        "_is_client",
        "_is_compressed",
        "_is_skipping",
        "_is_streaming",
        "_key",
        "_left",
        "_max_fragment_count",
        "_max_frame_size",
        "_max_message_size",
        "_max_queued_size",
        "_max_reply_count",
        "_opcode",
        "_partial",
        "_phase",
        "_size",
        "_tail",
        "_threshold",
        "_whole",
        "auto_pong",
        "close_code",
        "close_reason",
        "failure",
        "is_close_received",
        "is_output_blocked",
        "latest_pong",
        "plain_threshold",
        "replies",
        "reports_control",
        "sent_close_code",
        "trace",
    )

    def __init__(
        self,
        *,
        is_client: bool = False,
        max_frame_size: int = 65536,
        max_message_size: int = 1048576,
        max_fragment_count: int = 65536,
        max_reply_count: int = 1,
        max_queued_size: int = _HUGE,
        fragmentation_threshold: int = 16384,
        assembles: bool = True,
        deflate: Deflate | None = None,
    ) -> None:
        """Start with an open connection.

        Args:
            is_client: Which side this is.
            max_frame_size: Payload octets of one received frame; more fails with 1009.
            max_message_size: Payload octets of one received message; more fails with 1009.
            max_fragment_count: Frames of one received message; more fails with 1009.
            max_reply_count: Pongs that are kept while the output is blocked, the latest ones.
            max_queued_size: What may be queued before compressed messages wait as they came: a buffer of small ones may
                inflate to a thousand times its size.
            fragmentation_threshold: Payload octets of one sent frame; 0 never fragments.
            assembles: Whether fragments become messages; else every frame is a `WebSocketFrame`.
            deflate: The agreement about permessage-deflate (RFC 7692); None for none.
        """
        super().__init__()
        self._is_client = is_client
        self._max_frame_size = min(max_frame_size, _HUGE)
        self._max_message_size = min(max_message_size, _HUGE)
        self._max_fragment_count = min(max_fragment_count, _HUGE)
        self._max_reply_count = min(max_reply_count, _HUGE)
        self._max_queued_size = max_queued_size
        self._threshold = fragmentation_threshold or _HUGE
        self.plain_threshold = 0 if is_client or deflate is not None else self._threshold
        self._deflate = deflate
        self._assembles = assembles
        self._is_streaming = False
        self._is_skipping = False
        self.auto_pong = True
        self.reports_control = False
        self.is_output_blocked = False
        self.replies: list[bytes] = []
        self.failure: ProtocolError | None = None
        self.is_close_received = False
        self.close_code = 0
        self.close_reason = ""
        self.sent_close_code: int | None = None
        self.latest_pong: bytes | None = None
        self.trace: FrameTrace | None = None
        self._head = b""
        self._backlog: bytearray | None = None
        # The frame in progress: octets that its payload still lacks, -1 between frames.
        self._left = -1
        self._first_octet = 0
        self._key = 0
        self._phase = 0
        self._control: bytearray | None = None
        # The message in progress: its opcode, 0 between messages.
        self._opcode = 0
        self._size = 0
        self._fragment_count = 0
        self._is_compressed = False
        self._partial: bytearray | None = None
        # The one frame of a message of which a good part is there.
        self._whole: bytes | bytearray | None = None
        # A compressed message whose frames are delivered as they came.
        self._inflated: bytearray | None = None
        self._tail = b""

    # What comes in

    def receive(self, buffer: bytearray, start: int, stop: int) -> None:
        """Parse ``buffer[start:stop]``; nothing of it is needed, or as it was, afterwards.

        After the peer's Close or a failure everything is ignored (5.5.1, 7.1.7).

        Args:
            buffer: Whole; the received octets, and at least `HEADROOM` before them, may be overwritten.
            start: Index of the first received octet.
            stop: Index behind the last one.
        """
        if self.is_close_received or self.failure is not None:
            return
        if self._backlog is not None:
            self._backlog += buffer[start:stop]
            return
        if self._head:
            start -= len(self._head)
            buffer[start : start + len(self._head)] = self._head
            self._head = b""
        try:
            self._parse(buffer, start, stop)
        except ProtocolError as error:
            self.failure = error
            self._partial = self._control = self._inflated = self._whole = None

    def receive_octets(self, octets: bytes | bytearray) -> None:
        """Parse octets that lie in no shared buffer."""
        buffer = bytearray(HEADROOM) + octets
        self.receive(buffer, HEADROOM, len(buffer))

    def has_backlog(self) -> bool:
        """Tell whether received octets wait for `parse_backlog`."""
        return self._backlog is not None

    def parse_backlog(self) -> None:
        """Go on with what was left because too much was queued."""
        backlog = self._backlog
        self._backlog = None
        if backlog is not None:
            self.receive_octets(backlog)

    def _parse(self, buffer: bytearray, start: int, stop: int) -> None:
        while not self.is_close_received:
            if self._left < 0 and self._deflate is not None and self.queued_size > self._max_queued_size:
                if start < stop:
                    self._backlog = buffer[start:stop]
                return
            if self._left < 0:
                size = self._parse_header(buffer, start, stop)
                if not size:
                    if start < stop:
                        self._head = bytes(buffer[start:stop])
                    return
                start += size
            if stop - start < self._left:
                if start < stop:
                    self._hold(buffer, start, stop)
                return
            size = self._left
            self._left = -1
            if self._first_octet & 0x08:
                self._end_control_frame(buffer, start, start + size)
            else:
                self._end_data_frame(buffer, start, start + size)
            start += size

    def _parse_header(self, buffer: bytearray, start: int, stop: int) -> int:
        """Parse a frame's header (5.2); return its size, or 0 where it is not complete."""
        if stop - start < 2:
            return 0
        if self.trace is not None:
            self.trace.note_received(buffer, start, stop)
        first = buffer[start]
        second = buffer[start + 1]
        if self._opcode or (first != 0x81 and first != 0x82):
            self._check_first_octet(first)
        if bool(second & 0x80) is self._is_client:
            # 5.1: a server closes on an unmasked frame, a client on a masked one.
            raise ProtocolError("a server's frame is masked" if self._is_client else "a client's frame is not masked")
        size = second & 0x7F
        if first & 0x08 and size > MAX_CONTROL_PAYLOAD_SIZE:
            raise ProtocolError("a control frame has a payload of more than 125 octets (5.5)")
        at = start + 2
        if size >= 126:
            at += 2 if size == 126 else 8
            if stop < at:
                return 0
            size = self._parse_extended_size(buffer, start + 2, at)
        if not first & 0x08:
            self._check_size(first, size)
        if not self._is_client:
            if stop < at + 4:
                return 0
            # An octet is an int in C, too small for its highest bit in this place: the last one has a name and a type.
            last = buffer[at + 3]
            self._key = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16 | last << 24
            at += 4
        if not first & 0x08:
            self._begin_data_frame(first, size)
        self._first_octet = first
        self._left = size
        self._phase = 0
        return at - start

    def _check_first_octet(self, first: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            self._check_reserved_bits(first, opcode)
        if 2 < opcode < 8 or opcode > 10:
            raise ProtocolError(f"opcode {opcode} is reserved (5.2)")
        if opcode & 0x08:
            if not first & 0x80:
                raise ProtocolError("a control frame is fragmented (5.5)")
        elif opcode and self._opcode:
            raise ProtocolError("a new message begins within a fragmented one (5.4)")
        elif not opcode and not self._opcode:
            raise ProtocolError("a continuation frame continues nothing (5.4)")

    def _check_reserved_bits(self, first: int, opcode: int) -> None:
        if self._deflate is None:
            raise ProtocolError("a reserved bit is set, and no extension was negotiated (5.2)")
        if first & 0x30:
            raise ProtocolError("a reserved bit is set that permessage-deflate does not use (5.2)")
        if opcode == 0 or opcode & 0x08:
            raise ProtocolError("RSV1 is set on a frame that does not begin a message (RFC 7692, 6.1)")

    def _parse_extended_size(self, buffer: bytearray, start: int, stop: int) -> int:
        size = int.from_bytes(buffer[start:stop], "big")
        if size >> 63:
            raise ProtocolError("the most significant bit of a payload length is set (5.2)")
        if size < (126 if stop - start == 2 else 65536):
            raise ProtocolError("a payload length is not in its shortest form (5.2)")
        # Anything above the limit is refused next: the exact number is of no use.
        return min(size, self._max_frame_size + 1)

    def _check_size(self, first: int, size: int) -> None:
        if size > self._max_frame_size:
            raise MessageTooBig(f"a frame has more than {self._max_frame_size} octets", "max_received_frame_size")
        if self._size + size > self._max_message_size:
            self._check_message_size(first, self._size + size)
        # A final empty frame only ends the message: senders that cut at a fixed size do it so.
        if not first & 0x0F and self._fragment_count >= self._max_fragment_count and (size or not first & 0x80):
            count = self._max_fragment_count
            raise MessageTooBig(f"a message has more than {count} fragments", "max_message_fragments")

    def _check_message_size(self, first: int, size: int) -> None:
        """Refuse a message that is too big; a compressed one is when it is inflated, and what does not shrink grows."""
        is_compressed = bool(first & _RSV1) if first & 0x0F else self._is_compressed
        # 9 bits an octet are the most that a compressor needs.
        slack = (self._max_message_size >> 3) + _SLACK
        if not first & 0x0F:
            slack += _FRAGMENT_SLACK * self._fragment_count
        if not is_compressed or size > self._max_message_size + slack:
            raise MessageTooBig(f"a message has more than {self._max_message_size} octets", "max_received_message_size")

    def _begin_data_frame(self, first: int, size: int) -> None:
        if first & 0x0F:
            self._opcode = first & 0x0F
            self._is_compressed = bool(first & _RSV1)
            self._fragment_count = 0
        self._size += size
        self._fragment_count += 1

    def _hold(self, buffer: bytearray, start: int, stop: int) -> None:
        """Copy the part of a payload that is there."""
        if self._first_octet & 0x08:
            if self._control is None:
                self._control = bytearray()
            extend_unmasked(self._control, buffer, start, stop, self._key, self._phase)
        elif self._whole is not None or self._begin_whole(stop - start):
            self._extend_whole(buffer, start, stop)
        else:
            self._extend_partial(buffer, start, stop, False)
        self._left -= stop - start
        self._phase += stop - start

    def _begin_whole(self, size: int) -> bool:
        """Make room for the payload of a frame that is a message, unless too little is there to trust its size."""
        have = self._phase
        if (
            (have + size) * _TRUST < have + self._left
            or not self._first_octet & 0x80
            or not self._first_octet & 0x0F
            or not self._assembles
            or self._is_streaming
            or self._is_skipping
            or self._is_compressed
        ):
            return False
        self._whole = allocate(have + self._left)
        if self._partial is not None:
            unmask_into(self._whole, 0, self._partial, 0, have, 0, 0)
            self._partial = None
        return True

    def _extend_whole(self, buffer: bytearray, start: int, stop: int) -> None:
        unmask_into(self._whole, self._phase, buffer, start, stop, self._key, self._phase)  # type: ignore[arg-type]
        if self._opcode == 1:
            self._check_text(bytes(self._whole[self._phase : self._phase + stop - start]))  # type: ignore[index]

    def _end_whole(self, buffer: bytearray, start: int, stop: int) -> None:
        self._extend_whole(buffer, start, stop)
        if self._tail:
            raise _broken_off()
        payload = complete(self._whole)  # type: ignore[arg-type]
        self._whole = None
        self._end_message(payload)

    def _keep_as_partial(self) -> None:
        """Let a message be no longer taken as a whole."""
        if self._whole is not None:
            self._partial = bytearray(self._whole[: self._phase])
            self._whole = None

    def _extend_partial(self, buffer: bytearray, start: int, stop: int, ends: bool) -> None:
        """Take a part of a data frame's payload; ``ends`` says that its message ends with it."""
        if self._partial is None:
            self._partial = bytearray()
        if self._is_compressed:
            self._extend_inflated(unmask(buffer, start, stop, self._key, self._phase), ends)
            return
        have = len(self._partial)
        extend_unmasked(self._partial, buffer, start, stop, self._key, self._phase)
        if self._opcode == 1:
            self._check_text(bytes(self._partial[have:]))

    def _extend_inflated(self, octets: bytes, ends: bool) -> None:
        inflated = self._inflate(octets, ends)
        if self._assembles:
            self._partial += inflated  # type: ignore[operator]
        else:
            # A frame is delivered as it came, and its message where it is a single frame's.
            self._partial += octets  # type: ignore[operator]
            if self._first_octet & 0x0F and self._first_octet & 0x80:
                if self._inflated is None:
                    self._inflated = bytearray()
                self._inflated += inflated
        if self._opcode == 1:
            self._check_text(inflated)

    def _inflate(self, octets: bytes, ends: bool) -> bytes:
        if self.is_discarding:
            # Nobody will see it, for only the peer's Close is waited for. What is there is no whole text then.
            self._tail = b""
            self._inflated = None
            if self._partial is not None:
                self._partial.clear()
            return b""
        return self._deflate.inflate(octets, ends)  # type: ignore[union-attr]

    def _check_text(self, octets: bytes) -> None:
        """Fail as soon as an octet makes it certain that a text is not UTF-8 (8.1)."""
        octets = self._tail + octets
        try:
            used = utf_8_decode(octets, "strict", False)[1]
        except UnicodeDecodeError as error:
            raise _not_utf_8(error) from None
        tail = octets[used:]
        if len(tail) == 2 and tail[0] == 0xED and tail[1] > 0x9F:
            # The decoder waits for the third octet here, but no surrogate is UTF-8 (RFC 3629, 3).
            raise InvalidPayload("text is not UTF-8: a surrogate (0xed)")
        self._tail = tail

    def _end_fragment(self, buffer: bytearray, start: int, stop: int) -> None:
        """Take the rest of a data frame that is not a whole message in one buffer."""
        fin = bool(self._first_octet & 0x80)
        self._extend_partial(buffer, start, stop, fin)
        if fin and self._tail:
            raise _broken_off()
        if not self._assembles:
            self._end_frame(fin)
        elif self._is_streaming or self._is_skipping:
            self._end_piece(fin)
        elif fin:
            payload = bytes(self._partial)  # type: ignore[arg-type]
            self._partial = None
            self._end_message(payload)

    def _end_data_frame(self, buffer: bytearray, start: int, stop: int) -> None:
        """Take the rest of a data frame, which is all of it mostly."""
        if self._whole is not None:
            self._end_whole(buffer, start, stop)
        elif (
            self._partial is not None
            or not self._first_octet & 0x80
            or not self._assembles
            or self._is_streaming
            or self._is_skipping
        ):
            self._end_fragment(buffer, start, stop)
        elif self._opcode == 1 and not self._is_compressed:
            self._end_text(buffer, start, stop)
        else:
            payload = unmask(buffer, start, stop, self._key, 0)
            self._end_message(self._inflate(payload, True) if self._is_compressed else payload)

    def _end_text(self, buffer: bytearray, start: int, stop: int) -> None:
        """Take a text that is a single frame, whole in the buffer, the way of nearly all of them."""
        try:
            message = unmask_text(buffer, start, stop, self._key)
        except UnicodeDecodeError as error:
            raise _not_utf_8(error) from None
        self._opcode = 0
        self._size = 0
        self._queue_message(message, stop - start)

    def _end_message(self, payload: bytes) -> None:
        message: str | bytes = payload
        if self._opcode == 1:
            try:
                message = payload.decode()
            except UnicodeDecodeError as error:
                raise _not_utf_8(error) from None
        self._opcode = 0
        self._size = 0
        self._queue_message(message, len(payload))

    def _end_frame(self, fin: bool) -> None:
        payload = bytes(self._partial)  # type: ignore[arg-type]
        self._partial = None
        self._queue(self._make_frame(payload))
        if not fin:
            return
        if self._first_octet & 0x0F:
            if self._inflated is not None:
                payload = bytes(self._inflated)
                self._inflated = None
            self._end_message(payload)
        else:
            self._opcode = 0
            self._size = 0

    def _end_piece(self, fin: bool) -> None:
        octets = bytes(self._partial)  # type: ignore[arg-type]
        payload: str | bytes = octets
        self._partial = None
        if self._opcode == 1:
            payload, used = utf_8_decode(octets, "strict", fin)
            if used < len(octets):
                self._partial = bytearray(octets[used:])
        is_skipping = self._is_skipping
        if fin:
            self._opcode = 0
            self._size = 0
            if is_skipping:
                # A stream that was asked for meanwhile is the next message's.
                self._is_skipping = False
            else:
                self._is_streaming = False
        if not is_skipping:
            self._queue(Fragment(payload, fin))

    def _end_control_frame(self, buffer: bytearray, start: int, stop: int) -> None:
        payload = unmask(buffer, start, stop, self._key, self._phase)
        if self._control is not None:
            payload = bytes(self._control) + payload
            self._control = None
        if not self._assembles:
            self._queue(self._make_frame(payload))
        opcode = self._first_octet & 0x0F
        if opcode == 8:
            self.close_code, self.close_reason = parse_close(payload)
            self.is_close_received = True
            self._partial = self._inflated = None
        elif opcode == 9:
            if self.auto_pong:
                self._reply(payload)
            if self.reports_control:
                self._queue(Ping(payload))
        else:
            self.latest_pong = payload
            if self.reports_control:
                self._queue(Pong(payload))

    def _make_frame(self, payload: bytes) -> WebSocketFrame:
        first = self._first_octet
        return WebSocketFrame(
            first & 0x0F, payload, bool(first & 0x80), bool(first & 0x40), bool(first & 0x20), bool(first & 0x10)
        )

    def _reply(self, payload: bytes) -> None:
        if self.sent_close_code is not None:
            return
        if self.is_output_blocked and len(self.replies) >= self._max_reply_count:
            # 5.5.3: "MAY elect to send a Pong frame for only the most recently processed Ping frame".
            del self.replies[: len(self.replies) - self._max_reply_count + 1]
        self.replies.append(self.serialize_frame(0x8A, payload))

    # Streaming

    def stream(self) -> None:
        """Give the pieces of one message, the one in progress or the next, as `Fragment` each."""
        self._keep_as_partial()
        self._is_streaming = True

    def skip_stream(self) -> None:
        """Drop the rest of a message whose pieces nobody wants any more."""
        self._keep_as_partial()
        self._drop_fragments()
        self._is_skipping = self._is_skipping or (self._is_streaming and self._opcode != 0)
        self._is_streaming = False

    # What goes out

    def serialize(self, opcode: int, message: str | bytes, compresses: bool = True) -> bytes:
        """Serialise a message, compressed where that was agreed and pays, in fragments above the threshold (5.4)."""
        if self.plain_threshold and is_octets(message) and count_octets(message) <= self.plain_threshold:
            return frames.serialize_unmasked(0x80 | opcode, message)
        payload = message if isinstance(message, bytes) else message.encode()
        if compresses and self._deflate is not None and len(payload) >= self._deflate.threshold:
            compressed = self._deflate.compress(payload)
            # Where the compressor keeps a context, the peer has to see all that it saw.
            if self._deflate.sharing_key is None or len(compressed) < len(payload):
                payload = compressed
                opcode |= _RSV1
        if self._is_client:
            count = max(1, -(-len(payload) // self._threshold))
            return frames.serialize_message(opcode, payload, self._threshold, [_make_key() for _ in range(count)])
        return frames.serialize_message(opcode, payload, self._threshold)

    def serialize_fragment(self, first: int, payload: bytes, compresses: bool) -> bytes:
        """Serialise one fragment of a message, all of which are compressed where that was agreed, or none."""
        if compresses and self._deflate is not None:
            if not first & 0x0F:
                # Without its last octets each piece but the message's last would end within a block (RFC 7692, 7.2.1).
                payload = b"" if first & 0x80 else DEFLATE_TAIL + self._deflate.compress(payload)
            else:
                payload = self._deflate.compress(payload)
                first |= _RSV1
        return self.serialize_frame(first, payload)

    def make_sharing_key(self) -> object:
        """Return what is equal for protocols that serialise a message to the same octets, None where none does."""
        if self._is_client or (self._deflate is not None and self._deflate.sharing_key is None):
            return None
        return self._threshold, self._deflate and (self._deflate.sharing_key, self._deflate.threshold)

    def compresses(self) -> bool:
        """Tell whether permessage-deflate was agreed: messages then have to be serialised in the order of the wire."""
        return self._deflate is not None

    def serialize_frame(self, first: int, payload: bytes) -> bytes:
        """Serialise one frame with the given first octet."""
        return frames.serialize_frame(first, payload, _make_key() if self._is_client else None)

    def serialize_close(self, code: int, reason: str) -> bytes:
        """Serialise our Close; from now on no Pong is made (5.5.1)."""
        self.sent_close_code = code
        self.replies.clear()
        return self.serialize_frame(0x88, frames.serialize_close(code, reason))


def _make_key() -> int:
    # 5.3: "The masking key needs to be unpredictable".
    return int.from_bytes(os.urandom(4), "little")


def _broken_off() -> InvalidPayload:
    return InvalidPayload("a text message ends within a character")


def _not_utf_8(error: UnicodeDecodeError) -> InvalidPayload:
    return InvalidPayload(f"text is not UTF-8: {error.reason} (0x{error.object[error.start]:02x})")

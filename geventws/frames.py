"""Frames (RFC 6455, 5.2): their numbers, their octets, and the payload of a Close.

Strategy: a frame on its way out is one ``bytes``: the header comes ready-made from a table where
the payload is small. Nothing here keeps state; `geventws.protocol` parses what comes in.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

try:
    import cython
except ImportError:
    from geventws import _cython as cython
from geventws.errors import InvalidPayload, ProtocolError
from geventws.masking import allocate, complete, count_octets, unmask, unmask_into

__all__ = [
    "MAX_CONTROL_PAYLOAD_SIZE",
    "CloseCode",
    "Opcode",
    "WebSocketFrame",
    "check_close",
    "is_sendable_close_code",
    "measure_message",
    "next_frame",
    "parse_close",
    "serialize_close",
    "serialize_frame",
    "serialize_message",
    "serialize_unmasked",
]

#: 5.5: "All control frames MUST have a payload length of 125 bytes or less".
MAX_CONTROL_PAYLOAD_SIZE = 125


class Opcode(enum.IntEnum):
    """Name the opcodes of RFC 6455, 11.8."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(enum.IntEnum):
    """Name the close codes of the IANA registry (RFC 6455, 11.7)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_FRAME_PAYLOAD_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


class WebSocketFrame(NamedTuple):
    """Hold one frame: what `frame` listeners get and ``send_frame`` takes (seed: WebSocketFrame).

    Attributes:
        opcode: One of `Opcode`.
        payload: The octets, unmasked.
        fin: Whether the frame is the last one of its message.
        rsv1: The first reserved bit; so are ``rsv2`` and ``rsv3``.
    """

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv1: bool = False
    rsv2: bool = False
    rsv3: bool = False

    @property
    def first_octet(self) -> int:
        """The octet that FIN, the reserved bits and the opcode make."""
        return self.fin << 7 | self.rsv1 << 6 | self.rsv2 << 5 | self.rsv3 << 4 | self.opcode


_HEADER_16 = struct.Struct("!BBH")
_HEADER_64 = struct.Struct("!BBQ")
#: First octet → the two octets of a header without mask, by payload size below 126.
_SMALL_HEADERS = {
    first: [bytes((first, size)) for size in range(126)]
    for first in (*(fin | opcode for fin in (0, 0x80) for opcode in (0, 1, 2)), 0x88, 0x89, 0x8A)
}
_TEXT_HEADERS = _SMALL_HEADERS[0x81]
_BINARY_HEADERS = _SMALL_HEADERS[0x82]


def serialize_frame(first: int, payload: bytes, key: int | None = None) -> bytes:
    """Serialise one frame (5.2).

    Args:
        first: The first octet: FIN, reserved bits and opcode.
        payload: The octets, unmasked.
        key: The masking key as a little-endian number; None on the server's side.
    """
    size = len(payload)
    if key is not None:
        return _serialize_masked(first, payload, key)
    if size < 126:
        if first == 0x81:
            return _TEXT_HEADERS[size] + payload
        if first == 0x82:
            return _BINARY_HEADERS[size] + payload
    return _serialize_header(first, size, 0) + payload


def _serialize_header(first: int, size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes((first, size | mask_bit))
    if size < 65536:
        return _HEADER_16.pack(first, 126 | mask_bit, size)
    return _HEADER_64.pack(first, 127 | mask_bit, size)


def serialize_unmasked(first: int, message: str | bytes) -> bytes:
    """Serialise one frame of a server's from a message of which `geventws.masking.is_octets` is true."""
    if cython.compiled:
        size = count_octets(message)
        octets = allocate(size + _measure_header(size))
        at = geventws_write_header(address(octets), first, size)  # type: ignore[name-defined]  # noqa: F821
        unmask_into(octets, at, message, 0, size, 0, 0)  # type: ignore[arg-type]
        return octets  # type: ignore[return-value]
    return serialize_frame(first, message if isinstance(message, bytes) else message.encode())


def measure_message(size: int, threshold: int) -> int:
    """Return the octets of a message of ``size`` octets, not masked, in frames of at most ``threshold`` (5.2, 5.4)."""
    others = max(0, -(-size // threshold) - 1)
    return size + others * _measure_header(threshold) + _measure_header(size - others * threshold)


def _measure_header(size: int) -> int:
    return 2 if size < 126 else 4 if size < 65536 else 10


def _serialize_masked(first: int, payload: bytes, key: int) -> bytes:
    header = _serialize_header(first, len(payload), 0x80)
    return header + key.to_bytes(4, "little") + unmask(payload, 0, len(payload), key, 0)


def serialize_message(opcode: int, payload: bytes, threshold: int, keys: list[int] | None = None) -> bytes:
    """Serialise a message as frames of at most ``threshold`` payload octets (5.4).

    Args:
        opcode: TEXT or BINARY.
        payload: The whole message.
        threshold: Payload octets a frame; 0 for one frame, whatever the size.
        keys: The client's masking keys, one a frame; None on the server's side.
    """
    size = len(payload)
    if not threshold or size <= threshold:
        return serialize_frame(0x80 | opcode, payload, keys[0] if keys else None)
    count = -(-size // threshold)
    # One copy of the payload, into place: the pieces and then their sum would be two.
    octets = allocate(measure_message(size, threshold) + (4 * count if keys else 0))
    at = 0
    first = opcode
    for index in range(count):
        start = index * threshold
        stop = min(start + threshold, size)
        if stop == size:
            first |= 0x80
        key = keys[index] if keys else 0
        header = _serialize_header(first, stop - start, 0x80 if keys else 0)
        if keys:
            header += key.to_bytes(4, "little")
        unmask_into(octets, at, header, 0, len(header), 0, 0)
        at += len(header)
        unmask_into(octets, at, payload, start, stop, key, 0)
        at += stop - start
        first = Opcode.CONTINUATION.value
    return complete(octets)


def next_frame(octets: bytes, start: int) -> int:
    """Return the index behind the frame that begins at ``start`` of serialised ``octets``."""
    size = octets[start + 1] & 0x7F
    header = 6 if octets[start + 1] & 0x80 else 2
    if size == 126:
        size = octets[start + 2] << 8 | octets[start + 3]
        header += 2
    elif size == 127:
        size = int.from_bytes(octets[start + 2 : start + 10], "big")
        header += 8
    return start + header + size


def is_sendable_close_code(code: int) -> bool:
    """Tell whether a close code may stand in a Close frame (7.4.1, 7.4.2 and the IANA registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def parse_close(payload: bytes) -> tuple[int, str]:
    """Parse the payload of a Close frame (5.5.1).

    Args:
        payload: 0 to 125 octets, unmasked.

    Returns:
        The status code and the reason; ``(1005, "")`` when the payload is empty.

    Raises:
        ProtocolError: One octet only, or a code that may not be sent (7.4).
        InvalidPayload: The reason is not UTF-8.
    """
    if not payload:
        return CloseCode.NO_STATUS_RECEIVED.value, ""
    if len(payload) == 1:
        raise ProtocolError("a Close frame has a payload of one octet (5.5.1: none, or two and more)")
    code = payload[0] << 8 | payload[1]
    if not is_sendable_close_code(code):
        raise ProtocolError(f"close code {code} may not be sent (7.4)")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"the close reason is not UTF-8 at octet {error.start}") from None


def check_close(code: int, reason: str) -> bytes:
    """Check what an application wants to close with, and return the payload of its Close frame.

    Raises:
        TypeError: ``code`` is no int, or ``reason`` no str.
        ValueError: The code may not be sent (7.4), or the reason has over 123 octets of UTF-8 (5.5).
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"close code must be an int, not {type(code).__name__}")
    if not isinstance(reason, str):
        raise TypeError(f"close reason must be a str, not {type(reason).__name__}")
    if not is_sendable_close_code(code):
        raise ValueError(f"close code {code} may not be sent: 1000-1003, 1007-1014 and 3000-4999 may (7.4)")
    octets = reason.encode()
    if len(octets) > MAX_CONTROL_PAYLOAD_SIZE - 2:
        raise ValueError(f"close reason has {len(octets)} octets of UTF-8; at most 123 fit into a Close frame (5.5)")
    return code.to_bytes(2, "big") + octets


def serialize_close(code: int, reason: str) -> bytes:
    """Return the payload of a Close frame; 1005 gives the empty one, a long reason is cut at a character."""
    if code == CloseCode.NO_STATUS_RECEIVED:
        return b""
    octets = reason.encode()[: MAX_CONTROL_PAYLOAD_SIZE - 2]
    return code.to_bytes(2, "big") + octets.decode(errors="ignore").encode()

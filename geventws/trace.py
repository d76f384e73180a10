"""The last frames' headers of a connection, for the log of how it ended.

Strategy: a trace exists only where somebody will read it, so each place that moves frames asks for no more than
whether there is one. It keeps headers alone: what an application sends is not its business.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from geventws.frames import Opcode, next_frame

__all__ = ["TRACE_LENGTH", "FrameTrace"]

#: Frames that are kept: a few messages in both directions, and what went wrong among them.
TRACE_LENGTH = 16
_FLAGS = ((0x80, "FIN"), (0x40, "RSV1"), (0x20, "RSV2"), (0x10, "RSV3"))
#: Octets of a header's extended length, by what stands in the length field (5.2).
_EXTENDED_SIZES = {126: 2, 127: 8}


class _Header(NamedTuple):
    is_sent: bool
    first: int
    is_masked: bool
    #: None where the octets of the length are not there yet.
    size: int | None


class FrameTrace:
    """Keep what the last frames were, in both directions."""

    __slots__ = ("_cut", "_headers", "_is_client")

    def __init__(self, *, is_client: bool) -> None:
        self._is_client = is_client
        self._headers: deque[_Header] = deque(maxlen=TRACE_LENGTH)
        # The last header that came, where more of it is to come: it is noted again then.
        self._cut: _Header | None = None

    def note_received(self, octets: bytes | bytearray, start: int, stop: int) -> None:
        """Note the header that begins at ``start``; of it, and of what follows, ``octets[start:stop]`` is there.

        It is noted before it is checked: one that is refused is the one that matters.

        Args:
            octets: A buffer.
            start: Where the header begins; two octets of it are there.
            stop: Where the received octets end.
        """
        if self._cut is not None:
            # By identity: an older frame may look the same.
            self._headers = deque((each for each in self._headers if each is not self._cut), maxlen=TRACE_LENGTH)
        header = _parse_header(octets, start, stop, is_sent=False)
        self._headers.append(header)
        is_cut = header.size is None or (header.is_masked and stop < _find_mask(octets, start) + 4)
        self._cut = header if is_cut else None

    def note_sent(self, octets: bytes, start: int, stop: int) -> None:
        """Note the headers of the whole frames in ``octets[start:stop]``."""
        while start < stop:
            self._headers.append(_parse_header(octets, start, stop, is_sent=True))
            start = next_frame(octets, start)

    def describe(self) -> str:
        """Return the frames as text, the oldest first, each with the octets of its payload."""
        return ", ".join(map(self._describe, self._headers))

    def _describe(self, header: _Header) -> str:
        opcode = header.first & 0x0F
        words = [
            "sent" if header.is_sent else "received",
            Opcode(opcode).name if opcode in Opcode.__members__.values() else f"opcode {opcode}",
            *(name for flag, name in _FLAGS if header.first & flag),
        ]
        # 5.1: what a client sends is masked, what a server sends is not.
        if header.is_masked is not (header.is_sent is self._is_client):
            words.append("masked" if header.is_masked else "unmasked")
        words.append("?" if header.size is None else str(header.size))
        return " ".join(words)


def _parse_header(octets: bytes | bytearray, start: int, stop: int, *, is_sent: bool) -> _Header:
    second = octets[start + 1]
    size: int | None = second & 0x7F
    mask_at = _find_mask(octets, start)
    if mask_at > start + 2:
        size = int.from_bytes(octets[start + 2 : mask_at], "big") if stop >= mask_at else None
    return _Header(is_sent, octets[start], bool(second & 0x80), size)


def _find_mask(octets: bytes | bytearray, start: int) -> int:
    """Return where the masking key is, or the payload of a frame without one."""
    return start + 2 + _EXTENDED_SIZES.get(octets[start + 1] & 0x7F, 0)

"""Read the head of a request within bounds; pywsgi alone takes a hundred lines of 64 KiB each.

Strategy: nearly every head lies in the reader's buffer as a whole, and is measured there, once. Only one that does
not, or that is not as usual, is read line by line. Either way http.client gets the very octets that came, to parse them
as ever. It takes a third of the time that a new connection costs, so an upgrade request whose head is as every
WebSocket client writes it is parsed here instead.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from io import BufferedReader

__all__ = ["Fields", "HeadTooLarge", "UpgradeHead", "parse_upgrade", "read_fields"]

#: The longest line that http.client takes, its end included.
LONGEST_LINE = 65536
#: The largest head that is parsed here: within it no line is too long for pywsgi and http.client, and up to Python 3.13
#: no more lies in a reader's buffer.
LARGEST_UPGRADE = 8192

# RFC 9112, 3 to 5, without what is obsolete, lenient or rare: all that is left means the same to each parser.
_match_head = re.compile(
    r"GET ([!-~]+) HTTP/1\.1\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n"
).match
_find_fields = re.compile(r"([^:]+):[\t ]*([^\r]*)\r\n").findall


class HeadTooLarge(ValueError):
    """Report a head that exceeds a limit: a ValueError, which pywsgi takes for the client's fault.

    Attributes:
        limit: The option's name.
        value: Its value.
    """

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"the request head has more than {value} {'octets' if limit == 'max_head_size' else 'fields'}")
        self.limit = limit
        self.value = value


class Fields(BytesIO):
    """Be the file that http.client reads the fields from.

    It counts what it reads, the empty line as well, and refuses the hundred-and-first; so it gets several lines at
    once, which were counted before. Whoever asks in another way gets them one by one.
    """

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return a line; as many as fit into it for http.client."""
        if size != LONGEST_LINE + 1:
            return super().readline(size)
        start = self.tell()
        lines = self.read(LONGEST_LINE)
        end = lines.rfind(b"\n") + 1
        if not end:
            # Nothing is left, an end within a line, or one that is too long.
            return lines + self.read(1)
        self.seek(start + end)
        return lines[:end]


class UpgradeHead(NamedTuple):
    """Hold the head of an upgrade request.

    Attributes:
        size: Its octets, with the empty line.
        target: As the request line has it.
        fields: The names and values in order, as they came but for white space before a value.
    """

    size: int
    target: str
    fields: list[tuple[str, str]]


def parse_upgrade(octets: bytes, max_size: int, max_count: int) -> UpgradeHead | None:
    """Parse the head of an upgrade request.

    Args:
        octets: What came, from the first octet of the request on.
        max_size: The octets that the head may have.
        max_count: The lines that its fields may have.

    Returns:
        The head; None for all that needs a closer look: any other request, one with a body, a head that is not
        complete, has a line that is not as usual, exceeds a limit, or has more than 8 KiB.
    """
    size = octets.find(b"\r\n\r\n") + 4
    if not 4 < size <= min(max_size, LARGEST_UPGRADE) or octets[:4] != b"GET ":
        return None
    text = octets[:size].decode("latin-1")
    lower = text.lower()
    if "\r\nupgrade:" not in lower or "\r\ncontent-length:" in lower or "\r\ntransfer-encoding:" in lower:
        return None
    match = _match_head(text)
    if match is None:
        return None
    fields = _find_fields(match[2])
    return UpgradeHead(size, match[1], fields) if len(fields) <= max_count else None


def read_fields(rfile: BufferedReader, line_size: int, max_size: int, max_count: int) -> Fields:
    """Read the fields of a head, and the empty line behind them, or what there is before the end.

    Blocks until they have come.

    Args:
        rfile: Where the request line was read from.
        line_size: The size of that line.
        max_size: The octets that both may have together.
        max_count: The lines that the fields may have.

    Raises:
        HeadTooLarge: There is more; what was read by then is lost.
    """
    left = max_size - line_size
    if left <= 0:
        raise HeadTooLarge("max_head_size", max_size)
    buffered = rfile.peek(1)
    size = buffered.find(b"\n\r\n") + 3
    is_usual = (
        2 < size <= left
        and buffered.find(b"\n\n", 0, size) < 0
        and buffered[:1] not in (b"\r", b"\n")
        and buffered.count(b"\n", 0, size) <= max_count + 1
    )
    return Fields(rfile.read(size) if is_usual else _read_lines(rfile, left, max_size, max_count))


def _read_lines(rfile: BufferedReader, left: int, max_size: int, max_count: int) -> bytes:
    lines: list[bytes] = []
    while True:
        line = rfile.readline(min(left, LONGEST_LINE) + 1)
        left -= len(line)
        if left < 0:
            raise HeadTooLarge("max_head_size", max_size)
        is_end = line in (b"\r\n", b"\n", b"")
        if not is_end and len(lines) == max_count:
            raise HeadTooLarge("max_header_count", max_count)
        lines.append(line)
        # A line that is too long is for http.client to refuse, in the way of all that it cannot parse.
        if is_end or len(line) > LONGEST_LINE:
            return b"".join(lines)

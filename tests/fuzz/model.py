"""A second reading of RFC 6455, 5 and 7: slow, from whole octets, and without a look at `geventws.protocol`."""

from __future__ import annotations

import zlib
from typing import NamedTuple

#: More final blocks than these in one message are a flood.
MAX_FINAL_BLOCKS = 1024


class Rules(NamedTuple):
    """What the two ends of a connection have agreed on, or one of them demands."""

    is_client: bool
    max_frame_size: int
    max_message_size: int
    max_fragment_count: int = 65536
    assembles: bool = True
    reports_control: bool = False
    #: The peer's window of permessage-deflate and whether it keeps a context; None without the extension.
    deflate: tuple[int, bool] | None = None


class Violation(Exception):
    """What ends reading; where text is compressed, two things may be wrong, and either may be noticed first."""

    def __init__(self, codes):
        super().__init__(codes)
        self.codes = set(codes)


class Frame(NamedTuple):
    first: int
    payload: bytes
    is_complete: bool


class Reading:
    """What a receiver makes of octets.

    Attributes:
        events: ``("message", str | bytes)``, ``("frame", first, payload)``, ``("ping", payload)`` and the like.
        close: The peer's close code and reason, or None.
        codes: The close codes of which one tells of the violation that ended reading; ``{None}`` where there was none.
        pings: The payloads to be answered; ``latest_pong`` is that of the last Pong.
    """

    def __init__(self, octets, rules, *, inflates=True):
        self.rules = rules
        self.inflates = inflates
        self.events = []
        self.close = self.latest_pong = None
        self.codes = {None}
        self.pings = []
        self.opcode = self.count = 0
        self.wire = self.message = b""
        self.is_compressed = False
        self.context = None
        try:
            self.read(octets)
        except Violation as violation:
            self.codes = violation.codes

    def read(self, octets):
        at = 0
        while self.close is None:
            head = self.read_head(octets, at)
            if head is None:
                return
            first, size, key, at = head
            payload = octets[at : at + size]
            if any(key):
                payload = bytes(octet ^ key[index & 3] for index, octet in enumerate(payload))
            self.take(Frame(first, payload, len(payload) == size))
            if len(payload) < size:
                return
            at += size

    def read_head(self, octets, at):
        """Return first octet, payload size, masking key and the payload's index; None where octets lack."""
        if len(octets) < at + 2:
            return None
        first, second = octets[at], octets[at + 1]
        self.check_first_octet(first)
        # 5.1: a client masks, a server does not.
        check(bool(second & 128) is not self.rules.is_client)
        size = second & 127
        # 5.5
        check(first & 8 == 0 or size <= 125)
        at += 2
        if size > 125:
            width, least = (2, 126) if size == 126 else (8, 65536)
            if len(octets) < at + width:
                return None
            size = int.from_bytes(octets[at : at + width], "big")
            at += width
            # 5.2: "the minimal number of bytes MUST be used", "the most significant bit MUST be 0".
            check(least <= size < 1 << 63)
        if first & 8 == 0:
            check(self.has_room(first, size), 1009)
        if self.rules.is_client:
            return first, size, b"\0\0\0\0", at
        return None if len(octets) < at + 4 else (first, size, octets[at : at + 4], at + 4)

    def has_room(self, first, size):
        rules = self.rules
        is_first = first & 15 != 0
        total = size + (0 if is_first else len(self.wire))
        # What is compressed counts when it is inflated; on the wire it may be a little longer.
        is_compressed = first & 64 != 0 if is_first else self.is_compressed
        slack = rules.max_message_size // 8 + 1024 if is_compressed else 0
        # An empty last frame only ends the message.
        is_one_too_many = not is_first and self.count >= rules.max_fragment_count and (size > 0 or first & 128 == 0)
        return size <= rules.max_frame_size and total <= rules.max_message_size + slack and not is_one_too_many

    def check_first_octet(self, first):
        fin, reserved, opcode = first & 128, first & 0x70, first & 15
        # RFC 7692, 6: RSV1 of a message's first frame.
        check(not reserved or (self.rules.deflate and reserved == 64 and opcode in (1, 2)))
        check(opcode in (0, 1, 2, 8, 9, 10))
        if opcode >= 8:
            check(fin)
        else:
            # 5.4: a continuation continues something, and nothing else may come in between.
            check((opcode == 0) is (self.opcode != 0))

    def take(self, frame):
        if frame.first & 8:
            if frame.is_complete:
                self.take_control(frame)
            return
        if frame.first & 15:
            self.opcode = frame.first & 15
            self.is_compressed = frame.first & 64 != 0
            self.count = 0
            self.wire = b""
        self.count += 1
        self.wire += frame.payload
        is_over = frame.is_complete and frame.first & 128 != 0
        codes = self.look_at_message(is_over)
        check(not codes, *codes)
        if frame.is_complete:
            self.end_frame(frame, is_over)

    def look_at_message(self, is_over):
        """Return what may be wrong with the message as far as it has come."""
        codes = set()
        if not self.is_compressed:
            self.message = self.wire
        elif self.inflates:
            codes = self.inflate(is_over)
        else:
            self.message = b""
        if self.opcode == 1 and not (is_text if is_over and not codes else may_become_text)(self.message):
            codes.add(1007)
        return codes

    def inflate(self, is_over):
        """Inflate the message as far as it has come (RFC 7692, 7.2.2); return what is wrong with it."""
        bits, takes_over = self.rules.deflate
        inflater = self.context and self.context.copy()
        self.message = b""
        codes = set()
        final_count = 0
        # 7.2.3.6: an empty message may come without an octet.
        tail = b"\0\0\xff\xff" if is_over and self.wire else b""
        try:
            for octet in self.wire + tail:
                inflater = inflater or zlib.decompressobj(-bits)
                self.message += inflater.decompress(bytes([octet]))
                if inflater.eof:
                    inflater = None
                    final_count += 1
                if len(self.message) > self.rules.max_message_size or final_count > MAX_FINAL_BLOCKS:
                    # It may be corrupt soon afterwards, too, and zlib may tell of that first.
                    codes.add(1009)
        except zlib.error:
            # What the last octet made is lost, and may have been too much: four matches of 258 octets, or more.
            codes |= {1007, 1009} if len(self.message) + 2064 > self.rules.max_message_size else {1007}
        if is_over:
            is_between_blocks = inflater is None or begins_block(inflater)
            # Who ends with a final block may leave out the octet behind it.
            if not (is_between_blocks or final_count):
                codes.add(1007)
            self.context = inflater if takes_over and is_between_blocks else None
        return codes

    def end_frame(self, frame, is_over):
        if not self.rules.assembles:
            self.events.append(("frame", frame.first, frame.payload))
        if is_over:
            if self.rules.assembles or frame.first & 15:
                self.events.append(("message", self.message.decode() if self.opcode == 1 else self.message))
            self.opcode = 0

    def take_control(self, frame):
        opcode, payload = frame.first & 15, frame.payload
        if not self.rules.assembles:
            self.events.append(("frame", frame.first, payload))
        if opcode == 8:
            self.close = read_close(payload)
        else:
            if opcode == 9:
                self.pings.append(payload)
            else:
                self.latest_pong = payload
            if self.rules.reports_control:
                self.events.append(("ping" if opcode == 9 else "pong", payload))


def check(condition, *codes):
    if not condition:
        raise Violation(codes or {1002})


def read_close(payload):
    """Read a Close frame's payload (5.5.1, 7.4 and the IANA registry)."""
    if not payload:
        return 1005, ""
    check(len(payload) > 1)
    code = int.from_bytes(payload[:2], "big")
    check(may_be_sent(code))
    check(is_text(payload[2:]), 1007)
    return code, payload[2:].decode()


def may_be_sent(code):
    return code in {1000, 1001, 1002, 1003, *range(1007, 1015)} or 3000 <= code < 5000


def begins_block(inflater):
    """Tell whether the octets so far end where a deflate block may begin: there an empty one makes nothing.

    It seldom makes nothing elsewhere, and what comes next is rubbish then; to have the same one, it is not taken back.
    """
    try:
        return inflater.decompress(b"\0\0\0\xff\xff") == b""
    except zlib.error:
        return False


def is_text(octets):
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def may_become_text(octets):
    """Tell whether octets are the beginning of UTF-8: whether the rest of a character would make them whole."""
    return any(is_text(octets + rest * count) for count in range(4) for rest in (b"\x80", b"\xbf"))

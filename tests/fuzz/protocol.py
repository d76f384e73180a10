"""Targets for `geventws.protocol`: octets of any kind, and two ends that talk."""

from __future__ import annotations

import sys

from geventws import frames
from geventws.deflate import (
    Compressors,
    Deflate,
    DeflateOptions,
    DeflateParameters,
    accept_offer,
    check_answer,
    make_offer,
    serialize_parameters,
)
from geventws.errors import InvalidPayload, MessageTooBig, ProtocolError
from geventws.frames import WebSocketFrame
from geventws.inbox import QUEUE_OVERHEAD, Fragment, Ping, Pong
from geventws.prepared import PreparedMessage
from geventws.protocol import HEADROOM, Protocol

from . import model

#: What no limit exceeds, so that the sum of two sizes is still a C number.
HUGE = sys.maxsize // 4
#: What the two halves of the second octet choose from; the first ones are the defaults.
FRAME_SIZES = (65536, 1, 2, 5, 16, 125, 126, 127, 200, 300, 1000, 65535, 65537, 1 << 20, 1 << 40, sys.maxsize)
MESSAGE_SIZES = (1 << 20, 1, 2, 7, 20, 125, 126, 130, 250, 400, 2000, 65535, 65536, 70000, 1 << 40, sys.maxsize)
#: Filler octets behind the input, which is too short to hold the larger lengths; most values of the octet mean none.
FILLERS = (1, 3, 125, 126, 127, 200, 1000, 5000, 65520, 65530, 65535, 65536, 65537, 65550, 70000, 140000)
FRAGMENT_COUNTS = (65536, 1, 2, 3, 5, 8, 20, 65536)
QUEUED_SIZES = (HUGE, 0, 200, 1000)
WINDOWS = (None, 8, 9, 12)
THRESHOLDS = (16384, 0, 1, 2, 3, 7, 64, 125, 126, 127, 128, 250, 1000, 65535, 65536, 100000)
HEAD_SIZE = 8
#: What overlays the buffer around the received octets: neither zero, nor valid as a first octet, nor UTF-8.
RUBBISH = b"\xfb"
OPTIONS = DeflateOptions(threshold=0)
COMPRESSORS = Compressors()
CODE_BY_FAILURE = {type(None): None, ProtocolError: 1002, InvalidPayload: 1007, MessageTooBig: 1009}


class Script:
    """What an input of the target `protocol` asks for.

    Octet 0 has flags, 1 the limits, 2 how the octets are cut; 3 says how much filler follows (from 240 on), or has
    further limits. Then come two actions of the application with the number of octets before
    each. The octets that are received follow.
    """

    def __init__(self, data):
        head = data[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0")
        flags, sizes, self.seed, more = head[:4]
        filler, more = (FILLERS[more & 15], 0) if more >= 240 else (0, more)
        self.agreed = DeflateParameters(
            # The largest window: zlib finds a distance beyond a smaller one, or not, as the octets are cut.
            server_no_context_takeover=bool(flags & 64),
            client_no_context_takeover=bool(flags & 64),
        )
        self.rules = model.Rules(
            is_client=bool(flags & 1),
            max_frame_size=min(FRAME_SIZES[sizes & 15], HUGE),
            max_message_size=min(MESSAGE_SIZES[sizes >> 4], HUGE),
            max_fragment_count=FRAGMENT_COUNTS[more & 7],
            assembles=not flags & 2,
            reports_control=bool(flags & 4),
            deflate=(15, not flags & 64) if flags & 32 else None,
        )
        self.max_reply_count = 1 + (more >> 3 & 3)
        self.max_queued_size = QUEUED_SIZES[more >> 5 & 3]
        self.auto_pong = not flags & 8
        self.is_output_blocked = bool(flags & 16)
        self.octets = data[HEAD_SIZE:] + b"a" * filler
        self.actions = [(head[5], head[4] % len(ACTIONS)), (head[5] + head[7], head[6] % len(ACTIONS))]
        self.action_names = {ACTIONS[number].__name__ for _, number in self.actions}

    def make_protocol(self, protocol_type):
        rules = self.rules
        protocol = protocol_type(
            is_client=rules.is_client,
            # The largest limit is a promise of the constructor, which takes larger ones, too.
            max_frame_size=rules.max_frame_size if rules.max_frame_size < HUGE else sys.maxsize,
            max_message_size=rules.max_message_size if rules.max_message_size < HUGE else sys.maxsize,
            max_fragment_count=rules.max_fragment_count,
            max_reply_count=self.max_reply_count,
            max_queued_size=self.max_queued_size,
            assembles=rules.assembles,
            deflate=self.make_deflate() if rules.deflate else None,
        )
        protocol.reports_control = rules.reports_control
        protocol.auto_pong = self.auto_pong
        protocol.is_output_blocked = self.is_output_blocked
        return protocol

    def make_deflate(self):
        rules = self.rules
        return Deflate(
            self.agreed, OPTIONS, COMPRESSORS, is_client=rules.is_client, max_message_size=rules.max_message_size
        )

    def read(self):
        """Return the second reading."""
        reading = model.Reading(self.octets, self.rules)
        if not self.rules.deflate or "discard" not in self.action_names:
            return reading
        # What is discarded is not inflated any more.
        before = min(offset for offset, number in self.actions if ACTIONS[number] is discard)
        reading = model.Reading(self.octets[:before], self.rules)
        if reading.codes == {None} and reading.close is None:
            events = reading.events
            reading = model.Reading(self.octets, self.rules, inflates=False)
            reading.events = events
        return reading

    def cut(self):
        """Yield the sizes of the pieces, for ever: 0 means octet by octet."""
        if not self.seed:
            # Large inputs are filler for the greatest part.
            yield from [1] * 400
            while True:
                yield 997
        scale = 1 if len(self.octets) < 2000 else 512
        state = self.seed
        while True:
            yield (1 + (state >> 3)) * scale
            state = (state * 5 + 13) & 255


class Run:
    """One protocol that receives a script's octets, and all that could be seen of it."""

    def __init__(self, script, steps, protocol_type=Protocol):
        self.script = script
        self.protocol = script.make_protocol(protocol_type)
        self.events = []
        self.replies = []
        octets = script.octets
        self.buffer = bytearray(RUBBISH * (HEADROOM + len(octets) + 3))
        at = 0
        for offset, action in script.actions:
            at = self.feed(octets, at, min(offset, len(octets)), steps)
            self.parse_backlog()
            ACTIONS[action](self)
        self.feed(octets, at, len(octets), steps)
        self.parse_backlog()
        self.check_over()
        take_all(self)
        self.take_replies()

    def feed(self, octets, start, stop, steps):
        while start < stop:
            step = next(steps, stop - start)
            self.receive(octets[start : min(start + step, stop)])
            start = min(start + step, stop)
        return stop

    def receive(self, piece):
        protocol, buffer = self.protocol, self.buffer
        stop = HEADROOM + len(piece)
        buffer[HEADROOM:stop] = piece
        behind = buffer[stop : stop + 3]
        protocol.receive(buffer, HEADROOM, stop)
        assert buffer[stop : stop + 3] == behind, "receive wrote behind the received octets"
        self.check_received()

    def parse_backlog(self):
        """Take what is queued until everything is parsed, as the owner of a protocol does in the long run."""
        protocol = self.protocol
        while protocol.has_backlog():
            assert self.script.rules.deflate, "octets wait although nothing inflates"
            take_all(self)
            protocol.parse_backlog()
            self.check_received()

    def check_received(self):
        protocol, script = self.protocol, self.script
        if script.rules.deflate:
            # One more message, and the frame that it came in.
            most = 2 * (script.rules.max_message_size + QUEUE_OVERHEAD) + 2048
            assert protocol.queued_size <= script.max_queued_size + most, f"{protocol.queued_size} are queued"
        if protocol.replies and not protocol.is_output_blocked:
            self.take_replies()
        assert len(protocol.replies) <= self.script.max_reply_count, "more than the latest Pongs are kept (5.5.3)"

    def take_replies(self):
        replies = self.protocol.replies
        self.replies += [open_frame(reply, self.script.rules.is_client) for reply in replies]
        replies.clear()

    def check_over(self):
        """See that nothing comes after the end, and that no more is held than the limits allow."""
        protocol = self.protocol
        is_over = protocol.is_close_received or protocol.failure is not None
        assert not (protocol.is_close_received and protocol.failure), "both a Close and a violation"
        self.check_held()
        if is_over:
            queued, failure = protocol.queued_size, protocol.failure
            protocol.receive_octets(b"\x81\x01a\x81\x81\0\0\0\0b\x89\x00\x88\x00\xff\xff")
            assert protocol.queued_size == queued, "an event after the end"
            assert protocol.failure is failure, "a second failure"

    def check_held(self):
        """See how much is held of what is not complete; in the compiled build that cannot be seen from outside."""
        held = [getattr(self.protocol, name, None) for name in ("_partial", "_control", "_head", "_tail", "_inflated")]
        partial, control, head, tail, inflated = (0 if octets is None else len(octets) for octets in held)
        limit = self.script.rules.max_message_size
        # A frame that is delivered as it came may be longer than what it inflates to.
        limit_on_wire = limit + limit // 8 + 1024 if self.script.rules.deflate else limit
        assert partial <= limit_on_wire + 3, f"{partial} octets of a message are held"
        assert inflated <= limit, f"{inflated} octets of an inflated message are held"
        assert control <= 125, f"{control} octets of a control frame are held"
        assert head < 14, f"{head} octets of a header are held"
        assert tail < 4, f"{tail} octets of a character are held"

    def summarize(self):
        protocol = self.protocol
        return (
            self.events,
            protocol.failure is not None,
            protocol.is_close_received and (protocol.close_code, protocol.close_reason),
            protocol.latest_pong,
            protocol.sent_close_code,
            self.replies,
        )


# What the application does meanwhile.


def go_on(run):
    pass


def take_one(run):
    protocol = run.protocol
    if protocol.has_events():
        is_control = protocol.is_next_control()
        event = protocol.take()
        assert is_control is isinstance(event, Ping | Pong)
        run.events.append(event)


def take_all(run):
    """Take every event, and see that what is counted is exactly what is there."""
    protocol = run.protocol
    queued = protocol.queued_size
    start = len(run.events)
    while protocol.has_events():
        run.events.append(protocol.take())
    assert protocol.queued_size == 0, "something is counted that is not there"
    assert queued == sum(map(weigh, run.events[start:])), "queued_size is not the sum of what is queued"


def stream(run):
    run.protocol.stream()


def skip_stream(run):
    run.protocol.skip_stream()


def stream_again(run):
    run.protocol.skip_stream()
    run.protocol.stream()


def discard(run):
    run.protocol.discard()


def close(run):
    first, payload = open_frame(run.protocol.serialize_close(1001, "gone"), run.script.rules.is_client)
    assert (first, payload) == (0x88, b"\x03\xe9gone")


def block_output(run):
    run.protocol.is_output_blocked = True


def report_control(run):
    run.protocol.reports_control = True


ACTIONS = (go_on, take_one, take_all, stream, skip_stream, stream_again, discard, close, block_output, report_control)
LOSING = {"skip_stream", "stream_again", "discard"}


def check_protocol(data, protocol_type=Protocol):
    """Receive octets whole and cut, and compare both with a second reading of the RFC."""
    script = Script(data)
    whole = Run(script, iter(()), protocol_type)
    cut = Run(script, script.cut(), protocol_type)
    assert whole.summarize() == cut.summarize(), f"the cut matters: {whole.summarize()} != {cut.summarize()}"
    reading = script.read()
    for run in (whole, cut):
        failure = run.protocol.failure
        assert CODE_BY_FAILURE[type(failure)] in reading.codes, f"failure {failure!r}, expected {reading.codes}"
    _check_end(whole, reading)
    if "report_control" not in script.action_names:
        _check_events(whole, reading)
    for event in whole.events:
        _check_event(event, script.rules)


def _check_end(run, reading):
    _, _, close, latest_pong, _, replies = run.summarize()
    assert close == (reading.close or False), f"close {close}, expected {reading.close}"
    assert latest_pong == reading.latest_pong
    if run.script.auto_pong and not run.script.action_names & {"close", "block_output"}:
        pongs = [payload for _, payload in replies]
        expected = reading.pings[-run.script.max_reply_count :] if run.script.is_output_blocked else reading.pings
        assert pongs == expected, f"pongs {pongs}, expected {expected}"
    assert all(first == 0x8A for first, _ in replies)


def _check_events(run, reading):
    names = run.script.action_names
    events = list(map(describe, run.events))
    expected = reading.events
    if not names & LOSING:
        if "stream" in names and run.script.rules.assembles:
            # Pings between the pieces come before the last of them.
            events = join_fragments(events)
            expected = [event for event in expected if event[0] == "message"]
        assert events == expected, f"events {events}, expected {expected}"
    elif "discard" in names and not names & {"skip_stream", "stream_again", "stream"}:
        assert events == expected[: len(events)], f"events {events}, expected the first of {expected}"


def describe(event):
    if isinstance(event, WebSocketFrame):
        return "frame", event.first_octet, event.payload
    if isinstance(event, Fragment):
        return "fragment", event.payload, event.fin
    if isinstance(event, str | bytes):
        return "message", event
    return type(event).__name__.lower(), event.payload


def join_fragments(events):
    messages, pieces = [], []
    for kind, payload, *rest in events:
        if kind == "message":
            assert not pieces, "a message within a streamed one"
            messages.append((kind, payload))
        elif kind == "fragment":
            pieces.append(payload)
            if rest[0]:
                messages.append(("message", type(payload)().join(pieces)))
                pieces = []
    return messages


def _check_event(event, rules):
    size = weigh(event) - QUEUE_OVERHEAD
    if isinstance(event, WebSocketFrame):
        assert size <= (125 if event.opcode & 8 else rules.max_frame_size)
    elif isinstance(event, Ping | Pong):
        assert size <= 125
    else:
        assert size <= rules.max_message_size
    if isinstance(event, str):
        event.encode()


def weigh(event):
    payload = event if isinstance(event, str | bytes) else event.payload
    return QUEUE_OVERHEAD + len(payload.encode() if isinstance(payload, str) else payload)


def open_frame(octets, is_masked):
    """Return the first octet and the payload of the one control frame that ``octets`` are."""
    assert octets[1] >> 7 == is_masked, "the wrong side masks"
    size = octets[1] & 127
    if not is_masked:
        assert len(octets) == 2 + size
        return octets[0], octets[2:]
    assert len(octets) == 6 + size
    return octets[0], bytes(octet ^ octets[2 + (index & 3)] for index, octet in enumerate(octets[6:]))


# Two ends that talk


class Speaker:
    """One end of a conversation: its protocol, what it has said and what it should have heard."""

    def __init__(self, is_client, threshold, deflate, protocol_type):
        self.is_client = is_client
        self.threshold = threshold
        self.deflate = deflate
        #: How often the payload of a long message is repeated: a receiver takes 65536 fragments of a message.
        self.repetitions = 8 if 0 < threshold < 64 else 400
        self.protocol = protocol_type(
            is_client=is_client, fragmentation_threshold=threshold, max_frame_size=1 << 20, deflate=deflate
        )
        self.protocol.reports_control = True
        self.wire = []
        self.is_over = False
        #: The opcode of the fragmented message that it is in, and what it has said of it.
        self.opcode = 0
        self.pieces = []
        self.compresses = True
        self.expected = []
        self.heard = []
        self.latest_pong = None


class Conversation:
    """What an input of the target `conversation` says.

    Octet 0 has the thresholds, 1 how the octets are cut, 2 and 3 what the ends want of permessage-deflate. Each
    saying is one octet for how, one for the size, then the payload.
    """

    def __init__(self, data, protocol_type=Protocol):
        head = data[:4].ljust(4, b"\0")
        deflates = agree(head[2], head[3])
        self.client = Speaker(True, THRESHOLDS[head[0] & 15], deflates[0], protocol_type)
        self.server = Speaker(False, THRESHOLDS[head[0] >> 4], deflates[1], protocol_type)
        self.step = 1 + head[1] if head[1] < 255 else sys.maxsize
        at = 4
        while at + 2 <= len(data):
            how, size = data[at], data[at + 1]
            payload = data[at + 2 : at + 2 + size]
            at += 2 + len(payload)
            speaker, hearer = (self.client, self.server) if how & 8 else (self.server, self.client)
            if not speaker.is_over:
                if not speaker.opcode:
                    speaker.compresses = not how & 32
                SAYINGS[how & 7](speaker, hearer, payload * (1 if how & 0xC0 else speaker.repetitions))
            if how & 16:
                self.deliver()
        self.deliver()

    def deliver(self):
        """Let both ends hear what was said to them, until nothing is left."""
        while self.client.wire or self.server.wire:
            self.deliver_to(self.server, self.client)
            self.deliver_to(self.client, self.server)

    def deliver_to(self, hearer, speaker):
        octets = b"".join(speaker.wire)
        speaker.wire.clear()
        check_frames(octets, speaker)
        protocol = hearer.protocol
        # Long messages are cut coarsely, or the pieces alone take the time.
        step = self.step if len(octets) < 2000 else self.step * 251
        for start in range(0, len(octets), step):
            protocol.receive_octets(octets[start : start + step])
        assert protocol.failure is None, f"own octets are refused: {protocol.failure}"
        while protocol.has_events():
            hearer.heard.append(protocol.take())
        self.answer(hearer, speaker)
        assert hearer.heard == hearer.expected, f"heard {hearer.heard}, expected {hearer.expected}"
        assert protocol.latest_pong == hearer.latest_pong

    def answer(self, hearer, speaker):
        protocol = hearer.protocol
        for reply in protocol.replies:
            if not hearer.is_over:
                hearer.wire.append(reply)
                speaker.latest_pong = open_frame(reply, hearer.is_client)[1]
                speaker.expected.append(Pong(speaker.latest_pong))
        protocol.replies.clear()
        if protocol.is_close_received and not hearer.is_over:
            say_close(hearer, speaker, protocol.close_code.to_bytes(2, "big") if protocol.close_code != 1005 else b"")


def agree(client_octet, server_octet):
    """Return what both ends deflate with, negotiated as they do it; two Nones without the extension."""
    if not client_octet & 1:
        return None, None
    client_options, server_options = read_options(client_octet), read_options(server_octet)
    answer = accept_offer([make_offer(client_options)], server_options)
    if answer is None:
        return None, None
    assert check_answer([serialize_parameters(answer)], client_options) == answer
    return tuple(
        Deflate(answer, options, COMPRESSORS, is_client=is_client, max_message_size=1 << 20)
        for options, is_client in ((client_options, True), (server_options, False))
    )


def read_options(octet):
    return DeflateOptions(
        server_no_context_takeover=not octet & 2,
        client_no_context_takeover=not octet & 4,
        server_max_window_bits=WINDOWS[octet >> 3 & 3] or 15,
        client_max_window_bits=WINDOWS[octet >> 5 & 3] or 15,
        level=9 if octet & 128 else 1,
        threshold=20 if octet & 128 else 0,
    )


def check_frames(octets, speaker):
    """See that serialised octets are whole frames, none longer than the threshold, and that one side alone masks."""
    at = 0
    while at < len(octets):
        assert octets[at + 1] >> 7 == speaker.is_client, "the wrong side masks"
        after = frames.next_frame(octets, at)
        assert after > at
        at = after
    assert at == len(octets), "a frame is cut"


def say_text(speaker, hearer, payload):
    # A third octet comes for each that is no UTF-8, so it stays below the limit of a message.
    say_message(speaker, hearer, 1, payload.decode("utf-8", "replace").encode())


def say_binary(speaker, hearer, payload):
    say_message(speaker, hearer, 2, payload)


def say_message(speaker, hearer, opcode, payload):
    if speaker.opcode:
        say_last_piece(speaker, hearer, b"")
    octets = PreparedMessage(opcode, payload, speaker.compresses).serialize(speaker.protocol)
    if speaker.deflate is None or not speaker.compresses:
        threshold = speaker.threshold or sys.maxsize
        assert count_frames(octets) == max(1, -(-len(payload) // threshold)), "cut at another size"
    speaker.wire.append(octets)
    hearer.expected.append(payload.decode() if opcode == 1 else payload)


def count_frames(octets):
    at = count = 0
    while at < len(octets):
        at = frames.next_frame(octets, at)
        count += 1
    return count


def say_first_piece(speaker, hearer, payload):
    if speaker.opcode:
        say_last_piece(speaker, hearer, b"")
    speaker.opcode = 1 if payload.isascii() else 2
    speaker.pieces = [payload]
    send_piece(speaker, speaker.opcode, payload)


def say_piece(speaker, hearer, payload):
    if not speaker.opcode:
        say_first_piece(speaker, hearer, payload)
    elif speaker.opcode == 2 or payload.isascii():
        speaker.pieces.append(payload)
        send_piece(speaker, 0, payload)


def say_last_piece(speaker, hearer, payload):
    if not speaker.opcode or (speaker.opcode == 1 and not payload.isascii()):
        return
    if speaker.deflate is not None:
        # The last one of a compressed message only ends it.
        payload = b""
    send_piece(speaker, 0x80, payload)
    message = b"".join([*speaker.pieces, payload])
    hearer.expected.append(message.decode() if speaker.opcode == 1 else message)
    speaker.opcode = 0


def send_piece(speaker, first, payload):
    piece = PreparedMessage(first, payload, speaker.compresses, is_fragment=True)
    speaker.wire.append(piece.serialize(speaker.protocol))


def say_ping(speaker, hearer, payload):
    speaker.wire.append(speaker.protocol.serialize_frame(0x89, payload[:125]))
    hearer.expected.append(Ping(payload[:125]))


def say_pong(speaker, hearer, payload):
    speaker.wire.append(speaker.protocol.serialize_frame(0x8A, payload[:125]))
    hearer.expected.append(Pong(payload[:125]))
    hearer.latest_pong = payload[:125]


def say_close(speaker, hearer, payload):
    code = int.from_bytes(payload[:2], "big")
    if not frames.is_sendable_close_code(code):
        code = 1000 if payload else 1005
    reason = payload[2:].decode("utf-8", "replace")
    speaker.wire.append(speaker.protocol.serialize_close(code, reason))
    speaker.is_over = True
    assert speaker.protocol.sent_close_code == code
    octets = reason.encode()[:123] if code != 1005 else b""
    hearer.expected_close = code, octets.decode("utf-8", "ignore")


SAYINGS = (say_text, say_binary, say_first_piece, say_piece, say_last_piece, say_ping, say_pong, say_close)


def check_conversation(data, protocol_type=Protocol):
    """Let two ends talk; each hears exactly what the other said."""
    conversation = Conversation(data, protocol_type)
    for hearer in (conversation.client, conversation.server):
        protocol = hearer.protocol
        assert protocol.queued_size == 0
        if protocol.is_close_received:
            assert (protocol.close_code, protocol.close_reason) == hearer.expected_close

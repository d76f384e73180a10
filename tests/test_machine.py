"""One connection over real sockets, and everything that both ends may do with it, in any order.

Hypothesis chooses the steps and shrinks those that go wrong. What holds is said by the invariants, and by `check_end`.
``GEVENTWS_EXAMPLES=2000`` tries so many sequences of each style instead of a few.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import NamedTuple

import gevent
import pytest
from gevent import socket
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from geventws import ConnectionClosed
from tests.support import make_frame, paired, run_hub

EXAMPLES = int(os.environ.get("GEVENTWS_EXAMPLES", "30"))
#: Seconds that one sequence's end may take; it takes some milliseconds.
PATIENCE = 10.0
CLEAN_CODES = {1000, 1001, 1005}
#: What breaks RFC 6455, and the code that tells of it.
FAULTS = {
    "not masked": (b"\x81\x01a", 1002),
    "reserved bit": (b"\xf1\x80\0\0\0\0", 1002),
    "opcode": (b"\x83\x80\0\0\0\0", 1002),
    "continues nothing": (b"\x80\x80\0\0\0\0", 1002),
    "close of one octet": (b"\x88\x81\0\0\0\0\3", 1002),
    "not UTF-8": (b"\x81\x82\0\0\0\0a\xff", 1007),
    "half a character": (b"\x81\x81\0\0\0\0\xc3", 1007),
    "too long": (b"\x82\xff\0\0\0\0\1\0\0\0", 1009),
}
POLICIES = ("close", "drop_newest", "drop_oldest")

sizes = st.sampled_from([0, 1, 125, 126, 300, 3000, 20000])
turns = st.integers(0, 3)
kinds = st.sampled_from([str, bytes])


class Entry(NamedTuple):
    """A message of ours, and whether a slow consumer may lose it."""

    message: str | bytes
    is_droppable: bool


class Peer:
    """The other end: it never waits, and reads only when it is told to."""

    def __init__(self, sock, *, is_deflating):
        self.sock = sock
        self.sock.setblocking(False)
        self.is_deflating = is_deflating
        #: What it has to say, and the octets of it that it keeps back for now.
        self.outgoing = b""
        self.kept = 0
        #: Whether its side of the stream, and whether the whole connection, is over.
        self.has_ended = self.is_gone = False
        self.buffered = b""
        self.opcode = 0
        self.is_compressed = False
        self.pieces = b""
        self.messages = []
        self.pongs = []
        self.closes = []
        self.is_at_end = False

    def say(self, octets, kept=0):
        self.outgoing += octets
        self.kept = min(kept, len(octets))
        self.pump()

    def pump(self):
        """Give the kernel what it takes."""
        while not (self.has_ended or self.is_gone) and len(self.outgoing) > self.kept:
            try:
                sent = self.sock.send(self.outgoing[: len(self.outgoing) - self.kept])
            except BlockingIOError:
                return
            except OSError:
                self.is_gone = True
                return
            self.outgoing = self.outgoing[sent:]

    def read(self, size=1 << 20):
        """Read so many octets at most, of what is there."""
        while size > 0 and not self.is_at_end:
            try:
                octets = self.sock.recv(min(size, 65536))
            except BlockingIOError:
                return
            except OSError:
                octets = b""
            self.is_at_end = not octets
            size -= len(octets)
            self.buffered += octets
            self.take_frames()

    def take_frames(self):
        while len(self.buffered) >= 2:
            first, size, start = self.buffered[0], self.buffered[1], 2
            assert size < 128, "a server's frame is masked"
            if size > 125:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self.buffered[2:start], "big")
            if len(self.buffered) < start + size:
                return
            payload, self.buffered = self.buffered[start : start + size], self.buffered[start + size :]
            assert not self.closes, f"a frame behind our Close: {first:x}"
            self.take_frame(first, payload)

    def take_frame(self, first, payload):
        opcode = first & 15
        if opcode == 8:
            self.closes.append(int.from_bytes(payload[:2], "big") if payload else 1005)
        elif opcode == 10:
            self.pongs.append(payload)
        elif opcode < 8:
            assert bool(opcode) is not bool(self.opcode), "fragments of two messages are mixed"
            if opcode:
                self.opcode, self.is_compressed, self.pieces = opcode, bool(first & 64), b""
            self.pieces += payload
            if first & 128:
                self.take_message()

    def take_message(self):
        payload = self.pieces
        if self.is_compressed:
            assert self.is_deflating
            payload = zlib.decompress(payload + b"\0\0\xff\xff\x03\0", -15)
        self.messages.append(payload.decode() if self.opcode == 1 else payload)
        self.opcode = 0

    def end(self):
        self.pump()
        self.has_ended = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


class Machine(RuleBasedStateMachine):
    """Both ends of a connection, and what each of them has to know of the other."""

    style = ""

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.started = list_open()
        self.number = 0
        #: What the peer said in whole, what of it the application got, and the Pings and what came of them.
        self.said, self.got = [], []
        self.peer_pings, self.got_pings = [], []
        self.accepted = []
        self.refused_count = 0
        self.greenlets = []
        self.fragmenting = None
        self.events = []
        #: How the connection may end, by what has happened: codes, and who.
        self.ends = set()
        #: Whether messages of the peer, or of ours, may be lost now.
        self.may_lose_in = self.may_lose_out = False
        self.is_peer_over = False
        self.loop_end = None

    @initialize(
        is_narrow=st.booleans(),
        receive_mark=st.sampled_from([300, 1 << 20]),
        send_mark=st.sampled_from([1000, 1 << 20]),
        policy=st.sampled_from(POLICIES),
        is_deflating=st.booleans(),
        echoes=st.booleans(),
    )
    def open(self, is_narrow, receive_mark, send_mark, policy, is_deflating, echoes):
        fields = ("Sec-WebSocket-Extensions: permessage-deflate",) if is_deflating else ()
        client, self.connection = self.stack.enter_context(
            paired(
                "/",
                *fields,
                is_narrow=is_narrow,
                receive_high_water_mark=receive_mark,
                send_high_water_mark=send_mark,
                slow_consumer=policy,
                permessage_deflate=is_deflating,
            )
        )
        self.client = client
        self.peer = Peer(client.sock, is_deflating=is_deflating)
        self.policy = policy
        self.echoes = echoes
        for name in ("ping", "error", "close"):
            self.connection.on(name, lambda *args, name=name: self.note(name, *args))
        self.begin()

    def begin(self):
        raise NotImplementedError

    def note(self, name, *args):
        self.events.append((name, *args))
        if name == "ping":
            self.got_pings += args

    def take(self, message):
        self.events.append(("message", message))
        self.got.append(message)
        if self.echoes:
            self.send_now(message)

    # What the peer does

    can_speak = precondition(lambda self: not self.is_peer_over)

    @can_speak
    @rule(
        kind=kinds, size=sizes, cuts=st.lists(st.integers(0, 20000), max_size=3), kept=st.integers(0, 30), turns=turns
    )
    def peer_sends(self, kind, size, cuts, kept, turns):
        message = self.make_message(kind, size)
        payload = message.encode() if kind is str else message
        cuts = sorted({min(cut, len(payload)) for cut in cuts})
        pieces = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        octets = b""
        for index, piece in enumerate(pieces):
            first = (0 if index else 1 if kind is str else 2) | (0x80 if index == len(pieces) - 1 else 0)
            octets += frame(first, piece)
        self.said.append(message)
        self.peer.say(octets, kept)
        run_hub(turns)

    @can_speak
    @rule(size=sizes, turns=turns)
    def peer_sends_compressed(self, size, turns):
        if self.peer.is_deflating:
            message = self.make_message(str, size)
            compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
            payload = compressor.compress(message.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
            self.said.append(message)
            self.peer.say(frame(0xC1, payload[:-4]))
            run_hub(turns)

    @can_speak
    @rule(is_pong=st.booleans(), turns=turns)
    def peer_pings(self, is_pong, turns):
        payload = self.make_message(bytes, 3)
        if not is_pong:
            self.peer_pings.append(payload)
        self.peer.say(frame(0x8A if is_pong else 0x89, payload))
        run_hub(turns)

    @can_speak
    @rule(code=st.sampled_from([1000, 1001, 1005, 1008, 3000, 4999]), turns=turns)
    def peer_closes(self, code, turns):
        self.is_peer_over = True
        self.ends |= {(code, "peer"), (code, "local")}
        self.peer.say(frame(0x88, b"" if code == 1005 else code.to_bytes(2, "big") + b"bye"))
        run_hub(turns)

    @can_speak
    @rule(fault=st.sampled_from(sorted(FAULTS)), turns=turns)
    def peer_breaks_a_rule(self, fault, turns):
        self.is_peer_over = True
        octets, code = FAULTS[fault]
        self.ends.add((code, "local"))
        self.peer.say(octets)
        run_hub(turns)

    @rule(size=st.sampled_from([1, 100, 5000, 1 << 20]), turns=turns)
    def peer_reads(self, size, turns):
        self.peer.pump()
        self.peer.read(size)
        run_hub(turns)

    # Such ends are rare, or there would be little before them.
    may_end = precondition(lambda self: self.number % 3 == 2)

    @may_end
    @precondition(lambda self: not (self.peer.has_ended or self.peer.is_gone))
    @rule(turns=turns)
    def peer_ends(self, turns):
        self.is_peer_over = True
        self.peer.kept = 0
        self.peer.end()
        # What the kernel did not take is never said.
        self.may_lose_in |= bool(self.peer.outgoing)
        self.ends |= {(1006, "transport"), (1006, "local")}
        run_hub(turns)

    @may_end
    @precondition(lambda self: not self.peer.is_gone)
    @rule(turns=turns)
    def peer_resets(self, turns):
        self.is_peer_over = self.peer.is_gone = self.peer.is_at_end = True
        self.may_lose_in = self.may_lose_out = True
        self.ends |= {(1006, "transport"), (1006, "local")}
        self.client.reset()
        run_hub(turns)

    # What the application does

    @rule(kind=kinds, size=sizes, turns=turns)
    def send(self, kind, size, turns):
        message = self.make_message(kind, size)
        self.spawn(self.send_now, message)
        run_hub(turns)

    def spawn(self, function, *args):
        greenlet = gevent.spawn(function, *args)
        self.greenlets.append(greenlet)
        # It has called by then, so that the order of the calls is known.
        gevent.sleep(0)
        return greenlet

    def send_now(self, message):
        if not self.connection.connected:
            with pytest.raises(ConnectionClosed):
                self.connection.send(message)
            return
        self.accepted.append(Entry(message, False))
        with contextlib.suppress(ConnectionClosed):
            self.connection.send(message)

    @rule(kind=kinds, size=sizes, turns=turns)
    def send_nowait(self, kind, size, turns):
        message = self.make_message(kind, size)
        if not self.connection.connected:
            with pytest.raises(ConnectionClosed):
                self.connection.send_nowait(message)
            return
        self.accepted.append(Entry(message, self.policy == "drop_oldest"))
        if not self.connection.send_nowait(message):
            self.accepted.pop()
            self.refused_count += 1
            if self.policy == "close":
                self.lose_all()
                self.ends.add((1013, "local"))
        run_hub(turns)

    @precondition(lambda self: self.fragmenting is None or self.fragmenting.ready())
    @rule(kind=kinds, pieces=st.lists(sizes, min_size=1, max_size=4), turns=turns)
    def send_fragments(self, kind, pieces, turns):
        self.fragmenting = self.spawn(self.send_fragments_now, [self.make_message(kind, size) for size in pieces])
        run_hub(turns)

    def send_fragments_now(self, pieces):
        if not self.connection.connected:
            with pytest.raises(ConnectionClosed):
                self.connection.send_fragments(pieces)
            return
        self.accepted.append(Entry(type(pieces[0])().join(pieces), False))
        try:
            self.connection.send_fragments(pieces)
        except ConnectionClosed:
            # Half a message is not sent, and what waited behind it is lost, too.
            self.may_lose_out = True

    @rule(turns=turns)
    def ping(self, turns):
        if self.connection.connected:
            self.connection.ping(b"ours")
        else:
            with pytest.raises(ConnectionClosed):
                self.connection.ping(b"ours")
        run_hub(turns)

    @rule(turns=turns)
    def pause(self, turns):
        self.connection.pause()
        run_hub(turns)

    @rule(turns=turns)
    def resume(self, turns):
        self.connection.resume()
        run_hub(turns)

    @may_end
    @rule(code=st.sampled_from([1000, 1001, 4000]), turns=turns)
    def close(self, code, turns):
        was_connected = self.connection.connected
        self.connection.close(code, "enough")
        assert not self.connection.connected
        if was_connected:
            self.may_lose_in = True
            self.may_lose_out |= self.is_fragmenting()
            self.ends |= {(1006, "local"), (1006, "transport")}
            assert self.connection.sent_close_code in (code, None)
        run_hub(turns)

    @may_end
    @rule(code=st.sampled_from([1002, 1008, 4001]), skips_close=st.booleans(), turns=turns)
    def drop(self, code, skips_close, turns):
        was_closed = self.connection.state == "CLOSED"
        self.connection.drop(code, "gone", skips_close)
        assert self.connection.state == "CLOSED"
        if not was_closed:
            assert (self.connection.close_code, self.connection.closed_by) == (code, "local")
            self.lose_all()
            self.ends.add((code, "local"))
        run_hub(turns)

    def lose_all(self):
        self.may_lose_in = self.may_lose_out = True

    def is_fragmenting(self):
        return self.fragmenting is not None and not self.fragmenting.ready()

    def make_message(self, kind, size):
        """Return a message that is like no other."""
        self.number += 1
        text = f"{self.number} \u00e9 " + "x" * size
        return text if kind is str else text.encode() + b"\xff"

    # What always holds

    @invariant()
    def state_is_one_of_three(self):
        connection = self.connection
        assert connection.connected is (connection.state == "OPEN")
        is_closed = connection.state == "CLOSED"
        assert is_closed is (connection.close_code is not None)
        assert not is_closed or connection.closed_by in {"local", "peer", "transport"}
        assert not is_closed or connection.close_cause

    @invariant()
    def buffered_amount_is_none_below_zero(self):
        assert self.connection.buffered_amount >= 0

    @invariant()
    def messages_come_in_order(self):
        assert self.got == self.said[: len(self.got)]
        assert self.got_pings == self.peer_pings[: len(self.got_pings)]

    @invariant()
    def messages_go_in_order(self):
        self.match_sent()

    def match_sent(self):
        """See that the peer got our messages in order, but for those that may be dropped; return what is left."""
        left = list(self.accepted)
        dropped_count = 0
        for message in self.peer.messages:
            while left and left[0].message != message and left[0].is_droppable:
                left.pop(0)
                dropped_count += 1
            assert left, f"invented: {message!r}"
            assert left.pop(0).message == message
        return left, dropped_count

    @invariant()
    def close_is_told_once_and_last(self):
        names = [name for name, *_ in self.events]
        assert names.count("close") <= 1
        assert names.count("error") <= 1
        if "close" in names and self.style == "event":
            assert names[-1] == "close"
            assert self.connection.state == "CLOSED"

    # The end

    def teardown(self):
        try:
            # Hypothesis also asks for this where the first step did not come.
            if hasattr(self, "connection"):
                with gevent.Timeout(PATIENCE):
                    self.come_to_an_end()
        finally:
            self.stack.close()
            gevent.killall(self.greenlets)
        # The test's time limit ends a wait for what never closes.
        while list_open() != self.started:
            gevent.sleep(0.001)

    def come_to_an_end(self):
        self.connection.resume()
        self.peer.kept = 0
        # A Close takes nothing away from what was said and sent before it.
        self.wait(lambda: not self.connection.connected or self.is_idle())
        if self.connection.state != "CLOSED" and not self.is_peer_over:
            self.peer_closes(1000, 0)
        self.wait(lambda: self.connection.state == "CLOSED" and self.peer.is_at_end)
        self.client.close()
        gevent.joinall(self.greenlets)
        self.wait(lambda: ("close", self.connection.close_code, self.connection.close_reason) in self.events)
        self.check_end()

    def is_idle(self):
        is_all_out = not self.connection.buffered_amount and all(greenlet.ready() for greenlet in self.senders())
        return is_all_out and (self.is_peer_over or (not self.peer.outgoing and self.got == self.said))

    def senders(self):
        return self.greenlets

    def wait(self, condition):
        """Let both ends go on until a condition holds that no event tells of."""
        with gevent.Timeout(PATIENCE):
            while not condition():
                if hasattr(self, "peer") and not self.client.sock.closed:
                    self.peer.pump()
                    self.peer.read()
                gevent.sleep(0.0005)

    def check_end(self):
        connection = self.connection
        self.messages_come_in_order()
        self.close_is_told_once_and_last()
        assert connection.buffered_amount == 0
        assert (connection.close_code, connection.closed_by) in self.ends, connection.close_cause
        if not self.may_lose_in:
            assert self.got == self.said, "a message of the peer is lost"
        self.check_sent()
        with pytest.raises(ConnectionClosed) as closed:
            connection.send("too late")
        assert (closed.value.code, closed.value.reason) == (connection.close_code, connection.close_reason)
        self.check_receiver()

    def check_sent(self):
        left, dropped_count = self.match_sent()
        assert len(self.peer.closes) <= 1
        assert is_subsequence(self.peer.pongs, self.peer_pings)
        if self.peer.closes:
            assert self.peer.closes == [self.connection.sent_close_code]
        if not self.may_lose_out:
            assert all(entry.is_droppable for entry in left), f"a message of ours is lost: {left}"
            lost_count = dropped_count + len(left)
            assert self.connection.dropped_message_count == lost_count + self.refused_count
            # Where the peer ended the stream there is nobody to say it to.
            assert self.peer.closes or self.connection.close_code == 1006

    def check_receiver(self):
        pass


class EventMachine(Machine):
    style = "event"

    def begin(self):
        self.connection.on("message", self.take)


class LoopMachine(Machine):
    style = "loop"

    def begin(self):
        self.loop = gevent.spawn(self.receive_all)
        self.greenlets.append(self.loop)

    def senders(self):
        # The loop is where it belongs while it waits for a message.
        return [greenlet for greenlet in self.greenlets if greenlet is not self.loop]

    def receive_all(self):
        try:
            for message in self.connection:
                self.take(message)
        except ConnectionClosed as error:
            self.loop_end = error

    def check_receiver(self):
        code = self.connection.close_code
        assert (self.loop_end is None) is (code in CLEAN_CODES)
        assert self.loop_end is None or self.loop_end.code == code


def frame(first, payload):
    """Return a client's frame; a long one with a masking key that changes nothing."""
    if len(payload) < 200:
        return make_frame(payload, first)
    return bytes([first]) + b"\xfe" + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload


def is_subsequence(items, whole):
    rest = iter(whole)
    return all(item in rest for item in items)


def list_open():
    """Return the descriptors of this process, and how many watchers its loop has."""
    descriptors = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    return len(descriptors), getattr(gevent.get_hub().loop, "activecnt", 0)


@pytest.mark.limit(60)
@pytest.mark.parametrize("machine", [EventMachine, LoopMachine], ids=["event", "loop"])
def test_any_order(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )

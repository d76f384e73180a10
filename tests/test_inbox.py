"""The inbox, filled by the protocol: the only one that does, and whose base it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.frames import Opcode, WebSocketFrame, serialize_message
from geventws.inbox import QUEUE_OVERHEAD, Fragment, Inbox, Ping, Pong
from geventws.protocol import Protocol

TEXT = "\u20ac and more"


def make(**options):
    inbox = Protocol(is_client=True, **options)
    inbox.reports_control = True
    return inbox


@pytest.fixture
def inbox():
    return make()


def take_all(inbox):
    events = []
    while inbox.has_events():
        events.append(inbox.take())
    return events


def test_begins_empty():
    inbox = Inbox()
    assert (inbox.has_events(), inbox.queued_size, inbox.is_discarding) == (False, 0, False)
    assert not inbox.is_next_control()
    with pytest.raises(IndexError):
        inbox.take()


@pytest.mark.parametrize(
    ("octets", "event", "size"),
    [
        pytest.param(b"\x81\x00", "", 0, id="empty text"),
        pytest.param(b"\x81\x05Hello", "Hello", 5, id="ASCII"),
        pytest.param(b"\x81\x03\xe2\x82\xac", "\u20ac", 3, id="text of three octets a character"),
        pytest.param(b"\x82\x02\xff\x00", b"\xff\x00", 2, id="binary"),
        pytest.param(b"\x89\x02hi", Ping(b"hi"), 2, id="ping"),
        pytest.param(b"\x8a\x00", Pong(b""), 0, id="pong"),
    ],
)
def test_an_event_counts_its_octets_and_an_overhead(inbox, octets, event, size):
    for count in (1, 2):
        inbox.receive_octets(octets)
        assert inbox.queued_size == count * (QUEUE_OVERHEAD + size)
    assert (inbox.take(), inbox.queued_size) == (event, QUEUE_OVERHEAD + size)
    assert (inbox.take(), inbox.queued_size) == (event, 0)
    assert not inbox.has_events()


def test_a_frame_counts_likewise():
    inbox = make(assembles=False)
    # A message of a single frame is there a second time.
    inbox.receive_octets(b"\x01\x03\xe2\x82\xac\x80\x01a\x82\x01b")
    assert inbox.queued_size == 4 * QUEUE_OVERHEAD + 3 + 1 + 1 + 1
    assert inbox.take() == WebSocketFrame(Opcode.TEXT, b"\xe2\x82\xac", fin=False)
    assert inbox.queued_size == 3 * (QUEUE_OVERHEAD + 1)


def test_a_piece_counts_likewise(inbox):
    inbox.stream()
    inbox.receive_octets(b"\x01\x03\xe2\x82\xac\x80\x01a")
    assert inbox.queued_size == 2 * QUEUE_OVERHEAD + 4
    assert inbox.take() == Fragment("\u20ac", False)
    assert inbox.queued_size == QUEUE_OVERHEAD + 1


def test_order_and_count_of_many(inbox):
    # Enough that what was taken is cut off from the inbox now and then.
    texts = [f"message {number} {TEXT}" for number in range(5000)]
    inbox.receive_octets(b"".join(serialize_message(1, text.encode(), 0) for text in texts))
    assert [inbox.take() for _ in range(3000)] == texts[:3000]
    assert inbox.queued_size == sum(QUEUE_OVERHEAD + len(text.encode()) for text in texts[3000:])
    inbox.receive_octets(b"\x81\x04last")
    assert take_all(inbox) == [*texts[3000:], "last"]
    assert inbox.queued_size == 0


def test_is_next_control(inbox):
    assert not inbox.is_next_control()
    inbox.receive_octets(b"\x89\x00\x8a\x00\x81\x00")
    found = []
    while inbox.has_events():
        found.append((inbox.is_next_control(), inbox.take()))
    assert found == [(True, Ping(b"")), (True, Pong(b"")), (False, "")]


def test_discard_drops_what_is_queued_and_all_that_comes(inbox):
    inbox.receive_octets(b"\x81\x01a\x89\x00\x82\x01b")
    assert inbox.take() == "a"
    inbox.discard()
    assert (inbox.has_events(), inbox.queued_size, inbox.is_discarding) == (False, 0, True)
    inbox.receive_octets(b"\x81\x01c\x8a\x00")
    assert (inbox.has_events(), inbox.queued_size) == (False, 0)


def test_pieces_of_a_stream_are_dropped_alone(inbox):
    inbox.stream()
    inbox.receive_octets(b"\x89\x01x\x02\x01a\x89\x01p\x00\x03bcd\x8a\x01q")
    assert inbox.take() == Ping(b"x")
    inbox.skip_stream()
    assert inbox.queued_size == 2 * (QUEUE_OVERHEAD + 1)
    assert take_all(inbox) == [Ping(b"p"), Pong(b"q")]


@given(st.lists(st.integers(0, 400) | st.integers(-400, -1), max_size=60))
@settings(max_examples=50)
def test_any_order_of_coming_and_taking(steps):
    inbox = make()
    waiting = []
    number = 0
    for step in steps:
        if step >= 0:
            new = [f"{number + index} {TEXT}" if index % 2 else str(number + index) for index in range(step)]
            number += step
            waiting += new
            inbox.receive_octets(b"".join(serialize_message(1, text.encode(), 0) for text in new))
        else:
            count = min(-step, len(waiting))
            assert [inbox.take() for _ in range(count)] == waiting[:count]
            del waiting[:count]
        assert inbox.has_events() is bool(waiting)
        assert inbox.queued_size == sum(QUEUE_OVERHEAD + len(text.encode()) for text in waiting)

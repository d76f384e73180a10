"""The last frames' headers: what is kept of them, and how it reads."""

from __future__ import annotations

import pytest

from geventws.frames import serialize_frame
from geventws.protocol import Protocol
from geventws.trace import TRACE_LENGTH, FrameTrace


@pytest.fixture
def trace():
    return FrameTrace(is_client=False)


@pytest.fixture
def protocol(trace):
    protocol = Protocol()
    protocol.trace = trace
    return protocol


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        pytest.param(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "received TEXT FIN 5", id="text"),
        pytest.param(b"\x02\x80\x37\xfa\x21\x3d", "received BINARY 0", id="first-fragment"),
        pytest.param(b"\x89\x80\x37\xfa\x21\x3d", "received PING FIN 0", id="ping"),
        pytest.param(b"\x81\xfe\x01\x00\x37\xfa\x21\x3d", "received TEXT FIN 256", id="16-bit-length"),
        pytest.param(
            b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x37\xfa\x21\x3d", "received BINARY FIN 65536", id="64-bit-length"
        ),
        # What is refused, and for that never complete.
        pytest.param(b"\x81\x02", "received TEXT FIN unmasked 2", id="unmasked"),
        pytest.param(b"\xc1\x81", "received TEXT FIN RSV1 1", id="rsv1"),
        pytest.param(b"\xb1\x81", "received TEXT FIN RSV2 RSV3 1", id="rsv2-rsv3"),
        pytest.param(b"\x83\x81", "received opcode 3 FIN 1", id="opcode"),
        pytest.param(b"\x09\xfe", "received PING ?", id="control-frame-with-extended-length"),
        pytest.param(b"\x81\xfe\x00\x7d", "received TEXT FIN 125", id="non-minimal-length"),
        pytest.param(
            b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff", "received BINARY FIN 9223372036854775807", id="too-big"
        ),
    ],
)
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "octet-by-octet"])
def test_a_received_header(protocol, trace, octets, text, is_whole):
    for part in [octets] if is_whole else [octets[at : at + 1] for at in range(len(octets))]:
        protocol.receive_octets(part)
    assert trace.describe() == text


def test_a_header_that_came_in_two_parts_is_noted_once_although_we_sent_something_between(trace):
    trace.note_received(b"\x81\xfe\x01", 0, 3)
    trace.note_sent(b"\x89\x00", 0, 2)
    assert trace.describe() == "received TEXT FIN ?, sent PING FIN 0"
    trace.note_received(b"\x81\xfe\x01\x00", 0, 4)
    trace.note_received(b"\x81\xfe\x01\x00\x37\xfa\x21\x3d", 0, 8)
    trace.note_received(b"\x8a\x80\x37\xfa\x21\x3d", 0, 6)
    assert trace.describe() == "sent PING FIN 0, received TEXT FIN 256, received PONG FIN 0"


def test_an_older_frame_that_looks_the_same_stays_where_it_was(trace):
    trace.note_received(b"\x81\x81\x37\xfa\x21\x3d\x00", 0, 7)
    trace.note_sent(b"\x89\x00", 0, 2)
    trace.note_received(b"\x81\x81", 0, 2)
    trace.note_received(b"\x81\x81\x37\xfa\x21\x3d\x00", 0, 7)
    assert trace.describe() == "received TEXT FIN 1, sent PING FIN 0, received TEXT FIN 1"


def test_a_part_of_a_header_may_be_pushed_out(trace):
    trace.note_received(b"\x81\xfe", 0, 2)
    trace.note_sent(b"\x89\x00" * TRACE_LENGTH, 0, 2 * TRACE_LENGTH)
    trace.note_received(b"\x81\xfe\x01\x00\x37\xfa\x21\x3d", 0, 8)
    assert trace.describe().startswith("sent PING FIN 0, sent PING")
    assert trace.describe().endswith("sent PING FIN 0, received TEXT FIN 256")


def test_sent_frames(trace):
    frames = [serialize_frame(0x01, b"a"), serialize_frame(0x80, bytes(300)), serialize_frame(0x82, bytes(70_000))]
    octets = b"\x89\x00" + b"".join(frames)
    # The first octets are others'.
    trace.note_sent(octets, 2, len(octets))
    assert trace.describe() == "sent TEXT 1, sent CONTINUATION FIN 300, sent BINARY FIN 70000"


def test_a_client_masks_and_its_server_does_not():
    trace = FrameTrace(is_client=True)
    trace.note_sent(serialize_frame(0x81, b"a", 0x1234), 0, 7)
    trace.note_received(b"\x81\x01a", 0, 3)
    trace.note_received(b"\x81\x81", 0, 2)
    assert trace.describe() == "sent TEXT FIN 1, received TEXT FIN 1, received TEXT FIN masked 1"


def test_the_last_frames_are_kept(trace):
    for size in range(TRACE_LENGTH + 3):
        trace.note_sent(serialize_frame(0x82, bytes(size)), 0, size + 2)
    assert trace.describe().split(", ") == [f"sent BINARY FIN {size}" for size in range(3, TRACE_LENGTH + 3)]


def test_payloads_are_not_kept(protocol, trace):
    protocol.receive_octets(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
    trace.note_sent(b"\x81\x05Hello", 0, 7)
    assert "Hello" not in repr(trace._headers)

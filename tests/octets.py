"""What the tests without I/O share: giving a protocol its octets, and taking what it made of them."""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from geventws.deflate import DEFLATE_TAIL, Compressors, Deflate, DeflateOptions, DeflateParameters
from geventws.frames import WebSocketFrame, serialize_frame
from geventws.inbox import QUEUE_OVERHEAD
from geventws.protocol import HEADROOM, Protocol

# Every example comes whole and octet by octet.
each_step = pytest.mark.parametrize("step", [sys.maxsize, 1], ids=["whole", "octet by octet"])


def feed(protocol, octets, step):
    """Give octets in pieces, each in a buffer whose other octets are rubbish, before and afterwards."""
    buffer = bytearray(HEADROOM + min(step, len(octets)) + 3)
    for start in range(0, len(octets), step):
        piece = octets[start : start + step]
        buffer[:] = b"\xaa" * len(buffer)
        buffer[HEADROOM : HEADROOM + len(piece)] = piece
        protocol.receive(buffer, HEADROOM, HEADROOM + len(piece))


def weigh(event):
    payload = event if isinstance(event, (str, bytes)) else event.payload
    return QUEUE_OVERHEAD + len(payload.encode() if isinstance(payload, str) else payload)


def take_all(protocol):
    """Take every event, and see that what is counted is exactly what is there."""
    events, sizes = [], []
    while protocol.has_events():
        sizes.append(protocol.queued_size)
        events.append(protocol.take())
    assert protocol.queued_size == 0
    weights = list(map(weigh, events))
    assert sizes == [sum(weights[index:]) for index in range(len(weights))]
    return events


def receive(protocol, octets, step=sys.maxsize):
    feed(protocol, octets, step)
    return take_all(protocol)


def from_client(first, payload=b""):
    return serialize_frame(first, payload, 0x3D21FA37)


FORGETFUL = DeflateParameters(server_no_context_takeover=True, client_no_context_takeover=True)
NOISE = random.Random(7692).randbytes(70_000)


def make_compressed(agreed=FORGETFUL, *, is_client=False, max_message_size=1048576, compressors=None, **options):
    """Return a protocol that agreed on permessage-deflate; ``deflate`` holds its options."""
    wanted = {"threshold": 0, "server_no_context_takeover": False, "client_no_context_takeover": False}
    deflate = Deflate(
        agreed,
        DeflateOptions(**wanted | options.pop("deflate", {})),
        Compressors() if compressors is None else compressors,
        is_client=is_client,
        max_message_size=max_message_size,
    )
    return Protocol(is_client=is_client, max_message_size=max_message_size, deflate=deflate, **options)


def deflate(payload, level=9, memory_level=8):
    """Compress one message as a peer might."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, memory_level)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(DEFLATE_TAIL)


def join_frames(frames):
    """Serialise pairs of first octet and payload as a server."""
    return b"".join(serialize_frame(*frame) for frame in frames)


def inflate_frames(octets):
    """Return the first octets of a message's frames, and its inflated payload."""
    receiver = Protocol(is_client=True, assembles=False)
    # The receiver agreed on nothing, so it gets a binary message without the bit.
    assert octets[0] & 0x40
    feed(receiver, bytes([octets[0] & 0x80 | 0x02]) + octets[1:], sys.maxsize)
    frames = [event for event in take_all(receiver) if isinstance(event, WebSocketFrame)]
    payload = zlib.decompressobj(-15).decompress(b"".join(frame.payload for frame in frames) + DEFLATE_TAIL)
    return [octets[0], *(frame.first_octet for frame in frames[1:])], payload

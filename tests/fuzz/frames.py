"""The target for `geventws.frames` and `geventws.masking`: each function against the plainest form of it."""

from __future__ import annotations

import sys

from geventws import frames, masking
from geventws.errors import ProtocolError

from . import model

THRESHOLDS = (16384, 0, 1, 2, 3, 7, 64, 125, 126, 127, 128, 250, 300, 65535, 65536, 100000)


def check_frame(data):
    """Call what the first octet chooses."""
    number, at, payload = (data[0], data[1], data[2:]) if len(data) > 1 else (0, 0, data)
    CHECKS[number % len(CHECKS)](at, payload)


def check_close_payload(at, payload):
    try:
        expected = model.read_close(payload)
    except model.Violation as violation:
        (expected,) = violation.codes
    try:
        found = frames.parse_close(payload)
    except ProtocolError as error:
        found = error.close_code
    assert found == expected, f"{found}, expected {expected}"
    # A longer reason comes in no frame.
    if isinstance(found, tuple) and len(payload) <= 125:
        assert frames.serialize_close(*found) == payload


def check_own_close(at, payload):
    code = int.from_bytes(payload[:2], "big") - (at & 1)
    reason = payload[2:].decode("utf-8", "surrogateescape" if at & 2 else "replace")
    is_legal = model.may_be_sent(code) and not at & 2 and len(reason.encode()) <= 123
    try:
        octets = frames.check_close(code, reason)
    except ValueError:
        assert not is_legal
    else:
        assert model.read_close(octets) == (code, reason)
        assert frames.serialize_close(code, reason) == octets


def check_serialized(at, payload):
    first = (0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x88, 0x89, 0x8A, 0xC1)[at % 10]
    key = None if at & 64 else int.from_bytes(payload[:4], "little")
    octets = frames.serialize_frame(first, payload, key)
    size = len(payload)
    header = bytes([first, min(size, 126)]) + (size.to_bytes(2, "big") if size > 125 else b"")
    if key is None:
        assert octets == header + payload
        assert frames.serialize_unmasked(first, payload) == octets
        if masking.is_octets(payload.decode("latin-1")):
            assert frames.serialize_unmasked(first, payload.decode("latin-1")) == octets
    else:
        four = key.to_bytes(4, "little")
        header = bytes([first, header[1] | 128]) + header[2:] + four
        assert octets == header + bytes(octet ^ four[index & 3] for index, octet in enumerate(payload))
    rest = payload[:at]
    assert frames.next_frame(rest + octets + b"\xff", len(rest)) == len(rest) + len(octets)


def check_serialized_message(at, payload):
    threshold = THRESHOLDS[at & 15]
    count = max(1, -(-len(payload) // threshold)) if threshold else 1
    keys = list(range(1, count + 1)) if at & 16 else None
    octets = frames.serialize_message(2, payload, threshold, keys)
    if threshold:
        assert frames.measure_message(len(payload), threshold) == len(octets) - (4 * count if keys else 0)
    rules = model.Rules(not keys, sys.maxsize, sys.maxsize, assembles=at & 32 == 0)
    reading = model.Reading(octets, rules)
    assert reading.codes == {None}
    if rules.assembles:
        assert reading.events == [("message", payload)]
    else:
        found = [event for event in reading.events if event[0] == "frame"]
        assert len(found) == count
        assert [first for _, first, _ in found] == [
            (0x80 if index == count - 1 else 0) | (0 if index else 2) for index in range(count)
        ]
        assert b"".join(octets for *_, octets in found) == payload


def check_masking(at, payload):
    key, octets = int.from_bytes(payload[:4], "little"), payload[4:]
    start = min(at & 15, len(octets))
    stop = len(octets) - min(at >> 4, len(octets) - start)
    four = key.to_bytes(4, "little")
    for phase in range(5):
        expected = bytes(octet ^ four[(index + phase) & 3] for index, octet in enumerate(octets[start:stop]))
        assert masking.unmask(octets, start, stop, key, phase) == expected
        assert masking.unmask(bytearray(octets), start, stop, key, phase) == expected
        target = bytearray(b"before")
        masking.extend_unmasked(target, bytearray(octets), start, stop, key, phase)
        assert target == b"before" + expected
        target = masking.allocate(stop - start)
        masking.unmask_into(target, 0, bytearray(octets), start, stop, key, phase)
        assert masking.complete(target) == expected
    check_text(octets, start, stop, key)


def check_text(octets, start, stop, key):
    payload = masking.unmask(octets, start, stop, key, 0)
    buffer = bytearray(octets)
    try:
        expected = payload.decode()
    except UnicodeDecodeError as error:
        expected = error.start
    try:
        found = masking.unmask_text(buffer, start, stop, key)
    except UnicodeDecodeError as error:
        found = error.start
    assert found == expected
    assert (buffer[:start], buffer[stop:]) == (octets[:start], octets[stop:]), "it wrote outside of the text"


CHECKS = (check_close_payload, check_own_close, check_serialized, check_serialized_message, check_masking)

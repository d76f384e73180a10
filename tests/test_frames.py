from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.errors import InvalidPayload, ProtocolError
from geventws.frames import (
    CloseCode,
    Opcode,
    WebSocketFrame,
    check_close,
    is_sendable_close_code,
    measure_message,
    next_frame,
    parse_close,
    serialize_close,
    serialize_frame,
    serialize_message,
    serialize_unmasked,
)
from tests.support import mask

SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
KEY = 0x3D21FA37


class TestSerializeFrame:
    # RFC 6455, 5.7.
    @pytest.mark.parametrize(
        ("first", "payload", "key", "octets"),
        [
            pytest.param(0x81, b"Hello", None, b"\x81\x05Hello", id="unmasked text"),
            pytest.param(0x81, b"Hello", KEY, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", id="masked text"),
            pytest.param(0x01, b"Hel", None, b"\x01\x03Hel", id="first fragment"),
            pytest.param(0x80, b"lo", None, b"\x80\x02lo", id="last fragment"),
            pytest.param(0x89, b"Hello", None, b"\x89\x05Hello", id="ping"),
            pytest.param(0x8A, b"Hello", KEY, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", id="masked pong"),
            pytest.param(0x82, bytes(256), None, b"\x82\x7e\x01\x00" + bytes(256), id="256 octets"),
            pytest.param(
                0x82, bytes(65536), None, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(65536), id="64 KiB"
            ),
        ],
    )
    def test_examples_of_the_rfc(self, first, payload, key, octets):
        assert serialize_frame(first, payload, key) == octets

    @pytest.mark.parametrize(
        ("size", "header"),
        [
            (0, b"\x82\x00"),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (65535, b"\x82\x7e\xff\xff"),
            (65536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ],
    )
    def test_shortest_length(self, size, header):
        assert serialize_frame(0x82, bytes(size)) == header + bytes(size)
        masked = header[:1] + bytes([header[1] | 0x80]) + header[2:]
        assert serialize_frame(0x82, bytes(size), 0) == masked + bytes(4 + size)

    def test_reserved_bits_stay(self):
        assert serialize_frame(0xC1, b"") == b"\xc1\x00"

    def test_key_is_little_endian(self):
        assert serialize_frame(0x82, bytes(5), 0x04030201) == b"\x82\x85\x01\x02\x03\x04\x01\x02\x03\x04\x01"


class TestSerializeMessage:
    @pytest.mark.parametrize(
        ("payload", "threshold", "octets"),
        [
            pytest.param(b"Hello", 0, b"\x81\x05Hello", id="no threshold"),
            pytest.param(b"Hello", 5, b"\x81\x05Hello", id="at the threshold"),
            pytest.param(b"Hello", 3, b"\x01\x03Hel\x80\x02lo", id="above it"),
            pytest.param(b"Hello!", 3, b"\x01\x03Hel\x80\x03lo!", id="no empty last fragment"),
            pytest.param(b"Hello", 2, b"\x01\x02He\x00\x02ll\x80\x01o", id="three fragments"),
            pytest.param(b"", 1, b"\x81\x00", id="empty"),
        ],
    )
    def test_fragments(self, payload, threshold, octets):
        assert serialize_message(Opcode.TEXT, payload, threshold) == octets

    def test_a_key_for_each_frame(self):
        octets = serialize_message(Opcode.BINARY, bytes(5), 3, [0x01010101, 0x02020202])
        assert octets == b"\x02\x83\1\1\1\1\1\1\1\x80\x82\2\2\2\2\2\2"

    def test_one_key(self):
        assert serialize_message(Opcode.TEXT, b"Hello", 0, [KEY])[2:] == b"\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"


def cut(payload, threshold):
    return [payload[start : start + threshold] for start in range(0, len(payload), threshold)] or [b""]


def write_frames(opcode, payload, threshold, keys=None):
    """Serialise a message by the plainest means (5.2, 5.4)."""
    pieces, octets = cut(payload, threshold), b""
    for index, piece in enumerate(pieces):
        first = (0 if index else opcode) | (0x80 if index == len(pieces) - 1 else 0)
        size = len(piece)
        length, count = (size, 0) if size < 126 else (126, 2) if size < 65536 else (127, 8)
        octets += bytes([first, length | (0x80 if keys else 0)]) + size.to_bytes(8, "big")[8 - count :]
        if keys:
            key = keys[index].to_bytes(4, "little")
            octets += key + mask(piece, key)
        else:
            octets += piece
    return octets


# Where the header of a frame grows, and the message by a frame: sizes and thresholds.
BOUNDS = [
    (size, threshold)
    for threshold in (1, 2, 125, 126, 127, 128, 4096, 16384, 65535, 65536, 65537, 2**61)
    for size in sorted(
        {
            *range(3),
            *range(124, 130),
            *range(65534, 65538),
            *(count * threshold + more for count in (1, 2, 3) for more in (-1, 0, 1, 125, 126)),
        }
    )
    if size < 200_000 and size // threshold < 3000
]


class TestMessageOfAnySize:
    @pytest.mark.parametrize("threshold", sorted({threshold for _, threshold in BOUNDS}))
    def test_bounds(self, threshold):
        for size in (size for size, other in BOUNDS if other == threshold):
            payload = (b"0123456789\xff" * (size // 11 + 1))[:size]
            expected = write_frames(2, payload, threshold)
            assert serialize_message(2, payload, threshold) == expected
            assert measure_message(size, threshold) == len(expected)

    @given(st.binary(max_size=600), st.integers(1, 700), st.data())
    def test_any(self, payload, threshold, data):
        assert serialize_message(1, payload, threshold) == write_frames(1, payload, threshold)
        assert measure_message(len(payload), threshold) == len(write_frames(1, payload, threshold))
        count = len(cut(payload, threshold))
        keys = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count))
        assert serialize_message(1, payload, threshold, keys) == write_frames(1, payload, threshold, keys)

    @pytest.mark.parametrize("size", [65534, 65535, 65536, 65537])
    def test_masked(self, size):
        payload = (b"0123456789\xff" * (size // 11 + 1))[:size]
        keys = [KEY, 0, 0xFFFFFFFF, 1]
        assert serialize_message(2, payload, 20_000, keys) == write_frames(2, payload, 20_000, keys)
        assert serialize_message(2, payload, 0, [KEY]) == write_frames(2, payload, 65537, [KEY])

    @pytest.mark.parametrize(
        ("size", "threshold", "octets"),
        [
            pytest.param(2**40, 2**61, 2**40 + 10, id="one frame"),
            pytest.param(2**40, 1, 3 * 2**40, id="frames of one octet"),
            pytest.param(2**40 + 1, 65536, 2**40 + 1 + 2**24 * 10 + 2, id="a last frame of one octet"),
            pytest.param(0, 2**61, 2, id="nothing"),
        ],
    )
    def test_measure_what_no_memory_holds(self, size, threshold, octets):
        assert measure_message(size, threshold) == octets


class TestSerializeUnmasked:
    @pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537])
    @pytest.mark.parametrize("first", [0x81, 0x82, 0xC1])
    def test_sizes(self, size, first):
        payload = (b"0123456789~" * (size // 11 + 1))[:size]
        expected = serialize_frame(first, payload)
        for message in (payload, payload.decode()):
            octets = serialize_unmasked(first, message)
            assert (type(octets), octets) == (bytes, expected)

    @given(st.binary(max_size=300) | st.text(st.characters(max_codepoint=127), max_size=300))
    def test_any(self, message):
        payload = message.encode() if isinstance(message, str) else message
        assert serialize_unmasked(0x81, message) == b"".join(
            [
                bytes([0x81, len(payload)]) if len(payload) < 126 else b"\x81\x7e" + len(payload).to_bytes(2, "big"),
                payload,
            ]
        )


class TestNextFrame:
    @pytest.mark.parametrize("key", [None, KEY], ids=["unmasked", "masked"])
    @pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536])
    def test_sizes(self, size, key):
        frame = serialize_frame(0x82, bytes(size), key)
        assert next_frame(frame, 0) == len(frame)
        assert next_frame(b"\x89\x00" + frame + b"\x89\x00", 2) == 2 + len(frame)

    @given(st.binary(max_size=300), st.integers(1, 200), st.booleans())
    def test_walks_through_a_message(self, payload, threshold, is_masked):
        count = max(1, -(-len(payload) // threshold))
        octets = serialize_message(2, payload, threshold, [KEY] * count if is_masked else None)
        at = 0
        for _ in range(count):
            at = next_frame(octets, at)
        assert at == len(octets)


class TestWebSocketFrame:
    def test_defaults(self):
        assert WebSocketFrame(Opcode.PING) == (9, b"", True, False, False, False)

    @pytest.mark.parametrize(
        ("frame", "first"),
        [
            (WebSocketFrame(Opcode.TEXT, b"Hello"), 0x81),
            (WebSocketFrame(Opcode.TEXT, b"Hel", fin=False), 0x01),
            (WebSocketFrame(Opcode.CONTINUATION, b"lo"), 0x80),
            (WebSocketFrame(Opcode.BINARY, rsv1=True), 0xC2),
            (WebSocketFrame(Opcode.BINARY, rsv2=True), 0xA2),
            (WebSocketFrame(Opcode.BINARY, rsv3=True), 0x92),
        ],
    )
    def test_first_octet(self, frame, first):
        assert frame.first_octet == first


class TestCloseCodes:
    def test_all_16_bits(self):
        assert {code for code in range(65536) if is_sendable_close_code(code)} == SENDABLE

    @pytest.mark.parametrize("code", [-1, 65536 + 1000])
    def test_beyond_16_bits(self, code):
        assert not is_sendable_close_code(code)

    def test_names(self):
        assert {code.value for code in CloseCode} - SENDABLE == {1005, 1006, 1015}
        assert {code.value for code in CloseCode} == {*range(1000, 1004), *range(1005, 1016)}


def parse_code(code):
    """Return a code that is accepted, and minus the close code of the failure for one that is not."""
    try:
        return parse_close(code.to_bytes(2, "big"))[0]
    except ProtocolError as error:
        return -error.close_code


class TestParseClose:
    def test_empty(self):
        assert parse_close(b"") == (1005, "")

    def test_code(self):
        assert parse_close(b"\x03\xe8") == (1000, "")

    def test_reason(self):
        assert parse_close(b"\x0f\xa1\xce\xba") == (4001, "\u03ba")

    def test_one_octet(self):
        with pytest.raises(ProtocolError, match="one octet") as caught:
            parse_close(b"\x03")
        assert caught.value.close_code == 1002

    def test_all_codes(self):
        found = [parse_code(code) for code in range(65536)]
        assert found == [code if code in SENDABLE else -1002 for code in range(65536)]

    @pytest.mark.parametrize("reason", [b"\xff", b"a\xed\xa0\x80", b"cut \xe2\x82"])
    def test_reason_not_utf_8(self, reason):
        with pytest.raises(InvalidPayload, match="not UTF-8") as caught:
            parse_close(b"\x03\xe8" + reason)
        assert caught.value.close_code == 1007


class TestCheckClose:
    def test_payload(self):
        assert check_close(4001, "\u03ba") == b"\x0f\xa1\xce\xba"

    def test_takes_the_enum(self):
        assert check_close(CloseCode.GOING_AWAY, "") == b"\x03\xe9"

    def test_123_octets(self):
        assert check_close(1000, "x" * 123) == b"\x03\xe8" + b"x" * 123

    @pytest.mark.parametrize("reason", ["x" * 124, "\u20ac" * 41 + "x"], ids=["ASCII", "UTF-8"])
    def test_124_octets(self, reason):
        with pytest.raises(ValueError, match="124 octets of UTF-8; at most 123"):
            check_close(1000, reason)

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70000, -1])
    def test_code_that_may_not_be_sent(self, code):
        with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
            check_close(code, "")

    @pytest.mark.parametrize("code", [True, 1000.0, "1000", None])
    def test_code_of_another_type(self, code):
        with pytest.raises(TypeError, match="close code must be an int, not"):
            check_close(code, "")

    @pytest.mark.parametrize("reason", [b"bye", None, 7])
    def test_reason_of_another_type(self, reason):
        with pytest.raises(TypeError, match="close reason must be a str, not"):
            check_close(1000, reason)

    def test_reason_without_utf_8(self):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            check_close(1000, "\ud800")


class TestSerializeClose:
    def test_no_status_is_an_empty_payload(self):
        assert serialize_close(1005, "") == b""

    def test_code_and_reason(self):
        assert serialize_close(1002, "no") == b"\x03\xeano"

    def test_long_reason_is_cut_at_a_character(self):
        # 123 octets hold 61 of the characters of two octets.
        assert serialize_close(1002, "\u00e9" * 70) == b"\x03\xea" + b"\xc3\xa9" * 61

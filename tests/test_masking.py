from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws import masking
from geventws.masking import (
    COMPILED,
    allocate,
    complete,
    count_octets,
    extend_unmasked,
    is_octets,
    unmask,
    unmask_into,
    unmask_text,
)

# RFC 6455, 5.7: "Hello" masked with 37 fa 21 3d; the key is that number read as little-endian.
KEY = 0x3D21FA37
MASKED = b"\x7f\x9f\x4d\x51\x58"

keys = st.integers(0, 2**32 - 1)


def xor(octets, key, phase):
    """Mask octet by octet, as RFC 6455, 5.3 writes it."""
    four = key.to_bytes(4, "little")
    return bytes(octet ^ four[(phase + index) % 4] for index, octet in enumerate(octets))


class TestUnmask:
    def test_example_of_the_rfc(self):
        assert unmask(MASKED, 0, 5, KEY, 0) == b"Hello"
        assert unmask(b"Hello", 0, 5, KEY, 0) == MASKED

    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_part(self, kind):
        assert unmask(kind(b"--" + MASKED + b"--"), 2, 7, KEY, 0) == b"Hello"

    @pytest.mark.parametrize("phase", range(1, 5))
    def test_phase(self, phase):
        assert unmask(MASKED, phase, 5, KEY, phase) == b"Hello"[phase:]

    def test_key_0_copies(self):
        octets = bytearray(b"Hello")
        payload = unmask(octets, 1, 4, 0, 3)
        octets[:] = b"xxxxx"
        assert (type(payload), payload) == (bytes, b"ell")

    def test_nothing(self):
        assert unmask(MASKED, 2, 2, KEY, 1) == b""

    # Whole words, their rest, and where each of them begins and ends.
    @pytest.mark.parametrize("size", [*range(20), 4095, 65537])
    @pytest.mark.parametrize("start", [0, 1, 3])
    def test_sizes(self, size, start):
        octets = bytes(index * 7 & 0xFF for index in range(start + size))
        assert unmask(octets, start, start + size, 0x80FF017F, start) == xor(octets[start:], 0x80FF017F, start)

    def test_phase_beyond_32_bits(self):
        assert unmask(b"\0\0\0\0\0", 0, 5, KEY, 2**40 + 3) == b"\x3d\x37\xfa\x21\x3d"

    @given(st.binary(max_size=70), keys, st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 9))
    def test_any(self, octets, key, phase, before, behind):
        whole = bytes(before) + octets + bytes(behind)
        assert unmask(whole, before, before + len(octets), key, phase) == xor(octets, key, phase)


class TestExtendUnmasked:
    def test_example_of_the_rfc(self):
        target = bytearray(b"Say ")
        extend_unmasked(target, bytearray(MASKED), 0, 5, KEY, 0)
        assert target == b"Say Hello"

    def test_nothing(self):
        target = bytearray()
        extend_unmasked(target, bytearray(MASKED), 3, 3, KEY, 3)
        assert target == b""

    @given(st.lists(st.binary(max_size=20), max_size=6), keys)
    def test_pieces_of_one_payload(self, pieces, key):
        payload = b"".join(pieces)
        target, phase = bytearray(), 0
        for piece in pieces:
            extend_unmasked(target, bytearray(b"\xaa" + piece + b"\xaa"), 1, 1 + len(piece), key, phase)
            phase += len(piece)
        assert target == xor(payload, key, 0)


class TestUnmaskText:
    def test_example_of_the_rfc(self):
        assert unmask_text(bytearray(MASKED), 0, 5, KEY) == "Hello"

    def test_nothing(self):
        assert unmask_text(bytearray(b"\xff\xff"), 1, 1, KEY) == ""

    @pytest.mark.parametrize("text", ["a", "\u00e9", "\u20ac", "\U0001f600", "\0", "a\u00e9\u20ac\U0001f600" * 999])
    @pytest.mark.parametrize("key", [0, KEY])
    def test_octets_around_it_stay(self, text, key):
        octets = xor(text.encode(), key, 0)
        buffer = bytearray(b"\xaa\xbb\xcc" + octets + b"\xdd\xee")
        assert unmask_text(buffer, 3, 3 + len(octets), key) == text
        assert (buffer[:3], buffer[3 + len(octets) :]) == (b"\xaa\xbb\xcc", b"\xdd\xee")

    def test_no_utf_8(self):
        """The error tells of the unmasked octets."""
        with pytest.raises(UnicodeDecodeError) as caught:
            unmask_text(bytearray(b"--" + xor(b"ab\xffc", KEY, 0)), 2, 6, KEY)
        assert (caught.value.object, caught.value.start, caught.value.reason) == (b"ab\xffc", 2, "invalid start byte")

    @given(st.binary(max_size=40), keys)
    def test_any(self, payload, key):
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            with pytest.raises(UnicodeDecodeError):
                unmask_text(bytearray(xor(payload, key, 0)), 0, len(payload), key)
        else:
            assert unmask_text(bytearray(xor(payload, key, 0)), 0, len(payload), key) == text


class TestUnmaskInto:
    @given(st.lists(st.binary(max_size=20), max_size=6), keys)
    def test_pieces_of_one_payload(self, pieces, key):
        payload = b"".join(pieces)
        target, phase = allocate(len(payload)), 0
        for piece in pieces:
            unmask_into(target, phase, bytearray(b"\xaa" + piece + b"\xaa"), 1, 1 + len(piece), key, phase)
            phase += len(piece)
        whole = complete(target)
        assert (type(whole), whole) == (bytes, xor(payload, key, 0))

    def test_octets_around_it_stay(self):
        target = allocate(9)
        unmask_into(target, 0, b"123456789", 0, 9, 0, 0)
        unmask_into(target, 2, MASKED, 0, 5, KEY, 0)
        unmask_into(target, 4, MASKED, 3, 3, KEY, 3)
        assert complete(target) == b"12Hello89"


class TestOctets:
    @pytest.mark.parametrize("message", [b"", b"a\xff", "", "a", "\0\x7f", "a" * 1000], ids=ascii)
    def test_they_are_there(self, message):
        assert is_octets(message)
        assert count_octets(message) == len(message)

    @pytest.mark.parametrize("text", ["\x80", "\u00ff", "a" * 1000 + "\u20ac", "\U0001f600", "\ud800"], ids=ascii)
    def test_they_are_not(self, text):
        assert not is_octets(text)

    @pytest.mark.skipif(not COMPILED, reason="it is about what lies in memory")
    @pytest.mark.parametrize("other", [None, 5, bytearray(b"a"), type("Name", (str,), {})("a")], ids=repr)
    def test_nothing_else_is_looked_into(self, other):
        assert not is_octets(other)


def test_compiled_tells_the_build():
    assert COMPILED is not masking.__file__.endswith(".py")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws import masking
from geventws.masking import COMPILED, extend_unmasked, unmask

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


def test_compiled_tells_the_build():
    assert COMPILED is not masking.__file__.endswith(".py")

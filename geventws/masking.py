"""Masking of payloads (RFC 6455, 5.3).

The one job in C: where the package is compiled, the octets go through ``geventws_xor`` of
``_kernel.h``; elsewhere two long integers are XORed, which is the quickest that Python offers.
A masking key is handled as the little-endian number of its four octets.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from geventws import _cython as cython

__all__ = [
    "COMPILED",
    "allocate",
    "complete",
    "count_octets",
    "extend_unmasked",
    "is_octets",
    "unmask",
    "unmask_into",
    "unmask_text",
]

#: Whether the hot modules of the package are compiled; all of them are, or none.
COMPILED: bool = cython.compiled


def is_octets(message: str | bytes) -> bool:
    """Tell whether a message lies in memory as its octets: ``bytes``, or a text of ASCII alone."""
    if cython.compiled:
        return type(message) is bytes or (type(message) is str and PyUnicode_IS_ASCII(message))  # type: ignore  # noqa: F821
    return isinstance(message, bytes) or message.isascii()


def count_octets(message: str | bytes) -> int:
    """Return the size of a message of which `is_octets` is true."""
    if cython.compiled:
        if type(message) is str:
            return PyUnicode_GET_LENGTH(message)  # type: ignore  # noqa: F821
        return PyBytes_GET_SIZE(message)  # type: ignore  # noqa: F821
    return len(message)


def unmask(octets: bytes | bytearray, start: int, stop: int, key: int, phase: int) -> bytes:
    """Return ``octets[start:stop]`` XORed with the masking key; masking is the same.

    Args:
        octets: Where the payload lies.
        start: Index of the first octet to take.
        stop: Index behind the last one.
        key: The masking key; 0 copies the octets as they are.
        phase: How many octets of the frame's payload came before ``start``.
    """
    if cython.compiled:
        payload = PyBytes_FromStringAndSize(cython.NULL, stop - start)  # type: ignore  # noqa: F821
        geventws_xor(  # type: ignore[name-defined]  # noqa: F821
            address(payload),  # type: ignore[name-defined]  # noqa: F821
            address(octets) + start,  # type: ignore[name-defined]  # noqa: F821
            stop - start,
            key,
            phase,
        )
        return payload  # type: ignore[no-any-return]
    size = stop - start
    if not key or not size:
        return bytes(octets[start:stop])
    shift = (phase & 3) * 8
    turned = (key >> shift | key << (32 - shift)) & 0xFFFFFFFF
    pattern = (turned.to_bytes(4, "little") * (size // 4 + 1))[:size]
    return (int.from_bytes(octets[start:stop], "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")


def unmask_text(buffer: bytearray, start: int, stop: int, key: int) -> str:
    """Return the UTF-8 text ``buffer[start:stop]``, which may be overwritten.

    Raises:
        UnicodeDecodeError: It is none.
    """
    if cython.compiled:
        octets = address(buffer) + start  # type: ignore[name-defined]  # noqa: F821
        if key:
            geventws_xor(octets, octets, stop - start, key, 0)  # type: ignore[name-defined]  # noqa: F821
        return decode_utf_8(octets, stop - start)  # type: ignore[name-defined,no-any-return]  # noqa: F821
    return unmask(buffer, start, stop, key, 0).decode()


def extend_unmasked(target: bytearray, octets: bytearray, start: int, stop: int, key: int, phase: int) -> None:
    """Append what `unmask` returns for the same arguments to ``target``, without a copy between."""
    if cython.compiled:
        have = len(target)
        PyByteArray_Resize(target, have + stop - start)  # type: ignore[name-defined]  # noqa: F821
        unmask_into(target, have, octets, start, stop, key, phase)
        return
    target += unmask(octets, start, stop, key, phase)


def allocate(size: int) -> bytes | bytearray:
    """Return a payload to be filled by `unmask_into`; until that is through only its filled part may be looked at."""
    if cython.compiled:
        return PyBytes_FromStringAndSize(cython.NULL, size)  # type: ignore  # noqa: F821
    return bytearray(size)


def unmask_into(
    target: bytes | bytearray, at: int, octets: bytes | bytearray, start: int, stop: int, key: int, phase: int
) -> None:
    """Put what `unmask` returns for the same arguments at ``target[at:]``, where there is room for it."""
    if cython.compiled:
        geventws_xor(  # type: ignore[name-defined]  # noqa: F821
            address(target) + at,  # type: ignore[name-defined]  # noqa: F821
            address(octets) + start,  # type: ignore[name-defined]  # noqa: F821
            stop - start,
            key,
            phase,
        )
        return
    target[at : at + stop - start] = unmask(octets, start, stop, key, phase)  # type: ignore[index]


def complete(target: bytes | bytearray) -> bytes:
    """Return a payload that is filled as ``bytes``."""
    if cython.compiled:
        return target  # type: ignore[return-value]
    return bytes(target)

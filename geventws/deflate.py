"""Compression of messages: the extension permessage-deflate (RFC 7692).

Strategy: negotiation works on parsed extension lists, and payloads go in and come out; nothing here knows frames.
Where a side takes no context over to its next message, no connection keeps memory for it: what is sent goes through
one compressor for all connections of a hub, made to forget by a full flush after each message, and what comes in
through an inflater that lives as long as its message. Inflating is bounded while it runs: no step makes more than
`STEP_SIZE` octets before the limit is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from geventws.errors import ConfigurationError, InvalidPayload, MessageTooBig
from geventws.headers import Extension

__all__ = [
    "DEFLATE_TAIL",
    "EXTENSION_NAME",
    "MAX_FINAL_BLOCKS",
    "Compressors",
    "Deflate",
    "DeflateOptions",
    "DeflateParameters",
    "accept_offer",
    "check_answer",
    "make_offer",
    "read_parameters",
    "serialize_parameters",
]

EXTENSION_NAME = "permessage-deflate"
#: 7.2.1: what ends each flushed block, and is left out at the end of a message.
DEFLATE_TAIL = b"\x00\x00\xff\xff"
#: Octets that one step of inflating makes at most.
STEP_SIZE = 262144
#: Octets that are given to the inflater at once: what it does not take in a step is copied.
_PIECE_SIZE = 16384
# A block of no octets, whole: it makes nothing where a block may begin.
_EMPTY_BLOCK = b"\x00" + DEFLATE_TAIL
#: 7.2.3.4 lets a sender end blocks with BFINAL; each costs a new inflater, and can be two octets small.
MAX_FINAL_BLOCKS = 1024

_FULL_BITS = 15
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = ("server_max_window_bits", "client_max_window_bits")
# 7.1.2: "a decimal integer value without leading zeroes between 8 to 15 inclusive".
_BITS_VALUES = {str(bits): bits for bits in range(8, _FULL_BITS + 1)}


class Compressor(Protocol):
    """Compress, as what `zlib.compressobj` returns does."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


#: Takes level, method, window bits and memory level.
CompressorMaker = Callable[[int, int, int, int], Compressor]
#: What a compressor is made with: its maker, level, window bits, memory level.
CompressorKey = tuple[CompressorMaker, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflateOptions:
    """Hold the options of permessage-deflate, for ``permessage_deflate`` of a server or a client (RFC 7692).

    Attributes:
        server_no_context_takeover: Whether the server compresses each message on its own (7.1.1.1): larger messages,
            and no memory for each connection on its side.
        client_no_context_takeover: Whether the client is told to do so (7.1.1.2).
        server_max_window_bits: The largest window of the server's compressor, 8 to 15, as a power of two (7.1.2.1).
        client_max_window_bits: The largest window of the client's compressor, 8 to 15; a client that did not offer to
            be asked uses any (7.1.2.2).
        level: Of zlib, 1 (quick) to 9 (small).
        memory_level: Of zlib, 1 to 9: how much memory a compressor takes.
        threshold: Octets of the smallest message that is compressed.
        compressobj: What makes the compressors: another module's with the interface of `zlib.compressobj`, its levels
            from 1 on and its flushes. For a window of 256 octets it is always zlib's.

    Raises:
        ConfigurationError: A value has the wrong type or is out of range.
    """

    # On both sides: an idle connection then costs what it costs without the extension.
    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: int = _FULL_BITS
    client_max_window_bits: int = _FULL_BITS
    # Up to 4 KiB as quick as level 1, and smaller. Level 6 adds a quarter to the time of an echo for another tenth, and
    # most of its own time again where a context is kept.
    level: int = 3
    # zlib's own: nothing less is quicker with the full window, and with a smaller one no more is taken than pays.
    memory_level: int = 8
    # Below it a few dozen octets are saved, of a packet that has to go anyway, for more time than the message takes.
    threshold: int = 256
    # The one that is always there.
    compressobj: CompressorMaker = zlib.compressobj

    def __post_init__(self) -> None:
        """Check every value."""
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in _BITS:
            self._check_number(name, 8, _FULL_BITS)
        self._check_number("level", 1, 9)
        self._check_number("memory_level", 1, 9)
        self._check_number("threshold", 0, None)
        try:
            _make_compressor(self.compressobj, self.level, _FULL_BITS, self.memory_level)
        except Exception as error:
            raise ConfigurationError(f"compressobj makes no compressor of level {self.level}: {error}") from error

    def _check_number(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or value < low or (high is not None and value > high):
            rule = f"an int of {low} or more" if high is None else f"an int from {low} to {high}"
            raise ConfigurationError(f"{name} must be {rule}, not {value!r}")


class DeflateParameters(NamedTuple):
    """Hold the parameters of an offer, an answer or an agreement (7.1).

    Attributes:
        server_no_context_takeover: Whether the parameter is there; so for ``client_no_context_takeover``.
        server_max_window_bits: Its value, None where the parameter is not there.
        client_max_window_bits: Likewise; in an offer 15 may stand for the parameter without a value.
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None


# Negotiation


def read_parameters(parameters: Iterable[tuple[str, str | None]], *, is_offer: bool) -> DeflateParameters:
    """Read the parameters of the extension.

    Args:
        parameters: As `geventws.headers.parse_extensions` gives them.
        is_offer: Whether a client offers them: there ``client_max_window_bits`` may have no value (7.1.2.2).

    Raises:
        ValueError: A parameter is unknown, given twice, or has an illegal value (7.1).
    """
    values: dict[str, bool | int] = {}
    for name, text in parameters:
        if name in values:
            raise ValueError(f"the parameter {name} is given twice")
        values[name] = _read_parameter(name, text, is_offer)
    return DeflateParameters(**values)  # type: ignore[arg-type]


def _read_parameter(name: str, text: str | None, is_offer: bool) -> bool | int:
    if name in _FLAGS:
        if text is not None:
            raise ValueError(f"the parameter {name} has no value, but {text!a} was given")
        return True
    if name not in _BITS:
        raise ValueError(f"the parameter {name!a} is unknown")
    if text is None and is_offer and name == "client_max_window_bits":
        return _FULL_BITS
    if text not in _BITS_VALUES:
        raise ValueError(f"the parameter {name} has a value from 8 to 15, not {text!a}")
    return _BITS_VALUES[text]


def serialize_parameters(parameters: DeflateParameters) -> Extension:
    """Return an answer's extension: its name and its parameters."""
    items: list[tuple[str, str | None]] = [(name, None) for name in _FLAGS if getattr(parameters, name)]
    for name in _BITS:
        bits = getattr(parameters, name)
        if bits is not None:
            items.append((name, str(bits)))
    return EXTENSION_NAME, items


def accept_offer(offers: Sequence[Extension], options: DeflateOptions) -> DeflateParameters | None:
    """Choose the first offer that a server can accept (5.1); invalid ones are declined.

    Args:
        offers: All extensions that the client offered, in its order of preference.
        options: What the server wants.

    Returns:
        The parameters of the answer; None declines, and the connection goes without compression.
    """
    for name, parameters in offers:
        if name == EXTENSION_NAME:
            try:
                return _answer(read_parameters(parameters, is_offer=True), options)
            except ValueError:
                continue
    return None


def _answer(offer: DeflateParameters, options: DeflateOptions) -> DeflateParameters:
    server_bits = min(offer.server_max_window_bits or _FULL_BITS, options.server_max_window_bits)
    says_server_bits = offer.server_max_window_bits is not None or server_bits < _FULL_BITS
    return DeflateParameters(
        offer.server_no_context_takeover or options.server_no_context_takeover,
        offer.client_no_context_takeover or options.client_no_context_takeover,
        server_bits if says_server_bits else None,
        # 7.1.2.2: not in the answer unless it was in the offer.
        None
        if offer.client_max_window_bits is None
        else min(offer.client_max_window_bits, options.client_max_window_bits),
    )


def make_offer(options: DeflateOptions) -> Extension:
    """Return what a client offers for its options."""
    name, items = serialize_parameters(
        DeflateParameters(
            options.server_no_context_takeover,
            options.client_no_context_takeover,
            None if options.server_max_window_bits == _FULL_BITS else options.server_max_window_bits,
            None if options.client_max_window_bits == _FULL_BITS else options.client_max_window_bits,
        )
    )
    if options.client_max_window_bits == _FULL_BITS:
        # Without a value it says that the server may choose (7.1.2.2).
        items.append(("client_max_window_bits", None))
    return name, items


def check_answer(extensions: Sequence[Extension], options: DeflateOptions) -> DeflateParameters | None:
    """Check a server's answer to `make_offer`.

    Args:
        extensions: All extensions of the answer.
        options: What the offer was made of.

    Returns:
        The agreement; None where the server declined.

    Raises:
        ValueError: The answer is illegal, or is none to this offer (7.1).
    """
    answers = [parameters for name, parameters in extensions if name == EXTENSION_NAME]
    if not answers:
        return None
    if len(answers) > 1:
        raise ValueError(f"{EXTENSION_NAME} is answered twice")
    answer = read_parameters(answers[0], is_offer=False)
    if options.server_no_context_takeover and not answer.server_no_context_takeover:
        # 7.1.1.1: a server accepts the offer with the parameter, or declines it.
        raise ValueError("the answer lacks server_no_context_takeover")
    if (answer.server_max_window_bits or _FULL_BITS) > options.server_max_window_bits:
        raise ValueError("server_max_window_bits of the answer is above that of the offer, or missing")
    if (answer.client_max_window_bits or 0) > options.client_max_window_bits:
        raise ValueError("client_max_window_bits of the answer is above that of the offer")
    return answer


# Compressing and inflating


class Compressors:
    """Keep the compressors that the connections of one thread share, one for each set of parameters."""

    __slots__ = ("_compressors",)

    def __init__(self) -> None:
        self._compressors: dict[CompressorKey, Compressor] = {}

    def compress(self, payload: bytes, key: CompressorKey) -> bytes:
        """Compress a payload that refers to none before it.

        Args:
            payload: At least one octet.
            key: What the compressor is made with.
        """
        compressor = self._compressors.pop(key, None) or _make_compressor(*key)
        # A full flush lets the compressor forget what it saw, and costs less than making a new one.
        octets = compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH)
        # Kept only now: one that an exception interrupted may hold half a message of another connection.
        self._compressors[key] = compressor
        return octets[: -len(DEFLATE_TAIL)]


def _make_compressor(compressobj: CompressorMaker, level: int, bits: int, memory_level: int) -> Compressor:
    # A hash table much larger than the window, which a client may make small, costs zlib up to four times the time.
    memory_level = min(memory_level, max(5, bits - 6))
    if bits == 8:
        # zlib has no compressor with a window of 256 octets; run-length matches have a distance of one, and fit into
        # any. Not every other module has that strategy.
        return zlib.compressobj(level, zlib.DEFLATED, -9, memory_level, zlib.Z_RLE)
    return compressobj(level, zlib.DEFLATED, -bits, memory_level)


class Deflate:
    """Compress and inflate the payloads of one connection.

    Attributes:
        threshold: Octets of the smallest message to compress.
        sharing_key: Equal for connections whose compressed messages are the same octets; None where a context is
            taken over, so that they are each connection's own.
    """

    __slots__ = (
        "_bits_in",
        "_compressor",
        "_compressors",
        "_final_count",
        "_has_begun",
        "_inflated_size",
        "_inflater",
        "_key",
        "_max_message_size",
        "_takes_over_in",
        "sharing_key",
        "threshold",
    )

    def __init__(
        self,
        agreed: DeflateParameters,
        options: DeflateOptions,
        compressors: Compressors,
        *,
        is_client: bool,
        max_message_size: int,
    ) -> None:
        """Start with both contexts empty.

        Args:
            agreed: The parameters of the server's answer.
            options: This side's options.
            compressors: Those that this connection shares with others.
            is_client: Which side this is.
            max_message_size: Octets that one message may inflate to.
        """
        server_side = (agreed.server_max_window_bits or _FULL_BITS, not agreed.server_no_context_takeover)
        client_side = (agreed.client_max_window_bits or _FULL_BITS, not agreed.client_no_context_takeover)
        if is_client:
            # 7.1.1.2: a client that wants to forget may do so without being told, and use a smaller window, too.
            bits, takes_over = client_side
            client_side = (
                min(bits, options.client_max_window_bits),
                takes_over and not options.client_no_context_takeover,
            )
        (bits_out, takes_over_out), (bits_in, takes_over_in) = (
            (client_side, server_side) if is_client else (server_side, client_side)
        )
        self.threshold = options.threshold
        self._key = (options.compressobj, options.level, bits_out, options.memory_level)
        self.sharing_key = None if takes_over_out else self._key
        self._compressors = compressors
        self._compressor: Compressor | None = None
        self._bits_in = bits_in
        self._takes_over_in = takes_over_in
        self._inflater: zlib._Decompress | None = None
        self._max_message_size = max_message_size
        self._inflated_size = 0
        self._final_count = 0
        self._has_begun = False

    def compress(self, payload: bytes) -> bytes:
        """Compress a message, or a piece of one that `DEFLATE_TAIL` joins to the piece before (7.2.1)."""
        if not payload:
            # 7.2.3.6: of nothing zlib would flush nothing at all.
            return b"\x00"
        if self.sharing_key is not None:
            return self._compressors.compress(payload, self.sharing_key)
        if self._compressor is None:
            self._compressor = _make_compressor(*self._key)
        octets = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return octets[: -len(DEFLATE_TAIL)]

    def inflate(self, octets: bytes, fin: bool) -> bytes:
        """Inflate a message, or the next part of one (7.2.2).

        Args:
            octets: The payload of a frame, or a part of it.
            fin: Whether the message ends with it.

        Raises:
            InvalidPayload: The octets are no deflate stream, or the message breaks off within a block.
            MessageTooBig: The message inflates to more than its limit, or has more final blocks than one may have.
        """
        self._has_begun = self._has_begun or bool(octets)
        # Where no block has begun the tail would end none: a peer may leave out an empty message's octet (7.2.3.6).
        if fin and self._has_begun:
            octets += DEFLATE_TAIL
        if len(octets) <= _PIECE_SIZE:
            inflated = self._inflate_piece(octets)
        else:
            starts = range(0, len(octets), _PIECE_SIZE)
            inflated = b"".join([self._inflate_piece(octets[start : start + _PIECE_SIZE]) for start in starts])
        if fin:
            self._check_end()
            self._inflated_size = self._final_count = 0
            self._has_begun = False
            if not self._takes_over_in:
                self._inflater = None
        return inflated

    def _check_end(self) -> None:
        """Refuse a message that breaks off: `DEFLATE_TAIL` was taken for a part of its last block."""
        if self._inflater is None or self._is_between_blocks(self._inflater):
            return
        if not self._final_count:
            raise InvalidPayload("a compressed message breaks off within a block")
        # A sender that ends with a final block is let off the octet behind it; the tail is no part of what comes next.
        self._inflater = None

    def _is_between_blocks(self, inflater: zlib._Decompress) -> bool:
        try:
            return not inflater.decompress(_EMPTY_BLOCK, 1)
        except zlib.error:
            return False

    def _inflate_piece(self, piece: bytes) -> bytes:
        inflated, rest = self._inflate_step(piece)
        if not rest:
            return inflated
        steps = [inflated]
        while rest:
            inflated, rest = self._inflate_step(rest)
            steps.append(inflated)
        return b"".join(steps)

    def _inflate_step(self, octets: bytes) -> tuple[bytes, bytes]:
        """Make at most `STEP_SIZE` octets; returns them, and what is left of the input."""
        inflater = self._inflater
        if inflater is None:
            inflater = self._inflater = zlib.decompressobj(-self._bits_in)
        # One more than is allowed shows that there is more; it is never 0, which would be no bound at all.
        bound = min(self._max_message_size - self._inflated_size + 1, STEP_SIZE)
        try:
            inflated = inflater.decompress(octets, bound)
        except zlib.error as error:
            raise InvalidPayload(f"a compressed message is corrupt: {error}") from None
        self._inflated_size += len(inflated)
        if self._inflated_size > self._max_message_size:
            raise MessageTooBig(
                f"a message inflates to more than {self._max_message_size} octets", "max_received_message_size"
            )
        if not inflater.eof:
            return inflated, inflater.unconsumed_tail
        # 7.2.3.4: a final block ends the stream, and with it the context; the message may go on with another.
        self._inflater = None
        self._final_count += 1
        if self._final_count > MAX_FINAL_BLOCKS:
            raise MessageTooBig(f"a message has more than {MAX_FINAL_BLOCKS} final deflate blocks")
        return inflated, inflater.unused_data

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import random
import re
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.deflate import (
    DEFLATE_TAIL,
    EXTENSION_NAME,
    MAX_FINAL_BLOCKS,
    STEP_SIZE,
    Compressors,
    Deflate,
    DeflateOptions,
    DeflateParameters,
    accept_offer,
    check_answer,
    make_offer,
    read_parameters,
    serialize_parameters,
)
from geventws.errors import ConfigurationError, InvalidPayload, MessageTooBig
from geventws.headers import parse_extensions, serialize_extensions

MIB = 1048576
ALL_BITS = range(8, 16)
FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
BITS = ("server_max_window_bits", "client_max_window_bits")
FORGETFUL = DeflateParameters(server_no_context_takeover=True, client_no_context_takeover=True)
# Neither compresses well nor is noise: what applications send.
_random = random.Random(7692)
JSON = json.dumps([{"id": number, "roles": [_random.choice("rwx")], "at": _random.random()} for number in range(100)])
JSON = JSON.encode()
NOISE = _random.randbytes(100_000)


def make(agreed=FORGETFUL, *, is_client=False, max_message_size=MIB, compressors=None, **options):
    return Deflate(
        agreed,
        DeflateOptions(**options),
        Compressors() if compressors is None else compressors,
        is_client=is_client,
        max_message_size=max_message_size,
    )


def make_pair(agreed, **options):
    """Return a server and a client that agreed on something, each with compressors of its own."""
    return make(agreed, **options), make(agreed, is_client=True, **options)


def inflate_alone(octets, bits=15):
    """Inflate one message that refers to none before it."""
    inflater = zlib.decompressobj(-bits)
    payload = inflater.decompress(octets + DEFLATE_TAIL)
    assert not inflater.unused_data
    return payload


def inflate_strictly(octets, bits):
    """Inflate octet by octet: only then zlib has nothing but its window to look back into."""
    inflater = zlib.decompressobj(-bits)
    payload = bytearray()
    octets += DEFLATE_TAIL
    while made := inflater.decompress(octets, 1):
        payload += made
        octets = inflater.unconsumed_tail
    return bytes(payload)


def split(octets, cuts):
    bounds = [0, *sorted(cuts), len(octets)]
    return [octets[start:stop] for start, stop in itertools.pairwise(bounds)]


def inflate_pieces(deflate, pieces):
    *others, last = pieces
    return b"".join([*(deflate.inflate(piece, False) for piece in others), deflate.inflate(last, True)])


class TestOptions:
    def test_defaults(self):
        assert dataclasses.asdict(DeflateOptions()) == {
            "server_no_context_takeover": True,
            "client_no_context_takeover": True,
            "server_max_window_bits": 15,
            "client_max_window_bits": 15,
            "level": 3,
            "memory_level": 8,
            "threshold": 256,
            "compressobj": zlib.compressobj,
        }

    @pytest.mark.parametrize("name", FLAGS)
    def test_flags(self, name):
        assert getattr(DeflateOptions(**{name: False}), name) is False

    @pytest.mark.parametrize("name", FLAGS)
    @pytest.mark.parametrize("value", [0, 1, None, "yes"])
    def test_no_flags(self, name, value):
        with pytest.raises(ConfigurationError, match=f"^{name} must be True or False, not "):
            DeflateOptions(**{name: value})

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            *((name, (8, 9, 14, 15)) for name in BITS),
            ("level", (1, 9)),
            ("memory_level", (1, 9)),
            ("threshold", (0, 1)),
        ],
    )
    def test_numbers(self, name, values):
        for value in values:
            assert getattr(DeflateOptions(**{name: value}), name) == value

    @pytest.mark.parametrize(
        ("name", "low", "high"), [*((name, 8, 15) for name in BITS), ("level", 1, 9), ("memory_level", 1, 9)]
    )
    def test_numbers_out_of_range(self, name, low, high):
        for value in (low - 1, high + 1, -1, True, None, float(low), str(low)):
            with pytest.raises(ConfigurationError, match=f"^{name} must be an int from {low} to {high}, not "):
                DeflateOptions(**{name: value})

    @pytest.mark.parametrize("value", [-1, False, None, 1.5, "0"])
    def test_threshold_out_of_range(self, value):
        with pytest.raises(ConfigurationError, match=f"^threshold must be an int of 0 or more, not {value!r}$"):
            DeflateOptions(threshold=value)

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(None, id="None"),
            pytest.param("zlib", id="str"),
            pytest.param(lambda: None, id="other arguments"),
            pytest.param(lambda level, *_: [][level], id="other levels"),
        ],
    )
    def test_makes_no_compressor(self, value):
        with pytest.raises(ConfigurationError, match=r"^compressobj makes no compressor of level 3: \S"):
            DeflateOptions(compressobj=value)

    def test_is_a_value(self):
        options = DeflateOptions(level=1)
        assert options == DeflateOptions(level=1)
        assert hash(options) == hash(DeflateOptions(level=1))
        assert dataclasses.replace(options, level=3) == DeflateOptions()
        with pytest.raises(ConfigurationError):
            dataclasses.replace(options, level=0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            options.level = 2
        with pytest.raises(TypeError):
            DeflateOptions(True)


class TestReadParameters:
    """RFC 7692, 7.1."""

    @pytest.mark.parametrize(
        ("text", "parameters"),
        [
            pytest.param("", DeflateParameters(), id="none"),
            pytest.param("; server_no_context_takeover", DeflateParameters(True), id="server forgets"),
            pytest.param("; client_no_context_takeover", DeflateParameters(False, True), id="client forgets"),
            pytest.param('; server_max_window_bits="10"', DeflateParameters(False, False, 10), id="quoted"),
            pytest.param(
                "; client_max_window_bits = 9;server_max_window_bits= 12; client_no_context_takeover "
                ";server_no_context_takeover",
                DeflateParameters(True, True, 12, 9),
                id="all in any order",
            ),
        ],
    )
    def test_of_both(self, text, parameters):
        [(_, items)] = parse_extensions(EXTENSION_NAME + text)
        assert read_parameters(items, is_offer=True) == parameters
        assert read_parameters(items, is_offer=False) == parameters

    @pytest.mark.parametrize("name", BITS)
    @pytest.mark.parametrize("bits", ALL_BITS)
    def test_bits(self, name, bits):
        for is_offer in (True, False):
            parameters = read_parameters([(name, str(bits))], is_offer=is_offer)
            assert parameters == DeflateParameters(**{name: bits})

    def test_client_bits_without_a_value_are_for_offers(self):
        # 7.1.2.2: "client_max_window_bits" may have no value in an offer.
        items = [("client_max_window_bits", None)]
        assert read_parameters(items, is_offer=True) == DeflateParameters(client_max_window_bits=15)
        with pytest.raises(ValueError, match="client_max_window_bits has a value from 8 to 15, not None"):
            read_parameters(items, is_offer=False)

    @pytest.mark.parametrize("is_offer", [True, False], ids=["offer", "answer"])
    @pytest.mark.parametrize(
        ("items", "message"),
        [
            *(
                pytest.param(
                    [(name, value)], f"{name} has a value from 8 to 15, not {value!a}", id=f"{name[0]} bits {value}"
                )
                for name in BITS
                # "a decimal integer value without leading zeroes between 8 to 15 inclusive"
                for value in ("7", "16", "0", "08", "+8", "-8", "8.0", "1e1", "", "ten", "\uff19", "115")
            ),
            pytest.param([(BITS[0], None)], "server_max_window_bits has a value", id="server bits without a value"),
            *(pytest.param([(name, "1")], f"{name} has no value, but '1' was given", id=name) for name in FLAGS),
            *(pytest.param([(name, "")], f"{name} has no value", id=f"{name} empty") for name in FLAGS),
            pytest.param([("max_window_bits", "10")], "the parameter 'max_window_bits' is unknown", id="unknown"),
            pytest.param([("Server_No_Context_Takeover", None)], "is unknown", id="other case"),
            pytest.param([(FLAGS[0], None)] * 2, "server_no_context_takeover is given twice", id="flag twice"),
            pytest.param([(BITS[1], "9")] * 2, "client_max_window_bits is given twice", id="bits twice"),
            pytest.param([(BITS[0], "9"), (FLAGS[1], None), (BITS[0], "10")], "is given twice", id="twice, apart"),
        ],
    )
    def test_illegal(self, items, message, is_offer):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_parameters(items, is_offer=is_offer)


class TestSerializeParameters:
    def test_least(self):
        assert serialize_parameters(DeflateParameters()) == ("permessage-deflate", [])

    def test_all(self):
        extension = serialize_parameters(DeflateParameters(True, True, 15, 8))
        assert serialize_extensions([extension]) == (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
            "server_max_window_bits=15; client_max_window_bits=8"
        )

    def test_can_be_read(self):
        for flags in itertools.product((False, True), repeat=2):
            for bits in itertools.product((None, *ALL_BITS), repeat=2):
                parameters = DeflateParameters(*flags, *bits)
                name, items = serialize_parameters(parameters)
                assert name == EXTENSION_NAME
                assert read_parameters(items, is_offer=False) == parameters


def accept(value, **options):
    """Return a server's answer to the value of a client's header field."""
    agreed = accept_offer(parse_extensions(value), DeflateOptions(**options))
    return None if agreed is None else serialize_extensions([serialize_parameters(agreed)])


TAKING_OVER = {"server_no_context_takeover": False, "client_no_context_takeover": False}


class TestAcceptOffer:
    @pytest.mark.parametrize(
        ("offer", "options", "answer"),
        [
            pytest.param("permessage-deflate", TAKING_OVER, "permessage-deflate", id="plain"),
            # What Chromium and Firefox offer.
            pytest.param(
                "permessage-deflate; client_max_window_bits",
                TAKING_OVER,
                "permessage-deflate; client_max_window_bits=15",
                id="browser",
            ),
            pytest.param(
                "permessage-deflate; client_max_window_bits",
                {},
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=15",
                id="browser, defaults",
            ),
            # 7.1.1: a server may include either flag although it was not offered.
            pytest.param(
                "permessage-deflate",
                {},
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                id="defaults",
            ),
            pytest.param(
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                {**TAKING_OVER, "server_max_window_bits": 12},
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                id="the client's smaller window",
            ),
            pytest.param(
                "permessage-deflate; server_max_window_bits=15",
                {**TAKING_OVER, "server_max_window_bits": 9},
                "permessage-deflate; server_max_window_bits=9",
                id="our smaller window",
            ),
            pytest.param(
                "permessage-deflate",
                {**TAKING_OVER, "server_max_window_bits": 9, "client_max_window_bits": 9},
                "permessage-deflate; server_max_window_bits=9",
                id="a client that cannot be asked for a smaller window",
            ),
        ],
    )
    def test_answers(self, offer, options, answer):
        assert accept(offer, **options) == answer

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "x-webkit-deflate-frame",
            "permessage-bzip2, permessage_deflate",
            "Permessage-Deflate",
            "permessage-deflate; unknown",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16, permessage-deflate; client_max_window_bits=7",
        ],
    )
    def test_declines(self, value):
        assert accept(value) is None

    def test_first_that_can_be_accepted(self):
        value = (
            "foo, permessage-deflate; server_max_window_bits=7, "
            "permessage-deflate; server_max_window_bits=11, permessage-deflate"
        )
        assert accept(value, **TAKING_OVER) == "permessage-deflate; server_max_window_bits=11"
        assert accept("permessage-deflate; unknown, permessage-deflate", **TAKING_OVER) == "permessage-deflate"

    def test_every_combination(self):
        offers = [
            DeflateParameters(*flags, *bits)
            for flags in itertools.product((False, True), repeat=2)
            for bits in itertools.product((None, *ALL_BITS), repeat=2)
        ]
        for flags in itertools.product((False, True), repeat=2):
            for bits in itertools.product((8, 9, 12, 15), repeat=2):
                options = DeflateOptions(**dict(zip((*FLAGS, *BITS), (*flags, *bits), strict=True)))
                for offer in offers:
                    self.check(offer, options, accept_offer([serialize_parameters(offer)], options))

    def check(self, offer, options, answer):
        # 7.1.1.1: "accepts [...] by including the parameter in the response".
        assert answer.server_no_context_takeover is (
            offer.server_no_context_takeover or options.server_no_context_takeover
        )
        assert answer.client_no_context_takeover is (
            offer.client_no_context_takeover or options.client_no_context_takeover
        )
        # 7.1.2.1: "the same or smaller value".
        server_bits = min(offer.server_max_window_bits or 15, options.server_max_window_bits)
        assert (answer.server_max_window_bits or 15) == server_bits
        if offer.server_max_window_bits is not None:
            assert answer.server_max_window_bits is not None
        # 7.1.2.2: "MUST NOT include [...] unless the extension negotiation offer [...] includes" it.
        if offer.client_max_window_bits is None:
            assert answer.client_max_window_bits is None
        else:
            assert answer.client_max_window_bits == min(offer.client_max_window_bits, options.client_max_window_bits)


def check(value, **options):
    return check_answer(parse_extensions(value), DeflateOptions(**options))


class TestOfferAndAnswer:
    @pytest.mark.parametrize(
        ("options", "offer"),
        [
            pytest.param(
                {},
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits",
                id="defaults",
            ),
            pytest.param(TAKING_OVER, "permessage-deflate; client_max_window_bits", id="with takeover"),
            pytest.param(
                {**TAKING_OVER, "server_max_window_bits": 9, "client_max_window_bits": 10},
                "permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
                id="windows",
            ),
        ],
    )
    def test_offer(self, options, offer):
        assert serialize_extensions([make_offer(DeflateOptions(**options))]) == offer

    @pytest.mark.parametrize(
        ("options", "value", "agreed"),
        [
            pytest.param({}, "", None, id="declined"),
            pytest.param({}, "foo", None, id="others alone"),
            pytest.param(TAKING_OVER, "permessage-deflate", DeflateParameters(), id="plain"),
            # 7.1.1.1: a server may forget although it was not asked to, and use a smaller window.
            pytest.param(
                TAKING_OVER,
                "foo, permessage-deflate; server_no_context_takeover; server_max_window_bits=8",
                DeflateParameters(True, False, 8),
                id="server's own will",
            ),
            # 7.1.1.2: the parameter of the offer is a hint.
            pytest.param(
                {"server_no_context_takeover": False}, "permessage-deflate", DeflateParameters(), id="hint is not taken"
            ),
            pytest.param(
                TAKING_OVER,
                "permessage-deflate; client_no_context_takeover; client_max_window_bits=11",
                DeflateParameters(False, True, None, 11),
                id="client is told",
            ),
            pytest.param(
                {**TAKING_OVER, "client_max_window_bits": 11},
                "permessage-deflate; client_max_window_bits=11",
                DeflateParameters(False, False, None, 11),
                id="the same window",
            ),
        ],
    )
    def test_answer(self, options, value, agreed):
        assert check(value, **options) == agreed

    @pytest.mark.parametrize(
        ("options", "value", "message"),
        [
            pytest.param(TAKING_OVER, "permessage-deflate, permessage-deflate", "answered twice", id="twice"),
            pytest.param(TAKING_OVER, "permessage-deflate; foo", "unknown", id="unknown parameter"),
            pytest.param(TAKING_OVER, "permessage-deflate; client_max_window_bits", "a value from 8", id="no value"),
            pytest.param({}, "permessage-deflate", "lacks server_no_context_takeover", id="server does not forget"),
            pytest.param(
                {**TAKING_OVER, "server_max_window_bits": 10},
                "permessage-deflate; server_max_window_bits=11",
                "server_max_window_bits of the answer is above",
                id="server's window is larger",
            ),
            pytest.param(
                {**TAKING_OVER, "server_max_window_bits": 10},
                "permessage-deflate",
                "server_max_window_bits of the answer is above that of the offer, or missing",
                id="server's window is missing",
            ),
            pytest.param(
                {**TAKING_OVER, "client_max_window_bits": 10},
                "permessage-deflate; client_max_window_bits=11",
                "client_max_window_bits of the answer is above",
                id="client's window is larger",
            ),
        ],
    )
    def test_illegal_answer(self, options, value, message):
        with pytest.raises(ValueError, match=message):
            check(value, **options)

    def test_each_client_takes_the_answer_of_each_server(self):
        every = [
            DeflateOptions(**dict(zip((*FLAGS, *BITS), (*flags, *bits), strict=True)))
            for flags in itertools.product((False, True), repeat=2)
            for bits in itertools.product((8, 9, 14, 15), repeat=2)
        ]
        for client in every:
            offer = parse_extensions(serialize_extensions([make_offer(client)]))
            for server in every:
                agreed = accept_offer(offer, server)
                assert check_answer([serialize_parameters(agreed)], client) == agreed


class TestExamplesOfTheRFC:
    """RFC 7692, 7.2.3: the payloads of "Hello"."""

    def test_one_block(self):
        assert make(level=6).compress(b"Hello") == b"\xf2\x48\xcd\xc9\xc9\x07\x00"
        assert make().inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", True) == b"Hello"

    def test_fragments(self):
        deflate = make()
        assert deflate.inflate(b"\xf2\x48\xcd", False) + deflate.inflate(b"\xc9\xc9\x07\x00", True) == b"Hello"

    def test_sharing_the_sliding_window(self):
        server, client = make_pair(DeflateParameters(), level=6, **TAKING_OVER)
        assert [server.compress(b"Hello") for _ in range(2)] == [
            b"\xf2\x48\xcd\xc9\xc9\x07\x00",
            b"\xf2\x00\x11\x00\x00",
        ]
        assert client.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", True) == b"Hello"
        assert client.inflate(b"\xf2\x00\x11\x00\x00", True) == b"Hello"
        # Without what went before it means nothing.
        with pytest.raises(InvalidPayload):
            make().inflate(b"\xf2\x00\x11\x00\x00", True)

    def test_block_without_compression(self):
        assert make().inflate(b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", True) == b"Hello"

    def test_final_block(self):
        assert make().inflate(b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", True) == b"Hello"

    def test_two_blocks(self):
        assert make().inflate(b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", True) == b"Hello"

    def test_empty_message(self):
        assert make().compress(b"") == b"\x00"
        assert make().inflate(b"\x00", True) == b""


every_agreement = pytest.mark.parametrize(
    "agreed",
    [
        pytest.param(DeflateParameters(server, client, bits, bits), id=f"{name}, {bits} bits")
        for name, server, client in [("takeover", False, False), ("none", True, True), ("server alone", False, True)]
        for bits in (8, 9, 15)
    ],
)


class TestCompress:
    @every_agreement
    def test_both_sides(self, agreed):
        messages = [b"a", b"Hello" * 100, JSON, b"", NOISE[:3000], bytes(70_000), JSON, NOISE[:3000], b"\xff"]
        server, client = make_pair(agreed, **TAKING_OVER)
        for message in messages:
            assert client.inflate(server.compress(message), True) == message
            assert server.inflate(client.compress(message), True) == message

    # Repetitions at every distance around that of a window.
    @pytest.mark.parametrize("bits", ALL_BITS)
    @pytest.mark.parametrize("level", [1, 3, 6, 9])
    def test_no_distance_is_above_the_window(self, bits, level):
        deflate = make(DeflateParameters(True, True, bits), level=level)
        for distance in (1, 2, 100, *((1 << bits) + more for more in (-300, -263, -262, -1, 0, 1, 2, 300))):
            message = NOISE[: max(distance, 0)] * 2 + b"-" * 600
            assert inflate_strictly(deflate.compress(message), bits) == message

    @pytest.mark.parametrize("bits", ALL_BITS)
    def test_no_distance_is_above_the_window_of_a_context(self, bits):
        server, client = make_pair(DeflateParameters(False, True, bits), **TAKING_OVER)
        for size in (1, 200, 1 << bits, 1 << bits, (1 << bits) + 300, 100, 100):
            assert client.inflate(server.compress(NOISE[:size]), True) == NOISE[:size]

    @pytest.mark.parametrize("bits", [8, 9, 14])
    def test_a_larger_window_would_not_do(self, bits):
        # What makes the two tests before this one prove anything.
        message = NOISE[: (1 << bits) + 300] * 2
        octets = make(level=9).compress(message)
        assert inflate_strictly(octets, 15) == message
        with pytest.raises(zlib.error, match="too far back"):
            inflate_strictly(octets, bits)

    def test_a_window_of_256_octets_still_compresses_runs(self):
        assert len(make(DeflateParameters(True, True, 8)).compress(bytes(10_000))) < 100

    def test_windows_are_used(self):
        text = NOISE[:6000] * 2
        sizes = [len(make(DeflateParameters(True, True, bits)).compress(text)) for bits in (15, 9)]
        assert sizes[0] < 6200 < 12_000 < sizes[1]

    def test_level(self):
        sizes = [len(make(level=level).compress(JSON)) for level in (1, 9)]
        assert sizes[0] > sizes[1]

    def test_memory_level(self):
        sizes = {len(make(memory_level=level).compress(NOISE + JSON)) for level in (1, 9)}
        assert len(sizes) == 2

    @pytest.mark.parametrize(("bits", "most"), [(8, 5), (9, 5), (11, 5), (12, 6), (14, 8), (15, 9)])
    def test_memory_level_of_a_small_window(self, bits, most):
        # The level shows in where blocks end.
        message = NOISE + JSON
        agreed = DeflateParameters(True, True, bits)
        octets = make(agreed, memory_level=most).compress(message)
        assert make(agreed, memory_level=9).compress(message) == octets
        assert make(agreed, memory_level=most - 1).compress(message) != octets

    @pytest.mark.parametrize("takes_over", [False, True])
    def test_compressobj(self, takes_over):
        made = []

        def make_stored(*arguments):
            made.append(arguments)
            return zlib.compressobj(0, *arguments[1:])

        agreed = DeflateParameters(not takes_over, True, 11)
        deflate = make(agreed, compressobj=make_stored, level=7, **TAKING_OVER)
        assert b"Hello" in deflate.compress(b"Hello")
        assert set(made[1:]) == {(7, zlib.DEFLATED, -11, 5)}

    def test_compressobj_is_shared_by_its_own(self):
        compressors = Compressors()
        plain = make(compressors=compressors)
        other = make(compressors=compressors, compressobj=lambda _, *others: zlib.compressobj(0, *others))
        assert plain.sharing_key != other.sharing_key
        assert b"Hello" not in plain.compress(b"Hello")
        assert b"Hello" in other.compress(b"Hello")

    @pytest.mark.parametrize("bits", ALL_BITS)
    @pytest.mark.parametrize("name", ["isal.isal_zlib", "zlib_ng.zlib_ng"])
    def test_other_modules(self, name, bits):
        module = pytest.importorskip(name, reason=f"{name} is not installed")
        messages = [b"a", JSON, JSON, NOISE[: 1 << bits] * 2, bytes(70_000), JSON]
        for level in (1, 3):
            options = {"compressobj": module.compressobj, "level": level}
            deflate = make(DeflateParameters(True, True, bits), **options)
            assert [inflate_strictly(deflate.compress(message), bits) for message in messages] == messages
            server, client = make_pair(DeflateParameters(False, True, bits), **options, **TAKING_OVER)
            assert [client.inflate(server.compress(message), True) for message in messages] == messages

    @every_agreement
    def test_fragments_of_unknown_number(self, agreed):
        # 7.2.1: what is not at the message's end keeps the octets that end each flushed block.
        server, client = make_pair(agreed, **TAKING_OVER)
        for _ in range(2):
            pieces = [b"Hello", b"", JSON, b"Hello", NOISE[:500]]
            octets = DEFLATE_TAIL.join(map(server.compress, pieces))
            assert client.inflate(octets, True) == b"".join(pieces)

    @pytest.mark.parametrize("memory_level", [1, 8, 9])
    @pytest.mark.parametrize("bits", [8, 9, 15])
    def test_what_does_not_shrink_hardly_grows(self, memory_level, bits):
        deflate = make(DeflateParameters(True, True, bits), memory_level=memory_level)
        assert len(deflate.compress(NOISE)) < len(NOISE) * 9 // 8

    def test_sides(self):
        # Each side has its own direction's parameters.
        agreed = DeflateParameters(True, False, 9, 15)
        assert make(agreed, level=1, memory_level=2).sharing_key == (zlib.compressobj, 1, 9, 2)
        assert make(agreed, is_client=True, **TAKING_OVER).sharing_key is None
        agreed = DeflateParameters(False, True, 15, 10)
        assert make(agreed).sharing_key is None
        assert make(agreed, is_client=True).sharing_key == (zlib.compressobj, 3, 10, 8)

    def test_a_client_forgets_without_being_told(self):
        assert make(DeflateParameters(), is_client=True).sharing_key == (zlib.compressobj, 3, 15, 8)
        assert make(DeflateParameters(), is_client=True, client_no_context_takeover=False).sharing_key is None
        # The server is bound by its own answer, not by what a client may wish.
        assert make(DeflateParameters()).sharing_key is None

    def test_a_clients_window_is_not_above_its_own_option(self):
        deflate = make(DeflateParameters(), is_client=True, client_max_window_bits=9)
        assert deflate.sharing_key == (zlib.compressobj, 3, 9, 8)
        assert inflate_alone(deflate.compress(JSON), 9) == JSON

    def test_threshold(self):
        assert make(threshold=17).threshold == 17


class TestSharedCompressor:
    """No message refers to one before it, of the same connection or of another."""

    @pytest.mark.parametrize("bits", ALL_BITS)
    @pytest.mark.parametrize("level", range(1, 10))
    def test_each_message_is_inflated_alone(self, level, bits):
        compressors = Compressors()
        connections = [
            make(DeflateParameters(True, True, bits), compressors=compressors, level=level) for _ in range(2)
        ]
        secret = b"secret " * 20
        for message in (secret, secret, bytes(70_000), b"\0", JSON, JSON, secret, NOISE[:40_000], NOISE[:40_000]):
            for connection in connections:
                assert inflate_alone(connection.compress(message), bits) == message

    def test_the_same_octets_whatever_came_before(self):
        fresh = make().compress(JSON)
        compressors = Compressors()
        connection = make(compressors=compressors)
        for message in (JSON, b"x", NOISE, bytes(100_000), JSON[:500]):
            assert connection.compress(message)
            assert make(compressors=compressors).compress(JSON) == fresh

    def test_one_for_each_set_of_parameters(self):
        compressors = Compressors()
        bits = [15, 9, 8, 15, 9, 8]
        connections = [make(DeflateParameters(True, True, each), compressors=compressors) for each in bits]
        octets = [connection.compress(JSON) for connection in connections]
        assert octets[:3] == octets[3:]
        assert len(set(octets)) == 3

    def test_an_interrupted_one_is_not_used_again(self):
        compressors = Compressors()
        key = make().sharing_key
        fresh = compressors.compress(JSON, key)
        with pytest.raises(TypeError):
            compressors.compress("no octets", key)
        assert compressors.compress(JSON, key) == fresh

    def test_contexts_are_a_connections_own(self):
        compressors = Compressors()
        agreed = DeflateParameters()
        one, other = (make(agreed, compressors=compressors, **TAKING_OVER) for _ in range(2))
        first = one.compress(JSON)
        assert other.compress(JSON) == first
        assert len(one.compress(JSON)) < len(first) // 10


class TestInflate:
    @every_agreement
    def test_split_at_every_octet(self, agreed):
        server, client = make_pair(agreed, **TAKING_OVER)
        message = JSON[:600]
        for at in range(len(make(agreed).compress(message))):
            octets = server.compress(message)
            assert inflate_pieces(client, split(octets, [min(at, len(octets))])) == message
        octets = server.compress(message)
        assert inflate_pieces(client, split(octets, range(1, len(octets)))) == message

    def test_empty_pieces(self):
        octets = make().compress(JSON)
        assert inflate_pieces(make(), [b"", octets[:9], b"", octets[9:], b""]) == JSON

    def test_early(self):
        # What a piece holds comes with it, not with the end of the message.
        octets = make().compress(JSON)
        assert JSON.startswith(inflated := make().inflate(octets[:-20], False))
        assert len(inflated) > len(JSON) // 2

    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_no_octet_at_all(self, takes_over):
        # Not even the one that an empty message has.
        deflate = make(DeflateParameters(True, not takes_over))
        for _ in range(2):
            assert [deflate.inflate(b"", True) for _ in range(2)] == [b"", b""]
            assert deflate.inflate(make().compress(JSON), True) == JSON

    def test_forgets_where_that_was_agreed(self):
        deflate = make(DeflateParameters(False, True))
        assert deflate.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", True) == b"Hello"
        with pytest.raises(InvalidPayload):
            deflate.inflate(b"\xf2\x00\x11\x00\x00", True)

    def test_window_is_that_of_the_agreement(self):
        # The sender's has 32768 octets, which both messages together fit into.
        sender = make(DeflateParameters(), **TAKING_OVER)
        octets = [sender.compress(NOISE[:2000]) for _ in range(2)]
        for bits, is_enough in ((11, True), (10, False)):
            deflate = make(DeflateParameters(True, False, None, bits))
            assert deflate.inflate(octets[0], True) == NOISE[:2000]
            if is_enough:
                assert deflate.inflate(octets[1], True) == NOISE[:2000]
            else:
                with pytest.raises(InvalidPayload, match="too far back"):
                    deflate.inflate(octets[1], True)

    @pytest.mark.parametrize("size", [0, 1, 257, STEP_SIZE - 1, STEP_SIZE, STEP_SIZE + 1, 2 * STEP_SIZE, 700_001])
    def test_sizes_around_a_step(self, size):
        octets = make().compress(bytes(size))
        assert make().inflate(octets, True) == bytes(size)
        assert inflate_pieces(make(), split(octets, range(1, len(octets)))) == bytes(size)

    @pytest.mark.parametrize("size", [16_380, 16_384, 16_385, 40_000])
    def test_long_input(self, size):
        assert make().inflate(make().compress(NOISE[:size]), True) == NOISE[:size]


class TestCorrupt:
    @pytest.mark.parametrize(
        "octets",
        [
            pytest.param(b"\x06", id="reserved type of block"),
            pytest.param(b"\x00\x05\x00\x05\x00Hello", id="length that is none"),
            pytest.param(b"\xf2\x00\x11\x00\x00", id="distance before the beginning"),
            pytest.param(b"\xff" * 100, id="ones"),
            pytest.param(NOISE[:100], id="noise"),
            pytest.param(b"Hello, this is no deflate stream", id="text"),
        ],
    )
    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_refused(self, octets, takes_over):
        with pytest.raises(InvalidPayload, match="a compressed message ") as caught:
            make(DeflateParameters(True, not takes_over)).inflate(octets, True)
        assert caught.value.close_code == 1007

    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_breaks_off(self, takes_over):
        # What we add to the end would else become a part of the message.
        stored = b"\x00\x64\x00\x9b\xff" + b"a" * 100 + b"\x00"
        agreed = DeflateParameters(True, not takes_over)
        assert make(agreed).inflate(stored, True) == b"a" * 100
        # One octet alone is an empty message; where exactly four are missing, ours cannot be told from them.
        for size in {*range(2, 5 + 100)} - {5 + 96}:
            with pytest.raises(InvalidPayload):
                make(agreed).inflate(stored[:size], True)

    @pytest.mark.parametrize("message", [b"Hello", JSON[:1000], bytes(3000)], ids=["Hello", "JSON", "zeros"])
    def test_breaks_off_anywhere(self, message):
        octets = make().compress(message)
        delivered = []
        for size in range(1, len(octets)):
            with contextlib.suppress(InvalidPayload):
                delivered.append(make().inflate(octets[:size], True))
        # Where it breaks off in a block's header, it may look as if it ended before it.
        assert all(message.startswith(each) for each in delivered)
        assert len(delivered) < len(octets) / 5

    def test_breaks_off_at_the_limit(self):
        stored = b"\x00\x64\x00\x9b\xff" + b"a" * 60
        for size in (59, 60, 63, 64, 65):
            with pytest.raises((InvalidPayload, MessageTooBig)):
                make(max_message_size=size).inflate(stored, True)

    def test_message_behind_a_whole_one(self):
        deflate = make(DeflateParameters(True, False))
        assert deflate.inflate(deflate.compress(JSON), True) == JSON
        with pytest.raises(InvalidPayload):
            deflate.inflate(b"\x06", True)


def make_final(payload):
    """Compress a payload into a block with BFINAL."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(payload) + compressor.flush(zlib.Z_FINISH)


class TestFinalBlocks:
    """7.2.3.4: a block may have BFINAL set, also within a message."""

    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_messages(self, takes_over):
        deflate = make(DeflateParameters(True, not takes_over))
        for message in (b"Hello", JSON, b"", bytes(MIB)):
            assert deflate.inflate(make_final(message) + b"\x00", True) == message
        assert deflate.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", True) == b"Hello"

    def test_several_in_one_message(self):
        octets = make_final(b"one ") + make_final(b"two ") + make().compress(b"three")
        assert make().inflate(octets, True) == b"one two three"
        assert inflate_pieces(make(), split(octets, range(1, len(octets)))) == b"one two three"

    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_without_the_octet_behind_it(self, takes_over):
        # It should be there, and its absence takes nothing away, also of the next message.
        deflate = make(DeflateParameters(True, not takes_over))
        for message in (JSON, b"Hello"):
            assert deflate.inflate(make_final(message), True) == message
        assert deflate.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", True) == b"Hello"

    def test_ends_the_context(self):
        deflate = make(DeflateParameters(True, False))
        assert deflate.inflate(make_final(b"Hello") + b"\x00", True) == b"Hello"
        with pytest.raises(InvalidPayload):
            deflate.inflate(b"\xf2\x00\x11\x00\x00", True)

    def test_too_many(self):
        block = make_final(b"")
        deflate = make()
        for _ in range(2):
            # They are counted for each message.
            assert deflate.inflate(block * MAX_FINAL_BLOCKS + b"\x00", True) == b""
        with pytest.raises(MessageTooBig, match="more than 1024 final deflate blocks") as caught:
            deflate.inflate(block * (MAX_FINAL_BLOCKS + 1), False)
        assert (caught.value.close_code, caught.value.limit) == (1009, "")

    def test_too_many_in_pieces(self):
        deflate = make()
        for _ in range(MAX_FINAL_BLOCKS):
            assert deflate.inflate(make_final(b""), False) == b""
        with pytest.raises(MessageTooBig):
            deflate.inflate(make_final(b""), False)

    def test_limit_holds_across_them(self):
        octets = make_final(bytes(600)) * 2
        assert make(max_message_size=1200).inflate(octets + b"\x00", True) == bytes(1200)
        with pytest.raises(MessageTooBig):
            make(max_message_size=1199).inflate(octets + b"\x00", True)


class TestBound:
    @pytest.mark.parametrize("size", [1, 2, 1000, STEP_SIZE - 1, STEP_SIZE, STEP_SIZE + 1, 3 * STEP_SIZE])
    @pytest.mark.parametrize("takes_over", [False, True], ids=["forgets", "takes over"])
    def test_limit(self, size, takes_over):
        agreed = DeflateParameters(True, not takes_over)
        message = (NOISE[:50] * (size // 50 + 1))[:size]
        for _ in range(2):
            deflate = make(agreed, max_message_size=size)
            # Each message has the whole limit.
            assert deflate.inflate(make().compress(message), True) == message
            assert deflate.inflate(make().compress(message), True) == message
            with pytest.raises(MessageTooBig, match=f"a message inflates to more than {size} octets") as caught:
                deflate.inflate(make().compress(message + b"x"), True)
            assert (caught.value.close_code, caught.value.limit) == (1009, "max_received_message_size")

    def test_limit_of_many_pieces(self):
        octets = make().compress(bytes(1000))
        for size in (1000, 999):
            deflate = make(max_message_size=size)
            pieces = split(octets, range(1, len(octets)))
            if size == 1000:
                assert inflate_pieces(deflate, pieces) == bytes(1000)
            else:
                with pytest.raises(MessageTooBig):
                    inflate_pieces(deflate, pieces)

    def test_bomb(self):
        # A mebioctet that makes a gibioctet.
        compressors = Compressors()
        bomb = compressors.compress(bytes(MIB), (zlib.compressobj, 9, 15, 9)) + DEFLATE_TAIL
        bomb *= 1024
        assert len(bomb) < 1.1 * MIB
        deflate = make()
        tracemalloc.start()
        try:
            with pytest.raises(MessageTooBig):
                deflate.inflate(bomb, True)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The input with its end, the limit, and a step more.
        assert peak < len(bomb) + MIB + 2 * STEP_SIZE

    def test_bomb_in_pieces(self):
        bomb = make(level=9).compress(bytes(MIB)) + DEFLATE_TAIL
        deflate = make()
        assert len(deflate.inflate(bomb, False)) == MIB
        with pytest.raises(MessageTooBig):
            deflate.inflate(bomb, False)


messages = st.lists(
    st.binary(max_size=60)
    | st.builds(lambda text, count: text * count, st.binary(min_size=1, max_size=20), st.integers(0, 200))
    | st.builds(lambda start, size: NOISE[start : start + size], st.integers(0, 200), st.integers(0, 2000)),
    max_size=5,
)
agreements = st.builds(
    DeflateParameters,
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(8, 15),
    st.none() | st.integers(8, 15),
)


class TestAnything:
    @given(messages, agreements, st.booleans(), st.integers(1, 9), st.integers(1, 9), st.data())
    @settings(max_examples=150)
    def test_messages_come_through(self, messages, agreed, is_client, level, memory_level, data):
        pair = make_pair(agreed, level=level, memory_level=memory_level, **TAKING_OVER)
        sender, receiver = reversed(pair) if is_client else pair
        for message in messages:
            octets = sender.compress(message)
            cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=3))
            assert inflate_pieces(receiver, split(octets, cuts)) == message

    @given(st.binary(max_size=80), st.integers(1, 300), st.booleans(), st.data())
    @settings(max_examples=300)
    def test_rubbish(self, octets, limit, takes_over, data):
        deflate = make(DeflateParameters(True, not takes_over), max_message_size=limit)
        cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=3))
        try:
            inflated = inflate_pieces(deflate, split(octets, cuts))
        except (InvalidPayload, MessageTooBig):
            return
        assert len(inflated) <= limit

    @given(st.binary(min_size=1, max_size=300), st.data())
    @settings(max_examples=100)
    def test_flipped_bits(self, message, data):
        octets = bytearray(make().compress(message * 10))
        place = data.draw(st.integers(0, len(octets) - 1))
        octets[place] ^= 1 << data.draw(st.integers(0, 7))
        try:
            inflated = make(max_message_size=5000).inflate(bytes(octets), True)
        except (InvalidPayload, MessageTooBig):
            return
        assert len(inflated) <= 5000

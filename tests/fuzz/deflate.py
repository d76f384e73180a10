"""The target for `geventws.deflate`: negotiation (RFC 7692, 5 and 7.1), and what is inflated (7.2)."""

from __future__ import annotations

import contextlib

from geventws import deflate, headers
from geventws.deflate import DeflateParameters
from geventws.errors import InvalidPayload, MessageTooBig

from . import model
from .protocol import COMPRESSORS, OPTIONS, read_options

LIMITS = (1 << 20, 1, 2, 100, 1000, 262143, 262144, 262145)
NAME = deflate.EXTENSION_NAME


def check_deflate(data):
    """Call what the first octet chooses, with one octet of options and what follows."""
    number, octet, payload = (data[0], data[1], data[2:]) if len(data) > 1 else (0, 0, data)
    CHECKS[number % len(CHECKS)](octet, payload)


def check_negotiation(octet, payload):
    """Answer what a client offers, and judge what a server answers."""
    options = read_options(octet)
    try:
        extensions = headers.parse_extensions(headers.unfold(payload.decode("latin-1")))
    except ValueError:
        return
    check_acceptance(extensions, options)
    with contextlib.suppress(ValueError):
        agreed = deflate.check_answer(extensions, options)
        check_agreement(agreed, extensions, options)


def check_acceptance(extensions, options):
    answer = deflate.accept_offer(extensions, options)
    offers = [offer for offer in map(read_offer, extensions) if offer is not None]
    if answer is None:
        assert not offers, f"an offer was declined: {offers}"
        return
    offer = offers[0]
    for flag in ("server_no_context_takeover", "client_no_context_takeover"):
        assert getattr(answer, flag) is (getattr(offer, flag) or getattr(options, flag))
    assert (answer.server_max_window_bits or 15) <= min(
        offer.server_max_window_bits or 15, options.server_max_window_bits
    )
    if offer.client_max_window_bits is None:
        assert answer.client_max_window_bits is None
    name, parameters = deflate.serialize_parameters(answer)
    (parsed,) = headers.parse_extensions(headers.serialize_extensions([(name, parameters)]))
    assert deflate.read_parameters(parsed[1], is_offer=False) == answer


def read_offer(extension):
    """Read an offer by the plainest means; None where it is none that may be accepted."""
    name, parameters = extension
    values = dict(parameters)
    legal = {
        "server_no_context_takeover": [None],
        "client_no_context_takeover": [None],
        "server_max_window_bits": list(map(str, range(8, 16))),
        "client_max_window_bits": [None, *map(str, range(8, 16))],
    }
    is_legal = all(key in legal and value in legal[key] for key, value in parameters)
    if name != NAME or len(values) < len(parameters) or not is_legal:
        return None
    server_bits = values.get("server_max_window_bits")
    client_bits = values.get("client_max_window_bits", "")
    return DeflateParameters(
        "server_no_context_takeover" in values,
        "client_no_context_takeover" in values,
        None if server_bits is None else int(server_bits),
        15 if client_bits is None else int(client_bits) if client_bits else None,
    )


def check_agreement(agreed, extensions, options):
    if agreed is None:
        assert NAME not in dict(extensions)
        return
    assert agreed.server_no_context_takeover or not options.server_no_context_takeover
    assert (agreed.server_max_window_bits or 15) <= options.server_max_window_bits
    assert (agreed.client_max_window_bits or 8) <= options.client_max_window_bits


def check_inflated(octet, payload):
    """Inflate rubbish whole and in pieces: the same comes out or goes wrong, and never more than the limit."""
    limit = LIMITS[octet & 7]
    bits = (15, 8, 9, 12)[octet >> 6]
    agreed = DeflateParameters(server_no_context_takeover=bool(octet & 8), server_max_window_bits=bits)
    step = 1 + (octet >> 4 & 3) * 20
    messages = payload.split(b"\x81\x82\x83")
    whole, cut = (
        deflate.Deflate(agreed, OPTIONS, COMPRESSORS, is_client=True, max_message_size=limit) for _ in range(2)
    )
    for message in messages:
        found = inflate(whole, [message])
        assert not isinstance(found, bytes) or len(found) <= limit
        pieces = [message[start : start + step] for start in range(0, len(message), step)] or [b""]
        found_in_pieces = inflate(cut, pieces)
        is_failed = not (isinstance(found, bytes) and isinstance(found_in_pieces, bytes))
        # zlib finds a distance beyond a window that is not the largest, or not, as the octets are cut.
        assert found == found_in_pieces or (is_failed and bits < 15) or is_too_big_and_corrupt(found, found_in_pieces)
        if is_failed:
            return


def inflate(receiver, pieces):
    try:
        return b"".join([receiver.inflate(piece, index == len(pieces) - 1) for index, piece in enumerate(pieces)])
    except (InvalidPayload, MessageTooBig) as error:
        return error.close_code


def is_too_big_and_corrupt(*found):
    """Tell whether both are failures: where one octet too many is followed by a fault, zlib may tell of that first."""
    return set(found) <= {1007, 1009}


def check_compressed(octet, payload):
    """Compress messages, and inflate them as the peer does, and as zlib does."""
    options = read_options(octet)
    agreed = DeflateParameters(
        options.server_no_context_takeover, True, options.server_max_window_bits, options.client_max_window_bits
    )
    sender, receiver = (
        deflate.Deflate(agreed, options, COMPRESSORS, is_client=is_client, max_message_size=1 << 20)
        for is_client in (False, True)
    )
    rules = model.Rules(True, 1 << 20, 1 << 20, deflate=(options.server_max_window_bits, sender.sharing_key is None))
    wire = b""
    messages = payload.split(b"\x81\x82\x83")
    for message in messages:
        compressed = sender.compress(message)
        assert receiver.inflate(compressed, True) == message
        wire += b"\xc2\x7e" + len(compressed).to_bytes(2, "big") + compressed
        if len(compressed) < 126:
            # Its length has a shorter form.
            wire = wire[: -4 - len(compressed)] + bytes([0xC2, len(compressed)]) + compressed
    reading = model.Reading(wire, rules)
    assert reading.events == [("message", message) for message in messages]


CHECKS = (check_negotiation, check_inflated, check_compressed)

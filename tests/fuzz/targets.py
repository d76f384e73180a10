"""The targets by name: each is a function of octets that raises where something is wrong."""

from __future__ import annotations

import time

from geventws.protocol import Protocol

from . import deflate, frames, grammars, protocol

#: What the input of the target `growth` is repeated up to: octets.
GROWN_SIZE = 32768
#: Seconds of the processor for such a one. It takes hundredths; with a step for each pair of octets it takes longer.
GROWN_TIME = 2.0


def check_growth(data):
    """See that time is linear in the size of the input, which is repeated for that."""
    check = GROWING[data[0] % len(GROWING)] if data else receive_slowly
    start, piece = data[1:2], data[2:] or b"a"
    octets = start + piece * (GROWN_SIZE // len(piece))
    started = time.process_time()
    check(octets)
    taken = time.process_time() - started
    assert taken < GROWN_TIME, f"{taken:.1f} s for {len(octets)} octets"


def receive_slowly(data):
    """Receive one octet at a time, and take nothing before the end."""
    protocol = Protocol(is_client=True)
    for index in range(len(data)):
        protocol.receive_octets(data[index : index + 1])
    while protocol.has_events():
        protocol.take()


GROWING = (
    grammars.check_headers,
    grammars.check_handshake,
    grammars.check_cookies,
    grammars.check_proxies,
    receive_slowly,
    deflate.check_deflate,
)
TARGETS = {
    "protocol": protocol.check_protocol,
    "conversation": protocol.check_conversation,
    "frames": frames.check_frame,
    "deflate": deflate.check_deflate,
    "headers": grammars.check_headers,
    "handshake": grammars.check_handshake,
    "head": grammars.check_head,
    "cookies": grammars.check_cookies,
    "proxies": grammars.check_proxies,
    "growth": check_growth,
}

"""Measure what attacks cost a server in memory: ``python tests/measure_memory.py``.

Each attack is made on a fresh ``geventws echo`` in a child process, with the options that it names and the defaults
else. Printed are the resident memory of the child after one echo (VmRSS), its peak when the attack is over (VmHWM), the
difference, and what the attack came to. Linux only.

``--python PATH`` measures the geventws that is installed for another interpreter: the other build, or another version.
Attacks on what that one does not have are left out. Names of attacks restrict the run to them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import gevent

# As a script this has no parent package; behind everything else, so that geventws is still the installed one.
sys.path.append(str(Path(__file__).parent.parent))

from tests.siege import MIB, ZERO_KEY, EchoServer, check_echo, make_bomb, make_large_frame, many_descriptors
from tests.support import make_frame, open_client

#: Attack → the flags of the server that it needs.
ATTACKS = {}
OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
LARGE_FRAMES = ["--max-received-frame-size", str(2 * MIB)]


def attack(*flags):
    def register(function):
        ATTACKS[function] = flags
        return function

    return register


def read_to_close(client):
    """Return the number of messages before the server's Close, and its code."""
    count = 0
    while (frame := client.read_frame())[0] != 0x88:
        count += frame[0] >> 7
    return count, int.from_bytes(frame[1][:2], "big")


@attack()
def announced(server):
    """Announce frames of 2^63-1 octets, 100 times."""
    frame = b"\x82\xff" + ((1 << 63) - 1).to_bytes(8, "big") + ZERO_KEY
    for _ in range(100):
        with open_client(server, early=frame) as client:
            _, code = read_to_close(client)
    return f"closed with {code}"


@attack()
def fragments(server):
    """Send 65535 fragments of one octet of a message that never ends, on each of 100 connections."""
    octets = make_frame(b"a", 0x01) + make_frame(b"a", 0x00) * 65534 + make_frame(b"?", 0x89)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(open_client(server))
            client.send(octets)
            assert client.read_frame() == (0x8A, b"?")
    return "all of them held"


@attack("--permessage-deflate", *LARGE_FRAMES)
def bomb(server):
    """Send a frame of 1 MiB that inflates to 1 GiB."""
    octets = make_large_frame(make_bomb(1024), 0xC2)
    with open_client(server, "/", OFFER) as client:
        client.send(octets)
        _, code = read_to_close(client)
    return f"{len(octets)} octets sent, closed with {code}"


@attack("--permessage-deflate", *LARGE_FRAMES)
def bombs(server):
    """Send the same on 50 connections at once."""
    octets = make_large_frame(make_bomb(1024), 0xC2)

    def throw():
        with open_client(server, "/", OFFER) as client:
            client.send(octets)
            return read_to_close(client)[1]

    codes = {thrower.get() for thrower in [gevent.spawn(throw) for _ in range(50)]}
    return f"closed with {codes}"


@attack("--permessage-deflate", "--send-timeout", "5")
def bombs_in_turn(server):
    """Send 20000 messages of 1 KiB that inflate to 1 MiB, the most that is allowed, and read no echo."""
    octets = make_frame(make_bomb(1), 0xC2, ZERO_KEY)
    sent = 0
    with open_client(server, "/", OFFER) as client, contextlib.suppress(OSError):
        for _ in range(20000):
            client.send(octets)
            sent += 1
    return f"{sent} messages sent"


@attack()
def pings(server):
    """Send 200 MiB of Pings and read no Pong."""
    octets = make_frame(bytes(119), 0x89, ZERO_KEY) * 800
    with open_client(server) as client:
        for _ in range(2000):
            client.send(octets)
        client.send(make_frame("end"))
        count, _ = 0, None
        while client.read_frame()[0] == 0x8A:
            count += 1
    return f"{2000 * 800} Pings, {count} Pongs read afterwards"


@attack("--send-timeout", "5")
def echoes(server):
    """Send as much as the server takes on each of 100 connections, and read no echo."""
    octets = make_large_frame(bytes(65536))

    def flood():
        sent = 0
        with open_client(server) as client, contextlib.suppress(OSError):
            while True:
                client.send(octets)
                sent += len(octets)
        return sent

    sent = sum(flooding.get() for flooding in [gevent.spawn(flood) for _ in range(100)])
    return f"{sent / MIB:.0f} MiB taken, then dropped by send_timeout"


@attack()
def broadcast(server):
    """Let the server broadcast 200 MiB to 100 clients that never read."""
    message = make_frame(bytes(60_000), 0x82, ZERO_KEY)
    count = 200 * MIB // 60_000
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(open_client(server, "/broadcast")) for _ in range(100)]
        publisher = stack.enter_context(open_client(server, "/broadcast"))
        for _ in range(count):
            publisher.send(message)
            while not publisher.read_frame()[0] & 0x80:
                pass
        left = sum(len(client.read_end()) for client in slow)
    return f"{count} messages; {left / MIB:.0f} MiB were in the kernel when they were failed"


def measure(function, flags, python):
    """Return a row of the table."""
    with EchoServer(*flags, python=python) as server:
        with open_client(server) as client:
            check_echo(client, "warm")
        before = server.read_memory()
        started = time.monotonic()
        outcome = function(server)
        seconds = time.monotonic() - started
        peak = server.read_memory("VmHWM")
        status, errors = server.terminate()
    assert (status, errors) == (0, ""), errors
    name = function.__name__.replace("_", "-")
    return [name, f"{before / MIB:.1f}", f"{peak / MIB:.1f}", f"{(peak - before) / MIB:.1f}", f"{seconds:.1f}", outcome]


def print_row(cells):
    widths = (13, 8, 8, 8, 6, 0)
    print("|", " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, metavar="PATH")
    names = {function.__name__.replace("_", "-"): function for function in ATTACKS}
    parser.add_argument("attacks", nargs="*", choices=[[], *names], metavar="ATTACK", help=", ".join(names))
    given = parser.parse_args()
    print_row(["attack", "rest", "peak", "growth", "s", "in MiB; what came of it"])
    print_row(["---"] * 6)
    with many_descriptors(2048):
        for name, function in names.items():
            if given.attacks and name not in given.attacks:
                continue
            try:
                print_row(measure(function, ATTACKS[function], given.python))
            except RuntimeError as refusal:
                print_row([name, "", "", "", "", str(refusal).splitlines()[-1]])


if __name__ == "__main__":
    main()

"""Measure what permessage-deflate costs a server: CPU time for each echoed message, memory for each connection.

``python benchmarks/compression.py`` prints both tables; ``--help`` names what may be changed. Needs Linux.

Strategy: each case is an echo server in a process of its own, which tells its CPU time and its resident memory over
plain HTTP. All servers take turns in each round, so what else the machine does hits them alike, and the median of the
rounds counts. Clients are plain sockets that send messages compressed beforehand, each on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import random
import resource
import socket
import statistics
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from gevent.pywsgi import WSGIServer

from geventws import DeflateOptions, WebSocketRequest, WebSocketServer
from geventws.deflate import DEFLATE_TAIL

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima"]
#: So many octets of messages that differ, or a kept window would still hold a message when it is sent again.
VARIETY = 262144
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


class Case(NamedTuple):
    """Name one configuration of a server; without a module it does not compress."""

    title: str
    module: str = ""
    level: int = 3
    takes_over: bool = False
    bits: int = 15
    memory_level: int = 8

    def make_option(self) -> bool | DeflateOptions:
        """Return the value of ``permessage_deflate``."""
        if not self.module:
            return False
        return DeflateOptions(
            server_no_context_takeover=not self.takes_over,
            client_no_context_takeover=not self.takes_over,
            server_max_window_bits=self.bits,
            client_max_window_bits=self.bits,
            level=self.level,
            memory_level=self.memory_level,
            threshold=0,
            compressobj=importlib.import_module(self.module).compressobj,
        )


def list_cases(modules: Sequence[str], levels: Sequence[int]) -> list[Case]:
    """Return all cases."""
    cases = [Case("off")]
    for module in modules:
        for level in levels:
            name = f"{module} {level}"
            cases += [
                Case(f"{name}, no context", module, level),
                Case(f"{name}, context, 15/8", module, level, takes_over=True),
                Case(f"{name}, context, 12/5", module, level, takes_over=True, bits=12, memory_level=5),
            ]
    return cases


# The server's process


def serve(case: Case, pipe: Connection) -> None:
    """Echo for ever; the port goes through the pipe."""
    http = WSGIServer(("127.0.0.1", 0), tell_use, log=None)
    server = WebSocketServer(http_server=http, permessage_deflate=case.make_option(), keepalive=False)

    @server.on("request")
    def accept(request: WebSocketRequest) -> None:
        connection = request.accept()
        connection.on("message", connection.send)

    http.start()
    pipe.send(http.server_port)
    http.serve_forever()


def tell_use(environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
    """Answer with this process's CPU time in seconds and its resident memory in octets."""
    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[1]) * resource.getpagesize()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([time.process_time(), memory]).encode()]


@contextlib.contextmanager
def run_server(case: Case) -> Iterator[int]:
    """Run a server while the block runs, and give its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(case, theirs), daemon=True)
    process.start()
    # A child that fails closes the last copy, and ends our waiting.
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def ask_use(port: int) -> tuple[float, int]:
    """Return a server's CPU time and memory."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
        seconds, memory = json.load(response)
    return seconds, memory


# The clients


def make_messages(size: int) -> list[bytes]:
    """Make JSON-like texts that differ, the same in each run."""
    chance = random.Random(size)
    return [make_message(chance, size) for _ in range(max(1, VARIETY // size))]


def make_message(chance: random.Random, size: int) -> bytes:
    """Make one of them."""
    records: list[str] = []
    while sum(map(len, records)) < size:
        record = {
            "id": chance.randrange(100000),
            "name": f"{chance.choice(WORDS)} {chance.choice(WORDS)}",
            "value": round(chance.random() * 1024, 2),
            "tags": [chance.choice(WORDS), chance.choice(WORDS)],
            "active": chance.random() < 0.5,
        }
        records.append(json.dumps(record, separators=(",", ":")) + ",")
    return "".join(records)[:size].encode()


def make_frame(message: bytes, is_compressed: bool) -> bytes:
    """Return a text message in one frame, masked with a key of zeros."""
    if is_compressed:
        # A window of 9 bits suits whatever was agreed.
        compressor = zlib.compressobj(6, zlib.DEFLATED, -9)
        message = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(DEFLATE_TAIL)
    size = len(message)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0xC1 if is_compressed else 0x81]) + length + bytes(4) + message


class Client:
    """Speak to a server over a blocking socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rb")
        self.send(UPGRADE)
        head = b"".join(iter(self._file.readline, b"\r\n"))
        self.is_compressed = b"permessage-deflate" in head

    def send(self, octets: bytes) -> None:
        """Send octets."""
        self._socket.sendall(octets)

    def receive(self) -> int:
        """Read a frame, and return the size of its payload."""
        size = self._file.read(2)[1]
        if size == 126:
            size = int.from_bytes(self._file.read(2), "big")
        self._file.read(size)
        return size

    def close(self) -> None:
        """Close the socket."""
        self._file.close()
        self._socket.close()


class Crowd:
    """Let several clients of one server send at once, each another message."""

    def __init__(self, port: int, count: int, messages: Sequence[bytes]) -> None:
        self.port = port
        self._clients = [Client(port) for _ in range(count)]
        self._frames = [make_frame(message, self._clients[0].is_compressed) for message in messages]
        self._turn = 0

    def echo(self, turns: int) -> float:
        """Echo so many messages on each connection; returns the mean size of the replies."""
        sizes = []
        for turn in range(self._turn, self._turn + turns):
            # Seven is prime to the number of messages: neighbours have different ones.
            for number, client in enumerate(self._clients):
                client.send(self._frames[(turn + 7 * number) % len(self._frames)])
            sizes += [client.receive() for client in self._clients]
        self._turn += turns
        return statistics.mean(sizes)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()


# The measurements


def measure_time(cases: Sequence[Case], messages: Sequence[bytes], rounds: int, turns: int) -> None:
    """Print the CPU time of each case, for one message, and the size of a reply."""
    print(f"\nmessages of {len(messages[0])} octets\n{'':32} microseconds   reply")
    with contextlib.ExitStack() as stack:
        crowds = {case: Crowd(stack.enter_context(run_server(case)), 16, messages) for case in cases}
        times: dict[Case, list[float]] = {case: [] for case in cases}
        sizes: dict[Case, float] = {}
        for crowd in crowds.values():
            stack.callback(crowd.close)
            crowd.echo(turns)
        for _ in range(rounds):
            for case, crowd in crowds.items():
                before, _ = ask_use(crowd.port)
                sizes[case] = crowd.echo(turns)
                after, _ = ask_use(crowd.port)
                times[case].append((after - before) / turns / 16 * 1e6)
        for case in cases:
            print(f"{case.title:32} {statistics.median(times[case]):12.1f} {sizes[case]:7.0f}")


def measure_memory(cases: Sequence[Case], messages: Sequence[bytes], count: int) -> None:
    """Print how much each connection adds to the server's memory, after one message each and after sixty-four."""
    print(f"\n{count} connections{'KiB a connection after one message':>60} after 64")
    for case in cases:
        with run_server(case) as port:
            warm = Crowd(port, 16, messages)
            warm.echo(4)
            _, before = ask_use(port)
            crowd = Crowd(port, count, messages)
            grown = []
            for turns in (1, 63):
                crowd.echo(turns)
                grown.append((ask_use(port)[1] - before) / count / 1024)
            print(f"{case.title:32} {grown[0]:41.1f} {grown[1]:8.1f}")
            crowd.close()
            warm.close()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512, 1024, 4096, 16384])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--modules", nargs="+", default=["zlib"], help="that have compressobj, such as isal.isal_zlib")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=64, help="messages of each of 16 connections, in each round")
    parser.add_argument("--connections", type=int, default=1000, help="for the memory; 0 leaves it out")
    options = parser.parse_args()
    if max(options.sizes, default=0) > 16384:
        parser.error("above 16384 octets a reply has several frames")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for size in options.sizes:
        measure_time(list_cases(options.modules, options.levels), make_messages(size), options.rounds, options.turns)
    if options.connections:
        measure_memory(list_cases(options.modules, [3]), make_messages(4096), options.connections)


if __name__ == "__main__":
    main()

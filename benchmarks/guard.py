"""Count the instructions and system calls that a message costs the server, and compare them with the committed figures.

``make guard`` prints a table, and fails when a figure grew by more than 10 %; ``make guard-update`` writes the figures
to ``guard.json`` beside this file. It needs Linux, the compiled build, and Debian's packages valgrind and strace.

Strategy: time depends on what else a machine does, counts do not. `guard_server.py` runs under callgrind, and once more
under strace. A driver, this process, makes the same exchanges with it in lock-step: it sends on only when every reply
is there, so the server wakes up as often in each run. Each path is counted over few exchanges and over many, and the
difference is divided by that of the messages, so what is done only once is not in it.

A path has three figures: ``own``, the instructions within geventws's compiled modules; ``instructions``, those of the
whole process; and ``system calls``. The first depends on Cython, the compiler and what Python's headers inline, and is
the same to the instruction in each run; the second also depends on gevent, the C library and the processor, and may
differ by one percent. So the versions lie beside the figures, and are named where they differ.

``--parts`` prints of what the figures consist. What callgrind saw of each path lies in ``build/guard/PATH.callgrind``
for ``callgrind_annotate``. It has what each function cost itself, and no costs of callees: greenlets leave functions by
other ways than callgrind knows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import greenlet

import geventws
from geventws.deflate import DEFLATE_TAIL

HERE = Path(__file__).parent
FIGURES = HERE / "guard.json"
BUILD = HERE.parent / "build" / "guard"
#: What a figure may grow by.
TOLERANCE = 0.10
#: The masking key of RFC 6455, 5.7.
MASKING_KEY = b"\x37\xfa\x21\x3d"
TEXT = 0x81
BINARY = 0x82
COMPRESSED_TEXT = 0xC1
CLOSE = 0x88

#: The figures of a path by name.
Figures = Mapping[str, float]
Exchange = Callable[[], object]


# The server


class CannotCount(Exception):
    """Report that a count was not possible."""


class Server:
    """Run `guard_server.py` under a tool; its standard error and the tool's go to a file, ``log``."""

    def __init__(self, *tool: str) -> None:
        self.log = BUILD / f"{tool[0]}.log"
        environment = os.environ | {"PYTHONHASHSEED": "0", "LD_PRELOAD": str(build_clock())}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*tool, sys.executable, str(HERE / "guard_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def start(self) -> None:
        """Wait until the server listens."""
        self.port, self._number = map(int, self._read_to(b"\n").split())

    def settle(self) -> None:
        """Wait until the server has nothing left to do and sleeps."""
        while (state := self._read_state()) != "S":
            if state == "Z":
                raise RuntimeError("the server ended")
            time.sleep(0.0005)

    def _read_state(self) -> str:
        # It stands behind the program's name, which is in parentheses.
        return Path(f"/proc/{self._number}/stat").read_text().rpartition(") ")[2][0]

    def mark(self) -> None:
        """End a count, and begin another."""
        self._input.write(b".")
        self._read_to(b".")

    def _read_to(self, end: bytes) -> bytes:
        octets = b""
        while not octets.endswith(end):
            octet = self._output.read(1)
            if not octet:
                raise RuntimeError("the server ended")
            octets += octet
        return octets

    def close(self) -> None:
        """End the server, and wait for it and its tool."""
        self._input.close()
        self._output.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def build_clock() -> Path:
    """Compile the server's clock."""
    clock = BUILD / "guard_clock.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(clock), str(HERE / "guard_clock.c")], check=True)
    return clock


# The driver


def make_frame(first: int, payload: bytes) -> bytes:
    """Return a client's frame in one piece."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    key = MASKING_KEY * (size // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key[:size], "big")
    return bytes([first]) + length + MASKING_KEY + masked.to_bytes(size, "big")


class Client:
    """Speak to the server over a blocking socket."""

    def __init__(self, port: int, target: str, *headers: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        lines = [
            f"GET {target} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            *headers,
        ]
        self.send("\r\n".join([*lines, "", ""]).encode())
        status = self._file.readline()
        if b" 101 " not in status:
            raise RuntimeError(f"{target} was not accepted: {status!r}")
        while self._file.readline() != b"\r\n":
            pass

    def send(self, octets: bytes) -> None:
        """Send octets in one system call."""
        self._socket.sendall(octets)

    def receive(self) -> tuple[int, bytes]:
        """Return the first octet and the payload of a frame."""
        head = self._file.read(2)
        if len(head) < 2:
            raise RuntimeError("the server ended the connection")
        first, size = head
        if size == 126:
            size = int.from_bytes(self._file.read(2), "big")
        return first, self._file.read(size)

    def expect(self, first: int, payload: bytes) -> None:
        """Read a frame that must be this one."""
        if (received := self.receive()) != (first, payload):
            raise RuntimeError(f"the server sent {received} instead of {(first, payload)}")

    def expect_end(self) -> None:
        """Wait for the end of the server's side."""
        if rest := self._file.read():
            raise RuntimeError(f"the server sent {rest!r} before its end")

    def close(self) -> None:
        """Close the socket."""
        self._file.close()
        self._socket.close()


def echo(server: Server, target: str, first: int, payload: bytes, in_flight: int = 1) -> Iterator[Exchange]:
    """Send messages together, and read as many echoes."""
    client = Client(server.port, target)
    frames = make_frame(first, payload) * in_flight

    def exchange() -> None:
        client.send(frames)
        for _ in range(in_flight):
            client.expect(first, payload)

    yield exchange
    client.close()


def echo_compressed(server: Server, payload: bytes) -> Iterator[Exchange]:
    """Send a compressed message, and inflate its echo."""
    client = Client(server.port, "/deflate", "Sec-WebSocket-Extensions: permessage-deflate")
    # A window of 9 bits suits whatever was agreed.
    compressor = zlib.compressobj(6, zlib.DEFLATED, -9)
    octets = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    frame = make_frame(COMPRESSED_TEXT, octets.removesuffix(DEFLATE_TAIL))

    def exchange() -> None:
        client.send(frame)
        first, reply = client.receive()
        inflated = zlib.decompressobj(-15).decompress(reply + DEFLATE_TAIL)
        if (first, inflated) != (COMPRESSED_TEXT, payload):
            raise RuntimeError(f"the server sent {(first, inflated)} instead of a compressed echo")

    yield exchange
    client.close()


def broadcast(server: Server, payload: bytes, count: int) -> Iterator[Exchange]:
    """Send a message that reaches so many clients."""
    clients = [Client(server.port, "/broadcast") for _ in range(count)]
    frame = make_frame(TEXT, payload)

    def exchange() -> None:
        clients[0].send(frame)
        for client in clients:
            client.expect(TEXT, payload)

    yield exchange
    for client in clients:
        client.close()


def connect(server: Server, payload: bytes) -> Iterator[Exchange]:
    """Connect, echo once, and close in order."""
    frame = make_frame(TEXT, payload)
    closing = make_frame(CLOSE, b"\x03\xe8")

    # Where the server looks once more for what comes next, the count would depend on who is quicker.
    def exchange() -> None:
        client = Client(server.port, "/event")
        server.settle()
        client.send(frame)
        client.expect(TEXT, payload)
        server.settle()
        client.send(closing)
        client.expect(CLOSE, b"\x03\xe8")
        client.expect_end()
        client.close()
        server.settle()

    yield exchange


def make_json(size: int) -> bytes:
    """Return so many octets that compress as JSON does."""
    records = [
        {"id": i, "name": f"sensor {i % 7}", "value": i * 7919 % 1000 / 8, "on": i % 3 == 0} for i in range(size)
    ]
    return json.dumps(records, separators=(",", ":")).encode()[:size]


class Case(NamedTuple):
    """Describe one path through the server.

    Attributes:
        open: Yields an exchange with a server, and cleans up after it.
        messages: What one exchange counts for.
        few: The exchanges of the first count.
        many: The exchanges of the second.
    """

    open: Callable[[Server], Iterator[Exchange]]
    messages: int = 1
    few: int = 50
    many: int = 550


SMALL = b"what a small message looks like."
CASES = {
    "event": Case(lambda server: echo(server, "/event", TEXT, SMALL)),
    "event-16-in-flight": Case(lambda server: echo(server, "/event", TEXT, SMALL, 16), messages=16, few=20, many=120),
    "loop": Case(lambda server: echo(server, "/loop", TEXT, SMALL)),
    "binary-16k": Case(lambda server: echo(server, "/event", BINARY, bytes(range(256)) * 64)),
    "connection": Case(lambda server: connect(server, SMALL), few=20, many=120),
    "broadcast-32": Case(lambda server: broadcast(server, SMALL, 32), messages=32, few=5, many=35),
    "deflate-4k": Case(lambda server: echo_compressed(server, make_json(4096)), few=20, many=120),
}


# The counts


def drive(names: Sequence[str], *tool: str) -> None:
    """Make the exchanges of each case under a tool: a warm-up, few and many, with a mark after each."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Server(*tool)) as server:
        try:
            server.start()
            for case in (CASES[name] for name in names):
                for exchange in case.open(server):
                    for count in (case.few, case.few, case.many):
                        for _ in range(count):
                            exchange()
                        server.mark()
        except (OSError, RuntimeError) as error:
            raise CannotCount(f"under {tool[0]}: {error}; {server.log} tells more") from error


def divide(case: Case, few: Counter[str], many: Counter[str]) -> dict[str, float]:
    """Return what one message adds, by name."""
    messages = (case.many - case.few) * case.messages
    return {name: (many[name] - few[name]) / messages for name in few | many}


def count_instructions(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the instructions of a message of each case by compiled object, such as ``libc.so.6``."""
    dump = BUILD / "callgrind"
    for rest in BUILD.glob("*callgrind*"):
        rest.unlink()
    drive(names, "valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={dump}")
    counts = {}
    for index, name in enumerate(names):
        few, many = (drop_calls(Path(f"{dump}.{3 * index + part}").read_text()) for part in (2, 3))
        counts[name] = divide(CASES[name], parse_callgrind(few), parse_callgrind(many))
        (BUILD / f"{name}.callgrind").write_text(many)
    for rest in BUILD.glob("callgrind*"):
        rest.unlink()
    return counts


def drop_calls(text: str) -> str:
    """Take out of a dump what callees cost: a line with the call, and the line after it."""
    return re.sub(r"^calls=.*\n.*\n", "", text, flags=re.MULTILINE)


def parse_callgrind(text: str) -> Counter[str]:
    """Return the instructions of a dump without calls by compiled object, those of geventws's as ``geventws``."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    current = ""
    for line in text.splitlines():
        if match := re.match(r"(c?)ob=(\(\d+\))(?: (.*))?", line):
            is_callee, number, path = match.groups()
            # A name is written once, and its number afterwards.
            if path is not None:
                names[number] = "geventws" if Path(path).parent.name == "geventws" else Path(path).name
            if not is_callee:
                current = names[number]
        elif re.match(r"[\d+*-]", line):
            counts[current] += int(line.split()[1])
    return counts


def count_calls(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the system calls of a message of each case by name."""
    trace = BUILD / "strace"
    drive(names, "strace", "-f", "-qq", "-o", str(trace))
    windows = parse_strace(trace.read_text())
    return {name: divide(CASES[name], *windows[3 * index + 1 : 3 * index + 3]) for index, name in enumerate(names)}


def parse_strace(text: str) -> list[Counter[str]]:
    """Return the calls by name, from each mark to the next; a mark is not among them."""
    windows: list[Counter[str]] = [Counter()]
    # A call that another thread's calls interrupt has a second line, which begins otherwise.
    for name in re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE):
        if name == "getppid":
            windows.append(Counter())
        else:
            windows[-1][name] += 1
    return windows


def find_fault(*command: str) -> str:
    """Return why a tool does not work here, or nothing."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{command[0]} fails: {tried.stderr.strip()}" if tried.returncode else ""


def find_call_fault() -> str:
    """Return why system calls cannot be counted here, or nothing: some sandboxes forbid it."""
    return find_fault("strace", "-f", "-qq", "-o", os.devnull, "true")


class Count(NamedTuple):
    """Hold what a message of one path costs.

    Attributes:
        instructions: By compiled object.
        calls: The system calls by name; None where they cannot be counted.
    """

    instructions: Mapping[str, float]
    calls: Mapping[str, float] | None

    def get_figures(self) -> dict[str, float]:
        """Return what is compared and committed."""
        total = sum(self.instructions.values())
        figures: dict[str, float] = {"own": round(self.instructions["geventws"]), "instructions": round(total)}
        if self.calls is not None:
            figures["system calls"] = round(sum(self.calls.values()), 3)
        return figures


def count(names: Sequence[str], *, with_calls: bool) -> dict[str, Count]:
    """Count each case.

    Raises:
        CannotCount: A tool is missing, the build is the plain one, or the server failed.
    """
    if not geventws.COMPILED:
        raise CannotCount("this is the plain build; the figures are those of the compiled one")
    if fault := find_fault("valgrind", "--version"):
        raise CannotCount(fault)
    instructions = count_instructions(names)
    calls = count_calls(names) if with_calls else {}
    return {name: Count(instructions[name], calls.get(name)) for name in names}


def list_versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    module = sys.modules["geventws.protocol"].__file__ or ""
    compiler = re.search(rb"GCC: [^\0]*|clang version [^\0]*", Path(module).read_bytes())
    # Its first line is "/* Generated by Cython 3.1.2 */".
    generated = BUILD.parent / "cython" / "geventws" / "protocol.c"
    return {
        "Python": platform.python_version(),
        "gevent": gevent.__version__,
        "greenlet": greenlet.__version__,
        "Cython": generated.open().readline().strip("/* \n").split()[-1] if generated.exists() else "unknown",
        "compiler": compiler[0].decode() if compiler else "unknown",
        "C library": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
    }


# The comparison


class Row(NamedTuple):
    """Compare one figure; None where there is none."""

    path: str
    figure: str
    committed: float | None
    now: float | None

    def get_change(self) -> float | None:
        """Return by which part the figure grew."""
        if self.committed is None or self.now is None:
            return None
        return (self.now - self.committed) / self.committed

    def format(self) -> str:
        """Return a line of the table."""
        change = self.get_change()
        cells = [f"{'-' if value is None else f'{value:,.10g}':>12}" for value in (self.committed, self.now)]
        return f"{self.path:20} {self.figure:13}{''.join(cells)}{'-' if change is None else f'{change:+.1%}':>9}"


def compare(committed: Mapping[str, Figures], now: Mapping[str, Figures]) -> list[Row]:
    """Return a row for each figure of either side."""
    return [
        Row(path, figure, committed.get(path, {}).get(figure), now.get(path, {}).get(figure))
        for path in {**committed, **now}
        for figure in {**committed.get(path, {}), **now.get(path, {})}
    ]


def judge(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return what is wrong, as sentences, and what is only to be told."""
    faults, hints = [], []
    for row in rows:
        change = row.get_change()
        if change is None:
            absent = "not committed" if row.committed is None else "committed, and was not counted"
            faults.append(f"{row.path}: {row.figure} is {absent}; `make guard-update` writes what there is")
        elif change > TOLERANCE:
            faults.append(f"{row.path}: {row.figure} grew by {change:.1%}, from {row.committed:,} to {row.now:,}")
        elif change < -TOLERANCE:
            hints.append(f"{row.path}: {row.figure} fell by {-change:.1%}; commit that with `make guard-update`")
    return faults, hints


def list_differences(committed: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a sentence for each version that is not that of the committed figures."""
    return [
        f"counted with {name} {now.get(name)}, committed with {committed.get(name)}"
        for name in {**committed, **now}
        if now.get(name) != committed.get(name)
    ]


# The command line


def check(counts: Mapping[str, Count], committed: Mapping[str, Any], versions: Mapping[str, str]) -> int:
    """Print the table and what is to be said about it; returns the exit status."""
    known: dict[str, Figures] = committed["figures"]
    figures = {path: count.get_figures() for path, count in counts.items()}
    if any(count.calls is None for count in counts.values()):
        known = {path: {name: known[path][name] for name in known[path] if name != "system calls"} for path in known}
    rows = compare(known, figures)
    print(f"{'path':20} {'figure':13}{'committed':>12}{'now':>12}{'change':>9}")
    for row in rows:
        print(row.format())
    faults, hints = judge(rows)
    differences = list_differences(committed["versions"], versions)
    for line in hints:
        print(f"better: {line}")
    for line in differences:
        print(f"other versions: {line}")
    for line in faults:
        print(f"FAILED: {line}")
    if faults and differences:
        print("The other versions may be the cause: see whether the commit that wrote guard.json fails with them, too.")
    return 1 if faults else 0


def print_parts(counts: Mapping[str, Count]) -> None:
    """Print of what the figures consist."""
    for path, count in counts.items():
        for kind, parts in (("instructions", count.instructions), ("system calls", count.calls or {})):
            largest = sorted(parts.items(), key=lambda part: -part[1])
            print(f"{path}, {kind}: " + ", ".join(f"{name} {value:.10g}" for name, value in largest if value >= 0.001))


def update(counts: Mapping[str, Count], versions: Mapping[str, str]) -> None:
    """Write the figures."""
    figures = {path: count.get_figures() for path, count in counts.items()}
    FIGURES.write_text(json.dumps({"versions": versions, "figures": figures}, indent=2) + "\n")
    print(f"{FIGURES} is written; commit it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and compare or write; the exit status is 1 when a figure grew, 2 when nothing could be counted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"count these alone: {', '.join(CASES)}")
    parser.add_argument("--update", action="store_true", help="write the figures instead of comparing them")
    parser.add_argument(
        "--parts", action="store_true", help="print the figures of each compiled object and system call"
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.paths) - CASES.keys():
        parser.error(f"there is no path {', '.join(sorted(unknown))}")
    fault = find_call_fault()
    if given.update and (fault or given.paths):
        parser.error(fault or "--update writes all paths")
    try:
        counts = count(given.paths or list(CASES), with_calls=not fault)
    except CannotCount as error:
        print(f"nothing can be compared: {error}", file=sys.stderr)
        return 2
    if given.parts:
        print_parts(counts)
    if given.update:
        update(counts, list_versions())
        return 0
    if fault:
        print(f"system calls are not counted, the instructions alone decide: {fault}")
    committed = json.loads(FIGURES.read_text())
    if given.paths:
        committed["figures"] = {path: committed["figures"].get(path, {}) for path in given.paths}
    return check(counts, committed, list_versions())


if __name__ == "__main__":
    sys.exit(main())

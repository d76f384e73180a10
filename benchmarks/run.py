"""Run servers and scenarios in turn, and write what was measured; ``make bench`` prepares everything for it.

Strategy: a round runs every scenario on every server, one after the other, each on a server that was started for it, so
what else the machine does hits all of them alike; the medians of the rounds count. The server has one core, the load
generator another. A run with an error is void. What cannot run here is told once, and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select as selecting
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.catalogue import SCENARIOS, SERVERS, Scenario, Server, select
from benchmarks.neighbours import idle_connections, neighbour
from benchmarks.report import describe_machine, describe_run, write_report

ROOT = Path(__file__).parent.parent
SERVERS_FOLDER = ROOT / "benchmarks" / "servers"
CERTIFICATE = ROOT / "tests" / "certificate.pem"
#: Seconds that a server has to start, and the load generator beyond what it was told.
PATIENCE = 60
#: Descriptors that a process needs beside its connections.
SPARE_DESCRIPTORS = 200


class Setup(NamedTuple):
    """Hold what holds for all runs: the programs by their names in the catalogue, the cores, the times in seconds."""

    programs: dict[str, str]
    cores: list[int]
    seconds: float
    warm_up: float

    def choose_cores(self, server: Server) -> tuple[set[int], set[int]]:
        """Return the server's cores and the load generator's, which share the last one if there is no other."""
        return set(self.cores[: server.workers]), {self.cores[min(server.workers, len(self.cores) - 1)]}


class ServerFailed(Exception):
    """The server did not start, or has ended."""


def find_port() -> int:
    """Return a port that nobody listens on, another one each time: old connections in TIME_WAIT are in nobody's way."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(server: Server, scenario: Scenario, port: int, setup: Setup, errors: IO[str]) -> Iterator[list[int]]:
    """Run a server on its cores, and return the ids of its processes; what it complains of goes to ``errors``.

    Raises:
        ServerFailed: It did not start.
    """
    command = [*shlex.split(server.command.format_map(setup.programs)), "--port", str(port)]
    command += ["--tls", str(CERTIFICATE)] if "tls" in scenario.needs else []
    command += ["--deflate"] if "deflate" in scenario.needs else []
    try:
        with pinned(setup.choose_cores(server)[0]):
            process = subprocess.Popen(
                command,
                cwd=SERVERS_FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
    except OSError as error:
        raise ServerFailed(f"{server.name} does not start: {error}") from error
    try:
        assert process.stdout is not None
        if not wait_ready(process.stdout, server.workers):
            raise ServerFailed(f"{server.name} does not start: {read_complaint(errors) or 'it says nothing'}")
        yield list_processes(process.pid)
    finally:
        stop(process)


def read_complaint(errors: IO[str]) -> str:
    """Return the last line that a process has written to a file, and that names an error if one does."""
    errors.seek(0)
    lines = errors.read().strip().splitlines() or [""]
    return ([line for line in lines if "Error" in line] or lines)[-1]


def wait_ready(stdout: IO[bytes], workers: int) -> bool:
    """Wait until every worker has printed its line; False if the server ended or was too slow."""
    end = time.monotonic() + PATIENCE
    written = b""
    while written.count(b"ready") < workers:
        if not selecting.select([stdout], [], [], max(0, end - time.monotonic()))[0]:
            return False
        octets = os.read(stdout.fileno(), 4096)
        written += octets
        if not octets:
            return False
    return True


def list_processes(pid: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(found for child in children for found in list_processes(child))]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all its processes."""
    with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def measure(server: Server, scenario: Scenario, setup: Setup) -> dict[str, Any]:
    """Run one scenario on one server.

    Returns:
        What the load generator measured, and ``error``, which is not ``""`` if it counts for nothing.

    Raises:
        ServerFailed: The server did not start.
    """
    port = find_port()
    load = [setup.programs["load"], "--warm-up", str(setup.warm_up)]
    forever = [*load, "--seconds", str(setup.seconds + setup.warm_up + PATIENCE)]
    load += [*scenario.load.split(), "--connections", str(scenario.connections), "--seconds", str(setup.seconds)]
    load += [f"--{name}" for name in ("tls", "deflate") if name in scenario.needs]
    with tempfile.TemporaryFile("w+") as errors, running(server, scenario, port, setup, errors) as pids:
        load += ["--pids", ",".join(map(str, pids)), "127.0.0.1", str(port), scenario.path]
        try:
            with (
                pinned(setup.choose_cores(server)[1]),
                idle_connections(port, scenario.idle),
                neighbour(scenario.beside, port, forever),
            ):
                result = run_load(load, setup)
        except OSError as error:
            result = {"error": str(error)}
        if result["error"] and (line := read_complaint(errors)):
            result["error"] += f"; the server says: {line}"
        return result


@contextlib.contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Keep this process on some cores, and those that it starts meanwhile, these for ever."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_load(command: list[str], setup: Setup) -> dict[str, Any]:
    """Run the load generator, and return its result with ``error``."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=setup.seconds + setup.warm_up + PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "the load generator did not end"}
    complaint = (done.stderr.strip().splitlines() or [f"the load generator ended with {done.returncode}"])[0]
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": complaint}
    return result | {"error": complaint if done.returncode or result["errors"] else ""}


class Round:
    """Run scenarios on servers; a server that does not start is left out from then on."""

    def __init__(self, servers: list[Server], scenarios: list[Scenario], setup: Setup, output: IO[str]) -> None:
        self._servers = servers
        self._scenarios = scenarios
        self._setup = setup
        self._output = output
        self._left_out: set[tuple[str, frozenset[str]]] = set()

    def run(self, number: int) -> None:
        """Run each pair that fits, and write its result."""
        for scenario in self._scenarios:
            for server in self._servers:
                mode = scenario.needs & {"tls", "deflate"}
                if scenario.needs <= server.features and (server.name, mode) not in self._left_out:
                    self._run_pair(server, scenario, number)

    def _run_pair(self, server: Server, scenario: Scenario, number: int) -> None:
        try:
            result = measure(server, scenario, self._setup)
        except ServerFailed as error:
            print(f"left out from here on: {error}", flush=True)
            self._left_out.add((server.name, scenario.needs & {"tls", "deflate"}))
            return
        row = {"server": server.name, "scenario": scenario.name, "round": number, **result}
        self._output.write(json.dumps(row) + "\n")
        self._output.flush()
        print(f"round {number}: {describe_run(row)}", flush=True)


def keep_possible(scenarios: list[Scenario]) -> list[Scenario]:
    """Leave out, with a word, what needs more descriptors than a process may have; allow as many as possible."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = []
    for scenario in scenarios:
        needed = scenario.connections + scenario.idle + SPARE_DESCRIPTORS
        if most == resource.RLIM_INFINITY or needed <= most:
            kept.append(scenario)
        else:
            print(f"{scenario.name} is left out: it needs {needed} descriptors, and ulimit -Hn is {most}")
    return kept


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", default="", help="names or patterns between commas; default: all")
    parser.add_argument("--scenarios", default="", help="likewise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one run (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=0.3, help="seconds before each run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="folder for the results")
    parser.add_argument("--tools", type=Path, default=ROOT / "build" / "bench", help="folder of load and echo")
    parser.add_argument("--python", default=sys.executable, help="with the peers and the compiled build")
    parser.add_argument("--plain", default=sys.executable, help="the Python with the plain build")
    parser.add_argument("--node", default="node")
    parser.add_argument("--list", action="store_true", help="list the names, and run nothing")
    options = parser.parse_args(arguments)
    try:
        options.servers = select(SERVERS, options.servers)
        options.scenarios = select(SCENARIOS, options.scenarios)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> str | None:
    """Run what was chosen; return why nothing could be measured."""
    options = parse_options(arguments)
    if options.list:
        print("\n".join(f"{row.name:20} {row.title}" for row in options.scenarios))
        print("servers:", ", ".join(server.name for server in options.servers))
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return "server and load generator need a core each, and this process may use one alone"
    tools = options.tools.resolve()
    programs = {"python": options.python, "plain": options.plain, "node": options.node, "tools": str(tools)}
    setup = Setup({**programs, "load": str(tools / "load")}, cores, options.seconds, options.warm_up)
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    with results.open("w", encoding="utf-8") as output:
        output.write(json.dumps({"machine": describe_machine(options.node)}) + "\n")
        rounds = Round(options.servers, keep_possible(options.scenarios), setup, output)
        for number in range(1, options.rounds + 1):
            rounds.run(number)
    return write_report([results], options.output)


if __name__ == "__main__":
    sys.exit(main())

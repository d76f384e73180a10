"""Run Autobahn cases against a WebSocket server or client that a command starts.

    run.py server [options] -- COMMAND...      the command prints the server's ws:// address when it is ready
    run.py client [options] -- COMMAND... URL  the command visits the suite's server; its URL is added as last argument

Prints every case that is neither OK nor INFORMATIONAL, and a table. Exit status: 0 when there is no such case and the
command ended with 0 and without a traceback, 1 when not, 2 when there was nothing to judge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import verdicts

HERE = Path(__file__).resolve().parent
ENGINES = ("wstest", "kosoku")
#: Seconds for the command to end after a signal, or for an engine after the client has left.
GRACE = 15
#: So many cases are told about in full; a server that fails all of them has one reason.
MAX_DESCRIBED = 20


class TroubleError(Exception):
    """Report why there is nothing to judge."""


class TimeIsUpError(Exception):
    """Report that the whole run took too long."""


class Run:
    """Know where things are, and what became of the cases so far."""

    def __init__(self, role, home, engine, command, reports):
        self.role = role
        self.engine = find_engine(home, engine)
        self.command = command
        self.reports = reports
        self.results = {}
        self.bad_count = 0
        self.complaints = []

    def list_cases(self):
        with self.start([*self.name_engine(), "cases"], "engine.log") as engine:
            output = engine.stdout.read()
            if engine.wait():
                raise TroubleError(f"{self.engine[0]} does not work: {self.read_log('engine.log')}")
            return json.loads(output)

    def name_engine(self):
        name, python = self.engine
        return [str(python), str(HERE / f"engine_{name}.py")]

    def name_tester(self, role):
        return [*self.name_engine(), role, str(self.reports / "pages")]

    def test_server(self, cases):
        with self.start(self.command, "testee.log") as testee:
            line = testee.stdout.readline()
            address = re.search(r"wss?://\S+", line)
            if address is None:
                raise TroubleError(f"the command printed no address: {line!r}, {self.read_log('testee.log')}")
            print(line.strip(), flush=True)
            with self.start([*self.name_tester("client"), address[0], *cases], "engine.log") as engine:
                self.collect(engine.stdout)
            testee.send_signal(signal.SIGTERM)
            self.check_testee(testee)

    def test_client(self, cases):
        with self.start([*self.name_tester("server"), *cases], "engine.log") as engine:
            port = engine.stdout.readline()
            if not port:
                raise TroubleError(f"the suite's server did not start: {self.read_log('engine.log')}")
            with self.start([*self.command, f"ws://127.0.0.1:{int(port)}"], "testee.log") as testee:
                threading.Thread(target=end_after, args=(testee, engine), daemon=True).start()
                print(testee.stdout.readline().strip(), flush=True)
                self.collect(engine.stdout)
                self.check_testee(testee)

    @contextlib.contextmanager
    def start(self, command, log):
        """Start a process whose errors go to a log, and end it whatever happens."""
        with open(self.reports / log, "wb") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            child.stdout.close()

    def collect(self, lines):
        """Note each result as it comes."""
        with open(self.reports / "results.jsonl", "w", encoding="utf-8") as copy:
            for line in lines:
                copy.write(line)
                result = json.loads(line)
                self.results[result["id"]] = result
                if not verdicts.is_good(result):
                    self.bad_count += 1
                    lines = verdicts.describe(result)
                    print("\n".join(lines if self.bad_count <= MAX_DESCRIBED else lines[:1]), flush=True)

    def check_testee(self, testee):
        """Wait for the end of the command, which must be a clean one."""
        try:
            if status := testee.wait(GRACE):
                self.complaints.append(f"the command ended with {status}: {self.read_log('testee.log')}")
        except subprocess.TimeoutExpired:
            self.complaints.append(f"the command did not end within {GRACE} seconds")
        if "Traceback" in self.read_log("testee.log", None):
            self.complaints.append(f"there is a traceback in {self.reports / 'testee.log'}")

    def read_log(self, name, size=1000):
        text = (self.reports / name).read_text(encoding="utf-8", errors="replace")
        return text if size is None else text[-size:]


def find_engine(home, wanted):
    """Return the name and the interpreter of an engine that is installed."""
    there = {name: home / name / "bin" / "python" for name in ENGINES if (home / name / "bin" / "python").exists()}
    name = next(iter(there), None) if wanted == "auto" else wanted
    if name not in there:
        raise TroubleError(f"{name or 'no engine'} is installed in {home}; see tests/autobahn/README.md")
    return name, there[name]


def end_after(testee, engine):
    """End an engine that goes on waiting although its client has left without asking for the reports."""
    testee.wait()
    try:
        engine.wait(GRACE)
    except subprocess.TimeoutExpired:
        engine.kill()


@contextlib.contextmanager
def time_limit(seconds):
    def strike(_number, _frame):
        raise TimeIsUpError

    signal.signal(signal.SIGALRM, strike)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["server", "client"], help="what the command is")
    parser.add_argument(
        "--cases", default="quick", metavar="PATTERNS", help="such as '1.* 7.7.3'; or quick (default), small, all"
    )
    parser.add_argument("--exclude", default="", metavar="PATTERNS", help="cases to leave out of these")
    parser.add_argument(
        "--engine", choices=["auto", *ENGINES], default="auto", help="auto: wstest where it is installed"
    )
    parser.add_argument("--home", type=Path, default=Path(".autobahn"), help="what install.sh got (default: .autobahn)")
    parser.add_argument(
        "--reports", type=Path, default=Path(".autobahn/reports"), help="for logs and the suite's pages"
    )
    parser.add_argument(
        "--timeout", type=int, default=3600, metavar="SECONDS", help="for the whole run (default: 3600)"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what starts the server or the client")
    return parser.parse_args()


def main():
    given = parse_arguments()
    given.reports.mkdir(parents=True, exist_ok=True)
    run = Run(given.role, given.home, given.engine, given.command, given.reports)
    cases = choose_cases(run, given)
    print(f"{run.engine[0]} runs {len(cases)} cases with the {run.role}", flush=True)
    begun = time.monotonic()
    try:
        with time_limit(given.timeout):
            (run.test_server if run.role == "server" else run.test_client)(cases)
    except TimeIsUpError:
        run.complaints.append(f"the time of {given.timeout} seconds is up")
    return report(run, cases, time.monotonic() - begun)


def choose_cases(run, given):
    """Return the cases to run; those that the engine cannot judge are left out, and named."""
    try:
        wanted = verdicts.select(run.list_cases(), given.cases, given.exclude)
        slips = verdicts.SLIPS.get((run.engine[0], run.role), "")
        cases = verdicts.select(wanted, "all", slips)
    except ValueError as error:
        raise TroubleError(str(error)) from None
    if left_out := [case for case in wanted if case not in cases]:
        print(f"{run.engine[0]} cannot judge a {run.role} in {' '.join(left_out)}: left out")
    return cases


def report(run, cases, seconds):
    """Print the table and what is wrong; return the exit status."""
    results = [run.results.get(case) or verdicts.make_missing(case) for case in cases]
    bad = [result["id"] for result in results if not verdicts.is_good(result)]
    print("\n".join(verdicts.tabulate(results)))
    if bad:
        names = " ".join(bad[:MAX_DESCRIBED]) + (" ..." if len(bad) > MAX_DESCRIBED else "")
        run.complaints.append(f"{len(bad)} of {len(cases)} cases are neither OK nor INFORMATIONAL: {names}")
    for complaint in run.complaints:
        print(f"autobahn: {complaint}")
    print(
        f"autobahn: {run.role} {'FAILED' if run.complaints else 'is fine'}, {seconds:.1f} s, details in {run.reports}"
    )
    return 1 if run.complaints else 0


if __name__ == "__main__":
    # So that a plain end of this process is the end of what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except TroubleError as trouble:
        print(f"autobahn: {trouble}", file=sys.stderr)
        sys.exit(2)

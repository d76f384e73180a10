"""How ``make guard`` reads what its tools tell, and what it makes of figures that differ."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geventws

GUARD = importlib.util.spec_from_file_location("guard", Path(__file__).parent.parent / "benchmarks" / "guard.py")
guard = importlib.util.module_from_spec(GUARD)
GUARD.loader.exec_module(guard)
Count, Row = guard.Count, guard.Row
VERSIONS = {"Python": "3.11.7", "gevent": "26.9.0"}
COMMITTED = {"versions": VERSIONS, "figures": {"event": {"own": 3000, "instructions": 15000, "system calls": 4.0}}}


@pytest.fixture(autouse=True)
def build(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "BUILD", tmp_path)
    return tmp_path


@pytest.fixture
def strace():
    if fault := guard.find_call_fault():
        pytest.skip(fault)


class TestJudge:
    @pytest.mark.parametrize(
        ("committed", "now", "fault", "hint"),
        [
            pytest.param(1000, 1000, "", "", id="equal"),
            pytest.param(1000, 1100, "", "", id="ten percent more"),
            pytest.param(1000, 1101, "event: own grew by 10.1%, from 1,000 to 1,101", "", id="worse"),
            pytest.param(0.25, 0.5, "event: own grew by 100.0%, from 0.25 to 0.5", "", id="worse, a fraction"),
            pytest.param(1000, 900, "", "", id="ten percent less"),
            pytest.param(1000, 899, "", "event: own fell by 10.1%; commit that with `make guard-update`", id="better"),
            pytest.param(
                None, 1000, "event: own is not committed; `make guard-update` writes what there is", "", id="new"
            ),
            pytest.param(
                1000,
                None,
                "event: own is committed, and was not counted; `make guard-update` writes what there is",
                "",
                id="gone",
            ),
        ],
    )
    def test_one_figure(self, committed, now, fault, hint):
        assert guard.judge([Row("event", "own", committed, now)]) == ([fault] * bool(fault), [hint] * bool(hint))

    def test_every_figure_of_either_side_is_compared(self):
        committed = {"event": {"own": 1, "instructions": 2}, "gone": {"own": 3}}
        now = {"new": {"own": 4}, "event": {"own": 5, "system calls": 6}}
        assert guard.compare(committed, now) == [
            Row("event", "own", 1, 5),
            Row("event", "instructions", 2, None),
            Row("event", "system calls", None, 6),
            Row("gone", "own", 3, None),
            Row("new", "own", None, 4),
        ]


class TestCheck:
    def check(self, capsys, *, own=3000, others=12000, calls=4.0, versions=VERSIONS):
        calls = None if calls is None else {"sendto": calls}
        status = guard.check({"event": Count({"geventws": own, "libc.so.6": others}, calls)}, COMMITTED, versions)
        return status, capsys.readouterr().out

    def test_the_same(self, capsys):
        status, text = self.check(capsys)
        assert status == 0
        assert [line.split() for line in text.splitlines()] == [
            ["path", "figure", "committed", "now", "change"],
            ["event", "own", "3,000", "3,000", "+0.0%"],
            ["event", "instructions", "15,000", "15,000", "+0.0%"],
            ["event", "system", "calls", "4", "4", "+0.0%"],
        ]

    def test_own_instructions_count_alone(self, capsys):
        status, text = self.check(capsys, own=3600)
        assert status == 1
        assert "FAILED: event: own grew by 20.0%, from 3,000 to 3,600\n" in text
        assert "instructions grew" not in text

    def test_one_more_system_call(self, capsys):
        status, text = self.check(capsys, calls=5.0)
        assert status == 1
        assert text.endswith("FAILED: event: system calls grew by 25.0%, from 4.0 to 5.0\n")

    def test_better(self, capsys):
        status, text = self.check(capsys, own=1500, others=9000)
        assert status == 0
        assert "better: event: own fell by 50.0%" in text
        assert "better: event: instructions fell by 30.0%" in text

    def test_no_system_calls(self, capsys):
        status, text = self.check(capsys, calls=None)
        assert status == 0
        assert "system calls" not in text

    def test_worse_with_other_versions(self, capsys):
        status, text = self.check(capsys, others=20000, versions={**VERSIONS, "gevent": "27.1.0"})
        assert status == 1
        assert "other versions: counted with gevent 27.1.0, committed with 26.9.0\n" in text
        assert "Python" not in text
        assert "FAILED: event: instructions grew by 53.3%" in text
        assert text.splitlines()[-1].startswith("The other versions may be the cause")

    def test_good_with_other_versions(self, capsys):
        status, text = self.check(capsys, versions={**VERSIONS, "Python": "3.13.1"})
        assert status == 0
        assert text.endswith("other versions: counted with Python 3.13.1, committed with 3.11.7\n")


def test_what_is_committed_is_what_is_counted():
    committed = json.loads(guard.FIGURES.read_text())
    assert committed["figures"].keys() == guard.CASES.keys()
    assert all(list(figures) == ["own", "instructions", "system calls"] for figures in committed["figures"].values())
    assert committed["versions"].keys() == guard.list_versions().keys()


class TestTools:
    def test_callgrind(self, require, build):
        dump = build / "dump"
        valgrind = require("valgrind")
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={dump}", "true"]
        subprocess.run(command, check=True, capture_output=True)
        counts = guard.parse_callgrind(guard.drop_calls(dump.read_text()))
        # Callgrind adds up itself what each function cost.
        total = int(re.search(r"^(?:summary|totals): (\d+)$", dump.read_text(), re.MULTILINE)[1])
        assert sum(counts.values()) == total > 0
        assert any(name.startswith("libc.so") for name in counts)

    def test_callgrind_names_and_callees(self):
        text = """\
events: Ir

ob=(1) /venv/lib/geventws/frames.so
fn=(1) parse
12 100
+1 20
cob=(2) /lib/libc.so.6
cfn=(2) memcpy
calls=7 0
12 5000

ob=(2)
fn=(2)
* 4000

ob=(1)
fn=(3) unmask
-3 3

ob=(3) /src/geventws/.venv/lib/other.so
fn=(4)
1 1
"""
        assert guard.parse_callgrind(guard.drop_calls(text)) == {"geventws": 123, "libc.so.6": 4000, "other.so": 1}

    def test_strace(self, strace, build):
        trace = build / "trace"
        code = "import os; os.getppid(); os.getppid(); os.sched_yield(); os.sched_yield(); os.getuid(); os.getppid()"
        command = ["strace", "-f", "-qq", "-o", trace, sys.executable, "-I", "-S", "-c", code]
        subprocess.run(command, check=True)
        before, *windows, after = guard.parse_strace(trace.read_text())
        assert windows == [{}, {"sched_yield": 2, "getuid": 1}]
        assert before["execve"] == 1
        assert after["exit_group"] == 1

    def test_a_call_that_another_thread_interrupts_counts_once(self):
        text = """\
7  epoll_wait(3,  <unfinished ...>
8  futex(0x1, FUTEX_WAKE_PRIVATE, 1) = 0
7  <... epoll_wait resumed>[{events=EPOLLIN}], 64, 482) = 1
7  --- SIGCHLD {si_signo=SIGCHLD} ---
7  +++ exited with 0 +++
"""
        assert guard.parse_strace(text) == [{"epoll_wait": 1, "futex": 1}]

    def test_absent(self):
        assert guard.find_fault("no-such-tool") == "no-such-tool is not installed"

    def test_forbidden(self):
        assert guard.find_fault("sh", "-c", "echo not permitted >&2; exit 1") == "sh fails: not permitted"

    def test_allowed(self):
        assert guard.find_fault("true") == ""

    def test_server_that_does_not_start(self, build):
        with pytest.raises(
            guard.CannotCount, match=re.escape(f"under false: the server ended; {build}/false.log tells more")
        ):
            guard.drive(["event"], "false")


@pytest.mark.limit(120)
@pytest.mark.skipif(not geventws.COMPILED, reason="the guard counts the compiled build")
def test_count(require, build):
    require("valgrind")
    with_calls = not guard.find_call_fault()
    count = guard.count(["event"], with_calls=with_calls)["event"]
    figures = count.get_figures()
    assert 0 < figures["own"] < figures["instructions"]
    assert (build / "event.callgrind").exists()
    if with_calls:
        # A message is one recv and one send.
        assert (count.calls["recvfrom"], count.calls["sendto"]) == (1, 1)


@pytest.mark.skipif(geventws.COMPILED, reason="this is about the plain build")
def test_plain_build(capsys):
    assert guard.main([]) == 2
    assert "this is the plain build" in capsys.readouterr().err


@pytest.mark.skipif(not geventws.COMPILED, reason="the guard counts the compiled build")
def test_without_tools(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "PATH", "")
    assert guard.main([]) == 2
    assert capsys.readouterr().err == "nothing can be compared: valgrind is not installed\n"


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        pytest.param(["evnt"], "there is no path evnt", id="unknown path"),
        pytest.param(["--update", "event"], "--update writes all paths", id="a part of the figures"),
    ],
)
def test_command_line(capsys, strace, arguments, refusal):
    with pytest.raises(SystemExit, match="2"):
        guard.main(arguments)
    assert refusal in capsys.readouterr().err


def test_no_update_without_system_calls(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "PATH", "")
    with pytest.raises(SystemExit, match="2"):
        guard.main(["--update"])
    assert "strace is not installed" in capsys.readouterr().err

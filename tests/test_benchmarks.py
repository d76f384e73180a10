"""How the benchmarks choose, count and tell; what they measure is for ``make bench``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import geventws

# Behind everything else, so that geventws is still the installed one.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import neighbours, run
from benchmarks.catalogue import SCENARIOS, SERVERS, Server, select
from benchmarks.report import make_table, read_results, summarize, write_report, write_table

ROOT = Path(__file__).parent.parent


def make_run(server="geventws", scenario="small", error="", **more):
    figures = {"server_us": 8.0, "rate": 1000.0, "latency_us": {"p50": 5.0, "p99": 9.0}, "server_load": 0.5}
    return {"server": server, "scenario": scenario, "round": 1, "error": error, **figures, **more}


def names(rows):
    return [row.name for row in rows]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        pytest.param("small, latency", ["latency", "small"], id="comma-and-order"),
        pytest.param("idle-* 1m", ["1m", "idle-1000", "idle-10000"], id="pattern"),
        pytest.param("", names(SCENARIOS), id="all"),
    ],
)
def test_selection(wanted, chosen):
    assert names(select(SCENARIOS, wanted)) == chosen


def test_selection_of_what_is_not_there():
    with pytest.raises(ValueError, match=r"there is no 'picosw'; there are .*picows"):
        select(SERVERS, "geventws,picosw")


@pytest.mark.parametrize("wrong", [["--servers", "nobody"], ["--scenarios", "small,huge"]])
def test_wrong_selections_are_told(wrong, capsys):
    with pytest.raises(SystemExit):
        run.main(wrong)
    assert f"there is no '{wrong[1].rpartition(',')[2]}'" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [SERVERS, SCENARIOS], ids=["servers", "scenarios"])
def test_names_are_unique(rows):
    assert len(set(names(rows))) == len(rows)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=names(SCENARIOS))
def test_each_scenario_has_a_server(scenario):
    assert any(scenario.needs <= server.features for server in SERVERS)


def test_each_server_has_its_script():
    scripts = {word for server in SERVERS for word in server.command.split() if word.endswith((".py", ".js"))}
    assert scripts == {path.name for path in run.SERVERS_FOLDER.glob("*_server.*")}


class TestCores:
    setup = run.Setup({}, [2, 3, 5], 1, 1)

    def test_one_for_the_server_and_one_for_the_load(self):
        assert self.setup.choose_cores(Server("one", "")) == ({2}, {3})

    def test_a_server_of_two_processes_has_two(self):
        assert self.setup.choose_cores(Server("two", "", workers=2)) == ({2, 3}, {5})

    def test_the_load_shares_the_last_one(self):
        assert self.setup._replace(cores=[2, 3]).choose_cores(Server("two", "", workers=2)) == ({2, 3}, {3})

    def test_one_core_alone_is_not_enough(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
        assert "a core each" in run.main(["--servers", "c-echo", "--scenarios", "small"])


def test_too_few_descriptors_are_told(monkeypatch, capsys):
    monkeypatch.setattr(run.resource, "getrlimit", lambda which: (1024, 1024))
    monkeypatch.setattr(run.resource, "setrlimit", lambda which, limits: None)
    assert names(run.keep_possible(select(SCENARIOS, "small,idle-10000,few-1000"))) == ["small"]
    assert "idle-10000 is left out: it needs 10200 descriptors, and ulimit -Hn is 1024" in capsys.readouterr().out


class TestReport:
    def test_medians_of_the_runs_without_errors(self):
        costs = [8.0, 30.0, 10.0]
        rows = [make_run(server_us=cost) for cost in costs]
        rows += [make_run(error="connection 3: wrong content", server_us=1.0)]
        summary = summarize(rows)["small", "geventws"]
        assert (summary.cost, summary.spread, summary.runs, summary.void) == (10.0, 220.0, 3, 1)
        assert summary.error == "connection 3: wrong content"

    def test_memory_is_told_in_kib(self):
        summaries = summarize([make_run(scenario="idle-1000", memory_per_connection=3072.0, server_us=None)])
        assert summaries["idle-1000", "geventws"].cost == 3.0
        assert "| geventws | 3.00 | 0 % | 1.00 | 1 |\n" in write_table(summaries, [])

    def test_beside_a_neighbour_the_latency_counts(self):
        table = write_table(summarize([make_run(scenario="beside-1m")]), [])
        assert "| server | beside-1m, p99 us |\n" in table
        assert "| geventws | 9.00 | 0 % | 1.00 | 5 | 1,000/s | 50 % | 0 % | 1 |\n" in table

    def test_the_cheapest_comes_first(self):
        rows = [make_run(), make_run("picows", server_us=16.0), make_run("c-echo", server_us=4.0)]
        section = write_table(summarize([*rows, make_run("npm-ws", error="it fell")]), []).partition("## small")[2]
        lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
        assert [line[0] for line in lines] == ["| c-echo", "| geventws", "| picows", "| npm-ws"]
        assert [line[3:5] for line in lines[:3]] == [["0.50", "250,000/s"], ["1.00", "125,000/s"], ["2.00", "62,500/s"]]
        assert "* npm-ws: 1 of 1 runs void: it fell\n" in section

    def test_the_overview_tells_of_errors(self):
        rows = [make_run(), make_run(error="it fell"), make_run("picows", error="it fell")]
        rows += [make_run("picows", scenario="1m", server_us=1234.5)]
        overview = write_table(summarize(rows), ["a machine"])
        assert overview.startswith("# What was measured\n\na machine.\n\n")
        assert "| server | small | 1m |\n" in overview
        assert "| geventws | 8.00! |  |\n| picows | void | 1,234.50 |\n" in overview

    def test_table(self):
        assert make_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"

    def test_files_of_several_runs_count_together(self, tmp_path):
        files = [tmp_path / "one", tmp_path / "two"]
        for number, file in enumerate(files):
            lines = [{"machine": f"machine {number}"}, make_run(server_us=float(number))]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows, machines = read_results(files)
        assert summarize(rows)["small", "geventws"].cost == 0.5
        assert machines == ["machine 0", "machine 1"]

    def test_nothing_measured_is_told(self, tmp_path):
        results = tmp_path / "results.jsonl"
        results.write_text('{"machine": "this one"}\n')
        assert write_report([results], tmp_path) == "nothing was measured"


class TestRounds:
    def make_round(self, command, tmp_path):
        setup = run.Setup({"python": sys.executable, "load": "false"}, sorted(os.sched_getaffinity(0)), 0.1, 0)
        server = Server("theirs", command, workers=1)
        with (tmp_path / "results").open("w") as output:
            run.Round([server], select(SCENARIOS, "latency,small"), setup, output).run(1)
        return [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]

    @pytest.mark.parametrize(
        ("command", "word"),
        [
            pytest.param("no-such-program", "No such file", id="program"),
            pytest.param(
                "{python} -c 'raise RuntimeError(\"no peer here\")'", "RuntimeError: no peer here", id="package"
            ),
            # As Node.js does.
            pytest.param("sh -c 'echo Error: no peer here >&2; echo v20 >&2'", "Error: no peer here", id="not-last"),
        ],
    )
    def test_who_does_not_start_is_left_out_once(self, command, word, tmp_path, capsys):
        assert self.make_round(command, tmp_path) == []
        assert capsys.readouterr().out.count("theirs does not start") == 1
        assert self.make_round(command, tmp_path) == []
        assert word in capsys.readouterr().out

    def test_a_run_with_an_error_is_void(self, tmp_path, capsys):
        script = "echo I am ill >&2; echo ready; exec sleep 60"
        rows = self.make_round(f"sh -c '{script}'", tmp_path)
        assert [row["error"] for row in rows] == ["the load generator ended with 1; the server says: I am ill"] * 2
        assert capsys.readouterr().out.count("VOID") == 2


class TestNeighbours:
    @pytest.fixture
    def port(self):
        """Give the port of a server that answers one client by ``self.answer``, and closes."""

        def serve(sock):
            with sock.accept()[0] as accepted:
                accepted.recv(1000)
                accepted.sendall(self.answer)

        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.thread = threading.Thread(target=serve, args=(sock,))
            self.thread.start()
            yield sock.getsockname()[1]
            self.thread.join()

    def test_who_does_not_upgrade_is_told(self, port):
        self.answer = b"HTTP/1.1 503 no\r\n\r\n"
        with pytest.raises(OSError, match=r"answered by b'HTTP/1\.1 503"):
            neighbours.open_connection(port)

    def test_who_ends_an_idle_connection_is_told(self, port):
        self.answer = b"HTTP/1.1 101 yes\r\n\r\n"
        with pytest.raises(OSError, match="ended 1 of 1 idle"), neighbours.idle_connections(port, 1):
            self.thread.join()


@pytest.fixture
def tools(require):
    """Give the folder of the load generator and the echo server in C, which are built once."""
    require("cc")
    made = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "build/bench/load", "build/bench/echo"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"the tools do not compile here: {made.stderr.strip().splitlines()[-1]}")
    return ROOT / "build" / "bench"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_from_end_to_end(tools, tmp_path, capsys):
    ours = "geventws" if geventws.COMPILED else "geventws-plain"
    scenarios = "small,few-100,beside-deaf,beside-flood"
    brief = ["--rounds", "1", "--seconds", "0.2", "--warm-up", "0.05"]
    chosen = ["--servers", f"c-echo,{ours}", "--scenarios", scenarios]
    assert run.main([*brief, *chosen, "--tools", str(tools), "--output", str(tmp_path)]) is None
    rows, machines = read_results([tmp_path / "results.jsonl"])
    assert [row["error"] for row in rows] == [""] * len(rows)
    assert {("small", "c-echo"), ("small", ours), ("few-100", "c-echo")} <= {
        (row["scenario"], row["server"]) for row in rows
    }
    assert all(row["server_us"] > 0 and row["rate"] > 100 for row in rows)
    assert "geventws" in machines[0]
    assert f"| {ours} | " in (tmp_path / "table.md").read_text()
    assert str(tmp_path / "table.md") in capsys.readouterr().out

"""Turn measured runs into tables and plots; ``python -m benchmarks.report RESULTS...`` does so for older ones.

Strategy: what counts is the server's CPU time for each message: its rate falls with whatever else the machine does, its
CPU time hardly. Every figure is the median of the runs without errors; those with errors are counted beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.catalogue import SCENARIOS, SERVERS, Scenario

#: What the relative figures are relative to.
OURS = "geventws"
#: What a server pays, where that is not CPU time, by the unit of the scenario.
OTHER_COSTS = {"memory": "KiB a connection", "latency": "p99 us"}
#: The further columns of a scenario's table by their heads.
COLUMNS: dict[str, Callable[[Summary], str]] = {
    "one core can do": lambda summary: f"{1e6 / summary.cost:,.0f}/s" if summary.cost else "-",
    "measured rate": lambda summary: f"{summary.rate:,.0f}/s",
    "p50 us": lambda summary: f"{summary.p50:,.0f}",
    "p99 us": lambda summary: f"{summary.p99:,.0f}",
    "server busy": lambda summary: f"{summary.server_load:.0f} %",
    "load busy": lambda summary: f"{summary.load_load:.0f} %",
    "reply octets": lambda summary: f"{summary.wire_reply:,.0f}",
}
_HEADS = {"memory": [], "latency": ["p50 us", "measured rate", "server busy", "load busy"]}
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")

Row = dict[str, Any]


class Summary(NamedTuple):
    """Hold the medians of one server's runs in one scenario.

    Attributes:
        cost: What the server pays for each unit: microseconds of CPU time; for ``memory`` KiB of resident memory; for
            ``latency`` it is microseconds until the reply, p99.
        spread: Between the highest and the lowest cost, in percent of the median.
        rate: Units a second.
        p50: Microseconds of latency.
        p99: Likewise.
        wire_reply: Octets of a reply on the wire.
        server_load: How busy the server's processes were, in percent of a core.
        load_load: Likewise the load generator.
        runs: How many runs count.
        void: How many do not.
        error: What happened in the first of these.
    """

    cost: float | None = None
    spread: float = 0
    rate: float = 0
    p50: float = 0
    p99: float = 0
    wire_reply: float = 0
    server_load: float = 0
    load_load: float = 0
    runs: int = 0
    void: int = 0
    error: str = ""


Summaries = dict[tuple[str, str], Summary]


def read_results(paths: Iterable[Path]) -> tuple[list[Row], list[str]]:
    """Read files of results; return the runs and the machines they are from."""
    rows, machines = [], []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "machine" in row:
                machines.append(row["machine"])
            else:
                rows.append(row)
    return rows, machines


def summarize(rows: Iterable[Row]) -> Summaries:
    """Return the summary of each scenario and server."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["scenario"], row["server"]), []).append(row)
    units = {scenario.name: scenario.unit for scenario in SCENARIOS}
    return {pair: _summarize_group(group, units.get(pair[0], "message")) for pair, group in groups.items()}


def _summarize_group(rows: list[Row], unit: str) -> Summary:
    good = [row for row in rows if not row["error"]]
    errors = [row["error"] for row in rows if row["error"]]
    if not good:
        return Summary(void=len(errors), error=errors[0])
    costs = [_get_cost(row, unit) for row in good]
    cost = statistics.median(costs)

    def median(name: str) -> float:
        return statistics.median(row.get(name) or 0 for row in good)

    latencies = [row.get("latency_us") or {} for row in good]
    return Summary(
        cost=cost,
        spread=100 * (max(costs) - min(costs)) / cost if cost else 0,
        rate=median("rate"),
        p50=statistics.median(latency.get("p50", 0) for latency in latencies),
        p99=statistics.median(latency.get("p99", 0) for latency in latencies),
        wire_reply=median("wire_reply"),
        server_load=100 * median("server_load"),
        load_load=100 * median("load_load"),
        runs=len(good),
        void=len(errors),
        error=errors[0] if errors else "",
    )


def _get_cost(row: Row, unit: str) -> float:
    if unit == "memory":
        return float(row["memory_per_connection"]) / 1024
    return float(row["latency_us"]["p99"] if unit == "latency" else row["server_us"])


def describe_run(row: Row) -> str:
    """Return one line about one run."""
    pair = f"{row['scenario']:14} {row['server']:20}"
    if row["error"]:
        return f"{pair} VOID: {row['error']}"
    memory = row.get("memory_per_connection")
    cost = f"{memory / 1024:10.1f} KiB each" if memory else f"{row['server_us']:10.2f} us of CPU each"
    return f"{pair} {cost} {row['rate']:12,.0f}/s"


def describe_machine(node: str) -> str:
    """Say what the runs that follow are measured on, and with which versions."""
    models = [line for line in _read_text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    try:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        version = "none"
    return (
        f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores of {model}, Linux {platform.release()}, "
        f"load average {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, Node.js {version}, "
        + ", ".join(list_versions())
    )


def list_versions() -> list[str]:
    """Return names and versions of geventws, and of what the requirements name and this Python has."""
    names = ["geventws"]
    names += [line.partition("==")[0] for line in _REQUIREMENTS.read_text().splitlines() if "==" in line]
    installed = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
    return [f"{name} {installed[name]}" for name in names if name in installed]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def make_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_scenario(scenario: Scenario, summaries: Summaries) -> str:
    """Return the section about one scenario: who pays least comes first, whoever has no figure last."""
    found = {server: summary for (name, server), summary in summaries.items() if name == scenario.name}
    ours = found.get(OURS, Summary()).cost
    further = _HEADS.get(scenario.unit, list(COLUMNS))
    cost = OTHER_COSTS.get(scenario.unit, f"CPU us a {scenario.unit}")
    rows = []
    complaints = []
    for server, summary in sorted(found.items(), key=lambda item: (item[1].cost is None, item[1].cost)):
        all_runs = summary.runs + summary.void
        runs = f"{summary.runs} of {all_runs}" if summary.void else f"{summary.runs}"
        rows.append([server, *_write_figures(summary, ours, further), runs])
        if summary.void:
            complaints.append(f"* {server}: {summary.void} of {all_runs} runs void: {summary.error}\n")
    table = make_table(["server", cost, "spread", f"/ {OURS}", *further, "runs"], rows)
    return f"## {scenario.name}\n\n{scenario.title}.\n\n{table}\n" + "".join([*complaints, "\n"])


def _write_figures(summary: Summary, ours: float | None, further: Sequence[str]) -> list[str]:
    if summary.cost is None:
        return ["-"] * (3 + len(further))
    relative = f"{summary.cost / ours:.2f}" if ours else "-"
    first = [f"{summary.cost:,.2f}", f"{summary.spread:.0f} %", relative]
    return [*first, *(COLUMNS[head](summary) for head in further)]


def write_overview(scenarios: Sequence[Scenario], summaries: Summaries) -> str:
    """Return the tables of all costs, with servers in the order of the catalogue; there are many, so in groups."""
    groups: dict[tuple[bool, bool], list[Scenario]] = {}
    for scenario in scenarios:
        is_special = not scenario.needs.isdisjoint({"tls", "deflate", "workers"})
        groups.setdefault(("scale" in scenario.needs, is_special), []).append(scenario)
    return (
        "Microseconds of the server's CPU time for each message, connection or delivery, unless the head says what "
        "else. Less is better; medians.\n\n"
    ) + "".join(_write_costs(group, summaries) for group in groups.values())


def _write_costs(scenarios: Sequence[Scenario], summaries: Summaries) -> str:
    present = {server for scenario in scenarios for name, server in summaries if name == scenario.name}
    heads = [
        f"{scenario.name}, {OTHER_COSTS[scenario.unit]}" if scenario.unit in OTHER_COSTS else scenario.name
        for scenario in scenarios
    ]
    rows = [
        [server.name, *(_write_cost(summaries.get((scenario.name, server.name))) for scenario in scenarios)]
        for server in SERVERS
        if server.name in present
    ]
    return make_table(["server", *heads], rows) + "\n"


def _write_cost(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return "void" if summary.cost is None else f"{summary.cost:,.2f}" + ("!" if summary.void else "")


def write_table(summaries: Summaries, machines: Sequence[str]) -> str:
    """Return the whole report."""
    present = [scenario for scenario in SCENARIOS if any(name == scenario.name for name, _ in summaries)]
    return "".join(
        [
            "# What was measured\n\n",
            *(f"{machine}.\n\n" for machine in dict.fromkeys(machines)),
            write_overview(present, summaries),
            *(write_scenario(scenario, summaries) for scenario in present),
        ]
    )


def write_report(results: Sequence[Path], folder: Path) -> str | None:
    """Write ``table.md`` and the plots; return why there is nothing to write about, None if there is."""
    rows, machines = read_results(results)
    summaries = summarize(rows)
    if not summaries:
        return "nothing was measured"
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.md"
    table.write_text(write_table(summaries, machines), encoding="utf-8")
    print(table)
    try:
        from benchmarks import plots  # noqa: PLC0415 - matplotlib is for those who measure
    except ImportError as error:
        print(f"no plots: {error}")
    else:
        plots.write_plots(summaries, folder)
    for (scenario, server), summary in summaries.items():
        if summary.void:
            print(f"void: {summary.void} runs of {server} in {scenario}: {summary.error}")
    return None


def main() -> str | None:
    """Write the report about files of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition(";")[0])
    parser.add_argument("results", type=Path, nargs="+", help="files of results; those of several runs count together")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for the report")
    options = parser.parse_args()
    return write_report(options.results, options.output)


if __name__ == "__main__":
    sys.exit(main())

"""Draw what was measured: a plot for each scenario, and two about numbers of connections and bad neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.catalogue import SCENARIOS, Scenario
from benchmarks.report import OURS, Summaries

_COLOURS = {True: "#2a6f97", False: "#a9b4c2"}
# The same figures make the same file, and text stays text.
mpl.rcParams.update({"svg.hashsalt": "geventws", "svg.fonttype": "none"})


def write_plots(summaries: Summaries, folder: Path) -> None:
    """Write all plots that there are figures for."""
    for scenario in SCENARIOS:
        costs = {
            server: summary.cost
            for (name, server), summary in summaries.items()
            if name == scenario.name and summary.cost
        }
        if costs and "scale" not in scenario.needs:
            _plot_scenario(scenario, costs, folder)
    _plot_counts(summaries, folder)
    _plot_neighbours(summaries, folder)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    print(path)


def _plot_scenario(scenario: Scenario, costs: dict[str, float], folder: Path) -> None:
    """Draw a bar for each server; the best one is on top."""
    is_memory = scenario.unit == "memory"
    servers = sorted(costs, key=lambda server: costs[server], reverse=True)
    values = [costs[server] if is_memory else 1e6 / costs[server] for server in servers]
    figure = Figure(figsize=(7, 0.7 + 0.3 * len(servers)))
    axes = figure.subplots()
    bars = axes.barh(servers, values, color=[_COLOURS[server.startswith(OURS)] for server in servers])
    axes.bar_label(bars, [f"{value:,.1f}" if is_memory else f"{value:,.0f}" for value in values], padding=3)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{scenario.name}: {scenario.title}", fontsize=9, loc="left")
    axes.set_xlabel("KiB a connection: less is better" if is_memory else "a second, by a whole core: more is better")
    _save(figure, folder / f"{scenario.name}.svg")


def _plot_counts(summaries: Summaries, folder: Path) -> None:
    """Draw what a message and a connection cost beside how many connections there are."""
    panels = {"all": "all active, a message", "few": "64 active, a message", "connect": "a new connection"}
    figure = Figure(figsize=(10, 3.2))
    for axes, (kind, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        lines = _collect_counts(summaries, kind)
        for server, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=server)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("connections")
    if any(axes.lines for axes in figure.axes):
        figure.axes[0].set_ylabel("CPU us each")
        figure.tight_layout()
        labelled = next(axes for axes in figure.axes if axes.lines)
        figure.legend(*labelled.get_legend_handles_labels(), fontsize=8, loc="lower left", bbox_to_anchor=(1, 0.2))
        _save(figure, folder / "scale.svg")


def _collect_counts(summaries: Summaries, kind: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for scenario in SCENARIOS:
        if not scenario.name.startswith(f"{kind}-") or "scale" not in scenario.needs:
            continue
        for (name, server), summary in summaries.items():
            if name == scenario.name and summary.cost:
                lines.setdefault(server, []).append((scenario.idle or scenario.connections, summary.cost))
    return lines


def _plot_neighbours(summaries: Summaries, folder: Path) -> None:
    """Draw the p99 of ordinary connections beside each neighbour."""
    names = [scenario.name for scenario in SCENARIOS if scenario.name == "alone" or scenario.beside]
    servers = list(dict.fromkeys(server for name, server in summaries if name in names))
    if not servers:
        return
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    width = 0.8 / len(servers)
    for index, server in enumerate(servers):
        heights: list[Any] = [summary.p99 if (summary := summaries.get((name, server))) else 0 for name in names]
        bars = axes.bar([place + index * width for place in range(len(names))], heights, width, label=server)
        axes.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=6)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names)
    axes.set_yscale("log")
    axes.set_ylabel("p99 of latency, us")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(servers))
    _save(figure, folder / "neighbours.svg")

"""Print export/benchmark.json as tables that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

Report = dict[str, Any]


def show(report: Report, console: Console) -> None:
    """Print speeds by batch size, what each candidate costs, and what to deploy.

    A ratio is the median of the rounds (lowest - highest).
    """
    machine, words, costs = report["machine"], report["words"], report["contestants"]
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    title = (
        f"{report['texts']} texts of {report['split']} ({words['least']} to {words['most']} words, median "
        f"{words['median']}), {report['threads']} threads, {machine['cpu']} ({', '.join(machine['features'])}){gpu}, "
        f"{report['seconds']:.0f} s"
    )
    lines = [
        title,
        _table(("batch", "", "p50 ms", "p95", "p99", "texts/s", "tokens/s", "× baseline"), _speeds(report)),
        _table(("", "cold start s", "peak MB", "files MB", "may be deployed"), map(_cost, costs, costs.values())),
        *(f"× baseline: times as fast as {costs[name]['what']}" for name in ("baseline",) if name in costs),
        *(f"batch {batch}: deploy {n} ({costs[n]['what']})" for batch, n in report["recommended"].items() if n),
        *(f"batch {batch}: nothing is recommended: {why}" for batch, why in report["not_recommended"].items()),
        *(f"left out: {what}: {why}" for what, why in report["left_out"].items()),
        *report["notes"],
    ]
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))


def _table(names: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    """An empty row ends a section."""
    columns = (Column(n, no_wrap=True, justify="left" if n in ("", "batch") else "right") for n in names)
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    return table


def _speeds(report: Report) -> Iterator[Sequence[str]]:
    courses = report["courses"]
    for course in courses:
        title = str(course["batch"])
        if any(course["beam"] != 1 for course in courses):
            yield title, "greedy" if course["beam"] == 1 else f"beam {course['beam']}"
            title = ""
        for name, cell in course["contestants"].items():
            times = ("-" if cell[f"p{p}_ms"] is None else f"{cell[f'p{p}_ms']:,.1f}" for p in (50, 95, 99))
            spread = cell.get("times_baseline")
            ratio = f"{spread['median']:.2f} ({spread['low']:.2f} - {spread['high']:.2f})" if spread else ""
            yield title, name, *times, f"{cell['rows_per_second']:,.1f}", f"{cell['tokens_per_second']:,.0f}", ratio
            title = ""
        yield ()


def _cost(name: str, about: Report) -> Sequence[str]:
    peak = about["gpu_peak_bytes"] if about["device"] == "cuda" else about["peak_bytes"]
    start, files = f"{about['cold_start_seconds']:.1f}", f"{about['bytes'] / 1e6:,.1f}"
    return name, start, f"{peak / 1e6:,.0f}" if peak else "", files, "yes" if about["deployable"] else "no"

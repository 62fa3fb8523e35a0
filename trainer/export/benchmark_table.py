"""Print export/benchmark.json as tables that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Report = dict[str, Any]


def show(report: Report, console: Console) -> None:
    """Print speeds by batch size, what each candidate costs, and what to deploy.

    A ratio is the median of the rounds (lowest - highest).
    """
    machine, words = report["machine"], report["words"]
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    console.print(
        f"{report['texts']} texts of {report['split']} ({words['least']} to {words['most']} words, median "
        f"{words['median']}), {report['threads']} threads, {machine['cpu']} ({', '.join(machine['features'])}){gpu}, "
        f"{report['seconds']:.0f} s",
        soft_wrap=True,
    )
    console.print(_speeds(report))
    console.print(_costs(report))
    recommended = {batch: name for batch, name in report["recommended"].items() if name is not None}
    lines = [
        *(f"batch {batch}: deploy {n} ({report['contestants'][n]['what']})" for batch, n in recommended.items()),
        *(f"batch {batch}: nothing is recommended: {why}" for batch, why in report["not_recommended"].items()),
        *(f"left out: {what}: {why}" for what, why in report["left_out"].items()),
    ]
    for line in [*lines, *report["notes"]]:
        console.print(line, soft_wrap=True)


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for name, justify in [*((name, "left") for name in texts), *((name, "right") for name in numbers)]:
        table.add_column(name, no_wrap=True, justify=justify)  # type: ignore[arg-type]
    return table


def _speeds(report: Report) -> Table:
    table = _table(("batch", ""), ("p50 ms", "p95", "p99", "texts/s", "tokens/s", "× tutorial"))
    beams = {course["beam"] for course in report["courses"]}
    for course in report["courses"]:
        title = str(course["batch"])
        if beams != {1}:
            table.add_row(title, "greedy" if course["beam"] == 1 else f"beam {course['beam']}")
            title = ""
        for name, cell in course["contestants"].items():
            numbers = [_number(cell[key]) for key in ("p50_ms", "p95_ms", "p99_ms", "rows_per_second")]
            ratio = ""
            if spread := cell.get("times_tutorial"):
                ratio = f"{_short(spread['median'])} ({_short(spread['low'])} - {_short(spread['high'])})"
            table.add_row(title, name, *numbers, f"{cell['tokens_per_second']:,.0f}", ratio)
            title = ""
        table.add_section()
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{1 if value < 100 else 0}f}"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _costs(report: Report) -> Table:
    table = _table(("",), ("cold start s", "peak MB", "files MB", "may be deployed"))
    for name, about in report["contestants"].items():
        peak = about["gpu_peak_bytes"] if about["device"] == "cuda" else about["peak_bytes"]
        deployable = "yes" if about["deployable"] else "no"
        start, files = f"{about['cold_start_seconds']:.1f}", f"{about['bytes'] / 1e6:,.1f}"
        table.add_row(name, start, f"{peak / 1e6:,.0f}" if peak else "", files, deployable)
    return table

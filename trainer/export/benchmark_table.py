"""Print export/benchmark.json as tables that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    speeds = ("batch", "", "p50 ms", "p95", "p99", "texts/s", "tokens/s", "× tutorial")
    console.print(_table(speeds, _speeds(report), texts=2))
    console.print(_table(("", "cold start s", "peak MB", "files MB", "may be deployed"), _costs(report), texts=1))
    recommended = {batch: name for batch, name in report["recommended"].items() if name is not None}
    for line in (
        *(f"batch {batch}: deploy {n} ({report['contestants'][n]['what']})" for batch, n in recommended.items()),
        *(f"batch {batch}: nothing is recommended: {why}" for batch, why in report["not_recommended"].items()),
        *(f"left out: {what}: {why}" for what, why in report["left_out"].items()),
        *report["notes"],
    ):
        console.print(line, soft_wrap=True)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> Table:
    """`texts`: how many of the columns are no numbers. An empty row is a separator."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if number < texts else "right")
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    return table


def _speeds(report: Report) -> Iterable[Sequence[str]]:
    beams = {course["beam"] for course in report["courses"]}
    for course in report["courses"]:
        title = str(course["batch"])
        if beams != {1}:
            yield title, "greedy" if course["beam"] == 1 else f"beam {course['beam']}"
            title = ""
        for name, cell in course["contestants"].items():
            numbers = [_number(cell[key]) for key in ("p50_ms", "p95_ms", "p99_ms", "rows_per_second")]
            ratio = ""
            if spread := cell.get("times_tutorial"):
                ratio = f"{_short(spread['median'])} ({_short(spread['low'])} - {_short(spread['high'])})"
            yield title, name, *numbers, f"{cell['tokens_per_second']:,.0f}", ratio
            title = ""
        yield ()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{1 if value < 100 else 0}f}"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _costs(report: Report) -> Iterable[Sequence[str]]:
    for name, about in report["contestants"].items():
        peak = about["gpu_peak_bytes"] if about["device"] == "cuda" else about["peak_bytes"]
        start, files = f"{about['cold_start_seconds']:.1f}", f"{about['bytes'] / 1e6:,.1f}"
        yield name, start, f"{peak / 1e6:,.0f}" if peak else "", files, "yes" if about["deployable"] else "no"

"""export/benchmark.json as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Report = dict[str, Any]


def show(report: Report, console: Console) -> None:
    """Speeds by batch size, then what each contestant costs, then what to deploy. It fits into 80 columns.

    A ratio is the median of the rounds (lowest - highest).
    """
    machine, words = report["machine"], report["words"]
    console.print(
        f"{report['texts']} texts of {report['split']} ({words['least']} to {words['most']} words, median "
        f"{words['median']}), {report['threads']} threads, {machine['cpu']} ({', '.join(machine['features'])})"
        f"{', ' + machine['gpu'] if 'gpu' in machine else ''}, {report['seconds']:.0f} s",
        soft_wrap=True,
    )
    console.print(_speeds(report))
    console.print(_costs(report))
    for batch, name in report["recommended"].items():
        if name is not None:
            console.print(f"batch {batch}: deploy {name} ({report['contestants'][name]['what']})", soft_wrap=True)
    for batch, why in report["not_recommended"].items():
        console.print(f"batch {batch}: nothing is recommended: {why}", soft_wrap=True)
    for what, why in report["left_out"].items():
        console.print(f"left out: {what}: {why}", soft_wrap=True)
    for note in report["notes"]:
        console.print(note, soft_wrap=True)


def _speeds(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for name in ("batch", ""):
        table.add_column(name, no_wrap=True)
    for name in ("p50 ms", "p95", "p99", "texts/s", "tokens/s", "× tutorial"):
        table.add_column(name, justify="right", no_wrap=True)
    for course in report["courses"]:
        title = str(course["batch"])
        if report["task"] in ("translation", "text_to_text"):
            table.add_row(title, "greedy" if course["beam"] == 1 else f"beam {course['beam']}")
            title = ""
        for name, cell in course["contestants"].items():
            latencies = (_number(cell[key]) for key in ("p50_ms", "p95_ms", "p99_ms"))
            speeds = (_number(cell["rows_per_second"]), f"{cell['tokens_per_second']:,.0f}")
            table.add_row(title, name, *latencies, *speeds, _ratio(cell.get("times_tutorial")))
            title = ""
        table.add_section()
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _three(value: float) -> str:
    """Three digits, so that the column stays narrow."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _ratio(spread: dict[str, float] | None) -> str:
    return f"{_three(spread['median'])} ({_three(spread['low'])} - {_three(spread['high'])})" if spread else ""


def _costs(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("cold start s", "peak MB", "files MB", "may be deployed"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, about in report["contestants"].items():
        peak = about["gpu_peak_bytes"] if about["device"] == "cuda" else about["peak_bytes"]
        table.add_row(
            name,
            f"{about['cold_start_seconds']:.1f}",
            f"{peak / 1e6:,.0f}" if peak else "",
            f"{about['bytes'] / 1e6:,.1f}",
            "yes" if about["deployable"] else "no",
        )
    return table

"""The diagnosis for people: a table on a terminal, plain lines elsewhere; problems and what to do come last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.doctoring.check import Check, size

COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
HEADINGS = ("size", "time", "algorithm GB/s", "bus GB/s", "sum")


def show(checks: Sequence[Check], bandwidth: Sequence[dict[str, Any]], *, terminal: bool) -> None:
    """Prints to stdout."""
    if terminal:
        _tables(checks, bandwidth)
    else:
        for check in checks:
            print(f"{check.status:8s} {check.name:20s} {check.found}")
        _lines(bandwidth)
    _problems([check for check in checks if check.status in ("warning", "failed")])
    print(verdict(checks))


def verdict(checks: Sequence[Check]) -> str:
    """One line: whether this machine can train."""
    count = Counter[str](check.status for check in checks)
    told = ", ".join(f"{count[status]} {status}" for status in COLORS if count[status])
    if count["failed"]:
        return f"Not all works here: {told}."
    return f"All that was looked at works here{', see the warnings' if count['warning'] else ''}: {told}."


def _tables(checks: Sequence[Check], bandwidth: Sequence[dict[str, Any]]) -> None:
    console = Console()
    table = Table("check", "status", "found", show_lines=False)
    for check in checks:
        color = COLORS[check.status]
        table.add_row(escape(check.name), f"[{color}]{check.status}[/{color}]", escape(check.found))
    console.print(table)
    if not bandwidth:
        return
    table = Table(*HEADINGS, title="all-reduce between the ranks, fp32")
    for column in table.columns:
        column.justify = "right"
    for row in bandwidth:
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    speeds = [f"{row[key]:.3f}" for key in ("algorithm_gb_per_s", "bus_gb_per_s")]
    return [size(row["bytes"]), f"{row['seconds'] * 1e3:.3f} ms", *speeds, "right" if row["correct"] else "WRONG"]


def _lines(bandwidth: Sequence[dict[str, Any]]) -> None:
    if bandwidth:
        print("\nall-reduce between the ranks, fp32")
        for cells in [HEADINGS, *map(_cells, bandwidth)]:
            print("".join(f"{cell:>16s}" for cell in cells))


def _problems(problems: Sequence[Check]) -> None:
    """Failures before warnings."""
    print()
    for check in sorted(problems, key=lambda check: check.status != "failed"):
        print(f"{check.status}: {check.name}: {check.problem or check.found}\n  -> {check.fix}")
    if problems:
        print()

"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from trainer.report.formats import label, preview, short_values

SHOWN = 5  # rows of a side
PERCENT = ("accuracy", "subset_accuracy")  # shares that are shown in percent
VALUE = 40  # characters of a value of a recipe


def shown_value(line: Mapping[str, Any], value: float) -> str:
    """Return a score as text."""
    return f"{100 * value:.2f}%" if line["key"] in PERCENT else f"{value:.4f}"


def shown_difference(line: Mapping[str, Any], *values: float) -> str:
    """Return differences with their sign, in percentage points for shares that are shown in percent."""
    factor, digits, unit = (100, 2, " points") if line["key"] in PERCENT else (1, 4, "")
    return " to ".join(f"{factor * value:+.{digits}f}" for value in values) + unit


def p_text(p: float | None) -> str:
    """Return a p-value as text."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def show(found: Mapping[str, Any], console: Console, *, with_rows: bool = True) -> None:
    """Print a comparison: scores, tests, recipes, rows that changed sides, notes."""
    reference = found["reference"]
    console.print(f"{found['task']}, {found['rows']:,} rows of {found['split']}, against {reference}", soft_wrap=True)
    for about in found["runs"][1:]:
        console.print(_scores(found, about["name"]))
    for test in found["mcnemar"]:
        console.print(
            f"McNemar's exact test: {test['run']} alone is right on {test['only_run_right']:,} rows, {reference} alone "
            f"on {test['only_reference_right']:,}: p {p_text(test['p_holm'])}",
            soft_wrap=True,
        )
    if found["recipe"]:
        console.print(_recipes(found))
    for line in _rows(found) if with_rows else ():
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for note in found["notes"]:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def _table(names: tuple[str, ...]) -> Table:
    columns = [Column(name, justify="right" if place else "left") for place, name in enumerate(names)]
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False)


def _scores(found: Mapping[str, Any], run: str) -> Table:
    several = len(found["runs"]) > 2
    table = _table(
        ("metric", found["reference"], run, "difference", "95% interval", "p, corrected" if several else "p")
    )
    for line in found["metrics"]:
        one = next(d for d in line["differences"] if d["run"] == run)
        ends = shown_difference(line, *one["difference_ci95"]) if one["difference_ci95"] else ""
        values = (shown_value(line, line["values"][name]) for name in (found["reference"], run))
        table.add_row(line["key"], *values, shown_difference(line, one["difference"]), ends, p_text(one["p_holm"]))
    return table


def _recipes(found: Mapping[str, Any]) -> Table:
    names = [about["name"] for about in found["runs"]]
    table = _table(("recipe", *names))
    for line in found["recipe"]:
        values = short_values([line["values"][name] for name in names])
        table.add_row(line["key"], *(label(value, VALUE) for value in values))
    return table


def _rows(found: Mapping[str, Any]) -> Iterator[str]:
    for side in found["rows_changed"]:
        better, worse = ("right only in", "wrong only in") if side["binary"] else ("better in", "worse in")
        for word, key in ((better, "better"), (worse, "worse")):
            yield f"{side[key]:,} rows {word} {side['run']}"
            for row in side[f"rows_{key}"][:SHOWN]:
                yield f"  {row['id']}  {preview(row['input'])}"
                answers = ", ".join(f"{name}: {preview(text)}" for name, text in row["predictions"].items())
                yield f"    target: {preview(row['target'])}, {answers}"

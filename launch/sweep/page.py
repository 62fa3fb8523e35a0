"""sweep.html: parallel coordinates, importance, history and a table of all trials on one page without requests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweep.distributions import Choice, Distribution, LogUniform, Range
from launch.sweep.space import Sweep
from launch.sweep_folder import SweepFolder
from trainer.files import read_json
from trainer.report.figures import DOTTED, FIRST, INK, LINE, SECOND, draw, inline
from trainer.report.formats import finite, label
from trainer.report.page import write_page

HERE = Path(__file__).parent
MOST_LINES = 300  # trials that are drawn, the best ones
LONGEST = 22  # characters of a name at an axis
MOST_TICKS = 6  # values of a choice that are written at its axis

Row = dict[str, Any]


def write_sweep_page(folder: SweepFolder, sweep: Sweep, table: Mapping[str, Any]) -> Path:
    """Write sweep.html from the table of trials.json."""
    rows: list[Row] = table["trials"]
    complete = [row for row in rows if row["state"] == "complete"]
    ranked = sorted(complete, key=lambda row: row["value"], reverse=sweep.maximize)
    others = [row for row in rows if row["state"] != "complete"]
    counts = {
        state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed", "running")
    }
    figures = []
    if len(complete) > 1:
        figures.append((_coordinates(sweep, [*ranked, *(row for row in others if row["state"] == "pruned")]), True))
        figures.append((_history(sweep, complete), False))
    return write_page(
        folder.page,
        "sweep.html.jinja",
        HERE,
        name=table["name"],
        sweep=sweep,
        table=table,
        counts={state: number for state, number in counts.items() if number},
        best=ranked[0] if ranked else None,
        keys=list(sweep.space),
        rows=[*ranked, *others],
        figures=figures,
        importance=_importance(table["importance"]),
        top=table["top"],
        comparison=read_json(folder.top / "comparison.json"),
        candidates=_candidates(folder, table["top"]),
        shown=shown,
    )


def shown(value: Any) -> str:
    """Return a value of the recipe as text."""
    return f"{value:.4g}" if isinstance(value, float) else label(value if isinstance(value, str) else json.dumps(value))


def _importance(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _candidates(folder: SweepFolder, top: Sequence[Row]) -> list[tuple[int, Row]]:
    """Return the comparisons of the seeds of each retrained trial."""
    numbers = dict.fromkeys(row["number"] for row in top)
    found = [(number, read_json(folder.top / str(number) / "comparison.json")) for number in numbers]
    return [(number, comparison) for number, comparison in found if comparison]


# -- figures -----------------------------------------------------------------------------------------------------------


def _place(distribution: Distribution, value: Any) -> float:
    """Return where a value is on its axis, from 0 to 1."""
    if isinstance(distribution, Choice):
        texts = [json.dumps(one) for one in distribution.values]
        return texts.index(json.dumps(value)) / (len(texts) - 1)
    assert isinstance(distribution, Range)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, LogUniform):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _ticks(distribution: Distribution) -> list[tuple[float, str]]:
    """Return places and texts at an axis."""
    if isinstance(distribution, Choice):
        values = distribution.values
        kept = values if len(values) <= MOST_TICKS else [values[0], values[-1]]
        return [(_place(distribution, value), label(shown(value), LONGEST)) for value in kept]
    assert isinstance(distribution, Range)
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if isinstance(distribution, LogUniform) else (low + high) / 2
    return [(0.0, f"{low:.4g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.4g}")]


def _coordinates(sweep: Sweep, rows: Sequence[Row]) -> Any:
    """Draw a line for each trial through its values and its result. The best line is drawn last."""
    complete = [row for row in rows if row["state"] == "complete"]
    values = [row["value"] for row in complete]
    low, high = min(values), max(values)
    axes = [*sweep.space.items()]

    def height(row: Row) -> float:
        last = row["value"] if row["state"] == "complete" else (row["evaluations"] or [None])[-1]
        share = 0.5 if high == low else ((last if finite(last) else low) - low) / (high - low)
        return float(min(1.0, max(0.0, share)))

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        ax.set_axis_off()
        drawn = rows[:MOST_LINES]
        for index, row in reversed(list(enumerate(drawn))):
            points = [_place(distribution, row["params"][key]) for key, distribution in axes] + [height(row)]
            best, pruned = index == 0, row["state"] == "pruned"
            color = SECOND if best else LINE if pruned else FIRST
            width, alpha = (2.6, 1.0) if best else (1.1, 0.9 if pruned else max(0.18, 0.85 - 0.7 * index / len(drawn)))
            ax.plot(range(len(points)), points, color=color, linewidth=width, alpha=alpha,
                    linestyle=(0, (3, 2)) if pruned else "-")  # fmt: skip
        for position, (name, ticks) in enumerate(
            [(key, _ticks(distribution)) for key, distribution in axes]
            + [(sweep.metric, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.5, f"{low:.4g}")])]
        ):
            ax.plot([position, position], [0, 1], color=INK, linewidth=0.9)
            ax.text(position, 1.09, label(name, LONGEST), ha="center", fontsize=10, fontweight="bold")
            for at, text in ticks:
                ax.text(position + 0.03, at, text, ha="left", va="center", fontsize=9)
        ax.set(xlim=(-0.25, len(axes) + 0.45), ylim=(-0.06, 1.16))

    width = max(6.0, 1.75 * (len(axes) + 1))
    words = f"Parallel coordinates of {len(rows)} trials over {', '.join(sweep.space)} and {sweep.metric}"
    return inline(draw(paint, width=width, height=3.6), "p", words)


def _history(sweep: Sweep, complete: Sequence[Row]) -> Any:
    """Draw the value of each complete trial, and the best one so far."""
    rows = sorted(complete, key=lambda row: row["number"])
    numbers, values = [row["number"] for row in rows], [row["value"] for row in rows]
    better = max if sweep.maximize else min
    best = [better(values[: end + 1]) for end in range(len(values))]

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        ax.plot(numbers, values, "o", color=FIRST, markersize=4, label="trial")
        ax.plot(numbers, best, drawstyle="steps-post", color=SECOND, label="best so far")
        ax.axhline(best[-1], **DOTTED)
        ax.set(title=f"Validation {sweep.metric}", xlabel="trial")
        ax.set_xticks(range(0, numbers[-1] + 1, 1 + numbers[-1] // 8))
        ax.tick_params(length=0)
        ax.legend(fontsize=10)

    words = f"Validation {sweep.metric} of {len(rows)} trials: the best is {best[-1]:.4g}"
    return inline(draw(paint), "h", words)

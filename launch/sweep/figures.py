"""The figures of sweep.html: parallel coordinates, and the history of the best value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from launch.sweep.distributions import Choice, Distribution, LogUniform, Range
from launch.sweep.space import Sweep
from trainer.report.figures import DOTTED, FIRST, INK, LINE, PAPER, SECOND, draw, inline
from trainer.report.formats import finite, label

MOST_LINES = 300  # trials that are drawn, the best ones
LONGEST = 40  # characters of a name at an axis
MOST_TICKS = 6  # values of a choice that are written at its axis
TICKS = 60  # characters of all values at an axis
BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}  # of a text that lines would cross

Row = dict[str, Any]


def shown(value: Any) -> str:
    """Return a value of the recipe as text."""
    return f"{value:.4g}" if isinstance(value, float) else label(value if isinstance(value, str) else json.dumps(value))


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
        return [(_place(distribution, value), label(shown(value), TICKS // len(kept))) for value in kept]
    assert isinstance(distribution, Range)
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if isinstance(distribution, LogUniform) else (low + high) / 2
    return [(0.0, f"{low:.4g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.4g}")]


def coordinates(sweep: Sweep, rows: Sequence[Row]) -> Any:
    """Draw a line for each trial from top to bottom through its values and its result. The best is drawn last.

    Axes are horizontal, one below the other: so they fit a phone, and a text covers the lines behind it.

    Args:
        rows: complete trials, the best first, and pruned ones.
    """
    values = [row["value"] for row in rows if row["state"] == "complete"]
    low, high = min(values), max(values)
    axes = [*sweep.space.items()]

    def result(row: Row) -> float:
        last = row["value"] if row["state"] == "complete" else (row["evaluations"] or [None])[-1]
        worst = low if sweep.maximize else high
        share = 0.5 if high == low else ((last if finite(last) else worst) - low) / (high - low)
        return float(min(1.0, max(0.0, share)))

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        ax.set_axis_off()
        drawn = rows[:MOST_LINES]
        for index, row in reversed(list(enumerate(drawn))):
            points = [_place(distribution, row["params"][key]) for key, distribution in axes] + [result(row)]
            best, pruned = row["value"] == rows[0]["value"], row["state"] == "pruned"
            color = SECOND if best else LINE if pruned else FIRST
            width, alpha = (2.6, 1.0) if best else (1.1, 0.9 if pruned else max(0.18, 0.85 - 0.7 * index / len(drawn)))
            ax.plot(points, range(len(points)), color=color, linewidth=width, alpha=alpha,
                    linestyle=(0, (3, 2)) if pruned else "-")  # fmt: skip
        ends = [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.5, f"{low:.4g}")]
        named = [(key, _ticks(distribution)) for key, distribution in axes] + [(sweep.spec.label, ends)]
        for position, (name, ticks) in enumerate(named):
            ax.plot([0, 1], [position, position], color=INK, linewidth=0.9)
            ax.text(0, position - 0.1, label(name, LONGEST), va="bottom", fontsize=10, fontweight="bold", bbox=BOX)
            for at, text in ticks:
                side = "left" if at == 0 else "right" if at == 1 else "center"
                ax.text(at, position + 0.08, text, ha=side, va="top", fontsize=9, bbox=BOX)
        ax.set(xlim=(-0.02, 1.02), ylim=(len(axes) + 0.4, -0.4))

    words = f"Parallel coordinates of {len(rows)} trials over {', '.join(sweep.space)} and {sweep.spec.label}"
    return inline(draw(paint, height=0.8 + 0.85 * len(axes)), "p", words)


def history(sweep: Sweep, complete: Sequence[Row]) -> Any:
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
        ax.set(title=f"Validation {sweep.spec.label}", xlabel="trial")
        ax.set_xticks(range(0, numbers[-1] + 1, 1 + numbers[-1] // 8))
        ax.tick_params(length=0)
        ax.legend(fontsize=10)

    words = f"Validation {sweep.spec.label} of {len(rows)} trials: the best is {best[-1]:.4g}"
    return inline(draw(paint), "h", words)

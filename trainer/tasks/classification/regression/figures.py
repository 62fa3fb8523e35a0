"""The residual plot: prediction over truth, and how often which residual occurs."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.report.figures import DOTTED, FIRST, SECOND, draw

MOST_POINTS = 1500  # drawn; of more rows every n-th, in the order of the corpus
BINS = 30


def residual_figure(true: Any, given: Any, name: str) -> str:
    """Return SVG of the two plots of one target; `true` and `given` are (rows,)."""
    return draw(lambda figure: _paint(figure, true, given, name), 7.4, 3.4)


def _paint(figure: Any, true: Any, given: Any, name: str) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    step = -(-len(true) // MOST_POINTS)
    ends = float(min(true.min(), given.min())), float(max(true.max(), given.max()))
    left.plot(ends, ends, **DOTTED, label="right")
    left.scatter(true[::step], given[::step], s=9, color=FIRST, alpha=0.45, linewidths=0)
    left.set(xlabel=f"true {name}", ylabel="predicted", title="Prediction")
    left.legend(loc="upper left", fontsize=10)
    errors = given - true
    spread = float(np.abs(errors).max()) or 1.0
    right.hist(errors, bins=BINS, range=(-spread, spread), color=FIRST)
    right.axvline(0.0, **DOTTED)
    right.axvline(float(errors.mean()), color=SECOND, linewidth=1.4)
    right.set(xlabel="predicted - true", ylabel="rows", title="Residuals")
    for ax in (left, right):
        ax.tick_params(length=0, pad=6)

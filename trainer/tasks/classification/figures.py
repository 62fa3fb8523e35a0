"""Pictures of a classifier's report: the confusion matrix as PNG, the reliability curve as SVG."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.files import write_bytes_atomically
from trainer.report.figures import DOTTED, FIRST, SECOND, draw, inline
from trainer.report.formats import label
from trainer.tasks.classification.analysis import most_confused

LONGEST_LABEL = 22  # characters of a class name


def draw_confusion(matrix: dict[str, Any], path: Path) -> None:
    """A heat map of at most MOST_CLASSES classes: counts, and the share of the true class as text and shade."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = most_confused(matrix)
    rows, columns = ([label(name, LONGEST_LABEL) for name in shown[key]] for key in ("labels", "columns"))
    shares = np.array(shown["row_shares"], dtype=float)  # null is NaN
    longest = max(map(len, [*rows, *columns]))
    side = max(2.6, 0.62 * len(columns)) + 0.09 * longest
    slant: dict[str, Any] = {}
    if len(columns) * longest > 30:  # the names do not fit side by side
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # emoji in a label: a box is drawn
        figure = Figure(figsize=(side + 0.6, side + 0.9), layout="constrained")
        ax = figure.subplots()
        ax.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            text = f"{shown['counts'][i][j]:,}" + ("" if np.isnan(share) else f"\n{share:.0%}")
            color = "white" if share > 0.5 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color).set_in_layout(False)
        ax.set_xticks(range(len(columns)), columns, **slant)
        ax.set_yticks(range(len(rows)), rows)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted", ylabel="true")
        hidden = f" ({len(rows)} of {len(matrix['labels'])} classes)" if shown["hidden"] else ""
        ax.set_title(f"Rows and share of the true class{hidden}", fontsize=11, loc="left")
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
    write_bytes_atomically(path, target.getvalue())


def reliability_figure(found: dict[str, Any]) -> Markup:
    """Accuracy over confidence, and the rows of each bin below, from `calibration`."""
    means = f"mean confidence {found['mean_confidence']:.1%}, accuracy {found['accuracy']:.1%}"
    name = f"Reliability curve: {means}, expected calibration error {found['ece']:.3f}"
    return inline(draw(lambda figure: _paint_reliability(figure, found["bins"]), 5.0, 4.3), "calibration", name)


def _paint_reliability(figure: Any, bins: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled, width = [b for b in bins if b["rows"]], 1 / len(bins)
    confidence, right = [b["confidence"] for b in filled], [b["accuracy"] for b in filled]
    top.plot([0, 1], [0, 1], **DOTTED, label="calibrated")
    top.vlines(confidence, confidence, right, color=SECOND, linewidth=1.2)
    top.plot(confidence, right, color=FIRST, marker="o", markersize=5, label="this model")
    top.set(ylabel="share right", ylim=(-0.03, 1.03), title="Reliability")
    top.legend(loc="upper left", fontsize=10)
    bottom.bar([(b["from"] + b["to"]) / 2 for b in bins], [b["rows"] for b in bins], width * 0.86, color=FIRST)
    bottom.set(xlabel="confidence", ylabel="rows", xlim=(max(0.0, filled[0]["from"] - width), 1.005))
    bottom.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    for ax in (top, bottom):
        ax.tick_params(length=0, pad=6)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    top.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

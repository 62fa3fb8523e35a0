"""Whether rows of 90% confidence are right nine times in ten: reliability curve and expected calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from trainer.evaluation.predictions import Record
from trainer.report.figures import DOTTED, FIRST, SECOND, draw, inline
from trainer.tasks.classification.errors import accuracy

BINS = 15


def calibration(records: Sequence[Record], bins: int = BINS) -> dict[str, Any]:
    """Rows in equal-width bins of the probability of the predicted label (Guo et al. 2017).

    Bin k holds confidences in [k/bins, (k+1)/bins), the last one also 1: as for the `ece` of metrics.json.

    Returns:
        {"ece", "mean_confidence", "accuracy", "rows", "bins": [{"from", "to", "rows", "confidence", "accuracy"}]};
        ece is the sum over bins of the share of rows times |accuracy - confidence|; in an empty bin both are null.
    """
    found: list[list[Record]] = [[] for _ in range(bins)]
    for record in records:
        found[min(bins - 1, int(record["confidence"] * bins))].append(record)
    table = [{"from": k / bins, "to": (k + 1) / bins, **_means(rows)} for k, rows in enumerate(found)]
    gaps = (b["rows"] / len(records) * abs(b["accuracy"] - b["confidence"]) for b in table if b["rows"])
    means = _means(records)
    return {
        "ece": math.fsum(gaps),
        "mean_confidence": means["confidence"],
        "accuracy": means["accuracy"],
        "rows": len(records),
        "bins": table,
    }


def _means(rows: Sequence[Record]) -> dict[str, Any]:
    if not rows:
        return {"rows": 0, "confidence": None, "accuracy": None}
    confidence = math.fsum(record["confidence"] for record in rows) / len(rows)
    return {"rows": len(rows), "confidence": confidence, "accuracy": accuracy(rows)}


def reliability_figure(found: dict[str, Any]) -> Markup:
    """Accuracy over confidence, and the rows of each bin below."""
    label = (
        f"Reliability curve: mean confidence {found['mean_confidence']:.1%}, accuracy {found['accuracy']:.1%}, "
        f"expected calibration error {found['ece']:.3f}"
    )
    return inline(draw(lambda figure: _paint(figure, found["bins"]), 5.0, 4.3), "calibration", label)


def _paint(figure: Any, bins: Sequence[dict[str, Any]]) -> None:
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
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    top.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for ax in (top, bottom):
        ax.tick_params(length=0, pad=6)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

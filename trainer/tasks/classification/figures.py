"""The reliability curve of a classifier's report, as SVG."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from trainer.report.figures import DOTTED, FIRST, SECOND, draw, inline


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

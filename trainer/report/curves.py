"""Learning curves from metrics.jsonl: loss, validation metric and learning rate over the optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.report.figures import FIRST, INK, SECOND, draw, inline, standalone
from trainer.report.inputs import Inputs, finite
from trainer.rundir import write_atomically

NOT_A_CURVE = ("step", "epoch", "rows", "loss", "perplexity")
FEW = 40  # points that are drawn with markers


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    points: list[tuple[int, float]]
    color: str


@dataclass(frozen=True)
class Panel:
    """One small figure, what it shows, and how to read it in a sentence."""

    title: str
    series: list[Series]
    reading: str
    chosen: tuple[int, ...] = ()  # steps of the weights that the run uses; several that it averages

    @property
    def label(self) -> str:
        ends = "; ".join(f"{s.name} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in self.series)
        return f"{self.title} over {self.series[0].points[-1][0]:,} steps: {ends}"


def panels(inputs: Inputs) -> list[Panel]:
    """The panels for which the run has at least two points, in the order in which they are read."""
    history = inputs.history
    train = Series("training", _points(history, "train", "loss"), FIRST)
    validation = Series("validation", _points(history, "validation", "loss"), SECOND)
    weights = inputs.manifest.get("stages", {}).get("model", {}).get("weights", "")  # "average of steps 4, 6, 8"
    chosen = tuple(map(int, re.findall(r"\d+", weights)))
    found = [Panel("Loss", _long_enough(train, validation), _loss_reading(inputs, bool(validation.points)), chosen)]
    metric = _metric(inputs)
    if metric is not None:
        points = _points(history, "validation", metric)
        reading = "The score on held-out rows, which no step has learned from: it says when to stop."
        found.append(Panel(f"Validation {metric}", _long_enough(Series(metric, points, SECOND)), reading, chosen))
    rate = Series("learning rate", _points(history, "train", "lr"), INK)
    reading = "How large the steps were: the schedule as it ran."
    found.append(Panel("Learning rate", _long_enough(rate), reading))
    return [panel for panel in found if panel.series]


def evaluations(inputs: Inputs) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that hold a validation, oldest first."""
    return [line for line in inputs.history if line.get("split") == "validation" and finite(line.get("loss"))]


def inline_panel(panel: Panel, prefix: str) -> str:
    """A panel as an element of a page."""
    return inline(draw(lambda figure: paint(figure.subplots(), panel)), prefix, panel.label)


def write_curves(inputs: Inputs) -> list[Path]:
    """learning_curves.svg with all panels side by side; no file for a run that logged too little."""
    found = panels(inputs)
    if not found:
        return []

    def paint_all(figure: Any) -> None:
        for ax, panel in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            paint(ax, panel)

    path = inputs.folder / "learning_curves.svg"
    write_atomically(path, standalone(draw(paint_all, width=4.6 * len(found))))
    return [path]


def paint(ax: Any, panel: Panel) -> None:
    """Draws a panel on matplotlib axes."""
    from matplotlib.ticker import MaxNLocator

    for series in panel.series:
        steps, values = zip(*series.points, strict=True)
        marker = "o" if len(steps) <= FEW and len(panel.series) + (series.color == SECOND) > 1 else None
        ax.plot(steps, values, color=series.color, label=series.name, marker=marker, markersize=3.2)
    for number, step in enumerate(panel.chosen):
        label = None if number else "weights in use"
        ax.axvline(step, color=INK, linewidth=0.9, linestyle=(0, (2, 3)), label=label)
    ax.set_title(panel.title)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.margins(x=0.02)
    ax.tick_params(length=0)
    drawn = [value for series in panel.series for _, value in series.points]
    if min(drawn) >= 0 and max(drawn) < 0.01:  # a learning rate
        ax.yaxis.set_major_formatter(lambda value, _: "0" if value == 0 else f"{value:.2g}".replace("e-0", "e-"))
    if len(panel.series) > 1 or panel.chosen:
        ax.legend(fontsize=10)


def _points(history: Sequence[dict[str, Any]], split: str, key: str) -> list[tuple[int, float]]:
    found = {line["step"]: line[key] for line in history if line.get("split") == split and finite(line.get(key))}
    return sorted(found.items())  # a step that was logged twice, after a restart, counts as last logged


def _long_enough(*series: Series) -> list[Series]:
    return [one for one in series if len(one.points) > 1]


def _metric(inputs: Inputs) -> str | None:
    """The validation metric to draw beside the loss: the one that selects, else the first of those that were logged."""
    logged = dict.fromkeys(
        key for line in evaluations(inputs) for key, value in line.items() if finite(value) and key not in NOT_A_CURVE
    )
    selecting = inputs.recipe.get("loop", {}).get("early_stopping", {}).get("metric")
    order: Callable[[str], tuple[bool, bool]] = lambda key: (key != selecting, key not in ("accuracy", "bleu"))  # noqa: E731
    return min(logged, key=order, default="perplexity" if inputs.kind == "language_modeling" else None)


def _loss_reading(inputs: Inputs, validated: bool) -> str:
    if not validated:
        return "Mean loss per label on the rows just trained on: it should fall and then flatten."
    smoothing = inputs.recipe.get("optim", {}).get("label_smoothing", 0.0)
    text = "When the validation line rises while the training line still falls, the model has begun to learn by heart."
    if smoothing:
        text += (
            f" Training is measured with dropout and label smoothing ({smoothing:g}), validation without: compare the"
            " shapes of the lines, not their heights."
        )
    return text

"""Learning curves from metrics.jsonl: loss, validation metric and learning rate over the optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from trainer.files import write_atomically
from trainer.report.figures import DOTTED, FIRST, INK, SECOND, draw, inline, standalone
from trainer.report.formats import finite
from trainer.report.task_report import Section, TaskReport

NOT_A_CURVE = ("step", "epoch", "rows", "loss", "perplexity")
BY_CORPUS = "Training loss by corpus"
FEW = 40  # points that are drawn with markers
SEVERAL = (FIRST, SECOND, "#23704a", "#8a4fbf", "#0f8b8d", "#c2375b", "#7d7a1f")  # of runs, in this order
DASHES = ("solid", "dashed", "dotted", "dashdot")
COLORS = {"training": FIRST, "learning rate": INK}  # of lines by name; others have SECOND

Points = list[tuple[int, float]]


class Panel(NamedTuple):
    """One small figure; how to read it is in the template."""

    title: str
    lines: dict[str, Points]
    weights: tuple[int, ...] = ()  # steps of the weights that the run uses; several that it averages


def panels(report: TaskReport) -> list[Panel]:
    """The panels for which the run has at least two points, in the order in which they are read."""
    train, validation, metric = _points(report, "train"), _points(report, "validation"), _metric(report)
    name = report.metric_label(metric)
    used = tuple(map(int, re.findall(r"\d+", report.stage.get("weights", ""))))  # "average of steps 4, 6, 8"
    found = [
        Panel("Loss", {"training": train, "validation": validation}, used),
        Panel(f"Validation {name}", {name: _points(report, "validation", metric)}, used),
        Panel(BY_CORPUS, _by_corpus(report)),
        Panel("Learning rate", {"learning rate": _points(report, "train", "lr")}),
    ]
    long = [panel._replace(lines={k: line for k, line in panel.lines.items() if len(line) > 1}) for panel in found]
    return [panel for panel in long if panel.lines]


def write_curves(report: TaskReport) -> list[Path]:
    """Write learning_curves.svg with all panels side by side; no file for a run that logged too little."""
    found = panels(report)
    if not found:
        return []

    def paint_all(figure: Any) -> None:
        for ax, panel in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            _paint(ax, panel)

    path = report.folder / "learning_curves.svg"
    write_atomically(path, standalone(draw(paint_all, width=4.6 * len(found))))
    return [path]


def curve_section(report: TaskReport) -> list[Section]:
    """Learning curves, and the validations as a table."""
    figures = []
    for number, panel in enumerate(panels(report)):
        ends = "; ".join(f"{name} from {line[0][1]:.4g} to {line[-1][1]:.4g}" for name, line in panel.lines.items())
        last = next(iter(panel.lines.values()))[-1][0]
        svg = draw(lambda figure, panel=panel: _paint(figure.subplots(), panel))  # type: ignore[misc]
        figures.append((inline(svg, f"c{number}", f"{panel.title} over {last:,} steps: {ends}"), panel))
    lines = _validations(report)
    keys = [key for key in lines[0] if finite(lines[0][key]) and key not in ("step", "epoch", "rows")] if lines else []
    table = [[f"{line['step']:,}", *(f"{line[k]:.4f}" if finite(line.get(k)) else "" for k in keys)] for line in lines]
    data = {"figures": figures, "columns": ["Step", *map(report.metric_label, keys)], "table": table}
    return [Section("curves", "Learning curves", "curves.html.jinja", data)] if figures else []


def together(reports: Mapping[str, TaskReport]) -> list[Panel]:
    """The learning curves of several runs over each other: a panel for each curve that two or more of them have."""
    found: dict[tuple[str, str], dict[str, Points]] = {}
    for name, report in reports.items():
        for panel in panels(report):
            if panel.title != BY_CORPUS:
                for line, points in panel.lines.items():
                    found.setdefault((panel.title, line), {})[name] = points
    several = ((key, lines) for key, lines in found.items() if len(lines) > 1)
    return [Panel(f"{line.capitalize()} loss" if title == "Loss" else title, lines) for (title, line), lines in several]


def draw_together(panel: Panel, prefix: str) -> Markup:
    """A panel of `together` as an element of a page. Each run has its own color and kind of line."""
    styles = [
        {"color": SEVERAL[n % len(SEVERAL)], "linestyle": DASHES[n % len(DASHES)]} for n in range(len(panel.lines))
    ]
    ends = "; ".join(f"{name} ends at {line[-1][1]:.4g}" for name, line in panel.lines.items())
    drawn = draw(lambda figure: _paint(figure.subplots(), panel, styles))
    return inline(drawn, prefix, f"{panel.title}: {ends}")


def _paint(ax: Any, panel: Panel, styles: Sequence[Mapping[str, Any]] = ()) -> None:
    """Draw a panel on matplotlib axes. `styles`: of its lines, by default by their names."""
    from matplotlib.ticker import MaxNLocator

    for number, (name, points) in enumerate(panel.lines.items()):
        marker = "o" if len(points) <= FEW and name != "learning rate" else None
        own = {} if panel.title == BY_CORPUS else {"color": COLORS.get(name, SECOND)}
        style = styles[number % len(styles)] if styles else own
        ax.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3.2, **style)
    for number, step in enumerate(panel.weights):
        ax.axvline(step, **DOTTED, label=None if number else "weights in use")
    ax.set(title=panel.title, xlabel="step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.margins(x=0.02)
    ax.tick_params(length=0)
    if panel.title == "Learning rate":
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-"))
    if len(panel.lines) > 1 or panel.weights:
        ax.legend(fontsize=10)


def _points(report: TaskReport, split: str, key: str = "loss") -> Points:
    lines = [line for line in report.history if line.get("split") == split and finite(line.get(key))]
    return sorted({line["step"]: line[key] for line in lines}.items())  # a step logged twice counts as last logged


def _by_corpus(report: TaskReport) -> dict[str, Points]:
    """Return the training loss of each corpus of data.mix."""
    found: dict[str, dict[int, float]] = {}
    for line in report.history:
        for name, of in (line.get("corpora") or {}).items():
            if finite(of.get("loss")):
                found.setdefault(name, {})[line["step"]] = of["loss"]
    return {name: sorted(points.items()) for name, points in found.items()}


def _validations(report: TaskReport) -> list[dict[str, Any]]:
    return [line for line in report.history if line.get("split") == "validation" and finite(line.get("loss"))]


def _metric(report: TaskReport) -> str:
    """The validation metric to draw in addition to the loss: the selecting one, else the first of a bounded scale."""
    lines = (line.items() for line in _validations(report))
    logged = {key: None for line in lines for key, value in line if finite(value) and key not in NOT_A_CURVE}
    selecting = report.recipe.get("loop", {}).get("early_stopping", {}).get("metric")
    bounded, first = [spec.key for spec in report.metrics if spec.scale], [spec.key for spec in report.metrics[:1]]
    return min([*logged, *first], key=lambda key: (key != selecting, key not in logged, key not in bounded), default="")

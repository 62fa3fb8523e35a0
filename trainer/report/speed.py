"""How fast the artifacts are: a figure and a table from export/benchmark.json, which `rankzero bench` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from trainer.redaction import shareable
from trainer.report.figures import FIRST, INK, SECOND, draw, inline
from trainer.report.inputs import Inputs
from trainer.rundir import RunDir, read_json

FORMAT = 2
Report = dict[str, Any]


def read_benchmark(run: RunDir) -> Report | None:
    """export/benchmark.json; None for a run that was not measured, or by another version."""
    report: Report | None = read_json(run.export / "benchmark.json")
    return report if report is not None and report.get("format") == FORMAT else None


def recommended(report: Report) -> list[tuple[str, str, str]]:
    """(batch size, contestant, what it is) where the benchmark recommends one."""
    found = report["recommended"].items()
    return [(batch, name, report["contestants"][name]["what"]) for batch, name in found if name is not None]


def speed_section(inputs: Inputs) -> dict[str, Any] | None:
    """Figure, table and recommendation; None for a run that was not measured, or by another version."""
    report: Report | None = shareable(read_benchmark(inputs.run))
    if report is None:
        return None
    courses = _decisive(report)
    return {
        "svg": Markup(inline(speed_figure(report), "speed", _label(courses))),  # noqa: S704  (our own)
        "recommended": recommended(report),
        "not_recommended": report["not_recommended"],
        "decoding": _decoding(report, courses[0]),
        "gone_on": report["task"] == "language_modeling",  # such texts are not padded to data.max_length
        "courses": [(_title(report, course), _lines(report, course)) for course in report["courses"]],
        "contestants": report["contestants"],
        "left_out": report["left_out"],
        "notes": report["notes"],
        "machine": report["machine"],
        "threads": report["threads"],
        "texts": report["texts"],
        "max_length": report["max_length"],
    }


def speed_figure(report: Report) -> str:
    """Times the tutorial's way, a panel for each batch size, as SVG."""
    courses = _decisive(report)

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
        names = list(dict.fromkeys(name for course in courses for name in _compared(course)))
        for ax, course in zip(panels, courses, strict=True):
            _paint(ax, course, names, report["recommended"].get(str(course["batch"])))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)

    return draw(paint, 3.4 + 2.4 * len(courses), 1.5 + 0.28 * len(report["contestants"]))


def _paint(ax: Any, course: Report, names: Sequence[str], best: str | None) -> None:
    for name, spread in _compared(course).items():
        color, place = (SECOND if name == best else FIRST), names.index(name)
        ax.hlines(place, spread["low"], spread["high"], color=color, linewidth=1.4)
        ax.plot([spread["median"]], [place], color=color, marker="o", markersize=5.5)
    ax.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))
    ax.set(title=f"batch {course['batch']}", xlabel="× tutorial")
    ax.set_xlim(left=0)
    ax.tick_params(length=0)


def _decisive(report: Report) -> list[Report]:
    """The courses decoded as the recommendation looks at them: all of a classifier's, the widest beam measured."""
    beam = max(course["beam"] for course in report["courses"])
    return [course for course in report["courses"] if course["beam"] == beam]


def _compared(course: Report) -> dict[str, Any]:
    cells = course["contestants"].items()
    return {name: cell["times_tutorial"] for name, cell in cells if "times_tutorial" in cell and "tutorial" not in name}


def _label(courses: Sequence[Report]) -> str:
    parts = [
        f"batch {course['batch']}: " + ", ".join(f"{name} {s['median']:.2f}" for name, s in _compared(course).items())
        for course in courses
    ]
    return "Times as fast as the tutorial's way; " + "; ".join(parts)


def _title(report: Report, course: Report) -> str:
    rounds = "1 round" if course["rounds"] == 1 else f"{course['rounds']} rounds"
    return ", ".join(filter(None, (f"Batch {course['batch']}", _decoding(report, course), rounds)))


def _decoding(report: Report, course: Report) -> str | None:
    """How it searched, where there is more than one way."""
    if report["task"] not in ("translation", "text_to_text"):
        return None
    return "greedy" if course["beam"] == 1 else f"beam {course['beam']}"


def _lines(report: Report, course: Report) -> list[dict[str, Any]]:
    best = report["recommended"].get(str(course["batch"]))
    return [{"name": name, "best": name == best, **cell} for name, cell in course["contestants"].items()]

"""How fast the artifacts are: a figure and tables from export/benchmark.json, which `rankzero bench` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.files import read_json
from trainer.redaction import shareable
from trainer.report.figures import DOTTED, FIRST, SECOND, draw, inline
from trainer.report.task_report import Section, TaskReport
from trainer.rundir import RunDir

FORMAT = 3
Benchmark = dict[str, Any]


def read_benchmark(run: RunDir) -> Benchmark | None:
    """export/benchmark.json; None for a run that was not measured, or by another version."""
    found: Benchmark | None = read_json(run.export / "benchmark.json")
    return found if found is not None and found.get("format") == FORMAT else None


def recommended(benchmark: Benchmark) -> list[tuple[str, str, str]]:
    """(batch size, candidate, what it is) where the benchmark recommends one."""
    found = benchmark["recommended"].items()
    return [(batch, name, benchmark["contestants"][name]["what"]) for batch, name in found if name is not None]


def speed_section(report: TaskReport) -> list[Section]:
    """Figure, tables and recommendation, if the run was measured."""
    benchmark: Benchmark | None = shareable(read_benchmark(report.run))
    if benchmark is None:
        return []
    courses = benchmark["courses"]
    beams = {course["beam"] for course in courses}
    greedy = report.recipe.get("evaluation", {}).get("beam_size") == 1 and 1 in beams
    beam = 1 if greedy else max(beams)  # for which the benchmark recommends, as the run decodes
    shown = [course for course in courses if course["beam"] == beam]
    data = {
        **benchmark,
        "svg": inline(_figure(benchmark, shown), "speed", _label(shown)),
        "recommended": recommended(benchmark),
        "best": benchmark["recommended"],
        "own": beam,
        "beam": beam if report.beam_search else None,
        "baseline": report.bench_baseline.format(length=benchmark["max_length"]),
    }
    return [Section("speed", "Speed of the artifacts", "speed.html.jinja", data)]


def _figure(benchmark: Benchmark, courses: Sequence[Benchmark]) -> str:
    """Times as fast as the baseline, a panel for each batch size, as SVG."""
    names = list(dict.fromkeys(name for course in courses for name in _speedups(course)))

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
        for ax, course in zip(panels, courses, strict=True):
            for name, spread in _speedups(course).items():
                color = SECOND if name == benchmark["recommended"].get(str(course["batch"])) else FIRST
                ax.hlines(names.index(name), spread["low"], spread["high"], color=color, linewidth=1.4)
                ax.plot([spread["median"]], [names.index(name)], color=color, marker="o", markersize=5.5)
            ax.axvline(1, **DOTTED)
            ax.set(title=f"batch {course['batch']}", xlabel="× baseline")
            ax.set_xlim(left=0)
            ax.tick_params(length=0)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)

    return draw(paint, 3.4 + 2.4 * len(courses), 1.5 + 0.28 * len(benchmark["contestants"]))


def _label(courses: Sequence[Benchmark]) -> str:
    """Return the medians of the figure as a text, for screen readers."""
    panels = []
    for course in courses:
        medians = ", ".join(f"{name} {spread['median']:.2f}" for name, spread in _speedups(course).items())
        panels.append(f"batch {course['batch']}: {medians}")
    return f"Times as fast as the baseline. {'; '.join(panels)}"


def _speedups(course: Benchmark) -> dict[str, Any]:
    cells = course["contestants"].items()
    return {name: cell["times_baseline"] for name, cell in cells if "times_baseline" in cell and "baseline" not in name}

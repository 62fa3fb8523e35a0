"""The outputs of `rankzero compare`: JSON, text, and a page made as those of reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer.compare.comparison import compare, without_rows
from trainer.compare.runs import Compared
from trainer.compare.text import p_text, show, shown_difference, shown_value
from trainer.report.curves import draw_together, together
from trainer.report.formats import label, preview, short_values
from trainer.report.page import write_page
from trainer.report.report import NO_ROWS
from trainer.report.run_files import reading
from trainer.report.task_report import Section
from trainer.text_lines import table_console

LISTED = 20  # rows of a side
VALUE = 60  # characters of a value of a recipe
TITLES = ("Right only in {run}", "Right only in {reference}")
CHANGED = ("Rows where {run} is better, by the difference", "Rows where {reference} is better, by the difference")


def write_outputs(
    paths: Sequence[Path], split: str, *, as_json: bool, html: Path | None, common: bool, with_rows: bool
) -> None:
    """Compare runs and print the result, as JSON or as text. `html`: also write a page."""
    with reading(", ".join(map(str, paths))):
        found, runs = compare(paths, split, common=common)
        if html is not None:
            write_comparison(html, found, runs, with_rows=with_rows)
        if not as_json:
            show(found, table_console(), with_rows=with_rows)
    if as_json:
        print(json.dumps(found if with_rows else without_rows(found), indent=2, ensure_ascii=False))
        return
    if html is not None:
        print(f"written: {html}")


def write_comparison(path: Path, found: Mapping[str, Any], runs: Sequence[Compared], *, with_rows: bool = True) -> Path:
    """Write the page of a comparison.

    Args:
        found: the result of `compare`.
        with_rows: whether texts and predictions of rows are shown.
    """
    names = [run.name for run in runs]
    title = f"{names[1]} against {names[0]}" if len(names) == 2 else f"{len(names) - 1} runs against {names[0]}"
    return write_page(
        path,
        "compare.html.jinja",
        found=found,
        title=title,
        lede=lede(found),
        facts=[(run.name, _about(run)) for run in runs],
        sections=_sections(found, runs, with_rows),
        with_rows=with_rows,
        head=Markup("") if with_rows else Markup(NO_ROWS),  # noqa: S704  (our own)
    )


def _sections(found: Mapping[str, Any], runs: Sequence[Compared], with_rows: bool) -> list[Section]:
    names, others = [run.name for run in runs], found["runs"][1:]
    scores = {
        "reference": found["reference"],
        "resamples": found["resamples"],
        "notes": found["notes"],
        "blocks": [_scores(found, about["name"]) for about in others],
    }
    lines = [
        {"key": line["key"], "values": [label(v, VALUE) for v in short_values([line["values"][n] for n in names])]}
        for line in found["recipe"]
    ]
    panels = together({run.name: run.report for run in runs})
    figures = [(draw_together(panel, f"c{number}"), panel.title) for number, panel in enumerate(panels)]
    rows = {
        "reference": found["reference"],
        "blocks": [_rows(found, side, runs, with_rows) for side in found["rows_changed"]],
    }
    sections = [
        Section("scores", "Scores", "compare_scores.html.jinja", scores),
        Section("recipe", "Recipes", "compare_recipe.html.jinja", {"lines": lines, "names": names}),
        Section("curves", "Learning curves", "compare_curves.html.jinja", {"figures": figures}),
        Section("rows", "Rows that changed sides", "compare_rows.html.jinja", rows),
    ]
    return [section for section in sections if section.key != "curves" or figures]


def lede(found: Mapping[str, Any]) -> str:
    """The comparison of the first metric in a few sentences."""
    line, rows = found["metrics"][0], f"On the same {found['rows']:,} rows of the {found['split']} split"
    parts = []
    for one in line["differences"]:
        ends, p = one["difference_ci95"], p_text(one["p_holm"])
        interval = f"; 95% interval {shown_difference(line, *ends)}, p {p}" if ends else ""
        value, change = shown_value(line, line["values"][one["run"]]), shown_difference(line, one["difference"])
        parts.append(f"{one['run']} has {value} ({change}{interval})")
    first = shown_value(line, line["values"][found["reference"]])
    return f"{rows}, {found['reference']} has {line['name']} {first}. {'. '.join(parts)}."


def _about(run: Compared) -> str:
    recipe, stage = run.report.recipe, run.report.stage
    parts = {
        "recipe": recipe.get("name"),
        "seed": recipe.get("seed"),
        "step": stage.get("step"),
        "weights": stage.get("weights"),
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


def _scores(found: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return the lines of the table of one run, as texts."""
    lines = []
    for line in found["metrics"]:
        one = next(d for d in line["differences"] if d["run"] == run)
        ends = [abs(end) for d in line["differences"] for end in d["difference_ci95"] or []]
        p, key = one["p_holm"], found["reference"]
        lines.append(
            {
                **one,
                "name": line["name"],
                "better": line["better"],
                "first": shown_value(line, line["values"][key]),
                "other": shown_value(line, line["values"][run]),
                "text": shown_difference(line, one["difference"]),
                "interval": shown_difference(line, *one["difference_ci95"]) if one["difference_ci95"] else "",
                "largest": max(ends, default=0),
                "p_text": p_text(p),
                "significant": p is not None and p < 0.05,
                "worse": one["difference"] < 0 if line["better"] == "max" else one["difference"] > 0,
            }
        )
    tests = [{**test, "p_text": p_text(test["p_holm"])} for test in found["mcnemar"] if test["run"] == run]
    return {"run": run, "lines": lines, "mcnemar": tests[0] if tests else None}


def _rows(
    found: Mapping[str, Any], side: Mapping[str, Any], runs: Sequence[Compared], with_rows: bool
) -> dict[str, Any]:
    measure = runs[0].report.measure()
    titles = TITLES if side["binary"] else CHANGED
    names = {"run": side["run"], "reference": found["reference"]}
    groups = [
        (
            f"{title.format(**names)} ({min(side[key], LISTED):,} of {side[key]:,})",
            [*map(_sample, side[f"rows_{key}"][:LISTED])],
        )
        for title, key in zip(titles, ("better", "worse"), strict=True)
    ]
    return {**side, "measure": measure.name if measure else "", "groups": groups if with_rows else []}


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for the list of a page. A prediction that is equal to the target is marked."""
    answers = [(name, [(text, "del" if text == row["target"] else "")]) for name, text in row["predictions"].items()]
    lines = [("Input", [(preview(row["input"]), "")]), ("Target", [(row["target"], "")]), *answers]
    return {"lines": lines, "note": row["id"]}

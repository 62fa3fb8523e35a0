"""`report.html`: the story of a run on one self-contained page, from the files of its run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer.report import attention, metric_specs, run_summary, sections
from trainer.report.inputs import Inputs, label_names, read_inputs
from trainer.report.page import script_data, write_page
from trainer.report.speed import speed_section
from trainer.rundir import RunDir

TITLES = {
    "scores": "Headline numbers",
    "curves": "Learning curves",
    "confusion": "Confusion matrix",
    "calibration": "Calibration",
    "errors": "Errors worth reading",
    "samples": "Translations worth reading",
    "texts": "Texts worth reading",
    "attention": "Attention",
    "speed": "Speed of the artifacts",
    "configuration": "Configuration and versions",
}


NO_ROWS = '<meta name="rankzero-rows" content="none">'  # in a page that quotes no row


def shows_rows(page: Path) -> bool:
    """Whether a report quotes rows of the data; true of one that has not been written yet."""
    return not page.is_file() or NO_ROWS not in page.read_text(encoding="utf-8")[:2000]


def write_report(
    run: RunDir, split: str, labels: Sequence[str] | None = None, *, with_rows: bool | None = None
) -> Path:
    """Writes `evaluation/<split>/report.html`; what the run did not leave is left out.

    Args:
        run: a run whose split has predictions.jsonl.
        split: validation or test.
        labels: names of the classes in the order in which to show them; None = the model's.
        with_rows: whether texts, predictions and attention of rows are shown; None = as in the page that is there.

    Raises:
        DataError: no predictions, or records or an attention.json that do not fit the task.
        UsageError: a task that this analysis does not know.
    """
    return render_report(read_inputs(run, split), labels, with_rows=with_rows)


def render_report(inputs: Inputs, labels: Sequence[str] | None = None, *, with_rows: bool | None = None) -> Path:
    """`write_report` for inputs that have been read."""
    page = inputs.folder / "report.html"
    with_rows = shows_rows(page) if with_rows is None else with_rows
    names = label_names(inputs.records, labels) if inputs.kind == "classification" else None
    found = _sections(inputs, names) if with_rows else _without_rows(_sections(inputs, names))
    rows = found.get("attention") or []
    return write_page(
        page,
        "report.html.jinja",
        script="attention.js" if rows else None,
        title=str(inputs.recipe.get("name") or inputs.run.path.name),
        kind=inputs.kind,
        split=inputs.split,
        lede=run_summary.lede(inputs, names),
        outcome=run_summary.outcome(inputs),
        facts=[*run_summary.facts(inputs), *(("Artifacts", sentence) for sentence in run_summary.left_out(inputs))],
        contents=[(key, TITLES[key]) for key in TITLES if found.get(key)],
        sections=found,
        head=Markup("") if with_rows else Markup(NO_ROWS),  # noqa: S704  (our own)
        with_rows=with_rows,
        attention_data=script_data(attention.page_data(rows)),
    )


def _without_rows(found: dict[str, Any]) -> dict[str, Any]:
    """The sections without texts, predictions, attention and ids of rows: numbers stay."""
    found = {**found, "attention": None}
    for name, lists in (("errors", ("shown",)), ("samples", ("groups",)), ("texts", ("groups", "continued"))):
        if section := found.get(name):
            known = section.get("shared")
            found[name] = {**section, **{key: [] for key in lists}, "shared": known and {**known, "ids": []}}
    return found


def _sections(inputs: Inputs, names: Sequence[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scores": _scores(inputs),
        "curves": sections.curve_section(inputs),
        "attention": attention.read_attention(inputs.folder / "attention.json"),
        "speed": speed_section(inputs),
        "configuration": _configuration(inputs),
    }
    if inputs.kind == "language_modeling":
        return {**found, "texts": sections.text_section(inputs)}
    if names is None:
        return {**found, "samples": sections.sample_section(inputs)}
    return {
        **found,
        "confusion": sections.confusion_section(inputs, names),
        "calibration": sections.calibration_section(inputs),
        "errors": sections.error_section(inputs, names),
    }


def _scores(inputs: Inputs) -> dict[str, Any] | None:
    cards = metric_specs.cards(inputs.scores, inputs.kind)
    if not cards:
        return None
    resamples = inputs.recipe.get("evaluation", {}).get("bootstrap")
    return {
        "cards": cards,
        "reading": metric_specs.interval_reading(inputs.scores, resamples),
        "signature": inputs.scores.get("signature"),
        "table": metric_specs.all_scores(inputs.scores),
    }


def _configuration(inputs: Inputs) -> dict[str, Any]:
    manifest = inputs.manifest
    command = manifest.get("command")
    return {
        "recipe": inputs.recipe_text,
        "versions": {str(k): str(v) for k, v in (manifest.get("versions") or {}).items()},
        "command": " ".join(map(str, command)) if isinstance(command, list) else "",
        "commit": str(manifest.get("git_commit") or ""),
        "fingerprints": {
            name: str(part["fingerprint"])
            for name, part in (manifest.get("data") or {}).items()
            if isinstance(part, dict) and part.get("fingerprint")
        },
    }

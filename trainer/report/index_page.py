"""A page that links the reports of several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer.report import run_summary
from trainer.report.inputs import read_inputs
from trainer.report.metric_specs import cards
from trainer.report.page import write_page
from trainer.rundir import RunDir


def write_index(reports: Sequence[tuple[str, Path]], to: Path) -> Path:
    """Writes a self-contained page with a link and the headline numbers of each report.

    Args:
        reports: (title, path of a report.html in a run's `evaluation/<split>/`).
        to: the page; links are relative to its folder, so that the whole tree can be moved.
    """
    entries = [_entry(title, Path(path), Path(to).parent) for title, path in reports]
    return write_page(Path(to), "index.html.jinja", entries=entries)


def _entry(title: str, report: Path, base: Path) -> dict[str, Any]:
    split, run = report.parent.name, RunDir(report.resolve().parents[2])
    inputs = read_inputs(run, split)
    labels = list(inputs.records[0]["probabilities"]) if inputs.kind == "classification" else None
    return {
        "title": title,
        "href": quote(Path(os.path.relpath(report.resolve(), base.resolve())).as_posix()),
        "split": split,
        "lede": run_summary.lede(inputs, labels),
        "cards": cards(inputs.scores, inputs.kind)[:3],
    }

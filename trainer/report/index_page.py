"""A page that links the reports of several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer.report.page import write_page
from trainer.report.run_summary import lede
from trainer.report.scores import headline
from trainer.report.task_report import open_report
from trainer.rundir import RunDir

CARDS = 3  # headline numbers of a run


def write_index(reports: Sequence[tuple[str, Path]], to: Path) -> Path:
    """Write a self-contained page with a link and the headline numbers of each report.

    Args:
        reports: (title, path of a report.html in a run's `evaluation/<split>/`).
        to: the page; links are relative to its folder, so that the whole tree can be moved.
    """
    entries = [_entry(title, Path(path), Path(to).parent) for title, path in reports]
    return write_page(Path(to), "index.html.jinja", entries=entries)


def _entry(title: str, page: Path, base: Path) -> dict[str, Any]:
    report = open_report(RunDir(page.resolve().parents[2]), page.parent.name)
    href = quote(Path(os.path.relpath(page.resolve(), base.resolve())).as_posix())
    return {
        "title": title,
        "href": href,
        "split": report.split,
        "lede": lede(report),
        "cards": headline(report)[:CARDS],
    }

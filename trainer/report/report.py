"""report.html, the files of evaluation/<split>/, and an index of reports, from the files of run directories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from trainer.files import write_json
from trainer.report import run_summary
from trainer.report.attention import read_attention
from trainer.report.baselines import baseline_section, baseline_sentence
from trainer.report.curves import curve_section, write_curves
from trainer.report.mixture import mixture_section
from trainer.report.page import script_data, write_page
from trainer.report.rows import SHARED_TEXTS, find_shared_texts
from trainer.report.speed import speed_section
from trainer.report.task_report import Section, TaskReport, open_report
from trainer.rundir import RunDir

NO_ROWS = '<meta name="rankzero-rows" content="none">'  # in a page that quotes no row
CARDS = 3  # headline numbers of a run in the index page


def analyse(
    run: RunDir, split: str, train_texts: Iterable[str] | None = None, with_rows: bool | None = None
) -> list[Path]:
    """Write the analysis files and report.html of a split. Return their paths, report.html last.

    Args:
        run, split: what was evaluated.
        train_texts: cleaned inputs of the training rows, in the form of a record's `input`; read once, as a stream.
            Rows with the same input are marked as known from training. None: an earlier search stays.
        with_rows: as in `write_report`.

    Raises:
        DataError: no predictions, or records that do not fit the task.
        UsageError: a task that is not known.
        Exception: the first failure of a part; the other parts and report.html have been written.
    """
    report = open_report(run, split)
    parts: list[Callable[[], list[Path]]] = report.files()
    if train_texts is not None:
        parts.append(partial(_write_shared, report, train_texts))
    parts += [partial(write_curves, report), lambda: [_render(report, with_rows)]]
    files: list[Path] = []
    failures: list[Exception] = []
    for part in parts:
        try:
            files += part()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return files


def write_report(run: RunDir, split: str, *, with_rows: bool | None = None, to: Path | None = None) -> Path:
    """Write report.html of a split; what the run does not have is left out.

    Args:
        with_rows: whether texts, predictions and attention of rows are shown; None = as in the page that is there.
        to: the file; report.html of the split by default.

    Raises:
        DataError: no predictions, or records or an attention.json that do not fit the task.
        UsageError: a task that is not known.
    """
    return _render(open_report(run, split), with_rows, to)


def write_index(reports: Sequence[tuple[str, Path]], to: Path) -> Path:
    """Write a page with a relative link and the headline numbers of each (title, path of a run's report.html)."""
    entries = []
    for title, page in reports:
        report = open_report(RunDir(page.resolve().parents[2]), page.parent.name)
        href = quote(Path(os.path.relpath(page.resolve(), to.parent.resolve())).as_posix())
        cards = run_summary.headline(report)[:CARDS]
        entries.append((title, href, report.split, run_summary.lede(report), cards))
    return write_page(to, "index.html.jinja", entries=entries)


def _write_shared(report: TaskReport, train_texts: Iterable[str]) -> list[Path]:
    path, measure = report.folder / SHARED_TEXTS, report.measure()
    if measure is None:
        return []
    write_json(path, find_shared_texts(train_texts, report.records, measure))
    return [path]


def _render(report: TaskReport, with_rows: bool | None, to: Path | None = None) -> Path:
    page = to or report.folder / "report.html"
    if with_rows is None:
        with_rows = not page.is_file() or NO_ROWS not in page.read_text(encoding="utf-8")[:2000]
    sections = _sections(report, with_rows)
    rows: list[dict[str, Any]] = next((section.data["rows"] for section in sections if section.key == "attention"), [])
    facts = [*run_summary.facts(report), *(("Artifacts", sentence) for sentence in run_summary.left_out(report))]
    return write_page(
        page,
        "report.html.jinja",
        *report.folders,
        script="attention.js" if rows else None,
        report=report,
        title=str(report.recipe.get("name") or report.run.path.name),
        lede=run_summary.lede(report),
        first=next(iter(run_summary.headline(report)), None),
        baselines=baseline_sentence(report),
        facts=facts,
        sections=sections,
        head=Markup("") if with_rows else Markup(NO_ROWS),  # noqa: S704  (our own)
        with_rows=with_rows,
        attention_data=script_data({"rows": [row["data"] for row in rows]}),
    )


def _sections(report: TaskReport, with_rows: bool) -> list[Section]:
    cards = run_summary.headline(report)
    attention = read_attention(report.folder / "attention.json") if with_rows else []
    found = [
        Section("scores", "Headline numbers", "scores.html.jinja", {"cards": cards}) if cards else None,
        *baseline_section(report),
        *curve_section(report),
        *mixture_section(report),
        *report.sections(with_rows),
        Section("attention", "Attention", "attention.html.jinja", {"rows": attention}) if attention else None,
        *speed_section(report),
        Section("configuration", "Configuration and versions", "configuration.html.jinja", {}),
    ]
    return [section for section in found if section]

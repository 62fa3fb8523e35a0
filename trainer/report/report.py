"""`report.html` and the files of evaluation/<split>/, from the files of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from markupsafe import Markup

from trainer.report import run_summary
from trainer.report.attention import attention_section
from trainer.report.curves import curve_section, write_curves
from trainer.report.page import script_data, write_page
from trainer.report.rows import write_shared
from trainer.report.scores import headline, score_section
from trainer.report.speed import speed_section
from trainer.report.task_report import Section, TaskReport, open_report
from trainer.rundir import RunDir

NO_ROWS = '<meta name="rankzero-rows" content="none">'  # in a page that quotes no row


def analyse(
    run: RunDir, split: str, train_texts: Iterable[str] | None = None, with_rows: bool | None = None
) -> list[Path]:
    """Write the analysis files and report.html of a split.

    Args:
        run: a run whose split has predictions.jsonl.
        split: validation or test.
        train_texts: cleaned inputs of the training rows, in the form of a record's `input`; read once, as a stream.
            Rows with the same input are marked as known from training. None: an earlier search stays.
        with_rows: as in `write_report`.

    Returns:
        The files written, report.html last.

    Raises:
        DataError: no predictions, or records that do not fit the task.
        UsageError: a task that is not known.
        Exception: the first failure of a part; the other parts and report.html have been written.
    """
    report = open_report(run, split)
    parts: list[Callable[[], list[Path]]] = report.files()
    if train_texts is not None and (measure := report.measure()) is not None:
        texts = train_texts
        parts.append(lambda: write_shared(report, texts, measure))
    parts += [lambda: write_curves(report), lambda: [_render(report, with_rows)]]
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


def write_report(run: RunDir, split: str, *, with_rows: bool | None = None) -> Path:
    """Write `evaluation/<split>/report.html`; what the run does not have is left out.

    Args:
        run: a run whose split has predictions.jsonl.
        split: validation or test.
        with_rows: whether texts, predictions and attention of rows are shown; None = as in the page that is there.

    Raises:
        DataError: no predictions, or records or an attention.json that do not fit the task.
        UsageError: a task that is not known.
    """
    return _render(open_report(run, split), with_rows)


def _render(report: TaskReport, with_rows: bool | None) -> Path:
    page = report.folder / "report.html"
    if with_rows is None:
        with_rows = not page.is_file() or NO_ROWS not in page.read_text(encoding="utf-8")[:2000]
    attention = attention_section(report.folder / "attention.json") if with_rows else []
    scripts = [row["data"] for section in attention for row in section.data["rows"]]
    facts = [*run_summary.facts(report), *(("Artifacts", sentence) for sentence in run_summary.left_out(report))]
    return write_page(
        page,
        "report.html.jinja",
        *report.folders,
        script="attention.js" if attention else None,
        report=report,
        title=str(report.recipe.get("name") or report.run.path.name),
        lede=run_summary.lede(report),
        first=next(iter(headline(report)), None),
        facts=facts,
        sections=[
            *score_section(report),
            *curve_section(report),
            *report.sections(with_rows),
            *attention,
            *speed_section(report),
            _configuration(report),
        ],
        head=Markup("") if with_rows else Markup(NO_ROWS),  # noqa: S704  (our own)
        with_rows=with_rows,
        attention_data=script_data({"rows": scripts}),
    )


def _configuration(report: TaskReport) -> Section:
    data = {"recipe": report.recipe_text, "manifest": report.manifest}
    return Section("configuration", "Configuration and versions", "configuration.html.jinja", data)

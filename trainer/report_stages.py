"""Write reports and model card. Rank zero runs this alone, after the process group is closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import Preempted, RankzeroError
from trainer.files import read_json, write_json
from trainer.report.card import write_card
from trainer.report.report import analyse
from trainer.report.report import write_report as render
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.stages import Stage, file_facts

if TYPE_CHECKING:
    from torch import nn

    from trainer.engine.corpus import Corpus
    from trainer.task.base import Task

log = logging.getLogger("rankzero")

EXPLAINED = 4  # rows whose attention is shown
LONGEST = 40  # words of such a row, if there are enough shorter ones
SEARCHED = 2_000_000  # largest training set that is searched for texts of the split
PAUSES = (1.0, 5.0, 15.0)  # seconds before another try after an error of the disk


def report_stage(run: RunDir, task: Task, model: nn.Module, corpus: Corpus, split: str, step: int) -> None:
    """Write the report of a split, unless it has been written since the split was evaluated."""
    inputs = {"step": step, "of": run.stages().get(f"evaluation/{split}")}
    stage = Stage(f"report/{split}", inputs, [run.evaluation(split) / "report.html"])
    stage.make(run, lambda: write_report(run, task, model, corpus, split))


def write_report(
    run: RunDir, task: Task, model: nn.Module, corpus: Corpus | None, split: str, with_rows: bool | None = None
) -> list[Path]:
    """Write attention.json and all files that `analyse` makes from the predictions of a split. Return the files.

    Args:
        with_rows: whether report.html quotes rows of the data; None = as the existing page.

    Raises:
        DataError: there are no predictions of the split.
    """
    records = open_report(run, split).records
    rows = task.explain(model.cpu().float().eval(), chosen(records))
    note = "Special tokens and padding are left out; what a row gave to them is missing from its sum."
    write_json(run.evaluation(split) / "attention.json", {"note": note, "rows": rows})
    if continued := task.continued(model, records):
        write_json(run.evaluation(split) / "samples.json", {"rows": continued})
    return analyse(run, split, None if corpus is None else _train_texts(run, task, corpus), with_rows)


def render_reports(run: RunDir) -> None:
    """Render existing report pages again from the files of the run."""
    for page in sorted(run.path.glob("evaluation/*/report.html")):
        render(run, page.parent.name)


def refresh_reports(run: RunDir) -> None:
    """Render report pages and model card again, after a command that ran one stage alone."""
    attempt("the report", run, lambda: render_reports(run))
    attempt("the model card", run, lambda: card_stage(run))


def attempt(what: str, run: RunDir, work: Callable[[], Any], split: str | None = None) -> Any:
    """Write an output that a run is complete without. A failure becomes one warning in the log.

    An error of the disk (OSError) may pass, as on a network file system, so the work is tried again after `PAUSES`.

    Args:
        what: the subject of the warning.
        work: its result is returned; None after a failure. It must be possible to call it again.
        split: whose report it is; None = the first one that was evaluated.

    Raises:
        RankzeroError: the process was asked to stop (exit code 75).
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except Exception as error:
            if isinstance(error, RankzeroError) and error.exit_code == Preempted.exit_code:
                raise
            reason = reason_of(error)
            if pause is None or not isinstance(error.__context__ or error, OSError):
                break
            log.info("%s could not be written: %s. Trying again in %g s", what, reason, pause)
            time.sleep(pause)
    log.warning(
        "%s could not be written: %s. The run is complete without it. `rankzero report %s --split %s` tries again.",
        what, reason, run.path, split or _evaluated(run),
    )  # fmt: skip
    return None


def _evaluated(run: RunDir) -> str:
    splits = ("test", "validation")
    return next((split for split in splits if (run.evaluation(split) / "predictions.jsonl").exists()), splits[0])


def reason_of(error: Exception) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RankzeroError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def card_stage(run: RunDir) -> None:
    """Write the model card, unless all files that it describes are unchanged (see `rankzero export --check`)."""
    described = [
        run.recipe,
        *run.tokenizer_files,
        *(path for path in run.model.glob("*.json")),  # gate.json has the hashes of the weights
        *run.path.glob("evaluation/*/metrics.json"),
        *run.path.glob("evaluation/*/baseline.json"),
        *run.path.glob("evaluation/*/predictions.jsonl"),
        *run.path.glob("export/[!.]*/gate.json"),
        run.export / "benchmark.json",
        run.left_out,
    ]
    hashes = {str(path.relative_to(run.path)): file_facts(path)["sha256"] for path in sorted(described)}
    step = run.stages().get("model", {}).get("step", 0)
    stage = Stage("card", {"step": step, "of": hashes}, [run.path / "README.md", run.model / "README.md"])
    stage.make(run, lambda: write_card(run))


def chosen(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select rows to show: those with the largest loss among the wrong ones, and some right ones, short ones first."""
    short = [r for r in records if 4 <= len(r["input"].split()) <= LONGEST]
    found = short if len(short) >= EXPLAINED else sorted(records, key=lambda r: len(r["input"]))[: 10 * EXPLAINED]
    right = [r for r in found if r["prediction"] == r["target"]]
    wrong = sorted((r for r in found if r["prediction"] != r["target"]), key=lambda r: -r["loss"])
    wrong = wrong[: max(EXPLAINED // 2, EXPLAINED - len(right))]
    return [*wrong, *right[: EXPLAINED - len(wrong)]]


def _train_texts(run: RunDir, task: Task, corpus: Corpus) -> Iterator[str] | None:
    train = (read_json(run.manifest) or {}).get("data", {}).get("train", {})
    if (train.get("rows") or 0) > SEARCHED or train.get("check", "full") != "full":
        return None
    return (task.input_text(texts) for _, texts in corpus.texts("train"))

"""The stage that turns predictions into what a person reads: rank zero, alone, after the process group has gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import Preempted, RankzeroError
from trainer.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from trainer.engine.corpus import Corpus
    from trainer.task.base import Task

log = logging.getLogger("rankzero")

EXPLAINED = 4  # rows whose attention is shown
LONGEST = 40  # words of such a row, where there are shorter ones
SEARCHED = 2_000_000  # training rows, at most, that are looked through for texts of the split


def report_stage(run: RunDir, task: Task, model: nn.Module, corpus: Corpus, split: str, step: int) -> None:
    """Writes the report of a split, unless it has been written since the split was evaluated."""
    from trainer.engine.setup import mark_stage, stage_done
    from trainer.report.inputs import KINDS

    evaluated = (read_json(run.manifest) or {}).get("stages", {}).get(f"evaluation/{split}")
    done = stage_done(run, f"report/{split}", step, of=evaluated) and (run.evaluation(split) / "report.html").exists()
    if task.kind not in KINDS or done:
        return
    write_report(run, task, model, corpus, split)
    mark_stage(run, f"report/{split}", step, of=evaluated)


def write_report(
    run: RunDir, task: Task, model: nn.Module, corpus: Corpus | None, split: str, with_rows: bool | None = None
) -> list[Path]:
    """attention.json, and everything that `analyse` makes of the split's files; returns the files.

    `with_rows`: whether report.html quotes rows of the data; None = as in the page that is there.

    Raises:
        DataError: there are no predictions of the split.
    """
    from trainer.report.inputs import read_records
    from trainer.report.stage import analyse

    records = read_records(run, split)
    rows = task.explain(model.cpu().float().eval(), chosen(records))
    note = "Special tokens and padding are left out; what a row gave to them is missing from its sum."
    write_json(run.evaluation(split) / "attention.json", {"note": note, "rows": rows})
    if continued := task.continued(model, records):
        write_json(run.evaluation(split) / "samples.json", {"rows": continued})
    names: Any = getattr(task.recipe.task, "names", None)
    return analyse(run, split, None if corpus is None else _train_texts(run, task, corpus), names, with_rows)


def render_reports(run: RunDir) -> None:
    """Writes the pages again that are there, from the files of the run: what they show may have changed."""
    from trainer.report.report import write_report as render

    for page in sorted(run.path.glob("evaluation/*/report.html")):
        render(run, page.parent.name)


def refresh_reports(run: RunDir) -> None:
    """Pages and model card again, after a stage that ran alone."""
    attempt("the report", run, lambda: render_reports(run))
    attempt("the model card", run, lambda: card_stage(run))


def attempt(what: str, run: RunDir, work: Callable[[], Any], split: str | None = None) -> None:
    """Write something that a run can do without. A failure becomes one warning in the log.

    Args:
        what: the subject of the warning.
        split: whose report it is; None = the first one that was evaluated.

    Raises:
        RankzeroError: the process was asked to stop (exit code 75).
    """
    try:
        work()
    except Exception as error:
        if isinstance(error, RankzeroError) and error.exit_code == Preempted.exit_code:
            raise
        log.warning(
            "%s could not be written: %s. The run is complete without it. `rankzero report %s --split %s` tries again.",
            what, reason_of(error), run.path, split or _evaluated(run),
        )  # fmt: skip


def _evaluated(run: RunDir) -> str:
    splits = ("test", "validation")
    return next((split for split in splits if (run.evaluation(split) / "predictions.jsonl").exists()), splits[0])


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RankzeroError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def card_stage(run: RunDir) -> None:
    """Writes the model card, unless all that it tells of has stayed as it was (see `rankzero export --check`)."""
    from trainer.engine.setup import mark_stage, stage_done
    from trainer.export.artifact_integrity import facts
    from trainer.report.card import write_card

    told = [
        run.recipe,
        run.tokenizer / "tokenizer.json",
        *(path for path in run.model.glob("*.*") if path.suffix != ".safetensors"),  # every gate.json knows those
        *run.path.glob("evaluation/*/metrics.json"),
        *run.path.glob("evaluation/*/predictions.jsonl"),
        *run.path.glob("export/[!.]*/gate.json"),
        run.export / "benchmark.json",
        run.left_out,
    ]
    of = {str(path.relative_to(run.path)): facts(path)["sha256"] for path in sorted(told)}
    step = (read_json(run.manifest) or {}).get("stages", {}).get("model", {}).get("step", 0)
    if not (stage_done(run, "card", step, of=of) and (run.path / "README.md").exists()):
        write_card(run)
        mark_stage(run, "card", step, of=of)


def chosen(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few rows worth a look: the worst mistakes and some that are right, short ones first."""
    short = [r for r in records if 4 <= len(r["input"].split()) <= LONGEST]
    found = short if len(short) >= EXPLAINED else sorted(records, key=lambda r: len(r["input"]))[: 10 * EXPLAINED]
    right = [r for r in found if r["prediction"] == r["target"]]
    wrong = sorted((r for r in found if r["prediction"] != r["target"]), key=lambda r: -r["loss"])
    wrong = wrong[: max(EXPLAINED // 2, EXPLAINED - len(right))]
    return [*wrong, *right[: EXPLAINED - len(wrong)]]


def _train_texts(run: RunDir, task: Task, corpus: Corpus) -> Iterator[str] | None:
    rows = (read_json(run.manifest) or {}).get("data", {}).get("train", {}).get("rows") or 0
    if rows > SEARCHED:
        return None
    return (task.input_text(texts) for _, texts in corpus.texts("train"))

"""evaluation/<split>/baseline.json: the scores of simple models that were fitted to the training rows of the run.

Rank zero makes it alone, after the evaluation. It is made again if predictions or training rows have changed.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from trainer.data.counter_rng import key
from trainer.evaluation.paired import paired_bootstrap
from trainer.evaluation.record_store import RecordStore, stored_line
from trainer.files import read_json, without_nan, write_json
from trainer.report.baselines import FILE, baseline_warning
from trainer.report.run_files import read_records
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.stages import Stage, file_facts
from trainer.task.baseline import Baseline

if TYPE_CHECKING:
    from trainer.engine.corpus import Corpus
    from trainer.task.base import Row, Task

log = logging.getLogger("rankzero")

ROWS = 20_000  # training rows to which a baseline is fitted, at most
RESAMPLED = 50_000  # rows up to which differences have intervals, which take a second for 2,000 rows
SAMPLED_FROM = 200_000  # of the first training rows of all files: reading a huge corpus takes hours


def baseline_stage(
    run: RunDir, task: Task, corpus: Corpus, splits: Sequence[str], alive: Callable[[], None] = lambda: None
) -> bool:
    """Write baseline.json of splits where it is missing or of other rows. Return whether one was written.

    Raises:
        DataError: the training rows cannot be read.
    """
    if not (task.recipe.evaluation.baseline and task.baselines_path):
        return False
    stages = [_stage(run, task, split) for split in splits]
    todo = [(split, stage) for split, stage in zip(splits, stages, strict=True) if not stage.is_done(run)]
    if not todo:
        return False
    for _, stage in todo:
        stage.outputs[0].unlink(missing_ok=True)  # of other predictions
    rows = training_rows(run, corpus, alive)
    log.info("fitting the baseline to %d training rows", len(rows))
    found = task.baselines(rows)
    for split, stage in todo:
        value: dict[str, Any] = {"left_out": found} if isinstance(found, str) else {}
        if not isinstance(found, str):
            alive()
            value = {"train_rows": len(rows), "of_rows": _train(run).get("rows")}
            value["baselines"] = [_scored(run, task, split, baseline, alive) for baseline in found]
        write_json(stage.outputs[0], without_nan(value))
        stage.record(run)
        if warning := baseline_warning(open_report(run, split, with_records=False)):
            log.warning("%s", warning)
    return True


def _stage(run: RunDir, task: Task, split: str) -> Stage:
    folder = run.evaluation(split)
    inputs = {
        "predictions": file_facts(folder / "predictions.jsonl")["sha256"],
        "train": _train(run).get("fingerprint"),
        "resamples": task.recipe.evaluation.bootstrap,
    }
    return Stage(f"baseline/{split}", inputs, [folder / FILE])


def _train(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = (read_json(run.manifest) or {}).get("data", {}).get("train", {})
    return found


def training_rows(run: RunDir, corpus: Corpus, alive: Callable[[], None] = lambda: None) -> list[Row]:
    """Return at most ROWS training rows, always the same ones: those with the least keys."""
    count = _train(run).get("rows")
    some = SAMPLED_FROM if count is None or count > SAMPLED_FROM else None

    def numbered() -> Any:
        for number, (row_id, row) in enumerate(islice(corpus.texts("train", some), SAMPLED_FROM)):
            if number % 1000 == 0:
                alive()
            yield key("baseline", row_id), number, row

    return [row for _, _, row in heapq.nsmallest(ROWS, numbered(), key=lambda found: found[:2])]


def _scored(run: RunDir, task: Task, split: str, baseline: Baseline, alive: Callable[[], None]) -> dict[str, Any]:
    """Return the scores of a baseline, and how much the trained model differs from it on the same rows."""
    store = RecordStore(run.path)
    for record in baseline.predict(read_records(run, split)):
        store.add(record["id"], stored_line(record))
    report = open_report(run, split, with_records=False)
    scores = [report.resampled(store), report.resampled(read_records(run, split))]
    resamples = task.recipe.evaluation.bootstrap if len(store) <= RESAMPLED else 0
    found = paired_bootstrap(scores, len(store), resamples=resamples, alive=alive)[0]
    own = {name: value for name, value in task.score(store, 0).items() if isinstance(value, int | float)}
    return {"key": baseline.key, "name": baseline.name, **baseline.about, "scores": own, "model_minus_baseline": found}

"""Evaluation on all ranks, each row once. Scores do not depend on the number of ranks.

Batches and their padding are fixed before they are dealt to ranks, and sums are taken in float64 in id order.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.engine.corpus import Corpus, EncodingShare, EvalBatch
from trainer.engine.layerwise import finish_batch
from trainer.engine.runtime import Runtime
from trainer.errors import DataError
from trainer.evaluation.documents import documents_of, score_documents
from trainer.evaluation.record_store import RecordStore, stored_line
from trainer.task.base import Record, Task

log = logging.getLogger("rankzero")

FEWEST_STEPS = 50  # after which a model should not give one prediction for all rows
FEWEST_EQUAL = 10  # equal predictions that are no accident
CHEAP = ("id", "loss", "tokens")  # of a record without a prediction


def evaluate(
    runtime: Runtime,
    task: Task,
    model: nn.Module,
    corpus: Corpus,
    split: str,
    folder: Path,
    *,
    predict: bool,
    resamples: int = 0,
) -> tuple[dict[str, Any], Collection[Record]]:
    """Return the scores of a split on all ranks, and its records on rank zero (elsewhere none). All ranks.

    Args:
        folder: for a temporary file of rank zero, which has the records.
        predict: False computes only what needs no prediction: loss, perplexity, rows.
        resamples: bootstrap samples for the intervals. 0 = no intervals.

    Raises:
        DataError: the split has no row.
        Preempted: a rank has received a stop signal. The evaluation is dropped.
    """
    was_training = [module for module in model.modules() if module.training]  # a frozen trunk is not
    model.eval()
    try:
        records = _records(runtime, task, model, corpus, split, folder, predict)
    finally:
        for module in was_training:
            module.training = True

    def score() -> dict[str, Any]:
        if not records:
            raise DataError(f"data.{split} has no row to evaluate")
        if predict and resamples and (found := constant(records)) is not None:
            log.warning("evaluation of %s: all %d predictions are %s%s", split, len(records), found, _meaning(task))
        if not predict:
            return cheap_scores(records)
        scores, column = task.score(records, resamples), task.recipe.evaluation.document_column
        if column is not None and resamples:  # at the end: all rows are read for their documents
            scores |= score_documents(records, documents_of(task.recipe.data, split, column), resamples)  # type: ignore[arg-type]
        return scores

    return runtime.on_main(score), records


def selection_score(runtime: Runtime, scores: dict[str, Any], metric: str) -> float:
    """Return the score of `validation` by which checkpoints are selected and training stops. All ranks.

    Raises:
        DataError: the metric has no value.
    """

    def read() -> float:
        if metric not in scores:
            raise no_score(metric, "not all classes occur in the rows of data.validation that are evaluated")
        return float(scores[metric])

    return float(runtime.on_main(read))


def no_score(metric: str, reason: str) -> DataError:
    return DataError(
        f"loop.early_stopping.metric={metric!r} has no value: {reason}; give data.validation rows of all classes "
        "(evaluation.max_rows may leave some out), or choose another metric, such as loss or accuracy"
    )


def _records(
    runtime: Runtime, task: Task, model: nn.Module, corpus: Corpus, split: str, folder: Path, predict: bool
) -> Collection[Record]:
    """Return the records of a split on rank zero, in a file. Only those of a window are in memory."""
    store = RecordStore(folder)  # used on rank zero only
    share = EncodingShare(runtime.rank, runtime.world, runtime.sum) if runtime.world > 1 else None

    def evaluate_window(window: list[EvalBatch]) -> None:
        places: list[int] = []
        lines: list[bytes] = []
        for batch in runtime.data_parallel.rounds(window):
            runtime.check_stop(f"during the evaluation of {split}")
            if batch is not None:
                runtime.heartbeat(f"the evaluation of {split}")
                found = evaluate_batch(runtime, task, model, batch, predict)
                places += batch.places
                lines += [stored_line(record if predict else {key: record[key] for key in CHEAP}) for record in found]
            finish_batch(model)
        ids = {place: row_id for batch in window for place, row_id in zip(batch.places, batch.ids, strict=True)}
        parts = runtime.collect(json.dumps(places).encode() + b"\n" + b"".join(lines))
        by_place = dict(pair for part in parts for pair in _places_and_lines(part))
        runtime.on_main(functools.partial(_store, store, ids, by_place))

    # not a loop over windows, whose variables would keep one in memory while the next one is read
    deque(map(evaluate_window, corpus.batches(split, share)), maxlen=0)
    return store


def _places_and_lines(part: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a rank, each with the place of its row in the window. The first line has the places."""
    places, *lines = part.split(b"\n")
    return zip(json.loads(places), lines[:-1], strict=True)


def _store(store: RecordStore, ids: Mapping[int, str], lines: Mapping[int, bytes]) -> None:
    """Store the lines of a window in the order of its rows."""
    for place in sorted(ids):
        store.add(ids[place], lines[place] + b"\n")


@torch.no_grad()
def evaluate_batch(
    runtime: Runtime, task: Task, model: nn.Module, batch: EvalBatch, predict: bool = True
) -> list[Record]:
    """Return the records of one batch."""
    inputs = {name: tensor.to(runtime.device) for name, tensor in task.collate(task.corrupt(batch.examples)).items()}
    with runtime.accelerator.autocast():
        losses, counts, predictions = task.assess(model, inputs, predict=predict)
    rows = zip(batch.ids, batch.texts, predictions, losses.tolist(), counts.tolist(), strict=True)
    return [
        {
            "id": row_id,
            "input": task.input_text(texts),
            "target": task.target_text(texts),
            **prediction,
            "loss": loss,
            "tokens": count,
        }
        for row_id, texts, prediction, loss, count in rows
    ]


def constant(records: Collection[Record]) -> str | None:
    """Return the prediction that all rows have although their targets differ, as JSON. None if there is none."""
    first, several = next(iter(records)), False
    without = "score" not in first and first["prediction"] == ""  # of a task that predicts no text here
    if len(records) < FEWEST_EQUAL or without:
        return None
    prediction, target = json.dumps(first["prediction"]), json.dumps(first["target"])
    for record in records:
        if json.dumps(record["prediction"]) != prediction:
            return None
        several = several or json.dumps(record["target"]) != target
    return prediction if several else None


def _meaning(task: Task) -> str:
    """Return the end of the message about equal predictions. A few steps, as of --debug, say nothing about a recipe."""
    steps = task.recipe.loop.max_steps
    if steps is not None and steps < FEWEST_STEPS:
        return (
            f", which is usual after {steps} steps (loop.max_steps, 20 with --debug). Such a run shows that everything "
            "works. How well the model learns is seen after more steps"
        )
    rate = task.recipe.optim.lr
    return f": the model ignores its input. Another optim.lr (now {rate:g}) or more steps may be needed"


def cheap_scores(records: Collection[Record]) -> dict[str, Any]:
    """Return the mean loss per label, its exponential, and the number of rows."""
    losses, tokens = array("d"), 0
    for record in records:
        losses.append(record["loss"])
        tokens += record["tokens"]
    loss = math.fsum(losses) / max(1, tokens)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "rows": len(records)}

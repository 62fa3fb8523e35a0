"""Evaluation on all ranks, each row once. Scores do not depend on the number of ranks.

Batches and their padding are fixed before they are dealt to ranks, and sums are taken in float64 in id order.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import torch
from torch import nn

from trainer.engine.corpus import Corpus, EvalBatch
from trainer.engine.layerwise import finish_batch
from trainer.engine.runtime import Runtime
from trainer.errors import DataError
from trainer.evaluation.predictions import in_corpus_order
from trainer.task.base import Record, Task

log = logging.getLogger("rankzero")

FEWEST_STEPS = 50  # after which a model should not give one prediction for all rows
FEWEST_EQUAL = 10  # equal predictions that are no accident


def evaluate(
    runtime: Runtime, task: Task, model: nn.Module, corpus: Corpus, split: str, *, predict: bool, resamples: int = 0
) -> tuple[dict[str, Any], list[Record]]:
    """Return the scores of a split on all ranks, and its records on rank zero (elsewhere none). All ranks.

    Args:
        predict: False computes only what needs no prediction: loss, perplexity, rows.
        resamples: bootstrap samples for the intervals. 0 = no intervals.

    Raises:
        DataError: the split has no row.
        Preempted: a rank has received a stop signal. The evaluation is dropped.
    """
    was_training = [module for module in model.modules() if module.training]  # a frozen trunk is not
    model.eval()
    try:
        records = _records(runtime, task, model, corpus, split, predict)
    finally:
        for module in was_training:
            module.training = True

    def score() -> dict[str, Any]:
        if not records:
            raise DataError(f"data.{split} has no row to evaluate")
        if predict and resamples and (found := constant(records)) is not None:
            log.warning("evaluation of %s: all %d predictions are %s%s", split, len(records), found, _meaning(task))
        return task.score(records, resamples) if predict else cheap_scores(records)

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


def _records(runtime: Runtime, task: Task, model: nn.Module, corpus: Corpus, split: str, predict: bool) -> list[Record]:
    records: list[Record] = []
    for window in corpus.batches(split):
        own: list[Record] = []
        for batch in runtime.data_parallel.rounds(window):
            runtime.check_stop(f"during the evaluation of {split}")
            if batch is not None:
                runtime.heartbeat(f"the evaluation of {split}")
                own += evaluate_batch(runtime, task, model, batch, predict)
            finish_batch(model)
        for gathered in runtime.gather(own) or []:
            records += gathered
    return in_corpus_order(records)


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


def constant(records: list[Record]) -> str | None:
    """Return the prediction that all rows have although their targets differ, as JSON. None if there is none."""
    predictions, targets = ({json.dumps(r[key]) for r in records} for key in ("prediction", "target"))
    without = "score" not in records[0] and records[0]["prediction"] == ""  # of a task that predicts no text here
    if len(records) < FEWEST_EQUAL or len(predictions) > 1 or len(targets) == 1 or without:
        return None
    return predictions.pop()


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


def cheap_scores(records: list[Record]) -> dict[str, Any]:
    """Return the mean loss per label, its exponential, and the number of rows."""
    loss = math.fsum(r["loss"] for r in records) / max(1, sum(r["tokens"] for r in records))
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "rows": len(records)}

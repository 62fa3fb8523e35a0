"""Warnings about a training that was too short, or that ended no better than guessing."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from trainer.recipe.sections import OptimConfig
from trainer.rundir import RunDir
from trainer.task.base import IGNORED, Task

if TYPE_CHECKING:
    from trainer.engine.corpus import Corpus

FEWEST_STEPS = 50  # of a run without a warning
LABELS = 100_000  # labels that are counted for the loss of guessing


def warnings_of(run: RunDir, task: Task, corpus: Corpus, steps: int) -> list[str]:
    """Return warnings about a training of `steps` steps, a sentence each. Only rank zero calls this."""
    return [
        text for text in (_few_steps(steps), _warm_up(task.recipe.optim, steps), _guessing(run, task, corpus)) if text
    ]


def _few_steps(steps: int) -> str | None:
    if steps >= FEWEST_STEPS:
        return None
    return (
        f"the run has only {steps} optimizer {'step' if steps == 1 else 'steps'} (fewer than {FEWEST_STEPS}): raise "
        "loop.epochs, or lower data.lanes, data.tokens_per_batch or data.rows_per_batch for more steps an epoch"
    )


def _warm_up(optim: OptimConfig, steps: int) -> str | None:
    if optim.schedule == "slanted_triangular" or optim.warmup_steps < max(2, steps):
        return None
    return (
        f"the warm-up of {optim.warmup_steps} steps (optim.warmup_steps) is not shorter than the run of {steps}: the "
        "learning rate was still rising at the end. Lower optim.warmup_steps, or train longer"
    )


def _guessing(run: RunDir, task: Task, corpus: Corpus) -> str | None:
    """Compare the last loss with that of guessing by the frequency of the labels."""
    found = _last_loss(run, task)
    if found is None:
        return None
    loss, split = found
    if (guessed := task.guess()) is not None:
        guess, how = guessed
    elif task.labels_are_tokens:
        guess, how = _entropy(task, corpus, split), "guessing tokens by their frequency"
    else:
        return None
    if not loss > guess:
        return None
    return (
        f"the {split} loss ended at {loss:.4f}, above {guess:.4f}, the loss of {how}: the model has learned nothing "
        f"that helps. Another optim.lr (now {task.recipe.optim.lr:g}) or more steps may be needed"
    )


def _last_loss(run: RunDir, task: Task) -> tuple[float, str] | None:
    """Return the loss per label and its split: validation, or training if its loss is a plain cross-entropy."""
    optim = task.recipe.optim
    changed = ("class_weights", "focal_gamma", "label_smoothing")
    plain = not optim.label_smoothing and not any(getattr(task.recipe.task, key, None) for key in changed)
    wanted = "train" if task.recipe.data.validation is None else "validation"
    if (wanted == "train" and not plain) or not run.metrics.exists():
        return None
    loss = None
    with run.metrics.open(encoding="utf-8") as lines:
        for line in lines:
            values: dict[str, Any] = json.loads(line)
            if values.get("split") == wanted:
                loss = values.get("loss")
    return None if loss is None else (float(loss), wanted)


def _entropy(task: Task, corpus: Corpus, split: str) -> float:
    """Return the entropy of up to LABELS labels in nats, corrected for few labels (Miller and Madow, 1955)."""
    import torch

    counts, total = torch.zeros(0, dtype=torch.int64), 0
    for window in corpus.batches(split):
        for batch in window:
            labels = task.collate(task.corrupt(batch.examples))["labels"]
            seen = torch.bincount(labels[labels != IGNORED], minlength=len(counts))
            seen[: len(counts)] += counts
            counts, total = seen, int(seen.sum())
        if total >= LABELS:
            break
    if total == 0:
        return math.inf
    seen = counts[counts > 0].double()
    return float(math.log(total) - (seen * seen.log()).sum() / total) + (len(seen) - 1) / (2 * total)

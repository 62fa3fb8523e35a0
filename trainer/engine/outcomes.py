"""What follows from a step once it is known whether it has updated the weights.

Where the device works in the background, the norm of the gradient is read only after the backward of the next step is
queued, so that the device always has work. No update of the weights comes between. Hence moving average, memories and
messages about NaN are as if it had been read at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.data.loader import Loaded
from trainer.engine.corpus import Corpus
from trainer.engine.progress import Progress
from trainer.engine.runtime import Runtime
from trainer.engine.state import TrainingState
from trainer.engine.step import Stepper, StepResult, Totals
from trainer.errors import NumericsError
from trainer.task.base import Task

log = logging.getLogger("rankzero")


@dataclass(frozen=True)
class _Unread:
    """A step whose norm has not been read."""

    number: int
    epoch: int
    batches: Sequence[Loaded | None]
    totals: Totals
    result: StepResult


class Outcomes:
    """Updates and skipped steps since the last log. All ranks: the norm is the same on all of them.

    Attributes:
        targets: labels of the updates.
        corpus_losses: mean losses by corpus of data.mix at the last `take_mean_loss`. None where a corpus has no
            label, or the loss of the task does not report the losses of rows.
    """

    def __init__(
        self, runtime: Runtime, task: Task, progress: Progress, stepper: Stepper, state: TrainingState, corpus: Corpus
    ) -> None:
        self._runtime, self._loop, self._progress = runtime, task.recipe.loop, progress
        self._stepper, self._state, self._corpus = stepper, state, corpus
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=runtime.device)
        self.targets = 0.0
        corpora = len(task.recipe.data.mix)
        self._corpus_sums = torch.zeros(corpora, dtype=torch.float64, device=runtime.device)
        self._corpus_targets, self._complete = [0.0] * corpora, True
        self.corpus_losses: list[float | None] = []
        self._unread: _Unread | None = None

    def add(
        self, number: int, batches: Sequence[Loaded | None], totals: Totals, result: StepResult, *, read: bool = False
    ) -> None:
        """Add a step. Its norm is read here if it is known already, or if `read`, or if the next forward needs it."""
        self._unread = _Unread(number, self._progress.epoch, batches, totals, result)
        if read or result.finite is not None or self._stepper.lane_memory.enabled:
            self.resolve()

    def resolve(self) -> None:
        """Read the norm of the last step if that has not been done, and count the step as an update or as skipped.

        Raises:
            NumericsError: it is NaN or Inf, and the recipe does not allow to skip the step.
        """
        step, self._unread = self._unread, None
        if step is None:
            return
        finite = step.result.finite
        if math.isfinite(float(step.result.grad_norm)) if finite is None else finite:
            self._progress.skipped = 0
            self._state.after_step(step.number)
            self._stepper.lane_memory.commit()
            self._loss_sum += step.result.loss_sum
            self.targets += step.totals.targets
            if (corpora := step.result.corpora) is not None:
                self._corpus_sums += corpora.sums
                self._complete = self._complete and corpora.complete
                pairs = zip(self._corpus_targets, step.totals.corpus_targets, strict=True)
                self._corpus_targets = [before + targets for before, targets in pairs]
        else:
            self._skip(step)

    def take_mean_loss(self) -> float:
        """Return the mean loss of the updates since the last call. Waits for the device and for all ranks."""
        self.resolve()
        own = torch.cat([self._loss_sum[None], self._corpus_sums]).tolist()
        loss_sum, *corpus_sums = self._runtime.sum(own, torch.float64)
        loss: float = loss_sum / (self.targets or 1)
        self.corpus_losses = [
            total / targets if targets and self._complete else None
            for total, targets in zip(corpus_sums, self._corpus_targets, strict=True)
        ]
        self._loss_sum.zero_()
        self._corpus_sums.zero_()
        self.targets, self._corpus_targets = 0.0, [0.0] * len(corpus_sums)
        return loss

    def _skip(self, step: _Unread) -> None:
        """Count a step as skipped for NaN or Inf, or end the run."""
        names = [shard.name for shard in self._corpus.train.shards]
        message = self._stepper.explain(step.batches, step.number, step.epoch, names)
        self._stepper.lane_memory.reset()
        self._progress.skipped += 1
        if self._loop.on_nonfinite == "stop":
            raise NumericsError(message)
        if self._progress.skipped >= self._loop.max_nonfinite:
            raise NumericsError(f"{self._progress.skipped} steps in a row were skipped; the last: {message}")
        if self._runtime.main:
            log.warning("step %d is skipped: %s", step.number, message)

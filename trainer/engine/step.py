"""One optimizer step: the loss sum of a micro-batch from every lane, divided once by the global count.

    n = labels that count, over all lanes               (known before the first forward)
    for each of the rank's A micro-batches:
        seed by (seed, step, lane)
        backward(loss_sum * W * A / n)                  (undoes DDP's mean over ranks and Accelerate's division by A)
    clip, step, zero

So a step is the same sum on any number of ranks: no mean of means (docs/explanation/steps.md).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer.data.loader import Loaded
from trainer.engine.lane_memory import LaneMemory
from trainer.engine.oom import ran_out
from trainer.engine.runtime import Runtime, seed_for
from trainer.errors import OutOfMemory, RankError, RankzeroError
from trainer.models.classifiers import reading_embedding
from trainer.models.families import family_of
from trainer.optim.adversarial import Perturbation
from trainer.optim.optimizers import set_rates
from trainer.task.base import Batch, Task


@dataclass(frozen=True)
class Totals:
    """What a step holds over all ranks, agreed before its first forward."""

    targets: int  # labels that count: the denominator
    rows: int
    tokens: int
    padded: int
    lanes: int  # lanes that still have rows; 0 = the epoch is over
    stopping: int  # ranks that have been told to stop


def agree(runtime: Runtime, task: Task, batches: Sequence[Loaded | None]) -> Totals:
    """Sums what all ranks are about to do. Waits for all ranks: the one collective before the backward's own."""
    have = [b for b in batches if b is not None]
    return Totals(
        *runtime.sum(
            [
                sum(task.targets(b.inputs) for b in have),
                sum(b.rows for b in have),
                sum(b.tokens for b in have),
                sum(b.padded for b in have),
                sum(len(b.lanes) for b in have),
                int(runtime.stop.received is not None),
            ]
        )
    )


@dataclass(frozen=True)
class StepResult:
    loss_sum: Tensor  # of this rank's rows, float64 scalar on the device; summed over ranks when it is logged
    grad_norm: float  # before clipping
    finite: bool


class Objective(nn.Module):
    """The loss sum of a micro-batch as a module: what Accelerate wraps, so that its forward is the whole of the step's.

    Wrapping the bare model instead would make Accelerate copy all logits to fp32.
    """

    def __init__(self, task: Task, model: nn.Module, frozen: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._frozen = [frozen] if frozen is not None else []  # in a list: it is a part of the model already

    def train(self, mode: bool = True) -> Self:
        """A frozen trunk stays in eval mode: dropout in it would be noise that nothing learns from."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, **batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        loss, memory = self.task.loss_and_memory(self.model, batch)
        return loss if memory is None else (loss, memory)

    @staticmethod
    def parts(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Loss and memory, from what the wrapped module's forward gives."""
        return found if isinstance(found, tuple) else (found, None)


def freeze_unused(objective: Objective) -> list[str]:
    """Takes parameters out of training that the loss does not depend on (heads that a pretrained model does not need).

    DDP would wait for their gradients, and weight decay would wear them down. Returns their names.
    """
    task, device = objective.task, next(objective.parameters()).device
    objective.train()
    loss, _ = Objective.parts(objective(**{name: tensor.to(device) for name, tensor in task.filler().items()}))
    loss.backward()
    unused = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad and p.grad is None]
    objective.zero_grad()
    for _, p in unused:
        p.requires_grad_(False)
    return [name for name, _ in unused]


class Stepper:
    """Makes optimizer steps over the micro-batches of the lanes that this rank owns."""

    def __init__(self, runtime: Runtime, task: Task, accumulation: int, parts: int = 1) -> None:
        self.runtime, self.task, self.engine = runtime, task, runtime.engine
        self.objective = self.engine.objective
        self.accumulation = accumulation  # forwards per rank, the same on all; short ranks add fillers
        self.parts = parts  # of each micro-batch, so that one fits the memory of every rank
        self.lane_memory = LaneMemory(runtime, task)
        self._filler = self._to_device(task.filler())
        optim = task.recipe.optim
        self._perturbation = None
        if optim.adversarial.kind != "none":
            model: Any = self.engine.model
            rows = family_of(getattr(getattr(model, "trunk", model), "config", None)).rows_dimension
            self._perturbation = Perturbation(reading_embedding(model), optim.adversarial, rows=rows)

    def warm_up(self) -> None:
        """Run what the engine does only in its first backward, on a filler. The gradient is dropped."""

        def loss() -> Tensor:
            seed_for(0, 0, 0)
            return Objective.parts(self.objective(**self._filler))[0]

        self.engine.warm_up(loss)

    def gradients(self, batches: Sequence[Loaded | None], step: int, totals: Totals) -> Tensor:
        """Accumulates the gradient of the whole step; returns this rank's loss sum (float64 scalar)."""
        scale = self.runtime.world * self.accumulation / max(1, totals.targets)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.runtime.device)
        self.lane_memory.begin()
        for number, (loaded, part, noise) in enumerate(self._forwards(batches, step)):
            batch = self._filler if part is None else self._to_device(part)
            try:
                loss, memory = self._micro_batch(batch, noise, scale, number == self.accumulation - 1)
            except Exception as error:
                if not ran_out(error):
                    raise
                raise self._too_large(batch, step) from error
            if loaded is not None and part is not None:
                loss_sum += loss
                self.lane_memory.leave(loaded, memory)
        return loss_sum

    def _forwards(
        self, batches: Sequence[Loaded | None], step: int
    ) -> Iterator[tuple[Loaded | None, Batch | None, tuple[int, int, int, int]]]:
        """The rank's forwards of a step: the micro-batch, what they hold of it, and what their noise belongs to.

        As many on every rank: micro-batches that it has not and parts that are empty are fillers (None).
        """
        seed = self.task.recipe.seed
        padded = [*batches, *[None] * (self.accumulation // self.parts - len(batches))]
        for loaded in padded:
            parts = self.task.split(self.lane_memory.given(loaded), self.parts) if loaded else [None] * self.parts
            for number, part in enumerate(parts):
                yield loaded, part, (seed, step, min(loaded.lanes) if loaded else -1, number)

    def _too_large(self, batch: Batch, step: int) -> RankzeroError:
        """What a rank raises that has run out of memory in a forward or backward."""
        labels = batch["labels"]
        shape = " x ".join(map(str, next(iter(batch.values())).shape))
        where = f"rank {self.runtime.rank} ran out of memory at step {step} in a micro-batch of {shape} tokens"
        if len(labels) == 1:
            return RankError(
                f"{where}, which cannot be split: lower data.max_length, set loop.activation_checkpointing, or choose "
                "zero3 or fsdp2 and more ranks (`rankzero plan` tells what fits)"
            )
        splits = 2 * self.parts
        text = f"{where}; the same command goes on from the newest checkpoint with each one in {splits} parts"
        return OutOfMemory(text, splits)

    def _micro_batch(
        self, batch: Batch, noise: tuple[int, int, int, int], scale: float, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Forward and backward of one micro-batch, and of its perturbed twin; gradients are reduced after the last."""
        twin = self._perturbation
        with twin.clean() if twin else contextlib.nullcontext():
            found = self._backward(batch, noise, scale, reduce=last and twin is None)
        if twin is not None:
            with twin.moved_by(twin.direction(batch.get("attention_mask"))):
                self._backward(batch, noise, scale * twin.settings.weight, reduce=last)
        return found

    def _backward(
        self, batch: Batch, noise: tuple[int, int, int, int], scale: float, *, reduce: bool
    ) -> tuple[Tensor, Tensor | None]:
        seed_for(*noise)
        with self.engine.accumulate(last=reduce):
            self.runtime.heartbeat("a forward")
            loss, memory = Objective.parts(self.objective(**batch))
            self.runtime.heartbeat("a backward")
            self.engine.accelerator.backward(loss * scale)
        self.runtime.heartbeat("a step")
        return loss.detach(), memory

    def __call__(
        self,
        batches: Sequence[Loaded | None],
        step: int,
        totals: Totals,
        multiplier: Callable[[int], float],
    ) -> StepResult:
        """Gradient, clipping and update. A non-finite gradient updates nothing: the caller decides what it means.

        fp16: where the scaler found an overflow the same rows are run again with a smaller scale, so that neither rate
        nor step nor bookmark advances for nothing.
        """
        set_rates(self.engine.optimizer, multiplier)
        while True:
            loss_sum = self.gradients(batches, step, totals)
            update = self.engine.step()
            if not update.retry:
                return StepResult(loss_sum, update.grad_norm, update.finite)

    def explain(self, batches: Sequence[Loaded | None], step: int, epoch: int, shard_names: Sequence[str]) -> str:
        """Which step, lanes and rows hold NaN or Inf: each rank runs its micro-batches once more. All ranks enter."""
        found = []
        for loaded, part, noise in self._forwards(batches, step):
            with torch.no_grad():
                seed_for(*noise)
                loss, _ = Objective.parts(self.objective(**(self._filler if part is None else self._to_device(part))))
            if loaded is not None and part is not None and not math.isfinite(float(loss)):
                found += [
                    f"lane {lane} rows {', '.join(f'{shard_names[s]}:{r}' for s, r in ids)}"
                    for lane, ids in loaded.ids.items()
                ]
        gathered = self.runtime.gather(found)
        every = self.runtime.broadcast([text for part in gathered or [] for text in dict.fromkeys(part)])
        where = "; ".join(every) or "the loss is finite in every lane, so a gradient overflowed"
        return (
            f"NaN or Inf at step {step} (epoch {epoch}): {where}. Lower optim.lr, set optim.clip_norm, look at these "
            "rows, or set loop.on_nonfinite=skip"
        )

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.runtime.device, non_blocking=True) for name, tensor in batch.items()}

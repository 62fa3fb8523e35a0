"""One optimizer step: the loss sum of a micro-batch from every lane, divided once by the global count.

    n = labels that count, over all lanes               (known before the first forward)
    for each of the rank's micro-batches:
        seed by (seed, step, lane)
        backward(loss_sum * W * A / n)                  (undoes DDP's mean over ranks and Accelerate's division by A)
    clip, step, zero

So a step is the same sum on any number of ranks: no mean of means (docs/explanation/steps.md).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from trainer.data.loader import Loaded
from trainer.engine import prefetch
from trainer.engine.lane_memory import LaneMemory
from trainer.engine.objective import Objective
from trainer.engine.runtime import Runtime, seed_for
from trainer.engine.utilization import Shape, shape_of
from trainer.errors import OutOfMemory, RankError, RankzeroError, ran_out_of_memory
from trainer.models import loss_groups
from trainer.models.classifiers import reading_embedding
from trainer.models.families import family_of
from trainer.models.fast_linear import fast_linear
from trainer.models.loss_groups import GroupLosses
from trainer.optim.adversarial import Perturbation
from trainer.optim.optimizers import set_rates
from trainer.task.base import Batch, Task

NoiseKey = tuple[int, int, int, int]  # what noise is seeded by: seed, step, lane, part of the micro-batch


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks for one step, known before its first forward.

    Attributes:
        targets: labels that count, times the weights of their rows if there are any. The loss is divided by it.
        padded: tokens with padding.
        lanes: lanes that still have rows. 0 = the epoch is over.
        stopping: ranks that have received a stop signal.
        timed_eval, timed_save: above 0 if an evaluation or a checkpoint is due by the clock of rank zero.
        left_out, used, bad, lines: of rows that were not checked before, see `LeftOut`.
        corpus_rows, corpus_targets: rows and targets by corpus of data.mix.
    """

    targets: float
    rows: int
    tokens: int
    padded: int
    lanes: int
    stopping: int
    timed_eval: int = 0
    timed_save: int = 0
    left_out: int = 0
    used: int = 0
    bad: int = 0
    lines: int = 0
    corpus_rows: tuple[int, ...] = ()
    corpus_targets: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        loss_sum: of this rank's rows, float64 scalar on the device. It is summed over ranks when it is logged.
        grad_norm: before clipping. Where `finite` is None, `float` waits for the device.
        finite: whether the weights were updated. None = they were if the norm is finite, which has not been read.
        corpora: the sums of the losses by corpus of data.mix, as `loss_sum`. None without it.
    """

    loss_sum: Tensor
    grad_norm: SupportsFloat
    finite: bool | None
    corpora: GroupLosses | None = None


class Stepper:
    """Makes optimizer steps over the micro-batches of the lanes that this rank owns.

    Args:
        runtime: its engine is prepared.
        task: computes the loss.
        accumulation: by which the engine divides each loss: the forwards of each rank in a step, unless `fuse` makes
            fewer. The same on all ranks. Ranks with fewer micro-batches add fillers.
        splits: parts of each micro-batch, so that one part fits the memory of every rank.
    """

    def __init__(self, runtime: Runtime, task: Task, accumulation: int, splits: int = 1) -> None:
        self.runtime, self.task, self.engine = runtime, task, runtime.engine
        self.accumulation = self.forwards = accumulation
        self.splits = splits
        self.objective = self.engine.objective
        self.lane_memory = LaneMemory(runtime, task)
        self.shapes: Counter[Shape] = Counter()  # of the micro-batches of the last step
        self.coming: Sequence[Loaded | None] = ()  # the micro-batches of the step that follows, if they are loaded
        streams = prefetch.streams_of(runtime.device)
        self._groups: GroupLosses | None = None  # of the last step
        self._prefetcher = None if streams is None else prefetch.Prefetcher(streams)
        self._filler = self._to_device(task.filler())
        # Compiled layers choose their own matrix products. A GPU has nothing of it, but every call would pass through.
        replaced = runtime.device.type == "cpu" and not task.recipe.loop.compile
        self._linear = fast_linear if replaced else contextlib.nullcontext
        self._perturbation = None
        adversarial = task.recipe.optim.adversarial
        self._passes = 2 if adversarial.kind != "none" or task.recipe.optim.r_drop else 1  # of a micro-batch
        if adversarial.kind != "none":
            model: Any = self.engine.model
            rows = family_of(getattr(getattr(model, "trunk", model), "config", None)).rows_dimension
            self._perturbation = Perturbation(reading_embedding(model), adversarial, rows=rows)

    def fuse(self, lanes: int) -> None:
        """Make a forward of so many lanes, which divide the lanes of every rank. The engine divides as before."""
        self.forwards = self.accumulation // lanes

    def rehearse(self, batch: Batch, forwards: int) -> None:
        """Run the forwards and backwards that take most memory in a step of so many forwards. Gradients remain.

        A second one begins with the gradient of the first. The ranks add up gradients only where they must, because a
        rank that runs out of memory would leave the others in it.
        """
        batch, some = self._to_device(batch), min(forwards, 2)
        for number in range(some):
            last = self.engine.rehearses_last and number == some - 1
            self._micro_batch(batch, (0, 0, -1, number), 0.0, last=last)

    def warm_up(self) -> None:
        """Run what the engine does only in its first backward, on a filler. The gradient is dropped."""

        def loss() -> Tensor:
            seed_for(0, 0, 0)
            return Objective.parts(self.objective(**self._filler))[0]

        self.engine.warm_up(loss)

    def __call__(
        self,
        batches: Sequence[Loaded | None],
        step: int,
        totals: Totals,
        multiplier: Callable[[int], float],
        before_update: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Compute the gradient, clip and update. Nothing is updated where the gradient is not finite.

        If fp16 overflows, the same rows are run again with a smaller loss scale. So neither the learning rate nor the
        bookmarks advance without an update.

        Args:
            before_update: called when the backward is queued, with the weights of the step before.
        """
        set_rates(self.engine.optimizer, multiplier)
        while True:
            loss_sum = self.gradients(batches, step, totals)
            before_update()
            update = self.engine.step()
            if not update.retry:
                return StepResult(loss_sum, update.grad_norm, update.finite, self._groups)

    def gradients(self, batches: Sequence[Loaded | None], step: int, totals: Totals) -> Tensor:
        """Accumulate the gradient of the step. Return this rank's loss sum (float64 scalar)."""
        scale = self.runtime.data_parallel.size * self.accumulation / (totals.targets or 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.runtime.device)
        self.lane_memory.start_step()
        self.shapes.clear()
        if corpora := self.task.recipe.data.mix:
            self._groups = GroupLosses(len(corpora), self.runtime.device)
        for number, (loaded, batch, noise) in enumerate(self._on_device(batches, step)):
            try:
                loss, memory = self._micro_batch(batch, noise, scale, last=number == self.forwards - 1)
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                raise self._too_large(batch, step) from error
            if loaded is not None and batch is not self._filler:
                self.shapes[shape_of(batch)] += self._passes
                loss_sum += loss
                self.lane_memory.add(loaded, memory)
        return loss_sum

    def _forwards(
        self, batches: Sequence[Loaded | None], step: int
    ) -> Iterator[tuple[Loaded | None, Batch | None, NoiseKey]]:
        """Return the rank's forwards of a step: the micro-batch, the part of it, and what its noise is seeded by.

        There are as many on every rank. Missing micro-batches and empty parts are fillers (None).
        """
        seed = self.task.recipe.seed
        trained = [loaded if loaded is not None and loaded.has_rows else None for loaded in batches]
        for loaded in [*trained, *[None] * (self.forwards // self.splits - len(batches))]:
            parts: Sequence[Batch | None] = [None] * self.splits
            if loaded:
                parts = self.task.split(self.lane_memory.inputs(loaded), self.splits)
            for number, part in enumerate(parts):
                yield loaded, part, (seed, step, min(loaded.lanes) if loaded else -1, number)

    def _on_device(
        self, batches: Sequence[Loaded | None], step: int
    ) -> Iterator[tuple[Loaded | None, Batch, NoiseKey]]:
        """Return the forwards of a step with their inputs on the device. While one runs, a GPU copies the next one.

        With the last one it copies the first one of the coming step, if that is loaded.
        """
        forwards = self._forwards(batches, step)
        following = next(forwards, None)
        while following is not None:
            (loaded, part, noise), following = following, next(forwards, None)
            batch = self._filler if part is None else self._to_device(part)
            if self._prefetcher is not None:
                ahead = self._first(batches) if following is None else following[1]
                if ahead is not None:
                    self._prefetcher.start(ahead)
            yield loaded, batch, noise

    def _first(self, batches: Sequence[Loaded | None]) -> Batch | None:
        """Return the first micro-batch of the coming step, without the memory of its lanes, which this step makes."""
        if self.coming is batches or self.splits > 1:
            return None
        return next((loaded.inputs for loaded in self.coming if loaded and loaded.has_rows), None)

    def _too_large(self, batch: Batch, step: int) -> RankzeroError:
        """Return the error of a rank that has run out of memory in a forward or backward."""
        labels = batch["labels"]
        shape = " x ".join(map(str, next(iter(batch.values())).shape))
        where = f"rank {self.runtime.rank} ran out of memory at step {step} in a micro-batch of {shape} tokens"
        if len(labels) == 1:
            return RankError(
                f"{where}, which cannot be split: lower data.max_length, set loop.activation_checkpointing, or choose "
                "zero3 or fsdp2 and more ranks (`rankzero plan` shows what fits)"
            )
        splits = 2 * self.splits
        text = f"{where}; the same command resumes from the newest checkpoint with each one in {splits} parts"
        return OutOfMemory(text, splits)

    def _micro_batch(self, batch: Batch, noise: NoiseKey, scale: float, *, last: bool) -> tuple[Tensor, Tensor | None]:
        """Run a micro-batch and, in adversarial training, the perturbed one. Return loss and memory of the first."""
        perturbation = self._perturbation
        if perturbation is None:
            with loss_groups.collecting(self._groups):
                return self._backward(batch, noise, scale, last=last)
        with perturbation.clean(), loss_groups.collecting(self._groups):
            result = self._backward(batch, noise, scale, last=False)
        with perturbation.moved_by(perturbation.direction(batch.get("attention_mask"))):
            self._backward(batch, noise, scale * perturbation.settings.weight, last=last)
        return result

    def _backward(self, batch: Batch, noise: NoiseKey, scale: float, *, last: bool) -> tuple[Tensor, Tensor | None]:
        seed_for(*noise)
        with self.engine.accumulate(last=last), self._linear():
            self.runtime.heartbeat("a forward")
            loss, memory = Objective.parts(self.objective(**batch))
            self.runtime.heartbeat("a backward")
            self.engine.accelerator.backward(loss * scale)
        self.runtime.heartbeat("a step")
        return loss.detach(), memory

    def explain(self, batches: Sequence[Loaded | None], step: int, epoch: int, shard_names: Sequence[str]) -> str:
        """Return which step, lanes and rows have NaN or Inf. Each rank runs its micro-batches once more. All ranks."""
        own = []
        for loaded, part, noise in self._forwards(batches, step):
            with torch.no_grad():
                seed_for(*noise)
                loss, _ = Objective.parts(self.objective(**(self._filler if part is None else self._to_device(part))))
            if loaded is not None and part is not None and not math.isfinite(float(loss)):
                own += [
                    f"lane {lane} rows {', '.join(f'{shard_names[s]}:{r}' for s, r in ids)}"
                    for lane, ids in loaded.ids.items()
                ]
        self.engine.end_forward()
        gathered = self.runtime.gather(own)
        texts = self.runtime.broadcast([text for rank in gathered or [] for text in dict.fromkeys(rank)])
        where = "; ".join(texts) or "the loss is finite in every lane, so a gradient overflowed"
        return (
            f"NaN or Inf at step {step} (epoch {epoch}): {where}. Lower optim.lr, set optim.clip_norm, look at these "
            "rows, or set loop.on_nonfinite=skip"
        )

    def _to_device(self, batch: Batch) -> Batch:
        if self._prefetcher is not None:
            return self._prefetcher.take(batch)
        return {name: tensor.to(self.runtime.device, non_blocking=True) for name, tensor in batch.items()}

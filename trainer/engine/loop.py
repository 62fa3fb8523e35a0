"""The training loop: when to step, log, evaluate, save and stop. All ranks take every branch together."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.data.lanes import Bookmark, LaneServer
from trainer.data.loader import Loaded, load_epoch
from trainer.engine import checkpoint, lane_memory
from trainer.engine.callbacks import Callbacks
from trainer.engine.corpus import Corpus
from trainer.engine.evaluate import evaluate, selection_score
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.runtime import Runtime
from trainer.engine.state import TrainingState
from trainer.engine.step import Stepper, Totals, agree
from trainer.engine.timer import Timer
from trainer.engine.utilization import Work
from trainer.engine.writer import Files, Writer
from trainer.errors import NumericsError, Preempted
from trainer.optim.schedules import Plateau, lr_multiplier
from trainer.rundir import RunDir
from trainer.task.base import Task

log = logging.getLogger("rankzero")


@dataclass
class Loop:
    """The training of one run, from `progress` to the end of the recipe.

    Attributes:
        model: the one that is evaluated.
        total_rows: training rows of one epoch. None = unknown, and `max_steps` ends the run.
    """

    runtime: Runtime
    task: Task
    model: nn.Module
    corpus: Corpus
    server: LaneServer
    stepper: Stepper
    state: TrainingState
    progress: Progress
    run: RunDir
    reporter: Reporter
    total_rows: int | None
    profiler: AbstractContextManager[Any] | None = None

    def __post_init__(self) -> None:
        self._loop = self.task.recipe.loop
        self._groups = self.runtime.data_parallel.lane_groups(self.task.recipe.data.lanes, self._loop.fuse_lanes)
        self._saved = self.progress.step if self.progress.step else -1
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.runtime.device)
        self._targets = 0.0
        self._work = Work()  # of the step that comes
        self._writer = Writer()
        self._callbacks = Callbacks(self.task.recipe, self.run.path, self.runtime.rank, self.runtime.world)
        self._timers = [Timer(self._loop.eval_every), Timer(self._loop.save_every)]

    def train(self) -> None:
        """Train to the end. The last step is always evaluated and saved.

        Raises:
            Preempted: a rank has received a stop signal. The last finished step is saved.
            NumericsError: NaN or Inf. The last checkpoint is kept.
        """
        try:
            if self._loop.eval_first and self.progress.step == 0:
                self._evaluate_first()
            if self.progress.eval_pending:  # the run was stopped during the evaluation of this step
                self._evaluate_and_save(evaluate_now=True)
            with self.profiler or nullcontext() as profile:
                while not self.finished():
                    self._epoch(profile)
            if self._targets:  # the same on all ranks
                self._log()
            if self.progress.evaluated < self.progress.step or self._saved < self.progress.step:
                self._evaluate_and_save(evaluate_now=self.progress.evaluated < self.progress.step)
            if facts := self.progress.stopped_early(self._loop.early_stopping):
                self.reporter.stopped_early(facts)
            self.runtime.on_main(self._writer.wait)
            self._callbacks.call("on_end", self.progress.step)
        except Preempted:
            if self._saved < self.progress.step:
                self._save()
            self.runtime.on_main(self._writer.wait)
            self._callbacks.call("on_end", self.progress.step)
            raise
        finally:
            self._writer.wait()  # a save that has begun is finished, whatever has happened

    # -- steps -----------------------------------------------------------------------------------------------------

    def _epoch(self, profile: Any) -> None:
        """Train the rest of the current epoch, or to the end of the run if that comes first."""
        for batches in self._batches():
            due = self._timers[0].due(), self._timers[1].due()
            began = time.monotonic()
            totals = agree(self.runtime, self.task, batches, due)  # waits for all ranks
            self._work.rank_wait += time.monotonic() - began
            if totals.stopping:
                raise self.runtime.stopped(f"after step {self.progress.step}")
            if totals.lanes == 0:
                break
            self._step(batches, totals)
            if profile is not None:
                profile.step()
            due_eval = self._due(self._loop.eval_every) or totals.timed_eval > 0
            if due_eval or self._due(self._loop.save_every) or totals.timed_save:
                self._evaluate_and_save(evaluate_now=due_eval)
            if self.finished():
                return
        if self._loop.epochs == self.progress.epoch + 1 and self._targets:  # the rest belongs to this epoch
            self._log()
        self.progress.next_epoch()
        at_end = "epoch" in (self._loop.eval_every, self._loop.save_every) and self.progress.step > 0
        if at_end and not self.finished():
            self._evaluate_and_save(evaluate_now=self._loop.eval_every == "epoch")

    def _batches(self) -> Iterator[list[Loaded | None]]:
        """Return the micro-batches of each step, without end: other ranks may have more steps than this one."""
        data = self.task.recipe.data
        loaded = load_epoch(
            self.server,
            self.task.training_batch,
            self.task.tokens,
            self._groups,
            self.progress.marks,
            inputs=self.task.inputs,
            corrupt=self.task.corrupt,
            workers=data.workers,
            prefetch=data.prefetch,
            pin_memory=self.runtime.device.type == "cuda",
        )
        nothing: list[Loaded | None] = [None] * len(self._groups)
        steps = itertools.chain(loaded, itertools.repeat(nothing))
        while True:
            self.runtime.heartbeat("the loading of rows")
            began = time.monotonic()
            batches = next(steps)
            self._work.data_wait += time.monotonic() - began
            yield batches

    def _step(self, batches: list[Loaded | None], totals: Totals) -> None:
        progress, number = self.progress, self.progress.step + 1
        share = progress.share(self._loop, self.total_rows)
        after = progress.share(self._loop, self.total_rows, totals.rows, 1)
        optim = self.task.recipe.optim
        factor = progress.plateau["current"] if progress.plateau else 1.0

        def multiplier(depth: int) -> float:
            return lr_multiplier(optim, number, share, depth=depth, plateau_factor=factor, progress_after=after)

        result = self.stepper(batches, number, totals, multiplier)
        if result.finite:
            progress.skipped = 0
            self.state.after_step(number)
            self.stepper.lane_memory.commit()
            self._loss_sum += result.loss_sum
            self._targets += totals.targets
        else:
            self._skip(batches, number)
        for loaded in batches:
            progress.marks.update(loaded.lanes if loaded else {})
        progress.step, progress.rows = number, progress.rows + totals.rows
        self.runtime.heartbeat("the end of a step", number)
        self._append_to_ledger(number, batches)
        lr = (optim.head_lr or optim.lr) * multiplier(0)
        self._work.shapes.update(self.stepper.shapes)
        self.reporter.step(progress, after, totals, lr, result.grad_norm, self._work)
        self._work = Work()
        if self._callbacks:
            counts = {"rows": totals.rows, "tokens": totals.tokens, "epoch": progress.last_epoch, "progress": after}
            self._callbacks.call("on_step", number, {"lr": lr, "grad_norm": result.grad_norm, **counts})
        if number % self._loop.log_every == 0:
            self._log()

    def _log(self) -> None:
        loss_sum = self.runtime.sum([float(self._loss_sum)], torch.float64)[0]  # waits for all ranks
        loss = loss_sum / (self._targets or 1)
        self._loss_sum.zero_()
        self._targets = 0.0
        self.reporter.logged(self.progress, loss)
        self._callbacks.call("on_log", self.progress.step, {"loss": loss, "epoch": self.progress.last_epoch})

    def _skip(self, batches: list[Loaded | None], number: int) -> None:
        """Count a step as skipped for NaN or Inf, or end the run. All ranks: the gradient is the same on all."""
        names = [shard.name for shard in self.corpus.train.shards]
        message = self.stepper.explain(batches, number, self.progress.epoch, names)
        self.stepper.lane_memory.reset()
        self.progress.skipped += 1
        if self._loop.on_nonfinite == "stop":
            raise NumericsError(message)
        if self.progress.skipped >= self._loop.max_nonfinite:
            raise NumericsError(f"{self.progress.skipped} steps in a row were skipped; the last: {message}")
        if self.runtime.main:
            log.warning("step %d is skipped: %s", number, message)

    def _append_to_ledger(self, number: int, batches: list[Loaded | None]) -> None:
        """With `track: [ledger]`, write which rows of each lane a step has used."""
        if "ledger" not in self.task.recipe.track:
            return
        source = self.corpus.train
        own = {
            str(lane): [source.name_of(i) for i in ids]
            for loaded in batches
            if loaded
            for lane, ids in loaded.ids.items()
        }
        gathered = self.runtime.gather(own)
        if gathered is not None:
            self.reporter.rows(number, {lane: ids for rank in gathered for lane, ids in rank.items()})

    # -- evaluation and checkpoints --------------------------------------------------------------------------------

    def _due(self, every: int | str) -> bool:
        return isinstance(every, int) and self.progress.step > 0 and self.progress.step % every == 0

    def _evaluate_and_save(self, *, evaluate_now: bool) -> None:
        """Evaluate and save at a scheduled step. Only these steps count for the best one and for averaging."""
        progress = self.progress
        if evaluate_now and progress.evaluated < progress.step:
            progress.eval_pending = True
            self._evaluate()
            progress.eval_pending, progress.evaluated = False, progress.step
        if evaluate_now and progress.step not in progress.scheduled_steps:
            averaging = self.task.recipe.optim.averaging
            kept = averaging.last if averaging.kind == "last" else 1
            progress.scheduled_steps = [*progress.scheduled_steps, progress.step][-kept:]
        self._save()

    def _evaluate_first(self) -> None:
        """Evaluate the untrained weights. Their scores are logged, and do not count for the best checkpoint."""
        if self.task.recipe.data.validation is not None:
            self.reporter.evaluating()
            scores = self._scores()
            self.reporter.evaluated(self.progress, scores, best=False)
            self._callbacks.call("on_eval", 0, scores)

    def _scores(self) -> dict[str, Any]:
        """Return the scores of the weights on `validation`. All ranks."""
        predict = self._loop.early_stopping.metric not in self.task.cheap_metrics
        with self.state.eval_weights():
            return evaluate(self.runtime, self.task, self.model, self.corpus, "validation", predict=predict)[0]

    def _evaluate(self) -> None:
        """Evaluate `validation`, and never `test`, to select and to stop. All ranks decide alike."""
        progress, stopping = self.progress, self._loop.early_stopping
        if self.task.recipe.data.validation is None:
            return
        self.reporter.evaluating()
        scores = self._scores()
        value = selection_score(self.runtime, scores, stopping.metric)
        lower = self.task.metrics[stopping.metric] == "min"
        tied = progress.best is not None and value == progress.best.value
        better = progress.record_evaluation(value, lower, stopping.min_delta)
        progress.ended = stopping.patience is not None and progress.bad_evals >= stopping.patience
        if self.task.recipe.optim.schedule == "plateau":
            self._update_plateau(value, "min" if lower else "max")
        self.reporter.evaluated(progress, scores, better, tied)
        self._timers[0].restart()
        self._callbacks.call("on_eval", progress.step, scores)

    def _update_plateau(self, value: float, mode: str) -> None:
        settings = self.task.recipe.optim.plateau
        state = self.progress.plateau
        plateau = (
            Plateau.from_state(state["state"])
            if state
            else Plateau(settings.factor, settings.patience, settings.min_delta, mode)
        )
        plateau.update(value)
        self.progress.plateau = {"current": plateau.current, "state": plateau.state()}

    def _save(self) -> None:
        """Save a checkpoint on rank zero, in the background. Its error is raised on all ranks.

        All ranks wait until rank zero has its snapshot.
        """
        progress = self.progress
        gathered = self.runtime.gather({lane: progress.marks[lane] for group in self._groups for lane in group})
        marks: dict[int, Bookmark] = {lane: mark for rank in gathered or [] for lane, mark in rank.items()}
        tensors, extra = self.state.collect()
        if memories := self.stepper.lane_memory.collect():
            tensors[lane_memory.FILE] = memories
        step, state = progress.step, {"format": 1, **extra, **progress.to_json(marks)}
        protected = [step, *([progress.best.step] if progress.best else []), *progress.scheduled_steps]

        def write(files: Files) -> None:
            checkpoint.save(self.run.checkpoints, step, files, state)
            checkpoint.clean(self.run.checkpoints, self._loop.keep, protected)

        self.runtime.on_main(lambda: self._writer.submit(tensors, write, owned=self.state.sharded))
        self._saved = step
        self._timers[1].restart()
        self._callbacks.call("on_save", step, checkpoint.path_of(self.run.checkpoints, step))

    # -- the end ---------------------------------------------------------------------------------------------------

    def finished(self) -> bool:
        return self.progress.finished(self._loop)

"""The training loop: when to step, log, evaluate, save and stop. All ranks take every branch together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainer.data.lane_plan import Bookmark
from trainer.data.lanes import LaneServer
from trainer.data.loader import Loaded
from trainer.engine import checkpoint, lane_memory, saving
from trainer.engine.agreement import Ahead, agree, micro_batches
from trainer.engine.callbacks import Callbacks
from trainer.engine.corpus import Corpus
from trainer.engine.evaluate import evaluate, selection_score
from trainer.engine.outcomes import Outcomes
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.runtime import Runtime
from trainer.engine.saving import Ranks, Share
from trainer.engine.state import TrainingState
from trainer.engine.step import Stepper, Totals
from trainer.engine.timer import Timer
from trainer.engine.unchecked_rows import UncheckedRows
from trainer.engine.utilization import Work
from trainer.engine.writer import Writer
from trainer.errors import DataError, Preempted
from trainer.optim.schedules import Plateau, lr_multiplier
from trainer.rundir import RunDir
from trainer.task.base import Task


@dataclass
class Loop:
    """The training of one run, from `progress` to the end of the recipe.

    Attributes:
        model: the one that is evaluated.
        total_rows: training rows of one epoch. None = unknown, and `max_steps` ends the run.
        fuse: lanes of this rank in one forward.
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
    fuse: int = 1

    def __post_init__(self) -> None:
        self._loop = self.task.recipe.loop
        self._corpora = [corpus.name for corpus in self.task.recipe.data.mix]
        self._groups = self.runtime.data_parallel.lane_groups(self.task.recipe.data.lanes, self.fuse)
        self._saved = self.progress.step if self.progress.step else -1
        self._outcomes = Outcomes(self.runtime, self.task, self.progress, self.stepper, self.state, self.corpus)
        self._work = Work()  # of the step that comes
        self._writer = Writer(self.runtime)
        self._unchecked = UncheckedRows(self.runtime, self.corpus, self.progress)
        self._callbacks = Callbacks(self.task.recipe, self.run.path, self.runtime.rank, self.runtime.world)
        self._timers = [Timer(self._loop.eval_every), Timer(self._loop.save_every)]

    def train(self) -> None:
        """Train to the end. The last step is always evaluated and saved.

        Raises:
            Preempted: a rank has received a stop signal. The last finished step is saved.
            NumericsError: NaN or Inf. The last checkpoint is kept.
            DataError: a bad row that was not checked before. The last finished step is saved.
        """
        try:
            if self._loop.eval_first and self.progress.step == 0:
                self._evaluate_first()
            if self.progress.eval_pending:  # the run was stopped during the evaluation of this step
                self._evaluate_and_save(evaluate_now=True)
            with self.profiler or nullcontext() as profile:
                while not self.finished():
                    self._epoch(profile)
            self._outcomes.resolve()
            if self._outcomes.targets:  # the same on all ranks
                self._log()
            if self.progress.evaluated < self.progress.step or self._saved < self.progress.step:
                self._evaluate_and_save(evaluate_now=self.progress.evaluated < self.progress.step)
            if facts := self.progress.stopped_early(self._loop.early_stopping):
                self.reporter.stopped_early(facts)
            self._writer.wait()
            self._callbacks.call("on_end", self.progress.step)
        except Preempted:
            if self._saved < self.progress.step:
                self._save()
            self._writer.wait()
            self._callbacks.call("on_end", self.progress.step)
            raise
        finally:
            self._writer.wait_for_own()  # a save that has begun is finished, whatever has happened

    # -- steps -----------------------------------------------------------------------------------------------------

    def _epoch(self, profile: Any) -> None:
        """Train the rest of the current epoch, or to the end of the run if that comes first.

        The ranks agree on a step while the one before it runs, unless an evaluation, a save or the end comes between.
        """
        steps = self._batches()
        ahead = self._agree_on(next(steps))
        while (totals := self._totals(ahead)).lanes:
            batches, (evaluate_now, save_now) = ahead.batches, self._due(totals)
            pause = evaluate_now or save_now or self.progress.step + 1 == self._loop.max_steps
            if not pause:
                ahead = self._agree_on(next(steps))
            self._step(batches, totals)
            if profile is not None:
                profile.step()
            if evaluate_now or save_now:
                self._evaluate_and_save(evaluate_now=evaluate_now)
            if self.finished():
                return
            if pause:
                ahead = self._agree_on(next(steps))
        self._unchecked.add(ahead.batches, totals)
        for loaded in ahead.batches:
            self.progress.marks.update(loaded.ended if loaded else {})
        self._end_epoch()

    def _end_epoch(self) -> None:
        self._outcomes.resolve()
        if self._loop.epochs == self.progress.epoch + 1 and self._outcomes.targets:  # the rest belongs to this epoch
            self._log()
        self.progress.next_epoch()
        at_end = "epoch" in (self._loop.eval_every, self._loop.save_every) and self.progress.step > 0
        if at_end and not self.finished():
            self._evaluate_and_save(evaluate_now=self._loop.eval_every == "epoch")

    def _agree_on(self, batches: Sequence[Loaded | None]) -> Ahead:
        due = (self._timers[0].due(), self._timers[1].due())
        return agree(self.runtime, batches, due, len(self._corpora), unchecked=self._unchecked.enabled)

    def _totals(self, ahead: Ahead) -> Totals:
        """Return the totals of a step. Waits for all ranks.

        Raises:
            Preempted: a rank has received a stop signal.
            DataError: the step has a bad row, or too many, that was not checked before.
        """
        began = time.monotonic()
        totals = ahead.totals()
        self._work.rank_wait += time.monotonic() - began
        if totals.stopping:
            self._outcomes.resolve()
            raise self.runtime.stopped(f"after step {self.progress.step}")
        if (problem := self._unchecked.problem(ahead.batches, totals)) is not None:
            self._outcomes.resolve()
            if 0 < self.progress.step != self._saved:
                self._save()
            error = DataError(problem)
            error.everywhere = True
            raise error
        return totals

    def _due(self, totals: Totals) -> tuple[bool, bool]:
        """Return whether an evaluation and a save follow the step with these totals. The same on all ranks."""
        step = self.progress.step + 1
        by_steps = [isinstance(n, int) and step % n == 0 for n in (self._loop.eval_every, self._loop.save_every)]
        return by_steps[0] or totals.timed_eval > 0, by_steps[1] or totals.timed_save > 0

    def _batches(self) -> Iterator[list[Loaded | None]]:
        """Return the micro-batches of each step, without end: other ranks may have more steps than this one."""
        pin = self.runtime.device.type == "cuda"
        steps = micro_batches(self.server, self.task, self._groups, self.progress.marks, pin_memory=pin)
        while True:
            self.runtime.heartbeat("the loading of rows")
            began = time.monotonic()
            batches = next(steps)
            self._work.data_wait += time.monotonic() - began
            self.stepper.coming = batches
            yield batches

    def _step(self, batches: Sequence[Loaded | None], totals: Totals) -> None:
        progress, number = self.progress, self.progress.step + 1
        share = progress.share(self._loop, self.total_rows)
        after = progress.share(self._loop, self.total_rows, totals.rows + totals.left_out, 1)
        optim = self.task.recipe.optim
        factor = progress.plateau["current"] if progress.plateau else 1.0

        def multiplier(depth: int) -> float:
            return lr_multiplier(optim, number, share, depth=depth, plateau_factor=factor, progress_after=after)

        result = self.stepper(batches, number, totals, multiplier, self._outcomes.resolve)
        self._outcomes.add(number, batches, totals, result, read=bool(self._callbacks))
        for loaded in batches:
            progress.marks.update(loaded.lanes | loaded.ended if loaded else {})
        progress.step, progress.rows = number, progress.rows + totals.rows
        self._unchecked.add(batches, totals)
        before = progress.corpus_rows or [0] * len(self._corpora)
        progress.corpus_rows = [rows + more for rows, more in zip(before, totals.corpus_rows, strict=True)]
        self.runtime.heartbeat("the end of a step", number)
        self._append_to_ledger(number, batches)
        lr = (optim.head_lr or optim.lr) * multiplier(0)
        self._work.shapes.update(self.stepper.shapes)
        if self.runtime.main:  # only its work is reported
            self._work.communication = self.runtime.engine.communication()
        self.reporter.step(progress, after, totals, lr, result.grad_norm, self._work)
        self._work = Work()
        if self._callbacks:
            counts = {"rows": totals.rows, "tokens": totals.tokens, "epoch": progress.last_epoch, "progress": after}
            self._callbacks.call("on_step", number, {"lr": lr, "grad_norm": float(result.grad_norm), **counts})
        if number % self._loop.log_every == 0:
            self._log()

    def _log(self) -> None:
        loss = self._outcomes.take_mean_loss()
        rows, losses = self.progress.corpus_rows, self._outcomes.corpus_losses
        corpora = {n: {"rows": r, "loss": x} for n, r, x in zip(self._corpora, rows, losses, strict=True)}
        more = {"corpora": corpora} if corpora else {}
        self.reporter.logged(self.progress, loss, more)
        self._callbacks.call("on_log", self.progress.step, {"loss": loss, "epoch": self.progress.last_epoch, **more})

    def _append_to_ledger(self, number: int, batches: Sequence[Loaded | None]) -> None:
        """With `loop.ledger`, write which rows of each lane a step has used."""
        if not self._loop.ledger:
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
            more = {"epoch": self.progress.epoch} if self._corpora else {}
            self.reporter.rows(number, {lane: ids for rank in gathered for lane, ids in rank.items()}, more)

    # -- evaluation and checkpoints --------------------------------------------------------------------------------

    def _evaluate_and_save(self, *, evaluate_now: bool) -> None:
        """Evaluate and save at a scheduled step. Only these steps count for the best one and for averaging."""
        progress = self.progress
        self._outcomes.resolve()
        if evaluate_now and progress.evaluated < progress.step:
            progress.eval_pending = True
            self._evaluate()
            progress.eval_pending, progress.evaluated = False, progress.step
            self._timers[0].restart()
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
            return evaluate(
                self.runtime, self.task, self.model, self.corpus, "validation", self.run.path, predict=predict
            )[0]

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
        """Save a checkpoint, of which each rank writes a share. An error of one is raised on all ranks.

        All ranks wait until each one has its snapshot, or until a sharded engine has written all tensors.
        """
        progress = self.progress
        gathered = self.runtime.gather({lane: progress.marks[lane] for group in self._groups for lane in group})
        marks: dict[int, Bookmark] = {lane: mark for rank in gathered or [] for lane, mark in rank.items()}
        content, extra = self.state.collect()
        memories = self.stepper.lane_memory.collect()
        step, state = progress.step, {"format": 1, **extra, **progress.to_json(marks)}
        if unchecked := self._unchecked.collect():
            state["unchecked"] = unchecked
            if self.runtime.main:
                self._unchecked.record(self.run, unchecked)
        protected = [step, *([progress.best.step] if progress.best else []), *progress.scheduled_steps]

        def write(share: Share, ranks: Ranks) -> None:
            ranks.on_main(self.run.flush_lines)
            saving.save_share(self.run.checkpoints, step, share, state, ranks)
            ranks.on_main(lambda: checkpoint.clean(self.run.checkpoints, self._loop.keep, protected))

        self._writer.save(content, {lane_memory.FILE: memories} if memories else {}, write)
        self._saved = step
        self._timers[1].restart()
        self._callbacks.call("on_save", step, checkpoint.path_of(self.run.checkpoints, step))

    # -- the end ---------------------------------------------------------------------------------------------------

    def finished(self) -> bool:
        return self.progress.finished(self._loop)

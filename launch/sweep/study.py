"""The trials of a sweep in Optuna's journal. All methods need the lock of the sweep's folder.

Optuna draws values, decides what to prune and measures importance. A trial is one line of the journal, with all its
values: it exists completely or not at all. What has become of it is read from its run directory, so a sweep that was
killed at any instant finds its trials again. An incomplete last line of the journal is removed.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from launch.sweep.distributions import Choice, Distribution, Integer, LogUniform, Quantized, Range
from launch.sweep.space import Sweep, Values
from trainer.errors import CheckpointError
from trainer.files import flush

NAME = "sweep"  # of the study in the journal; hyperband deals trials to brackets by it
MOST_DRAWS = 100  # draws of one trial, each of values that are new and go together
FEWEST = 4  # complete trials from which importance is measured
STATES = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Study:
    """The trials of a sweep."""

    def __init__(self, sweep: Sweep, journal: Path, jobs: int = 1) -> None:
        """Open the journal, or begin it.

        Args:
            jobs: trials at a time. With several, TPE keeps away from the values of running ones.

        Raises:
            CheckpointError: the journal is damaged.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").propagate = False
        self.sweep, self._jobs = sweep, jobs
        self._importance: tuple[int, dict[str, float]] = (0, {})  # and of how many trials it is
        self._space = {key: _of_optuna(distribution) for key, distribution in sweep.space.items()}
        repair(journal)
        try:
            self._storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="maximize" if sweep.maximize else "minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{journal} is damaged ({error}); restore it, or choose another --out") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperband is experimental
            self._pruner = _pruner(sweep)

    # -- trials ----------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        return self._study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial) -> Values:
        """Return the values of a trial by key of the recipe."""
        return {key: _decode(self.sweep.space[key], trial.params[key]) for key in self.sweep.space}

    def open_trials(self) -> list[int]:
        """Return the numbers of trials that have not ended: running ones, and those of a sweep that was killed."""
        return [trial.number for trial in self.trials if not trial.state.is_finished()]

    def more(self) -> bool:
        """Return whether there are values for another trial."""
        number = len(self.trials)
        return number < self.sweep.planned and self._draw(number) is not None

    def create(self) -> int | None:
        """Add a trial with new values. Return its number, or None if no trial is left."""
        number = len(self.trials)
        if number >= self.sweep.planned or (values := self._draw(number)) is None:
            return None
        params = {key: _encode(self.sweep.space[key], value) for key, value in values.items()}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=self._space))
        return number

    def note(self, number: int, key: str, value: Any) -> None:
        """Keep a value with a trial."""
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def noted(self, number: int, key: str) -> Any:
        return self.trials[number].user_attrs.get(key)

    def report(self, number: int, evaluations: Sequence[float]) -> bool:
        """Add the evaluations of a running trial that are new. Return whether there are any."""
        known = self.trials[number].intermediate_values
        for index, value in enumerate(evaluations, 1):
            if index not in known:
                self._storage.set_trial_intermediate_value(self._id(number), index, value)
        return len(evaluations) > len(known)

    def should_prune(self, number: int) -> bool:
        """Return whether a running trial is worse than others after as many evaluations."""
        return bool(self._pruner.prune(self._study, self.trials[number]))

    def complete(self, number: int, value: float) -> None:
        self._study.tell(number, value, skip_if_finished=True)

    def pruned(self, number: int) -> None:
        self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def failed(self, number: int, error: str) -> None:
        self.note(number, "error", error)
        self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _id(self, number: int) -> int:
        return self.trials[number]._trial_id

    # -- results ---------------------------------------------------------------------------------------------------

    def best(self) -> list[int]:
        """Return the numbers of the complete trials, the best first. Of equal ones the earlier."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        ranked = sorted(
            complete, key=lambda trial: trial.values[0], reverse=self.sweep.maximize
        )  # keeps the order of equals
        return [trial.number for trial in ranked]

    def importance(self) -> dict[str, float]:
        """Return the share of each key in the variance of the metric (fANOVA). Empty with too few trials."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
            return {}
        if self._importance[0] == len(complete):
            return self._importance[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0))
        self._importance = len(complete), {key: float(share) for key, share in found.items()}
        return self._importance[1]

    def table(self) -> dict[str, Any]:
        """Return the content of trials.json."""
        best = self.best()
        return {
            "metric": self.sweep.metric,
            "direction": "maximize" if self.sweep.maximize else "minimize",
            "planned": max(self.sweep.planned, len(self.trials)),
            "best": best[0] if best else None,
            "importance": self.importance(),
            "trials": [self._row(trial) for trial in self.trials],
        }

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        ended = trial.datetime_complete and trial.datetime_start
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds() if ended else None  # type: ignore[operator]
        return {
            "number": trial.number,
            "state": STATES[trial.state],
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "params": self.values(trial),
            "evaluations": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            "seconds": seconds,
            "pruned": trial.user_attrs.get("pruned"),
            "error": trial.user_attrs.get("error"),
        }

    # -- values ----------------------------------------------------------------------------------------------------

    def _draw(self, number: int) -> Values | None:
        """Return values for a trial that no other trial has and that go together, or None if there are none left.

        They follow from the seed, the number and the results so far.
        """
        if self.sweep.config.method == "grid":
            return next((point for index, point in enumerate(self.sweep.points()) if index == number), None)
        used = {json.dumps(self.values(trial)) for trial in self.trials}
        copy = self._copy()
        for attempt in range(MOST_DRAWS):
            values = self._sample(copy, number, attempt)
            if json.dumps(values) not in used and self.sweep.problem(values) is None:
                return values
        if self.sweep.size is None or self.sweep.size > MOST_DRAWS**2:
            return None
        points = (values for values in self.sweep.points() if json.dumps(values) not in used)
        return next((values for values in points if self.sweep.problem(values) is None), None)

    def _copy(self) -> optuna.Study:
        """Return the study in memory. A draw from it is not part of the journal until `create` adds it as a whole."""
        copy = optuna.create_study(study_name=NAME, direction=self._study.direction, pruner=self._pruner)
        copy.add_trials(self.trials)
        return copy

    def _sample(self, copy: optuna.Study, number: int, attempt: int) -> Values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts of TPE are experimental
            copy.sampler = self._sampler([self.sweep.config.seed, number, attempt])
            params = copy.ask(self._space).params
        return {key: _decode(self.sweep.space[key], params[key]) for key in self.sweep.space}

    def _sampler(self, seeds: list[int]) -> BaseSampler:
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        if self.sweep.config.method == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, multivariate=True, constant_liar=self._jobs > 1, warn_independent_sampling=False)


def repair(journal: Path) -> None:
    """Remove the incomplete last line and the lock of a process that was killed while it wrote.

    The lock of the sweep's folder excludes a process that still writes.

    Raises:
        CheckpointError: another line is not JSON.
    """
    if not journal.exists():
        return
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    content = journal.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise CheckpointError(
                f"{journal}: line {number} is not JSON; restore it, or choose another --out"
            ) from None
    if len(complete) < len(content):
        os.truncate(journal, len(complete))
        flush(journal)


def _of_optuna(distribution: Distribution) -> BaseDistribution:
    """Return Optuna's distribution. The values of a choice are JSON, since Optuna knows no lists."""
    match distribution:
        case Choice(values=values):
            return CategoricalDistribution([json.dumps(value) for value in values])
        case Integer(low=low, high=high):
            return IntDistribution(low, high)
        case Quantized():
            return IntDistribution(0, distribution.steps)
        case Range(low=low, high=high):
            return FloatDistribution(low, high, log=isinstance(distribution, LogUniform))
    raise TypeError(distribution)


def _encode(distribution: Distribution, value: Any) -> Any:
    if isinstance(distribution, Choice):
        return json.dumps(value)
    if isinstance(distribution, Quantized):
        return round((value - distribution.low) / distribution.step)
    return value


def _decode(distribution: Distribution, param: Any) -> Any:
    if isinstance(distribution, Choice):
        return json.loads(param)
    if isinstance(distribution, Quantized):
        return distribution.at(int(param))
    return int(param) if isinstance(distribution, Integer) else float(param)


def _pruner(sweep: Sweep) -> BasePruner:
    prune = sweep.config.prune
    if prune.kind == "median":
        return MedianPruner(n_startup_trials=prune.startup_trials, n_warmup_steps=prune.warmup + 1)
    if prune.kind == "hyperband":
        most: int | str = evaluations_of(sweep) or "auto"
        return HyperbandPruner(min_resource=prune.min_evaluations, max_resource=most, reduction_factor=prune.reduction)
    return NopPruner()


def evaluations_of(sweep: Sweep) -> int | None:
    """Return the evaluations of a training, if the recipe says how many."""
    loop: Any = sweep.base.loop
    varied: Mapping[str, Any] = sweep.space
    if "loop.epochs" in varied or "loop.max_steps" in varied:
        return None
    if loop.eval_every == "epoch":
        return int(loop.epochs) if loop.epochs is not None and loop.max_steps is None else None
    return -(-loop.max_steps // loop.eval_every) if loop.max_steps is not None and loop.epochs is None else None

"""SWEEP.yaml: what a sweep varies and how, checked completely against the recipe before anything starts."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from launch.sweep.distributions import Distribution, distributions
from trainer.errors import UsageError
from trainer.recipe import Recipe, read_yaml
from trainer.recipe.parsing import problem_lines, refusal
from trainer.recipe.patterns import RUN_NAME
from trainer.recipe.section import Positive, Section
from trainer.task.registry import task_class

MOST_POINTS = 10_000  # combinations of a grid
TRIES = 20  # draws of the other keys with which a value is checked
STOPPING = "loop.early_stopping.metric"
FIXED = {  # keys that no sweep may vary, and why
    "version": "it is the format of the file",
    "name": "the sweep names its runs",
    "seed": "that would select luck: --top K --seeds 1-3 trains the best trials with several seeds",
    STOPPING: "trials are compared by one metric: set `metric`",
    "data.root": "trials are compared on the same validation rows",
    "data.dataset": "trials are compared on the same validation rows",
    "data.revision": "trials are compared on the same validation rows",
    "data.validation": "trials are compared on the same validation rows",
    "data.test": "a sweep does not read the test split",
    "evaluation.splits": "a sweep reads validation only",
    "launch": "it changes no step of a training",
    "track": "it changes no step of a training",
    "export": "it changes no step of a training",
}
Values = dict[str, Any]  # of a recipe, by dotted key


class Prune(Section):
    """When trials stop early. Trials are compared at the same number of evaluations."""

    kind: Literal["none", "median", "hyperband"] = Field(
        "none", description="median: worse than the median of the others; hyperband: successive halving"
    )
    startup_trials: Positive = Field(5, description="median: finished trials before any is stopped")
    warmup: Annotated[int, Field(ge=0)] = Field(1, description="median: evaluations of a trial before it is stopped")
    min_evaluations: Positive = Field(1, description="hyperband: of each trial")
    reduction: Annotated[int, Field(ge=2)] = Field(3, description="hyperband: one of so many trials continues")


class SweepConfig(Section):
    """SWEEP.yaml."""

    version: Literal[1] = Field(1, description="format version of this file")
    name: Annotated[str, Field(pattern=RUN_NAME)] | None = Field(
        None, description="folder below runs/; null = RECIPE-sweep"
    )
    method: Literal["grid", "random", "tpe"] = Field(
        "tpe", description="grid: every combination; tpe: values near those of good trials"
    )
    trials: Positive | None = Field(None, description="number of trials; null: of grid, which has its own")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(1, description="of the draws, not of the trainings")
    metric: str | None = Field(
        None, description="metric on validation that is compared; null = loop.early_stopping.metric of the recipe"
    )
    prune: Prune = Field(default_factory=Prune, description="stop bad trials early")
    space: Annotated[dict[str, Any], Field(min_length=1)] = Field(
        description="distributions by dotted key of the recipe"
    )

    @model_validator(mode="after")
    def _number(self) -> SweepConfig:
        if self.method == "grid" and self.trials is not None:
            raise ValueError("trials: a grid has as many trials as combinations; leave it out")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"trials: method {self.method} needs their number, such as trials: 20")
        return self


class Sweep:
    """A checked SWEEP.yaml with its recipe.

    Attributes:
        base: the recipe before a trial changes it.
        metric: compared on `validation`.
        spec: of the metric, with its name.
        maximize: higher is better.
        resolve: from overrides to a checked recipe.
    """

    def __init__(self, config: SweepConfig, resolve: Callable[[Sequence[str]], Recipe], where: str) -> None:
        """Check the file against the recipe.

        Raises:
            UsageError: all problems at once.
        """
        self.config, self._resolve = config, resolve
        self.base = resolve(())
        self.space, problems = distributions(config.space)
        self.metric, more = _metric(config, self.base)
        problems += more
        fixed = {key: lines for key in self.space if (lines := _fixed(key))}
        problems += [line for lines in fixed.values() for line in lines]
        self.space = {key: distribution for key, distribution in self.space.items() if key not in fixed}
        problems += self._of_recipe(more)
        if problems:
            raise refusal(where, problems)
        self.spec = next(spec for spec in task_class(self.base).metric_specs if spec.key == self.metric)
        self.maximize = self.spec.direction == "max"
        if self.size is not None and self.size > MOST_POINTS and config.method == "grid":
            raise refusal(where, [f"space: {self.size:,} combinations; a grid has {MOST_POINTS:,} at most"])
        if config.method == "grid" and (bad := self._bad_points()):
            raise refusal(where, bad)

    @property
    def size(self) -> int | None:
        """The number of combinations; None where there is no end of them."""
        grids = [distribution.grid for distribution in self.space.values()]
        return None if any(grid is None for grid in grids) else math.prod(len(grid) for grid in grids if grid)

    @property
    def planned(self) -> int:
        """The number of trials: not more than there are combinations."""
        wanted = self.config.trials if self.config.trials is not None else self.size or 0
        return wanted if self.size is None else min(wanted, self.size)

    def points(self) -> Iterator[Values]:
        """Yield all combinations, the last key fastest."""
        grids = [distribution.grid or [] for distribution in self.space.values()]
        return (dict(zip(self.space, values, strict=True)) for values in itertools.product(*grids))

    def recipe(self, values: Mapping[str, Any], **more: Any) -> Recipe:
        """Return the recipe with values, and with `more` for top-level keys.

        Raises:
            UsageError: the values do not go together.
        """
        overrides = {**values, STOPPING: self.metric, **more}
        return self._resolve([f"{key}={json.dumps(value)}" for key, value in overrides.items()])

    def problem(self, values: Mapping[str, Any]) -> str | None:
        """Return why values do not go together, or None."""
        try:
            self.recipe(values)
        except UsageError as error:
            return _of(error)
        return None

    def _of_recipe(self, of_metric: list[str]) -> list[str]:
        """Return what is wrong with the keys and values of the space, and with their meaning for the metric."""
        if of_metric:
            self.metric = self.base.loop.early_stopping.metric
        config, found = self.config, []
        rng = random.Random(config.seed)
        for key, distribution in self.space.items():
            if config.method == "grid" and distribution.grid is None:
                found.append(f"space.{key}: {distribution.kind} has no end; a grid allows choice, int and quantized")  # type: ignore[attr-defined]
            for value in distribution.ends:
                if (problem := self._of_value(key, value, rng)) is not None:
                    found.append(f"space.{key}: {json.dumps(value)} is refused: {problem}")
                    if "unknown key" in problem:
                        break
        if config.prune.kind != "none":
            found += _pruning(self.base, self.space)
        per_token = task_class(self.base).labels_are_tokens and self.metric in ("loss", "perplexity")
        found += [
            f"space.{key}: {self.metric} is per token, and cannot be compared between tokenizers; choose another metric"
            for key in self.space
            if per_token and key.split(".")[0] == "tokenizer"
        ]
        return found

    def _of_value(self, key: str, value: Any, rng: random.Random) -> str | None:
        """Return why a value is refused with the recipe's other values and with random ones. None if one accepts it."""
        first = self.problem({key: value})
        if first is None or "unknown key" in first:
            return first
        for _ in range(TRIES):
            others = {name: distribution.draw(rng) for name, distribution in self.space.items()}
            if self.problem({**others, key: value}) is None:
                return None
        return first

    def _bad_points(self) -> list[str]:
        """Return the combinations of a grid that the recipe refuses."""
        pairs = ((values, self.problem(values)) for values in self.points())
        bad = [f"space: {json.dumps(values)} is refused: {problem}" for values, problem in pairs if problem]
        return bad if len(bad) <= 10 else [*bad[:10], f"space: {len(bad) - 10} further combinations are refused"]


def read_sweep(path: Path) -> SweepConfig:
    """Read SWEEP.yaml, not checked against a recipe.

    Raises:
        UsageError: it cannot be read, or a key or value is wrong; all problems at once.
    """
    return parse_sweep(read_yaml(path), str(path))


def parse_sweep(values: Any, where: str) -> SweepConfig:
    """Check values as read from YAML or JSON; see `read_sweep`."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        lines = [line.removeprefix("recipe: ") for line in problem_lines(SweepConfig, error)]
        space = values.get("space")
        raise refusal(where, lines + (distributions(space)[1] if isinstance(space, dict) else [])) from None


def _metric(config: SweepConfig, base: Recipe) -> tuple[str, list[str]]:
    """Return the metric, and why it cannot select."""
    metrics = task_class(base).metrics
    text = config.metric or base.loop.early_stopping.metric
    split, _, name = text.replace("/", ".").rpartition(".")
    allowed = f"allowed: {', '.join(sorted(metrics))}, on validation"
    if split == "test" or name.startswith("test_"):
        return name, [f"metric: {text!r} is of the test split, on which nothing is selected; {allowed}"]
    if split not in ("", "validation") or name not in metrics:
        return name, [f"metric: {text!r} is unknown; {allowed}"]
    if base.data.validation is None:
        return name, ["metric: the recipe has no data.validation, on which trials are compared; set it"]
    return name, []


def _fixed(key: str) -> list[str]:
    parts = key.split(".")
    names = [".".join(parts[: number + 1]) for number in range(len(parts))]
    inner = [name for name in FIXED if name.startswith(f"{key}.")]
    found = next((name for name in [*names, *inner] if name in FIXED), None)
    return [] if found is None else [f"space.{key}: a sweep cannot vary {found}: {FIXED[found]}"]


def _pruning(base: Recipe, space: Mapping[str, Distribution]) -> list[str]:
    """Return why trials cannot be compared during the training."""
    every = base.loop.eval_every
    found = []
    if isinstance(every, str) and every != "epoch":
        found.append(f"prune: loop.eval_every={every} is a time, which depends on the machine; set steps or epoch")
    if "loop.eval_every" in space:
        found.append("space.loop.eval_every: with prune, trials are compared at the same number of evaluations")
    return found


def _of(error: UsageError) -> str:
    """Return the problems of a recipe on one line, without its name."""
    first, _, rest = str(error).partition("\n")
    return "; ".join(line.strip() for line in rest.splitlines()) or first

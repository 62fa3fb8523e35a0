"""The distributions of SWEEP.yaml: the values of one key of the recipe."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from trainer.recipe.parsing import problem_lines
from trainer.recipe.section import Section


class Distribution(Section):
    """Values of one key of the recipe."""

    @property
    def grid(self) -> list[Any] | None:
        """All values in order; None where there is no end of them."""
        return None

    @property
    def ends(self) -> list[Any]:
        """Values to check before a sweep starts."""
        return self.grid or []

    def draw(self, rng: random.Random) -> Any:
        """Return a random value."""
        return rng.choice(self.grid or [None])


class Choice(Distribution):
    """One of some values of any type."""

    kind: Literal["choice"] = "choice"
    values: Annotated[list[Any], Field(min_length=2)]

    @property
    def grid(self) -> list[Any]:
        return self.values

    @model_validator(mode="after")
    def _different(self) -> Choice:
        texts = [json.dumps(value) for value in self.values]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"values: {twice} is given twice; give each value once")
        return self


class Range(Distribution):
    """Base of distributions from low to high, both included."""

    low: float
    high: float

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (got low={self.low:g}, high={self.high:g})")
        return self


class Uniform(Range):
    """Any number between two."""

    kind: Literal["uniform"] = "uniform"

    def draw(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)


class LogUniform(Range):
    """Any number between two, with the same probability for each order of magnitude."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: Annotated[float, Field(gt=0)]

    def draw(self, rng: random.Random) -> float:
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


class Integer(Range):
    """Any integer between two."""

    kind: Literal["int"] = "int"
    low: int
    high: int

    @property
    def grid(self) -> list[int]:
        return list(range(self.low, self.high + 1))

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


class Quantized(Range):
    """low, low + step, low + 2 step and so on to high."""

    kind: Literal["quantized"] = "quantized"
    step: Annotated[float, Field(gt=0)]

    @property
    def integers(self) -> bool:
        return all(float(value).is_integer() for value in (self.low, self.high, self.step))

    @property
    def grid(self) -> list[Any]:
        return [self.at(number) for number in range(self.steps + 1)]

    @property
    def steps(self) -> int:
        return round((self.high - self.low) / self.step)

    def at(self, number: int) -> int | float:
        """Return value `number`, counted from 0, as it is written: 0.3 and not 0.30000000000000004."""
        value = Decimal(str(self.low)) + number * Decimal(str(self.step))
        return int(value) if self.integers else float(value)

    @model_validator(mode="after")
    def _whole_steps(self) -> Quantized:
        if not math.isclose(self.low + self.steps * self.step, self.high, rel_tol=1e-9, abs_tol=1e-12):
            last = self.at(math.floor((self.high - self.low) / self.step))
            raise ValueError(f"high must be low and a number of steps: {self.high:g} is not, {last:g} would be")
        return self


KINDS: dict[str, type[Distribution]] = {
    get_args(found.model_fields["kind"].annotation)[0]: found
    for found in (Choice, Uniform, LogUniform, Integer, Quantized)
}


def distributions(space: Mapping[str, Any]) -> tuple[dict[str, Distribution], list[str]]:
    """Return the distributions by key, and what is wrong with them."""
    found: dict[str, Distribution] = {}
    problems: list[str] = []
    for key, values in space.items():
        kind = values.get("kind") if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping) or kind not in KINDS:
            example = "{kind: log_uniform, low: 1e-5, high: 1e-3}"
            wrong = f"kind {kind!r} is unknown" if isinstance(values, Mapping) else f"{values!r} is no distribution"
            problems.append(f"space.{key}: {wrong}; allowed kinds: {', '.join(KINDS)}; write {example}")
            continue
        try:
            found[key] = KINDS[kind].model_validate(values)
        except ValidationError as error:
            prefix = f"space.{key}."
            problems += [line.replace(f"{prefix}recipe:", f"space.{key}:") for line in
                         problem_lines(KINDS[kind], error, prefix)]  # fmt: skip
    return found, problems

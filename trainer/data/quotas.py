"""Exact proportions of corpora: which of them each row of a lane comes from, in whole numbers only."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from trainer.errors import UsageError
from trainer.recipe.sections import DataConfig

DIGITS = 10**9  # precision of the weights of temperature sampling


def dealt(rows: Sequence[int], lanes: int, lane: int, first: int) -> list[int]:
    """Return how many of the rows of each corpus a lane gets, if all are dealt one after another to the lanes in turn.

    Over all lanes the numbers add up to `rows`. Lanes differ by at most one row, in each number and in their sum.
    """
    found, end = [], first
    for number in rows:
        begin, end = end, end + number
        found.append((end + lanes - 1 - lane) // lanes - (begin + lanes - 1 - lane) // lanes)
    return found


@lru_cache(maxsize=64)
def schedule(weights: tuple[int, ...], taken: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return which corpus each of the next rows of a lane comes from.

    Row j of a corpus of share w belongs between rows floor((j - 1) / w) and ceil(j / w). Of the corpora that may come,
    the one with the earliest end comes first. So no end is missed, and over any prefix of n rows the number of rows of
    a corpus differs from n w by less than one (Baruah et al. 1996, "Proportionate progress").

    Args:
        weights: of the corpora.
        taken: rows of each corpus before. Their order was this one, or they are all 0.
        rows: the number of rows to schedule.
    """
    total, now = sum(weights), sum(taken)
    waiting = [(n * total // weight, i) for i, (weight, n) in enumerate(zip(weights, taken, strict=True)) if weight]
    counts, ready = list(taken), list[tuple[int, int]]()
    heapq.heapify(waiting)
    found = []
    for at in range(now, now + rows):
        while waiting and waiting[0][0] <= at:
            i = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (-(-(counts[i] + 1) * total // weights[i]), i))
        i = heapq.heappop(ready)[1]
        counts[i] += 1
        heapq.heappush(waiting, (counts[i] * total // weights[i], i))
        found.append(i)
    return tuple(found)


def fits(weights: Sequence[int], taken: Sequence[int]) -> bool:
    """Return whether the rows of each corpus differ from its share by less than one."""
    rows, total = sum(taken), sum(weights)
    return all(abs(count * total - rows * weight) < total for count, weight in zip(taken, weights, strict=True))


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the same proportions, exactly as the decimal numbers are written."""
    fractions = [Fraction(str(weight)) for weight in weights]
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * unit) for fraction in fractions]
    return [number // math.gcd(*whole) for number in whole]


def temperature_weights(rows: Sequence[int], temperature: float) -> list[int]:
    """Return weights in proportion to rows^(1 / temperature), rounded to nine digits."""
    most = max(rows)
    return [max(1, round(DIGITS * (number / most) ** (1 / temperature))) for number in rows]


def rows_until_stop(weights: Sequence[int], rows: Sequence[int], repeat: Sequence[bool]) -> int | None:
    """Return about how many rows an epoch has until the first corpus ends that is not repeated. None: all are."""
    total = sum(weights)
    ends = [n * total // weight for weight, n, again in zip(weights, rows, repeat, strict=True) if not again]
    return min(ends, default=None)


@dataclass(frozen=True)
class Quotas:
    """The proportions of `data.mix`.

    Attributes:
        names: of the corpora.
        weights: their proportions; with `per_epoch` the rows of an epoch.
        repeat: which corpora begin again at their end.
        per_epoch: the recipe has `rows_per_epoch`.
        epoch_rows: rows of an epoch. None: a corpus that is not repeated ends it.
        expected_rows: those that an epoch probably has. None if that is not known.
    """

    names: list[str]
    weights: list[int]
    repeat: list[bool]
    per_epoch: bool
    epoch_rows: int | None
    expected_rows: int | None

    @classmethod
    def of(cls, data: DataConfig, rows: Sequence[int | None]) -> Quotas:
        """Return the proportions of a recipe.

        An epoch in which all corpora are repeated has as many rows as all of them.

        Args:
            data: with a `mix`.
            rows: usable rows of each corpus; None = not known.

        Raises:
            UsageError: the rows of a corpus are not known, and the proportions depend on them.
        """
        known = [number for number in rows if number is not None]
        complete, quotas = len(known) == len(rows), [entry.rows_per_epoch for entry in data.mix]
        per_epoch = quotas[0] is not None
        if data.mix_temperature is not None:
            if not complete:
                raise UsageError(
                    "data.mix_temperature needs the number of rows of every corpus, which is not known here: give each "
                    "entry of data.mix a weight, or set data.check=full to count the rows"
                )
            weights = temperature_weights(known, data.mix_temperature)
        else:
            weights = whole_weights([entry.weight or 1 for entry in data.mix])
        if per_epoch:
            weights = [number or 0 for number in quotas]
        repeat = [entry.on_end == "repeat" for entry in data.mix]
        epoch_rows = sum(weights) if per_epoch else None
        if all(repeat) and not per_epoch and complete:
            epoch_rows = sum(known)
        expected = epoch_rows
        if complete and (until := rows_until_stop(weights, known, repeat)) is not None:
            expected = until if epoch_rows is None or not per_epoch else min(until, epoch_rows)
        return cls([entry.name for entry in data.mix], weights, repeat, per_epoch, epoch_rows, expected)

    @classmethod
    def surveyed(cls, data: DataConfig, train: Mapping[str, Any]) -> Quotas:
        """Return the proportions of a recipe by what the survey has found of `train`. Errors as `of`."""
        found = train.get("corpora", {})
        return cls.of(data, [found.get(entry.name, {}).get("rows") for entry in data.mix])

    @property
    def shares(self) -> list[float]:
        """The shares of the corpora, which add up to 1."""
        return [weight / sum(self.weights) for weight in self.weights]

    def one_block(self, lanes: int, block_rows: int) -> bool:
        """Whether an epoch is expected to fit into one block of each lane."""
        return self.expected_rows is not None and self.expected_rows <= lanes * block_rows

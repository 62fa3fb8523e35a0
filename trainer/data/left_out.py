"""Rows of a block that are not trained on: bad ones and those that are held out for validation.

Where the survey has read a part of a split only, the rest is checked when blocks are read, by the same rules.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from trainer.data.cleaning import BadRow
from trainer.data.sources import Row
from trainer.data.survey import is_counted
from trainer.data.survey_counts import EXAMPLES, add_reason, count_reason
from trainer.recipe.sections import DataConfig


@dataclass(frozen=True)
class LeftOut:
    """Counts of blocks, which add up.

    Attributes:
        used: usable rows.
        rows: rows that are left out, bad or held out.
        bad: bad rows of any split.
        lines: lines that the bad rows of train take.
        reasons: reason -> bad rows of train.
        first: the first bad rows in the order of the files, at most EXAMPLES.
    """

    used: int = 0
    rows: int = 0
    bad: int = 0
    lines: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: tuple[BadRow, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Row], encoded: Sequence[Any], data: DataConfig) -> LeftOut:
        """Count the rows of a block.

        Args:
            rows: as read.
            encoded: of each row an example, None if it is held out, or a `BadRow`.
            data: the section of the recipe.
        """
        lines, reasons, bad = 0, Counter[str](), list[BadRow]()
        for row, found in zip(rows, encoded, strict=True):
            if isinstance(found, BadRow):
                bad.append(found)
                if is_counted(row, data, "train"):
                    count_reason(reasons, found)
                    lines += row.lines
        used = sum(found is not None for found in encoded) - len(bad)
        return cls(used, len(rows) - used, len(bad), lines, reasons, _first(bad))

    def __add__(self, other: LeftOut) -> LeftOut:
        reasons = Counter(self.reasons)
        for reason, number in other.reasons.items():
            add_reason(reasons, reason, number)
        used, rows = self.used + other.used, self.rows + other.rows
        bad, lines = self.bad + other.bad, self.lines + other.lines
        return LeftOut(used, rows, bad, lines, reasons, _first([*self.first, *other.first]))


def _first(bad: Sequence[BadRow]) -> tuple[BadRow, ...]:
    return tuple(heapq.nsmallest(EXAMPLES, bad, key=attrgetter("id")))

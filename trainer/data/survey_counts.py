"""Counts of the rows of a split, as a survey makes them."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.data.cleaning import BadRow
from trainer.data.labels import label_drift

EXAMPLES = 5  # mistakes of bad rows that a report quotes
REASONS = 100  # reasons that are counted separately
PART_ROWS = 256  # rows whose labels are compared with those before them, at least


@dataclass
class Numbers:
    """Mean and deviation of numbers that are read once (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, number: float) -> None:
        self.count += 1
        gap = number - self.mean
        self.mean += gap / self.count
        self.squares += gap * (number - self.mean)
        self.least, self.most = min(self.least, number), max(self.most, number)

    def join(self, other: Numbers) -> None:
        """Add the numbers of another part (Chan et al. 1979)."""
        count, gap = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + gap * gap * self.count * other.count / count
        self.count, self.mean = count, self.mean + gap * other.count / count
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def report(self) -> dict[str, float]:
        deviation = math.sqrt(self.squares / self.count)
        return {"mean": self.mean, "deviation": deviation, "min": self.least, "max": self.most}


class LabelParts:
    """Compares the labels of each part of a split with those of the rows before it, to find files sorted by label.

    Args:
        rows: usable rows of a part.
        by_file: compare within a file only: every lane has its own files.
    """

    def __init__(self, rows: int, by_file: bool = False) -> None:
        self._rows, self._by_file = max(rows, PART_ROWS), by_file
        self._read = self._begin = 0
        self._before, self._here = Counter[str](), Counter[str]()
        self._found: dict[str, Any] | None = None

    def add(self, labels: Iterable[str]) -> None:
        """Count the labels of a row."""
        self._here.update(labels)
        self._read += 1
        if self._read - self._begin == self._rows:
            self._compare()

    def end_file(self) -> None:
        """End the rows of a file."""
        if self._by_file:
            self._compare()
            self._before = Counter()

    def report(self) -> dict[str, Any] | None:
        """Return the label whose share differs most between a part and the rows before it. None if all are alike."""
        self._compare()
        return self._found

    def _compare(self) -> None:
        """Compare the rows since the last part with those before."""
        if (drift := label_drift(self._before, self._here)) is not None:
            label, before, share = drift
            if self._found is None or abs(share - before) > abs(self._found["share"] - self._found["before"]):
                rows = [self._begin + 1, self._read]
                self._found = {"label": label, "share": share, "before": before, "rows": rows}
        self._before.update(self._here)
        self._here, self._begin = Counter(), self._read


@dataclass
class Survey:
    """Counts of a split.

    Attributes:
        split: its name.
        rows: usable rows of the split.
        read: rows read, including those that a held-out share gives to another split.
        shard_rows: rows read of each shard.
        bad: reason -> rows of the split.
        examples: the first few mistakes of bad rows, as sentences.
        labels: label -> usable rows, for tasks with labels.
        parts: compares the labels of parts that are not mixed with each other; None to compare none.
        numbers: role -> numbers of the usable rows, for tasks with numbers.
        without: role -> training rows that lack its column.
        inputs: a digest of 8 bytes of the cleaned input of each usable row.
        fingerprint: of the split's files, see `fingerprints.fingerprint`.
        lost: lines that bad rows take, less one per row.
        good: usable rows read, including those that a held-out share gives to another split.
        complete: whether all rows have been read.
        total: rows of the split where not all have been read. None = unknown. It includes bad rows, and for a split
            of a single corpus those of a held-out share.
        corpora: of `data.mix`, each alone.
    """

    split: str
    rows: int = 0
    read: int = 0
    shard_rows: list[int] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    parts: LabelParts | None = None
    numbers: dict[str, Numbers] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)
    inputs: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    fingerprint: str = ""
    lost: int = 0
    good: int = 0
    complete: bool = True
    total: int | None = None
    corpora: dict[str, Survey] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Return what manifest.json lists."""
        return {
            "rows": self.rows,
            "bad_rows": dict(sorted(self.bad.items())),
            "bad_examples": self.examples,
            "labels": dict(sorted(self.labels.items())),
            "fingerprint": self.fingerprint,
            **({"unmixed": found} if self.parts is not None and (found := self.parts.report()) else {}),
            **({"numbers": {role: found.report() for role, found in self.numbers.items()}} if self.numbers else {}),
            **({"corpora": {name: found.report() for name, found in self.corpora.items()}} if self.corpora else {}),
            **({} if self.complete else {"rows": self.total, "checked_rows": self.rows}),
        }

    def add(self, other: Survey) -> None:
        """Add the counts of another corpus of the split."""
        self.rows, self.read, self.lost = self.rows + other.rows, self.read + other.read, self.lost + other.lost
        self.good, self.complete = self.good + other.good, self.complete and other.complete
        self.shard_rows += other.shard_rows
        self.bad.update(other.bad)
        self.labels.update(other.labels)
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.inputs.extend(other.inputs)
        for role, numbers in other.numbers.items():
            self.numbers.setdefault(role, Numbers()).join(numbers)

    def shared_with(self, other: Survey) -> int:
        """Return the number of rows whose input is also in another split."""
        ours, theirs = (np.frombuffer(split.inputs, np.uint64) for split in (self, other))
        return int(np.isin(ours, theirs).sum())


def count_reason(counts: Counter[str], row: BadRow, number: int = 1) -> None:
    """Count what is wrong with a bad row. Only REASONS different ones are counted separately."""
    add_reason(counts, row.reason if row.column is None else f"column {row.column!r} {row.reason}", number)


def add_reason(counts: Counter[str], reason: str, number: int) -> None:
    if reason not in counts and len(counts) >= REASONS:
        reason = "other reasons"
    counts[reason] += number

"""Counts of a chunk of rows of `rankzero prepare`, from which those of a split are put together."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from trainer.data.cleaning import BadRow
from trainer.data.roles import Roles
from trainer.data.sources import Split

PLACES = 3  # rows of a mistake whose places are kept


class Tally:
    """Counts of a chunk."""

    def __init__(self, roles: Roles, split: Split) -> None:
        self._roles, self._train = roles, split == "train"
        self._rows = self._lost = 0
        self._labels, self._without, self._reasons = Counter[str](), Counter[str](), Counter[str]()
        self._numbers: dict[str, list[float]] = {}
        self._mistakes: dict[BadRow, dict[str, Any]] = {}

    def good(self, values: dict[str, Any]) -> None:
        self._rows += 1
        for name, role in self._roles.items():
            if name not in values:
                if self._train:
                    self._without[name] += 1
                continue
            self._labels.update(role.counted(values[name]))
            if (number := role.measured(values[name])) is not None:
                self._numbers.setdefault(name, []).append(number)

    def bad(self, row: BadRow, span: Any, counted: bool, lost: int) -> None:
        mistake = self._mistakes.setdefault(row.mistake, {"rows": 0, "places": []})
        mistake["rows"] += 1
        if len(mistake["places"]) < PLACES:
            mistake["places"].append({"row": asdict(row), "span": span})
        if counted:
            self._reasons[row.reason if row.column is None else f"column {row.column!r} {row.reason}"] += 1
            self._lost += lost

    def report(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "lost": self._lost,
            "labels": self._labels,
            "without": self._without,
            "numbers": self._numbers,
            "reasons": self._reasons,
            "mistakes": list(self._mistakes.values()),
        }

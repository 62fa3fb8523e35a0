"""Compare two runs: the differences of their tensors, and the rows that each step used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from trainer.rundir import RunDir

Tensors = dict[str, np.ndarray]


def largest_difference(actual: tuple[Tensors, Tensors], expected: tuple[Tensors, Tensors]) -> tuple[float, str]:
    """Return the difference of the weights or of the moments, whichever is larger."""
    return max(difference(*pair) for pair in zip(actual, expected, ("weight", "moment"), strict=True))


def difference(actual: Tensors, expected: Tensors, what: str) -> tuple[float, str]:
    """Return the largest difference of any number (infinite for NaN), and where and how the tensors differ."""
    if actual.keys() != expected.keys() or not actual:
        names = sorted(actual.keys() ^ expected.keys())
        return float("inf"), f"no {what} to compare, or not the same tensors: {', '.join(names[:5])}"
    apart = {name: np.abs(actual[name] - expected[name]).max(initial=0.0) for name in actual}
    differences = {name: float(np.nan_to_num(value, nan=np.inf)) for name, value in apart.items()}
    largest = max(differences, key=lambda name: differences[name])
    norms = [max(float(np.sqrt(_dot(part, part))), 1e-150) for part in (actual, expected)]
    equal = sum(value == 0 for value in differences.values())
    text = (
        f"largest in the {what} {largest}; {equal} of {len(differences)} tensors are equal; the norm is "
        f"{norms[0] / norms[1]:.6g} times that expected, the cosine {_dot(actual, expected) / norms[0] / norms[1]:.6g}"
    )
    return differences[largest], text


def _dot(one: Tensors, other: Tensors) -> float:
    return sum(float(np.vdot(one[name].astype(np.float64), other[name].astype(np.float64))) for name in one)


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """Return the lines of ledger.jsonl: {"step", "rows": {lane: [row ids]}}."""
    path = RunDir(run).ledger
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def misplaced_rows(ledger: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], rows: int) -> tuple[int, str]:
    """Count rows that the first epoch lacks or repeats, and steps with other rows than expected. Explain the count."""
    seen: Counter[str] = Counter()
    for line in ledger:
        seen.update(row for lane in line["rows"].values() for row in lane)
        if seen.total() >= rows:  # the end of the epoch
            break
    repeated, missing = [row for row, times in seen.items() if times > 1], rows - len(seen)
    steps = [(one or other or {})["step"] for one, other in zip_longest(ledger, expected) if one != other]
    text = f"{missing} of {rows} rows are missing from the first epoch, {len(repeated)} are repeated {repeated[:3]}, "
    return len(repeated) + missing + len(
        steps
    ), f"{text}{len(steps)} steps differ from those of one process {steps[:5]}"

"""Compare two runs: the differences of their tensors, and the rows that each step used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.rundir import RunDir

Tensors = dict[str, np.ndarray]


def largest_difference(actual: tuple[Tensors, Tensors], expected: tuple[Tensors, Tensors]) -> tuple[float, str]:
    """Return the difference of the weights or of the moments, whichever is larger."""
    weights, moments = (difference(*pair) for pair in zip(actual, expected, ("weight", "moment"), strict=True))
    return max(weights, moments, key=lambda result: _nan_is_largest(result[0]))


def _nan_is_largest(number: float) -> float:
    return float("inf") if np.isnan(number) else number


def difference(actual: Tensors, expected: Tensors, what: str) -> tuple[float, str]:
    """Return the largest difference of any number, and where and how the tensors differ.

    A gradient that has another norm but the same direction was divided by another number.
    """
    if actual.keys() != expected.keys():
        names = sorted(actual.keys() ^ expected.keys())
        return float("inf"), f"not the same tensors: {', '.join(names[:5])}"
    if not actual:
        return float("inf"), f"there is no {what} to compare"
    differences = {name: float(np.abs(actual[name] - expected[name]).max(initial=0.0)) for name in actual}
    largest = max(differences, key=lambda name: _nan_is_largest(differences[name]))
    norms = [float(np.sqrt(_dot(part, part))) for part in (actual, expected)]
    cosine = _dot(actual, expected) / max(norms[0] * norms[1], 1e-300)
    equal = sum(value == 0 for value in differences.values())
    text = (
        f"largest in the {what} {largest}; {equal} of {len(differences)} tensors are equal; the norm is "
        f"{norms[0] / max(norms[1], 1e-300):.6g} times that expected, the cosine {cosine:.6g}"
    )
    return differences[largest], text


def _dot(one: Tensors, other: Tensors) -> float:
    return sum(float(np.vdot(one[name].astype(np.float64), other[name].astype(np.float64))) for name in one)


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """Return the lines of ledger.jsonl: {"step", "rows": {lane: [row ids]}}."""
    path = RunDir(run).ledger
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def misplaced_rows(ledger: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], rows: int) -> tuple[int, str]:
    """Count rows that are missing from an epoch, used more than once, or in another step or lane than expected.

    The first epoch ends with the step that brings the count to `rows`.

    Returns:
        The number of misplaced rows and an explanation.
    """
    reasons = []
    seen: Counter[str] = Counter()
    count = 0
    for line in ledger:
        seen.update(row for lane in line["rows"].values() for row in lane)
        if seen.total() >= rows:
            break
    repeated = [row for row, times in seen.items() if times > 1]
    missing = rows - len(seen)
    if repeated or missing:
        count += len(repeated) + missing
        text = f"of {rows} rows {missing} are missing from the first epoch and {len(repeated)} are repeated"
        reasons.append(f"{text} {repeated[:3]}")
    steps = {line["step"]: line["rows"] for line in ledger}
    if len(steps) != len(ledger) or sorted(steps) != [line["step"] for line in expected]:
        count += 1
        reasons.append(f"the ledger holds the steps {[line['step'] for line in ledger]}")
    elsewhere = [line["step"] for line in expected if steps.get(line["step"], line["rows"]) != line["rows"]]
    if elsewhere:
        count += len(elsewhere)
        reasons.append(f"steps {elsewhere[:5]} hold other rows than in one process")
    return count, "; ".join(reasons)

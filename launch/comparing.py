"""What two runs of `rankzero verify` have in common: how far their numbers are apart, and where their rows were."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.rundir import RunDir

Tensors = dict[str, np.ndarray]


def worst(found: tuple[Tensors, Tensors], expected: tuple[Tensors, Tensors]) -> tuple[float, str]:
    """Of weights and moments what differs more."""
    weights, moments = (difference(*pair) for pair in zip(found, expected, ("weight", "moment"), strict=True))
    return max(weights, moments, key=lambda apart: _badness(apart[0]))


def _badness(apart: float) -> float:
    return float("inf") if np.isnan(apart) else apart


def difference(found: Tensors, expected: Tensors, what: str) -> tuple[float, str]:
    """The largest difference of any number, and where and how they differ.

    A gradient that has another length but the same direction was divided by something else.
    """
    if found.keys() != expected.keys():
        names = sorted(found.keys() ^ expected.keys())
        return float("inf"), f"not the same tensors: {', '.join(names[:5])}"
    if not found:
        return float("inf"), f"there is no {what} to compare"
    apart = {name: float(np.abs(found[name] - expected[name]).max(initial=0.0)) for name in found}
    worst = max(apart, key=lambda name: _badness(apart[name]))
    norms = [
        np.sqrt(sum(float(np.square(t, dtype=np.float64).sum()) for t in part.values())) for part in (found, expected)
    ]
    dot = sum(float((found[name].astype(np.float64) * expected[name]).sum()) for name in found)
    direction = dot / max(norms[0] * norms[1], 1e-300)
    same = sum(value == 0 for value in apart.values())
    text = (
        f"largest in the {what} {worst}; {same} of {len(apart)} tensors are equal; the norm is "
        f"{norms[0] / max(norms[1], 1e-300):.6g} times that expected, the cosine {direction:.6g}"
    )
    return apart[worst], text


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """The lines of ledger.jsonl: {"step", "rows": {lane: [row ids]}}."""
    path = RunDir(run).ledger
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def misplaced(ledger: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], rows: int) -> tuple[int, str]:
    """Rows that are missing from an epoch, there more than once, or in another step or lane than expected.

    Returns their number and a sentence. The first epoch ends with the step that brings the count to `rows`.
    """
    words = []
    seen: Counter[str] = Counter()
    total = wrong = 0
    for line in ledger:
        seen.update(id_ for ids in line["rows"].values() for id_ in ids)
        total += sum(map(len, line["rows"].values()))
        if total >= rows:
            break
    repeated = [id_ for id_, count in seen.items() if count > 1]
    missing = rows - len(seen)
    if repeated or missing:
        wrong += len(repeated) + missing
        words.append(
            f"of {rows} rows {missing} are missing from the first epoch and {len(repeated)} come again {repeated[:3]}"
        )
    steps = {line["step"]: line["rows"] for line in ledger}
    if len(steps) != len(ledger) or sorted(steps) != [line["step"] for line in expected]:
        wrong += 1
        words.append(f"the ledger holds the steps {[line['step'] for line in ledger]}")
    elsewhere = [line["step"] for line in expected if steps.get(line["step"], line["rows"]) != line["rows"]]
    if elsewhere:
        wrong += len(elsewhere)
        words.append(f"steps {elsewhere[:5]} hold other rows than in one process")
    return wrong, "; ".join(words)

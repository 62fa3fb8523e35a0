"""The probability of each label from which it is predicted."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.evaluation.predictions import Record

if TYPE_CHECKING:
    import numpy as np

DEFAULT = 0.5


def best_thresholds(records: Iterable[Record], names: Sequence[str]) -> dict[str, float]:
    """Return for each label the probability from which to predict it with the best F1, DEFAULT for one without rows.

    A threshold is halfway between two probabilities of the records. Of equally good ones it is that nearest to DEFAULT.
    """
    import numpy as np

    shares, labels = array("d"), bytearray()
    for record in records:
        shares.extend(record["probabilities"][name] for name in names)
        labels.extend(name in record["target"] for name in names)
    columns = np.frombuffer(shares).reshape(-1, len(names)).T, np.frombuffer(labels, bool).reshape(-1, len(names)).T
    return {
        name: _best_threshold(p, true) if true.any() else DEFAULT for name, p, true in zip(names, *columns, strict=True)
    }


def _best_threshold(p: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> float:
    import numpy as np

    order = np.argsort(-p, kind="stable")
    ranked, hits = p[order], np.cumsum(true[order])
    last = np.append(ranked[1:] < ranked[:-1], True)  # of a group of equal probabilities
    f1 = (2 * hits / (np.arange(1, len(p) + 1) + hits[-1]))[last]
    below = np.append(ranked[1:], 0.0)[last]
    middle = np.clip((ranked[last] + below) / 2, 1e-6, 1 - 1e-6)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middle[best[np.argmin(np.abs(middle[best] - DEFAULT))]])


def checked_thresholds(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return thresholds of a published model, DEFAULT for a label that has none or no number from 0 to 1."""
    given = found.get("thresholds")
    values = given if isinstance(given, Mapping) else {}
    return {
        name: float(value) if isinstance(value := values.get(name, DEFAULT), int | float) and 0 < value < 1 else DEFAULT
        for name in names
    }

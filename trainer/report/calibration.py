"""Does 90% sure mean right nine times in ten? Reliability curve and expected calibration error (Guo et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.report.inputs import confidence, is_wrong
from trainer.rundir import write_json

BINS = 15


def calibration(records: Sequence[Record], bins: int = BINS) -> dict[str, Any]:
    """Rows sorted into equal-width bins of the probability of the predicted label.

    Bin k holds confidences in [k/bins, (k+1)/bins), the last one also 1: as for the `ece` of metrics.json.

    Returns:
        {"ece", "mean_confidence", "accuracy", "rows", "bins": [{"from", "to", "rows", "confidence", "accuracy"}]};
        ece is the sum over bins of the share of rows times |accuracy - confidence|; in an empty bin both are null.
    """
    found: list[list[Record]] = [[] for _ in range(bins)]
    for record in records:
        found[min(bins - 1, int(confidence(record) * bins))].append(record)
    table = [_bin(rows, k / bins, (k + 1) / bins) for k, rows in enumerate(found)]
    return {
        "ece": math.fsum(b["rows"] / len(records) * abs(b["accuracy"] - b["confidence"]) for b in table if b["rows"]),
        "mean_confidence": math.fsum(map(confidence, records)) / len(records),
        "accuracy": sum(not is_wrong(record) for record in records) / len(records),
        "rows": len(records),
        "bins": table,
    }


def _bin(rows: Sequence[Record], low: float, high: float) -> dict[str, Any]:
    mean = math.fsum(map(confidence, rows)) / len(rows) if rows else None
    right = sum(not is_wrong(record) for record in rows) / len(rows) if rows else None
    return {"from": low, "to": high, "rows": len(rows), "confidence": mean, "accuracy": right}


def write_calibration(records: Sequence[Record], folder: Path) -> list[Path]:
    """calibration.json in `folder`."""
    path = folder / "calibration.json"
    write_json(path, calibration(records))
    return [path]

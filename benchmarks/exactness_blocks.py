"""A variant of exactness_cost that trains in blocks: rankzero_train, whose blocks also count processes that it started.

Run by exactness_cost: python -m benchmarks.exactness_blocks SETTINGS.json
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import psutil

from benchmarks.contestant import Meter
from benchmarks.rankzero_train import main


def children_seconds() -> float:
    """Return the processor time of the running processes that this one has started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class TreeMeter(Meter):
    """Answers with the processor time of child processes, too."""

    def begin(self, *, profile: bool) -> None:
        self._children = children_seconds()

    def end(self) -> Mapping[str, Any]:
        return {"children_seconds": children_seconds() - self._children}


if __name__ == "__main__":
    main(TreeMeter())

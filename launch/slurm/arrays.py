"""Describe the same run with several seeds: an array of jobs, and the job that compares the runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.slurm.job import Job
from trainer.errors import UsageError

MOST_SEEDS = 1000


def seeds_of(text: str) -> list[int]:
    """Return the seeds of an array such as 1-5, 1,3,9 or 1-9:2%3. The number after `%` run at once.

    Raises:
        UsageError: it has another form.
    """
    seeds: list[int] = []
    if re.fullmatch(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", text):
        for part in text.partition("%")[0].split(","):
            first, last, stride = (*map(int, re.split("[-:]", part)), *(0, 0))[:3]
            seeds += range(first, max(first, last) + 1, stride or 1)
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise UsageError(f"--array {text!r}: write seeds as 1-5 or 1,3,9, after % how many run at once: 1-9%3")
    return sorted(set(seeds))


def array_values(job: Job, seeds: str) -> dict[str, Any]:
    """Return the variables of array.sbatch, with the run directories RUN-seed-N."""
    return job.values() | {"kind": "array", "seeds": seeds, "log": (f"{job.run}-seed-", "%a/slurm/train-%A_%a.out")}


def compare_values(job: Job, runs: Sequence[Path]) -> dict[str, Any]:
    """Return the variables of the dependent job that compares the runs."""
    return job.finalize_values() | {
        "kind": "compare",
        "module": "launch.slurm.compare",
        "words": [*runs, "--out", job.run],
    }

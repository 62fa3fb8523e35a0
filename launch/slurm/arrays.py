"""Describe arrays of jobs: the same run with several seeds, and the parts of a preparation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.slurm.job import Job
from trainer.errors import UsageError

MOST_SEEDS = 1000
PART = r"\d{1,10}(-\d{1,10}(:\d{1,10})?)?"  # of an array


def seeds_of(text: str, option: str = "--array") -> list[int]:
    """Return the seeds of an array such as 1-5, 1,3,9 or 1-9:2%3. The number after `%` run at once.

    Args:
        option: of the command line, for the message.

    Raises:
        UsageError: it has another form, a part without a number such as 5-1, or more than MOST_SEEDS.
    """
    parts: list[range] = []
    if re.fullmatch(rf"{PART}(,{PART})*(%\d+)?", text):
        for part in text.partition("%")[0].split(","):
            first, *rest = map(int, re.split("[-:]", part))
            last, stride = (*rest, 1)[:2] if rest else (first, 1)
            parts.append(range(first, last + 1, stride) if stride else range(0))
    if not parts or not all(parts) or sum(map(len, parts)) > MOST_SEEDS:
        many = f"; {MOST_SEEDS:,} at most"
        raise UsageError(f"{option} {text!r}: write seeds as 1-5 or 1,3,9, after % how many run at once: 1-9%3{many}")
    return sorted({seed for part in parts for seed in part})


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


def prepare_values(job: Job, out: Path, stage: str, tasks: int) -> dict[str, Any]:
    """Return the variables of prepare.sbatch.

    Args:
        out: the folder of the prepared corpus, absolute.
        stage: read, deal, write, or publish for the last job.
        tasks: of the array; 0 for a single job.
    """
    values = job.finalize_values()
    return values | {
        "title": f"rankzero submit {shlex.join(job.command)} --prepare N: stage {stage}",
        "kind": f"prepare-{stage}",
        "job_name": f"{job.name[:50]}-{stage}",
        "log": (f"{job.run}/slurm/", f"prepare-{stage}-%A_%a.out" if tasks else "prepare-%j.out"),
        "gpus_per_node": None,
        "words": [*job.words, "--out", out],
        "stage": stage,
        "tasks": tasks,
    }

"""Chains of jobs, for clusters that do not requeue. A follow-up job continues the run if the job before did not end it.

RUN/slurm/chain lists the jobs in order. A job that ends the run cancels those after it (slurm/train.sbatch).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from launch.slurm import queue
from launch.slurm.follow import CHAIN
from launch.slurm.job import Job
from trainer.errors import UsageError


def submit_chain(job: Job, script: Path, first: int, after: int | None) -> Iterator[int]:
    """Submit the follow-up jobs of `first`. Yield their numbers.

    A follow-up job begins if the one before has ended without success. SLURM cancels it if that one has succeeded, or
    if job `after` fails. If SLURM accepts only some, the others are reported and left out.
    """
    path = job.run / "slurm" / CHAIN
    path.write_text(f"{first}\n", encoding="utf-8")
    previous = first
    for number in range(job.chain):
        needs = [*([f"afterok:{after}"] if after else []), f"afternotok:{previous}"]
        options = [f"--dependency={','.join(needs)}", "--kill-on-invalid-dep=yes"]
        try:
            following = queue.submit(script, options, [str(previous)])
        except UsageError as error:  # a limit of the site for jobs that wait
            print(f"rankzero: {number} of {job.chain} follow-up jobs: {error}", file=sys.stderr)
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{following}\n")
        yield following
        previous = following

"""SLURM's own commands: submitting, asking for jobs, ending them. No shell in between."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UsageError

PATIENCE = 60.0
OF_A_JOB = ("SLURM_RESTART_COUNT", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID")  # of the one that submits


@dataclass(frozen=True)
class Entry:
    """A job that SLURM knows, by SLURM's own name for it: 12, or 12_3 for task 3 of the array 12."""

    job: str
    state: str
    reason: str

    def among(self, jobs: Container[str]) -> bool:
        """Whether these name it, or the array that it is a task of."""
        return self.job in jobs or self.job.partition("_")[0] in jobs


def here() -> bool:
    return shutil.which("sbatch") is not None


def submit(script: Path, options: Sequence[str] = ()) -> int:
    """`sbatch`; the job's number.

    Raises:
        UsageError: there is no SLURM here, or it refuses.
    """
    done = call(["sbatch", "--parsable", *options, str(script)])
    if done.returncode != 0:
        raise UsageError(f"sbatch refuses {script}: {_told(done)}")
    return int(done.stdout.split(";")[0])


def refusal(script: str) -> str | None:
    """What `sbatch --test-only` has against a script; None when it would take it."""
    done = call(["sbatch", "--test-only"], script)
    return None if done.returncode == 0 else _told(done)


def entries() -> list[Entry]:
    """All jobs of this user that are waiting or running."""
    done = call(["squeue", "--noheader", "--me", "--array", "--format=%i|%T|%r"])
    if done.returncode != 0:
        raise UsageError(f"squeue does not answer: {_told(done)}")
    return [Entry(*line.split("|", 2)) for line in done.stdout.splitlines()]


def ended(job: str) -> list[Entry]:
    """A job that has left the queue, or the tasks of an array, as long as the controller remembers them."""
    entries = []
    for line in call(["scontrol", "--oneliner", "show", "job", job]).stdout.splitlines():
        found = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" in found:
            task = f"{found['ArrayJobId']}_{found['ArrayTaskId']}" if "ArrayTaskId" in found else found["JobId"]
            entries.append(Entry(task, found["JobState"], f"exit code {found.get('ExitCode', '?')}"))
    return entries


def cancel(jobs: Iterable[str], *options: str) -> None:
    done = call(["scancel", *options, *jobs])
    if done.returncode != 0:
        raise UsageError(f"scancel: {_told(done)}")


def call(words: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands.

    Raises:
        UsageError: it is not there, or does not answer.
    """
    env = {key: value for key, value in os.environ.items() if key not in OF_A_JOB}
    try:
        return subprocess.run(
            words, input=stdin, env=env, capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except FileNotFoundError:
        fix = "run this on a login node of the cluster; `rankzero train` trains here, --dry-run shows the script"
        raise UsageError(f"{words[0]} is not in PATH: {fix}") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{words[0]} does not answer within {PATIENCE:g} s: `rankzero doctor`") from None


def _told(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"

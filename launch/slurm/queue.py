"""SLURM's own commands: submitting, asking for jobs, ending them. No shell in between."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UsageError

PATIENCE = 60.0
OF_A_JOB = ("SLURM_RESTART_COUNT", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID")  # of the one that submits


@dataclass(frozen=True)
class Entry:
    """A job that SLURM knows; `array` is the number of the array it is a task of, else its own."""

    job: int
    array: int
    state: str
    reason: str
    name: str = ""

    @property
    def active(self) -> bool:
        """Still to come, or going on."""
        return self.state in ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "STOPPED")


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
    done = call(["squeue", "--noheader", "--me", "--format=%A|%F|%T|%r|%j"])
    if done.returncode != 0:
        raise UsageError(f"squeue does not answer: {_told(done)}")
    found = []
    for line in done.stdout.splitlines():
        job, array, state, reason, name = line.split("|", 4)
        found.append(Entry(int(job), int(array), state, reason, name))
    return found


def ended(job: int) -> Entry | None:
    """A job that has left the queue, as long as the controller remembers it."""
    done = call(["scontrol", "--oneliner", "show", "job", str(job)])
    found = dict(re.findall(r"(\w+)=(\S*)", done.stdout))
    if "JobState" not in found:
        return None
    return Entry(job, int(found.get("ArrayJobId", job)), found["JobState"], f"exit code {found.get('ExitCode', '?')}")


def cancel(jobs: Iterable[int], *options: str) -> None:
    done = call(["scancel", *options, *map(str, jobs)])
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

"""SLURM's own commands: submitting, asking for jobs, ending them. No shell in between."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import RankzeroError, UsageError
from trainer.rundir import write_json

PATIENCE = 60.0
SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # variables that say which cluster is asked
OF_ALLOCATION = re.compile(
    r"(SLURM|SLURMD|SRUN|SALLOC|SBATCH|PMI|PMIX)_|(CUDA_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ROCR_VISIBLE_DEVICES"
    r"|HIP_VISIBLE_DEVICES|ZE_AFFINITY_MASK)$"
)
FINAL = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "REVOKED", "TIMEOUT")  # fmt: skip
FRESH = 5.0  # seconds for which `status` uses an earlier answer of squeue


@dataclass(frozen=True)
class JobRecord:
    """A job that SLURM knows, by SLURM's own name for it: 12, or 12_3 for task 3 of the array 12."""

    job: str
    state: str
    reason: str
    start: str = "N/A"  # when it began, or is expected to

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
    _changed()
    if done.returncode != 0:
        raise UsageError(f"sbatch refuses {script}: {_told(done)}")
    return int(done.stdout.split(";")[0])


def refusal(script: str) -> str | None:
    """What `sbatch --test-only` has against a script; None when it would take it."""
    done = call(["sbatch", "--test-only"], script)
    return None if done.returncode == 0 else _told(done)


def entries() -> list[JobRecord]:
    """All jobs of this user that are waiting or running."""
    done = call(["squeue", "--noheader", "--me", "--array", "--format=%i|%T|%r|%S"])
    if done.returncode != 0:
        raise UsageError(f"squeue does not answer: {_told(done)}")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return [JobRecord(row[0], row[1], "|".join(row[2:-1]), row[-1]) for row in rows]


def ended() -> list[JobRecord]:
    """All jobs that the controller remembers, those that have left the queue included; an array task by task."""
    entries = []
    for line in call(["scontrol", "--oneliner", "show", "job"]).stdout.splitlines():
        job = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" in job:
            task = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayTaskId" in job else job["JobId"]
            reasons = [f"exit code {job.get('ExitCode', '?')}", job.get("Reason", "None")]
            entries.append(
                JobRecord(task, job["JobState"], ", ".join(reason for reason in reasons if reason != "None"))
            )
    return entries


def partitions(names: str | None) -> dict[str, dict[str, str]]:
    """The properties of partitions (names with commas), or of the default one; empty where Slurm does not say."""
    done = call(["scontrol", "--oneliner", "show", "partition"])
    known = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines() if "PartitionName=" in line]
    chosen = names.split(",") if names else [p["PartitionName"] for p in known if p.get("Default") == "YES"]
    return {p["PartitionName"]: p for p in known if p["PartitionName"] in chosen}


class Snapshot:
    """This user's jobs at the controller: at most one squeue and one scontrol for any number of runs."""

    @functools.cached_property
    def waiting(self) -> list[JobRecord]:
        """Jobs that wait or run; an answer of the last few seconds is used again, also by another process."""
        if not here():
            return []
        path = _cache()
        with contextlib.suppress(OSError, ValueError, TypeError):
            if time.time() - path.stat().st_mtime < FRESH:
                return [JobRecord(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        found = entries()
        with contextlib.suppress(OSError, RankzeroError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(path, [dataclasses.astuple(entry) for entry in found])
        return found

    @functools.cached_property
    def remembered(self) -> list[JobRecord]:
        return ended() if here() else []


def _cache() -> Path:
    asked = (os.getuid(), os.environ.get("SLURM_CONF"), os.environ.get("SLURM_CLUSTERS"), shutil.which("squeue"))
    cluster = repr(asked)
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
    return home / "rankzero" / f"squeue-{hashlib.sha256(cluster.encode()).hexdigest()[:12]}.json"


def _changed() -> None:
    """Forget the last answer of squeue: this process has changed the queue."""
    with contextlib.suppress(OSError):
        _cache().unlink(missing_ok=True)


def cancel(jobs: Iterable[str], *options: str) -> None:
    done = call(["scancel", *options, *jobs])
    _changed()
    if done.returncode != 0:
        raise UsageError(f"scancel: {_told(done)}")


def call(words: Sequence[str], stdin: str = "", seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands.

    Raises:
        UsageError: it is not there, or does not answer.
    """
    env = outside(os.environ)
    try:
        return subprocess.run(
            words, input=stdin, env=env, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except FileNotFoundError:
        fix = "run this on a login node of the cluster; `rankzero train` trains here, --dry-run shows the script"
        raise UsageError(f"{words[0]} is not in PATH: {fix}") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{words[0]} does not answer within {seconds:g} s: `rankzero doctor`") from None


def outside(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables of an enclosing allocation, which sbatch would take for options.

    Outside of an allocation SBATCH_* are the user's own defaults and stay.
    """
    inside = "SLURM_JOB_ID" in environ
    return {
        key: value
        for key, value in environ.items()
        if key in SITE or not OF_ALLOCATION.match(key) or (not inside and key.startswith(("SBATCH_", "PMI")))
    }


def _told(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"

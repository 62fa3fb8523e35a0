"""Run SLURM's own commands: submit jobs, list them, cancel them. No shell is involved."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UsageError

PATIENCE = 60.0  # seconds for an answer
SINFO_SECONDS = 10.0
SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # variables that select the cluster
OF_ALLOCATION = re.compile(
    r"(SLURM|SLURMD|SRUN|SALLOC|SBATCH|PMI|PMIX)_|(CUDA_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ROCR_VISIBLE_DEVICES"
    r"|HIP_VISIBLE_DEVICES|ZE_AFFINITY_MASK)$"
)
FINAL = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "REVOKED", "TIMEOUT")  # fmt: skip


@dataclass(frozen=True)
class JobRecord:
    """A job that SLURM knows.

    Attributes:
        job: SLURM's name: 12, or 12_3 for task 3 of array 12.
        start: when it began, or is expected to.
        script: path of the batch script, if known.
    """

    job: str
    state: str
    reason: str
    start: str = "N/A"
    script: str = ""

    def among(self, jobs: Container[str]) -> bool:
        """Return whether `jobs` contains it, or the array that it is a task of."""
        return self.job in jobs or self.job.partition("_")[0] in jobs

    def of_run(self, run: Path) -> bool:
        """Return whether its script is in RUN/slurm, or in that of the array that the run is a seed of."""
        folder, run = Path(self.script).parent, run.absolute()
        array = run.with_name(re.sub(r"-seed-\d+$", "", run.name))
        return folder.name == "slurm" and folder.parent.resolve() in (run.resolve(), array.resolve())


def here() -> bool:
    """Return whether SLURM is installed on this machine."""
    return shutil.which("sbatch") is not None


def submit(script: Path, options: Sequence[str] = (), arguments: Sequence[str] = ()) -> int:
    """Submit a script with arguments. Return the job's number.

    Raises:
        UsageError: SLURM is not here, or refuses.
    """
    done = call(["sbatch", "--parsable", *options, str(script), *arguments])
    if done.returncode != 0:
        raise UsageError(f"sbatch refuses {script}: {_error(done)}")
    return int(done.stdout.split(";")[0])


def refusal(script: str) -> str | None:
    """Return the error of `sbatch --test-only`, or None if it accepts the script."""
    done = call(["sbatch", "--test-only"], script)
    return None if done.returncode == 0 else _error(done)


def waiting_or_running() -> list[JobRecord]:
    """Return all waiting or running jobs of this user, arrays task by task."""
    done = call(["squeue", "--noheader", "--me", "--array", "--format=%i|%T|%r|%S|%o"])
    if done.returncode != 0:
        raise UsageError(f"squeue does not answer: {_error(done)}")
    return [JobRecord(*line.split("|", 4)) for line in done.stdout.splitlines()]


def remembered() -> list[JobRecord]:
    """Return all jobs that the controller knows, ended ones included, arrays task by task."""
    jobs = []
    for line in call(["scontrol", "--oneliner", "show", "job"]).stdout.splitlines():
        job = dict(re.findall(r"(\w+)=(\S*)", line))
        if "JobState" in job:
            name = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayTaskId" in job else job["JobId"]
            reasons = [f"exit code {job.get('ExitCode', '?')}", job.get("Reason", "None")]
            jobs.append(JobRecord(name, job["JobState"], ", ".join(reason for reason in reasons if reason != "None")))
    return jobs


def node_states() -> list[list[str]]:
    """Return name, availability, time limit, number of nodes and their state, for each partition and state."""
    done = call(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%t"], seconds=SINFO_SECONDS)
    if done.returncode != 0:
        raise UsageError(f"sinfo does not answer: {_error(done)}")
    return [line.split("|") for line in done.stdout.splitlines()]


def partitions(names: str | None) -> dict[str, dict[str, str]]:
    """Return the properties of partitions (names with commas), or of the default one. Empty if SLURM lists none."""
    done = call(["scontrol", "--oneliner", "show", "partition"])
    known = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines() if "PartitionName=" in line]
    chosen = names.split(",") if names else [p["PartitionName"] for p in known if p.get("Default") == "YES"]
    return {p["PartitionName"]: p for p in known if p["PartitionName"] in chosen}


def no_requeue(partition: str | None) -> str:
    """Return the setting by which SLURM does not requeue jobs of a partition. Empty if it does, or is not known."""
    if not here():
        return ""
    settings = call(["scontrol", "show", "config"]).stdout
    found = re.findall(r"^(JobRequeue|PreemptMode)\s*=\s*(\S+)", settings, re.MULTILINE)
    config: dict[str, str] = {"JobRequeue": "1", "PreemptMode": "OFF"} | dict(found)
    if config["JobRequeue"] == "0":
        return "JobRequeue=0"
    for name, limit in partitions(partition).items():
        if "CANCEL" in limit.get("PreemptMode", config["PreemptMode"]).split(","):
            return f"PreemptMode=CANCEL of partition {name}"
    return ""


class Snapshot:
    """This user's jobs: at most one squeue and one scontrol for any number of runs."""

    @functools.cached_property
    def waiting_or_running(self) -> list[JobRecord]:
        return waiting_or_running() if here() else []

    @functools.cached_property
    def remembered(self) -> list[JobRecord]:
        return remembered() if here() else []


def cancel(jobs: Iterable[str], *options: str) -> None:
    """Cancel jobs.

    Raises:
        UsageError: scancel fails.
    """
    done = call(["scancel", *options, *jobs])
    if done.returncode != 0:
        raise UsageError(f"scancel: {_error(done)}")


def call(words: Sequence[str], stdin: str = "", seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands.

    Raises:
        UsageError: it is not installed here, or does not answer.
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
    """Return the environment without the variables of an allocation, which sbatch would read as options.

    Outside an allocation, SBATCH_* are the user's own defaults and are kept.
    """
    inside = "SLURM_JOB_ID" in environ
    return {
        key: value
        for key, value in environ.items()
        if key in SITE or not OF_ALLOCATION.match(key) or (not inside and key.startswith(("SBATCH_", "PMI")))
    }


def _error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"

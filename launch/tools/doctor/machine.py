"""Check packages, cores, memory and shared memory."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from launch.configs import LaunchPlan
from launch.findings import GIB, Findings, size
from launch.local import environment
from trainer.cpu_info import control_groups, cores, cpuinfo

EXTRAS = ("demo", "deepspeed", "track", "wandb", "mlflow")  # their packages are checked where they are installed
LITTLE_MEMORY = 2 * GIB
LITTLE_SHARED = GIB  # Docker's default is 64 MiB; loader workers and NCCL need more
SHARED = Path("/dev/shm")  # noqa: S108 - only read


def check_packages(findings: Findings) -> None:
    """Compare the installed packages with what rankzero requires. `pip check` compares them with each other."""
    findings.fact(f"Python {platform.python_version()} at {sys.executable}")
    for requirement in map(Requirement, metadata.requires("rankzero") or ()):
        marker, name, version = requirement.marker, requirement.name, installed(requirement.name)
        extras = [extra for extra in ("", *EXTRAS) if marker is None or marker.evaluate({"extra": extra})]
        fix = f"pip install '{name}{requirement.specifier}'"
        if version is None and "" in extras:
            findings.fail(f"{name} is missing", fix)
        elif version is None or not extras:
            continue
        elif requirement.specifier.contains(version, prereleases=True):  # development builds are allowed
            findings.fact(f"{name} {version}")
        else:
            findings.fail(f"{name} {version} is not {requirement.specifier}", fix)


def installed(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_cpu(findings: Findings, plan: LaunchPlan | None) -> None:
    """Compare ranks x threads with the usable cores."""
    usable = cores()
    findings.fact(f"{cpuinfo('model name') or platform.machine()}, {usable} of {os.cpu_count()} cores usable")
    if plan is None:
        return
    ranks, threads = plan.ranks_here, environment(plan)["OMP_NUM_THREADS"]
    findings.fact(f"{ranks} ranks x {threads} threads")
    if ranks > usable:
        fix = f"--nproc {usable} at most, or more cores (sbatch --cpus-per-task)"
        findings.warn("more ranks than cores: on a CPU, small matrix products wait for the scheduler", fix)
    elif threads.isdigit() and ranks * int(threads) > usable:
        fix = f"unset OMP_NUM_THREADS, or set it to {usable // ranks}"
        findings.warn("more threads than cores: small matrix products take ten times as long", fix)


def check_memory(findings: Findings) -> None:
    memory = psutil.virtual_memory()
    available = max(0.0, min([float(memory.available), *map(_left, control_groups("memory"))]))
    findings.fact(f"{size(available)} of {size(memory.total)} available")
    if available < LITTLE_MEMORY:
        fix = "end other programs, or raise the memory limit of the container or job (sbatch --mem)"
        findings.warn(f"only {size(available)} left", fix)


def _left(group: Path) -> float:
    """Return the bytes that a control group (v1 or v2) may still use. The kernel can drop its cached files."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = float((group / usage).read_text()) - int(stat["inactive_file"]) - int(stat["active_file"])
            return float((group / limit).read_text()) - used
    return float("inf")


def check_shared_memory(findings: Findings) -> None:
    space = shutil.disk_usage(SHARED)
    findings.fact(f"{SHARED}: {size(space.free)} of {size(space.total)} free")
    if space.free < LITTLE_SHARED:
        text = "too little for loader workers and NCCL, which end with a bus error when it is full"
        findings.warn(text, f"docker run --shm-size=8g (or --ipc=host), or mount -o remount,size=8G {SHARED}")

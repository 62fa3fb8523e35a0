"""Check cores, memory, shared memory and the limit of open files."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
from pathlib import Path

import psutil

from launch.findings import GIB, Findings, size
from trainer.cpu_info import control_groups, cores, cpuinfo

LITTLE_MEMORY = 2 * GIB
LITTLE_SHARED = GIB  # Docker's default is 64 MiB; loader workers and NCCL need more
FEW_FILES = 1024
SHARED = Path("/dev/shm")  # noqa: S108 - only read
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def check_cpu(findings: Findings) -> None:
    flags = cpuinfo("flags", "Features").split()
    findings.fact(f"{cpuinfo('model name') or platform.machine()}, {cores()} of {os.cpu_count()} cores usable")
    findings.fact(f"instructions: {', '.join(flag for flag in CPU_FLAGS if flag in flags) or f'none of {CPU_FLAGS}'}")
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        findings.warn("no AVX2: training on this CPU is several times slower", "train on another machine or on a GPU")


def check_memory(findings: Findings) -> None:
    memory = psutil.virtual_memory()
    limit, used = memory_limit()
    available = float(memory.available)
    findings.fact(f"{size(available)} of {size(memory.total)} available")
    if limit < memory.total:
        available = min(available, max(0.0, limit - used))
        findings.fact(f"the control group may use {size(limit)} and uses {size(used)}")
    if available < LITTLE_MEMORY:
        fix = "end other programs, or raise the memory limit of the container or job (sbatch --mem)"
        findings.warn(f"only {size(available)} left", fix)


def memory_limit() -> tuple[float, float]:
    """Return the smallest memory limit of the control groups (v1 and v2) and what is used of it, in bytes.

    Cached files do not count as used: the kernel drops them when memory is needed.
    """
    smallest = (float("inf"), 0.0)
    for folder in control_groups("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(stat["inactive_file"]) + int(stat["active_file"])
                used = float((folder / usage).read_text()) - cached
                smallest = min(smallest, (float((folder / limit).read_text()), used))
    return smallest


def check_shared_memory(findings: Findings) -> None:
    """Check the space in /dev/shm, and find files that ended trainings left there."""
    try:
        space = shutil.disk_usage(SHARED)
    except OSError as error:
        findings.fail(f"{SHARED}: {error.strerror}", f"mount a tmpfs on {SHARED}: loader workers and NCCL need it")
        return
    findings.fact(f"{SHARED}: {size(space.free)} of {size(space.total)} free")
    if space.free < LITTLE_SHARED:
        text = "too little for loader workers and NCCL, which end with a bus error when it is full"
        findings.warn(text, f"docker run --shm-size=8g (or --ipc=host), or mount -o remount,size=8G {SHARED}")
    if unused := unused_files(SHARED):
        total = size(sum(path.stat().st_size for path in unused))
        findings.warn(f"{len(unused)} files that no process uses, {total}", f"rm {' '.join(map(str, unused))}")


def unused_files(folder: Path) -> list[Path]:
    """Return this user's files of DeepSpeed and torch that no running process has mapped."""
    names = ("deepspeed_allreduce_buffer_*", "torch_*")
    files = [path for name in names for path in folder.glob(name) if path.stat().st_uid == os.getuid()]
    for maps in Path("/proc").glob("[0-9]*/maps") if files else ():
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            mapped = maps.read_text(errors="replace")
            files = [path for path in files if str(path) not in mapped]
    return sorted(files)


def check_open_files(findings: Findings) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = ("unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in limits)
    findings.fact(f"limit {soft} (can be raised to {hard})")
    if limits[0] != resource.RLIM_INFINITY and limits[0] < FEW_FILES:
        findings.warn("loader workers may run out of open files", f"ulimit -n {hard}")

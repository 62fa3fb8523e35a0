"""The machine below the devices: cores, memory, shared memory, open files."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
from pathlib import Path

import psutil

from launch.doctoring.check import GIB, Check, Findings, size
from trainer.cpu_info import cores

LITTLE_MEMORY = 2 * GIB
LITTLE_SHARED = GIB  # Docker gives 64 MiB unless told otherwise; loader workers and NCCL need more
FEW_FILES = 1024
SHARED = Path("/dev/shm")  # noqa: S108 - looked at, not written
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def checks() -> list[Check]:
    return [_cpu(), _memory(), _shared_memory(), _open_files()]


def _cpu() -> Check:
    findings = Findings("cpu")
    model, flags = _cpu_words()
    all_cores = os.cpu_count() or 1
    findings.fact(f"{model}, {cores()} of {all_cores} cores usable (affinity and control group)")
    findings.fact(
        f"instructions: {', '.join(flag for flag in CPU_FLAGS if flag in flags) or 'none of ' + str(CPU_FLAGS)}"
    )
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        findings.warn("no AVX2: training on this CPU is several times slower", "train on another machine or on a GPU")
    return findings.check()


def _cpu_words() -> tuple[str, set[str]]:
    """Model name and instruction flags of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return name, set(flags[1].split()) if flags else set()


def _memory() -> Check:
    findings = Findings("memory")
    ram = psutil.virtual_memory()
    limit, used = memory_limit()
    findings.fact(f"{size(ram.available)} of {size(ram.total)} available")
    available = float(ram.available)
    if limit < ram.total:
        available = min(available, limit - used)
        findings.fact(f"this control group may use {size(limit)} and uses {size(used)}")
    if available < LITTLE_MEMORY:
        text = f"only {size(max(0, available))} left"
        findings.warn(text, "end other programs, or raise the memory limit of the container or job (sbatch --mem)")
    return findings.check()


def memory_limit() -> tuple[float, float]:
    """The smallest memory limit of this process's control groups and what is used of it, bytes; infinite if none.

    Version 2 (`memory.max` along the path) and version 1 (`memory.limit_in_bytes`). Cached files, which the kernel
    drops when memory is wanted, do not count as used.
    """
    best = (float("inf"), 0.0)
    for folder in _memory_groups():
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                found = float((folder / most).read_text()), float((folder / now).read_text()) - _cached(folder)
            except (OSError, ValueError):  # no such group seen from here, or "max"
                continue
            best = min(best, found)
    return best


def _cached(group: Path) -> float:
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return float(sum(int(value) for name, value in lines if name in ("inactive_file", "active_file")))


def _memory_groups(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> list[Path]:
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        folder = root / controllers
        for part in ("", *Path(path.lstrip("/")).parts):
            folder /= part
            folders.append(folder)
    return folders


def _shared_memory() -> Check:
    findings = Findings("shared memory")
    try:
        space = shutil.disk_usage(SHARED)
    except OSError as error:
        findings.fail(f"{SHARED}: {error.strerror}", f"mount a tmpfs on {SHARED}: loader workers and NCCL need it")
        return findings.check()
    findings.fact(f"{SHARED}: {size(space.free)} of {size(space.total)} free")
    if space.free < LITTLE_SHARED:
        text = "too little for loader workers and NCCL, which end with a bus error when it is full"
        findings.warn(text, f"docker run --shm-size=8g (or --ipc=host); else mount -o remount,size=8G {SHARED}")
    left = leftovers(SHARED)
    if left:
        taken = size(sum(path.stat().st_size for path in left))
        names = ", ".join(path.name for path in left[:3]) + (" …" if len(left) > 3 else "")
        findings.warn(f"{len(left)} files that no process here uses, {taken}: {names}", f"rm {_patterns(left)}")
    return findings.check()


def leftovers(folder: Path) -> list[Path]:
    """This user's files that DeepSpeed and torch left in shared memory, and that no living process has mapped."""
    patterns = ("deepspeed_allreduce_buffer_*", "torch_*")
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.stat().st_uid == os.getuid()]
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        with contextlib.suppress(OSError):  # gone, or not ours to look at
            mapped = maps.read_text(errors="replace")
            found = [path for path in found if str(path) not in mapped]
    return sorted(found)


def _patterns(paths: list[Path]) -> str:
    """What `rm` is to be given: a pattern for DeepSpeed's, each name otherwise."""
    words = [
        str(path.with_name("deepspeed_allreduce_buffer_*")) if path.name.startswith("deepspeed") else str(path)
        for path in paths
    ]
    return " ".join(dict.fromkeys(words))


def _open_files() -> Check:
    findings = Findings("open files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = ["unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)]
    findings.fact(f"limit {told[0]} (may be raised to {told[1]})")
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        findings.warn("loader workers may run out of files", f"ulimit -n {told[1]}")
    return findings.check()

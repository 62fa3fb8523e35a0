"""The cores that this process may use, and their instructions."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Return the cores that this process may use: its affinity, or the CPU quota of its control group if less."""
    usable = float(len(os.sched_getaffinity(0)))
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for group in (line.removeprefix("0::/") for line in groups if line.startswith("0::/")):
        folder = Path("/sys/fs/cgroup")
        for part in ("", *Path(group).parts):
            folder /= part
            usable = min(usable, _quota(folder))
    return max(1, int(usable))


def _quota(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # the group is not visible, or has no limit ("max")
        return float("inf")


EMULATED = "this processor emulates bf16 (no AVX-512 BF16, no AMX), which is slower than fp32"


def bf16_arithmetic() -> bool:
    """Return whether the processor multiplies in bf16. Without AVX-512 BF16, AMX or Arm BF16 it is slower than fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpuinfo("flags", "Features").split())


def cpuinfo(*keys: str) -> str:
    """Return the value of the first of these keys in /proc/cpuinfo, or an empty text."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")

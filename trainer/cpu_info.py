"""How many cores this process may use, and what they can do."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores this process may use: its affinity, or the CPU quota of its control group if less; at least 1."""
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
    except (OSError, ValueError):  # no such group seen from here, or "max"
        return float("inf")


EMULATED = "this processor emulates bf16 (no AVX-512 BF16, no AMX), which is slower than fp32"


def bf16_arithmetic() -> bool:
    """Whether the processor multiplies in bf16 (AVX-512 BF16, AMX, Arm's BF16). Others emulate it, slower than fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpuinfo("flags", "Features").split())


def cpuinfo(*keys: str) -> str:
    """What /proc/cpuinfo says of the first processor under one of these keys; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")

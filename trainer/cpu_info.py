"""The cores that this process may use, and their instructions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """Return the cores that this process may use: its affinity, or the CPU quota of its control group if less."""
    usable = min([float(len(os.sched_getaffinity(0))), *map(_quota, control_groups("cpu"))])
    return max(1, int(usable))


def control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups for a controller, the outermost first (v1 and v2)."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        folder = _GROUPS / controllers
        for part in ("", *Path(path.lstrip("/")).parts):
            folder /= part
            yield folder


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

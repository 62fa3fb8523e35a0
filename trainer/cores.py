"""How many cores this process may use."""

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

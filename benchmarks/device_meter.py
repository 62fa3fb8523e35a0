"""A meter for contestants on a GPU: waits for the device at the ends of a block, and measures memory and idle time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestant import Meter


class DeviceMeter(Meter):
    """A block of a negative size is profiled: its answer has the share of the time in which no kernel ran."""

    def __init__(self) -> None:
        super().__init__()
        self._profiler: Any = None

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def begin(self, *, profile: bool) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        if profile:
            self._profiler = _start()

    def end(self) -> Mapping[str, Any]:
        facts: dict[str, Any] = {"memory": torch.cuda.max_memory_allocated()}
        if self._profiler is not None:
            self._profiler.stop()
            spans = [
                (event.time_range.start, event.time_range.end)
                for event in self._profiler.events()
                if event.device_type == DeviceType.CUDA
            ]
            facts["idle"], self._profiler = idle_share(spans), None
        return facts


def _start() -> Any:
    started = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    started.start()
    return started


def idle_share(spans: Iterable[tuple[float, float]]) -> float | None:
    """Return the share of the time between the first and the last span that no span covers. None without spans."""
    ordered = sorted(spans)
    if not ordered:
        return None
    first, reached, busy = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - first) if reached > first else None


def meter(device: str) -> Meter:
    """Return the meter of a contestant on "cuda" or "cpu"."""
    return DeviceMeter() if device == "cuda" else Meter()

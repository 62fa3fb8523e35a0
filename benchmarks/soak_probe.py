"""The side of the soak test that is in the run: a callback that writes samples of the process tree.

Samples are lines of the file SOAK_SAMPLES: {"start", "step", "seconds", "cpu_seconds", "objects", and what `usage`
returns}. Objects are those that Python's garbage collector knows in the rank. Lines of evaluations and saves have an
"event".
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from trainer import Callback

SAMPLES, ROOT_PID, EVERY, PERIOD = "SOAK_SAMPLES", "SOAK_ROOT_PID", "SOAK_EVERY", "SOAK_PERIOD"
SHARED_MEMORY = Path("/dev/shm")
QUIET = 0.3  # share of a period after an evaluation and a save in which there are no samples


class Probe(Callback):
    """Takes a sample of the process tree each SOAK_EVERY steps, but not right after an evaluation and a save."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._start = time.time()
        self._every, self._period = int(os.environ[EVERY]), int(os.environ[PERIOD])
        self._steps: list[tuple[float, float]] = []
        self._before: tuple[float, float] | None = None  # clocks after the last step

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        if self.rank:
            return
        now = time.perf_counter(), time.process_time()
        if self._before is not None:
            self._steps.append((now[0] - self._before[0], now[1] - self._before[1]))
        if step % self._every == 0 and step % self._period >= QUIET * self._period and self._steps:
            seconds, cpu_seconds = (statistics.median(each) for each in zip(*self._steps, strict=True))
            found = usage(int(os.environ[ROOT_PID]), self.run)
            self._write(
                {
                    "step": step,
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    **found,
                    "objects": len(gc.get_objects()),
                }
            )
            self._steps = []
        self._before = time.perf_counter(), time.process_time()

    def on_eval(self, step: int, scores: Mapping[str, Any]) -> None:
        self._event("evaluation", step)

    def on_save(self, step: int, folder: Path) -> None:
        self._event("save", step)

    def _event(self, name: str, step: int) -> None:
        self._before = None
        self._steps = []
        if self.rank == 0:
            self._write({"event": name, "step": step})

    def _write(self, line: Mapping[str, Any]) -> None:
        with Path(os.environ[SAMPLES]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"start": self._start, **line}) + "\n")


def usage(root: int, run: Path) -> dict[str, int]:
    """Return what the process `root` and those below it hold.

    Returns:
        memory: bytes of the processes' own, resident and swapped; a page that n processes share after a fork counts as
            1/n in each. Files that are mapped are not part of it: the pages of a library are shared with any process.
        pss, rss: all resident bytes, by the kernel's counts.
        descriptors, threads, processes: of all of them.
        shared_memory, temporary, run_files: entries of /dev/shm, below the temporary directory, and of the run
        directory without complete checkpoints.
    """
    sums = dict.fromkeys(("memory", "pss", "rss", "descriptors", "threads", "processes"), 0)
    tree = psutil.Process(root)
    for process in (tree, *tree.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):  # it has just ended
            found = (*memory_of(process.pid), process.num_fds(), process.num_threads(), 1)
            sums = {name: value + more for (name, value), more in zip(sums.items(), found, strict=True)}
    files = [path for path in run.rglob("*") if not path.parent.name.startswith("step-")]
    return {
        **sums,
        "shared_memory": sum(1 for _ in SHARED_MEMORY.iterdir()),
        "temporary": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        "run_files": sum(not path.name.startswith("step-") for path in files),
    }


def memory_of(pid: int) -> tuple[int, int, int]:
    """Return memory, pss and rss of a process in bytes; see `usage`."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"] + sizes["SwapPss"], sizes["Pss"], sizes["Rss"]

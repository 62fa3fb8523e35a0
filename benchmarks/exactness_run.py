"""A complete run of exactness_cost, with a stopwatch around what happens once or at each save.

Run by exactness_cost: python -m benchmarks.exactness_run SETTINGS.json. It writes the seconds of each part, in wall and
processor time, to the file `out` of the settings.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from trainer import train
from trainer.data import survey
from trainer.engine import setup
from trainer.export.gates import Gate
from trainer.export.model_gate import ModelGate
from trainer.export.rows import Rows
from trainer.files import read_json, write_json
from trainer.tracking.background import Tracking

FINGERPRINT, HASHES, GATES, STOCK = "corpus fingerprint", "hashes", "export gates", "stock-load gate"
TRACKER, SPLIT = "tracker", "complete split"  # the latter is a part of the export gates


def cpu_seconds() -> float:
    """Return the processor time of this process and of the children that have ended."""
    return sum(os.times()[:4])


class Stopwatch:
    """Adds up seconds by part. Of parts inside each other only the outer one counts."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._inside = threading.local()

    @contextlib.contextmanager
    def of(self, part: str, cpu: Callable[[], float], size: int = 0, *, nested: bool = False) -> Iterator[None]:
        """Time the block. `nested`: it counts inside another part, too."""
        if not nested and getattr(self._inside, "part", None) is not None:
            yield
            return
        began, cpu_began = time.perf_counter(), cpu()
        if not nested:
            self._inside.part = part
        try:
            yield
        finally:
            if not nested:
                self._inside.part = None
            sums = self.parts.setdefault(part, {"seconds": 0.0, "cpu_seconds": 0.0, "calls": 0, "bytes": 0})
            seconds, own = time.perf_counter() - began, cpu() - cpu_began
            for name, more in {"seconds": seconds, "cpu_seconds": own, "calls": 1, "bytes": size}.items():
                sums[name] += more

    def wrap(self, owner: Any, name: str, part: str, *, nested: bool = False) -> None:
        """Time each call of an attribute of a module or a class."""
        work = getattr(owner, name)

        @functools.wraps(work)
        def timed(*args: Any, **named: Any) -> Any:
            with self.of(part, cpu_seconds, nested=nested):
                return work(*args, **named)

        setattr(owner, name, timed)

    def wrap_hashes(self) -> None:
        """Time SHA-256 of files and of tensors that are written."""
        new, of_file, watch = hashlib.sha256, hashlib.file_digest, self

        class Timed:
            def __init__(self, data: Any = b"", **named: Any) -> None:
                self._hash = new(**named)
                self.update(data)

            def update(self, data: Any) -> None:
                with watch.of(HASHES, time.thread_time, memoryview(data).nbytes):
                    self._hash.update(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._hash, name)

        def timed_file(file: Any, name: Any, **named: Any) -> Any:
            with watch.of(HASHES, time.thread_time, os.fstat(file.fileno()).st_size):
                return of_file(file, new if name is Timed else name, **named)

        hashlib.sha256, hashlib.file_digest = Timed, timed_file  # type: ignore[assignment,misc]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["ACCELERATE_MIXED_PRECISION"] = settings["precision"]
    torch.set_num_threads(settings["threads"])
    watch = Stopwatch()
    for module in (survey, setup):
        watch.wrap(module, "fingerprint", FINGERPRINT)
    watch.wrap(Gate, "split_checks", SPLIT, nested=True)
    watch.wrap(Rows, "answers", SPLIT, nested=True)
    for owner, name, part in (
        (Gate, "run", GATES), (Rows, "answers", GATES), (ModelGate, "run", STOCK),
        (Tracking, "__init__", TRACKER), (Tracking, "finish", TRACKER),
    ):  # fmt: skip
        watch.wrap(owner, name, part)
    watch.wrap_hashes()
    began, cpu_began = time.perf_counter(), cpu_seconds()
    run = train(settings["recipe"], settings["overrides"], run=Path(settings["folder"]) / "run")
    total = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - cpu_began, "steps": run.step}
    rows = [(read_json(gate) or {}).get("rows", 0) for gate in run.path.glob("export/*/gate.json")]
    write_json(Path(settings["out"]), {"total": total, "parts": watch.parts, "gate_rows": max(rows, default=0)})


if __name__ == "__main__":
    main()

"""Run run.py in a new process that can import only onnxruntime, tokenizers and numpy; stock libraries in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 600.0  # seconds
ALONE = """
import runpy, sys
class Alone:
    known = {*sys.stdlib_module_names, "onnxruntime", "tokenizers", "numpy"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.known:
            raise ModuleNotFoundError(f"{name} is none of onnxruntime, tokenizers and numpy", name=name)
sys.meta_path.insert(0, Alone())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def in_fresh_process(folder: Path, lines: Sequence[str], *options: str) -> tuple[list[dict[str, Any]], float]:
    """Return the records that run.py of an artifact prints for these lines, and the seconds of the whole process.

    Raises:
        RuntimeError: it failed; with the end of its stderr.
    """
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(folder / "run.py"), *options],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        timeout=TIMEOUT,
    )
    seconds = time.perf_counter() - started
    if process.returncode:
        error = process.stderr.decode(errors="replace")[-400:]
        raise RuntimeError(f"run.py ended with {process.returncode}: {error}")
    return [json.loads(line) for line in process.stdout.split(b"\n") if line], seconds


WITHOUT = """
import runpy, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trainer", "launch"):
            raise ModuleNotFoundError(f"{name} is not a stock library", name=name)
sys.meta_path.insert(0, Without())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def with_stock_libraries(job: dict[str, Any], name: str = "stock_program.py") -> tuple[dict[str, Any], float]:
    """Run a program of this folder on a job in a process without rankzero. Return its result, and its seconds.

    Raises:
        RuntimeError: it failed; with the end of its stderr.
    """
    started = time.perf_counter()
    program = Path(__file__).with_name(name)
    process = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT, str(program)],
        input=json.dumps(job).encode(),
        capture_output=True,
        timeout=TIMEOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
    )
    seconds = time.perf_counter() - started
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"the stock libraries failed: {' '.join(lines[-3:])[-600:]}")
    found: dict[str, Any] = json.loads(process.stdout)
    return found, seconds

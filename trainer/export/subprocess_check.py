"""Run run.py in a new process that can import only what it needs; stock libraries in another."""

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
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if {condition}:
            raise ModuleNotFoundError(f"{{name}} is {reason}", name=name)
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WITHOUT = GUARD.format(condition='name.partition(".")[0] in ("trainer", "launch")', reason="not a stock library")


def in_fresh_process(
    folder: Path, lines: Sequence[str], *options: str, modules: Sequence[str] = ("onnxruntime",)
) -> tuple[list[dict[str, Any]], float]:
    """Return the records that run.py of an artifact prints for these lines, and the seconds of the whole process.

    Args:
        modules: that it may import besides tokenizers and numpy.

    Raises:
        RuntimeError: it failed; with the end of its stderr.
    """
    text = "".join(f"{line}\n" for line in lines)
    needed = (*modules, "tokenizers", "numpy")
    condition = f'name.partition(".")[0] not in {{*sys.stdlib_module_names, *{needed}}}'
    guard = GUARD.format(condition=condition, reason=f"none of {', '.join(needed)}")
    process, seconds = _run([guard, str(folder / "run.py"), *options], text)
    if process.returncode:
        error = process.stderr.decode(errors="replace")[-400:]
        raise RuntimeError(f"run.py ended with {process.returncode}: {error}")
    return [json.loads(line) for line in process.stdout.split(b"\n") if line], seconds


def with_stock_libraries(job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Run stock_program.py on a job in a process without rankzero. Return its result, and its seconds.

    Raises:
        RuntimeError: it failed; with the end of its stderr.
    """
    env = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    process, seconds = _run([WITHOUT, str(Path(__file__).with_name("stock_program.py"))], json.dumps(job), **env)
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"the stock libraries failed: {' '.join(lines[-3:])[-600:]}")
    found: dict[str, Any] = json.loads(process.stdout)
    return found, seconds


def _run(words: Sequence[str], text: str, **env: str) -> tuple[subprocess.CompletedProcess[bytes], float]:
    started, command = time.perf_counter(), [sys.executable, "-P", "-c", *words]
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIMEOUT, env={**os.environ, **env})
    return done, time.perf_counter() - started

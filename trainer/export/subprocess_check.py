"""run.py in a process of its own that can import onnxruntime, tokenizers and numpy alone."""

from __future__ import annotations

import json
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
    """What run.py of an artifact prints for these lines, and how many seconds start, loading and work took.

    Raises:
        RuntimeError: it failed; with the last of what it said.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(folder / "run.py"), *options],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        timeout=TIMEOUT,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"run.py ended with {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}")
    return [json.loads(line) for line in done.stdout.split(b"\n") if line], seconds

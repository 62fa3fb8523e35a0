"""Run run.py in a new process that can import only onnxruntime, tokenizers and numpy."""

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

"""A model that CTranslate2 runs. It implements the search for texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ctranslate2


def open_graphs(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the outermost of nested teams
    count = int(threads) if threads.isdigit() else 0  # 0: the default of the library
    compute = settings["compute_type"]
    return {"model": ctranslate2.Translator(str(folder), device="cpu", compute_type=compute, intra_threads=count)}

"""Graphs that ONNX Runtime runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime


def open_graphs(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    cuda = settings.get("device") == "cuda"
    return {path.stem: open_graph(path, cuda) for path in sorted(folder.glob("*.onnx"))}


def open_graph(path: Path, cuda: bool = False) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU. With `cuda`, on a GPU if onnxruntime has one."""
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the outermost of nested teams
    options.intra_op_num_threads = int(threads) if threads.isdigit() else 0  # 0: one per core
    gpu = "CUDAExecutionProvider"
    providers = [gpu] if cuda and gpu in onnxruntime.get_available_providers() else []
    return onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])

"""Graphs that OpenVINO runs, with the methods of ONNX Runtime's sessions."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openvino


def open_graphs(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {path.stem: OpenVinoGraph(compiled(str(path))) for path in sorted(folder.glob("*.xml"))}


def compiled(graph: Any) -> openvino.CompiledModel:
    """Compile a graph for the CPU, in fp32: OpenVINO would compute in bf16 where the processor can."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the outermost of nested teams
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads.isdigit() and int(threads):
        options["INFERENCE_NUM_THREADS"] = int(threads)
    with same_signal_stack():
        return openvino.Core().compile_model(graph, "CPU", options)


@contextlib.contextmanager
def same_signal_stack() -> Iterator[None]:
    """Give this thread its alternate signal stack back afterwards.

    OpenVINO's CPU plugin sets another one for each `Core`, and puts the one before back when the `Core` is deleted. If
    an earlier `Core` was deleted meanwhile, that memory is free, and the next signal kills the process (SIGSEGV).
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack, before = ctypes.CDLL(None).sigaltstack, SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class Port(NamedTuple):
    """An input or output. A free dimension has the shape "?"."""

    name: str
    type: str
    shape: list[int | str]


class OpenVinoGraph:
    """A compiled graph."""

    def __init__(self, graph: openvino.CompiledModel) -> None:
        self.graph = graph

    def get_inputs(self) -> list[Port]:
        return list(map(port, self.graph.inputs))

    def get_outputs(self) -> list[Port]:
        return list(map(port, self.graph.outputs))

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        outputs = self.graph(feeds)
        return [outputs[name] for name in names]


def port(tensor: Any) -> Port:
    kinds = {"i64": "tensor(int64)", "f32": "tensor(float)"}
    kind = tensor.element_type.get_type_name()
    shape = ["?" if size.is_dynamic else size.get_length() for size in tensor.partial_shape]
    return Port(tensor.any_name, kinds.get(kind, kind), shape)

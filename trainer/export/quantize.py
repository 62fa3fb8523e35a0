"""Dynamic int8: weights quantized per channel, activations at run time. Sensitive matrices may stay fp32.

Weights use 7 of the 8 bits. With 8, sums of two products saturate on processors without VNNI: logits of a tiny
translation model were off by 3.3 there instead of 0.14.

One scale is computed for a whole tensor of activations, so a row's result depends on its batch. Therefore the
artifact's settings have one_by_one = true.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, patch

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from trainer.artifact_kinds import KINDS
from trainer.export.gates import fitting
from trainer.export.onnx import data_file, is_large
from trainer.export.packaging import derive
from trainer.export.program import load
from trainer.export.rows import Progress
from trainer.export.runtimes.graphs_onnxruntime import open_graph
from trainer.export.task_export import TaskExport
from trainer.task.base import Example, Record

OPERATORS = ("MatMul", "Gemm", "Gather")  # with the default ones a graph of opset 23 does not load


def write_quantized(export: TaskExport, source: Path, folder: Path, kept: Collection[str] = ()) -> None:
    """Write the artifact in `source` as int8 to the empty `folder`; the matrices in `kept` stay fp32."""
    for path in sorted(source.glob("*.onnx")):
        excluded = [name.partition(":")[2] for name in kept if name.partition(":")[0] == path.stem]
        _quantize(path, folder / path.name, excluded)
    derive(export, source, folder, KINDS["int8"])


def quantize(
    export: TaskExport,
    source: Path,
    folder: Path,
    examples: Callable[[], Sequence[Example]],
    gate: Callable[[], Record],
    progress: Progress,
) -> Record:
    """Write the artifact as int8 with as few fp32 matrices as pass its gate, and return the gate's result.

    Only a score that is too low is worth another attempt; other failures stay whatever the precision.

    Args:
        export: of the task.
        source: the fp32 artifact.
        folder: exists and is empty.
        examples: rows on which matrices are compared; called only if the first attempt fails.
        gate: checks the artifact in `folder`.
        progress: receives messages.
    """
    kept: list[str] = []
    attempts: list[Record] = []
    order: list[str] | None = None
    while True:
        write_quantized(export, source, folder, kept)
        result = gate() | {"kept_fp32": kept}
        scores = {name: check["difference"] for name, check in result["checks"].items() if "difference" in check}
        attempts.append({"kept_fp32": len(kept), "passed": result["passed"], **scores})
        if result["passed"] or not set(result["failed"]) <= scores.keys():
            break
        if order is None:
            order = sensitivity(export, source, examples(), progress)
        if 2 * len(kept) >= len(order):
            break
        kept = order[: max(1, 2 * len(kept))]
        progress(f"int8 failed its gate; retry with {len(kept)} of {len(order)} matrices in fp32: {kept[0]} …")
    return result | {"attempts": attempts}


def sensitivity(export: TaskExport, source: Path, examples: Sequence[Example], progress: Progress) -> list[str]:
    """Return all matrices as "graph:node", those first that change the logits most if only they are quantized."""
    examples, artifact, changes = fitting(examples, export.logit_count), load(export, source), dict[str, float]()
    before, sessions, names = export.artifact_logits(artifact, examples), artifact.sessions, matrices(source)
    with tempfile.TemporaryDirectory(prefix="rankzero-int8-") as scratch:
        for number, name in enumerate(names, 1):
            graph, _, node = name.partition(":")
            target = Path(scratch) / f"{graph}.onnx"
            _quantize(source / target.name, target, only=node)
            artifact.sessions = sessions | {graph: open_graph(target)}
            after = export.artifact_logits(artifact, examples)
            changes[name] = float(np.mean([np.abs(a - b).mean() for a, b in zip(after, before, strict=True)]))
            progress(f"int8: measured {number} of {len(names)} matrices")
    return sorted(names, key=lambda name: -changes[name])


def matrices(source: Path) -> list[str]:
    """Return the nodes that can be quantized, as "graph:node": their operand is a constant fp32 matrix."""
    names = []
    for path in sorted(source.glob("*.onnx")):
        graph = onnx.load(path).graph
        weights = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 2}
        for node in graph.node:
            if node.op_type in OPERATORS and node.input[0 if node.op_type == "Gather" else 1] in weights:
                names.append(f"{path.stem}:{node.name}")
    return names


def _quantize(source: Path, target: Path, excluded: Sequence[str] = (), only: str | None = None) -> None:
    # onnxruntime turns every Gemm into a MatMul before it compares names
    selected: dict[str, Any] = {} if only is None else {"nodes_to_quantize": [only, f"{only}_MatMul"]}
    model = onnx.load(source)  # given a path, onnxruntime would write a file next to it
    data_file(target).unlink(missing_ok=True)
    with patch.multiple(logging, info=DEFAULT, warning=DEFAULT):  # its advice would set the root logger up
        quantize_dynamic(
            model,
            target,
            use_external_data_format=is_large(model),
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            reduce_range=True,  # 7 bits: see above
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[name for node in excluded for name in (node, f"{node}_MatMul")],
            **selected,
        )

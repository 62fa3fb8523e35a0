"""fp16 for GPUs: weights and most operators in fp16, inputs and outputs in fp32, sensitive operators in fp32.

The gate runs it on the CPU. There onnxruntime computes in fp32 what it has no fp16 kernel for, and rounds the results
to fp16, so that overflows and rounding are seen, but not the sums of a GPU's kernels.
"""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from trainer.export.conversions import Conversion
from trainer.export.onnx import save
from trainer.export.packaging import derive
from trainer.task.base import Record

SENSITIVE = (  # sums over a row, exponentials and quotients, whose values leave the range of fp16 first
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax", "ReduceMean",
    "ReduceSum", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "TopK", "CumSum", "Range",
)  # fmt: skip


def convert(conversion: Conversion) -> Record:
    """Convert all graphs. Return the result of the gate."""
    c = conversion
    for path in sorted(c.graphs.glob("*.onnx")):
        model = convert_float_to_float16(
            onnx.load(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SENSITIVE]
        )
        _remove_duplicates(model.graph)
        save(model, c.folder / path.name)
    derive(c.rows.export, c.graphs, c.folder, c.kind)
    return c.gate()


def _remove_duplicates(graph: onnx.GraphProto) -> None:
    """Keep one of the equal casts that the library adds for each reader of a tensor."""
    casts: dict[str, onnx.NodeProto] = {}
    nodes = [node for node in graph.node if node.op_type != "Cast" or casts.setdefault(node.output[0], node) is node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)

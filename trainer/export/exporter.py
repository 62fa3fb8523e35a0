"""Writing one graph: torch's exporter, what onnxruntime needs of a model before, and what a search needs added after.

Opset 23 has an Attention operator, with which int8 is a fifth to a third faster than without (docs/results.md).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from trainer.models.attention import Attention
from trainer.models.fast_attention import use_attention

OPSET = 23
LARGE = 1_900_000_000  # bytes of weights: one file of protobuf holds 2 GiB
Names = Sequence[str]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's warnings are about packages that are not needed here and about its own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def prepared(model: nn.Module, attention: str) -> nn.Module:
    """A copy with that attention; ours with masks as large as the Attention operator of onnxruntime wants them."""

    def expand(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, mask = inputs
        return query, key, value, None if mask is None else mask.expand(-1, -1, query.shape[2], -1)

    ready = copy.deepcopy(model).eval()
    trunk = getattr(ready, "trunk", ready)
    if hasattr(trunk, "set_attn_implementation"):
        use_attention(trunk, attention)
    for module in ready.modules():
        if isinstance(module, Attention):
            module.kind = attention  # type: ignore[assignment]
            module.register_forward_pre_hook(expand)
    return ready


def untie(model: nn.Module) -> None:
    """Gives the output projection a matrix of its own: one that is an embedding, too, would not be quantized."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    output.weight = nn.Parameter(output.weight.detach().clone())


def write_graph(
    module: nn.Module, inputs: tuple[Any, ...], path: Path, names: Names, outputs: Names, axes: Any
) -> None:
    """Writes a graph without the notes that the exporter leaves in it: shapes that are stale once it is quantized, and
    where in the source a node came from.
    """
    torch.onnx.export(
        module.eval(),  # or the exporter sets the whole tree back to training mode
        inputs,
        str(path),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=list(outputs),
        dynamic_shapes=axes,
        external_data=False,  # of a large one it writes them beside the graph nevertheless
        verbose=False,
    )
    graph = onnx.load(path)
    del graph.graph.value_info[:]
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    save(graph, path)


def is_large(graph: onnx.ModelProto) -> bool:
    """Whether its weights need a file of their own."""
    return sum(len(weights.raw_data) for weights in graph.graph.initializer) > LARGE


def data_file(path: Path) -> Path:
    """Where the weights of a large graph stand: beside it, in `export/onnx/model.onnx.data`."""
    return path.with_name(f"{path.name}.data")


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Writes a graph, of a large one the weights into a file beside it."""
    data_file(path).unlink(missing_ok=True)  # it would be appended to
    large = is_large(graph)
    onnx.save_model(graph, path, save_as_external_data=large, location=data_file(path).name if large else None)


def add_candidates(path: Path, eos_id: int) -> None:
    """Lets the decoder choose: log_probs and ids (R, K, C) of the C = `count` likeliest tokens of each hypothesis, best
    first and of equals the smaller id, and closing (R, K), the log probability of <eos>. In numpy that took half as
    long as the decoder itself.
    """
    model = onnx.load(path)
    graph, shape = model.graph, ["batch", "beam", "candidates"]
    graph.initializer.append(helper.make_tensor("eos_id", TensorProto.INT64, [], [eos_id]))
    graph.input.append(helper.make_tensor_value_info("count", TensorProto.INT64, [1]))
    graph.node.extend(
        [
            helper.make_node("LogSoftmax", ["logits"], ["all_log_probs"], "log_probabilities", axis=-1),
            helper.make_node("TopK", ["all_log_probs", "count"], ["log_probs", "ids"], "candidates", axis=-1),
            helper.make_node("Gather", ["all_log_probs", "eos_id"], ["closing"], "closing", axis=-1),
        ]
    )
    graph.output.extend(
        [
            helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("closing", TensorProto.FLOAT, shape[:2]),
        ]
    )
    save(model, path)
    onnx.checker.check_model(path)  # of the model itself it would refuse more than 2 GiB

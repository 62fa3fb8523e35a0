"""Write one graph: prepare the model for onnxruntime, and run torch's exporter.

Opset 23 has an Attention operator, which makes int8 a fifth to a third faster (docs/results.md).
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
from torch import nn

from trainer.models.attention import Attention
from trainer.models.fast_attention import use_attention

OPSET = 23
LARGE = 1_900_000_000  # bytes of weights; a protobuf file holds at most 2 GiB
Names = Sequence[str]
Axes = dict[int, str]  # names of the dimensions that are free


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's warnings, which are about packages not needed here and its own deprecations."""
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
    """Return a copy of the model with that attention. Our own attention gets masks as large as onnxruntime requires."""

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


def write_graph(
    module: nn.Module, inputs: tuple[Any, ...], path: Path, names: Names, outputs: Names, axes: Any
) -> None:
    """Write a graph without the exporter's metadata: shapes that quantization changes, and source locations."""
    torch.onnx.export(
        module.eval(),  # otherwise the exporter sets all modules back to training mode
        inputs,
        str(path),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=list(outputs),
        dynamic_shapes=axes,
        external_data=False,  # for a large model it writes a second file nevertheless
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
    """Whether the weights need a second file."""
    return sum(len(weights.raw_data) for weights in graph.graph.initializer) > LARGE


def data_file(path: Path) -> Path:
    """Path of the weights of a large graph, such as `export/onnx/model.onnx.data`."""
    return path.with_name(f"{path.name}.data")


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph; the weights of a large one go to `data_file`."""
    data_file(path).unlink(missing_ok=True)  # an existing file would be appended to
    large = is_large(graph)
    onnx.save_model(graph, path, save_as_external_data=large, location=data_file(path).name if large else None)

"""Write an ONNX artifact: the graphs of a trained model, and all that is needed to use them without this package.

A model is exported with SDPA, which becomes one operator. If that fails, its eager attention is exported. Opset 23 has
an Attention operator, with which int8 is faster than with the operators that it stands for.
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

from trainer.artifact_kinds import KINDS, ONNX
from trainer.errors import GateError
from trainer.export.packaging import write_program
from trainer.export.task_export import TaskExport
from trainer.models.attention import Attention
from trainer.models.fast_attention import use_attention

OPSET = 23
LARGE = 1_900_000_000  # bytes of weights; a protobuf file holds at most 2 GiB
Names = Sequence[str]
Axes = dict[int, str]  # names of the dimensions that are free


def write_artifact(export: TaskExport, model: nn.Module, folder: Path) -> None:
    """Write graphs in fp32, and what `write_program` writes.

    Args:
        export: of the task, with a program.
        model: trained, on the CPU; it is not changed.
        folder: exists and is empty.

    Raises:
        GateError: the model cannot be exported.
    """
    assert export.program is not None
    errors: dict[str, Exception] = {}
    for attention in ("sdpa", "eager"):
        ready = prepared(model, attention)
        used = getattr(getattr(getattr(ready, "trunk", ready), "config", None), "_attn_implementation", attention)
        if used in errors:  # an architecture with only one implementation
            continue
        try:
            with quiet():
                export.write_graphs(ready, folder)
            break
        except Exception as error:  # any error of the exporter with an architecture
            errors[used] = error
    else:
        *_, last = errors.values()
        why = str(last).strip().partition("\n")[0]
        raise GateError(
            f"{type(model).__name__} cannot be exported to ONNX: {why}; set export.onnx=false export.int8=false"
        ) from last
    write_program(export, model, folder, KINDS[ONNX])


# -- graphs ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's warnings, which are about packages not needed here and its own deprecations."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings(), torch.no_grad():
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


def prepared(model: nn.Module, attention: str) -> nn.Module:
    """Return a copy of the model with that attention. Our own attention gets masks as large as onnxruntime requires."""

    def expand(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, mask, *rest = inputs
        return query, key, value, None if mask is None else mask.expand(-1, -1, query.shape[2], -1), *rest

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

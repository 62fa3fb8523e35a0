"""ONNX graphs of a trained model, and beside them everything that is needed to use them without this package.

    classification   model.onnx: input_ids, attention_mask (, token_type_ids) (B, T) int64 -> logits (B, classes)
    translation      encoder.onnx: src (R, S) int64 -> the source's keys and values of every decoder layer (R, H, S, D)
                     decoder.onnx: one position of every hypothesis, with the cache in and out; see `DecoderGraph`

Batch, lengths and beam are free. Opset 23 has an Attention operator, with which int8 is a fifth to a third faster than
without (docs/results.md), so a model is exported with SDPA; one that cannot be, with its eager attention.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from trainer.errors import GateError
from trainer.models.attention import MASKED, Attention
from trainer.models.pretrained import use_attention
from trainer.models.transformer import Cache, LayerCache, Transformer
from trainer.rundir import write_json
from trainer.tasks.base import Task

OPSET = 23
PROGRAM = Path(__file__).with_name("run.py")
TASKS = ("classification", "translation")  # those whose models can be exported

Names = Sequence[str]
Axes = dict[int, str]


class ClassifierGraph(nn.Module):
    """The logits alone, from inputs by position."""

    def __init__(self, model: nn.Module, names: Names) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return getattr(found, "logits", found)


class EncoderGraph(nn.Module):
    """src (R, S) -> key and value (R, H, S, D) of the source for every decoder layer."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor) -> tuple[Tensor, ...]:
        cache = self.model.start_decoding(self.model.encode(src), src)
        return tuple(tensor for layer in cache.layers for tensor in layer.source)


class DecoderGraph(nn.Module):
    """The next position of R rows with K hypotheses each.

    tokens (R, K), parents (R, K): hypothesis k of row r continues what was number parents[r, k] of the N before. So a
    beam is reordered, and rows that have finished leave, without a copy outside the graph. source_mask (R, S),
    1 = token, all int64; source: keys and values (R, H, S, D); target: keys and values so far (N, H, t, D).
    Gives logits (R, K, V), and keys and values (R * K, H, t + 1, D).
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, parents: Tensor, source_mask: Tensor, source: list[Tensor], target: list[Tensor]
    ) -> tuple[Tensor, ...]:
        moved = [tensor.index_select(0, parents.flatten()) for tensor in target]
        pairs = zip(zip(source[::2], source[1::2], strict=True), zip(moved[::2], moved[1::2], strict=True), strict=True)
        layers = [LayerCache(from_source, from_target) for from_source, from_target in pairs]
        cache = Cache(layers, (source_mask[:, None, None, :] == 0) * MASKED, target[0].shape[2])
        logits = self.model.decode_step(tokens.flatten()[:, None], cache).view(*tokens.shape, -1)
        grown = [tensor for layer in layers if layer.target is not None for tensor in layer.target]
        return (logits, *grown)


def write_artifact(task: Task, model: nn.Module, folder: Path) -> None:
    """Graphs in fp32, tokenizer.json, settings.json and run.py.

    Args:
        task: with the recipe and the tokenizer; one of `TASKS`.
        model: trained, on the CPU; it is left as it is.
        folder: exists and is empty.

    Raises:
        GateError: the model cannot be exported.
    """
    export = {"classification": _export_classifier, "translation": _export_translator}[task.kind]
    for attention in ("sdpa", "eager"):
        try:
            with _quiet():
                export(task, _prepared(model, attention), folder)
            break
        except Exception as error:  # whatever the exporter meets in an architecture
            reason = error
    else:
        why = str(reason).strip().partition("\n")[0]
        raise GateError(
            f"{type(model).__name__} cannot be exported to ONNX: {why}; set export.onnx=false export.int8=false"
        ) from reason
    tokenizer = task.tokenizer.backend_tokenizer
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "settings.json", settings(task))
    shutil.copyfile(PROGRAM, folder / PROGRAM.name)


def settings(task: Task) -> dict[str, Any]:
    """What run.py needs besides graphs and tokenizer."""
    recipe: Any = task.recipe
    tokenizer, evaluation = task.tokenizer, recipe.evaluation
    shared = {
        "format": 1,
        "name": recipe.name,
        "task": task.kind,
        "cleaning": recipe.data.cleaning,
        "max_length": recipe.data.max_length,
        "pad_id": int(tokenizer.pad_token_id),
        "tokens_per_batch": evaluation.tokens_per_batch,
        "one_by_one": False,
        "pair": False,
    }
    if task.kind == "translation":
        return shared | {
            "bos_id": int(tokenizer.bos_token_id),
            "eos_id": int(tokenizer.eos_token_id),
            "vocab_size": len(tokenizer),
            "beam_size": evaluation.beam_size,
            "length_penalty": evaluation.length_penalty,
            "max_length_factor": evaluation.max_length_factor,
        }
    config = recipe.task
    return shared | {
        "pair": config.pair,
        "labels": config.names,
        "layout": [list(part) for part in task.layout.parts],
        "head_share": {"head": 1.0, "tail": 0.0, "head_tail": config.head_share}[config.truncation],
        "inputs": _inputs(task),
    }


def _inputs(task: Task) -> list[str]:
    return [name for name in task.collate(task.encode(task.toy_rows[:1])) if name != "labels"]


# -- graphs ------------------------------------------------------------------------------------------------------------


def _prepared(model: nn.Module, attention: str) -> nn.Module:
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


def _export_classifier(task: Task, model: nn.Module, folder: Path) -> None:
    names = _inputs(task)
    batch = task.collate(task.encode(task.toy_rows[:2]))
    axes: Axes = {0: "batch", 1: "length"}
    inputs = tuple(batch[name] for name in names)
    _export(
        ClassifierGraph(model, names), inputs, folder / "model.onnx", names, ["logits"], (tuple(axes for _ in names),)
    )


def _export_translator(task: Task, model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Transformer)
    if model.output is None:  # a matrix of its own: one that is an embedding, too, would not be quantized
        vocabulary, width = model.embedding.weight.shape
        model.output = nn.Linear(width, vocabulary, bias=False)
        model.output.weight = nn.Parameter(model.embedding.weight.detach().clone())
    kinds = [f"{kind}_{i}" for i in range(len(model.decoder)) for kind in ("key", "value")]
    of_source, of_target = [f"source_{kind}" for kind in kinds], [f"target_{kind}" for kind in kinds]
    src = task.collate(task.encode(task.toy_rows[:2]))["src"]
    encoder = EncoderGraph(model)
    _export(encoder, (src,), folder / "encoder.onnx", ["src"], of_source, ({0: "batch", 1: "source"},))

    with torch.no_grad():
        source = list(encoder(src))
    beam, so_far = 3, 5
    (rows, heads, _, size), wide = source[0].shape, {0: "batch", 1: "beam"}
    tokens = torch.full((rows, beam), int(task.tokenizer.bos_token_id))
    target = [torch.zeros(rows * beam + 1, heads, so_far, size) for _ in of_target]
    _export(
        DecoderGraph(model),
        (tokens, torch.arange(rows * beam).view(rows, beam), torch.ones_like(src), source, target),
        folder / "decoder.onnx",
        ["tokens", "parents", "source_mask", *of_source, *of_target],
        ["logits", *(f"new_{name}" for name in of_target)],
        (
            wide,
            wide,
            {0: "batch", 1: "source"},
            [{0: "batch", 2: "source"} for _ in of_source],
            [{0: "hypotheses", 2: "length"} for _ in of_target],
        ),
    )
    _add_candidates(folder / "decoder.onnx", int(task.tokenizer.eos_token_id))


def _export(module: nn.Module, inputs: tuple[Any, ...], path: Path, names: Names, outputs: Names, axes: Any) -> None:
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
        external_data=False,
        verbose=False,
    )
    graph = onnx.load(path)
    del graph.graph.value_info[:]
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(graph, path)


def _add_candidates(path: Path, eos_id: int) -> None:
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
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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

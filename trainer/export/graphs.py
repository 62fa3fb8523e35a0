"""The graphs of each kind of program: which inputs and outputs they have, and which of their sizes are free.

    classification   model.onnx: input_ids, attention_mask (, token_type_ids) (B, T) int64 -> logits (B, classes)
    translation      encoder.onnx: src (R, S) int64 -> the source's keys and values of every decoder layer (R, H, S, D)
                     decoder.onnx: one position of every hypothesis, with the cache in and out; see `DecoderGraph`
    text_to_text     the same, and source_mask (R, S) beside src; see `trainer.export.seq2seq`
    generation       decoder.onnx: new tokens of every row, with the cache in and out; see `GeneratorGraph`

Batch, lengths and beam are free.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import GateError
from trainer.export import seq2seq
from trainer.export.exporter import Names, add_candidates, untie, write_graph
from trainer.models.attention import MASKED
from trainer.models.transformer import Cache, LayerCache, Transformer
from trainer.task.base import Task

Axes = dict[int, str]
SUBTRACTING = ("xlnet", "big_bird")  # make 1.0 - mask of it, which torch's exporter knows of floats only


class ClassifierGraph(nn.Module):
    """The logits alone, from inputs by position."""

    def __init__(self, model: nn.Module, names: Names) -> None:
        super().__init__()
        self.model, self.names = model, names
        trunk = getattr(model, "trunk", model)
        self.subtracts = getattr(getattr(trunk, "config", None), "model_type", None) in SUBTRACTING
        if _rotates(trunk):
            trunk.register_forward_pre_hook(_with_positions, with_kwargs=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        if self.subtracts:
            named["attention_mask"] = named["attention_mask"].float()
        found = self.model(**named)
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
        pairs = zip(seq2seq.pairs(source), seq2seq.pairs(moved), strict=True)
        layers = [LayerCache(from_source, from_target) for from_source, from_target in pairs]
        cache = Cache(layers, (source_mask[:, None, None, :] == 0) * MASKED, target[0].shape[2])
        logits = self.model.decode_step(tokens.flatten()[:, None], cache).view(*tokens.shape, -1)
        grown = [tensor for layer in layers if layer.target is not None for tensor in layer.target]
        return (logits, *grown)


class GeneratorGraph(nn.Module):
    """What follows T new tokens of R rows, P tokens of each being in the cache.

    input_ids, position_ids (R, T) and attention_mask (R, P + T), 1 = token, all int64; wanted (W) int64: the places
    among the T whose logits are given; past: keys and values (R, H, P, D) of each layer in turn.
    Gives logits (R, W, V), and keys and values (R, H, P + T, D).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, wanted: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        new, length = input_ids.shape[1], attention_mask.shape[1]
        # made here: as large as the Attention operator of onnxruntime wants it, and the same for any architecture
        earlier = torch.arange(length) <= torch.arange(new)[:, None] + (length - new)
        seen = (earlier[None, None] & (attention_mask[:, None, None, :] != 0)).expand(-1, 1, -1, -1)
        found = self.model(
            input_ids=input_ids,
            attention_mask=torch.where(seen, 0.0, MASKED),
            position_ids=position_ids,
            past_key_values=DynamicCache(seq2seq.pairs(past)),
            use_cache=True,
            logits_to_keep=wanted,
        )
        return (found.logits, *seq2seq.tensors(found.past_key_values))


def export_classifier(task: Task, model: nn.Module, folder: Path) -> None:
    names = input_names(task)
    batch = task.collate(task.encode(task.toy_rows[:2]))
    axes: Axes = {0: "batch", 1: "length"}
    inputs = tuple(batch[name] for name in names)
    write_graph(
        ClassifierGraph(model, names), inputs, folder / "model.onnx", names, ["logits"], (tuple(axes for _ in names),)
    )


def export_translator(task: Task, model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Transformer)
    if model.output is None:  # a matrix of its own: one that is an embedding, too, would not be quantized
        vocabulary, width = model.embedding.weight.shape
        model.output = nn.Linear(width, vocabulary, bias=False)
        model.output.weight = nn.Parameter(model.embedding.weight.detach().clone())
    src = task.collate(task.encode(task.toy_rows[:2]))["src"]
    _write_pair(task, folder, EncoderGraph(model), DecoderGraph(model), {"src": src})


def export_text_to_text(task: Task, model: nn.Module, folder: Path) -> None:
    untie(model)
    batch = task.collate(task.encode(task.toy_rows[:2]))
    read = {"src": batch["input_ids"], "source_mask": batch["attention_mask"]}
    _write_pair(task, folder, seq2seq.EncoderGraph(model), seq2seq.DecoderGraph(model), read)


def _write_pair(task: Task, folder: Path, encoder: nn.Module, decoder: nn.Module, read: dict[str, Tensor]) -> None:
    """encoder.onnx and decoder.onnx; `read`: the encoder's inputs (R, S) of a few rows."""
    src = read["src"]
    with torch.no_grad():
        source = list(encoder(*read.values()))
    kinds = [f"{kind}_{i}" for i in range(len(source) // 2) for kind in ("key", "value")]
    of_source, of_target = [f"source_{kind}" for kind in kinds], [f"target_{kind}" for kind in kinds]
    long: Axes = {0: "batch", 1: "source"}
    write_graph(encoder, tuple(read.values()), folder / "encoder.onnx", list(read), of_source, (long,) * len(read))

    beam, so_far = 3, 5
    (rows, heads, _, size), wide = source[0].shape, {0: "batch", 1: "beam"}
    tokens = torch.full((rows, beam), int(task.tokenizer.eos_token_id))
    target = [torch.zeros(rows * beam + 1, heads, so_far, size) for _ in of_target]
    write_graph(
        decoder,
        (tokens, torch.arange(rows * beam).view(rows, beam), torch.ones_like(src), source, target),
        folder / "decoder.onnx",
        ["tokens", "parents", "source_mask", *of_source, *of_target],
        ["logits", *(f"new_{name}" for name in of_target)],
        (
            wide,
            wide,
            long,
            [{0: "batch", 2: "source"} for _ in of_source],
            [{0: "hypotheses", 2: "length"} for _ in of_target],
        ),
    )
    add_candidates(folder / "decoder.onnx", int(task.tokenizer.eos_token_id))


def export_generator(task: Task, model: Any, folder: Path) -> None:
    untie(model)
    token = torch.ones(1, 1, dtype=torch.int64)
    cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
    layers = list(getattr(cache, "layers", ()))
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise GateError(f"{type(model).__name__} keeps no keys and values of its layers")
    names = [f"{kind}_{i}" for i in range(len(layers)) for kind in ("key", "value")]
    rows, new, before = 3, 4, 5
    past = [torch.zeros(rows, t.shape[1], before, t.shape[3]) for layer in layers for t in (layer.keys, layer.values)]
    positions = torch.arange(before, before + new).expand(rows, -1).contiguous()
    inputs = (token.expand(rows, new).contiguous(), torch.ones(rows, before + new, dtype=torch.int64), positions)
    fresh: Axes = {0: "batch", 1: "new"}
    write_graph(
        GeneratorGraph(model),
        (*inputs, torch.tensor([1, 3]), past),
        folder / "decoder.onnx",
        ["input_ids", "attention_mask", "position_ids", "wanted", *names],
        ["logits", *(f"new_{name}" for name in names)],
        (fresh, {0: "batch", 1: "all"}, fresh, {0: "wanted"}, [{0: "batch", 2: "past"} for _ in names]),
    )
    add_candidates(folder / "decoder.onnx", task.end_id)  # type: ignore[attr-defined]


EXPORTERS: dict[str, Callable[[Task, Any, Path], None]] = {  # by what a task calls its artifact
    "classification": export_classifier,
    "translation": export_translator,
    "text_to_text": export_text_to_text,
    "generation": export_generator,
}


def _rotates(model: nn.Module) -> bool:
    """Whether its positions are rotations that are computed from position_ids."""
    takes = "position_ids" in inspect.signature(model.forward).parameters
    return takes and any(type(module).__name__.endswith("RotaryEmbedding") for module in model.modules())


def _with_positions(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Positions of each row, as onnxruntime rotates by them, where the library has one row for all."""
    rows, length = named["input_ids"].shape
    return inputs, {**named, "position_ids": torch.arange(length).expand(rows, -1)}


def input_names(task: Task) -> list[str]:
    return [name for name in task.collate(task.encode(task.toy_rows[:1])) if name != "labels"]

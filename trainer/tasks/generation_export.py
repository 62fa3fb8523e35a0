"""Shared by the exports of tasks that generate text: graphs for a search, and the comparison of texts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from trainer.export.onnx import save
from trainer.export.parity_checks import Check, Comparison, largest_gap
from trainer.task.base import Record


class Graph(nn.Module):
    """A part of a model whose forward is exported."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def untie(model: nn.Module) -> None:
    """Give the output projection its own matrix: one shared with the embedding would not be quantized."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    output.weight = nn.Parameter(output.weight.detach().clone())


def add_candidates(path: Path, eos_id: int) -> None:
    """Add the choice of candidates to a decoder: in numpy it took half as long as the decoder itself.

    Outputs: log_probs and ids (R, K, C) of the C = `count` most probable tokens of each hypothesis, best first, ties
    by the smaller id; closing (R, K), the log probability of <eos>.
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
    onnx.checker.check_model(path)  # by path: a model in memory may have at most 2 GiB


def layers(flat: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Group a list of keys and values into the pair of each layer."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def tensors(cache: Any) -> list[torch.Tensor]:
    """Return keys and values of a cache of the transformers library in one list."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def compare_texts(comparison: Comparison) -> tuple[Check, list[Record]]:
    """Check how many predicted texts are the same, over the rows for which the weights predicted one."""
    c = comparison
    pairs = [(row.answer, answer) for row, answer in zip(c.rows, c.answers, strict=True)]
    gaps = [_distance(a["prediction"], b["prediction"]) if "prediction" in a else 0.0 for a, b in pairs]
    pairs = [(ours, theirs) for ours, theirs in pairs if "prediction" in ours]
    share = sum(ours["prediction"] == theirs["prediction"] for ours, theirs in pairs) / len(pairs)
    limit = c.limits.identical if c.exact else None
    check = {
        "passed": limit is None or share >= limit,
        "share": share,
        "limit": limit,
        "texts": len(pairs),
        "largest_score_difference": max(largest_gap(ours["score"], theirs["score"]) for ours, theirs in pairs),
    }
    return check, c.worst_rows(gaps, "prediction")


def _distance(a: str, b: str) -> float:
    """0 for equal texts, 1 for texts with no common word."""
    return 1 - difflib.SequenceMatcher(None, a.split(), b.split()).ratio() if a != b else 0.0

"""Export classifiers: one graph of the logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, arange, nn

from trainer.export.artifact import Array
from trainer.export.onnx import Names, write_graph
from trainer.export.parity_checks import Check, Comparison, largest_gap
from trainer.export.task_export import TaskExport
from trainer.models.families import family_of
from trainer.task.base import Example, Record
from trainer.tasks.classification.program import Classifier

TARGETS = ("labels", "weights")  # in a batch, but no input of the model


class ClassifierGraph(nn.Module):
    """input_ids, attention_mask (, token_type_ids) (B, T) int64, by position -> logits (B, classes)"""

    def __init__(self, model: nn.Module, names: Names) -> None:
        super().__init__()
        self.model, self.names = model, names
        trunk = getattr(model, "trunk", model)
        self.float_mask = family_of(getattr(trunk, "config", None)).subtracts_mask
        if _rotates(trunk):
            trunk.register_forward_pre_hook(_with_positions, with_kwargs=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        if self.float_mask:
            named["attention_mask"] = named["attention_mask"].float()
        output = self.model(**named)
        return getattr(output, "logits", output)


def _rotates(model: nn.Module) -> bool:
    """Whether it computes rotary positions from position_ids."""
    takes = "position_ids" in inspect.signature(model.forward).parameters
    return takes and any(type(module).__name__.endswith("RotaryEmbedding") for module in model.modules())


def _with_positions(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Pass positions for each row, which onnxruntime needs; the library passes one row for all."""
    rows, length = named["input_ids"].shape
    return inputs, {**named, "position_ids": arange(length).expand(rows, -1)}


class ClassificationExport(TaskExport):
    program = Classifier
    program_name = "classification"
    beams = (1,)
    compiles = True
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    def write_graphs(self, model: Any, folder: Path) -> None:
        names, batch = self._inputs, self.task.collate(self.task.encode(self.task.toy_rows[:2]))
        axes = tuple({0: "batch", 1: "length"} for _ in names)
        inputs = tuple(batch[name] for name in names)
        write_graph(ClassifierGraph(model, names), inputs, folder / "model.onnx", names, ["logits"], (axes,))

    @property
    def _inputs(self) -> list[str]:
        return [name for name in self.task.collate(self.task.encode(self.task.toy_rows[:1])) if name not in TARGETS]

    def settings(self, model: Any) -> dict[str, Any]:
        config = self.task.settings
        return {
            "pair": config.pair,
            "labels": config.names,
            "layout": [list(part) for part in self.task.layout.parts],
            "head_share": {"head": 1.0, "tail": 0.0, "head_tail": config.head_share}[config.truncation],
            "inputs": self._inputs,
            **({} if self.task.decision is None else {"decision": list(self.task.decision)}),
        }

    def encoded(self, example: Example) -> tuple[list[int], ...]:
        return example["input_ids"], example.get("token_type_ids", [0] * len(example["input_ids"]))

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        return list(artifact.logits([self.encoded(example) for example in examples]))

    def stock_reads(self, example: Example) -> bool:
        """Stock tokenizers cut pairs in another way, and no text in the middle."""
        settings = self.task.settings
        cut = len(example["input_ids"]) >= self.task.recipe.data.max_length
        return not cut or (settings.truncation != "head_tail" and not settings.pair)

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """An exact artifact may change the class only of rows whose best two classes are within the margin."""
        c, margin = comparison, comparison.limits.margin
        gaps, certain = [], []
        for row, answer in zip(c.rows, c.answers, strict=True):
            certain.append(self._distance(list(row.answer["probabilities"].values())) > margin)
            gaps.append(largest_gap(answer["probabilities"][row.answer["label"]], row.answer["confidence"]))
        ours, theirs = ([a["label"] for a in answers] for answers in ([row.answer for row in c.rows], c.answers))
        differ = np.array(ours) != np.array(theirs)
        classes = c.decisions(differ, np.array(certain), "rows", largest_probability_difference=max(gaps))
        accuracy = c.accuracy("label", None if c.exact else c.limits.int8_accuracy)
        return {"classes": classes, "accuracy": accuracy}, c.worst_rows(gaps, "label")

    def _distance(self, probabilities: list[float]) -> float:
        """Return how far the probabilities of a row are from another class."""
        if self.task.decision is not None:
            number, threshold = self.task.decision
            return abs(probabilities[number] - threshold)
        first, second = sorted(probabilities, reverse=True)[:2]
        return first - second

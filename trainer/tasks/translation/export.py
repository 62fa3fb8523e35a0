"""Export translation models; see `trainer.tasks.pairs_export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from trainer.models.attention import MASKED
from trainer.models.transformer import Cache, LayerCache
from trainer.task.base import Batch, Example
from trainer.tasks.generation_export import Graph, layers
from trainer.tasks.pairs_export import PairsExport


class EncoderGraph(Graph):
    def forward(self, src: Tensor) -> tuple[Tensor, ...]:
        cache = self.model.start_decoding(self.model.encode(src), src)
        return tuple(tensor for layer in cache.layers for tensor in layer.source)


class DecoderGraph(Graph):
    def forward(
        self, tokens: Tensor, parents: Tensor, source_mask: Tensor, source: list[Tensor], target: list[Tensor]
    ) -> tuple[Tensor, ...]:
        moved = [tensor.index_select(0, parents.flatten()) for tensor in target]
        pairs = zip(layers(source), layers(moved), strict=True)
        caches = [LayerCache(from_source, from_target) for from_source, from_target in pairs]
        cache = Cache(caches, (source_mask[:, None, None, :] == 0) * MASKED, target[0].shape[2])
        logits = self.model.decode_step(tokens.flatten()[:, None], cache).view(*tokens.shape, -1)
        return (logits, *(tensor for layer in caches if layer.target is not None for tensor in layer.target))


class TranslationExport(PairsExport):
    program_name = "translation"

    def graphs(self, model: Any, batch: Batch) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        if model.output is None:  # its own matrix: one shared with the embedding would not be quantized
            vocabulary, width = model.target_table.weight.shape
            model.output = nn.Linear(width, vocabulary, bias=False)
            model.output.weight = nn.Parameter(model.target_table.weight.detach().clone())
        return EncoderGraph(model), DecoderGraph(model), {"src": batch["src"]}

    def settings(self, model: Any) -> dict[str, Any]:
        task = self.task
        return super().settings(model) | {
            "before": [],
            "after": [task.eos_id],
            "prefix_length": 0,
            "longest": task.recipe.data.max_length - 1,
            "start_id": task.bos_id,
            "banned": [token for token in (task.bos_id, task.pad_id) if token != task.eos_id],
        }

    def encoded(self, example: Example) -> tuple[list[int], ...]:
        return (example["src"],)

    def labels(self, example: Example) -> list[int]:
        return self.task.closed(example)

    def stock_limits(self, examples: Sequence[Example]) -> dict[int, int]:
        factor, most = self.task.recipe.evaluation.max_length_factor, self.task.recipe.data.max_length - 1
        return {i: min(int(len(example["src"]) * factor + 10), most) for i, example in enumerate(examples)}

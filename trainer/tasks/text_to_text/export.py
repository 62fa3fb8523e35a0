"""Export encoder-decoders of the transformers library; see `trainer.tasks.pairs_export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from trainer.models.attention import MASKED
from trainer.task.base import Batch, Example
from trainer.tasks.generation_export import Graph, layers, tensors, untie
from trainer.tasks.pairs_export import PairsExport


class EncoderGraph(Graph):
    def forward(self, src: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        mask, cache = _additive(source_mask), EncoderDecoderCache(DynamicCache(), DynamicCache())
        square = mask.expand(-1, -1, src.shape[1], -1)  # as large as onnxruntime's Attention operator requires
        memory = self.model.get_encoder()(input_ids=src, attention_mask=square).last_hidden_state
        # of this step the graph keeps only what computes the source's keys and values
        self.model.get_decoder()(
            input_ids=src[:, :1],
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return tuple(tensors(cache.cross_attention_cache))


class DecoderGraph(Graph):
    def forward(
        self, tokens: Tensor, parents: Tensor, source_mask: Tensor, source: list[Tensor], target: list[Tensor]
    ) -> tuple[Tensor, ...]:
        beam, (rows, length) = tokens.shape[1], source_mask.shape
        moved = [tensor.index_select(0, parents.flatten()) for tensor in target]
        read, mask = [_per_hypothesis(tensor, beam) for tensor in source], _per_hypothesis(_additive(source_mask), beam)
        cache = EncoderDecoderCache(DynamicCache(layers(moved)), DynamicCache(layers(read)))
        output = self.model(
            decoder_input_ids=tokens.flatten()[:, None],
            decoder_attention_mask=mask.new_zeros(1).expand(rows * beam, 1, 1, target[0].shape[2] + 1),
            encoder_outputs=(mask.new_zeros(1).expand(rows * beam, length, 1),),  # keys and values are in the cache
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return (output.logits.view(*tokens.shape, -1), *tensors(cache.self_attention_cache))


def _additive(mask: Tensor) -> Tensor:
    """(R, S), 1 = token -> (R, 1, 1, S), added to attention scores: the same for any architecture."""
    return torch.where(mask[:, None, None, :] != 0, 0.0, MASKED)


def _per_hypothesis(tensor: Tensor, beam: int) -> Tensor:
    """(R, …) -> (R * K, …)"""
    return tensor[:, None].expand(-1, beam, *([-1] * (tensor.ndim - 1))).flatten(0, 1)


class TextToTextExport(PairsExport):
    program_name = "text_to_text"

    def graphs(self, model: Any, batch: Batch) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        untie(model)
        read = {"src": batch["input_ids"], "source_mask": batch["attention_mask"]}
        return EncoderGraph(model), DecoderGraph(model), read

    def settings(self, model: Any) -> dict[str, Any]:
        task = self.task
        before, after = task.around
        return super().settings(model) | {
            "prefix": task.settings.prefix,
            "before": before,
            "after": after,
            "prefix_length": task.prefix_length,
            "longest": task.target_length,
            "start_id": model.config.decoder_start_token_id,
            "banned": [] if task.pad_id == task.eos_id else [task.pad_id],
        }

    def labels(self, example: Example) -> list[int]:
        return example["labels"]

    def stock_limits(self, examples: Sequence[Example]) -> dict[int, int]:
        factor, before = self.task.recipe.evaluation.max_length_factor, self.task.prefix_length
        lengths = [len(example["input_ids"]) - before for example in examples]
        return {i: min(int(length * factor + 10), self.task.target_length) for i, length in enumerate(lengths)}

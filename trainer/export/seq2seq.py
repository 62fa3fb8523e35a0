"""The graphs of an encoder-decoder of the transformers library, with the inputs and outputs that our own has.

encoder.onnx   src, source_mask (R, S), 1 = token, int64 -> keys and values of the source of every decoder layer
decoder.onnx   one position of every hypothesis, with the cache in and out; see `DecoderGraph`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.attention import MASKED


class EncoderGraph(nn.Module):
    """src and source_mask (R, S) -> key and value (R, H, S, D) of the source for every decoder layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        model: Any = self.model
        mask, cache = _masking(source_mask), EncoderDecoderCache(DynamicCache(), DynamicCache())
        # as large as the Attention operator of onnxruntime wants it
        square = mask.expand(-1, -1, src.shape[1], -1)
        memory = model.get_encoder()(input_ids=src, attention_mask=square).last_hidden_state
        # of which the graph keeps what makes the source's keys and values
        model.get_decoder()(
            input_ids=src[:, :1], encoder_hidden_states=memory, encoder_attention_mask=mask, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return tuple(tensors(cache.cross_attention_cache))


class DecoderGraph(nn.Module):
    """The next position of R rows with K hypotheses each, as `trainer.export.graphs.DecoderGraph` describes it.

    tokens, parents (R, K), source_mask (R, S), source (R, H, S, D), target (N, H, t, D) -> logits (R, K, V), and keys
    and values (R * K, H, t + 1, D).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, parents: Tensor, source_mask: Tensor, source: list[Tensor], target: list[Tensor]
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        beam, (rows, length) = tokens.shape[1], source_mask.shape
        moved = [tensor.index_select(0, parents.flatten()) for tensor in target]
        read, mask = [_of_each(tensor, beam) for tensor in source], _of_each(_masking(source_mask), beam)
        cache = EncoderDecoderCache(DynamicCache(pairs(moved)), DynamicCache(pairs(read)))
        found = self.model(
            decoder_input_ids=tokens.flatten()[:, None],
            decoder_attention_mask=mask.new_zeros(1).expand(rows * beam, 1, 1, target[0].shape[2] + 1),
            encoder_outputs=(mask.new_zeros(1).expand(rows * beam, length, 1),),  # its keys and values are in the cache
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits.view(*tokens.shape, -1), *tensors(cache.self_attention_cache))


def _masking(mask: Tensor) -> Tensor:
    """(R, S), 1 = token -> (R, 1, 1, S), added to scores: the same for any architecture."""
    return torch.where(mask[:, None, None, :] != 0, 0.0, MASKED)


def _of_each(tensor: Tensor, beam: int) -> Tensor:
    """(R, …) -> (R * K, …): a row for each of its hypotheses."""
    return tensor[:, None].expand(-1, beam, *([-1] * (tensor.ndim - 1))).flatten(0, 1)


def pairs(flat: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The key and value of each layer, from one list of all."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def tensors(cache: Any) -> list[Tensor]:
    """Keys and values of a cache of the transformers library, in one list."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]

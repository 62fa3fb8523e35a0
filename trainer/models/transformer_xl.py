"""Transformer-XL (Dai et al. 2019, https://arxiv.org/abs/1901.02860): relative positions and a memory of the past.

Shapes: B rows, T positions of a segment, P positions of the memory before it, S = P + T, L layers, M = d_model, H heads
of D = M / H, V vocabulary. The memory holds the inputs of every layer for the segment before, without a gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.attention import MASKED, Attention, eager_attention, initialise, sinusoids
from trainer.models.dropout import Dropout
from trainer.models.output_layer import output_logits
from trainer.models.transformer import Layer, run_layer

if TYPE_CHECKING:
    from trainer.models.configs import TransformerXLConfig


def relative_shift(by_distance: Tensor) -> Tensor:
    """(…, T, S), column m for distance S - 1 - m, -> (…, T, S), column j for key j, as the paper's appendix B does it.

    Row i moves to the left by T - 1 - i. Columns that enter on the right belong to later keys and have to be masked.
    """
    t, s = by_distance.shape[-2:]
    padded = F.pad(by_distance, (1, 0))  # with one more column, read as S + 1 rows, each row starts one later
    return padded.reshape(*padded.shape[:-2], s + 1, t)[..., 1:, :].reshape(by_distance.shape)


class RelativeAttention(Attention):
    """Self-attention whose scores are (q + u) · k + (q + v) · W r of the distance (section 3.3), u and v by head."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__(config.d_model, config.heads, config.attention_dropout, config.attention, cross=True)
        self.distance = nn.Linear(config.d_model, config.d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(config.heads, 1, config.d_model // config.heads))
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, 1, config.d_model // config.heads))

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor, distances: Tensor, mask: Tensor
    ) -> Tensor:
        """x (B, T, M) asks context (B, S, M), which ends with x; distances (S, M) of S - 1 … 0, mask (B, 1, T, S) ->
        (B, T, M)."""
        q, (k, v) = self.queries(x), self.keys_values(context)
        r = self.distance(distances).view(len(distances), self.heads, -1)
        scale = q.shape[-1] ** -0.5
        by_distance = torch.einsum("bhtd,shd->bhts", q + self.distance_bias.to(q.dtype), r)
        places = torch.add(mask.to(by_distance.dtype), relative_shift(by_distance), alpha=scale)
        y = eager_attention(q + self.content_bias.to(q.dtype), k, v, places, scale, self.dropout)
        return self.output(y.transpose(1, 2).flatten(2))


class RecurrentLayer(Layer):
    """Relative attention to the memory and the segment, and feed-forward."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__(config, RelativeAttention(config))

    def forward(self, x: Tensor, memory: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, M), memory (B, P, M), distances (S, M), mask (B, 1, T, S) -> (B, T, M)."""

        def attend(y: Tensor) -> Tensor:
            past = self.attention_norm(memory) if self.pre_norm else memory
            return self.attention(y, torch.cat([past, y], 1), distances, mask)

        x = self.residual(x, self.attention_norm, attend)
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


class TransformerXL(nn.Module):
    """Decoder for `vocab_size` tokens and segments of any length; embedding and output projection are one matrix."""

    def __init__(self, config: TransformerXLConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(RecurrentLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        initialise(self)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Tensor, position_ids: Tensor, memory: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """The logits of a segment, and the memory for the next one.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64, the number of earlier tokens that a token attends to, in the segment or in
                the memory. So a document that starts at 0 attends to nothing before it.
            memory: (B, L, P, M), P may be 0.
            keep: most positions of the returned memory.

        Returns:
            logits (B, T, V) and memory (B, L, min(keep, S), M), which has no gradient.
        """
        past, length = memory.shape[2], input_ids.shape[1]
        keys = torch.arange(past + length, device=input_ids.device)
        distance = keys[past:, None] - keys
        seen = (distance >= 0) & (distance <= position_ids[..., None])
        mask = torch.where(seen, 0.0, MASKED)[:, None]
        x = self.embedding(input_ids)
        memory = memory.to(x.dtype)
        waves = sinusoids(past + length, x.shape[-1]).flip(0).to(x.device, x.dtype)
        x, waves = self.dropout(x * math.sqrt(x.shape[-1])), self.dropout(waves)
        begin = past + length - min(keep, past + length)
        kept = []
        for number, layer in enumerate(self.layers):
            before = memory[:, number]
            kept.append(torch.cat([before, x.detach()], 1)[:, begin:])
            x = run_layer(layer, x, before, waves, mask)
        return output_logits(self.norm(x), self.embedding.weight), torch.stack(kept, 1)

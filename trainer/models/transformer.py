"""The encoder-decoder Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

Shapes: B rows, S source and T target positions, M = d_model, H heads of D = M / H, V vocabulary, K hypotheses per row.
Padding stands at the end of a row, never before its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.errors import UsageError
from trainer.models.dropout import Dropout

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainer.models.configs import TransformerConfig

MASKED = -1e9  # finite: a row of nothing but padding gives uniform attention, not NaN


def sinusoids(length: int, d_model: int) -> Tensor:
    """Position encodings (length, M) fp32: sine on even, cosine on odd features, wavelengths 2π to 10000·2π."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
    table = torch.zeros(length, d_model)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: d_model // 2])
    return table


class Attention(nn.Module):
    """Multi-head attention. Self-attention projects queries, keys and values at once, cross-attention keys and values."""

    def __init__(self, config: TransformerConfig, cross: bool) -> None:
        super().__init__()
        d = config.d_model
        self.heads, self.head_dim, self.kind = config.heads, d // config.heads, config.attention
        if cross:
            self.query, self.key_value = nn.Linear(d, d), nn.Linear(d, 2 * d)
        else:
            self.query_key_value = nn.Linear(d, 3 * d)
        self.output = nn.Linear(d, d)
        self.dropout = Dropout(config.attention_dropout)

    def project(self, linear: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, T, M) -> n tensors (B, H, T, D), where the linear layer gives n * M features."""
        y = linear(x)
        y = y.view(*y.shape[:2], -1, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return y.contiguous().unbind(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, D), k and v (B, H, S, D), additive mask broadcastable to (B, H, T, S) -> (B, T, M)."""
        if self.use_eager(q):
            scores = torch.matmul(q, k.transpose(-2, -1)).float() * self.head_dim**-0.5
            if mask is not None:
                scores = scores + mask
            y = torch.matmul(self.dropout(scores.softmax(-1)).to(v.dtype), v)
        else:
            p = self.dropout.p if self.training else 0.0
            mask = None if mask is None else mask.to(q.dtype)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.output(y.transpose(1, 2).flatten(2))

    def use_eager(self, q: Tensor) -> bool:
        if self.kind == "auto":
            return q.device.type == "cpu"
        return self.kind == "eager"


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.d_model)
        self.activation = F.gelu if config.activation == "gelu" else F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.activation(self.inner(x)))


class _Layer(nn.Module):
    """What the two kinds of layer share: a residual connection around each sublayer, normalised before or after it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.dropout = Dropout(config.dropout)

    def residual(self, x: Tensor, norm: nn.LayerNorm, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return self.dropout(sublayer(norm(x)), residual=x)
        return norm(self.dropout(sublayer(x), residual=x))


class EncoderLayer(_Layer):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.attention = Attention(config, cross=False)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, M), mask (B, 1, 1, S) -> (B, S, M)."""

        def attend(y: Tensor) -> Tensor:
            return self.attention.attend(*self.attention.project(self.attention.query_key_value, y), mask)

        x = self.residual(x, self.attention_norm, attend)
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


@dataclass
class LayerCache:
    """Keys and values of one decoder layer: of the source (B, H, S, D) and of the target so far (B*K, H, t, D)."""

    cross: tuple[Tensor, Tensor]
    own: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.own is not None:
            key, value = torch.cat([self.own[0], key], 2), torch.cat([self.own[1], value], 2)
        self.own = key, value
        return self.own


class DecoderLayer(_Layer):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.attention = Attention(config, cross=False)
        self.cross_attention = Attention(config, cross=True)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.cross_attention_norm = nn.LayerNorm(config.d_model)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)

    def source_keys(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (B, S, M) -> keys and values (B, H, S, D) of the source."""
        key, value = self.cross_attention.project(self.cross_attention.key_value, memory)
        return key, value

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Tensor | None,
        source_mask: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, M), memory (B, S, M) -> (B, T, M); with a cache x is (B*K, 1, M), the newest position, and no memory is needed."""
        own, cross = self.attention, self.cross_attention

        def attend(y: Tensor) -> Tensor:
            q, k, v = own.project(own.query_key_value, y)
            if cache is not None:
                k, v = cache.extend(k, v)
            return own.attend(q, k, v, mask)

        def attend_source(y: Tensor) -> Tensor:
            k, v = self.source_keys(memory) if cache is None else cache.cross
            # the K hypotheses of a row stand side by side as queries, so that its keys are not copied K times
            (q,) = cross.project(cross.query, y.view(k.shape[0], -1, y.shape[-1]))
            return cross.attend(q, k, v, source_mask).view(y.shape)

        x = self.residual(x, self.attention_norm, attend)
        x = self.residual(x, self.cross_attention_norm, attend_source)
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


@dataclass
class Cache:
    """State of a decoding under way: B rows with K hypotheses each, `length` target positions so far."""

    layers: list[LayerCache]
    source_mask: Tensor  # (B, 1, 1, S)
    length: int = 0

    def reorder(self, index: Tensor) -> None:
        """Hypothesis i continues what was hypothesis index[i]; index (B*K',) int64 may repeat or widen (K' > K)."""
        for layer in self.layers:
            if layer.own is not None:
                layer.own = layer.own[0].index_select(0, index), layer.own[1].index_select(0, index)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows (int64 indices into the B present ones) with all their hypotheses."""
        before = self.source_mask.shape[0]
        self.source_mask = self.source_mask.index_select(0, rows)
        for layer in self.layers:
            layer.cross = layer.cross[0].index_select(0, rows), layer.cross[1].index_select(0, rows)
            if layer.own is not None:
                k = layer.own[0].shape[0] // before
                hypotheses = (rows[:, None] * k + torch.arange(k, device=rows.device)).flatten()
                layer.own = layer.own[0].index_select(0, hypotheses), layer.own[1].index_select(0, hypotheses)


class Transformer(nn.Module):
    """Encoder-decoder for `vocab_size` tokens; no sequence, special tokens included, may exceed `max_length` positions.

    Args: `pad_id` marks padding in the source (the target needs no mask: causality hides what follows a position).
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int, pad_id: int, max_length: int) -> None:
        super().__init__()
        if config.d_model % config.heads:
            raise UsageError(
                f"model.d_model ({config.d_model}) is not a multiple of model.heads ({config.heads}): choose numbers that divide"
            )
        d = config.d_model
        self.pad_id, self.max_length, self.checkpointing = pad_id, max_length, False
        self.embedding = nn.Embedding(vocab_size, d)
        self.target_embedding = None if config.tied_embeddings else nn.Embedding(vocab_size, d)
        self.output = None if config.tied_embeddings else nn.Linear(d, vocab_size, bias=False)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        # pre-norm leaves the residual stream unnormalised at the end of a stack
        self.encoder_norm = nn.LayerNorm(d) if config.norm == "pre" else nn.Identity()
        self.decoder_norm = nn.LayerNorm(d) if config.norm == "pre" else nn.Identity()
        self.register_buffer("positions", sinusoids(max_length, d), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                # times sqrt(M) at the input this gives unit variance beside the sinusoids, and as the output projection logits of order 1
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def enable_activation_checkpointing(self) -> None:
        """From now on layers keep only their inputs in training and are run again in the backward pass."""
        self.checkpointing = True

    def forward(self, src: Tensor, trg_in: Tensor) -> Tensor:
        """src (B, S) and trg_in (B, T) int64 -> logits (B, T, V). Raises UsageError for more than `max_length` positions."""
        memory = self.encode(src)
        t = trg_in.shape[1]
        x = self._embed(trg_in, self.target_embedding or self.embedding)
        mask = torch.full((t, t), MASKED, device=x.device).triu(1)[None, None]
        source_mask = self._padding_mask(src)
        for layer in self.decoder:
            x = self._run(layer, x, memory, mask, source_mask)
        return self._logits(x)

    def encode(self, src: Tensor) -> Tensor:
        """src (B, S) int64 -> memory (B, S, M)."""
        x, mask = self._embed(src, self.embedding), self._padding_mask(src)
        for layer in self.encoder:
            x = self._run(layer, x, mask)
        return self.encoder_norm(x)

    def start_decoding(self, memory: Tensor, src: Tensor) -> Cache:
        """memory (B, S, M) of src (B, S) -> a cache that holds the keys and values of the source and no target yet."""
        return Cache([LayerCache(layer.source_keys(memory)) for layer in self.decoder], self._padding_mask(src))

    def decode_step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """tokens (B*K, 1) int64, the newest of each hypothesis -> logits (B*K, V) of the next; the cache grows by one position."""
        x = self._embed(tokens, self.target_embedding or self.embedding, start=cache.length)
        for layer, layer_cache in zip(self.decoder, cache.layers, strict=True):
            x = layer(x, None, None, cache.source_mask, layer_cache)
        cache.length += 1
        return self._logits(x)[:, 0]

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=True)
        return layer(*inputs)

    def _padding_mask(self, src: Tensor) -> Tensor:
        return (src == self.pad_id)[:, None, None, :] * MASKED

    def _embed(self, ids: Tensor, table: nn.Embedding, start: int = 0) -> Tensor:
        end = start + ids.shape[1]
        if end > self.max_length:
            raise UsageError(
                f"a sequence of {end} positions is longer than the model's {self.max_length} (special tokens included): "
                "raise data.max_length and train again, or shorten the text"
            )
        return self.dropout(table(ids) * math.sqrt(table.embedding_dim) + self.positions[start:end])

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x), (self.output or self.embedding).weight)

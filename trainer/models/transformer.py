"""The encoder-decoder Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

Shapes: B rows, S source and T target positions, M = d_model, H heads of D = M / H, V vocabulary, K hypotheses per row.
Padding is at the end of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from trainer.errors import UsageError
from trainer.models.attention import Attention, as_mask, causal_mask, initialise, is_eager, sinusoids, token_mask
from trainer.models.dropout import Dropout
from trainer.models.fast_linear import rerun_contexts
from trainer.models.output_layer import output_logits
from trainer.models.padding_free import Rows

if TYPE_CHECKING:
    from trainer.models.configs import LayersConfig, TransformerConfig


def _attention(config: LayersConfig, cross: bool = False) -> Attention:
    return Attention(config.d_model, config.heads, config.attention_dropout, config.attention, cross)


class FeedForward(nn.Module):
    """Two linear layers with biases, ReLU or GELU (the exact one) between them."""

    def __init__(self, config: LayersConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.d_model)
        self.activation = F.gelu if config.activation == "gelu" else torch.relu_

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, M) -> (B, T, M)."""
        return self.outer(self.activation(self.inner(x)))


class Layer(nn.Module):
    """Base of both kinds of layers: a residual connection around each sublayer, normalized before or after it.

    With `gradient_checkpointing`, a training stores the inputs only and runs the layer again in the backward pass.
    """

    gradient_checkpointing = False

    def __init__(self, config: LayersConfig, attention: Attention | None = None) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.dropout = Dropout(config.dropout)
        self.attention, self.attention_norm = attention or _attention(config), nn.LayerNorm(config.d_model)
        self.feed_forward, self.feed_forward_norm = FeedForward(config), nn.LayerNorm(config.d_model)

    def residual(self, x: Tensor, norm: nn.LayerNorm, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return self.dropout(sublayer(norm(x)), residual=x)
        return norm(self.dropout(sublayer(x), residual=x))


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, S, M), mask (B, 1, 1, S) or None for rows without padding -> (B, S, M)."""

        def attend(y: Tensor) -> Tensor:
            return self.attention(*self.attention.queries_keys_values(y), mask)

        x = self.residual(x, self.attention_norm, attend)
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


@dataclass
class LayerCache:
    """Keys and values of one decoder layer: of the source (B, H, S, D) and of the target so far (B*K, H, t, D)."""

    source: tuple[Tensor, Tensor]
    target: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position (B*K, H, 1, D) to the target, and return all of its keys and values."""
        if self.target is not None:
            key, value = torch.cat([self.target[0], key], 2), torch.cat([self.target[1], value], 2)
        self.target = key, value
        return self.target


class DecoderLayer(Layer):
    """Self-attention, attention to the encoder's output (`memory`) and feed-forward."""

    def __init__(self, config: LayersConfig) -> None:
        super().__init__(config)
        self.cross_attention, self.cross_attention_norm = _attention(config, cross=True), nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        source: Tensor | LayerCache,
        source_mask: Tensor | None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """x (B, T, M), source: the memory (B, S, M), its mask (B, 1, 1, S), mask (1, 1, T, T) -> (B, T, M).

        `causal` replaces the last mask where SDPA runs. With a cache as source x is (B*K, 1, M), the newest positions,
        and there is nothing to mask in the target.
        """
        own, cross = self.attention, self.cross_attention

        def attend(y: Tensor) -> Tensor:
            q, k, v = own.queries_keys_values(y)
            if isinstance(source, LayerCache):
                k, v = source.extend(k, v)
            return own(q, k, v, mask, causal)

        def attend_source(y: Tensor) -> Tensor:
            k, v = source.source if isinstance(source, LayerCache) else cross.keys_values(source)
            # the K hypotheses of a row are K query positions, so that its keys need not be copied K times
            q = cross.queries(y.view(k.shape[0], -1, y.shape[2]))
            return cross(q, k, v, source_mask).view(y.shape)

        x = self.residual(x, self.attention_norm, attend)
        x = self.residual(x, self.cross_attention_norm, attend_source)
        return self.residual(x, self.feed_forward_norm, self.feed_forward)


def run_layer(layer: nn.Module, *inputs: Any) -> Tensor:
    """Run a `Layer`, with activation checkpointing if it is on."""
    if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
        contexts = noop_context_fn if torch.compiler.is_compiling() else rerun_contexts
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
    return layer(*inputs)


@dataclass
class Cache:
    """State of a search: B rows with K hypotheses each, and `length` target positions so far."""

    layers: list[LayerCache]
    source_mask: Tensor | None  # (B, 1, 1, S)
    length: int = 0

    def reorder(self, index: Tensor) -> None:
        """Hypothesis i continues what was hypothesis index[i]; index (B*K') int64, where K' may differ from K."""
        for layer in self.layers:
            if layer.target is not None:
                layer.target = layer.target[0].index_select(0, index), layer.target[1].index_select(0, index)

    def select(self, rows: Tensor) -> None:
        """Keep these rows (int64) with all their hypotheses."""
        before, target = self.layers[0].source[0].shape[0], self.layers[0].target
        self.source_mask = None if self.source_mask is None else self.source_mask.index_select(0, rows)
        for layer in self.layers:
            layer.source = layer.source[0].index_select(0, rows), layer.source[1].index_select(0, rows)
        if target is not None:
            each = torch.arange(target[0].shape[0] // before, device=rows.device)
            self.reorder((rows[:, None] * len(each) + each).flatten())


class Transformer(nn.Module):
    """Encoder-decoder for `vocab_size` tokens and sequences of at most `max_length` positions, special tokens included.

    Target texts may have another number of tokens, `target_vocab_size`, unless one matrix embeds both sides. `pad_id`
    marks padding in the source; the target needs no mask, since a position attends only to those before it.
    """

    positions: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        pad_id: int,
        max_length: int,
        target_vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        d, tied, targets = config.d_model, config.tied_embeddings, target_vocab_size or vocab_size
        self.pad_id, self.max_length, self.kind = pad_id, max_length, config.attention
        self.embedding = nn.Embedding(vocab_size, d)
        self.target_embedding = None if tied is True else nn.Embedding(targets, d)
        self.output = None if tied else nn.Linear(d, targets, bias=False)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        # with pre-norm the sum of the sublayers of a stack is not normalized
        self.encoder_norm = nn.LayerNorm(d) if config.norm == "pre" else nn.Identity()
        self.decoder_norm = nn.LayerNorm(d) if config.norm == "pre" else nn.Identity()
        self.register_buffer("positions", sinusoids(max_length, d), persistent=False)
        initialise(self)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    @property
    def target_table(self) -> nn.Embedding:
        """The embedding of target tokens. It is the output projection, too, unless that has its own matrix."""
        return self.target_embedding or self.embedding

    def forward(
        self, src: Tensor, trg_in: Tensor, unpadded: Tensor | None = None, rows: tuple[Rows, Rows] | None = None
    ) -> Tensor:
        """src (B, S) and trg_in (B, T) int64 -> logits (B, T, V).

        Args:
            unpadded: of any value; given if no row of `src` has padding. Its presence is known without the device.
            rows: of `src` and `trg_in`, which are concatenated. Logits are then (1, N, V) for the N target tokens.

        Raises:
            UsageError: more than `max_length` positions.
        """
        if rows is not None:
            return self._concatenated(src, trg_in, *rows)
        source_mask = self._source_mask(src, unpadded)
        memory = self._encode(self._embed(src, self.embedding), source_mask)
        causal = not is_eager(self.kind, src.device)
        mask = None if causal else causal_mask(trg_in.shape[1], src.device)
        return self._decode(self._embed(trg_in, self.target_table), memory, source_mask, mask, causal)

    def _concatenated(self, src: Tensor, trg_in: Tensor, source: Rows, target: Rows) -> Tensor:
        eager = is_eager(self.kind, src.device)
        memory = self._encode(self._embed_rows(src, self.embedding, source), as_mask(source.mask(), eager))
        x = self._embed_rows(trg_in, self.target_table, target)
        across, mask = as_mask(target.mask(source), eager), as_mask(target.mask(causal=True), eager)
        return self._decode(x, memory, across, mask, causal=False)

    def _decode(
        self, x: Tensor, memory: Tensor, source_mask: Tensor | None, mask: Tensor | None, causal: bool
    ) -> Tensor:
        for layer in self.decoder:
            x = run_layer(layer, x, memory, source_mask, mask, causal)
        return self._logits(x)

    def encode(self, src: Tensor) -> Tensor:
        """src (B, S) int64 -> memory (B, S, M)."""
        return self._encode(self._embed(src, self.embedding), self._source_mask(src))

    def _encode(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.encoder:
            x = run_layer(layer, x, mask)
        return self.encoder_norm(x)

    def _source_mask(self, src: Tensor, unpadded: Tensor | None = None) -> Tensor | None:
        return None if unpadded is not None else token_mask(src != self.pad_id, is_eager(self.kind, src.device))

    def start_decoding(self, memory: Tensor, src: Tensor) -> Cache:
        """memory (B, S, M) of src (B, S) -> a cache that holds the source's keys and values and no target yet."""
        layers = []
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            key, value = layer.cross_attention.keys_values(memory)
            layers.append(LayerCache((key.contiguous(), value.contiguous())))
        return Cache(layers, self._source_mask(src))

    def decode_step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """The newest tokens (B*K, 1) int64 -> logits (B*K, V) of the next ones; the cache grows by one position."""
        x = self._embed(tokens, self.target_table, start=cache.length)
        for layer, layer_cache in zip(self.decoder, cache.layers, strict=True):
            x = layer(x, layer_cache, cache.source_mask)
        cache.length += 1
        return self._logits(x)[:, 0]

    def _embed(self, ids: Tensor, table: nn.Embedding, start: int = 0) -> Tensor:
        end = start + ids.shape[1]
        if end > self.max_length:
            raise UsageError(
                f"{end} positions, special tokens included, are more than the {self.max_length} of this model: "
                "raise data.max_length and train again, or shorten the text"
            )
        return self._placed(table(ids), self.positions[start:end])

    def _embed_rows(self, ids: Tensor, table: nn.Embedding, rows: Rows) -> Tensor:
        return self._placed(table(rows.flat(ids)), self.positions.index_select(0, rows.columns))

    def _placed(self, embedded: Tensor, positions: Tensor) -> Tensor:
        # half precision if the engine has half weights; the positions are fp32
        scaled = torch.add(positions.to(embedded.dtype), embedded, alpha=math.sqrt(embedded.shape[-1]))
        return self.dropout(scaled)

    def _logits(self, x: Tensor) -> Tensor:
        return output_logits(self.decoder_norm(x), (self.output or self.target_table).weight)

"""A BERT-style encoder from scratch (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

The encoder layers of the Transformer with sinusoidal positions, and linear biases (ALiBi) on request.
Shapes: B rows, T positions, M = d_model, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.models.attention import alibi, as_mask, initialise, is_eager, sinusoids, token_mask
from trainer.models.dropout import Dropout
from trainer.models.output_layer import output_logits
from trainer.models.transformer import EncoderLayer, run_layer

if TYPE_CHECKING:
    from trainer.models.configs import EncoderConfig


class Encoder(nn.Module):
    """Token ids to hidden states, for `vocab_size` tokens and at most `max_length` positions."""

    positions: Tensor

    def __init__(self, config: EncoderConfig, vocab_size: int, max_length: int) -> None:
        super().__init__()
        d = config.d_model
        self.max_length, self.kind = max_length, config.attention
        self.alibi_heads = config.heads if config.positions == "alibi" else 0
        self.embedding = nn.Embedding(vocab_size, d)
        self.type_embedding = nn.Embedding(2, d)
        self.dropout, self.word_dropout = Dropout(config.dropout), Dropout(config.word_dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d) if config.norm == "pre" else nn.Identity()
        self.register_buffer("positions", sinusoids(max_length, d), persistent=False)
        initialise(self)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids, attention_mask (1 = token; None: no row has padding) and types (B, T) int64 -> (B, T, M).

        A mask may be Boolean (1, 1, T, T), too, for concatenated rows with `position_ids` (1, T).

        Raises:
            UsageError: more than `max_length` positions.
        """
        length = input_ids.shape[1]
        if position_ids is None and length > self.max_length:
            raise UsageError(f"{length} positions are more than the {self.max_length} of this model: shorten the text")
        # without types all are of the first, as in BERT
        types = self.type_embedding.weight[0] if token_type_ids is None else self.type_embedding(token_type_ids)
        embedded = self.embedding(input_ids)
        if self.training and self.word_dropout.p:  # Iyyer et al. 2015, https://aclanthology.org/P15-1162
            embedded = embedded * self.word_dropout(torch.ones_like(embedded[..., :1]))
        embedded = embedded + types
        positions = self.positions[:length] if position_ids is None else self.positions[position_ids]
        x = self.dropout(torch.add(positions.to(embedded.dtype), embedded, alpha=math.sqrt(embedded.shape[-1])))
        mask = self._mask(attention_mask, length, x.device)
        for layer in self.layers:
            x = run_layer(layer, x, mask)
        return self.norm(x)

    def _mask(self, attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor | None:
        """The mask for all layers. Biases have to be added, so that with ALiBi it is never Boolean."""
        mask, eager = None, bool(self.alibi_heads) or is_eager(self.kind, device)
        if attention_mask is not None:
            square = attention_mask.dim() == 4
            mask = as_mask(attention_mask, eager) if square else token_mask(attention_mask != 0, eager)
        if not self.alibi_heads:
            return mask
        biases = alibi(self.alibi_heads, length, device)
        return biases if mask is None else mask + biases


class MaskedLanguageModel(nn.Module):
    """Encoder, and a head that predicts masked tokens, with the embedding as its output matrix."""

    def __init__(self, config: EncoderConfig, vocab_size: int, max_length: int) -> None:
        super().__init__()
        self.trunk = Encoder(config, vocab_size, max_length)
        self.transform, self.norm = nn.Linear(config.d_model, config.d_model), nn.LayerNorm(config.d_model)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, places: Tensor) -> Tensor:
        """`places` (N) int64: masked positions in the flattened batch -> logits (N, V)."""
        hidden = self.trunk(input_ids, attention_mask).flatten(0, 1).index_select(0, places)
        return output_logits(self.norm(F.gelu(self.transform(hidden))), self.trunk.embedding.weight, self.bias)

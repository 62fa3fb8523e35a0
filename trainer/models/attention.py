"""Multi-head attention (Vaswani et al. 2017), masks, sinusoidal positions.

Shapes: B rows, T query positions, S key positions, M = d_model, H heads of D = M / H features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.dropout import Dropout
from trainer.models.explain import record

SHORT = 64  # keys: with fewer the softmax is faster in fp32 than in bf16 (both sum in fp32)
MASKED = -1e9  # finite: a row of padding only gives uniform attention, not NaN


def is_eager(kind: str, device: torch.device) -> bool:
    """Whether `Attention` of this kind runs `eager_attention`, which adds its masks. SDPA gets Boolean ones."""
    return kind == "eager" or (kind == "auto" and device.type == "cpu") or torch.compiler.is_exporting()


def padding_mask(ids: Tensor, pad_id: int) -> Tensor:
    """ids (B, S) -> (B, 1, 1, S) fp32: 0 for a token, MASKED for padding."""
    return (ids == pad_id)[:, None, None, :] * MASKED


def as_mask(attended: Tensor, eager: bool) -> Tensor:
    """A Boolean mask (True = attended) as `eager_attention` adds it if `eager`, and else as it is."""
    return torch.where(attended, 0.0, MASKED) if eager else attended


def token_mask(tokens: Tensor, eager: bool) -> Tensor:
    """tokens (B, S), True = token, padding on the right -> mask (B, 1, 1, S), added if `eager`, else Boolean.

    The first position of a Boolean mask is always True: a row of padding only gives numbers, not NaN.
    """
    if eager:
        return (~tokens)[:, None, None, :] * MASKED
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0
    return (tokens | first)[:, None, None, :]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """(1, 1, T, T) fp32: 0 for a position and those before it, MASKED for those after it."""
    return torch.full((length, length), MASKED, device=device).triu(1)[None, None]


def sinusoids(length: int, d_model: int) -> Tensor:
    """Position encodings (length, M) fp32: sine on even, cosine on odd features, wavelengths 2π to 10000·2π."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1).flatten(1)


def alibi(heads: int, length: int, device: torch.device) -> Tensor:
    """Linear biases (Press et al. 2022, https://arxiv.org/abs/2108.12409) for an encoder: (1, H, T, T) fp32, H even.

    Not symmetric, one of the variants that the authors give for encoders: of each pair of heads the first attends to a
    position and those before it, the second to it and those after it. A score falls by 1, 1/4, 1/16, … for each
    position of distance.
    """
    place = torch.arange(length, device=device, dtype=torch.float32)
    ahead = place[None, :] - place[:, None]
    sides = torch.stack([torch.where(ahead > 0, MASKED, ahead), torch.where(ahead < 0, MASKED, -ahead)])
    slopes = 0.25 ** torch.arange(heads // 2, device=device)
    return (slopes[:, None, None, None] * sides).flatten(0, 1)[None]


class Attention(nn.Module):
    """Multi-head attention with projections without biases, as in the paper.

    For self-attention one matrix gives queries, keys and values; for `cross` attention one gives keys and values.
    `kind`: sdpa, eager, or auto, which is eager on a CPU: there the backward pass of SDPA in bf16 takes twice as long.
    """

    def __init__(self, d_model: int, heads: int, dropout: float, kind: Literal["auto", "sdpa", "eager"], cross: bool):
        super().__init__()
        self.heads, self.kind = heads, kind
        if cross:
            self.query = nn.Linear(d_model, d_model, bias=False)
            self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        else:
            self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.dropout = Dropout(dropout)

    def initialise(self) -> None:
        """Xavier, separately for queries, keys and values with gain 2**-0.5, as in fairseq."""
        nn.init.xavier_uniform_(self.output.weight)
        for packed in (self.query, self.key_value) if hasattr(self, "query") else (self.query_key_value,):
            for weight in packed.weight.data.chunk(packed.out_features // packed.in_features):
                nn.init.xavier_uniform_(weight, gain=0.5**0.5)

    def queries(self, x: Tensor) -> Tensor:
        """x (B, T, M) -> (B, H, T, D), for cross-attention."""
        return self._heads(self.query(x)).select(2, 0).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, S, M) -> two of (B, H, S, D), for cross-attention."""
        k, v = self._heads(self.key_value(x)).unbind(2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, M) -> three of (B, H, T, D), for self-attention."""
        q, k, v = self._heads(self.query_key_value(x)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _heads(self, y: Tensor) -> Tensor:
        """(B, T, n * M) -> (B, T, n, H, D), n matrices being packed in one."""
        return y.view(*y.shape[:2], -1, self.heads, self.output.in_features // self.heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """q (B, H, T, D), k and v (B, H, S, D) -> (B, T, M).

        Args:
            mask: broadcast to (B, H, T, S). Added if it is fp32; Boolean masks (True = attended) are for SDPA only.
            causal: a position attends to itself and those before it, for SDPA without a mask: its fastest kernels take
                none.
        """
        if is_eager(self.kind, q.device):
            y = eager_attention(q, k, v, mask, q.shape[-1] ** -0.5, self.dropout, cross=hasattr(self, "query"))
        else:
            p = self.dropout.p if self.training else 0.0
            mask = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=causal)
        return self.output(y.transpose(1, 2).flatten(2))


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: Callable[[Tensor], Tensor],
    cross: bool = False,
) -> Tensor:
    """q (B, H, T, D), k (B, H, S, D), v (B, H, S, E), mask added to (B, H, T, S) -> (B, H, T, E). Record the weights.

    On a CPU the backward pass of SDPA in bf16 takes 2 to 6 times as long (torch 2.13, EPYC, 32 to 256 tokens).
    """
    b, h, t, d = q.shape
    # each is copied once here; matmul would copy the transposed view of the keys, which is slower
    q, k, v = q.reshape(b * h, t, d), k.reshape(b * h, -1, d), v.reshape(b * h, k.shape[2], -1)
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, t, -1)
    if torch.compiler.is_compiling() or k.shape[1] < SHORT:  # a compiled softmax is in fp32; one graph for all lengths
        scores = scores.float()
    if mask is None:
        scores = scores * scale
    else:
        if mask.dtype == torch.float32 != scores.dtype:
            # The least fp32 number is -inf in bf16. A row of -inf only would be NaN.
            mask = mask.clamp(min=torch.finfo(scores.dtype).min)
        scores = torch.add(mask.to(scores.dtype), scores, alpha=scale)
    weights = scores.softmax(-1).to(v.dtype)
    record(weights, cross=cross)
    weights = dropout(weights)
    return torch.bmm(weights.flatten(0, 1), v).view(b, h, t, -1)


def initialise(model: nn.Module) -> None:
    """The first weights of a model of these layers: Xavier for matrices, zero for biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # times sqrt(M) the inputs have unit variance, of the order of the positions; as output projection the
            # same matrix gives logits of order 1
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, Attention):
            module.initialise()

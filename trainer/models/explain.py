"""Explain predictions: attention weights as they are computed, and gradient × input.

Both need the eager attention of this project. Models of the transformers library are switched to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_recorded: list[tuple[bool, Tensor]] | None = None


def record(weights: Tensor, cross: bool = False) -> None:
    """Store attention weights (B, H, T, S), before dropout, if a caller is `recording`."""
    if _recorded is not None:
        _recorded.append((cross, weights.detach()))


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[bool, Tensor]]]:
    """Collect (whether it is cross-attention, weights) of every attention that is computed in the block."""
    global _recorded
    found: list[tuple[bool, Tensor]] = []
    _recorded = found
    try:
        yield found
    finally:
        _recorded = None


def gradient_x_input(embedding: nn.Module, score: Callable[[], Tensor]) -> Tensor:
    """(B, T): for each token the gradient of a scalar score times its embedding, summed over the features.

    `score()` runs the forward. To first order, this is the loss of score if the embedding of the token were zero
    (Simonyan et al. 2013, Denil et al. 2014).
    """
    seen: list[Tensor] = []

    def leaf(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if seen:
            return output  # a second call is for another sequence
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = embedding.register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(), seen)
    finally:
        handle.remove()
    return (gradient * seen[0].detach()).sum(-1)

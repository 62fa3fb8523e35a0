"""Adversarial training: a second forward of each micro-batch with perturbed embeddings.

The fast gradient method (Miyato, Dai & Goodfellow 2017, https://arxiv.org/abs/1605.07725): a leaf δ, zero in the
clean forward, is added to the output of the embedding, so that the clean backward, which is
needed anyway, gives the gradient of δ. The second forward runs with δ = ε g / ‖g‖. Weights are never perturbed, so no
engine has to restore them. Rows are normalized separately: δ depends neither on the batch nor on the number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.recipe.sections import AdversarialConfig


class Perturbation:
    """Add δ to the output of the first call of an embedding in a forward (the source, if it is shared)."""

    def __init__(self, embedding: nn.Module, settings: AdversarialConfig, *, rows: int = 0) -> None:
        """`rows`: the dimension of rows in the output of the embedding: 0 in (B, T, M), 1 in (T, B, M)."""
        self.settings, self._rows = settings, rows
        self._delta: Tensor | None = None
        self._wanted = False
        embedding.register_forward_hook(self._add)

    @contextlib.contextmanager
    def clean(self) -> Iterator[None]:
        """Wrap the clean forward and its backward."""
        self._delta, self._wanted = None, True
        try:
            yield
        finally:
            self._wanted = False

    def direction(self, mask: Tensor | None = None) -> Tensor:
        """Return δ for the second forward, in the shape of the embedding: (B, T, M) or (T, B, M).

        Noise is drawn from the default generator for tokens only, since padding has no gradient.

        Args:
            mask: (B, T), 1 = token. Without it, tokens are the positions with a gradient.
        """
        assert self._delta is not None, "the clean forward has not been run"
        raw = self._delta.grad if self.settings.kind == "fgm" else self._noise(mask)
        assert raw is not None, "the clean backward has not been run"
        raw = raw.detach().float().transpose(0, self._rows)
        norm = raw.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        return (self.settings.epsilon * raw / norm[:, None, None]).transpose(0, self._rows)

    def _noise(self, mask: Tensor | None) -> Tensor:
        """Draw noise token by token, so that a wider batch of the same rows has the same noise."""
        assert self._delta is not None
        b, t, m = self._delta.transpose(0, self._rows).shape
        noise = torch.randn(t, b, m, dtype=self._delta.dtype, device=self._delta.device).transpose(0, 1)
        if mask is None:
            assert self._delta.grad is not None, "the clean backward has not been run"
            mask = self._delta.grad.transpose(0, self._rows).abs().amax(-1) > 0
        return (noise * mask[..., None]).transpose(0, self._rows)

    @contextlib.contextmanager
    def moved_by(self, delta: Tensor) -> Iterator[None]:
        """Wrap the second forward."""
        self._delta, self._wanted = delta, True
        try:
            yield
        finally:
            self._delta, self._wanted = None, False

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not self._wanted or not torch.is_grad_enabled():
            return output
        self._wanted = False  # later calls in this forward have other inputs
        if self._delta is None:
            self._delta = torch.zeros_like(output, requires_grad=True)
        return output + self._delta.to(output.dtype)  # under ZeRO and FSDP2 in bf16 layers accept nothing else

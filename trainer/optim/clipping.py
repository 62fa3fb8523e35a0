"""Clipping by the norm of the whole gradient (Pascanu et al., 2013), with a norm that is exact under every engine.

torch's norm of a large fp32 tensor on a CPU is off by up to 2e-5, because it adds one number after another; DeepSpeed
adds in fp64. Engines that clip by different norms part after the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 16  # elements that are added up in fp32 at once: the rounding of so few stays near 1e-7


def square_sum(gradients: list[Tensor]) -> Tensor:
    """The sum of the squares of all numbers: float64 scalar on the gradients' device."""
    if gradients[0].device.type == "cpu":
        pieces = [piece for g in gradients for piece in g.reshape(-1).split(PIECE)]
        return torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum()
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()  # GPUs add in trees


def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Shortens the gradient to the length `limit` if its `norm` is larger, with the margin of torch and DeepSpeed."""
    factor = limit / (norm + 1e-6)
    if factor < 1.0:
        torch._foreach_mul_(gradients, factor)

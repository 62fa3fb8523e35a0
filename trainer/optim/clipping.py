"""Clip by the norm of the gradient (Pascanu et al., 2013), with a norm that is the same under every engine.

Parameters with rate 0 in a step, such as layers that are still frozen by gradual unfreezing, are left out of the norm.

The norm of torch for a large fp32 tensor on a CPU is off by up to 2e-5, because it adds one number after another.
DeepSpeed adds in fp64. With different norms, engines would differ after the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 16  # elements that are summed in fp32 at once, with a rounding error near 1e-7


def square_sum(gradients: list[Tensor], device: torch.device | None = None) -> Tensor:
    """Return the sum of all squares as a float64 scalar, on `device` or where the gradients are."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    if gradients[0].device.type == "cpu":
        pieces = [piece for g in gradients for piece in g.reshape(-1).split(PIECE)]
        return torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum().to(device)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()  # GPUs add in trees


def idle_groups(groups: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return for each group of an optimizer whether its rate is 0 while another group's is not."""
    return [group["lr"] == 0 and any(other["lr"] != 0 for other in groups) for group in groups]


def idle_parameters(groups: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the identities of the parameters in idle groups."""
    return {id(p) for group, idle in zip(groups, idle_groups(groups), strict=True) if idle for p in group["params"]}


def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scale the gradient to the norm `limit` if its `norm` is larger, with the margin of torch and DeepSpeed."""
    factor = limit / (norm + 1e-6)
    if factor < 1.0:
        torch._foreach_mul_(gradients, factor)


def clip_on_device(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Clip as `clip` does, bit for bit, by a norm on the device that is not read."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for dtype in {gradient.dtype for gradient in gradients}:
        torch._foreach_mul_([g for g in gradients if g.dtype == dtype], factor.to(dtype))

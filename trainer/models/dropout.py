"""Dropout with cheap random numbers on a CPU: one byte per element, where F.dropout draws a 53-bit float."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element
LOW_BITS = 0x7F7F7F7F7F7F7F7F
EACH_BYTE = 0x0101010101010101


def byte_mask(count: int, threshold: int) -> Tensor:
    """`count` int16 values: 0 with probability threshold / 256 (threshold 1 to 255), else -1 (all bits set).

    The eight bytes of a word are compared at once: adding to the low seven bits of a byte sets its highest bit where
    they are large enough, and the byte's own highest bit decides the rest; nothing carries into the next byte. Then
    each byte's highest bit is spread over an int16.
    """
    # The bounds matter: a bare random_() never sets the sign bit, so that one byte in eight would be small too often.
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    large = (words & LOW_BITS).add_((128 - threshold % 128) * EACH_BYTE)
    large = large.bitwise_or_(words) if threshold < 128 else large.bitwise_and_(words)
    mask = torch.empty(2, len(words), dtype=torch.int64)
    torch.bitwise_left_shift(large, 8, out=mask[0])  # even bytes come to the upper half of an int16
    mask[1] = large  # odd bytes are there already
    return mask.view(torch.int16).bitwise_right_shift_(15).view(-1)[:count]


def _zero(x: Tensor, mask: Tensor) -> Tensor:
    integer = INTEGERS[x.element_size()]
    return (x.view(integer) & mask.to(integer)).view(x.dtype)


class _ByteDropout(torch.autograd.Function):
    """residual + dropout(x), or dropout(x) for residual None; saves one int16 per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, threshold: int) -> Tensor:
        mask = byte_mask(x.numel(), threshold).view(x.shape)
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtype = 256 / (256 - threshold), x.dtype
        kept = _zero(x, mask)
        return kept.mul_(ctx.scale) if residual is None else torch.add(residual, kept, alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (mask,) = ctx.saved_tensors
        grad = grads[0]
        return _zero(grad.to(ctx.dtype), mask).mul_(ctx.scale), grad if ctx.needs_input_grad[1] else None, None


def threshold_of(p: float) -> int:
    """Return the threshold in 256ths: a smaller byte zeroes its element."""
    return min(255, round(p * 256))


def dropout(x: Tensor, p: float, training: bool, residual: Tensor | None = None) -> Tensor:
    """dropout(x), or residual + dropout(x); see `Dropout`."""
    if training and threshold_of(p) > 0 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ByteDropout.apply(x, residual, threshold_of(p))  # type: ignore[no-untyped-call]
    y = F.dropout(x, p, training)
    return y if residual is None else residual + y


class Dropout(nn.Module):
    """Dropout with probability `p`, and the residual connection after it: forward(x, residual) = residual + dropout(x).

    On a CPU `p` is rounded to 1/256, and the scale follows the rounded value, so that the expectation is x. The masks
    come from torch's default generator: torch.manual_seed fixes them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return dropout(x, self.p, self.training, residual)

    def extra_repr(self) -> str:
        return f"p={self.p}"

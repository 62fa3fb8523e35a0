"""CUDA's operations on the meta device: fused attention, fused dropout, and the casts of autocast.

Model code takes its GPU paths for meta tensors. But torch has no CUDA kernels to choose for them, and its autocast
does not apply to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Of the operations that CUDA's autocast runs in half precision and in fp32, those that models use.
TO_HALF = frozenset({"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "__matmul__", "conv1d", "einsum"})
TO_FULL = frozenset({"softmax", "log_softmax", "layer_norm", "cross_entropy", "nll_loss", "norm", "exp", "log", "pow"})
TO_FULL |= {"rsqrt", "cumsum"}


class ShapesOnly(TorchFunctionMode):
    """Answer False where code asks for the value of a tensor, such as whether a batch has no padding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__bool__", "__contains__"):
            return False
        return func(*args, **(kwargs or {}))

    def end_forward(self) -> None:
        """Drop what is kept for a forward only."""


class CudaEmulation(ShapesOnly):
    """Run the operations that CUDA would run. With `autocast` each weight is cast once in a forward."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self._weights: dict[int, Tensor] | None = {}

    def end_forward(self) -> None:
        """Drop the casts of weights. Layers that run again in the backward cast them again, and keep no copies."""
        self._weights = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "dropout" and args and isinstance(args[0], Tensor):
            return _fused_dropout(*args, **kwargs)
        attention = name == "scaled_dot_product_attention"
        if self._autocast and (attention or name in TO_HALF or name in TO_FULL):
            dtype = torch.float32 if name in TO_FULL else torch.bfloat16
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if attention:
            return _efficient_attention(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self._weights is None or not isinstance(value, nn.Parameter) or dtype == torch.float32:
            return value.to(dtype)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(dtype)
        return self._weights[id(value)]


def _efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    """Run the kernel that CUDA uses where there is a mask. Flash attention keeps as much for the backward."""
    if attn_mask is not None:
        dtype = query.dtype
        mask = torch.zeros_like(attn_mask, dtype=dtype) if attn_mask.dtype == torch.bool else attn_mask.to(dtype)
        attn_mask = mask.expand(*query.shape[:-1], key.shape[-2])
    if options.pop("enable_gqa", False):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    operation = torch.ops.aten._scaled_dot_product_efficient_attention
    return operation(query, key, value, attn_mask, True, dropout_p, **options)[0]


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input

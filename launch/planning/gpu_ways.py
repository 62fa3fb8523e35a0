"""A GPU's ways on the meta device: fused attention and dropout, and what autocast casts.

Meta tensors make our own code and transformers take their ways for a GPU, but torch has no kernels to choose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ASKED = ("__bool__", "__contains__")  # what tensors without numbers are asked
_TO_HALF = frozenset({"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "__matmul__", "conv1d", "einsum"})
_TO_FULL = frozenset(
    {
        "softmax",
        "log_softmax",
        "layer_norm",
        "cross_entropy",
        "nll_loss",
        "norm",
        "exp",
        "log",
        "pow",
        "rsqrt",
        "cumsum",
    }
)  # of torch's list of operations that CUDA's autocast runs in fp32


class Answers(TorchFunctionMode):
    """Tensors without numbers: whether all tokens of a batch count, and the like, is answered with no."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ASKED:
            return False
        return func(*args, **(kwargs or {}))


class GpuWays(TorchFunctionMode):
    """What a GPU does otherwise than the meta device: fused attention and dropout, and autocast.

    Autocast knows no meta tensors; this casts as CUDA's does, each weight once in a forward.
    """

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast, self._keeps = autocast, False
        self._weights: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward, in which the copy of a weight is kept; the backward may only run parts of it again."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._weights.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in _ASKED:
            return False
        if name == "scaled_dot_product_attention":
            return _efficient_attention(*self._cast(args, torch.bfloat16), **kwargs)
        if name == "dropout" and args and isinstance(args[0], Tensor):
            return _fused_dropout(*args, **kwargs)
        if self._autocast and name in _TO_HALF:
            args, kwargs = self._cast(args, torch.bfloat16), self._cast_values(kwargs, torch.bfloat16)
        elif self._autocast and name in _TO_FULL:
            args, kwargs = self._cast(args, torch.float32), self._cast_values(kwargs, torch.float32)
        return func(*args, **kwargs)

    def _cast(self, args: Sequence[Any], dtype: torch.dtype) -> tuple[Any, ...]:
        return tuple(self._one(a, dtype) for a in args)

    def _cast_values(self, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return {name: self._one(a, dtype) for name, a in kwargs.items()}

    def _one(self, value: Any, dtype: torch.dtype) -> Any:
        if not self._autocast or not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self._keeps and isinstance(value, nn.Parameter) and dtype != torch.float32:
            if id(value) not in self._weights:
                self._weights[id(value)] = value.to(dtype)
            return self._weights[id(value)]
        return value.to(dtype)


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a GPU takes where there is a mask; flash attention keeps as much."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    made = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )
    return made[0]


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input

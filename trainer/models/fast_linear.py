"""Linear layers in fp32 on a CPU by oneDNN, where PyTorch's own choice is slower.

PyTorch multiplies fp32 matrices on x86 with MKL. On a processor that is not Intel's, MKL uses AVX2 only. oneDNN, which
PyTorch contains too, uses AVX-512: 2.1 to 2.2 times the speed on an AMD EPYC (torch 2.13). Its results depend
on neither the number of threads nor memory alignment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

CPU_INFO = Path("/proc/cpuinfo")
SMALLEST = 1 << 12  # elements of a weight; below, the call costs more than the product

_active = ContextVar("fast_linear", default=False)


@cache
def onednn_is_faster() -> bool:
    """Return whether the processor has AVX-512 and is not Intel's, and PyTorch has MKL and oneDNN."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return False


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias of matrices (n, k) and (m, k) by oneDNN."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,), needs = grads, ctx.needs_input_grad
        into_x = product(grad, weight.t()) if needs[0] else None
        into_weight = product(grad.t(), x.t()) if needs[1] else None
        return into_x, into_weight, grad.sum(0) if needs[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return F.linear(x, weight, bias), computed by oneDNN in forward and backward. x is (..., k), weight (m, k)."""
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return rows.view(*x.shape[:-1], -1)


def _fits(x: Any, weight: Any) -> bool:
    """Return whether these are plain fp32 tensors on a CPU, large enough, outside autocast."""
    return (
        type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.dim() == 2
        and weight.numel() >= SMALLEST
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


class _OneDNN(TorchFunctionMode):
    """Replaces F.linear, and addmm with a bias (the Conv1D of GPT-2)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and _fits(args[0], args[1]):
            return linear(*args, **kwargs)
        if func is torch.addmm and not kwargs and args[0].dim() == 1 and _fits(args[1], args[2]):
            return linear(args[1], args[2].t(), args[0])
        return func(*args, **kwargs)


@contextlib.contextmanager
def fast_linear() -> Iterator[None]:
    """Within it, linear layers use oneDNN where it is faster. Nothing changes elsewhere."""
    if not onednn_is_faster():
        yield
        return
    token = _active.set(True)
    try:
        with _OneDNN():
            yield
    finally:
        _active.reset(token)


def rerun_contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Return contexts of a forward and of its repetition in the backward (`context_fn` of torch's checkpoint).

    A backward turns function modes off. A layer that runs again there must compute what its forward has computed.
    """
    return contextlib.nullcontext(), _OneDNN() if _active.get() else contextlib.nullcontext()

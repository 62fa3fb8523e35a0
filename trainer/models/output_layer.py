"""The output layer and the loss of large vocabularies, computed together in chunks.

The logits (N, V) of a micro-batch, their copy in fp32 and their gradient are often the largest tensors of a step. Here
an output layer returns logits that are not computed yet, and the loss computes them for a few rows at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.models.loss import loss_and_gradient, paired_loss_and_gradient

# Logits that are in memory at once: 256 MB in fp32. Whether a micro-batch has more depends on its shape only, so that a
# step is the same on any number of ranks.
MOST_LOGITS = 2**26
DTYPES = (torch.float32, torch.bfloat16)  # in fp16 small gradients would be lost before the loss scale reaches them
_deferring = False


@contextlib.contextmanager
def deferred_logits(model: nn.Module) -> Iterator[None]:
    """Let output layers return DeferredLogits where there are more than MOST_LOGITS.

    Those of our own models call `output_logits`. In a model of the transformers library it is a linear layer, whose
    forward is replaced meanwhile. A compiled model keeps its graph.
    """
    global _deferring
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None or model._compiled_call_impl is not None else find()
    _deferring = True
    try:
        if type(head) is nn.Linear:
            setattr(head, "forward", lambda x: output_logits(x, head.weight, head.bias))  # noqa: B010
        yield
    finally:
        _deferring = False
        if type(head) is nn.Linear:
            del head.forward


def output_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden (…, M), weight (V, M), bias (V) -> logits (…, V), which may be DeferredLogits."""
    wanted = _deferring and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    gathered = hasattr(weight, "ds_id")  # by ZeRO-3, in the forward of its module only
    large = hidden[..., 0].numel() * len(weight) > MOST_LOGITS
    if wanted and large and not gathered and _dtype(hidden) in DTYPES:
        return DeferredLogits(hidden, weight, bias)
    return F.linear(hidden, weight, bias)


def _dtype(hidden: Tensor) -> torch.dtype:
    """Return the type of the output of a linear layer here."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if _autocast(kind) and torch.is_autocast_enabled(kind) else hidden.dtype


def _autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)  # a plan has meta tensors


class DeferredLogits(Tensor):
    """Logits (…, V) of an output layer that has not run yet.

    `cross_entropy_sum` computes layer and loss in chunks. Rows may be flattened and selected before. Any other
    operation, such as a scaling by the model or a loss of a user, runs the layer and is applied to its output.
    """

    _layer: tuple[Tensor, Tensor, Tensor | None]

    @staticmethod
    def __new__(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> DeferredLogits:
        shape, make = (*hidden.shape[:-1], len(weight)), getattr(Tensor, "_make_wrapper_subclass")  # noqa: B009
        logits: DeferredLogits = make(cls, shape, dtype=_dtype(hidden), device=hidden.device)
        logits._layer = hidden, weight, bias
        return logits

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _FACTS:
                return func(*args)
            if func in _OF_ROWS and not kwargs and _OF_ROWS[func](args[0].dim(), *args[1:]):
                hidden, weight, bias = args[0]._layer
                return cls(func(hidden, *args[1:]), weight, bias)
            computed = [F.linear(*x._layer) if isinstance(x, cls) else x for x in args]
            named = {key: F.linear(*x._layer) if isinstance(x, cls) else x for key, x in (kwargs or {}).items()}
            return func(*computed, **named)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *others: Any) -> Any:
        raise TypeError(f"{func} on the logits of an output layer that has not run")  # unwrapped above

    def summed_loss(self, labels: Tensor, smoothing: float, r_drop: float = 0.0) -> Tensor:
        """Return the summed loss of logits (N, V), or of (2N, V) with the weight of R-Drop, an fp32 scalar."""
        hidden, weight, bias = self._layer
        loss: Tensor = _ChunkedOutput.apply(hidden.to(self.dtype), weight, bias, labels, smoothing, r_drop)  # type: ignore[no-untyped-call]
        return loss


_FACTS: Any = [getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device")] + [Tensor.dim]
# What can be done to rows before the layer as well as after it, depending on dimensions and arguments.
_OF_ROWS: Any = {
    Tensor.flatten: lambda dim, *args: args in ((0, -2), (0, dim - 2)),
    Tensor.index_select: lambda dim, *args: args[0] == 0 and dim > 1,
}


class _ChunkedOutput(torch.autograd.Function):
    """Output layer and summed loss of rows (N, M), or (2N, M) with R-Drop, in chunks of at most MOST_LOGITS logits.

    The forward also computes the gradients of the sum, so that no logits are computed twice. The backward scales them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, r_drop: float
    ) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        parameters, dtype, kind = [weight] if bias is None else [weight, bias], hidden.dtype, hidden.device.type
        narrow = [p.detach().to(dtype) for p in parameters]
        for_hidden = torch.empty_like(hidden)
        halves, gradients = (t.unflatten(0, (-1, len(labels))) for t in (hidden, for_hidden))  # (1 or 2, N, M)
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        step = max(1, MOST_LOGITS // len(halves) // len(weight))
        with torch.autocast(kind, enabled=False) if _autocast(kind) else contextlib.nullcontext():
            for start in range(0, len(labels), step):
                rows = slice(start, start + step)
                inputs = halves[:, rows].flatten(0, 1)
                logits, targets = F.linear(inputs, *narrow), labels[rows]
                gradient: Tensor | None
                if r_drop:
                    part, gradient = paired_loss_and_gradient(logits, targets, smoothing, r_drop)
                else:
                    part, gradient = loss_and_gradient(logits, targets, smoothing)
                assert gradient is not None
                loss += part
                gradients[:, rows] = (gradient @ narrow[0]).unflatten(0, (len(halves), -1))
                sums[0] += gradient.T @ inputs
                if bias is not None:
                    sums[1] += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(for_hidden, *sums)
        ctx.dtypes = [dtype, *(p.dtype for p in parameters)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [(t * grads[0]).to(kind) for t, kind in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        scaled = [g if needed else None for g, needed in zip(scaled, ctx.needs_input_grad[: len(scaled)], strict=True)]
        return *scaled, *[None] * (6 - len(scaled))

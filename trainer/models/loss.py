"""Cross entropy, summed: what every task's loss is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label of a position that does not count
CHUNK = 2**18  # logits worked on at a time: 1 MB in fp32, which stays in a core's cache


class _ChunkedCrossEntropy(torch.autograd.Function):
    """On a CPU whole-matrix passes over (N, V) in fp32 are bound by memory: this goes over it in rows that fit the cache.

    The logits keep their type; fp32 is only ever a chunk. The backward pass makes the softmax again from the rows' normalisers.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        normaliser, loss = torch.empty(2, len(labels))
        for rows, x in _chunks(logits):
            label = labels[rows, None].clamp(min=0)
            torch.mul(x.gather(1, label)[:, 0], smoothing - 1, out=loss[rows])
            if smoothing:
                loss[rows].sub_(x.mean(1), alpha=smoothing)
            top = x.amax(1, keepdim=True)
            torch.add(x.sub_(top).exp_().sum(1).log_(), top[:, 0], out=normaliser[rows])
        ctx.save_for_backward(logits, labels, normaliser)
        ctx.smoothing = smoothing
        return loss.add_(normaliser).masked_fill_(labels == IGNORED, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        weight = torch.where(labels == IGNORED, 0.0, grads[0].float())
        for rows, x in _chunks(logits):
            x.sub_(normaliser[rows, None]).exp_()  # the softmax
            if ctx.smoothing:
                x.sub_(ctx.smoothing / x.shape[1])
            x.scatter_add_(1, labels[rows, None].clamp(min=0), x.new_full((len(x), 1), ctx.smoothing - 1))
            result[rows] = x.mul_(weight[rows, None])
        return result, None, None


def _chunks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Row by row through logits (N, V): which rows, and a copy of them in fp32, always in the same memory."""
    step = max(1, CHUNK // logits.shape[1])
    buffer = torch.empty(step, logits.shape[1])
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        yield slice(start, start + len(part)), buffer[: len(part)].copy_(part)


def cross_entropy_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """logits (N, V) of any floating type, labels (N) int64 -> the summed loss in nats, a scalar of fp32; labels of -100 do not count.

    Equal to F.cross_entropy on logits in fp32 with reduction="sum", about four times faster on a CPU.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ChunkedCrossEntropy.apply(logits, labels, label_smoothing)
    return F.cross_entropy(
        logits.float(), labels, reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing
    )

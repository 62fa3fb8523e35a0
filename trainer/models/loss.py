"""Summed cross entropy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.models import loss_groups

IGNORED = -100  # the label of an ignored position
CHUNK = 2**18  # logits per chunk: 1 MB in fp32, which fits the cache of a core


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy in chunks of rows that fit the cache. On a CPU passes over (N, V) in fp32 are bound by memory.

    The forward also computes the gradient of the sum, from the same softmax and in the type of the logits. The backward
    only scales it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        loss, gradient = loss_and_gradient(logits, labels, smoothing, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None  # an fp32 scalar, which is not rounded to the type of the gradient


def loss_and_gradient(
    logits: Tensor, labels: Tensor, smoothing: float, wanted: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of logits (n, V), and its gradient in the type of the logits if it is `wanted`."""
    loss = torch.empty(len(labels), device=logits.device)
    gradient = torch.empty_like(logits) if wanted else None
    fit = CHUNK // logits.shape[1] if logits.device.type == "cpu" else len(labels)  # a GPU gains nothing from a cache
    step = max(1, min(fit, len(labels)))
    buffer = torch.empty(step, logits.shape[1], device=logits.device)
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        label = labels[rows]
        x = buffer[: len(label)].copy_(logits[rows])
        _losses_and_gradient(x, label, smoothing, loss[rows])
        if gradient is not None:
            gradient[rows] = x
    return loss_groups.total(loss), gradient


def _losses_and_gradient(x: Tensor, labels: Tensor, smoothing: float, loss: Tensor) -> None:
    """Write the losses of the rows of logits x (n, V) into `loss` (n), and the gradient of their sum into x."""
    hit = labels.clamp(min=0)[:, None]
    ignored = labels == IGNORED
    torch.mul(x.gather(1, hit)[:, 0], smoothing - 1, out=loss)
    if smoothing:
        loss.sub_(x.mean(1), alpha=smoothing)
    top = x.amax(1, keepdim=True)
    total = x.sub_(top).exp_().sum(1, keepdim=True)
    loss.add_(total.log().add_(top)[:, 0]).masked_fill_(ignored, 0.0)
    counts = (~ignored).float()[:, None]
    x.mul_(counts / total)  # softmax minus the smoothed one-hot distribution; 0 for ignored rows
    if smoothing:
        x.sub_(counts * (smoothing / x.shape[1]))
    x.scatter_add_(1, hit, counts * (smoothing - 1))


class _PairedLoss(torch.autograd.Function):
    """`r_drop_loss`; the forward computes the gradient, too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, weight: float) -> Tensor:
        loss, gradient = paired_loss_and_gradient(logits, labels, smoothing, weight)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def paired_loss_and_gradient(logits: Tensor, labels: Tensor, smoothing: float, weight: float) -> tuple[Tensor, Tensor]:
    """Return `r_drop_loss` of logits (2n, V) and labels (n), and its gradient in the type of the logits."""
    count, size = labels.shape[0], logits.shape[1]
    loss, gradient = torch.empty(count, device=logits.device), torch.empty_like(logits)
    step = max(1, CHUNK // (2 * size) if logits.device.type == "cpu" else count)
    for start in range(0, count, step):
        one = slice(start, min(start + step, count))
        two = slice(count + one.start, count + one.stop)
        log_p, log_q = (logits[rows].float().log_softmax(-1) for rows in (one, two))
        p, q, gap = log_p.exp(), log_q.exp(), log_p - log_q
        forth, back = (p * gap).sum(1), -(q * gap).sum(1)  # KL(p, q) and KL(q, p); autocast would round vecdot to bf16
        hit, counted = labels[one].clamp(min=0)[:, None], (labels[one] != IGNORED).float()
        truths = (log_p.gather(1, hit) + log_q.gather(1, hit))[:, 0]
        entropies = (smoothing - 1) * truths - smoothing / size * (log_p.sum(1) + log_q.sum(1))
        loss[one] = (entropies / 2 + weight / 4 * (forth + back)) * counted
        # p - truth + weight / 2 * (p * (gap - KL(p, q)) + p - q), and the same with p and q exchanged
        for_p = (gap - forth[:, None]).mul_(weight / 2).add_(1 + weight / 2).mul_(p).sub_(q, alpha=weight / 2)
        for_q = gap.add_(back[:, None]).mul_(-weight / 2).add_(1 + weight / 2).mul_(q).sub_(p, alpha=weight / 2)
        for rows, found in ((one, for_p), (two, for_q)):
            found.sub_(smoothing / size).scatter_add_(1, hit, torch.full_like(forth, smoothing - 1)[:, None])
            gradient[rows] = found.mul_((counted / 2)[:, None])
    return loss_groups.total(loss), gradient


def r_drop_loss(logits: Tensor, labels: Tensor, label_smoothing: float, weight: float) -> Tensor:
    """Return the summed loss of R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448), an fp32 scalar.

    For each label it is half of that of the paper, so that weight 0 gives the usual loss: the mean of both cross
    entropies, and weight / 2 times the mean of both divergences.

    Args:
        logits: (2N, V), of N labels in one forward, and of the same labels with other dropout masks.
        labels: (N,) int64, -100 is ignored.
        label_smoothing: as in `F.cross_entropy`.
        weight: alpha of the paper.
    """
    if (deferred := getattr(logits, "summed_loss", None)) is not None:  # of output_layer.DeferredLogits
        return deferred(labels, label_smoothing, weight)
    wide = logits if logits.dtype in (torch.float32, torch.bfloat16) else logits.float()  # fp16: as below
    return _PairedLoss.apply(wide, labels, label_smoothing, weight)  # type: ignore[no-untyped-call]


def cross_entropy_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """logits (N, V) of any floating type, labels (N) int64 -> summed loss in nats, an fp32 scalar; -100 is ignored.

    Equal to F.cross_entropy on logits in fp32 with reduction="sum", and about five times faster on a CPU.
    """
    if (deferred := getattr(logits, "summed_loss", None)) is not None:  # of output_layer.DeferredLogits
        return deferred(labels, label_smoothing)
    # fp16 is left out: small gradients would be lost before the loss scale reaches them
    wide = logits.dtype in (torch.float32, torch.bfloat16)
    if logits.device.type == "cpu" and wide and not torch.compiler.is_compiling():
        return _ChunkedCrossEntropy.apply(logits, labels, label_smoothing)  # type: ignore[no-untyped-call]
    logits, collected = logits.float(), loss_groups.current() is not None
    kind = "none" if collected else "sum"
    loss = F.cross_entropy(logits, labels, reduction=kind, ignore_index=IGNORED, label_smoothing=label_smoothing)
    return loss_groups.total(loss) if collected else loss

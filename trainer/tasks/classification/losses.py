"""Losses of rows, not reduced: (B,) fp32, 0 for a row whose labels are ignored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.task.base import IGNORED

SMALLEST = 1e-6  # probability of a wrong class: below it the power of the focal loss has no finite slope


def focal_cross_entropy(
    logits: Tensor, labels: Tensor, by_class: Tensor | None, smoothing: float, gamma: float
) -> Tensor:
    """Return the cross-entropy of logits (B, C) and labels (B,), times (1 - p)^gamma of the true class (Lin 2017).

    Args:
        by_class: weights of the classes (C,), as in `F.cross_entropy`.
    """
    losses = F.cross_entropy(
        logits, labels, by_class, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    if not gamma:
        return losses
    log_p = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return (-torch.expm1(log_p)).clamp(min=SMALLEST) ** gamma * losses


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, positive: Tensor | None = None, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Return the summed binary losses of the labels of each row.

    Args:
        logits: (B, C).
        labels: (B, C) int64, 1 = the row has the label, IGNORED = not known.
        positive: weights of the labels that a row has (C,), as `pos_weight` of `BCEWithLogitsLoss`.
        smoothing: 0 and 1 become smoothing / 2 and 1 - smoothing / 2.
        gamma: exponent of the focal factor.
    """
    hard = labels.clamp(min=0).float()
    soft = hard * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, soft, pos_weight=positive, reduction="none")
    if gamma:
        losses = losses * (gamma * F.logsigmoid(logits * (1 - 2 * hard))).exp()  # (1 - p of the truth)^gamma
    return losses.masked_fill(labels == IGNORED, 0.0).sum(-1)


def regression_loss(outputs: Tensor, targets: Tensor, kind: str, delta: float) -> Tensor:
    """Return the summed losses of the targets of each row: outputs and targets (B, T), IGNORED = not known.

    Args:
        kind: mse, mae or huber.
        delta: error from which the Huber loss is linear.
    """
    missing = targets == IGNORED
    errors = (outputs - targets).masked_fill(missing, 0.0)
    if kind == "huber":
        losses = F.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=delta)
    else:
        losses = errors**2 if kind == "mse" else errors.abs()
    return losses.sum(-1)

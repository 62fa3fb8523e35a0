"""The summed cross-entropy equals that of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainer.models import loss as module
from trainer.models.loss import cross_entropy_sum


def _both(logits, labels, smoothing, factor=1.0):
    values, gradients = [], []
    for ours in (True, False):
        x = logits.clone().requires_grad_()
        if ours:
            value = cross_entropy_sum(x, labels, smoothing)
        else:
            value = F.cross_entropy(x.float(), labels, reduction="sum", ignore_index=-100, label_smoothing=smoothing)
        (value * factor).backward()
        values.append(value.detach())
        gradients.append(x.grad)
    return values, gradients


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 40, 2**18])
def test_value_and_gradient_equal_torchs(monkeypatch, smoothing, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(33, 17), torch.randint(0, 17, (33,))
    labels[::4] = -100
    values, gradients = _both(logits, labels, smoothing, factor=0.3)
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0][::4] == 0).all()


def test_bf16_gradient_is_as_exact_as_its_type():
    """The factor is no bf16 number: rounding it first would shift the whole gradient by 0.4%."""
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 500).bfloat16(), torch.randint(0, 500, (64,))
    values, gradients = _both(logits, labels, 0.1, factor=1.0038)
    torch.testing.assert_close(values[0], values[1])
    assert gradients[0].dtype == torch.bfloat16
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2**-6, atol=0)
    sums = [g.double().abs().sum() for g in gradients]
    torch.testing.assert_close(sums[0], sums[1], rtol=2e-3, atol=0)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
    values, gradients = _both(logits, torch.tensor([0, 2]), 0.1)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_counts_gives_zero():
    values, gradients = _both(torch.randn(4, 5), torch.full((4,), -100), 0.1)
    assert values[0] == 0
    assert (gradients[0] == 0).all()


def test_works_without_gradient_and_on_a_view_of_logits():
    logits, labels = torch.randn(3, 4, 9), torch.randint(0, 9, (3, 4))
    with torch.no_grad():
        part = cross_entropy_sum(logits[:, 1], labels[:, 1], 0.0)
    torch.testing.assert_close(part, F.cross_entropy(logits[:, 1], labels[:, 1], reduction="sum"))


def test_fp16_uses_the_loss_of_torch():
    logits, labels = torch.randn(6, 7).half(), torch.randint(0, 7, (6,))
    values, gradients = _both(logits, labels, 0.1)
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])

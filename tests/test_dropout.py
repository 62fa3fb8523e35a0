"""Dropout from random bytes: right in expectation, repeatable, with the gradient of what it computed."""

from __future__ import annotations

import pytest
import torch

from trainer.models.dropout import Dropout, byte_mask


@pytest.mark.parametrize("threshold", [1, 26, 127, 128, 129, 200, 255])
def test_each_threshold_drops_its_share(threshold):
    torch.manual_seed(0)
    mask = byte_mask(1_000_000, threshold)
    assert set(mask.unique().tolist()) == {-1, 0}
    share, expected = (mask == 0).double().mean().item(), threshold / 256
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 1e6) ** 0.5


def test_all_eight_bytes_of_a_word_are_alike():
    """A generator that never sets the sign bit would show here: one byte in eight would be dropped twice as often."""
    torch.manual_seed(0)
    mask = byte_mask(8 * 100_000, 51).view(2, 100_000, 4)
    shares = (mask == 0).double().mean(1).flatten()
    assert (shares - 51 / 256).abs().max() < 5 * (0.2 * 0.8 / 1e5) ** 0.5


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = -byte_mask(1_000_000, 128).double() - 0.5
    for lag in (1, 2, 4, 8, 500_000):
        assert abs((kept[:-lag] * kept[lag:]).mean().item()) < 5 * 0.25 / (1e6 - lag) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_kept_elements_are_scaled_and_the_gradient_is_mask_times_scale(dtype):
    torch.manual_seed(0)
    dropout, scale = Dropout(0.2), 256 / (256 - 51)
    x = torch.randn(63, 5, dtype=dtype).requires_grad_()
    residual = torch.randn(63, 5, dtype=dtype).requires_grad_()
    y = dropout(x, residual)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    dropped = x.grad == 0
    assert 0.1 < dropped.float().mean() < 0.3
    rounding = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, residual + torch.where(dropped, 0, x.detach() * scale), **rounding)
    torch.testing.assert_close(x.grad, torch.where(dropped, 0, upstream * scale))
    torch.testing.assert_close(residual.grad, upstream, rtol=0, atol=0)


def test_expectation_is_the_input():
    torch.manual_seed(0)
    x = torch.full((400_000,), 3.0)
    for p in (0.1, 0.3, 0.5, 0.9):
        spread = 3.0 * (p / (1 - p) / len(x)) ** 0.5
        assert abs(Dropout(p)(x).mean().item() - 3.0) < 5 * spread


def test_the_seed_fixes_the_mask():
    dropout, x = Dropout(0.3), torch.ones(1000)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(dropout(x))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(dropout(x), dropout(x))


def test_dropped_infinities_leave_nothing_behind():
    torch.manual_seed(0)
    y = Dropout(0.5)(torch.full((100,), torch.inf))
    assert ((y == 0) | (y == torch.inf)).all()


def test_identity_in_eval_and_for_p_zero():
    x, residual = torch.randn(10), torch.randn(10)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x, residual), residual + x)


def test_mixed_types_keep_the_residual_stream_in_fp32():
    x, residual = torch.randn(4, 8, dtype=torch.bfloat16).requires_grad_(), torch.randn(4, 8)
    y = Dropout(0.2)(x, residual)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16

"""Linear layers by oneDNN: the same values and gradients as F.linear, only where they are meant to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_layers import bert, built, equal, gpt2, gradients, transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from trainer.models import fast_linear as module
from trainer.models.fast_linear import fast_linear, linear, onednn_is_faster, product, rerun_contexts
from trainer.models.layers import checkpoint_activations

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of PyTorch has no oneDNN",
)
SHAPES = [(1, 64, 64), (7, 130, 61), (200, 384, 96)]  # rows, inputs, outputs


def sample(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return x, weight, bias


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a processor where oneDNN is faster. Returns the shapes of the products that oneDNN has computed."""
    calls: list[tuple[int, ...]] = []

    def counted(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append((*a.shape, b.shape[0]))
        return product(a, b, bias)

    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "product", counted)
    return calls


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_those_of_linear(shape: tuple[int, int, int], with_bias: bool) -> None:
    tensors = [t.requires_grad_() for t in sample(*shape)]
    x, weight, bias = tensors
    given = bias if with_bias else None
    upstream = torch.randn(shape[0], shape[2], generator=torch.Generator().manual_seed(0))
    wanted = [x, weight, *([bias] if with_bias else [])]
    expected = F.linear(x.double(), weight.double(), None if given is None else given.double())
    gradients = torch.autograd.grad(expected, wanted, upstream.double())
    y = linear(x, weight, given)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(y, wanted, upstream), gradients, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-4)


def test_three_dimensions_and_only_the_gradients_that_are_needed(forced: list[tuple[int, ...]]) -> None:
    x, weight, bias = sample(24, 64, 96)
    y = linear(x.view(2, 3, 4, 64), weight.requires_grad_(), bias)
    assert y.shape == (2, 3, 4, 96)
    y.sum().backward()
    assert x.grad is None
    assert forced == [(24, 64, 96), (96, 24, 64)]  # forward and the gradient of the weight; none into x
    torch.testing.assert_close(weight.grad, x.sum(0).expand(96, -1), rtol=1e-5, atol=1e-5)


def test_an_output_may_be_changed_in_place() -> None:
    x, weight, bias = sample(6, 64, 96)
    weight.requires_grad_()
    F.gelu(linear(x.view(2, 3, 64), weight, bias).relu_()).sum().backward()
    ours, weight.grad = weight.grad, None
    F.gelu(F.linear(x, weight, bias).relu_()).sum().backward()
    torch.testing.assert_close(ours, weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_results_depend_neither_on_threads_nor_on_alignment(shape: tuple[int, int, int]) -> None:
    x, weight, bias = sample(*shape)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = product(x, weight, bias)
        torch.set_num_threads(2)
        assert torch.equal(product(x, weight, bias), expected)
    finally:
        torch.set_num_threads(threads)
    for offset in (1, 3, 8):
        moved = torch.empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)
        assert torch.equal(product(moved, weight, bias), expected)


def test_linear_layers_and_conv1d_use_it(forced: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    layers = (nn.Linear(64, 96), nn.Linear(64, 96, bias=False), Conv1D(96, 64))
    expected = [layer(x) for layer in layers]
    assert not forced
    with fast_linear():
        values = [layer(x) for layer in layers]
    assert len(forced) == 3
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Named(Tensor):
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.linear(x.double(), w.double()),
        lambda x, w: F.linear(x.bfloat16(), w.bfloat16()),
        lambda x, w: F.linear(x, w[:8]),  # too small to be worth it
        lambda x, w: F.linear(x.as_subclass(Named), w),
        lambda x, w: F.linear(x.to("meta"), w.to("meta")),
        lambda x, w: torch.addmm(torch.zeros(5, 96), x, w.t()),
        lambda x, w: F.linear(x[:0], w),
    ],
)
def test_other_products_are_left_to_pytorch(forced: list[tuple[int, ...]], call: Any) -> None:
    x, weight, _ = sample(5, 64, 96)
    with fast_linear():
        call(x, weight)
    assert not forced


def test_autocast_is_left_to_pytorch(forced: list[tuple[int, ...]]) -> None:
    x, weight, _ = sample(5, 64, 96)
    with fast_linear(), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x, weight).dtype == torch.bfloat16
    assert not forced


def test_a_checkpointed_layer_runs_again_as_in_the_forward(forced: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96), torch.randn(5, 64, requires_grad=True)
    with fast_linear():
        checkpoint(layer, x, use_reentrant=False, context_fn=rerun_contexts).sum().backward()
    assert forced[:2] == [(5, 64, 96)] * 2, "forward, and again in the backward"
    assert len(forced) == 4
    forced.clear()
    checkpoint(layer, x, use_reentrant=False, context_fn=rerun_contexts).sum().backward()
    assert not forced, "neither in the forward nor in the backward"


@pytest.mark.parametrize("make", [transformer, bert, gpt2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_models_have_the_same_gradients(
    forced: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, make: Callable[..., nn.Module], checkpointing: bool
) -> None:
    """Within 1e-6 of the largest; with activation checkpointing the same bits as without it."""
    monkeypatch.setattr(module, "SMALLEST", 1)
    model, plain = built(make, dropout=0.3), built(make, dropout=0.3)
    expected = gradients(plain, 3, 7)
    with fast_linear():
        once = gradients(model, 3, 7)
        if checkpointing:
            products = len(forced)
            checkpoint_activations(model)
            again = gradients(model, 3, 7)
            assert all(torch.equal(again[name], gradient) for name, gradient in once.items())
            assert len(forced) > 2 * products
    assert forced
    equal(once, expected, 1e-6)


@pytest.mark.parametrize(
    ("capability", "vendor", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_it_is_chosen_by_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, vendor: str, expected: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"vendor_id\t: {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(module, "CPU_INFO", info)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() is expected
        monkeypatch.setattr(module, "CPU_INFO", tmp_path / "missing")
        onednn_is_faster.cache_clear()
        assert not onednn_is_faster()
    finally:
        monkeypatch.undo()
        onednn_is_faster.cache_clear()

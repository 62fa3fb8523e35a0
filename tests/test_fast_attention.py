"""Attention of transformers models on a CPU equals the eager attention of the library for every family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_helpers import FEW, batch_of, model_class, outcome, text_families, tiny_model
from slow import slow_except
from torch import Tensor, nn

from trainer.models import fast_attention
from trainer.models.fast_attention import attention, use_attention

NOT_COMPARED = {  # family: why no tiny model of it can be made from keys of its configuration alone
    "cohere_compass_text": "its rotary positions are configured for its own layer types only",
    "dbrx": "its nested attention configuration has no rotary base in this version of the library",
    "fuyu": "reads images: its text model is a configuration within the configuration",
    "gemma4_assistant": "reads the hidden states of another model",
    "gemma4_unified_assistant": "reads the hidden states of another model",
    "glm5_next_text": "only sizes of its own are accepted",
    "hunyuan_vl_text": "needs positions for images and text",
    "kyutai_speech_to_text": "reads sound",
    "t5gemma": "encoder and decoder are configurations within the configuration; the defaults have 2 billion weights",
    "t5gemma2": "encoder and decoder are configurations within the configuration; the defaults have 2 billion weights",
    "voxtral_realtime_text": "the library maps it to a class that does not exist",
}
FASTER = {
    "albert", "bert", "camembert", "distilbert", "electra", "ernie", "eurobert", "gemma", "gemma3_text", "gpt2",
    "gpt_neox", "granite", "llama", "mistral", "mixtral", "modernbert", "olmo2", "opt", "phi3", "qwen2", "qwen3",
    "roberta", "smollm3", "xlm-roberta",
}  # fmt: skip
OWN = {"deepseek_v4", "flint", "gemma2", "gpt_oss", "granite_swa", "mimo_v2_flash", "vaultgemma"}  # sinks and soft caps
BY_NAME = {"axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text"}  # sparse attention


@pytest.fixture
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Class names of the layers whose attention is computed by our function."""
    calls: list[str] = []
    real = fast_attention._attend

    def counted(module: Any, *args: Any) -> Tensor:
        calls.append(type(module).__name__)
        return real(module, *args)

    monkeypatch.setattr(fast_attention, "_attend", counted)
    return calls


@pytest.mark.parametrize(
    ("family", "auto_class"), slow_except(text_families().items(), *((name, text_families()[name]) for name in FEW))
)
def test_every_family_equals_the_attention_of_the_library(family: str, auto_class: str, fast_calls: list[str]) -> None:
    """Forward and gradients, in training without dropout, rows without padding and padded on either side."""
    if family in NOT_COMPARED:
        pytest.skip(f"{family}: {NOT_COMPARED[family]}")
    kind = model_class(family, auto_class)
    if kind is None:
        pytest.skip(f"{family}: reads more than text, or only images or sound")
    if not kind._supports_attention_backend:
        pytest.skip(f"{family}: keeps the library's attention, which cannot be replaced")
    model = tiny_model(family, auto_class)
    batch = batch_of(model)
    expected, gradients = outcome(model, batch)
    use_attention(model, "rankzero")
    found, ours = outcome(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert ours.keys() == gradients.keys()
    largest = max(float(g.norm()) for g in gradients.values())
    far = {n: float((ours[n] - g).norm()) for n, g in gradients.items()}
    assert {n: d for n, d in far.items() if d > 1e-4 * float(gradients[n].norm()) + 1e-6 * largest} == {}
    assert bool([name for name in fast_calls if name != "_Sample"]) or family not in FASTER
    assert not [name for name in fast_calls if name != "_Sample"] or family not in OWN | BY_NAME
    assert model.config._attn_implementation == ("eager" if family in BY_NAME else model.config._attn_implementation)


def test_the_names_in_this_file_are_families() -> None:
    assert not {*NOT_COMPARED, *FASTER, *OWN, *BY_NAME} - text_families().keys()


@pytest.mark.parametrize("cap", [0.5, 50.0])
def test_soft_caps_of_scores_are_applied(cap: float) -> None:
    """gemma2 with a cap that changes the loss: as the library's eager attention computes it."""
    found = {}
    for kind in ("eager", "rankzero"):
        model = tiny_model("gemma2", "AutoModelForCausalLM", attn_logit_softcapping=cap)
        use_attention(model, kind)
        found[kind] = outcome(model, batch_of(model))[0]
    torch.testing.assert_close(found["rankzero"], found["eager"])
    without = tiny_model("gemma2", "AutoModelForCausalLM", attn_logit_softcapping=None)
    assert float((outcome(without, batch_of(without))[0] - found["eager"]).abs().max()) > 2e-4


def simple_eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float, scaling: float) -> tuple[Tensor, Tensor]:
    weights = (q @ k.transpose(2, 3) * scaling + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def plain_eager_attention_forward(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float = 1.0, dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return simple_eager(q, k, v, 0.0 if mask is None else mask, scaling)


def extended_eager_attention_forward(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float = 1.0, dropout: float = 0.0,
    sliding_window: int | None = None, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One that reads an argument which others ignore, and arguments without a name of their own."""
    bias = 0.0 if mask is None else mask
    return simple_eager(q, k, v, bias, scaling * (sliding_window or 1) * options.get("temperature", 1.0))


def module_eager_attention_forward(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float = 1.0, dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One that reads a setting of its module, where the module has it."""
    bias = 0.0 if mask is None else mask
    return simple_eager(q, k, v, bias, scaling * getattr(module, "sharpness", 1.0))


ALL_ATTENTION_FUNCTIONS = SimpleNamespace(get_interface=lambda name, default: default)


class Plain(nn.Module):
    def forward(self, *tensors: Tensor) -> Any:
        return ALL_ATTENTION_FUNCTIONS.get_interface("x", plain_eager_attention_forward)(self, *tensors)


class Extended(nn.Module):
    def forward(self, *tensors: Tensor) -> Any:
        return ALL_ATTENTION_FUNCTIONS.get_interface("x", extended_eager_attention_forward)(self, *tensors)


class WithSetting(nn.Module):
    sharpness = 3.0

    def forward(self, *tensors: Tensor) -> Any:
        return ALL_ATTENTION_FUNCTIONS.get_interface("x", module_eager_attention_forward)(self, *tensors)


@pytest.mark.parametrize(
    ("kind", "options", "ours"),
    [
        (Plain, {}, True),
        (Plain, {"is_causal": True, "sliding_window": 3, "output_attentions": False, "softcap": None}, True),
        (Plain, {"softcap": 30.0}, False),
        (Plain, {"output_attentions": True}, False),
        (Plain, {"what_comes_next": torch.ones(1)}, False),
        (Plain, {"scaling": torch.tensor(0.5)}, False),
        (Extended, {}, True),
        (Extended, {"sliding_window": 3}, False),
        (Extended, {"temperature": 2.0}, False),
        (WithSetting, {}, False),
    ],
)  # fmt: skip
def test_unsupported_attention_is_left_to_the_library(
    kind: type, options: dict[str, Any], ours: bool, fast_calls: list[str]
) -> None:
    module = kind().eval()
    q, k, v = (torch.randn(2, 2, 6, 4) for _ in range(3))
    mask = torch.zeros(2, 1, 6, 6).masked_fill(torch.rand(2, 1, 6, 6) < 0.3, torch.finfo(torch.float32).min)
    own: Any = globals()[fast_attention._eager_function(kind).__name__]  # type: ignore[union-attr]
    for given in (mask, None):
        expected = own(module, q, k, v, given, **{"scaling": 0.7, "dropout": 0.0} | options)[0]
        found, weights = attention(module, q, k, v, given, **{"scaling": 0.7, "dropout": 0.0} | options)
        torch.testing.assert_close(found, expected)
        assert (weights is None) == ours
    assert fast_calls.count(kind.__name__) == 2 * ours


def test_grouped_keys_and_values_of_another_width() -> None:
    """Two heads share each key, and values are wider than keys."""
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 10)
    found, _ = attention(Plain().eval(), q, k, v, None, scaling=0.5)
    expected = simple_eager(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), 0.0, 0.5)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("length", [8, 80])
def test_a_row_that_sees_nothing_is_no_nan_in_bf16(length: int) -> None:
    """The least fp32 number, with which the library masks, is -inf in bf16. Left padding masks whole rows."""
    q, k, v = (torch.randn(1, 2, length, 4, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(1, 1, length, length)
    mask[:, :, 0] = torch.finfo(torch.float32).min
    found, _ = attention(Plain().eval(), q, k, v, mask)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[0, 0].float(), v[0].float().mean(1), atol=0.02, rtol=0.02)

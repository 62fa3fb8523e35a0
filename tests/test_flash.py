"""`model.attention: flash`: refused where it cannot run, and what its kernels get where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as library
from task_helpers import LABELS, examples_of, gradients, pretrained, toy_task
from torch import Tensor

from trainer.errors import UsageError
from trainer.models import fast_attention, flash
from trainer.models.flash import check_flash, use_flash

BERT = pretrained("bert", attention="flash")


def test_without_a_gpu_it_is_refused_and_a_finished_model_still_loads() -> None:
    task = toy_task(LABELS, BERT)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"model.attention=flash needs an NVIDIA GPU .* set model.attention=auto"):
        check_flash(task.recipe.model)
    check_flash(toy_task(LABELS, pretrained("bert")).recipe.model)
    assert task.build_model().config._attn_implementation == fast_attention.FAST


def test_the_message_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "Ampere or newer, and this is Tesla T4" in str(flash.flash_problem())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    assert "package flash-attn or kernels" in str(flash.flash_problem())


def test_a_family_without_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"MPNetForSequenceClassification .* does not support it"):
        use_flash(toy_task(LABELS, pretrained("mpnet")).build_model())


def _reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """What the kernels compute for (B, T, H, D), with SDPA."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    attended = None if mask is None else mask[:, None, None, :].bool()
    if (ends := options.get("cu_seq_lens_q")) is not None:
        assert mask is None
        numbers = torch.bucketize(torch.arange(q.shape[2]), ends[1:].long(), right=True)
        attended = (numbers[:, None] == numbers)[None, None]
        assert int((ends[1:] - ends[:-1]).max()) <= options["max_length_q"] == options["max_length_k"]
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attended, scale=options["softmax_scale"])
    return y.transpose(1, 2)


@pytest.mark.parametrize("padding", ["longest", "none"])
def test_the_kernels_get_rows_without_a_square_mask(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's function is replaced by a reference, since its kernels need a GPU."""
    plain = toy_task(LABELS, pretrained("bert"))
    model = plain.build_model()
    examples = examples_of(plain)
    expected = gradients(plain, model, plain.training_batch(examples))
    calls: list[tuple[Any, set[str]]] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        calls.append((None if mask is None else tuple(mask.shape), set(options)))
        return _reference(q, k, v, mask, **options)

    monkeypatch.setattr(library, "_flash_attention_forward", recorded)
    monkeypatch.setattr(flash, "flash_runs", lambda device, dtype: True)
    task = toy_task(LABELS, pretrained("bert"), padding=padding)
    task.padded_for(model)
    use_flash(model)
    found = gradients(task, model, task.training_batch(examples))
    assert calls
    for shape, options in calls:
        assert shape == (None if padding == "none" else (4, max(len(e["input_ids"]) for e in examples)))
        assert ("cu_seq_lens_q" in options) == (padding == "none")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-6)

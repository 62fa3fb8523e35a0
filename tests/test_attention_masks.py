"""Masks of attention in training: none where nothing is hidden, and no look at the values of one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from task_helpers import CAUSAL, LABELS, OWN, examples_of, gradients, pretrained, toy_task
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.models.configs import TransformerConfig
from trainer.models.library_masks import known_rows
from trainer.models.transformer import Transformer

READS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero")
TRANSLATION = {"kind": "translation"}
SUMMARY = {"kind": "text_to_text"}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: (LABELS, pretrained(name)) for name in ("bert", "roberta", "mpnet")},
    "gpt2": (CAUSAL, pretrained("gpt2")),
    "gpt2 alone": ({**CAUSAL, "packing": False}, pretrained("gpt2")),
    "t5": (SUMMARY, pretrained("t5")),
    "transformer": (TRANSLATION, {"kind": "transformer", **OWN}),
    "encoder": (LABELS, {"kind": "encoder", **OWN}),
}


class Reads(TorchDispatchMode):
    """Count the operations whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).rpartition(".")[0] in READS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """(type of the mask or None, is_causal) of every call of SDPA."""
    found: list[tuple[Any, bool]] = []
    real = F.scaled_dot_product_attention

    def recorded(q: Any, k: Any, v: Any, attn_mask: Any = None, **options: Any) -> Any:
        found.append((None if attn_mask is None else attn_mask.dtype, options.get("is_causal", False)))
        return real(q, k, v, attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    return found


def _with(name: str, attention: str) -> tuple[Any, Any]:
    task, model = FAMILIES[name]
    made = toy_task(task, {**model, "attention": attention})
    torch.manual_seed(0)
    return made, made.build_model()


NONE, CAUSALLY, BOOLEAN = (None, False), (None, True), (torch.bool, False)
EXPECTED: dict[str, tuple[set[Any], set[Any]]] = {  # without padding, with padding
    "transformer": ({NONE, CAUSALLY}, {BOOLEAN, CAUSALLY}),
    "encoder": ({NONE}, {BOOLEAN}),
    "bert": ({NONE}, {BOOLEAN}),
    "gpt2": ({BOOLEAN}, {BOOLEAN}),
    "gpt2 alone": ({CAUSALLY}, {CAUSALLY}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_sdpa_gets_the_mask_that_reaches_the_fastest_kernel(name: str, calls: list[tuple[Any, bool]]) -> None:
    task, model = _with(name, "sdpa")
    examples = examples_of(task)
    for rows, expected in zip((examples[:1], examples), EXPECTED[name], strict=True):
        calls.clear()
        task.loss_and_memory(model.train(), task.training_batch(rows))
        assert set(calls) == expected


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_model_looks_at_the_values_of_its_mask(name: str, attention: str) -> None:
    task, model = _with(name, attention)
    examples = examples_of(task)
    for rows in (examples, examples[:1]):
        batch = task.training_batch(rows)
        with Reads() as reads:
            gradients(task, model, batch)
        assert reads.found == []


def test_the_library_looks_at_masks_elsewhere() -> None:
    """The count of the test above would be found: outside a step of a task, the library looks."""
    task, model = _with("bert", "auto")
    batch = task.collate(examples_of(task))
    with Reads() as reads:
        task.loss(model, batch)
    assert reads.found


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_do_not_depend_on_attention_or_on_a_mask_that_hides_nothing(name: str) -> None:
    task, model = _with(name, "auto")
    other, same = _with(name, "sdpa")
    same.load_state_dict(copy.deepcopy(model.state_dict()))
    for rows in (examples_of(task), examples_of(task)[:1]):
        plain = gradients(task, model, task.collate(rows))
        for batch, of, by in ((task.training_batch(rows), task, model), (task.training_batch(rows), other, same)):
            found = gradients(of, by, batch)
            assert found.keys() == plain.keys()
            for key, value in plain.items():
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-6, msg=f"{name} {key}")


def test_steps_on_a_cpu_stay_bitwise_the_same_without_the_mask() -> None:
    for name in ("bert", "encoder", "transformer", "t5"):
        task, model = _with(name, "auto")
        rows = examples_of(task)[:1]
        batch, masked = task.training_batch(rows), task.collate(rows)
        assert batch.keys() != masked.keys()
        before, after = gradients(task, model, masked), gradients(task, model, batch)
        assert all(torch.equal(before[key], after[key]) for key in before), name


def test_a_row_of_padding_gives_numbers_with_a_boolean_mask() -> None:
    model = Transformer(TransformerConfig(**OWN, attention="sdpa"), 20, 0, 8)
    logits = model(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_split_micro_batches_keep_what_is_known_of_their_rows() -> None:
    for name in ("transformer", "bert"):
        task, _ = _with(name, "auto")
        rows = examples_of(task)[:1] * 2
        batch = task.training_batch(rows)
        parts = task.split(batch, 2)
        assert [part.keys() for part in parts] == [batch.keys()] * 2


def test_masks_are_the_librarys_outside_a_step() -> None:
    from transformers import masking_utils

    _with("gpt2", "sdpa")
    restarting, plain = torch.tensor([[0, 1, 2, 0, 1]]), torch.arange(5)[None]
    find = masking_utils.find_packed_sequence_indices
    assert find(plain) is None
    assert find(restarting).tolist() == [[0, 0, 0, 1, 1]]  # type: ignore[union-attr]
    with known_rows(several=False):
        assert find(restarting) is None
    with known_rows(several=True):
        assert find(restarting).tolist() == [[0, 0, 0, 1, 1]]  # type: ignore[union-attr]
        assert find(plain).tolist() == [[0, 0, 0, 0, 0]]  # type: ignore[union-attr]

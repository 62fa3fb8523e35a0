"""R-Drop: two forwards of each row with different dropout masks, and the divergence between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from task_helpers import CAUSAL, examples_of, pretrained, toy_task
from task_helpers import LABELS as CLASSES

from trainer.engine.objective import Objective
from trainer.errors import UsageError
from trainer.models import loss, loss_groups, output_layer
from trainer.models.loss import cross_entropy_sum, r_drop_loss
from trainer.models.loss_groups import GroupLosses
from trainer.models.output_layer import DeferredLogits
from trainer.recipe_loading import Recipe, check_recipe
from trainer.task.micro_batches import CORPORA
from trainer.tasks.classification.task import Classification

LABELS = torch.tensor([0, 3, -100, 6, 2])


def of_the_paper(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, alpha: float) -> torch.Tensor:
    """Half of the loss of the paper, by functions of torch."""
    first, second = logits.double().chunk(2)
    kind = {"ignore_index": -100, "reduction": "sum", "label_smoothing": smoothing}
    entropies = F.cross_entropy(first, labels, **kind) + F.cross_entropy(second, labels, **kind)
    log_p, log_q = (x[labels != -100].log_softmax(-1) for x in (first, second))
    divergences = [F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((log_p, log_q), (log_q, log_p))]
    return (entropies + alpha * sum(divergences) / 2) / 2


@pytest.mark.parametrize("chunk", [2**18, 14], ids=["at once", "row by row"])
@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 5.0), (0.1, 5.0), (0.1, 0.5)])
def test_loss_and_gradient_are_those_of_the_paper(
    monkeypatch: pytest.MonkeyPatch, chunk: int, smoothing: float, alpha: float
) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    logits = torch.randn(10, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32).requires_grad_()
    ours = r_drop_loss(logits, LABELS, smoothing, alpha)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    expected = of_the_paper(logits, LABELS, smoothing, alpha)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, expected_gradient.float(), atol=1e-6)
    assert gradient[[2, 7]].abs().max() == 0  # the ignored label, in both forwards


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_fp32(dtype: torch.dtype, autocast: bool) -> None:
    logits = torch.randn(10, 7, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = r_drop_loss(logits, LABELS, 0.1, 5.0)
    ours.backward()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(of_the_paper(logits, LABELS, 0.1, 5.0).item(), rel=1e-5)
    assert logits.grad is not None and logits.grad.dtype == dtype


def test_equal_forwards_have_the_usual_loss() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    usual = cross_entropy_sum(logits, LABELS, 0.1)
    assert r_drop_loss(torch.cat([logits, logits]), LABELS, 0.1, 5.0).item() == pytest.approx(usual.item(), rel=1e-6)


OWN = {"d_model": 16, "heads": 2, "feed_forward": 32, "dropout": 0.3}
BERT = pretrained("bert", dropout=0.3)
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "translation": ({"kind": "translation"}, {"kind": "transformer", **OWN}),
    "text_to_text": ({"kind": "text_to_text"}, pretrained("t5", dropout=0.3)),
    "causal": (CAUSAL, pretrained("gpt2", dropout=0.3)),
    "classification": (CLASSES, {"kind": "encoder", "layers": 1, **OWN}),
    "pretrained": (CLASSES, BERT),
    "token_classification": ({"kind": "token_classification", "labels": ["PER", "ORG"]}, BERT),
}


def with_weight(name: str, weight: float) -> tuple[Objective, dict[str, torch.Tensor]]:
    task = toy_task(*TASKS[name])
    task.recipe = task.recipe.model_copy(update={"optim": task.recipe.optim.model_copy(update={"r_drop": weight})})
    torch.manual_seed(0)
    return Objective(task, task.build_model()), task.training_batch(examples_of(task))


def loss_of(objective: Objective, batch: dict[str, torch.Tensor]) -> float:
    torch.manual_seed(1)
    return Objective.parts(objective(**batch))[0].item()


@pytest.mark.parametrize("name", TASKS)
def test_the_divergence_of_two_dropout_masks_is_added(name: str) -> None:
    found = {}
    for weight in (0.0, 2.0, 4.0, 6.0):
        objective, batch = with_weight(name, weight)
        found[weight] = loss_of(objective.train(), batch), loss_of(objective.eval(), batch)
    trained, evaluated = ([pair[i] for pair in found.values()] for i in (0, 1))
    assert evaluated == pytest.approx([evaluated[0]] * 4, rel=1e-5), "without dropout both forwards are equal"
    assert trained[2] - trained[1] == pytest.approx(trained[3] - trained[2], rel=1e-3)
    assert trained[2] - trained[1] > 1e-4 * trained[0]


@pytest.mark.parametrize("name", TASKS)
def test_bf16_autocast_trains_as_fp32(name: str) -> None:
    objective, batch = with_weight(name, 5.0)
    expected = loss_of(objective.train(), batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = Objective.parts(objective(**batch))[0]
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=0.03)
    assert all(weight.grad.isfinite().all() for weight in objective.parameters() if weight.grad is not None)
    assert any(weight.grad.abs().max() > 0 for weight in objective.parameters() if weight.grad is not None)


def test_losses_of_corpora_add_up_to_the_loss() -> None:
    objective, batch = with_weight("translation", 5.0)
    groups = GroupLosses(2, torch.device("cpu"))
    corpora = torch.tensor([0, 1, 1, 0])
    torch.manual_seed(1)
    with loss_groups.collecting(groups):
        found = Objective.parts(objective.train()(**batch, **{CORPORA: corpora}))[0].item()
    assert groups.complete
    assert groups.sums.sum().item() == pytest.approx(found, rel=1e-5)
    assert groups.sums.min() > 0


@pytest.mark.parametrize(
    ("section", "changed", "named"),
    [
        ("task", {"class_weights": "balanced"}, "task.class_weights"),
        ("task", {"focal_gamma": 2.0}, "task.focal_gamma"),
        ("task", {"mode": "multi"}, "task classification (MultiLabel)"),
        ("data", {"padding": "none"}, "data.padding: none"),
        ("data", {"columns": {"text": "text", "label": "label", "weight": "weight"}}, "data.columns.weight"),
        ("optim", {"adversarial": {"kind": "fgm"}}, "optim.adversarial"),
    ],
)
def test_what_does_not_support_it_is_named(section: str, changed: dict[str, Any], named: str) -> None:
    values: dict[str, Any] = {
        "name": "x", "task": CLASSES, "data": {"root": "x", "train": "x"}, "model": {"kind": "encoder", **OWN},
        "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 300}}, "optim": {"r_drop": 5.0},
        "loop": {"max_steps": 1},
    }  # fmt: skip
    if "mode" not in changed:
        check_recipe(Recipe.parse({**values, section: values[section]}))
    with pytest.raises(UsageError) as raised:
        check_recipe(Recipe.parse({**values, section: {**values[section], **changed}}))
    assert f"optim.r_drop: {named} does not support it; leave one of them out" in str(raised.value)


def test_a_task_with_a_loss_of_its_own_is_refused() -> None:
    """The loss would get each row twice."""

    class Own(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            return super().loss(model, batch)

    class Renamed(Classification):
        pass

    assert (Classification.r_drop, Own.r_drop, Renamed.r_drop) == (True, False, True)


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_vocabulary_is_computed_in_chunks(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """Three labels at a time, each in both forwards. Loss and gradients are those of all at once."""
    torch.manual_seed(0)
    hidden, layer = torch.randn(2, 5, 4, requires_grad=True), torch.nn.Linear(4, 7, bias=bias)
    inputs = [hidden, *layer.parameters()]
    expected = r_drop_loss(layer(hidden).flatten(0, -2), LABELS, 0.1, 5.0)
    gradients = torch.autograd.grad(3 * expected, inputs)
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 2 * 3 * 7)
    logits = DeferredLogits(hidden, layer.weight, layer.bias)
    found = r_drop_loss(logits.flatten(0, -2), LABELS, 0.1, 5.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(3 * found, inputs), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)

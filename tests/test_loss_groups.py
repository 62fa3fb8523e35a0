"""The losses of corpora: of every task, those of its rows alone, and none where a loss is not reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from task_helpers import CAUSAL, LABELS, OWN, examples_of, pretrained, toy_task

from trainer.engine.objective import Objective
from trainer.models import loss_groups
from trainer.models.loss_groups import GroupLosses
from trainer.task.micro_batches import CORPORA, IGNORED

ENCODER = {"kind": "encoder", "layers": 1, **OWN}
TRANSFORMER = {"kind": "transformer", "encoder_layers": 1, "decoder_layers": 1, **OWN}
MIXED = {"train": [], "mix": [{"name": n, "train": "x", "weight": 1} for n in ("a", "b", "c")]}


def half_of(logits: Any, labels: Any) -> Any:
    """A loss of a user."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / 2


TASKS = {
    "translation": ({"kind": "translation"}, TRANSFORMER, {}),
    "translation-concatenated": ({"kind": "translation"}, TRANSFORMER, {"padding": "none"}),
    "causal": (CAUSAL, pretrained("gpt2"), {}),
    "masked": ({"kind": "language_modeling", "objective": "mlm"}, pretrained("bert"), {}),
    "single": (LABELS, ENCODER, {}),
    "focal": ({**LABELS, "focal_gamma": 2.0}, ENCODER, {}),
    "class-weights": ({**LABELS, "class_weights": {"negative": 2.0, "positive": 1.0}}, ENCODER, {}),
    "multi": ({**LABELS, "mode": "multi"}, ENCODER, {}),
    "own-loss": ({**LABELS, "loss": "test_loss_groups:half_of"}, ENCODER, {}),
    "text-to-text": ({"kind": "text_to_text"}, pretrained("t5"), {}),
    "tags": ({"kind": "token_classification", "labels": ["PER", "ORG"]}, ENCODER, {}),
}


def batch_of(task: Any) -> Any:
    examples = examples_of(task)
    batch = task.training_batch(examples)
    return {**batch, CORPORA: torch.arange(len(examples)) % 2 * 2}  # none of the second corpus


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_corpus_is_that_of_its_rows(name: str) -> None:
    config, model_section, data = TASKS[name]
    task = toy_task(config, model_section, **MIXED, **data)
    torch.manual_seed(0)
    model = task.build_model().train()
    objective, batch, groups = Objective(task, model), batch_of(task), GroupLosses(3, torch.device("cpu"))
    for _ in range(2):  # sums continue over micro-batches
        with loss_groups.collecting(groups):
            loss, _ = Objective.parts(objective(**batch))
    assert groups.complete
    corpora = batch[CORPORA][task.label_rows(batch)].view_as(batch["labels"])
    expected = [0.0, 0.0, 0.0]
    for corpus in (0, 2):
        own = {**batch, "labels": batch["labels"].masked_fill(corpora != corpus, IGNORED)}
        expected[corpus] = 2 * float(Objective.parts(objective(**own))[0].detach())
    assert groups.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(groups.sums.sum()) == pytest.approx(2 * float(loss.detach()), rel=1e-5)
    targets = task.targets_by_corpus(batch)
    assert sum(targets) == task.targets(batch)
    assert targets[1] == 0 < min(targets[0], targets[2])


def test_a_loss_that_reports_nothing_is_not_complete() -> None:
    task = toy_task(LABELS, ENCODER, **MIXED)
    task.loss = lambda model, batch: task.logits(model, batch).square().sum()
    groups = GroupLosses(3, torch.device("cpu"))
    with loss_groups.collecting(groups):
        Objective(task, task.build_model())(**batch_of(task))
    assert not groups.complete


def test_nothing_is_collected_for_a_filler() -> None:
    task, groups = toy_task(LABELS, ENCODER, **MIXED), GroupLosses(3, torch.device("cpu"))
    with loss_groups.collecting(groups):
        Objective(task, task.build_model())(**task.filler())
    assert groups.complete
    assert groups.sums.tolist() == [0.0, 0.0, 0.0]


def test_a_gpu_and_a_large_vocabulary_report_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two other paths of the cross-entropy: chunks of the output layer, and torch's own."""
    task = toy_task(CAUSAL, pretrained("gpt2"), **MIXED)
    torch.manual_seed(0)
    model, batch, found = task.build_model().eval(), batch_of(task), []
    for patch in ((), ("trainer.models.output_layer.MOST_LOGITS", 2000), ("trainer.models.loss.CHUNK", 0)):
        groups = GroupLosses(3, torch.device("cpu"))
        with monkeypatch.context() as context, loss_groups.collecting(groups):
            if patch:
                context.setattr(*patch)
            if patch and patch[1] == 0:
                context.setattr(torch.compiler, "is_compiling", lambda: True)
            Objective(task, model)(**batch)
        assert groups.complete
        found.append(groups.sums.tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("name", ["masked", "translation-concatenated", "multi"])
def test_the_parts_of_a_micro_batch_have_the_same_sums(name: str) -> None:
    """As after an out of memory: rows go in parts, each with its corpora."""
    config, model_section, data = TASKS[name]
    task = toy_task(config, model_section, **MIXED, **data)
    model, batch, found = task.build_model().eval(), batch_of(task), []
    for parts in (1, 2):
        groups = GroupLosses(3, torch.device("cpu"))
        for part in task.split(batch, parts):
            with loss_groups.collecting(groups):
                Objective(task, model).eval()(**part)
        assert groups.complete
        found.append(groups.sums.tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert min(found[0][0], found[0][2]) > 0

"""`data.padding: none`: the same loss and gradients as with padding, for every family that supports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import read_lines, train
from review_helpers import recipe, write_bert, write_reviews, written
from safetensors.torch import load_file
from slow import slow_except
from task_helpers import CAUSAL, LABELS, OWN, examples_of, gradients, pretrained, toy_task
from torch import Tensor

from trainer.errors import UsageError
from trainer.models import padding_free
from trainer.models.families.positions import CONCATENATED
from trainer.models.library_masks import known_rows
from trainer.models.padding_free import check_family
from trainer.recipe_loading import Recipe, check_recipe

NO_SCORES = ("evaluation.splits=[]", "data.validation=null")
TAGS = {"kind": "token_classification", "labels": ["PER", "LOC"]}
ENCODER = {"kind": "encoder", **OWN}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: (LABELS, pretrained(name)) for name in ("bert", "camembert", "electra", "gpt2", "mpnet", "roberta")},
    "xlm-roberta": (TAGS, pretrained("xlm-roberta")),
    "llama": (CAUSAL, pretrained("llama")),
    **{name: (CAUSAL, pretrained(name, config={"num_key_value_heads": 1})) for name in ("qwen2", "qwen3")},
    "mistral": (
        {**CAUSAL, "packing": False},
        pretrained("mistral", config={"sliding_window": 4, "num_key_value_heads": 1}),
    ),
    "modernbert": (LABELS, pretrained("modernbert", config={"local_attention": 4})),
    "roberta, mean": (LABELS, pretrained("roberta", pooling="mean")),
    "gpt2 causal": (CAUSAL, pretrained("gpt2")),
    "gpt2 alone": ({**CAUSAL, "packing": False}, pretrained("gpt2")),
    "bert masked": ({"kind": "language_modeling"}, pretrained("bert")),
    "mpnet tags": (TAGS, pretrained("mpnet")),
    "cnn": (LABELS, {"kind": "cnn", "filters": 16, "dropout": 0.0, "word_dropout": 0.0}),
    "encoder": (LABELS, ENCODER),
    "encoder alibi": (LABELS, {**ENCODER, "positions": "alibi", "pooling": "max"}),
    "transformer": ({"kind": "translation"}, {"kind": "transformer", **OWN}),
    "transformer sdpa": ({"kind": "translation"}, {"kind": "transformer", **OWN, "attention": "sdpa"}),
    "bert sdpa": (LABELS, pretrained("bert", attention="sdpa")),
}


def _pair(name: str) -> tuple[Any, Any, Any]:
    """A task with padding, the same without, and their model."""
    task, model = RUNS[name]
    padded, free = (toy_task(task, model, padding=padding) for padding in ("longest", "none"))
    torch.manual_seed(0)
    built = free.build_model()
    for parameter in built.parameters():  # biases and norms away from 0 and 1
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return padded, free, built


def _largest_difference(name: str) -> float:
    """Of a gradient to that of the padded run, over all parameters and the loss, in units of the largest gradient."""
    padded, free, model = _pair(name)
    examples = examples_of(padded)
    if name == "gpt2 causal":  # rows that begin within a document
        examples = [{key: ids[:cut] for key, ids in e.items()} for e, cut in zip(examples, (32, 9, 20), strict=False)]
    before = gradients(padded, model, padded.training_batch(examples))
    batch = free.training_batch(examples)
    after = gradients(free, model, batch)
    assert before.keys() == after.keys()
    assert padded.targets(padded.collate(examples)) == free.targets(batch)
    scale = max(1.0, *(float(value.abs().max()) for value in before.values()))
    return max(float((before[key] - after[key]).abs().max()) for key in before) / scale


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_those_of_the_padded_run(name: str) -> None:
    assert _largest_difference(name) <= 1e-6


def test_every_family_that_is_accepted_is_compared() -> None:
    assert RUNS.keys() >= CONCATENATED


def _from_zero(config: Any, ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def _all_alike(config: Any, ids: Tensor) -> Tensor:
    return torch.full_like(ids, 2)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("roberta", _from_zero), ("mpnet", _from_zero), ("bert", _all_alike), ("modernbert", _all_alike)],
)
def test_wrong_positions_are_found(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "position_ids", wrong)
    assert _largest_difference(name) > 1e-4


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2 alone", "encoder", "transformer"])
def test_attention_across_rows_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free.Rows, "numbers", property(lambda self: torch.zeros_like(self.places)))
    assert _largest_difference(name) > 1e-4


def test_a_trunk_computes_no_padding() -> None:
    _, free, model = _pair("bert")
    shapes = []
    model.bert.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(args[0].shape), with_kwargs=True
    )
    examples = examples_of(free)
    free.loss_and_memory(model, free.training_batch(examples))
    assert [tuple(shape[:2]) for shape in shapes] == [(1, sum(len(e["input_ids"]) for e in examples))]


@pytest.mark.parametrize("name", ["bert", "bert masked", "gpt2 causal", "transformer"])
def test_parts_of_a_micro_batch_sum_up(name: str) -> None:
    _, free, model = _pair(name)
    examples = examples_of(free)
    batch = free.training_batch(examples)
    parts = [part for part in free.split(batch, len(examples)) if part is not None]
    losses = [gradients(free, model, part)["loss"] for part in parts]
    assert len(parts) == len(examples)
    torch.testing.assert_close(sum(losses), gradients(free, model, batch)["loss"], rtol=1e-5, atol=1e-5)
    assert gradients(free, model, free.filler())["loss"] == 0


def test_no_block_is_left_open() -> None:
    with pytest.raises(ValueError, match="inside"), known_rows(several=True), padding_free.concatenated(None):
        raise ValueError("inside")
    assert padding_free.current() is None


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def padded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded")
    write_bert(write_reviews(folder) / "bert")
    sgd = {"name": "sgd", "lr": 0.1, "schedule": "constant"}
    model = {"kind": "pretrained", "name": str(folder / "bert"), "dropout": 0.0}
    made = recipe(folder, model, optim=sgd, loop={"max_steps": 3, "eval_every": 3, "save_every": 3, "log_every": 1})
    train(written(folder, made), folder / "padded", *NO_SCORES).check()
    return folder


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["ddp", "fsdp2", "zero3"], "ddp"))
def test_steps_of_ranks_are_those_of_the_padded_run(engine: str, padded_run: Path) -> None:
    run = padded_run / engine
    [written_recipe] = padded_run.glob("*.yaml")
    train(written_recipe, run, *NO_SCORES, "data.padding=none", world=2, engine=engine).check()
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]
    assert {line["padding"] for line in lines} == {0.0}
    weights = [load_file(path / "checkpoints/step-00000003/model.safetensors") for path in (padded_run / "padded", run)]
    assert max(float((value - weights[1][key]).abs().max()) for key, value in weights[0].items()) < 1e-6


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "model", "sections", "message"),
    [
        ({"kind": "text_to_text"}, pretrained("t5"), {}, "task text_to_text .* does not support it"),
        (
            LABELS,
            pretrained("xlnet"),
            {},
            "rows of 'xlnet' cannot be concatenated; leave it out",
        ),
        (LABELS, pretrained("bert"), {"loop": {"max_steps": 1, "compile": True}}, "loop.compile does not support it"),
        (LABELS, ENCODER, {"optim": {"adversarial": {"kind": "fgm"}}}, "optim.adversarial does not support it"),
        (CAUSAL, {"kind": "transformer_xl", "memory": 0}, {}, "RecurrentLanguageModeling.* does not support it"),
    ],
)
def test_what_does_not_support_it_is_refused_with_the_recipe(
    task: dict[str, Any], model: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    made = toy_task(task, model).recipe.model_dump(mode="json")
    made["data"]["padding"] = "none"
    with pytest.raises(UsageError, match=message):
        check_recipe(Recipe.parse({**made, **sections}))


def test_pretrained_weights_of_another_family_are_refused_before_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "xlnet"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"data.padding: none: rows of 'xlnet' cannot be concatenated.*model.name="):
        check_family(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}', encoding="utf-8")
    check_family(str(tmp_path))

"""User code named in a recipe: metrics, callbacks, optimizers, cleaning steps."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
import yaml
from processes import read_lines, run_ranks, train
from review_helpers import recipe as review_values
from review_helpers import write_reviews
from safetensors.torch import load_file

from trainer import api, user_code
from trainer.engine.trained_run import TrainedRun
from trainer.errors import RankError, UsageError
from trainer.recipe_loading import Recipe, check_recipe, load_recipe
from trainer.task import user_metrics
from trainer.task.registry import task_class

MODULE = '''
"""Code of a user."""
import json

from trainer import Callback
from trainer.optim.choices import Lion


def swapped(records):
    """Share of rows whose prediction is the other class."""
    return sum(row["target"] != row["prediction"] for row in records) / len(records)


swapped.direction = "min"


def cross_entropy(logits, labels):
    import torch.nn.functional as F

    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def half(logits, labels):
    return cross_entropy(logits, labels) / 2


def by_row(logits, labels):
    return logits[:, 0]


def shout(text):
    return text.upper() + "!"


class Recorder(Callback):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lines = []

    def on_step(self, step, values):
        self.lines.append(["step", step, sorted(values)])
        values.clear()

    def on_log(self, step, values):
        self.lines.append(["log", step, values["loss"]])

    def on_eval(self, step, scores):
        self.lines.append(["eval", step, scores["swapped"]])

    def on_save(self, step, folder):
        self.lines.append(["save", step, folder.name])

    def on_end(self, step):
        self.lines.append(["end", step])
        (self.run / f"recorded-{self.rank}-of-{self.ranks}.json").write_text(json.dumps(self.lines))


class OwnLion(Lion):
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user on the path, of a name that no other test has imported."""
    name = f"own_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(user_code.ALLOWED, "")
    return name


def review_recipe(root: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe of reviews, as a YAML file has them."""
    own: dict[str, Any] = review_values(root).model_dump(mode="json", exclude_unset=True)
    for name, changes in sections.items():
        own[name] = {**own.get(name, {}), **changes}
    return own


@pytest.mark.ranks
def test_metric_callback_cleaning_and_optimizer_of_a_user(tmp_path: Path, module: str) -> None:
    """All four are used on both ranks, recorded, and change no step."""
    values = review_recipe(
        write_reviews(tmp_path),
        loop={"callbacks": [f"{module}:Recorder"], "early_stopping": {"metric": "swapped"}, "eval_first": True},
        evaluation={"metrics": [f"{module}:swapped"]},
        data={"cleaning": ["fold_whitespace", f"{module}:shout"]},
        optim={"name": f"{module}:OwnLion", "lr": 1e-3, "options": {"betas": [0.9, 0.95]}},
    )
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    hook = functools.partial(hooks.import_from, str(tmp_path))
    train(recipe, run, world=2, hook=hook).check()
    scores = json.loads((run / "evaluation/test/metrics.json").read_text())
    assert scores["swapped"] == pytest.approx(1 - scores["accuracy"])
    assert "Swapped" in (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    facts = json.loads((run / "manifest.json").read_text())["user_code"]
    digest = hashlib.sha256((tmp_path / f"{module}.py").read_bytes()).hexdigest()
    names = ("Recorder", "swapped", "shout", "OwnLion")
    assert facts == {f"{module}:{name}": {"sha256": digest} for name in names}
    logs = [json.loads((run / f"recorded-{rank}-of-2.json").read_text()) for rank in range(2)]
    assert logs[0] == logs[1], "every rank sees the same numbers"
    called = [(line[0], line[1]) for line in logs[0] if line[0] != "log"]
    steps = {4: [("eval", 4), ("save", 4)], 8: [("eval", 8), ("save", 8), ("end", 8)]}
    assert called == [("eval", 0), *(line for step in range(1, 9) for line in [("step", step), *steps.get(step, [])])]
    assert [line for line in logs[0] if line[0] == "step"][3] == [
        "step", 4, ["epoch", "grad_norm", "lr", "progress", "rows", "tokens"],
    ]  # fmt: skip
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "validation"] == [0, 4, 8]
    assert [line[2] for line in logs[0] if line[0] == "log"] == [
        line["loss"] for line in lines if line["split"] == "train"
    ]

    plain = tmp_path / "plain"
    train(recipe, plain, "loop.callbacks=[]", "loop.eval_first=false", "loop.log_every=8", hook=hook).check()
    tensors = [load_file(folder / "checkpoints/step-00000008/model.safetensors") for folder in (run, plain)]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], rtol=0, atol=2e-6)

    words = ["predict", run, "a good film"]
    refused = run_ranks(words, tmp_path / "refused", hook=hook).check(2)
    assert f"set {user_code.ALLOWED}={module}" in refused.err[0]
    run_ranks(words, tmp_path / "answered", hook=hook, env={user_code.ALLOWED: module}).check()


@pytest.mark.ranks
def test_a_loss_of_a_user_is_divided_by_the_labels_of_the_step(tmp_path: Path, module: str) -> None:
    """The same function gives the same weights, on one rank and on two; another one gives others."""
    recipe = tmp_path / "recipe.yaml"
    values = review_recipe(write_reviews(tmp_path), optim={"name": "sgd", "lr": 0.5}, evaluation={"splits": []})
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    hook = functools.partial(hooks.import_from, str(tmp_path))
    weights = []
    for name, ranks in (("", 1), ("cross_entropy", 1), ("cross_entropy", 2), ("half", 1)):
        run = tmp_path / f"run-{name}-{ranks}"
        train(recipe, run, *([f"task.loss={module}:{name}"] if name else []), world=ranks, hook=hook).check()
        weights.append(load_file(run / "checkpoints/step-00000008/model.safetensors"))
    usual, same, on_two, other = weights
    for key, tensor in usual.items():
        torch.testing.assert_close(same[key], tensor, rtol=0, atol=1e-6)
        torch.testing.assert_close(on_two[key], tensor, rtol=0, atol=1e-6)
    assert max(float((other[key] - tensor).abs().max()) for key, tensor in usual.items()) > 1e-3
    refused = train(recipe, tmp_path / "refused", f"task.loss={module}:by_row", hook=hook).check(2)
    assert "returned Tensor, not a tensor with one number" in refused.err[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.loss=MODULE:nothing", "module MODULE has no 'nothing'"),
        ("task={loss: 'MODULE:half', focal_gamma: 2}", "task.focal_gamma: is not used with the loss"),
        ("evaluation.metrics=[MODULE:nothing]", "module MODULE has no 'nothing'"),
        ("evaluation.metrics=[MODULE:swapped, MODULE:swapped]", "already has a metric 'swapped'"),
        ("data.cleaning=[no_such_module:f]", "module no_such_module cannot be imported"),
        ("data.cleaning=[MODULE.f]", "unknown step 'MODULE.f'"),
        ("loop.callbacks=[MODULE]", "loop.callbacks.0: 'MODULE' has another form; write package.module:name"),
        ("task.loss=mes", "task.loss: Input should be 'mse', 'mae' or 'huber' (got 'mes'); or 'mes' has another form"),
        ("evaluation.metrics=[MODULE:swaped]", "module MODULE has no 'swaped'; did you mean 'swapped'?"),
        ("optim.name=MODULE:Nothing", "module MODULE has no 'Nothing'"),
        ("optim.name=adam", "optim.name: 'adam' has another form; did you mean 'adamw'?; allowed: adamw"),
    ],
)
def test_wrong_names_are_refused_before_the_start(tmp_path: Path, module: str, override: str, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(review_recipe(tmp_path)), encoding="utf-8")
    key, _, value = override.replace("MODULE", module).partition("=")
    overrides = [f"task.{k}={v}" for k, v in yaml.safe_load(value).items()] if key == "task" else [f"{key}={value}"]
    with pytest.raises(UsageError) as refused:
        load_recipe(recipe, overrides)
    assert message.replace("MODULE", module) in str(refused.value)


def test_a_recipe_of_a_run_imports_nothing(tmp_path: Path, module: str) -> None:
    """Each place that may name code is refused, and the module is not imported."""
    for override in (f"data.cleaning=[{module}:shout]", f"evaluation.metrics=[{module}:swapped]"):
        recipe = Recipe.parse(review_recipe(tmp_path), [override])
        with pytest.raises(UsageError, match=f"set {user_code.ALLOWED}={module}"):
            check_recipe(recipe)
    assert module not in sys.modules


def test_a_metric_that_fails_names_itself(tmp_path: Path, module: str) -> None:
    path = tmp_path / f"{module}.py"
    path.write_text("def broken(records):\n    return records[0]['nothing']\n\n\ndef odd(records):\n    return 1e999\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(review_recipe(tmp_path)), encoding="utf-8")
    records = [{"target": 0, "prediction": 0, "probabilities": [0.9, 0.1], "loss": 0.1, "tokens": 1}]
    for name, message in (("broken", "broken failed on the predictions: KeyError"), ("odd", "odd returned inf")):
        made = task_class(load_recipe(recipe, [f"evaluation.metrics=[{module}:{name}]"]))
        with pytest.raises(RankError, match=message):
            user_metrics._value(name, getattr(sys.modules[module], name), records)
        assert made.metrics[name] == "max"


def test_a_metric_typed_for_a_run_directory_is_trusted(encoder: Any, module: str) -> None:
    """The run directory may come from someone else, the command does not; and predictions need no metric."""
    word = f"evaluation.metrics=[{module}:swapped]"
    with pytest.raises(UsageError, match=f"set {user_code.ALLOWED}={module}"):
        user_metrics.with_metrics(type(encoder.finished.task), (f"{module}:swapped",))
    task = TrainedRun.task_of(encoder.finished.run, Recipe, [word])
    assert "swapped" in task.metrics
    assert "swapped" not in TrainedRun.task_of(encoder.finished.run, Recipe, [word, api.NO_METRICS]).metrics

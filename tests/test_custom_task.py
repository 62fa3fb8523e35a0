"""A task outside rankzero: examples/pairwise_ranking.py, found by `task.kind: package.module:Class`."""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import hooks
import pytest
from processes import Ranks, engine_environment, next_logs, read_lines, run_ranks, wait_until

from trainer.errors import UsageError
from trainer.recipe_loading import Recipe, load_recipe
from trainer.task.registry import task_class
from trainer.user_code import ALLOWED

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPE = EXAMPLES / "pairwise_ranking.yaml"
KIND = "pairwise_ranking:PairwiseRanking"
STEPS = 24


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the folder of the example on the path, without trust in it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv(ALLOWED, "")
    monkeypatch.delitem(sys.modules, "pairwise_ranking", raising=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose better text has a good word and whose worse text has a bad one."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(1)

    def text(words: str) -> str:
        return (
            f"The {draw.choice(['film', 'story', 'cast', 'plot'])} was {draw.choice(words.split())}, {draw.random()}."
        )

    for split, rows in (("train", 160), ("validation", 40), ("test", 40)):
        lines = [{"better": text("great superb lovely"), "worse": text("dull awful weak")} for _ in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(run: Path, pairs: Path, *words: str, world: int = 2, engine: str = "ddp") -> Ranks:
    settings = [f"data.root={pairs}", "data.test=test.jsonl", f"loop.max_steps={STEPS}", "optim.lr=3e-3"]
    argv = ["train", RECIPE, *settings, *words]
    env, hook = engine_environment(engine), hooks.import_examples
    return Ranks([*argv, "--run", run], next_logs(run), world, env=env, hook=hook)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.ranks
def test_a_task_of_another_package_is_killed_resumed_evaluated_reported_and_exported(
    pairs: Path, tmp_path: Path
) -> None:
    """The run that was killed ends with the same weights, and its outputs are complete."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, pairs, "loop.save_every=2").wait().check()
    killed = train(run, pairs, "loop.save_every=2")
    wait_until(lambda: (run / "checkpoints/step-00000004/manifest.json").exists())
    killed.signal(signal.SIGKILL, 0)
    killed.signal(signal.SIGKILL, 1)
    killed.wait()
    assert not (run / "model").exists(), "it was killed before its end"
    ended = train(run, pairs, "loop.save_every=2").wait().check()
    assert "resumed from step" in ended.err[0]
    assert weights(run) == weights(whole)
    scores = json.loads((run / "evaluation/test/metrics.json").read_text())
    assert scores["rows"] == 40
    assert scores["accuracy"] > 0.9
    assert {line["prediction"] for line in read_lines(run / "evaluation/test/predictions.jsonl")} <= {"better", "worse"}
    assert "accuracy" in (run / "README.md").read_text(encoding="utf-8").lower()
    report = (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    assert "accuracy" in report.lower()
    gate = json.loads((run / "export/safetensors/gate.json").read_text())
    assert gate["passed"], gate

    hook = hooks.import_examples
    words = ["predict", run, "a great film\ta dull film"]
    refused = run_ranks(words, tmp_path / "refused", hook=hook).check(2)
    assert f"set {ALLOWED}=pairwise_ranking" in refused.err[0]
    answered = run_ranks(words, tmp_path / "answered", hook=hook, env={ALLOWED: "pairwise_ranking"}).check()
    assert json.loads(answered.out[0])["prediction"] == "better"


@pytest.mark.usefixtures("importable")
def test_a_users_recipe_is_trusted_and_a_run_directory_is_not(tmp_path: Path) -> None:
    """Only a recipe that is started imports the module of its task."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="is code outside rankzero, and a run directory may come from someone else"):
        Recipe.load(tmp_path / "recipe.yaml")
    assert "pairwise_ranking" not in sys.modules
    recipe = load_recipe(RECIPE)
    assert task_class(recipe).kind == KIND
    assert Recipe.load(tmp_path / "recipe.yaml").to_yaml() == recipe.to_yaml(), "imported now, and so allowed"


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no_such_module:Task", "module no_such_module cannot be imported"),
        ("pairwise_ranking:Nothing", "module pairwise_ranking has no 'Nothing'"),
        ("pairwise_ranking:PairwiseRankingConfig", "is not a subclass of trainer.task.Task"),
        ("poetry", "'poetry' is unknown"),
    ],
)
def test_a_wrong_kind_is_refused_with_the_fix(kind: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_recipe(RECIPE, [f"task.kind={kind}"])


@pytest.mark.usefixtures("importable")
def test_an_unknown_key_of_the_task_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task\.margin: unknown key"):
        load_recipe(RECIPE, ["task.margin=1"])


def test_the_example_is_short() -> None:
    lines: Any = (EXAMPLES / "pairwise_ranking.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150

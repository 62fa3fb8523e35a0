"""Evaluations and checkpoints by the clock (`loop.eval_every: 15min`)."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import hooks
import pytest
import yaml
from processes import read_lines, train
from review_helpers import recipe as review_recipe
from review_helpers import write_reviews

from trainer import api
from trainer.engine.timer import Timer
from trainer.recipe.loop_sections import LoopConfig, seconds_of


@pytest.mark.parametrize(
    ("every", "seconds"), [("15min", 900), ("30s", 30), ("2h", 7200), ("epoch", None), (500, None)]
)
def test_times(every: int | str, seconds: int | None) -> None:
    loop = LoopConfig.model_validate({"epochs": 1, "eval_every": every, "save_every": every})
    assert seconds_of(loop.eval_every) == seconds_of(loop.save_every) == seconds


@pytest.mark.parametrize("every", ["15 min", "0min", "1.5h", "min", "-1s", "15m"])
def test_other_forms_are_refused(every: str) -> None:
    with pytest.raises(ValueError, match="eval_every"):
        LoopConfig.model_validate({"epochs": 1, "eval_every": every})


def test_a_timer_is_due_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    timer, counted = Timer("2min"), Timer(50)
    now = 219.9
    assert not timer.due()
    now = 220.0
    assert timer.due()
    timer.restart()
    assert not timer.due()
    now = 1e9
    assert not counted.due()


def test_the_clock_of_evaluations_runs_without_validation_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their steps are saved and averaged. Once one was due, every later step was."""
    seconds = itertools.count()
    monkeypatch.setattr("trainer.engine.timer.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    made = review_recipe(
        write_reviews(tmp_path),
        data={"validation": None, "test": None},
        loop={"eval_every": "3s", "save_every": 100, "keep": "all"},
        optim={"averaging": {"kind": "last", "last": 2}},
        evaluation={"splits": []},
    )
    api.train(made, run=tmp_path / "run")
    steps = [int(path.name.removeprefix("step-")) for path in sorted((tmp_path / "run/checkpoints").glob("step-*"))]
    assert steps == [2, 4, 6, 8]
    stages = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))["stages"]
    assert stages["model"]["weights"] == "average of steps 6, 8"


@pytest.mark.ranks
def test_the_clock_of_rank_zero_decides_for_all_ranks(tmp_path: Path) -> None:
    """Saves by the clock are no part of what selection and averaging count; weights are those of a run without them."""
    recipe = tmp_path / "recipe.yaml"
    made = review_recipe(write_reviews(tmp_path), evaluation={"splits": []}).model_dump(mode="json")
    recipe.write_text(yaml.safe_dump(made), encoding="utf-8")
    words = ("loop.save_every=15min", "loop.keep=all")
    due = functools.partial(hooks.timers_due, 3, 7)
    train(recipe, tmp_path / "run", *words, world=2, hook=due).check()
    steps = [int(path.name.removeprefix("step-")) for path in sorted((tmp_path / "run/checkpoints").glob("step-*"))]
    assert steps == [3, 4, 7, 8]
    train(recipe, tmp_path / "plain", world=2).check()
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("run", "plain")]
    assert weights[0] == weights[1]
    train(recipe, tmp_path / "timed", "loop.eval_every=1h", world=2, hook=due).check()
    lines = read_lines(tmp_path / "timed/metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "validation"] == [3, 7, 8]

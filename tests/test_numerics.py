"""NaN and Inf: found on whichever rank, told with step, lane and rows, and never in the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hooks
import numpy as np
import pytest
from conftest import write_corpus, write_recipe
from processes import read_lines, status, train
from safetensors.numpy import load_file

pytestmark = pytest.mark.ranks

POISONED = 123  # the row of train.jsonl whose loss is NaN
SGD = ("optim.name=sgd", "optim.lr=0.1", "loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on a corpus in which one row has a word of its own, which `hooks.poison` makes NaN of."""
    folder = tmp_path_factory.mktemp("poisoned")
    corpus = write_corpus(folder / "corpus")
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[POISONED])
    lines[POISONED] = json.dumps({**row, "de": row["de"] + " %"})
    (corpus / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_recipe(folder / "tiny.yaml", corpus, data={"validation": None})


@pytest.fixture(scope="module")
def clean(poisoned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, list[str]]:
    """At which step the row comes for the first time, in which lane, and beside which rows."""
    run = tmp_path_factory.mktemp("clean") / "run"
    train(poisoned, run, *SGD).check()
    for line in read_lines(run / "ledger.jsonl"):
        for lane, rows in line["rows"].items():
            if f"train.jsonl:{POISONED}" in rows:
                return line["step"], lane, rows
    raise AssertionError("the row never came")


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_the_run_ends_with_5_and_says_where(
    poisoned: Path, clean: tuple[int, str, list[str]], tmp_path: Path, value: float
) -> None:
    step, lane, rows = clean
    run = tmp_path / "run"
    ended = train(poisoned, run, *SGD, "loop.save_every=1", world=2, hook=partial(hooks.poison, value)).check(5)
    told = status(run)
    assert (told["state"], told["exit_code"]) == ("failed", 5)
    assert f"NaN or Inf at step {step} (epoch 0): lane {lane} rows {', '.join(rows)}." in told["error"]
    assert told["error"] in ended.err[0]
    assert "Traceback" not in ended.text
    assert not ended.err[1], "one of them speaks"
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved[-1:] == ([f"step-{step - 1:08d}"] if step > 1 else [])


@pytest.mark.parametrize("hook", [hooks.poison, hooks.poison_gradient], ids=["loss", "gradient"])
def test_a_step_can_be_skipped_on_all_ranks_alike(
    poisoned: Path, clean: tuple[int, str, list[str]], tmp_path: Path, hook: Callable[[], None]
) -> None:
    step, _, _ = clean
    found = {}
    for world in (1, 2):
        run = tmp_path / str(world)
        words = (*SGD, "loop.on_nonfinite=skip", f"loop.max_steps={step + 3}")
        ended = train(poisoned, run, *words, world=world, hook=hook).check()
        assert f"step {step} is skipped" in ended.err[0]
        assert not any(ended.err[1:])
        found[world] = load_file(run / f"checkpoints/step-{step + 3:08d}/model.safetensors")
        assert all(np.isfinite(tensor).all() for tensor in found[world].values())
        lines = read_lines(run / "metrics.jsonl")  # which is JSON, without NaN
        assert [line["step"] for line in lines] == list(range(1, step + 4))
        assert lines[step - 1]["grad_norm"] is None
        assert [line["step"] for line in read_lines(run / "ledger.jsonl")] == list(range(1, step + 4))
    assert max(float(np.abs(found[1][name] - found[2][name]).max()) for name in found[1]) <= 1e-6


def test_a_skipped_step_changes_nothing(poisoned: Path, clean: tuple[int, str, list[str]], tmp_path: Path) -> None:
    step, _, _ = clean
    words = (*SGD, "optim.name=adamw", "loop.on_nonfinite=skip", "loop.save_every=1", "loop.keep=99")
    train(poisoned, tmp_path / "run", *words, f"loop.max_steps={step}", hook=hooks.poison).check()
    if step == 1:
        pytest.skip("the row comes in the first step")
    before, after = (tmp_path / "run" / f"checkpoints/step-{at:08d}" for at in (step - 1, step))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert json.loads((after / "state.json").read_text())["skipped"] == 1
    assert json.loads((before / "state.json").read_text())["skipped"] == 0


def test_too_many_skipped_steps_in_a_row_end_the_run(poisoned: Path, tmp_path: Path) -> None:
    words = (*SGD, "loop.on_nonfinite=skip", "loop.max_nonfinite=3", "optim.lr=1e30", "optim.clip_norm=0")
    ended = train(poisoned, tmp_path / "run", *words, world=2).check(5)
    assert "3 steps in a row were skipped" in ended.err[0]
    assert status(tmp_path / "run")["exit_code"] == 5


def test_without_clipping_a_gradient_is_still_looked_at(poisoned: Path, tmp_path: Path) -> None:
    ended = train(poisoned, tmp_path / "run", *SGD, "optim.clip_norm=0", hook=hooks.poison_gradient).check(5)
    assert "so a gradient overflowed" in ended.err[0]

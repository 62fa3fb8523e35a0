"""NaN and Inf: found on any rank, reported with step, lane and rows, and never in the weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooks
import numpy as np
import pytest
from conftest import POISONED
from processes import read_lines, status, train
from safetensors.numpy import load_file
from slow import slow_except

pytestmark = pytest.mark.ranks

SGD = ("optim.name=sgd", "optim.lr=0.1", "loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]")


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


@pytest.mark.parametrize("value", slow_except([math.nan, math.inf], math.nan), ids=["nan", "inf"])
def test_the_run_exits_with_5_and_names_step_and_lane(
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


@pytest.mark.parametrize(
    "hook", slow_except([hooks.poison, hooks.poison_gradient], hooks.poison_gradient), ids=["loss", "gradient"]
)
@pytest.mark.parametrize("engines", slow_except(["zero2", "ddp zero1 zero3 fsdp2"], "zero2"), ids=["one", "the others"])
def test_a_step_can_be_skipped_on_all_ranks_alike(
    poisoned: Path, clean: tuple[int, str, list[str]], tmp_path: Path, hook: Callable[[], None], engines: str
) -> None:
    step, _, _ = clean
    found = {}
    for engine in ("single", *engines.split()):
        run = tmp_path / engine
        words = (*SGD, "loop.on_nonfinite=skip", f"loop.max_steps={step + 3}")
        ended = train(poisoned, run, *words, world=1 if engine == "single" else 2, hook=hook, engine=engine).check()
        assert f"step {step} is skipped" in ended.err[0]
        assert "skipped" not in "".join(ended.err[1:])
        found[engine] = load_file(run / f"checkpoints/step-{step + 3:08d}/model.safetensors")
        assert all(np.isfinite(tensor).all() for tensor in found[engine].values())
        lines = read_lines(run / "metrics.jsonl")  # which is JSON, without NaN
        assert [line["step"] for line in lines] == list(range(1, step + 4))
        assert lines[step - 1]["grad_norm"] is None
        assert [line["step"] for line in read_lines(run / "ledger.jsonl")] == list(range(1, step + 4))
        expected = found["single"]
        assert max(float(np.abs(expected[name] - found[engine][name]).max()) for name in expected) <= 1e-6, engine


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


@pytest.mark.slow
def test_too_many_skipped_steps_in_a_row_end_the_run(poisoned: Path, tmp_path: Path) -> None:
    words = (*SGD, "loop.on_nonfinite=skip", "loop.max_nonfinite=3", "optim.lr=1e30", "optim.clip_norm=0")
    ended = train(poisoned, tmp_path / "run", *words, world=2).check(5)
    assert "3 steps in a row were skipped" in ended.err[0]
    assert status(tmp_path / "run")["exit_code"] == 5


def test_without_clipping_a_gradient_is_still_looked_at(poisoned: Path, tmp_path: Path) -> None:
    ended = train(poisoned, tmp_path / "run", *SGD, "optim.clip_norm=0", hook=hooks.poison_gradient).check(5)
    assert "so a gradient overflowed" in ended.err[0]


# -- fp16: the scaler, without a GPU -----------------------------------------------------------------------------------


def steps_with(
    scale: float | None, monkeypatch: pytest.MonkeyPatch, spoiled: int | None = None
) -> tuple[list[np.ndarray], float, list[bool]]:
    """Three AdamW steps of one linear layer with a loss scaler (or none): weights after each, AdamW's count, finite."""
    import torch
    from accelerate.state import AcceleratorState

    from trainer.data.loader import Loaded
    from trainer.engine.engines import EngineOptions, make_engine
    from trainer.engine.runtime import Runtime
    from trainer.engine.signals import StopFlag
    from trainer.engine.step import Stepper, Totals
    from trainer.recipe.loop_sections import LoopConfig
    from trainer.recipe.sections import OptimConfig

    class Objective(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x) ** 2).sum()

    AcceleratorState._reset_state(reset_partial_state=True)
    engine = make_engine("single", EngineOptions(on_cpu=True, clip_norm=1.0))
    accelerator = engine.accelerator
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.native_amp = True
        monkeypatch.setattr(AcceleratorState, "mixed_precision", property(lambda state: "fp16"))
    objective = Objective()
    inner = torch.optim.AdamW([{"params": objective.parameters(), "name": "decay", "base_lr": 0.1, "depth": 0}])
    engine.objective, engine.optimizer = objective, accelerator.prepare_optimizer(inner)

    def whole(batch: Any, parts: int) -> list[Any]:
        return [batch]

    filler = {"x": torch.zeros(1, 4)}
    task = SimpleNamespace(
        recipe=SimpleNamespace(
            seed=1, optim=OptimConfig(), loop=LoopConfig(max_steps=3), data=SimpleNamespace(mix=None)
        ),
        filler=lambda: filler,
        split=whole,
        memory=lambda rows: None,
    )
    stepper = Stepper(Runtime(engine, StopFlag()), task, 1)  # type: ignore[arg-type]
    weights, finite = [], []
    for step in (1, 2, 3):
        x = 30 * torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        if step == spoiled:
            x[3, 2] = math.nan
        totals = Totals(targets=8, rows=8, tokens=8, padded=8, lanes=1, stopping=0)
        result = stepper([Loaded({0: None}, {0: []}, {0: 8}, {"x": x}, 8, 8, 8, 8)], step, totals, lambda group: 1.0)  # type: ignore[dict-item]
        finite.append(result.finite)
        weights.append(objective.layer.weight.detach().numpy().copy())
    assert (scale or 0) < 2.0**100 or accelerator.scaler.get_scale() < scale, "nothing has overflowed"
    return weights, float(inner.state[objective.layer.weight]["step"]), finite


def test_an_overflow_of_the_scaler_costs_neither_rows_nor_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows are run again with a smaller scale, and the step comes out as without one."""
    plain, count, finite = steps_with(None, monkeypatch)
    assert (count, finite) == (3, [True] * 3)
    for scale in (2.0**10, 2.0**127):
        with monkeypatch.context() as patch:
            scaled, count, finite = steps_with(scale, patch)
        assert (count, finite) == (3, [True] * 3)
        for expected, found in zip(plain, scaled, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_step_that_no_scale_makes_finite_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for scale in (None, 2.0**10):
        with monkeypatch.context() as patch:
            weights, count, finite = steps_with(scale, patch, spoiled=2)
        assert (count, finite) == (2, [True, False, True])
        assert (weights[1] == weights[0]).all()
        assert (weights[2] != weights[1]).any()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.ranks
@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps(recipe: Path, tmp_path: Path) -> None:
    """Without dropout, whose masks are drawn in another way; and its checkpoint is one like any other."""
    words = ("loop.max_steps=2", "model.dropout=0", "optim.name=sgd", "optim.lr=0.1", "evaluation.splits=[]")
    words += ("data.validation=null",)
    found = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        train(recipe, run, *words, f"loop.compile={compiled}").check()
        found[compiled] = load_file(run / "checkpoints/step-00000002/model.safetensors")
    assert found["true"].keys() == found["false"].keys()
    assert max(float(np.abs(found["true"][n] - found["false"][n]).max()) for n in found["true"]) < 1e-5


@pytest.mark.parametrize(("word", "expected"), [("loop.tf32=true", "tf32"), ("loop.tf32=false", "ieee")])
def test_tf32_is_the_recipes_choice(recipe: Path, tmp_path: Path, word: str, expected: str) -> None:
    """On a CPU it changes nothing; what torch would use on a GPU is printed by the rank."""
    words = (word, "loop.max_steps=1", "evaluation.splits=[]", "data.validation=null")
    ended = train(recipe, tmp_path / "run", *words, hook=hooks.report_matmul_precision).check()
    assert f"matmul precision {expected}" in ended.out[0]

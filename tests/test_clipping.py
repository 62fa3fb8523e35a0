"""Gradients are clipped by the norm of the parameters that the step updates, under every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from review_helpers import recipe, written
from safetensors.numpy import load_file
from slow import slow_except

from trainer.data.tokenization import load_tokenizer
from trainer.engine.trained_run import build_model
from trainer.models.classifiers import depths
from trainer.optim.clipping import clip, idle_groups, square_sum
from trainer.task.registry import make_task

WORLDS = {"single": 1, "ddp": 2, "zero1": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}
RATE, LIMIT = 0.5, 0.01


def test_the_square_sum_of_nothing_is_zero() -> None:
    assert float(square_sum([])) == 0
    assert float(square_sum([torch.tensor([3.0]), torch.tensor([4.0])])) == 25


def test_clipping_shortens_to_the_limit() -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    clip(gradients, 5.0, 10.0)
    assert [float(g) for g in gradients] == [3, 4]
    clip(gradients, 5.0, 1.0)
    assert [float(g) for g in gradients] == pytest.approx([0.6, 0.8])


def test_groups_without_a_rate_are_idle_unless_all_are() -> None:
    def groups(*rates: float) -> list[dict[str, Any]]:
        return [{"lr": rate} for rate in rates]

    assert idle_groups(groups(0.0, 0.1, 0.0)) == [True, False, True]
    assert idle_groups(groups(0.1, 0.2)) == [False, False]
    assert idle_groups(groups(0.0, 0.0)) == [False, False]


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(WORLDS, "zero2"))
def test_layers_that_are_not_unfrozen_yet_do_not_count(reviews: Path, tmp_path: Path, engine: str) -> None:
    """With plain SGD and a small limit a step is as long as the rate times the limit, however few layers it moves."""
    optim = {"name": "sgd", "lr": RATE, "momentum": 0.0, "clip_norm": LIMIT, "unfreeze": 0.45, "weight_decay": 0.0}
    made = recipe(
        reviews, optim=optim, loop={"max_steps": 5, "eval_every": 100, "save_every": 1, "keep": 10},
        evaluation={"splits": []}, data={"validation": None},
    )  # fmt: skip
    run = tmp_path / "run"
    processes.train(written(tmp_path, made), run, world=WORLDS[engine], engine=engine).check()
    model = build_model(make_task(made, load_tokenizer(str(run / "tokenizer"))))
    depth = depths(model)
    assert depth is not None
    before = {name: p.detach().numpy() for name, p in model.named_parameters()}
    moving = {1: {0}, 2: {0}, 3: {0}, 4: {0, 1}, 5: {0, 1}}  # progress before a step: 0, 0.2, …
    for step, layers in moving.items():
        now = load_file(run / f"checkpoints/step-{step:08d}/model.safetensors")
        moved = {name: float(np.square(now[name] - before[name], dtype=np.float64).sum()) for name in before}
        assert {depth[name] for name, far in moved.items() if far} == layers, step
        assert sum(moved.values()) ** 0.5 == pytest.approx(RATE * LIMIT, rel=1e-3), step
        before = now


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["zero2", "fsdp2"], "fsdp2"))
def test_a_checkpoint_is_resumed_with_other_groups(reviews: Path, tmp_path: Path, engine: str) -> None:
    """Weights and moments are kept by name: which group decays may have changed since."""
    optim = {"name": "sgd", "lr": RATE, "momentum": 0.9, "weight_decay": 0.0, "clip_norm": 1.0}
    made = recipe(
        reviews, optim=optim, loop={"max_steps": 2, "eval_every": 100}, evaluation={"splits": []},
        data={"validation": None},
    )  # fmt: skip
    path, found = written(tmp_path, made), {}
    for name, hook in (("earlier", hooks.one_decay_group), ("now", None)):
        run = tmp_path / name
        processes.train(path, run, world=WORLDS[engine], engine=engine, hook=hook).check()
        longer = ("loop.max_steps=4", "--allow-change", "loop.max_steps")
        processes.train(path, run, *longer, world=WORLDS[engine], engine=engine).check()
        for file in ("model", "optimizer"):
            found[name, file] = load_file(run / f"checkpoints/step-00000004/{file}.safetensors")
    for file in ("model", "optimizer"):
        earlier, now = found["earlier", file], found["now", file]
        assert earlier.keys() == now.keys()
        assert max(float(np.abs(earlier[name] - now[name]).max()) for name in now) <= 1e-6, file

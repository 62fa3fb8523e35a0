"""Every engine makes the same steps, and a checkpoint of any of them goes on under any other.

The engines run on two gloo ranks in fp32 with dropout. Plain SGD amplifies nothing, so that its trajectories may be
compared closely; Adam divides by gradients near zero and gets a tolerance of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import engine_environment, next_logs, read_lines, run_ranks, train
from review_world import recipe as review_recipe
from review_world import written
from safetensors.numpy import load_file

from trainer.engine.engines import BUCKET, deepspeed_config

pytestmark = pytest.mark.ranks

WORLDS = {"single": 1, "ddp": 2, "zero1": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}
HALF, WHOLE = 5, 15  # steps; the tiny corpus' epoch has about 7, so that both lie within one
SGD = ("optim.name=sgd", "optim.lr=0.3", "optim.momentum=0.9", "optim.clip_norm=0.5")
ADAMW = ("optim.name=adamw", "optim.lr=2e-3", "optim.weight_decay=0.01", "optim.clip_norm=0.5")
QUIET = ("loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]", "data.validation=null")

Tensors = dict[str, np.ndarray]


def checkpoint(run: Path, step: int) -> tuple[Tensors, Tensors]:
    """Weights and moments."""
    folder = run / f"checkpoints/step-{step:08d}"
    return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")


def apart(a: Tensors, b: Tensors) -> float:
    """The largest difference of any number."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def go(recipe: Path, run: Path, engine: str, *words: str, steps: int = WHOLE) -> Path:
    words = (*QUIET, *words, f"loop.max_steps={steps}")
    more = ("--allow-change", "loop.max_steps") if run.exists() else ()
    train(recipe, run, *words, *more, world=WORLDS[engine], engine=engine).check()
    return run


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every engine with both optimizers: halfway, and on to the end under the same engine."""
    folder, made = tmp_path_factory.mktemp("engines"), {}
    for engine in WORLDS:
        for name, optim in (("sgd", SGD), ("adamw", ADAMW)):
            run = go(recipe, folder / f"{engine}-{name}", engine, *optim, steps=HALF)
            shutil.copytree(run, folder / f"{engine}-{name}-half")
            made[engine, name] = go(recipe, run, engine, *optim)
            made[engine, f"{name}-half"] = folder / f"{engine}-{name}-half"
    for name, optim in (("sgd", SGD), ("adamw", ADAMW)):
        made["uninterrupted", name] = go(recipe, folder / f"uninterrupted-{name}", "single", *optim)
    return made


def test_an_uninterrupted_run_is_the_resumed_one_bit_for_bit(runs: dict[Any, Path]) -> None:
    for name in ("sgd", "adamw"):
        for a, b in zip(*(checkpoint(runs[kind, name], WHOLE) for kind in ("uninterrupted", "single")), strict=True):
            assert apart(a, b) == 0


@pytest.mark.parametrize("engine", [*WORLDS][1:])
def test_every_engine_makes_the_steps_of_a_single_process(runs: dict[Any, Path], engine: str) -> None:
    for name, tolerance in (("sgd", 1e-6), ("adamw", 5e-4)):
        weights, moments = checkpoint(runs[engine, name], WHOLE)
        expected, expected_moments = checkpoint(runs["uninterrupted", name], WHOLE)
        assert apart(weights, expected) <= tolerance, name
        assert apart(moments, expected_moments) <= tolerance, name
        first = load_file(runs["single", f"{name}-half"] / f"checkpoints/step-{HALF:08d}/model.safetensors")
        assert apart(first, expected) > 1e-3, "the steps after the resume do move the weights"


def test_the_manifest_names_the_engine_and_the_ledger_holds_each_row_once(runs: dict[Any, Path]) -> None:
    for engine in WORLDS:
        manifest = json.loads((runs[engine, "sgd"] / "manifest.json").read_text())
        assert (manifest["engine"], manifest["ranks"]) == (engine, WORLDS[engine])
        assert read_lines(runs[engine, "sgd"] / "ledger.jsonl") == read_lines(runs["single", "sgd"] / "ledger.jsonl")


CELLS = [(a, b) for a in WORLDS for b in WORLDS if a != b]


@pytest.mark.parametrize(("saved", "resumed"), CELLS, ids=[f"{a}-{b}" for a, b in CELLS])
def test_saved_under_one_engine_and_resumed_under_another(
    runs: dict[Any, Path], recipe: Path, tmp_path: Path, saved: str, resumed: str
) -> None:
    """Each pair with SGD; AdamW once out of and once into each engine."""
    ring = [*WORLDS]
    follows = ring[(ring.index(saved) + 1) % len(ring)] == resumed
    for name, optim, tolerance in (("sgd", SGD, 1e-6), *([("adamw", ADAMW, 5e-4)] if follows else [])):
        shutil.copytree(runs[saved, f"{name}-half"], tmp_path / name)
        run = go(recipe, tmp_path / name, resumed, *optim)
        for found, expected in zip(checkpoint(run, WHOLE), checkpoint(runs["uninterrupted", name], WHOLE), strict=True):
            assert apart(found, expected) <= tolerance, name


@pytest.mark.parametrize("engine", WORLDS)
def test_what_is_loaded_is_saved_again_unchanged(
    runs: dict[Any, Path], recipe: Path, tmp_path: Path, engine: str
) -> None:
    """A step with rate 0 in between: weights and the layout of the moments come out as they went in."""
    shutil.copytree(runs["single", "adamw-half"], tmp_path / "run")
    before = checkpoint(tmp_path / "run", HALF)
    still = ("optim.lr=1e-30", "optim.weight_decay=0.0", "optim.betas=[0.99999999, 0.99999999]")
    words = (*QUIET, *ADAMW, *still, f"loop.max_steps={HALF + 1}")
    changed = ("loop.max_steps", "optim.lr", "optim.weight_decay", "optim.betas")
    allowed = [word for key in changed for word in ("--allow-change", key)]
    train(recipe, tmp_path / "run", *words, *allowed, world=WORLDS[engine], engine=engine).check()
    after = checkpoint(tmp_path / "run", HALF + 1)
    assert apart(before[0], after[0]) == 0
    assert apart(before[1], after[1]) <= 1e-6


SHARDED = ("zero1", "zero2", "zero3", "fsdp2")


@pytest.mark.parametrize("engine", SHARDED)
def test_scores_and_averages_are_those_of_a_single_process(recipe: Path, tmp_path: Path, engine: str) -> None:
    """Evaluation within the training and after it, of a moving average, with beam search."""
    words = (*SGD, "loop.max_steps=8", "optim.averaging={kind: ema, decay: 0.9}", "loop.early_stopping.metric=bleu")
    for name in ("single", engine):
        train(recipe, tmp_path / name, *words, world=WORLDS[name], engine=name).check()
    a, b = (load_file(tmp_path / name / "checkpoints/step-00000008/ema.safetensors") for name in ("single", engine))
    assert apart(a, b) <= 1e-6
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("single", engine))
    assert apart(a, b) <= 1e-6
    lines = [read_lines(tmp_path / name / "evaluation/test/predictions.jsonl") for name in ("single", engine)]
    assert [row["prediction"] for row in lines[0]] == [row["prediction"] for row in lines[1]]
    losses = [[row["loss"] for row in rows] for rows in lines]
    assert np.allclose(*losses, atol=1e-4)


@pytest.mark.parametrize("engine", SHARDED)
def test_frozen_parts_layers_and_perturbations_go_with_every_engine(
    reviews: Path, bert: Path, tmp_path: Path, engine: str
) -> None:
    """A pretrained model; rates by layer and by size (many groups), frozen embeddings, two backwards."""
    made = review_recipe(
        reviews,
        {"kind": "pretrained", "name": str(bert), "pooling": "mean"},
        optim={
            "name": "sgd", "lr": 1.0, "layer_decay": 0.8, "freeze_embeddings": True, "relative_rates": True,
            "adversarial": {"kind": "fgm", "epsilon": 0.5},
        },
        loop={"max_steps": 6},
    )  # fmt: skip
    for name in ("single", engine):
        train(written(tmp_path, made), tmp_path / name, world=WORLDS[name], engine=name).check()
    a, b = (checkpoint(tmp_path / name, 6)[0] for name in ("single", engine))
    assert apart(a, b) <= 1e-6


@pytest.mark.parametrize("engine", SHARDED)
def test_validation_within_the_training_judges_the_weights_in_training(
    recipe: Path, tmp_path: Path, engine: str
) -> None:
    words = (*SGD, "loop.max_steps=8", "evaluation.splits=[]")
    for name in ("single", engine):
        train(recipe, tmp_path / name, *words, world=WORLDS[name], engine=name).check()
    losses = [
        [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl") if line["split"] == "validation"]
        for name in ("single", engine)
    ]
    assert len(losses[0]) == 2
    assert np.allclose(*losses, atol=1e-5)


@pytest.mark.parametrize("engine", ["ddp", *SHARDED])
def test_bf16_keeps_weights_and_moments_in_fp32(recipe: Path, tmp_path: Path, engine: str) -> None:
    """Near the fp32 run, resumed bit for bit on the same engine, and not rounded to bf16 in the checkpoint."""
    env = {**engine_environment(engine), "ACCELERATE_MIXED_PRECISION": "bf16"}
    words = ["train", recipe, *QUIET, *ADAMW, "--run"]
    for name, stops in (("once", (6,)), ("twice", (3, 6))):
        run = tmp_path / name
        for stop in stops:
            more = ["--allow-change", "loop.max_steps"] if run.exists() else []
            run_ranks([*words, run, f"loop.max_steps={stop}", *more], next_logs(run), 2, env=env).check()
    (once, moments), (twice, again) = (checkpoint(tmp_path / name, 6) for name in ("once", "twice"))
    assert apart(once, twice) == 0
    assert apart(moments, again) == 0
    assert any((value.view(np.uint32) & 0xFFFF).any() for value in once.values())
    train(recipe, tmp_path / "fp32", *QUIET, *ADAMW, "loop.max_steps=6").check()
    assert 0 < apart(once, checkpoint(tmp_path / "fp32", 6)[0]) < 0.02


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_fp16_scales_its_losses_and_an_overflow_costs_no_row(recipe: Path, tmp_path: Path, engine: str) -> None:
    """The first scale of 2**16 overflows or not; either way 6 steps are made, and the scaler is in the checkpoint. On a
    processor that has no fp16 for DeepSpeed that is said before anything is made."""
    env = {**engine_environment(engine), "ACCELERATE_MIXED_PRECISION": "fp16"}
    words = ["train", recipe, *QUIET, *ADAMW, "loop.max_steps=6", "--run", tmp_path / "run"]
    ended = run_ranks(words, next_logs(tmp_path / "run"), 2, env=env)
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        assert "fp16: DeepSpeed does not support it on this processor" in ended.check(2).text
        assert not (tmp_path / "run").exists()
        return
    ended.check()
    state = json.loads((tmp_path / "run/checkpoints/step-00000006/state.json").read_text())
    assert state["scaler"]["cur_scale"] >= 1 and state["optimizer_step"] == 6
    train(recipe, tmp_path / "single", *QUIET, *ADAMW, "loop.max_steps=6").check()
    a, b = (checkpoint(tmp_path / name, 6)[0] for name in ("run", "single"))
    assert 0 < apart(a, b) < 0.02


@pytest.mark.parametrize("engine", SHARDED)
def test_the_launcher_starts_what_the_config_says(recipe: Path, tmp_path: Path, engine: str) -> None:
    """`rankzero train --config cpu_…`, through accelerate's own launcher."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), *QUIET, *SGD]
    words = ["loop.max_steps=2", "--config", f"cpu_{engine}", "--run", str(run)]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["engine"], manifest["ranks"], manifest["precision"]) == (engine, 2, "no")


def test_a_deepspeed_file_may_add_but_not_change_the_step() -> None:
    file = {
        "gradient_clipping": 9.0,
        "wall_clock_breakdown": True,
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "overlap_comm": "auto"},
    }
    config = deepspeed_config(2, "bf16", 4, 0.5, file)
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert (config["gradient_clipping"], config["gradient_accumulation_steps"]) == (0.5, 4)
    assert config["wall_clock_breakdown"]
    assert "train_batch_size" not in config
    assert deepspeed_config(2, "bf16", 4, 0.5)["zero_optimization"]["reduce_bucket_size"] == BUCKET

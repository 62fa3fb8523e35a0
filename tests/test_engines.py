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

import hooks
import numpy as np
import pytest
import torch
from processes import engine_environment, next_logs, read_lines, run_ranks, train
from review_helpers import recipe as review_recipe
from review_helpers import written
from safetensors.numpy import load_file
from slow import slow_except

from trainer.engine.engines import BUCKET, deepspeed_config
from trainer.engine.engines.zero_config import limit_gathered
from trainer.errors import UsageError

pytestmark = pytest.mark.ranks

WORLDS = {"single": 1, "ddp": 2, "zero1": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
FAST = ("ddp", "zero2", "fsdp2")  # what `make test` takes of the engines
HALF, WHOLE = 5, 15  # steps; the tiny corpus' epoch has about 7, so that both lie within one
SGD = ("optim.name=sgd", "optim.lr=0.3", "optim.momentum=0.9", "optim.clip_norm=0.5")
ADAMW = ("optim.name=adamw", "optim.lr=2e-3", "optim.weight_decay=0.01", "optim.clip_norm=0.5")
OPTIMIZERS = {"sgd": (SGD, 1e-6), "adamw": (ADAMW, 5e-4)}  # settings, and how far apart engines may be
QUIET = ("loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]", "data.validation=null")

Tensors = dict[str, np.ndarray]


def checkpoint(run: Path, step: int) -> tuple[Tensors, Tensors]:
    """Weights and moments."""
    folder = run / f"checkpoints/step-{step:08d}"
    return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")


def largest_difference(a: Tensors, b: Tensors) -> float:
    """The largest difference of any number."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def go(recipe: Path, run: Path, engine: str, *words: str, steps: int = WHOLE) -> Path:
    words = (*QUIET, *words, f"loop.max_steps={steps}")
    more = ("--allow-change", "loop.max_steps") if run.exists() else ()
    train(recipe, run, *words, *more, world=WORLDS[engine], engine=engine).check()
    return run


class Runs:
    """Runs of each engine with each optimizer, made when they are first asked for. Read only."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder

    def uninterrupted(self, optimizer: str) -> Path:
        """In a single process, from the first step to the last."""
        run = self._folder / f"uninterrupted-{optimizer}"
        return run if run.exists() else go(self._recipe, run, "single", *OPTIMIZERS[optimizer][0])

    def half(self, engine: str, optimizer: str) -> Path:
        run = self._folder / f"{engine}-{optimizer}-half"
        return run if run.exists() else go(self._recipe, run, engine, *OPTIMIZERS[optimizer][0], steps=HALF)

    def resumed(self, engine: str, optimizer: str) -> Path:
        """Halfway, and on to the end under the same engine."""
        run = self._folder / f"{engine}-{optimizer}"
        if not run.exists():
            shutil.copytree(self.half(engine, optimizer), run)
            go(self._recipe, run, engine, *OPTIMIZERS[optimizer][0])
        return run


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(recipe, tmp_path_factory.mktemp("engines"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_uninterrupted_run_is_the_resumed_one_bit_for_bit(runs: Runs, optimizer: str) -> None:
    both = (checkpoint(run, WHOLE) for run in (runs.uninterrupted(optimizer), runs.resumed("single", optimizer)))
    for a, b in zip(*both, strict=True):
        assert largest_difference(a, b) == 0


CASES = [(engine, optimizer) for engine in WORLDS if engine != "single" for optimizer in OPTIMIZERS]


@pytest.mark.parametrize(("engine", "optimizer"), slow_except(CASES, *((engine, "sgd") for engine in FAST)))
def test_every_engine_makes_the_steps_of_a_single_process(runs: Runs, engine: str, optimizer: str) -> None:
    tolerance = OPTIMIZERS[optimizer][1]
    weights, moments = checkpoint(runs.resumed(engine, optimizer), WHOLE)
    expected, expected_moments = checkpoint(runs.uninterrupted(optimizer), WHOLE)
    assert largest_difference(weights, expected) <= tolerance
    assert largest_difference(moments, expected_moments) <= tolerance
    first, _ = checkpoint(runs.half("single", optimizer), HALF)
    assert largest_difference(first, expected) > 1e-3, "the steps after the resume do move the weights"


@pytest.mark.parametrize("engine", slow_except(WORLDS, "single", *FAST))
def test_the_manifest_names_the_engine_and_the_ledger_holds_each_row_once(runs: Runs, engine: str) -> None:
    run = runs.resumed(engine, "sgd")
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["engine"], manifest["ranks"]) == (engine, WORLDS[engine])
    assert read_lines(run / "ledger.jsonl") == read_lines(runs.resumed("single", "sgd") / "ledger.jsonl")


# A checkpoint does not depend on the engine: out of each and into each, by two ways with SGD, suffices for all pairs.
RING = [*zip(WORLDS, [*WORLDS][1:] + [*WORLDS][:1], strict=True)]
FAST_CELLS = [("single", "ddp", "sgd"), ("ddp", "zero2", "sgd"), ("zero2", "fsdp2", "sgd"), ("fsdp2", "single", "sgd")]
CELLS = [*FAST_CELLS, *((b, a, "sgd") for a, b in RING), *((a, b, "adamw") for a, b in RING)]


@pytest.mark.parametrize(("saved", "resumed", "optimizer"), slow_except(CELLS, *FAST_CELLS))
def test_saved_under_one_engine_and_resumed_under_another(
    runs: Runs, recipe: Path, tmp_path: Path, saved: str, resumed: str, optimizer: str
) -> None:
    words, tolerance = OPTIMIZERS[optimizer]
    shutil.copytree(runs.half(saved, optimizer), tmp_path / "run")
    run = go(recipe, tmp_path / "run", resumed, *words)
    for found, expected in zip(checkpoint(run, WHOLE), checkpoint(runs.uninterrupted(optimizer), WHOLE), strict=True):
        assert largest_difference(found, expected) <= tolerance


@pytest.mark.parametrize("engine", slow_except(WORLDS, "zero2"))
def test_a_loaded_checkpoint_is_saved_unchanged(runs: Runs, recipe: Path, tmp_path: Path, engine: str) -> None:
    """A step with rate 0 in between: weights and the layout of the moments come out as they went in."""
    shutil.copytree(runs.half("single", "adamw"), tmp_path / "run")
    before = checkpoint(tmp_path / "run", HALF)
    still = ("optim.lr=1e-30", "optim.weight_decay=0.0", "optim.betas=[0.99999999, 0.99999999]")
    words = (*QUIET, *ADAMW, *still, f"loop.max_steps={HALF + 1}")
    changed = ("loop.max_steps", "optim.lr", "optim.weight_decay", "optim.betas")
    allowed = [word for key in changed for word in ("--allow-change", key)]
    train(recipe, tmp_path / "run", *words, *allowed, world=WORLDS[engine], engine=engine).check()
    after = checkpoint(tmp_path / "run", HALF + 1)
    assert largest_difference(before[0], after[0]) == 0
    assert largest_difference(before[1], after[1]) <= 1e-6


@pytest.mark.parametrize("engine", slow_except(SHARDED, "fsdp2"))
def test_scores_and_averages_are_those_of_a_single_process(recipe: Path, tmp_path: Path, engine: str) -> None:
    """Evaluation within the training and after it, of a moving average, with beam search."""
    words = (*SGD, "loop.max_steps=8", "optim.averaging={kind: ema, decay: 0.9}", "loop.early_stopping.metric=bleu")
    for name in ("single", engine):
        train(recipe, tmp_path / name, *words, world=WORLDS[name], engine=name).check()
    a, b = (load_file(tmp_path / name / "checkpoints/step-00000008/ema.safetensors") for name in ("single", engine))
    assert largest_difference(a, b) <= 1e-6
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("single", engine))
    assert largest_difference(a, b) <= 1e-6
    lines = [read_lines(tmp_path / name / "evaluation/test/predictions.jsonl") for name in ("single", engine)]
    assert [row["prediction"] for row in lines[0]] == [row["prediction"] for row in lines[1]]
    losses = [[row["loss"] for row in rows] for rows in lines]
    assert np.allclose(*losses, atol=1e-4)


@pytest.mark.parametrize("engine", slow_except(SHARDED, "zero2"))
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
    assert largest_difference(a, b) <= 1e-6


@pytest.mark.parametrize("engine", SHARDED)
@pytest.mark.slow
def test_validation_during_training_uses_the_current_weights(recipe: Path, tmp_path: Path, engine: str) -> None:
    words = (*SGD, "loop.max_steps=8", "evaluation.splits=[]")
    for name in ("single", engine):
        train(recipe, tmp_path / name, *words, world=WORLDS[name], engine=name).check()
    losses = [
        [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl") if line["split"] == "validation"]
        for name in ("single", engine)
    ]
    assert len(losses[0]) == 2
    assert np.allclose(*losses, atol=1e-5)


@pytest.mark.parametrize("engine", slow_except(["ddp", *SHARDED], "ddp"))
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
    assert largest_difference(once, twice) == 0
    assert largest_difference(moments, again) == 0
    assert any((value.view(np.uint32) & 0xFFFF).any() for value in once.values())
    train(recipe, tmp_path / "fp32", *QUIET, *ADAMW, "loop.max_steps=6").check()
    assert 0 < largest_difference(once, checkpoint(tmp_path / "fp32", 6)[0]) < 0.02


@pytest.mark.parametrize("engine", slow_except(["zero1", "zero2", "zero3"], "zero2"))
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
    assert 0 < largest_difference(a, b) < 0.02


@pytest.mark.parametrize("engine", slow_except(SHARDED, "fsdp2"))
def test_the_launcher_starts_the_configured_engine(recipe: Path, tmp_path: Path, engine: str) -> None:
    """`rankzero train --config cpu_…`, through accelerate's own launcher."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), *QUIET, *SGD]
    words = ["loop.max_steps=2", "--config", f"cpu_{engine}", "--run", str(run)]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["engine"], manifest["ranks"], manifest["precision"]) == (engine, 2, "no")


def test_deepspeed_starts_no_compiler_on_cpus(recipe: Path, tmp_path: Path) -> None:
    """A rank that was killed meanwhile left a temporary folder."""
    words = (*QUIET, "loop.max_steps=1", "loop.save_every=1")
    train(recipe, tmp_path / "run", *words, world=2, engine="zero2", hook=hooks.without_compiler).check()


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
    with pytest.raises(UsageError, match="zero_quantized_nontrainable_weights must be false"):
        deepspeed_config(3, "bf16", 4, 0.5, {"zero_optimization": {"zero_quantized_nontrainable_weights": True}})


def test_zero3_keeps_a_quarter_of_a_model_gathered_unless_a_file_says_otherwise() -> None:
    limits = []
    for parameters in (1_000_000, 400_000_000, 70_000_000_000):
        limit_gathered(zero := {"stage": 3, "stage3_max_reuse_distance": 7}, parameters)
        assert zero["stage3_max_reuse_distance"] == 7
        limits.append(zero["stage3_max_live_parameters"])
    assert limits == [BUCKET, 100_000_000, 1_000_000_000]

"""ZeRO-3 starts from the weights of the constructor, and no rank has a complete model. test_deferred.py: the record."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import start_hooks
from processes import engine_environment, next_logs, run_ranks
from review_helpers import recipe as review_recipe
from review_helpers import written
from safetensors.numpy import load_file
from slow import slow_except
from test_adapters import KINDS

pytestmark = pytest.mark.ranks

FROZEN: dict[str, dict[str, Any]] = {"optim": {"freeze_embeddings": True, "freeze_layers": 1}}
# what is changed, whether parameters are frozen, and whether the constructor is recorded
STARTS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]], bool, bool]] = {
    "all": ({}, {}, False, True),
    "frozen": ({}, FROZEN, True, True),
    "lora": ({"adapter": KINDS["lora"]}, {}, True, True),
    "complete": ({}, {"optim": {**FROZEN["optim"], "relative_rates": True}}, True, False),
}
CASES = [(case, precision) for case in STARTS for precision in ("no", "bf16")]


@pytest.mark.parametrize(("case", "precision"), slow_except(CASES, ("frozen", "bf16")))
def test_fp32_weights_are_those_of_the_constructor_and_bf16_ones_are_rounded(
    reviews: Path, bert: Path, tmp_path: Path, case: str, precision: str
) -> None:
    model, sections, frozen, recorded = STARTS[case]
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(bert), **model}, **sections)
    env = engine_environment("zero3") | {"ACCELERATE_MIXED_PRECISION": precision}
    words = ["train", written(tmp_path, made), "loop.max_steps=1", "evaluation.splits=[]", "data.validation=null"]
    hook = partial(start_hooks.check_start, tmp_path / "seen")
    run_ranks([*words, "--run", tmp_path / "run"], next_logs(tmp_path / "run"), 2, env=env, hook=hook).check()
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"seen-{rank}").read_text())
        assert seen["names"] > 20
        assert bool(seen["frozen"]) == frozen
        assert bool(seen["rounded"]) == (precision == "bf16")
        assert seen["recorded"] == recorded


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frozen_weights_and_averages_are_resumed_bit_for_bit(
    reviews: Path, bert: Path, tmp_path: Path, precision: str
) -> None:
    """On three ranks, of whose number few sizes are multiples. Frozen weights stay the exact ones of the file."""
    optim = {**FROZEN["optim"], "averaging": {"kind": "ema"}, "adversarial": {"kind": "fgm", "epsilon": 0.5}}
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(bert)}, optim=optim)
    env = engine_environment("zero3") | {"ACCELERATE_MIXED_PRECISION": precision}
    words = ["train", written(tmp_path, made), "evaluation.splits=[]", "loop.eval_every=3", "--run"]
    for name, stops in (("once", (6,)), ("twice", (3, 6))):
        run = tmp_path / name
        for stop in stops:
            more = ["--allow-change", "loop.max_steps"] if run.exists() else []
            run_ranks([*words, run, f"loop.max_steps={stop}", *more], next_logs(run), 3, env=env).check()
    for file in ("model", "optimizer", "ema"):
        once, twice = (
            load_file(tmp_path / name / f"checkpoints/step-00000006/{file}.safetensors") for name in ("once", "twice")
        )
        assert once.keys() == twice.keys()
        assert [name for name in once if not np.array_equal(once[name], twice[name])] == [], file
    base, trained = (
        load_file(path)
        for path in (bert / "model.safetensors", tmp_path / "once/checkpoints/step-00000006/model.safetensors")
    )
    moved = {name for name in base if not np.array_equal(base[name], trained[f"bert.{name}"])}
    assert any("layer.1." in name for name in moved)
    assert [name for name in moved if "embeddings" in name or "layer.0." in name] == []


DEEP = (
    *("model.d_model=128", "model.encoder_layers=8", "model.decoder_layers=8", "model.feed_forward=512"),
    *(
        "loop.max_steps=1",
        "optim.name=sgd",
        "evaluation.splits=[test]",
        "data.validation=null",
        "export.model=false",
        "evaluation.max_rows=4",
        "evaluation.tokens_per_batch=64",
    ),
)
SMALL = {"reduce_bucket_size": 10_000, "stage3_param_persistence_threshold": 0}  # of DeepSpeed's own buffers


@pytest.mark.slow
def test_a_complete_model_on_each_rank_would_need_half_a_model_more(recipe: Path, tmp_path: Path) -> None:
    """Three ranks. The control builds and evaluates complete models."""
    config = tmp_path / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": SMALL}))
    env = engine_environment("zero3") | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    found: dict[str, list[dict[str, int]]] = {}
    for name, complete in (("sharded", False), ("control", True)):
        hook = partial(start_hooks.memory_of_phases, tmp_path / name, complete=complete)
        words = ["train", recipe, *DEEP, "--run", tmp_path / f"{name}-run"]
        run_ranks(words, next_logs(tmp_path / f"{name}-run"), 3, env=env, hook=hook).check()
        found[name] = [json.loads((tmp_path / f"{name}-{rank}").read_text()) for rank in range(3)]
    for phase in ("start", "evaluation"):
        shares = {name: [rank[phase] / rank["parameters"] for rank in ranks] for name, ranks in found.items()}
        assert max(shares["sharded"]) + 0.5 < min(shares["control"]), found

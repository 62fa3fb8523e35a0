"""`rankzero verify` passes correct engines and finds every planted fault (see mutants.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mutants
import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_recipe, write_corpus
from review_helpers import recipe as review_recipe
from review_helpers import write_bert, write_reviews, written

from launch import configs
from launch.tools.verify import testbed
from launch.tools.verify.checks import Check, Setup, check_engines, environment, verify
from launch.tools.verify.compare import difference, misplaced_rows
from trainer import engine_specs, tensors
from trainer.engine import saving
from trainer.errors import DataError, NumericsError, RankError, UsageError
from trainer.files import write_json
from trainer.recipe_loading import load_recipe


def run_checks(recipe: Path, folder: Path, hook: Callable[[], None] | None, ranks: int = 2) -> dict[str, Check]:
    """Check DDP on two ranks and return the results by name."""
    bed = testbed.make_testbed(load_recipe(recipe), folder, hook)
    checks = check_engines(bed, [Setup("ddp", ranks)], on_gpus=False)
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.status == "failed"}


ALL = {"one step", "20 steps of SGD", "killed and resumed", "resumed from single", "20 steps of AdamW", "rows"}


@pytest.mark.ranks
@pytest.mark.slow
def test_correct_engines_pass(recipe: Path, tmp_path: Path) -> None:
    checks = run_checks(recipe, tmp_path, None, ranks=3)  # three ranks do not divide four lanes: fillers
    assert checks.keys() == ALL
    assert failed(checks) == set()
    assert checks["killed and resumed"].difference == 0
    assert 0 < (checks["20 steps of AdamW"].difference or 0) <= 5e-4


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_engine_that_shards_parameters_passes_with_an_adapter(tmp_path: Path) -> None:
    """Frozen weights of the base, small matrices of the adapter, and a head that is trained completely.

    tests/test_adapters.py compares the steps of the other engines.
    """
    model = {"kind": "pretrained", "name": str(write_bert(tmp_path / "bert")), "adapter": {"kind": "lora", "rank": 4}}
    recipe = written(tmp_path, review_recipe(write_reviews(tmp_path), model))
    bed = testbed.make_testbed(load_recipe(recipe), tmp_path / "bed")
    checks = check_engines(bed, [Setup("fsdp2", 2)], on_gpus=False)
    assert [check for check in checks if check.status != "passed"] == []
    assert {check.engine for check in checks} == {"fsdp2"}


@pytest.mark.ranks
@pytest.mark.slow
def test_two_copies_of_a_sharded_model_make_the_same_steps(recipe: Path, tmp_path: Path) -> None:
    """FSDP2 on 2 x 2 ranks (HSDP)."""
    bed = testbed.make_testbed(load_recipe(recipe), tmp_path)
    checks = check_engines(bed, [Setup("fsdp2", 4, 2)], on_gpus=False)
    assert [check for check in checks if check.status != "passed"] == []
    assert {check.name for check in checks} == ALL
    assert {(check.engine, check.ranks, check.copies) for check in checks} == {("fsdp2", 4, 2)}


SWITCHES = {  # two at a time, since each verification takes half a minute
    "attention and checkpointing": [
        *("model.attention=eager", "loop.activation_checkpointing={every: 2}", "model.encoder_layers=2")
    ],
    "padding and fused lanes": ["data.padding=none", "loop.fuse_lanes=2"],
}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("switch", SWITCHES)
def test_engines_make_the_same_steps_with(switch: str, recipe: Path, tmp_path: Path) -> None:
    bed = testbed.make_testbed(load_recipe(recipe, SWITCHES[switch]), tmp_path)
    small = load_recipe(bed.recipe)
    assert small == load_recipe(bed.recipe, SWITCHES[switch]), "verify must not reset what it is to verify"
    engines = [Setup("single", 1), Setup("ddp", 2), Setup("zero2", 2), Setup("fsdp2", 2)]
    checks = check_engines(bed, engines, on_gpus=False)
    assert [check for check in checks if check.status != "passed"] == []


def test_compiled_layers_are_verified_as_such(recipe: Path, tmp_path: Path) -> None:
    """Compilation takes each rank minutes: tests/test_layers.py compares the steps of every engine."""
    bed = testbed.make_testbed(load_recipe(recipe, ["loop.compile=layers"]), tmp_path)
    assert load_recipe(bed.recipe).loop.compile == "layers"


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("mutant", "found_by", "not_by"),
    [
        (mutants.mean_of_means, {"20 steps of SGD", "resumed from single"}, {"killed and resumed", "rows"}),
        pytest.param(mutants.lane_read_twice, {"rows"}, {"killed and resumed"}, marks=pytest.mark.slow),
        (mutants.moments_not_restored, {"killed and resumed", "resumed from single"}, {"one step", "rows"}),
        pytest.param(
            mutants.batch_repeated_after_resume,
            {"killed and resumed", "rows"},
            {"one step", "20 steps of AdamW"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            mutants.noise_of_the_rank,
            {"one step", "20 steps of SGD"},
            {"killed and resumed", "rows"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found(
    recipe: Path, tmp_path: Path, mutant: Callable[[], None], found_by: set[str], not_by: set[str]
) -> None:
    checks = run_checks(recipe, tmp_path, mutant)
    assert found_by <= failed(checks), checks
    assert not not_by & failed(checks), checks
    for name in found_by:
        assert checks[name].explanation
        assert checks[name].difference is None or checks[name].difference > checks[name].tolerance


@pytest.mark.ranks
def test_a_rank_that_dies_fails_every_check_with_its_error(recipe: Path, tmp_path: Path) -> None:
    checks = run_checks(recipe, tmp_path, mutants.rank_of_several_dies)
    assert failed(checks) == ALL
    assert "ValueError: no company" in checks["one step"].explanation
    assert checks["one step"].difference is None


@pytest.mark.ranks
def test_the_command_prints_json(recipe: Path) -> None:
    command = [sys.executable, "-c", "from launch.cli import main; main()", "verify", str(recipe)]
    ended = subprocess.run([*command, "--engines", "single", "--json"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["passed"] is True
    assert {"name", "engine", "ranks", "difference", "tolerance", "status"} <= found["checks"][0].keys()
    assert {check["status"] for check in found["checks"]} == {"passed"}
    assert {check["engine"] for check in found["checks"]} == {"single"}


# -- the pieces --------------------------------------------------------------------------------------------------------


def test_the_testbed_has_a_few_rows_of_the_recipes_own_corpus(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    bed = testbed.make_testbed(load_recipe(recipe, ["data.lanes=64", "loop.fuse_lanes=2"]), tmp_path)
    made = load_recipe(bed.recipe)
    rows = [json.loads(line) for file in (tmp_path / "corpus").iterdir() for line in file.read_text().splitlines()]
    assert len(rows) == bed.rows == 1 * 8 * 13 + 3, "200 rows are enough for one in a micro-batch of 8 lanes"
    own = {json.loads(line)["de"] for line in (corpus / "train.jsonl").read_text().splitlines()}
    assert {row["src"] for row in rows} <= own
    assert (made.data.lanes, made.data.rows_per_batch, made.data.max_length) == (8, 1, 16)
    assert (made.loop.fuse_lanes, made.loop.save_every, made.evaluation.splits) == (2, 10, [])
    assert (made.model.dropout, made.model.attention_dropout) == (0.0, 0.0), "masks depend on which lanes are fused"
    assert "2 lanes in a forward, without dropout" in bed.changes
    plain = testbed.make_testbed(load_recipe(recipe, ["model.dropout=0.1"]), tmp_path / "plain")
    kept = load_recipe(plain.recipe)
    assert (kept.data.lanes, kept.loop.fuse_lanes, kept.model.dropout) == (4, 1, 0.1)


def test_options_of_the_recipes_optimizer_are_left_out(recipe: Path, tmp_path: Path) -> None:
    bed = testbed.make_testbed(load_recipe(recipe, ["optim.name=lion", "optim.options={betas: [0.9, 0.95]}"]), tmp_path)
    assert load_recipe(bed.recipe, ["optim.name=sgd"]).optim.options == {}


def test_a_corpus_sorted_by_label_gives_rows_of_all_labels(reviews: Path, tmp_path: Path) -> None:
    count, size, shards = testbed.write_rows(load_recipe(review_recipe(reviews)), tmp_path / "rows", 4)
    files = sorted((tmp_path / "rows").iterdir())
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {row["label"] for row in rows} == {"0", "1"}
    assert (len(rows), len(files), size) == (count, shards, 2)
    assert count == 2 * 4 * 13 + 3


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(write_corpus(tmp_path / "data", train=50))))
    with pytest.raises(DataError, match=r"55 usable rows of data\.train, which has 50"):
        verify(load_recipe(path))


def test_unknown_engines_and_too_many_ranks_are_refused(recipe: Path) -> None:
    with pytest.raises(UsageError, match="--engines zero4: unknown; allowed: single, ddp"):
        verify(load_recipe(recipe), ["zero4"])
    with pytest.raises(UsageError, match="4 lanes"):
        verify(load_recipe(recipe), ["ddp"], ranks=5)
    with pytest.raises(UsageError, match=r"--nproc 3: with loop\.fuse_lanes the check has 8 lanes for 2 or 4 ranks"):
        verify(load_recipe(recipe, ["loop.fuse_lanes=2"]), ["ddp"], ranks=3)


def test_an_engine_that_is_not_installed_is_skipped_and_not_passed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_specs.importlib.util, "find_spec", lambda name: None)
    bed = testbed.Testbed(tmp_path, tmp_path / "recipe.yaml", 211, "", 1e-3)
    monkeypatch.setattr(testbed.Testbed, "train", lambda self, run, *more, **words: run)
    monkeypatch.setattr("launch.tools.verify.checks._require_change", lambda run, optimizer: None)
    (check,) = check_engines(bed, [Setup("zero2", 2)], on_gpus=False)
    assert (check.status, check.difference) == ("skipped", None)
    assert "pip install 'rankzero[deepspeed]'" in check.explanation


@pytest.mark.ranks
def test_a_recipe_that_does_not_train_is_an_error_with_the_reason(recipe: Path, tmp_path: Path) -> None:
    bed = testbed.make_testbed(load_recipe(recipe), tmp_path, mutants.dies)
    with pytest.raises(RankError, match=r"does not train in one process: rank 0 .* ValueError: no company"):
        check_engines(bed, [Setup("ddp", 2)], on_gpus=False)


@pytest.mark.ranks
def test_weights_that_do_not_change_are_an_error(recipe: Path, tmp_path: Path) -> None:
    bed = testbed.make_testbed(load_recipe(recipe), tmp_path, mutants.no_updates)
    with pytest.raises(NumericsError, match="change no weight"):
        check_engines(bed, [Setup("ddp", 2)], on_gpus=False)


def test_differences_are_explained() -> None:
    one, two = {"w": np.ones((2, 2), np.float32)}, {"w": np.full((2, 2), 2, np.float32)}
    found, text = difference(two, one, "gradient")
    assert found == 1
    assert "2 times that expected" in text
    assert "the cosine 1" in text
    assert difference(one, one, "weight")[0] == 0
    assert difference(one, {"v": one["w"]}, "weight")[0] == float("inf")
    assert difference({}, {}, "moment")[0] == float("inf"), "nothing to compare is a failure"
    nan = {"w": np.full((2, 2), np.nan, np.float32)}
    assert not difference(nan, one, "weight")[0] <= 1.0


def test_checkpoints_in_several_files_are_read_completely(tmp_path: Path) -> None:
    folder = testbed.checkpoint_folder(tmp_path, 20)
    folder.mkdir(parents=True)
    for name, value in (("model", 1.0), ("optimizer", 2.0)):
        made = {f"{name}.{i}": torch.full((4,), value + i) for i in range(3)}
        tensors.write(folder / f"{name}.safetensors", made, shard_bytes=20)
    assert not (folder / "model.safetensors").exists()
    write_json(folder / "state.json", {})
    files = {path.name: saving._describe(path) for path in folder.iterdir()}
    write_json(folder / "manifest.json", {"format": 1, "step": 20, "files": files})
    weights, moments = testbed.read_checkpoint(tmp_path, 20)
    assert difference(weights, {f"model.{i}": np.full(4, 1.0 + i) for i in range(3)}, "weight")[0] == 0
    assert difference(moments, {f"optimizer.{i}": np.full(4, 2.0 + i) for i in range(3)}, "moment")[0] == 0


def line(step: int, *ids: str) -> dict[str, object]:
    return {"step": step, "rows": {"0": list(ids)}}


@pytest.mark.parametrize(
    ("ledger", "wrong", "words"),
    [
        ([line(1, "a", "b"), line(2, "c"), line(3, "b")], 0, ""),
        ([line(1, "a", "b"), line(2, "b"), line(3, "c")], 4, "1 of 3 rows are missing from the first epoch, 1 are rep"),
        ([line(1, "a", "b"), line(2, "c")], 1, r"1 steps differ from those of one process \[3\]"),
        ([line(1, "a", "b"), line(2, "c"), line(2, "c"), line(3, "b")], 2, r"2 steps differ .* \[2, 3\]"),
        ([line(1, "a", "c"), line(2, "b"), line(3, "b")], 2, r"2 steps differ .* \[1, 2\]"),
        ([], 6, "3 of 3 rows are missing"),
    ],
)
def test_misplaced_rows_are_counted(ledger: list[dict[str, object]], wrong: int, words: str) -> None:
    expected = [line(1, "a", "b"), line(2, "c"), line(3, "b")]
    found, text = misplaced_rows(ledger, expected, 3)
    assert found == wrong, text
    assert re.search(words, text)


@pytest.mark.parametrize("on_gpus", [False, True])
def test_the_environment_of_the_ranks_is_the_launchers_in_fp32(monkeypatch: pytest.MonkeyPatch, on_gpus: bool) -> None:
    monkeypatch.setattr(configs, "gpus", lambda: 2 if on_gpus else 0)
    env = environment(Setup("zero3", 2), on_gpus)
    assert env["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert env["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (env["RANKZERO_ENGINE"], env["RANKZERO_RANKS"]) == ("zero3", "2")
    assert "ACCELERATE_USE_CPU" not in env
    sharded = environment(Setup("fsdp2", 2), on_gpus)
    assert (sharded["ACCELERATE_USE_FSDP"], sharded["FSDP_VERSION"]) == ("true", "2")
    assert sharded["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (environment(Setup("ddp", 2), on_gpus).get("ACCELERATE_USE_CPU") == "true") == (not on_gpus)
    assert "PARALLELISM_CONFIG_DP_SHARD_SIZE" not in sharded
    monkeypatch.setattr(configs, "gpus", lambda: 4 if on_gpus else 0)
    copies = environment(Setup("fsdp2", 4, 2), on_gpus)
    assert copies["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    assert copies["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == copies["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "2"


@pytest.mark.parametrize(
    ("names", "ranks", "setups"),
    [
        (
            None,
            2,
            ["single x 1", "ddp x 2", "zero1 x 2", "zero2 x 2", "zero3 x 2", "fsdp2 x 2", "ddp x 4", "fsdp2 x 2x2"],
        ),
        (["ddp"], 4, ["ddp x 4"]),
        (["fsdp2"], 4, ["fsdp2 x 4", "fsdp2 x 2x2"]),
    ],
)
def test_what_is_verified(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None, ranks: int, setups: list[str]
) -> None:
    monkeypatch.setattr("launch.tools.verify.checks.check_engines", lambda bed, wanted, on_gpus: list(map(str, wanted)))
    assert verify(load_recipe(recipe), names, ranks) == setups

"""`loop.fuse_lanes: auto`: measured once on a GPU, the same choice on all ranks, the same steps."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import pytest
import torch
from processes import read_lines, status, train
from safetensors.numpy import load_file
from slow import slow_except
from task_helpers import CAUSAL, LABELS, OWN, pretrained, toy_task

from trainer.data_parallel import fusable
from trainer.engine.fused_lanes import Measured, largest_that_fits

AUTO = "loop.fuse_lanes=auto"
SGD = ("optim.name=sgd", "optim.lr=0.3", "optim.momentum=0.9", "model.dropout=0.0")
QUIET = (
    "loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]", "data.validation=null", "loop.max_steps=6",
    "loop.ledger=true", "export.model=false", "export.onnx=false", "export.int8=false",
)  # fmt: skip
ROWS = 4  # of the largest micro-batch of a lane of the tiny recipe: 160 tokens, of which a row has 40


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints/step-00000006/model.safetensors")


def largest_difference(a: Path, b: Path) -> float:
    one, other = weights(a), weights(b)
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def recorded(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text())["fuse_lanes"]


# -- the choice --------------------------------------------------------------------------------------------------------


def searched(peak: Any, usable: float, rows: int = 8) -> tuple[int, list[int]]:
    """Return the choice among the divisors of 48 lanes, and what was measured for it. `peak`: bytes by lanes."""
    tried: list[int] = []

    def measure(lanes: int) -> Measured:
        tried.append(lanes)
        return Measured(lanes * rows or 1, 10, peak(lanes or 1 / rows))

    return largest_that_fits(fusable(48, 1), measure, usable, lambda fits: fits), tried


@pytest.mark.parametrize("fixed", [0, 3, 40])
@pytest.mark.parametrize("usable", [10, 14, 17, 18, 30, 58, 100, 149, 154, 300])
def test_the_largest_divisor_that_fits_is_found_without_running_out(fixed: float, usable: float) -> None:
    def peak(lanes: float) -> float:
        return 10 + fixed + 3 * lanes  # tensors from before, what every forward needs, and what grows

    expected = max((n for n in fusable(48, 1) if peak(n) <= usable), default=1)
    found, tried = searched(peak, usable)
    assert found == expected
    assert tried == [0, 1, *([found] if found > 1 else [])], "no number was tried that does not fit"
    found, tried = searched(peak, usable, rows=1)  # the first prediction is a bound
    assert found == expected or (fixed and found == 1)
    assert all(peak(n) <= usable for n in tried[2:])


def test_a_wrong_prediction_is_measured_and_left() -> None:
    found, tried = searched(lambda lanes: 10 + lanes**2, 10 + 13**2)
    assert found == 12
    assert max(tried) > 12


def test_memory_that_runs_out_leaves_what_fits() -> None:
    assert searched(lambda lanes: 10 + lanes if lanes < 12 else float("inf"), 1000)[0] == 8
    assert searched(lambda lanes: float("inf"), 1000) == (1, [0, 1])


def test_only_divisors_of_equal_shares_are_allowed() -> None:
    assert fusable(12, 1) == [1, 2, 3, 4, 6, 12]
    assert fusable(12, 2) == [1, 2, 3, 6]
    assert fusable(12, 5) == [1]


@pytest.mark.parametrize(
    ("task", "model", "names"),
    [
        (LABELS, {"kind": "encoder", **OWN}, ["input_ids"]),
        (CAUSAL, pretrained("gpt2"), ["input_ids", "labels"]),
        ({"kind": "language_modeling", "objective": "mlm"}, pretrained("bert"), ["input_ids"]),
        ({"kind": "translation"}, {"kind": "transformer", **OWN}, ["src", "labels"]),
        ({"kind": "token_classification", "labels": ["PER", "LOC"]}, pretrained("bert"), ["input_ids", "labels"]),
    ],
    ids=["classification", "causal", "mlm", "translation", "tokens"],
)
def test_the_largest_micro_batch_has_as_many_tokens_as_the_recipe_allows(
    task: dict[str, Any], model: dict[str, Any], names: list[str]
) -> None:
    made = toy_task(task, model, tokens_per_batch=100, max_length=32)
    for lanes in (1, 4):
        batch = made.largest(lanes)
        assert len(batch[names[0]]) == 3 * lanes
        assert {batch[name].shape[1] for name in names} <= {31, 32}
        assert made.targets(batch) > 0
    made = toy_task(task, model, tokens_per_batch=100, max_length=32, rows_per_batch=2)
    assert len(made.largest(1)[names[0]]) == 2
    assert len(made.largest(0)[names[0]]) == 1


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfused(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unfused") / "run"
    train(recipe, run, *SGD, *QUIET).check()
    return run


def test_a_cpu_takes_one_lane_and_the_same_bits(recipe: Path, unfused: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", *SGD, *QUIET, AUTO).check()
    assert largest_difference(tmp_path / "run", unfused) == 0
    assert recorded(tmp_path / "run") == {"lanes": 1, "ranks": 1, "device": "cpu"}


def test_one_lane_of_a_rank_is_not_measured(recipe: Path, tmp_path: Path) -> None:
    hook = partial(hooks.simulated_gpu, (-1,))
    train(recipe, tmp_path / "run", *QUIET, AUTO, "data.lanes=1", "loop.max_steps=1", hook=hook).check()
    assert recorded(tmp_path / "run") == {"lanes": 1, "ranks": 1, "device": "simulated"}


CASES = [
    (1, "single", (16,), 4), (1, "single", (15,), 2), (1, "single", (7,), 1), (1, "single", (1,), 1),
    (2, "ddp", (16, 16), 2), (2, "ddp", (16, 7), 1),
    *((2, engine, (16, 16), 2) for engine in ("zero1", "zero2", "zero3", "fsdp2")),
    (2, "zero3", (7, 16), 1), (2, "fsdp2", (16, 7), 1),
]  # fmt: skip


@pytest.mark.ranks
@pytest.mark.parametrize(("world", "engine", "rows", "lanes"), slow_except(CASES, *CASES[1:3], CASES[5]))
def test_the_lanes_that_fit_on_every_rank_are_fused(
    recipe: Path, unfused: Path, tmp_path: Path, world: int, engine: str, rows: tuple[int, ...], lanes: int
) -> None:
    hook = partial(hooks.simulated_gpu, rows)
    ended = train(recipe, tmp_path / "run", *SGD, *QUIET, AUTO, world=world, engine=engine, hook=hook).check()
    choice = recorded(tmp_path / "run")
    assert (choice["lanes"], choice["ranks"], choice["device"]) == (lanes, world, "simulated")
    assert choice["peak_bytes"] == ROWS * lanes * 2**40
    assert f"{lanes} of the {4 // world} lanes of a rank in one forward" in ended.err[0]
    assert largest_difference(tmp_path / "run", unfused) <= 1e-6
    assert read_lines(tmp_path / "run/ledger.jsonl") == read_lines(unfused / "ledger.jsonl")


ENGINES = [(1, "single"), *((2, engine) for engine in ("ddp", "zero1", "zero2", "zero3", "fsdp2"))]


@pytest.mark.ranks
@pytest.mark.parametrize(("world", "engine"), slow_except(ENGINES, (1, "single")))
def test_measuring_leaves_no_trace(recipe: Path, tmp_path: Path, world: int, engine: str) -> None:
    """With dropout and moments, the steps are those of a recipe with this number, and of a resumed run, bit for bit."""
    hook = partial(hooks.simulated_gpu, (ROWS * 2 + 1,) * world)
    where: dict[str, Any] = {"world": world, "engine": engine}
    train(recipe, tmp_path / "auto", *QUIET, AUTO, hook=hook, **where).check()
    train(recipe, tmp_path / "two", *QUIET, "loop.fuse_lanes=2", **where).check()
    assert largest_difference(tmp_path / "auto", tmp_path / "two") == 0
    half = ("loop.save_every=3", "loop.max_steps=3")
    train(recipe, tmp_path / "parts", *QUIET, AUTO, *half, hook=hook, **where).check()
    never = partial(hooks.simulated_gpu, (-1,) * world)
    words = (*QUIET, AUTO, half[0], "--allow-change", "loop.max_steps")
    train(recipe, tmp_path / "parts", *words, hook=never, **where).check()
    assert recorded(tmp_path / "parts") == recorded(tmp_path / "auto")
    assert largest_difference(tmp_path / "parts", tmp_path / "two") == 0


@pytest.mark.ranks
def test_other_ranks_fuse_what_divides_their_lanes(recipe: Path, unfused: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    half = ("loop.save_every=2", "loop.max_steps=2")
    train(recipe, run, *SGD, *QUIET, AUTO, *half, hook=partial(hooks.simulated_gpu, (16,))).check()
    for world, steps, lanes in ((2, 4, 2), (1, 6, 4)):
        words = (*SGD, *QUIET, AUTO, half[0], f"loop.max_steps={steps}", "--allow-change", "loop.max_steps")
        ended = train(recipe, run, *words, world=world, hook=partial(hooks.simulated_gpu, (-1, -1))).check()
        warned = "of at most 4 that were measured on 1 ranks. On 2 ranks the steps have the same rows"
        assert (warned in ended.err[0]) == (world == 2)
        assert f"{lanes} of the {4 // world} lanes" in ended.err[0]
        assert recorded(run)["lanes"] == 4
    assert largest_difference(run, unfused) <= 1e-6


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["single", "ddp"], "ddp"))
def test_memory_that_runs_out_while_measuring_is_freed(
    recipe: Path, unfused: Path, tmp_path: Path, engine: str
) -> None:
    """The rank that ran out goes on with the others in the same start."""
    world = 1 if engine == "single" else 2
    hook = partial(hooks.simulated_gpu, (99, 99), hard=(99, 7) if world == 2 else (9,))
    train(recipe, tmp_path / "run", *SGD, *QUIET, AUTO, world=world, engine=engine, hook=hook).check()
    assert recorded(tmp_path / "run")["lanes"] == (1 if world == 2 else 2)
    assert largest_difference(tmp_path / "run", unfused) <= 1e-6


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["zero2", "fsdp2"], "fsdp2"))
def test_a_sharded_rank_that_runs_out_starts_again_with_what_fits(
    recipe: Path, unfused: Path, tmp_path: Path, engine: str
) -> None:
    run = tmp_path / "run"
    for hard, code in (((99, 7), 75), ((7, 7), 0)):
        hook = partial(hooks.simulated_gpu, (99, 99) if code else (-1, -1), hard=hard)
        ended = train(recipe, run, *SGD, *QUIET, AUTO, world=2, engine=engine, hook=hook)
        assert ended.codes[1] == code, ended.text
        if code:
            assert (
                "rank 1 ran out of memory while loop.fuse_lanes=auto was measured with 2 lanes" in status(run)["error"]
            )
    assert recorded(run) == {"lanes": 1, "ranks": 2, "device": "simulated"}
    assert json.loads((run / "manifest.json").read_text())["micro_batch_splits"] == 1
    assert largest_difference(run, unfused) <= 1e-6


def test_a_damaged_record_is_named(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, *QUIET, AUTO, "loop.max_steps=1").check()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "fuse_lanes": {"lanes": "many"}}))
    ended = train(recipe, run, *QUIET, AUTO, "loop.max_steps=2", "--allow-change", "loop.max_steps").check(4)
    assert "fuse_lanes is 'many', not a count of lanes" in ended.err[0]


# -- moments -----------------------------------------------------------------------------------------------------------


def test_moments_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState

    from trainer.engine.engines import EngineOptions, make_engine

    AcceleratorState._reset_state(reset_partial_state=True)
    engine = make_engine("single", EngineOptions(on_cpu=True))
    model = torch.nn.Linear(5, 7)
    engine.prepare(model, model, torch.optim.AdamW(model.parameters(), lr=0.1))
    planned = engine.moment_bytes()
    engine.objective(torch.ones(2, 5)).sum().backward()
    engine.step()
    made = sum(t.nbytes for p in model.parameters() for t in engine.moments(p).values())
    assert planned == made == 2 * 4 * (5 * 7 + 7)

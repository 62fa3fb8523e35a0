"""Same recipe, same steps: on 1, 2, 3 and 4 ranks, with and without loader processes; and the same scores."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import pytest
from processes import Ended, Ranks, next_logs, read_lines, run_ranks, train
from safetensors.numpy import load_file
from slow import slow_except

pytestmark = pytest.mark.ranks

WORLDS = (1, 2, 3, 4)  # 3 does not divide the 4 lanes: short ranks run fillers
STEPS = 20  # several epochs of the tiny corpus, so that some lanes end before others
SGD = ("optim.name=sgd", "optim.lr=0.3", f"loop.max_steps={STEPS}", "loop.eval_every=100", "loop.save_every=100")
STILL = (*SGD, "optim.lr=1e-30", "loop.max_steps=12")  # the weights stay as they are: gradients compare exactly
NO_SCORES = ("evaluation.splits=[]", "data.validation=null")

Weights = dict[str, np.ndarray]


def weights(run: Path, step: int) -> Weights:
    return load_file(run / f"checkpoints/step-{step:08d}/model.safetensors")


def largest_difference(a: Weights, b: Weights) -> float:
    """The largest difference of any number."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def largest(a: Weights) -> float:
    return max(float(np.abs(value).max()) for value in a.values())


def gradients_of(path: Path) -> dict[int, Weights]:
    by_step: dict[int, Weights] = {}
    for name, value in load_file(path).items():
        step, _, parameter = name.partition(".")
        by_step.setdefault(int(step), {})[parameter] = value
    return by_step


def relative(a: dict[int, Weights], b: dict[int, Weights]) -> float:
    """The largest difference of a gradient's numbers, relative to the largest number in it; over all steps."""
    assert a.keys() == b.keys()
    return max(largest_difference(a[step], b[step]) / largest(a[step]) for step in a)


@pytest.fixture(scope="module")
def gradients(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[int, Weights]]:
    """The gradients of two epochs at the same weights, by number of ranks; and of two wrong programs on 2 ranks."""
    folder, found = tmp_path_factory.mktemp("gradients"), {}
    asked = [(world, hooks.save_gradients, world) for world in WORLDS]
    for name, hook, world in [*asked, ("mean", hooks.mean_of_means, 2), ("noise", hooks.noise_of_ranks, 2)]:
        path = folder / f"{name}.safetensors"
        train(recipe, folder / str(name), *STILL, *NO_SCORES, world=world, hook=partial(hook, path)).check()
        found[name] = gradients_of(path)
    return found


def test_gradients_do_not_depend_on_ranks(gradients: dict[Any, dict[int, Weights]]) -> None:
    assert largest(gradients[1][1]) > 0.01
    for world in WORLDS[1:]:
        assert relative(gradients[1], gradients[world]) <= 1e-6, world


def test_the_comparison_sees_the_common_mistakes(gradients: dict[Any, dict[int, Weights]]) -> None:
    assert relative(gradients[1], gradients["mean"]) > 1e-3
    assert relative(gradients[1], gradients["noise"]) > 1e-3


@pytest.fixture(scope="module")
def sgd(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Ended]]:
    folder = tmp_path_factory.mktemp("sgd")
    return {w: (folder / str(w), train(recipe, folder / str(w), *SGD, *NO_SCORES, world=w).check()) for w in WORLDS}


def test_weights_after_sgd_do_not_depend_on_ranks(sgd: dict[int, tuple[Path, Ended]]) -> None:
    one = weights(sgd[1][0], STEPS)
    for world in WORLDS[1:]:
        assert largest_difference(one, weights(sgd[world][0], STEPS)) <= 1e-6, world


def test_each_step_holds_the_same_rows(sgd: dict[int, tuple[Path, Ended]]) -> None:
    ledgers = {world: read_lines(run / "ledger.jsonl") for world, (run, _) in sgd.items()}
    assert [line["step"] for line in ledgers[1]] == list(range(1, STEPS + 1))
    for world in WORLDS[1:]:
        assert ledgers[world] == ledgers[1], world
    epochs = {line["step"]: line["epoch"] for line in read_lines(sgd[1][0] / "metrics.jsonl")}
    first = [row for line in ledgers[1] if epochs[line["step"]] == 0 for rows in line["rows"].values() for row in rows]
    assert sorted(first) == sorted(f"train.jsonl:{i}" for i in range(200)), "an epoch is the corpus, each row once"
    assert any(len(line["rows"]) < 4 for line in ledgers[1]), "no lane ended before another: no filler was tried"


def test_ranks_that_do_not_divide_the_lanes_are_warned_and_recorded(sgd: dict[int, tuple[Path, Ended]]) -> None:
    assert "3 ranks do not divide data.lanes=4" in sgd[3][1].err[0]
    assert "[1, 2, 4]" in sgd[3][1].err[0]
    for world, (_, ended) in sgd.items():
        assert ("do not divide" in ended.text) == (world == 3)
        assert not any(ended.err[1:]), "only rank zero talks"


def test_losses_in_the_log_do_not_depend_on_ranks(sgd: dict[int, tuple[Path, Ended]]) -> None:
    def losses(world: int) -> list[float]:
        return [line["loss"] for line in read_lines(sgd[world][0] / "metrics.jsonl")]

    assert len(losses(1)) == STEPS
    for world in WORLDS[1:]:
        np.testing.assert_allclose(losses(world), losses(1), rtol=1e-5)


@pytest.mark.slow
def test_weights_after_adamw_do_not_depend_on_ranks(recipe: Path, tmp_path: Path) -> None:
    words = (f"loop.max_steps={STEPS}", "loop.eval_every=100", "loop.save_every=100", *NO_SCORES)
    for world in (1, 2, 4):
        train(recipe, tmp_path / str(world), *words, world=world).check()
    one = weights(tmp_path / "1", STEPS)
    for world in (2, 4):
        assert 0 < largest_difference(one, weights(tmp_path / str(world), STEPS)) <= 5e-4, world


@pytest.mark.slow
def test_loader_processes_change_nothing(recipe: Path, sgd: dict[int, tuple[Path, Ended]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, *SGD, *NO_SCORES, "data.workers=2", "data.prefetch=3", world=2).check()
    assert read_lines(run / "ledger.jsonl") == read_lines(sgd[2][0] / "ledger.jsonl")
    assert largest_difference(weights(run, STEPS), weights(sgd[2][0], STEPS)) == 0


@pytest.mark.slow
def test_fused_lanes_are_the_same_rows_and_the_same_sum(recipe: Path, tmp_path: Path) -> None:
    """Without dropout, whose masks fusing changes, the gradient is the same one."""
    found = {}
    for name, world, fuse in (("bare", 1, 1), ("fused", 1, 4), ("fused-2", 2, 2)):
        hook = partial(hooks.save_gradients, tmp_path / f"{name}.safetensors")
        words = (*STILL, *NO_SCORES, "model.dropout=0", f"loop.fuse_lanes={fuse}")
        train(recipe, tmp_path / name, *words, world=world, hook=hook).check()
        found[name] = gradients_of(tmp_path / f"{name}.safetensors")
    assert relative(found["bare"], found["fused"]) <= 1e-6
    assert relative(found["bare"], found["fused-2"]) <= 1e-6


def test_more_ranks_than_lanes_are_refused(recipe: Path, tmp_path: Path) -> None:
    ended = run_ranks(["train", recipe, "--run", tmp_path / "run"], tmp_path / "logs", env={"WORLD_SIZE": "5"})
    ended.check(2)
    assert "5 ranks" in ended.err[0]
    assert "data.lanes=4" in ended.err[0]
    assert not (tmp_path / "run").exists()


def test_fused_lanes_must_divide_each_ranks_share(recipe: Path, tmp_path: Path) -> None:
    argv = ["train", recipe, "loop.fuse_lanes=4", "--run", tmp_path / "run"]
    ended = run_ranks(argv, tmp_path / "logs", env={"WORLD_SIZE": "2"}).check(2)
    assert "loop.fuse_lanes=4" in ended.err[0]


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    words = ("loop.max_steps=60", "loop.eval_every=60", "loop.save_every=60", "optim.lr=5e-3")
    train(recipe, run, *words, "evaluation.splits=[]").check()
    return run


@pytest.mark.parametrize("rows", slow_except([1, 2, 7, 9, 97], 9))
def test_scores_do_not_depend_on_ranks(trained: Path, rows: int) -> None:
    found = {}
    for world in (1, 2):
        # small batches, so that there are several for each rank
        words = (f"evaluation.max_rows={rows}", "evaluation.tokens_per_batch=60", "--split", "test")
        run_ranks(["evaluate", trained, *words], next_logs(trained), world).check()
        folder = trained / "evaluation" / "test"
        found[world] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        (folder / "metrics.json").rename(folder.parent / f"{rows}-{world}.json")
    assert found[1] == found[2]
    assert len(found[1]["predictions.jsonl"].splitlines()) == rows
    ids = [line["id"] for line in read_lines(trained / "evaluation" / "test" / "predictions.jsonl")]
    numbers = [int(row_id.removeprefix("test.jsonl:")) for row_id in ids]
    assert numbers == sorted(set(numbers))


def test_ranks_are_those_of_the_environment() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"  # or sums would differ by their order


def test_a_rank_that_is_killed_before_it_begins_has_an_empty_output(tmp_path: Path) -> None:
    ranks = Ranks(["--help"], tmp_path / "logs", 2)
    for rank in range(2):
        ranks.signal(signal.SIGKILL, rank)
    ended = ranks.wait(60)
    assert (ended.codes, ended.out, ended.late) == ([-9, -9], ["", ""], False)

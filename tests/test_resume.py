"""Nothing lost, nothing repeated: a run that was killed or stopped any number of times ends as one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import pytest
import yaml
from conftest import write_recipe, write_rows
from outcomes import STEPS, checkpoint_of, outcome, same
from processes import TIMEOUT, Ended, Ranks, next_logs, read_lines, run_ranks, status, train, wait_until
from safetensors.numpy import load_file
from slow import slow_except

pytestmark = pytest.mark.ranks

WORDS = (f"loop.max_steps={STEPS}", "optim.schedule=cosine", "optim.warmup_steps=3")
EVALUATE = "trainer.engine.evaluate._records"


def hashes_of(run: Path) -> dict[str, str]:
    """Every file of a run but those that say when it was started."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
    dated = ("status.json", "report.html")
    wanted = [path for path in paths if path.name not in dated and path != run / "manifest.json"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted}


def resumed_from(ended: Ended) -> int | None:
    lines = [line for line in ended.err[0].splitlines() if line.startswith("resumed from step")]
    return int(lines[0].split()[3]) if lines else None


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on 2 ranks. Read only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(recipe, run, *WORDS, world=2).check()
    return run


@pytest.fixture
def finished(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_many_places(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """In steps, in an evaluation, before a checkpoint is committed and right after, and in the last evaluation."""
    run = tmp_path / "run"
    kills = [  # where, and from which step the start before it had gone on
        (partial(hooks.at_micro_batch, 2, 1), None),
        (partial(hooks.at_micro_batch, 5, 2), None),
        # at step 8; the start before it was killed in step 5, when step 4 was perhaps still being written
        (partial(hooks.at_call, EVALUATE, 1, 1), (3, 4)),
        (partial(hooks.at_save, 8, "flush"), (3, 4, 6)),  # likewise, with step 6 on a busy disk
        (partial(hooks.at_save, 9, "clean"), 6),
        (partial(hooks.at_micro_batch, 11, 3), 9),
        (partial(hooks.at_call, "trainer.engine.checkpoint.read", 1, 1), 9),  # when the weights to use are chosen
        (partial(hooks.at_call, "trainer.engine.session.write_evaluation", 1, 0), 14),
        (partial(hooks.at_call, EVALUATE, 1, 1), 14),  # the last one
    ]
    for number, (kill, step) in enumerate(kills):
        ended = train(recipe, run, *WORDS, world=2, hook=kill)
        assert -signal.SIGKILL in ended.codes, f"{number}: nobody was killed\n{ended.text}"
        assert 0 not in ended.codes, f"{number}\n{ended.text}"
        assert -signal.SIGABRT not in ended.codes, f"{number}: a rank hung\n{ended.text}"
        assert "Traceback" not in ended.text, f"{number}\n{ended.text}"
        assert resumed_from(ended) in (step if isinstance(step, tuple) else (step,)), f"{number}\n{ended.text}"
        assert status(run)["state"] != "finished"
    assert resumed_from(train(recipe, run, *WORDS, world=2).check()) == STEPS
    same(outcome(run), outcome(uninterrupted))
    assert len(json.loads((run / "manifest.json").read_text())["starts"]) == len(kills)
    assert status(run)["attempt"] == len(kills) + 1
    left = [path.name for path in [*run.iterdir(), *(run / "checkpoints").iterdir()] if path.name.startswith(".")]
    assert not [name for name in left if "saving" in name or "deleting" in name], left


def test_killed_in_random_steps(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run, draw, words = tmp_path / "run", random.Random(20261122), (*WORDS, "loop.save_every=2")
    step = 0
    for _ in range(5):
        step = draw.randrange(step + 1, STEPS + 1)
        kill = partial(hooks.at_micro_batch, step, draw.randrange(4))
        ended = train(recipe, run, *words, world=2, hook=kill)
        assert -signal.SIGKILL in ended.codes
        step -= 2  # at least this far it is saved
        step = max(0, step)
    train(recipe, run, *words, world=2).check()
    same(outcome(run), outcome(uninterrupted))


def test_no_rank_is_left_behind_when_one_of_four_dies(recipe: Path, tmp_path: Path) -> None:
    ended = train(recipe, tmp_path / "run", *WORDS, world=4, hook=partial(hooks.at_micro_batch, 5, 2))
    assert ended.codes == [1, 1, -signal.SIGKILL, 1], ended.text
    assert "a rank died" in ended.err[0]
    assert "Traceback" not in ended.text
    # a rank that is in a call of the store when it ends gets a warning of PyTorch's C++ code
    own = [text for text in ended.err[1:] if text and "TCPStore.cpp" not in text.splitlines()[0]]
    assert not own, "one of them speaks"
    told = status(tmp_path / "run")
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert told["error"] in ended.err[0]


# -- asked to stop -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stopped_by_signals(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """To one rank only; before the first step, in steps, in evaluations; each with 75 and everything saved."""
    run = tmp_path / "run"
    # where, the step that is saved, and the signal. A save or evaluation ends the agreement on a step ahead.
    stops = [
        (partial(hooks.at_call, "trainer.engine.setup.survey_data", 1, 0, signal.SIGTERM), 0, "SIGTERM"),
        (partial(hooks.at_micro_batch, 5, 1, signal.SIGTERM), 6, "SIGTERM"),
        (partial(hooks.at_call, EVALUATE, 1, 1, signal.SIGUSR1), 8, "SIGUSR1"),
        (partial(hooks.at_micro_batch, 10, 0, signal.SIGHUP), 11, "SIGHUP"),
        (partial(hooks.at_micro_batch, 12, 0, signal.SIGINT), 12, "SIGINT"),
        (partial(hooks.at_call, EVALUATE, 3, 0, signal.SIGTERM), 14, "SIGTERM"),  # the first after training
    ]
    before = None
    for number, (stop, step, name) in enumerate(stops):
        ended = train(recipe, run, *WORDS, world=2, hook=stop).check(75)
        assert resumed_from(ended) == before, number
        told = status(run)
        assert (told["state"], told["exit_code"]) == ("preempted", 75)
        assert "stopped by" in told["error"]
        assert name in ended.text or "another rank" in ended.text
        assert checkpoint_of(run, step).is_dir(), f"{number}: {sorted((run / 'checkpoints').iterdir())}"
        before = step
    train(recipe, run, *WORDS, world=2).check()
    same(outcome(run), outcome(uninterrupted))
    assert status(run)["state"] == "finished"


@pytest.mark.slow
def test_the_command_is_killed_interrupted_and_resumed(recipe: Path, tmp_path: Path) -> None:
    """`rankzero train` with a launcher and two ranks: a rank killed from outside, then Ctrl-C, then to the end."""
    words = ("loop.max_steps=60", "loop.eval_every=20", "loop.save_every=10", "evaluation.beam_size=1")
    expected, run = tmp_path / "expected", tmp_path / "run"
    train(recipe, expected, *words, world=2).check()
    (temporary := tmp_path / "temporary").mkdir()
    start = "import sys; from launch.cli import main; main()"
    argv = [sys.executable, "-c", start, "train", recipe, *words, "--config", "cpu", "--run", run]

    def begin() -> subprocess.Popen[str]:
        env = {**os.environ, "TMPDIR": str(temporary)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(list(map(str, argv)), **pipes, text=True, env=env)

    def wait_for(step: int, process: subprocess.Popen[str]) -> None:
        wait_until(lambda: process.poll() is not None or read_lines(run / "metrics.jsonl")[-1]["step"] >= step)

    process = begin()
    wait_for(15, process)
    victim = status(run)["pid"]
    hooks.kill_rank(victim)
    text = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, text
    assert "was killed by SIGKILL" in text[1]

    process = begin()
    wait_for(30, process)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75, text
    assert status(run)["state"] == "preempted"

    process = begin()
    text = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, text
    assert "resumed from step" in text[1]
    same(outcome(run, 60), outcome(expected, 60))
    assert not list(temporary.glob("torchelastic_*")), "torch's launcher leaves a folder at each start"


# -- other ranks, other averaging --------------------------------------------------------------------------------------


def test_resume_with_another_number_of_ranks(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    stop = partial(hooks.at_micro_batch, 5, 1, signal.SIGTERM)
    train(recipe, tmp_path / "2", *WORDS, world=2, hook=stop).check(75)
    for world in (1, 4):
        run = Path(shutil.copytree(tmp_path / "2", tmp_path / str(world)))
        train(recipe, run, *WORDS, world=world).check()
        assert read_lines(run / "ledger.jsonl") == read_lines(uninterrupted / "ledger.jsonl")
        found, expected = (load_file(checkpoint_of(r) / "model.safetensors") for r in (run, uninterrupted))
        assert max(float(np.abs(found[name] - expected[name]).max()) for name in expected) <= 5e-4
        manifest = json.loads((run / "manifest.json").read_text())
        assert (manifest["ranks"], manifest["starts"][0]["ranks"]) == (world, 2)


@pytest.mark.parametrize(
    ("words", "steps", "kill"),
    [
        (
            (
                *("optim.averaging.kind=ema", "optim.averaging.decay=0.9", "optim.schedule=plateau"),
                *("optim.plateau.patience=1", "optim.plateau.min_delta=10", f"loop.max_steps={STEPS}"),
            ),
            STEPS,
            10,
        ),
        (
            (
                *("optim.averaging.kind=last", "optim.averaging.last=3", "loop.early_stopping.patience=2"),
                *("loop.early_stopping.min_delta=10", "loop.max_steps=30", "loop.epochs=20"),
            ),
            12,
            11,
        ),
        (
            (
                *("optim.name=sgd", "optim.momentum=0.9", "optim.nesterov=true", "optim.lr=0.1"),
                *("loop.early_stopping.metric=bleu", "data.workers=1", f"loop.max_steps={STEPS}"),
                *("loop.save_every=epoch", "loop.eval_every=epoch"),
            ),
            STEPS,
            13,
        ),
    ],
    ids=["ema-and-plateau", "last-and-early-stopping", "momentum-and-epochs"],
)
def test_contents_of_a_checkpoint(recipe: Path, tmp_path: Path, words: tuple[str, ...], steps: int, kill: int) -> None:
    expected, run = tmp_path / "expected", tmp_path / "run"
    train(recipe, expected, *words).check()
    assert -signal.SIGKILL in train(recipe, run, *words, hook=partial(hooks.at_micro_batch, kill, 0)).codes
    assert resumed_from(train(recipe, run, *words).check()) is not None
    same(outcome(run, steps), outcome(expected, steps))
    rates = {line["lr"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"}
    assert len(rates) == (3 if "optim.schedule=plateau" in words else 1)
    average = (checkpoint_of(run, steps) / "ema.safetensors").exists()
    assert average == ("optim.averaging.kind=ema" in words)
    if "optim.averaging.kind=last" in words:
        kept = sorted(path.name for path in (run / "checkpoints").iterdir())
        grid = json.loads((checkpoint_of(run, steps) / "state.json").read_text())["grid"]
        assert grid == [4, 8, 12], "steps of loop.eval_every; those of loop.save_every do not change an average"
        assert {checkpoint_of(run, step).name for step in grid} <= set(kept)


# -- started again on the same directory -------------------------------------------------------------------------------


def test_a_finished_run_started_again_changes_nothing(recipe: Path, finished: Path) -> None:
    before, times = hashes_of(finished), {path: path.stat().st_mtime_ns for path in finished.rglob("step-*/*")}
    ended = train(recipe, finished, *WORDS, world=2).check()
    assert hashes_of(finished) == before
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("step-*/*")} == times
    assert "evaluating" not in ended.text
    assert status(finished)["state"] == "finished"


def test_stages_that_were_deferred_are_done_by_a_later_start(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """On one rank here, as the dependent job of `rankzero submit --finalize` does."""
    run = tmp_path / "run"
    train(recipe, run, *WORDS, "--defer", world=2).check()
    said = status(run)
    assert (said["state"], said["exit_code"], said["step"]) == ("running", 0, status(uninterrupted)["step"])
    assert "evaluation" in said["waits_for"]
    assert (run / "model" / "model.safetensors").exists()
    assert not (run / "evaluation").exists()
    train(recipe, run, *WORDS).check()
    assert (status(run)["state"], status(run)["waits_for"]) == ("finished", None)
    for file in ("recipe.yaml", "evaluation/test/metrics.json", "model/model.safetensors"):
        assert (run / file).read_bytes() == (uninterrupted / file).read_bytes()


def test_missing_stages_are_completed(recipe: Path, uninterrupted: Path, finished: Path) -> None:
    shutil.rmtree(finished / "model")
    shutil.rmtree(finished / "evaluation" / "test")
    train(recipe, finished, *WORDS, world=2).check()
    same(outcome(finished), outcome(uninterrupted))


@pytest.mark.slow
def test_a_raised_end_trains_on(recipe: Path, tmp_path: Path) -> None:
    """With a constant rate it comes to what a run comes to that had it from the start."""
    expected, run = tmp_path / "expected", tmp_path / "run"
    train(recipe, expected, "loop.max_steps=16").check()
    train(recipe, run, "loop.max_steps=8").check()
    first = json.loads((run / "evaluation/test/metrics.json").read_text())
    refused = train(recipe, run, "loop.max_steps=16").check(2)
    assert "loop.max_steps: 8 -> 16" in refused.text
    ended = train(recipe, run, "loop.max_steps=16", "--allow-change", "loop.max_steps").check()
    assert resumed_from(ended) == 8
    same(outcome(run, 16), outcome(expected, 16))
    assert json.loads((run / "evaluation/test/metrics.json").read_text()) != first


def test_a_start_without_a_checkpoint_does_not_fix_the_recipe(recipe: Path, tmp_path: Path) -> None:
    """Survey, tokenizer and manifest of the start that died are made again where the recipe asks for others."""
    run = tmp_path / "run"
    ended = train(recipe, run, *WORDS, hook=partial(hooks.at_micro_batch, 1, 0))
    assert ended.codes == [-signal.SIGKILL], ended.text
    before = (run / "tokenizer/tokenizer.json").read_bytes()
    assert (run / "manifest.json").exists()
    train(recipe, run, *WORDS, "tokenizer.train.vocab_size=120").check()
    assert (run / "tokenizer/tokenizer.json").read_bytes() != before
    assert status(run)["state"] == "finished"


def test_another_recipe_is_refused_with_all_keys_and_both_values(recipe: Path, finished: Path) -> None:
    before = hashes_of(finished)
    other = ("seed=2", "optim.lr=1e-4", "model.dropout=0.3", "data.lanes=2")
    ended = train(recipe, finished, *WORDS, *other).check(2)
    for line in ("seed: 1 -> 2", "optim.lr: 0.002 -> 0.0001", "model.dropout: 0.1 -> 0.3", "data.lanes: 4 -> 2"):
        assert line in ended.text
    assert "--fresh" in ended.text
    assert "--allow-change" in ended.text
    partly = train(recipe, finished, *WORDS, *other, "--allow-change", "seed", "--allow-change", "optim.lr").check(2)
    assert "seed: 1 -> 2" not in partly.text
    assert "data.lanes: 4 -> 2" in partly.text
    assert hashes_of(finished) == before
    assert status(finished)["state"] == "finished", "a refused start leaves the run as it was"


@pytest.mark.slow
def test_a_run_from_before_a_key_was_added_resumes(recipe: Path, finished: Path) -> None:
    """An older version has written a recipe without it: it trained with what is the default now."""
    file = finished / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    assert values["loop"].pop("tf32") is False
    file.write_text(yaml.safe_dump(values))
    before = hashes_of(finished)
    train(recipe, finished, *WORDS, world=2).check()
    after = hashes_of(finished)
    assert before.pop("recipe.yaml") != after.pop("recipe.yaml")
    assert before == after
    train(recipe, finished, *WORDS, "loop.tf32=true", world=2).check(2)


def test_keys_that_change_no_step_are_free(recipe: Path, finished: Path, tmp_path: Path) -> None:
    free = ("name=other", "loop.keep=3", "loop.log_every=7", "data.workers=1", "loop.ledger=false", "launch.nodes=2")
    train(recipe, finished, *WORDS, *free).check()
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["loop"]["keep"] == 3


@pytest.mark.slow
def test_a_finished_run_without_checkpoints_is_not_overwritten(recipe: Path, finished: Path) -> None:
    """They were deleted to free space."""
    shutil.rmtree(finished / "checkpoints")
    before = hashes_of(finished)
    ended = train(recipe, finished, *WORDS, world=2).check()
    assert f"already trained to step {STEPS}" in ended.err[0]
    assert hashes_of(finished) == before
    shutil.rmtree(finished / "evaluation" / "test")
    train(recipe, finished, *WORDS).check()
    assert hashes_of(finished) == before, "what is missing is made again from model/"
    refused = train(recipe, finished, *WORDS, "seed=7").check(2)
    assert "--fresh" in refused.text
    assert "--run" in refused.text
    more = train(recipe, finished, *WORDS, "loop.max_steps=20", "--allow-change", "loop.max_steps").check(4)
    assert "has no checkpoints to train on from" in more.text
    assert hashes_of(finished) == before


@pytest.mark.parametrize("left", slow_except(["model", "evaluation"], "model"))
def test_a_finished_run_fixes_the_recipe_of_its_directory(recipe: Path, finished: Path, left: str) -> None:
    for name in {"checkpoints", "model", "evaluation", "manifest.json"} - {left}:
        path = finished / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    before = hashes_of(finished)
    assert "nothing can be resumed" in train(recipe, finished, *WORDS).check(4).text
    train(recipe, finished, *WORDS, "seed=7").check(2)
    assert {name: value for name, value in hashes_of(finished).items() if name in before} == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("loop.max_steps=13", "loop.max_steps=13 is less than .* has trained .max_steps 14.*give 14 or more"),
        ("loop.epochs=1", "loop.epochs=1 is less than .* has trained .epochs 2.*give 2 or more"),
        ("optim.lr=1e-4", "no step would be trained with the changed optim.lr.*Raise loop.max_steps or loop.epochs"),
        ("seed=9", "no step would be trained with the changed seed"),
        ("loop.eval_every=7", "no step would be trained with the changed loop.eval_every"),
    ],
)
def test_the_recipe_of_a_run_describes_its_weights(recipe: Path, finished: Path, override: str, told: str) -> None:
    """A change that trains nothing is not written into recipe.yaml."""
    before = hashes_of(finished)
    ended = train(recipe, finished, *WORDS, override, "--allow-change", override.partition("=")[0]).check(2)
    assert re.search(told, ended.text), ended.text
    assert hashes_of(finished) == before


@pytest.mark.slow
def test_an_end_may_be_lowered_to_the_trained_steps(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, *WORDS, hook=partial(hooks.at_micro_batch, 9, 0)).check(-signal.SIGKILL)
    lower = (*WORDS, "--allow-change", "loop.max_steps")
    step = int(max((run / "checkpoints").glob("step-*")).name[-8:])  # 8, if it was written before the kill
    assert f"give {step} or more" in train(recipe, run, *lower, f"loop.max_steps={step - 1}").check(2).text
    train(recipe, run, *lower, f"loop.max_steps={step + 1}").check()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["loop"]["max_steps"] == step + 1


@pytest.mark.slow
def test_fresh_keeps_the_old_run_under_another_name(recipe: Path, finished: Path) -> None:
    before = hashes_of(finished)
    words = ("loop.max_steps=4", "seed=2", "--fresh")
    ended = train(recipe, finished, *words, world=2).check()
    aside = finished.with_name("run.old-1")
    assert hashes_of(aside) == before
    assert str(aside) in ended.text
    assert resumed_from(ended) is None
    assert status(finished)["step"] == 4
    train(recipe, finished, *words).check()
    assert finished.with_name("run.old-2").is_dir()


def test_changed_data_is_refused_and_moved_data_is_not(tmp_path: Path, corpus: Path) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    here = Path(shutil.copytree(corpus, tmp_path / "here"))
    settings = write_recipe(tmp_path / "r.yaml", here, evaluation={"max_rows": 4})
    run = tmp_path / "run"
    train(settings, run, "loop.max_steps=2").check()
    train(settings, run, "loop.max_steps=2", f"data.root={moved}").check()
    write_rows(here / "train.jsonl", 200, seed=1)
    refused = train(settings, run, "loop.max_steps=2").check(3)
    assert "data.train" in refused.text
    assert "changed" in refused.text
    assert status(run)["exit_code"] == 3
    train(settings, run, "loop.max_steps=2", f"data.root={moved}").check()


@pytest.mark.slow
def test_a_failed_first_start_may_be_corrected(recipe: Path, tmp_path: Path) -> None:
    """Nothing has been trained yet, so a corrected recipe is not another one."""
    run = tmp_path / "run"
    words = ("loop.max_steps=2", "evaluation.splits=[]")
    train(recipe, run, *words, "data.train=trian.jsonl").check(3)
    train(recipe, run, *words, "data.lanes=300").check(3)
    train(recipe, run, *words).check()


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(recipe: Path, uninterrupted: Path, finished: Path) -> None:
    weights = checkpoint_of(finished) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    ended = train(recipe, finished, *WORDS, world=2).check()
    assert resumed_from(ended) == 12
    assert str(weights) in ended.err[0]
    same(outcome(finished), outcome(uninterrupted))


@pytest.mark.parametrize(
    "averaging",
    [(), pytest.param(("optim.averaging={kind: last, last: 3}",), marks=pytest.mark.slow)],
    ids=["best", "averaged"],
)
def test_damaged_weights_are_not_published(recipe: Path, tmp_path: Path, averaging: tuple[str, ...]) -> None:
    run, choice = tmp_path / "run", "trainer.engine.session.Session.select_checkpoint"
    words = (f"loop.max_steps={STEPS}", *averaging)
    hook = partial(hooks.first_is_best, partial(hooks.at_call, choice, 1, 0))
    train(recipe, run, *words, hook=hook).check(-signal.SIGKILL)
    state = json.loads((checkpoint_of(run) / "state.json").read_text())
    step = state["grid"][0] if averaging else state["best"]["step"]
    assert step < STEPS
    weights = checkpoint_of(run, step) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8] + bytes(8))
    ended = train(recipe, run, *words).check(4)
    assert f"the checkpoint of step {step} is damaged: {weights} has another SHA-256" in ended.text
    assert not (run / "model").exists()
    weights.write_bytes(good)
    train(recipe, run, *words).check()


def test_without_a_complete_checkpoint_no_training_starts_from_scratch(recipe: Path, finished: Path) -> None:
    for manifest in finished.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    before = hashes_of(finished)
    ended = train(recipe, finished, *WORDS, world=2).check(4)
    assert "--fresh" in ended.text
    assert "manifest.json" in ended.text
    assert hashes_of(finished) == before
    assert status(finished)["exit_code"] == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of its own; call it with a size to have it made, or made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = [False]

    def resize(kilobytes: int) -> Path:
        options = f"{'remount,' if mounted[0] else ''}size={kilobytes}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
        mounted[0] = True
        return folder

    yield resize
    if mounted[0]:
        subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.root
@pytest.mark.slow
def test_a_full_disk(recipe: Path, tmp_path: Path, small_disk: Any) -> None:
    """Wherever it is full: exit 4, no traceback, no checkpoint lost; with more room the same command goes on."""
    expected = tmp_path / "expected"
    train(recipe, expected, *WORDS).check()
    reached, sizes = set(), (8, 20, 60, 100, 450, 700, 1000, 1400)
    run = small_disk(sizes[0]) / "run"
    logs = tmp_path / "logs"
    for size in sizes:
        small_disk(size)
        ended = run_ranks(["train", recipe, *WORDS, "--run", run], logs / str(size))
        assert ended.code in (0, 4), f"{size} kB: {ended.codes}\n{ended.text}"
        assert "Traceback" not in ended.text, f"{size} kB\n{ended.text}"
        uninterrupted = [p for p in run.glob("checkpoints/step-*") if (p / "manifest.json").exists()]
        assert len(uninterrupted) >= len(reached) > 0 or not reached, f"{size} kB: a checkpoint was lost"
        reached |= {path.name for path in uninterrupted}
    assert reached, "no checkpoint was reached: the sizes do not fit the run any more"
    small_disk(20_000)
    run_ranks(["train", recipe, *WORDS, "--run", run], logs / "all").check()
    same(outcome(run), outcome(expected))


# -- two at once -------------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_directory_is_refused(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = partial(hooks.slow_step, 0.5)
    first = Ranks(["train", recipe, "loop.max_steps=100", "--run", run], next_logs(run), hook=slow)
    try:
        pid = first.processes[0].pid
        wait_until(lambda: status(run)["step"] > 0)
        for words in (["train", recipe], ["train", recipe, "--fresh"], ["evaluate"], ["export"], ["report"], ["bench"]):
            place = ["--run", run] if "train" in words else [run]
            refused = run_ranks([*words, *place], next_logs(run))
            if refused.code != 4:  # "no model yet" of commands that look at it first
                refused.check(2)
                assert f"in use by process {pid} on " in refused.text, words
        assert not run.with_name("run.old-1").exists()
    finally:
        first.signal(signal.SIGTERM)
    first.wait().check(75)


@pytest.mark.slow
def test_commands_on_a_finished_run_that_another_process_uses_are_refused(reviews: Path, tmp_path: Path) -> None:
    from export_helpers import encoder_run

    from trainer.rundir import RunDir

    run = encoder_run(tmp_path, reviews).path
    before = hashes_of(run)
    with RunDir(run).locked():
        for command in (["evaluate"], ["report"], ["export"], ["bench"]):
            refused = run_ranks([*command, run], next_logs(run)).check(2)
            assert "is in use by process" in refused.text, command
        assert hashes_of(run).keys() == before.keys() | {"lock"}
    run_ranks(["evaluate", run], next_logs(run)).check()
    assert not (run / "lock").exists()


@pytest.mark.slow
def test_a_stopped_run_that_wakes_up_late_writes_nothing(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Its rank zero is stopped, another start takes the directory over and finishes; then all its ranks leave."""
    run = tmp_path / "run"
    quick = partial(hooks.quick_heartbeat, 0.2)
    slow = partial(hooks.quick_heartbeat, 0.2, partial(hooks.slow_step, 0.3))
    first = Ranks(["train", recipe, *WORDS, "--run", run], next_logs(run), 2, hook=slow)
    try:
        wait_until(lambda: checkpoint_of(run, 3).is_dir())
        first.signal(signal.SIGSTOP)
        second = run_ranks(["train", recipe, *WORDS, "--run", run], next_logs(run), 2, hook=quick).check()
        assert "for its heartbeat, then taking over" in second.err[0]
        before, said = hashes_of(run), status(run)
    finally:
        first.signal(signal.SIGCONT)
    ended = first.wait().check(75)
    assert "no longer belongs to this process" in ended.err[0]
    assert "Traceback" not in ended.text
    assert ended.err[1].count("no longer belongs") == 0, "one rank reports it"
    watched = {name for name in before if name.startswith("hang-rank-")}
    assert hashes_of(run).items() ^ before.items() <= {(name, before[name]) for name in watched}
    assert status(run) == said
    same(outcome(run), outcome(uninterrupted))


def test_status_beats_while_nothing_is_logged(recipe: Path, tmp_path: Path) -> None:
    """At least every two seconds, however long a step takes."""
    run = tmp_path / "run"
    slow = partial(hooks.slow_step, 6.0)
    started = Ranks(["train", recipe, "loop.max_steps=1", "--run", run], next_logs(run), hook=slow)
    wait_until(lambda: status(run)["state"] == "running")
    beats, until = set(), time.monotonic() + 6
    while time.monotonic() < until:
        beats.add(status(run)["updated"])
        time.sleep(0.05)
    started.wait().check()
    gaps = np.diff(sorted(beats))
    assert len(beats) >= 3
    assert max(gaps) < 4, "2 seconds, and some for a busy machine"

"""`rankzero sweep`: the check of SWEEP.yaml, draws, pruning, failures, the page, and sweeps that are killed."""

from __future__ import annotations

import html.parser
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import sweep_helpers
import sweep_stub
import typer
import yaml
from processes import wait_until
from review_helpers import recipe as review_recipe
from sweep_helpers import RATES, problems, run_stub, stub_command, sweep_of

from launch.slurm import queue
from launch.slurm.follow import _text as status_text
from launch.slurm.follow import state_of, status_command
from launch.slurm.queue import Snapshot
from launch.sweep import figures, slurm, task
from launch.sweep.distributions import LogUniform, Quantized
from launch.sweep.page import interval_of_best, write_sweep_page
from launch.sweep.space import Sweep, parse_sweep
from launch.sweep.study import Study
from launch.sweep.trials import Trials, define
from launch.sweep_folder import SweepFolder, evaluations
from trainer.errors import CheckpointError, DataError, RankzeroError, UsageError
from trainer.files import read_json, write_json
from trainer.recipe_loading import load_recipe
from trainer.task.metrics import Metric

NO_EXPORT = {"model": False, "onnx": False, "int8": False}
TWO = {"optim.schedule": {"kind": "choice", "values": ["constant", "linear"]}}


def rates(*values: float) -> dict[str, Any]:
    """A grid of learning rates."""
    return {"method": "grid", "space": {"optim.lr": {"kind": "choice", "values": list(values)}}}


# -- SWEEP.yaml --------------------------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    space = {
        "optim.lrr": RATES,
        "optim.lr": {"kind": "loguniform", "low": 1, "high": 2},
        "model.dropout": {"kind": "uniform", "low": 0.1, "high": 1.5},
        "optim.schedule": {"kind": "choice", "values": ["linear", "cosin"]},
        "optim.warmup_steps": {"kind": "quantized", "low": 0, "high": 25, "step": 10},
        "loop.log_every": {"kind": "int", "low": 4, "high": 4},
        "optim.beta2": {"kind": "uniform", "low": 0.1, "heigh": 0.2},
        "seed": {"kind": "int", "low": 1, "high": 3},
        "data.validation": {"kind": "choice", "values": ["validation.jsonl", 0.1]},
        "export.int8": {"kind": "choice", "values": [True, False]},
    }
    with pytest.raises(UsageError) as error:
        sweep_of(tmp_path, {"trials": 3, "metric": "test.loss", "space": space})
    text = str(error.value)
    assert "unknown key; did you mean 'lr'" in text
    assert "space.optim.lr: kind 'loguniform' is unknown; allowed kinds: choice, uniform, log_uniform" in text
    assert "space.model.dropout: 1.5 is refused" in text
    assert "less than 1" in text
    assert 'space.optim.schedule: "cosin" is refused' in text
    assert "25 is not, 20 would be" in text
    assert "space.loop.log_every: low must be below high" in text
    assert "space.optim.beta2.heigh: unknown key; did you mean 'high'?" in text
    assert "space.optim.beta2.high: required and not given" in text
    assert "space.seed: a sweep cannot vary seed" in text
    assert "space.data.validation: a sweep cannot vary" in text
    assert "space.export.int8: a sweep cannot vary export" in text
    assert "metric: 'test.loss' is of the test split, on which nothing is selected" in text
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"space": TWO}, "trials: method tpe needs their number"),
        ({"method": "grid", "trials": 3, "space": TWO}, "trials: a grid has as many trials as combinations"),
        ({"method": "grid", "space": {"optim.lr": RATES}}, "log_uniform has no end; a grid allows choice"),
        ({"trials": 3, "space": {}}, "space: Dictionary should have at least 1 item"),
        ({"trials": 3, "space": TWO, "prune": {"kind": "mediam"}}, "prune.kind: Input should be 'none', 'median'"),
        ({"trials": 3, "space": TWO, "metric": "acuracy"}, "metric: 'acuracy' is unknown; allowed: "),
        ({"trials": 3, "space": TWO, "metric": "test/bleu"}, "is of the test split"),
        ({"trials": 3, "space": {"model.d_model": {"kind": "choice", "values": [33, 35]}}}, "33 is refused"),
        ({"trials": 3, "space": {"data.train": {"kind": "choice", "values": [1, 1]}}}, "1 is given twice"),
        ({"trials": 3, "space": {"tokenizer.train.vocab_size": {"kind": "int", "low": 200, "high": 300}}}, "per token"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        sweep_of(tmp_path, config)
    assert message in str(error.value)


def test_pruning_needs_comparable_evaluations(tmp_path: Path) -> None:
    config = {"trials": 3, "space": TWO, "prune": {"kind": "median"}}
    with pytest.raises(UsageError, match="15min is a time"):
        sweep_of(tmp_path, config, ["loop.eval_every=15min"])
    with pytest.raises(UsageError, match="same number of evaluations"):
        sweep_of(tmp_path, {**config, "space": {"loop.eval_every": {"kind": "int", "low": 1, "high": 4}}})
    sweep_of(tmp_path, {**config, "space": TWO})


def test_a_value_that_only_others_allow_is_accepted_and_combinations_are_checked(tmp_path: Path) -> None:
    """3 heads do not divide 32, the recipe's width, but 96. Pairs that do not fit are not drawn."""
    space = {
        "model.heads": {"kind": "choice", "values": [2, 3]},
        "model.d_model": {"kind": "choice", "values": [32, 96]},
    }
    sweep = sweep_of(tmp_path, {"method": "random", "trials": 10, "space": space})
    study = Study(sweep, tmp_path / "journal.jsonl")
    while study.create() is not None:
        pass
    drawn = {(values["model.heads"], values["model.d_model"]) for values in map(study.values, study.trials)}
    assert drawn == {(2, 32), (2, 96), (3, 96)}
    with pytest.raises(UsageError, match=r'"model.heads": 3, "model.d_model": 32'):
        sweep_of(tmp_path, {"method": "grid", "space": space})


def test_quantized_values_are_written_as_decimals() -> None:
    steps = Quantized(low=0.1, high=0.5, step=0.1)
    assert steps.grid == [0.1, 0.2, 0.3, 0.4, 0.5]
    whole = Quantized(low=512, high=1536, step=512).grid
    assert whole == [512, 1024, 1536]
    assert all(isinstance(value, int) for value in whole)


# -- draws and the journal ---------------------------------------------------------------------------------------------

SPACE = {
    "optim.lr": RATES,
    "model.dropout": {"kind": "quantized", "low": 0, "high": 0.3, "step": 0.1},
    "loop.log_every": {"kind": "int", "low": 1, "high": 50},
    "data.columns": {"kind": "choice", "values": [{"src": "de", "trg": "en"}, {"src": "en", "trg": "de"}]},
}


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_draws_follow_from_seed_number_and_results(tmp_path: Path, method: str) -> None:
    def drawn(journal: str, seed: int, *, reopen: bool) -> list[dict[str, Any]]:
        sweep = sweep_of(tmp_path, {"method": method, "trials": 14, "seed": seed, "space": SPACE})
        study = Study(sweep, tmp_path / journal)
        while (number := study.create()) is not None:
            values = study.values(study.trials[number])
            assert values["data.columns"] in SPACE["data.columns"]["values"]  # type: ignore[operator]
            study.complete(number, sweep_stub.loss_at(values["optim.lr"], 8))
            if reopen:
                study = Study(sweep, tmp_path / journal)
        return [study.values(trial) for trial in study.trials]

    once = drawn("a.jsonl", 1, reopen=False)
    assert len({json.dumps(values) for values in once}) == 14
    assert drawn("b.jsonl", 1, reopen=True) == once
    assert drawn("c.jsonl", 2, reopen=False) != once


def test_no_combination_is_drawn_twice(tmp_path: Path) -> None:
    space = {**TWO, "model.heads": {"kind": "choice", "values": [1, 2, 4]}}
    sweep = sweep_of(tmp_path, {"method": "random", "trials": 50, "space": space})
    study = Study(sweep, tmp_path / "journal.jsonl")
    while study.create() is not None:
        pass
    assert sorted(json.dumps(study.values(trial)) for trial in study.trials) == sorted(map(json.dumps, sweep.points()))


def test_an_incomplete_line_of_the_journal_is_removed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"method": "random", "trials": 9, "space": SPACE})
    journal = tmp_path / "journal.jsonl"
    study = Study(sweep, journal)
    study.create(), study.create()
    content, wanted = journal.read_bytes(), study.values(study.trials[1])
    last = content[:-1].rfind(b"\n") + 1
    (tmp_path / "journal.jsonl.lock").touch()  # of the process that was killed
    for cut in (last + 1, (last + len(content)) // 2, len(content) - 1):
        journal.write_bytes(content[:cut])
        study = Study(sweep, journal)
        assert len(study.trials) == 1
        assert study.create() == 1
        assert study.values(study.trials[1]) == wanted
    journal.write_bytes(content[:20] + b"\n" + content[20:])
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        Study(sweep, journal)


# -- trials ------------------------------------------------------------------------------------------------------------


def test_a_grid_of_the_stub_is_trained_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = run_stub(tmp_path, rates(1e-5, 1e-2, 1e-3, 1e-4), jobs=2)
    assert problems(sweep, 4) == []
    table = read_json(sweep.trials)
    assert [row["params"]["optim.lr"] for row in table["trials"]] == [1e-5, 1e-2, 1e-3, 1e-4]
    assert table["best"] == 2
    assert table["trials"][2]["value"] == sweep_stub.loss_at(1e-3, 8)
    assert "best: trial 2" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in sweep.path.glob("trials/*/state.json")}
    run_stub(tmp_path, rates(1e-5, 1e-2, 1e-3, 1e-4), jobs=2)  # nothing is left
    assert {path: path.stat().st_mtime_ns for path in before} == before
    state = state_of(sweep.path, Snapshot())
    assert state["sweep"]["counts"] == {"complete": 4}
    assert "best: trial 2, validation loss 0.125: optim.lr=0.001" in status_text(state)
    assert "resumed: 4 complete of 4 trials\n" in capsys.readouterr().out
    with pytest.raises(UsageError) as refused:
        run_stub(tmp_path, {**rates(1e-5, 1e-2), "seed": 7}, jobs=2, overrides=["optim.weight_decay=0.5"])
    assert str(refused.value).splitlines() == [
        f"{sweep.path} has a sweep with other settings:",
        "  seed of SWEEP: 1 in the folder, 7 now",
        "  space.optim.lr.values of SWEEP: [1e-05, 0.01, 0.001, 0.0001] in the folder, [1e-05, 0.01] now",
        "  optim.weight_decay of recipe: 0.0 in the folder, 0.5 now",
        "Restore the values of the folder to resume that sweep, or choose another --out for a new one",
    ]


def test_bad_trials_are_pruned_saved_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = rates(1e-3, 2e-3, 1e-1, 1.1e-3)
    config["prune"] = {"kind": "median", "startup_trials": 2, "warmup": 1}
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    sweep = run_stub(tmp_path, config)
    rows = read_json(sweep.trials)["trials"]
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned", "complete"]
    assert problems(sweep, 4, states=("complete", "pruned")) == []
    run = sweep.run(2)
    status, steps = read_json(run.status), read_json(run.path / "state.json")["steps"]
    assert 2 <= len(steps) < sweep_stub.EVALUATIONS, "not in the warmup, and not at the end"
    assert rows[2]["pruned"]["evaluation"] >= 2
    assert rows[2]["value"] is None
    assert status["exit_code"] == 75
    assert "pruned by its sweep after evaluation" in status["error"]
    assert evaluations(run, "loss") == [sweep_stub.loss_at(1e-1, step) for step in steps]


def test_a_pruned_trial_of_a_killed_sweep_is_not_resumed(tmp_path: Path) -> None:
    """The decision is kept before the signal is sent."""
    config = {**rates(1e-3, 1e-1), "prune": {"kind": "median", "startup_trials": 1, "warmup": 0}}
    sweep = run_stub(tmp_path, rates(1e-3, 1e-1))
    text = sweep.journal.read_text(encoding="utf-8").splitlines(keepends=True)
    tell = max(number for number, line in enumerate(text) if json.loads(line)["op_code"] == 6)
    sweep.journal.write_text("".join(text[:tell]), encoding="utf-8")
    run = sweep.run(1)
    status = {**read_json(run.status), "state": "preempted", "exit_code": 75}
    run.status.write_text(json.dumps(status))
    run.manifest.unlink()
    config.pop("prune")
    study = Study(sweep_of(tmp_path, config), sweep.journal)
    assert study.open_trials() == [1]
    study.note(1, "pruned", {"evaluation": 3, "value": 2.0})
    starts = read_json(run.path / "state.json")["starts"]
    run_stub(tmp_path, config)
    assert read_json(sweep.trials)["trials"][1]["state"] == "pruned"
    assert read_json(run.path / "state.json")["starts"] == starts


@pytest.mark.parametrize(("code", "starts"), [(5, 1), (1, 3)])
def test_a_trial_that_dies_fails_and_the_others_go_on(tmp_path: Path, code: int, starts: int) -> None:
    sweep = run_stub(tmp_path, rates(1e-3, 0.9), overrides=[f"seed={code}"])
    rows = read_json(sweep.trials)["trials"]
    assert [row["state"] for row in rows] == ["complete", "failed"]
    assert f"the stub ends with {code}" in rows[1]["error"]
    assert read_json(sweep.run(1).path / "state.json")["starts"] == starts


def test_a_fault_of_every_trial_ends_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(RankzeroError) as error:
        run_stub(tmp_path, rates(0.9, 1e-3), overrides=["seed=3"])
    assert error.value.exit_code == DataError.exit_code
    assert "trial 0: the stub ends with 3" in str(error.value)
    assert read_json(tmp_path / "sweep" / "status.json")["exit_code"] == 3
    with pytest.raises(RankzeroError, match="all 3 trials have failed"):
        run_stub(tmp_path / "second", rates(0.9, 0.8, 0.7, 1e-3), overrides=["seed=5"])
    assert len(read_json(tmp_path / "second" / "sweep" / "trials.json")["trials"]) == 3


def test_the_best_trials_are_retrained_with_seeds_and_compared(tmp_path: Path) -> None:
    sweep = run_stub(tmp_path, rates(1e-5, 1e-3, 1e-2), top=2)
    assert sorted(str(path.relative_to(sweep.top).parent) for path in sweep.top.glob("*/*/status.json")) == [
        "1/seed-1", "1/seed-2", "2/seed-1", "2/seed-2",
    ]  # fmt: skip
    comparison = read_json(sweep.top / "comparison.json")
    assert len(comparison["runs"]) == 4
    assert comparison["best"]["run"].startswith(str(sweep.top / "1"))
    one = read_json(sweep.top / "1" / "comparison.json")
    assert one["splits"]["test"]["loss"]["mean"] == sweep_stub.loss_at(1e-3, 8)
    assert {row["state"] for row in read_json(sweep.trials)["top"]} == {"finished"}
    page = sweep.page.read_text(encoding="utf-8")
    assert "Best trials retrained" in page
    assert "no probabilities of classes" in page


# -- killed ------------------------------------------------------------------------------------------------------------


def test_no_trial_is_lost_or_run_twice_when_the_sweep_is_killed(tmp_path: Path) -> None:
    """SIGKILL at random instants, then to the end."""
    config = {"method": "random", "trials": 6, "space": {"optim.lr": RATES}}
    words = [sys.executable, sweep_helpers.__file__, str(tmp_path), json.dumps(config), "2"]
    env = {**os.environ, "STUB_SECONDS": "0.15"}
    sweep, draw, kills = SweepFolder(tmp_path / "sweep"), random.Random(5), 0
    while True:
        process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        begun = time.monotonic()
        while kills < 2 and not sweep.definition.exists():
            assert time.monotonic() - begun < 60
            time.sleep(0.01)
        if kills == 2:
            break
        time.sleep(draw.uniform(0.0, 1.6) + (1.2 if kills else 0.0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error.decode()
    assert problems(sweep, 6) == []

    # the check finds what it looks for
    journal = sweep.journal.read_text(encoding="utf-8")
    first = next(line for line in journal.splitlines(keepends=True) if json.loads(line)["op_code"] == 4)
    sweep.journal.write_text(journal + first, encoding="utf-8")
    assert any("2 times" in problem for problem in problems(sweep, 6)), "a planted duplicate"
    assert any("7 trials" in problem for problem in problems(sweep, 6))
    sweep.journal.write_text(journal, encoding="utf-8")
    state = sweep.run(3).path / "state.json"
    state.write_text(json.dumps({**read_json(state), "done": 2, "steps": [1, 1, 2]}))
    assert {"trial 3: finished 2 times", "trial 3: steps [1, 1, 2]"} <= {*problems(sweep, 6)}


def test_status_of_a_sweep_whose_processes_were_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial is interrupted as soon as its process is gone, by SIGKILL or after it has saved. Trials are listed."""
    sweep = run_stub(tmp_path, rates(1e-3, 1e-2))
    table = read_json(sweep.trials)
    table["planned"] = 4
    for number, state in ((2, {"state": "running", "exit_code": None}), (3, {"state": "preempted", "exit_code": 75})):
        table["trials"].append({**table["trials"][0], "number": number, "state": "running", "value": None})
        sweep.run(number).path.mkdir()
        status = {**state, "step": 4, "attempt": 1, "updated": time.time()}
        sweep.run(number).status.write_text(json.dumps(status))
    sweep.trials.write_text(json.dumps(table))
    program = "import pathlib, sys, time; from trainer.lock import hold\nwith hold(pathlib.Path(sys.argv[1])):\n"
    command = [sys.executable, "-c", program + "    print(1, flush=True); time.sleep(60)", str(sweep.run(2).path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdout and process.stdout.readline() == b"1\n"
    assert state_of(sweep.path, Snapshot())["sweep"]["counts"] == {"complete": 2, "running": 1, "interrupted": 1}
    process.kill()
    process.wait()
    text = status_text(state_of(sweep.path, Snapshot()))
    assert "sweep: 2 complete, 2 interrupted of 4 trials" in text
    assert f"trial 2: failed, step 4: process {process.pid} on " in text
    assert "trial 3: preempted, step 4" in text

    capsys.readouterr()
    status_command(sweep.path / "trials", as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in lines] == [str(sweep.run(number).path) for number in range(4)]
    assert lines[0].endswith(f"best loss {sweep_stub.loss_at(1e-3, 8):.4g}"), lines[0]
    status_command(tmp_path, as_json=True)
    assert [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()] == [str(sweep.path)]


# -- SLURM -------------------------------------------------------------------------------------------------------------


def test_the_scripts_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path, {**rates(1e-3, 1e-2, 1e-1), "prune": {"kind": "median"}})
    folder = SweepFolder(tmp_path / "a sweep")
    job = slurm._job(folder, [str(tmp_path / "tiny.yaml")], {"config": "debug"})
    for scripts in (
        slurm._trial_scripts(job, sweep, [0, 2], 4),
        slurm._top_scripts(job, folder, [(2, 1), (2, 5)], 1),
    ):
        for script in scripts:
            assert subprocess.run(["bash", "-n"], input=script.text, text=True).returncode == 0
            assert not queue.here() or queue.refusal(script.text) in (None, queue.refusal("#!/bin/bash\ntrue"))
    trials, top = slurm._trial_scripts(job, sweep, [0, 2], 4)[0].text, scripts[0].text
    assert "#SBATCH --array=0,2%4\n" in trials
    assert "{ task watch $$ && kill -TERM $$; } &" in trials
    assert '"$SWEEP/recipes/$SLURM_ARRAY_TASK_ID.yaml" --defer' in trials
    assert "#SBATCH --array=0-1%1\n" in top
    assert "top/2/seed-5" in top
    assert "task" not in top.partition("WORDS=(")[2].partition("# ---")[0].replace("TASK", "")
    assert "-m launch.sweep.task" not in top
    assert [slurm.ranges(numbers) for numbers in ([0], [1, 2, 3], [5, 0, 1, 7, 8])] == ["0", "1-3", "0-1,5,7-8"]


def test_the_tasks_of_an_array_share_the_journal(tmp_path: Path) -> None:
    """Task 2 begins first. The stub trains in place of the job."""
    sweep, folder = sweep_of(tmp_path, rates(1e-3, 1e-2, 1e-1)), SweepFolder(tmp_path / "sweep")
    with folder.locked():
        define(folder, sweep)

    def code_of(function: Callable[..., None], *words: object) -> int:
        try:
            function(folder.path, *words)
        except typer.Exit as ended:
            return ended.exit_code
        return 0

    assert code_of(task.begin, 2) == 0
    assert code_of(task.begin, 2) == 0, "requeued"
    assert code_of(task.end, 2, 75) == 1, "stopped: its next start resumes it"
    for number in (2, 0):
        assert code_of(task.begin, number) == 0
        subprocess.run(stub_command(folder.recipe(number), folder.run(number), True), check=True)
        assert code_of(task.end, number, 0) == 0
        assert code_of(task.begin, number) == task.ENDED
    assert code_of(task.begin, 1) == 0
    assert code_of(task.end, 1, 1) == 0, "the script has given up"
    rows = read_json(folder.trials)["trials"]
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert [row["params"]["optim.lr"] for row in rows] == [1e-3, 1e-2, 1e-1]
    assert code_of(task.begin, 3) == task.ENDED, "a grid of three"


# -- real trainings ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ranks
def test_a_real_sweep_is_killed_and_resumed_and_its_best_trial_retrained(tmp_path: Path, reviews: Path) -> None:
    """The resumed trial has the weights of one that was never killed."""
    values = review_recipe(reviews, loop={"max_steps": 24, "eval_every": 6, "save_every": 2}, export=NO_EXPORT)
    (tmp_path / "reviews.yaml").write_text(values.to_yaml())
    config = {**rates(3e-3, 1e-4), "metric": "accuracy"}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
    main = "from launch.cli import main; main()"
    words = [sys.executable, "-c", main, "sweep", "reviews.yaml", "search.yaml", "--top=1", "--seeds=1-2"]
    folder = SweepFolder(tmp_path / "runs" / "reviews-sweep")
    process = subprocess.Popen(words, cwd=tmp_path)
    wait_until(lambda: (folder.run(0).newest_checkpoint() or 0) >= 4, 120)
    process.kill()
    process.wait()
    assert subprocess.run(words, cwd=tmp_path, timeout=300).returncode == 0
    rows = read_json(folder.trials)["trials"]
    assert [row["state"] for row in rows] == ["complete", "complete"]
    manifest = read_json(folder.run(0).manifest)
    assert len(manifest["starts"]) == 1, "resumed once"
    assert manifest["stages"]["model"]["metric"] == "accuracy"
    assert not folder.run(0).evaluation("test").exists(), "no trial reads the test split"
    comparison = read_json(folder.top / "comparison.json")
    assert [run.rpartition("/")[2] for run in comparison["runs"]] == ["seed-1", "seed-2"]
    assert {*comparison["ensemble"]} == {"validation", "test"}
    assert 0 <= comparison["ensemble"]["test"]["accuracy"] <= 1
    # trial and seed 1 of the best one train alike: one was killed, the other was not
    best = read_json(folder.trials)["best"]
    weights = [run.model / "model.safetensors" for run in (folder.run(best), folder.top_run(best, 1))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "Ensemble of all 2 runs" in folder.page.read_text(encoding="utf-8")


# -- the page ----------------------------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_escapes_values_and_loads_nothing(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    space = {
        "optim.lr": {"kind": "choice", "values": [1e-2, 1e-3, 1e-4]},
        "data.columns.src": {"kind": "choice", "values": ["de", attack]},
    }
    sweep = run_stub(tmp_path, {"method": "grid", "space": space}, jobs=2)
    page = sweep.page.read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    tags = [tag for tag, _ in elements.found]
    assert "script" not in tags
    assert "img" not in tags
    assert tags.count("svg") >= 4, "coordinates, history, and a bar for each importance"
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert not [1 for _, attributes in elements.found if "style" in attributes]
    links = [a[name] for _, a in elements.found for name in ("src", "href") if a.get(name)]
    assert all(link and link.startswith(("#", "data:")) for link in links), links
    assert "&lt;script&gt;" in page
    assert page.count('<th scope="row">') >= 6 + 2
    assert max(read_json(sweep.trials)["importance"].items(), key=lambda pair: pair[1])[0] == "optim.lr"


def finished(number: int, value: float) -> dict[str, Any]:
    params = {"optim.lr": 10.0 ** -(number + 1)}
    return {"number": number, "state": "complete", "value": value, "params": params, "evaluations": [value],
            "seconds": 1.0, "pruned": None, "error": None}  # fmt: skip


def classified(tmp_path: Path, metric: str, values: list[float]) -> tuple[SweepFolder, str]:
    """A page of trials of a classifier, each evaluated on 200 rows."""
    space = {"optim.lr": {"kind": "log_uniform", "low": 1e-9, "high": 1e-1}}
    config = {"method": "random", "trials": len(values), "space": space, "metric": metric}
    recipe = tmp_path / "reviews.yaml"
    recipe.write_text(review_recipe(tmp_path).to_yaml(), encoding="utf-8")
    sweep = Sweep(parse_sweep(config, "SWEEP.yaml"), lambda more: load_recipe(str(recipe), [*more]), "SWEEP.yaml")
    folder = SweepFolder(tmp_path / "sweep")
    rows = [finished(number, value) for number, value in enumerate(values)]
    for row in rows:
        run = folder.run(row["number"])
        run.path.mkdir(parents=True)
        line = {"step": 1, "epoch": 0, "split": "validation", metric: row["value"], "rows": 200}
        run.metrics.write_text(json.dumps(line) + "\n", encoding="utf-8")
    table = {"name": "sweep", "metric": metric, "planned": len(values), "importance": {}, "trials": rows, "top": []}
    return folder, write_sweep_page(folder, sweep, table).read_text(encoding="utf-8")


def test_the_page_names_equal_trials_and_the_interval_of_the_best(tmp_path: Path) -> None:
    _, page = classified(tmp_path, "accuracy", [0.6, 0.9, 0.88, 0.9])
    # 180 of 200 by Wilson: 0.8506 to 0.9343 (center 0.8925, half width 0.0419)
    assert "The best is trial 1 with Accuracy 0.9 (95%: 0.8506 to 0.9343). Trial 3 has the same value" in page
    assert "over the choice of 200 validation rows. 2 other trials are within it" in page
    text = re.sub(r"<[^>]+>", "", page[page.index("<svg") : page.index("</svg>")])
    assert text.index("optim.lr") < text.index("1e-09") < text.index("0.1") < text.index("Accuracy") < text.index("0.9")
    assert '<td data-label="Accuracy">' in page


def test_a_score_without_rows_has_no_interval_until_the_trial_is_evaluated(tmp_path: Path) -> None:
    folder, page = classified(tmp_path, "f1", [0.6, 0.7])
    assert "rankzero evaluate trials/1 --split validation" in page
    assert "(95%" not in page
    assert "has the same value" not in page
    folder.run(1).evaluation("validation").mkdir(parents=True)
    write_json(folder.run(1).evaluation("validation") / "metrics.json", {"f1": 0.7, "f1_ci95": [0.65, 0.75]})
    sweep, rows = SimpleNamespace(metric="f1", spec=Metric("f1", "max")), [finished(1, 0.7), finished(0, 0.6)]
    assert interval_of_best(folder, sweep, rows) == {"ends": [0.65, 0.75], "rows": 200, "inside": 0}  # type: ignore[arg-type]
    assert interval_of_best(folder, sweep, [finished(1, 0.72)]) is None, "of other weights"  # type: ignore[arg-type]


def test_an_evaluation_without_a_number_is_null_and_drawn_as_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diverged trial has NaN, which is no JSON."""
    trials = object.__new__(Trials)
    trials.folder, trials.sweep = SweepFolder(tmp_path), SimpleNamespace()  # type: ignore[assignment]
    table = {"trials": [{"evaluations": [0.5, math.nan]}]}
    trials.study = SimpleNamespace(table=lambda: table)  # type: ignore[assignment]
    monkeypatch.setattr("launch.sweep.trials.write_sweep_page", lambda *_: None)
    assert trials.publish()["trials"] == read_json(trials.folder.trials)["trials"] == [{"evaluations": [0.5, None]}]

    drawn: list[float] = []
    axes: Any = MagicMock()
    axes.subplots.return_value.plot.side_effect = lambda places, *_, **style: drawn.append(places[-1])
    monkeypatch.setattr(figures, "draw", lambda paint, **_: paint(axes))
    monkeypatch.setattr(figures, "inline", lambda *_: "")
    space = {"optim.lr": LogUniform(low=1e-9, high=1e-1)}
    rows = [finished(0, 0.2), finished(1, 0.4), {**finished(2, 0.0), "state": "pruned", "evaluations": [None]}]
    for maximize, worst in ((True, 0.0), (False, 1.0)):
        drawn.clear()
        figures.coordinates(SimpleNamespace(space=space, spec=Metric("loss", "min"), maximize=maximize), rows)  # type: ignore[arg-type]
        assert drawn[:3] == [worst, 1.0, 0.0]

"""The campaign of random faults (benchmarks/faults): twelve rounds hold, and its checks find a run that does not."""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import pytest
from processes import status, train

from benchmarks.faults import ROOT, kinds, rounds, starts
from benchmarks.faults.campaign import numbers_of, report, summary
from trainer import lock_file

SEED = 20261130


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_twelve_rounds(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:  # sockets: a short name
        words = ["--runs", "12", "--seed", SEED, "--folder", folder, "--json", tmp_path / "faults.json"]
        command = [sys.executable, "-m", "benchmarks.faults", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
    result = json.loads((tmp_path / "faults.json").read_text())
    assert (result["held"], result["rounds"]) == (12, 12)
    assert sum(all_ for row in result["table"].values() for _, all_ in row.values()) >= 10
    assert re.match(r"12 of 12 rounds held", ended.stdout.splitlines()[-1])


# -- failures that the campaign has found ------------------------------------------------------------------------------


@pytest.mark.ranks
def test_a_killed_loader_process_is_named(recipe: Path, tmp_path: Path) -> None:
    ended = train(recipe, tmp_path / "run", "data.workers=1", hook=partial(hooks.kill_loader, 2)).check(1)
    assert "rankzero: a loader process died" in ended.text
    assert "Traceback" not in ended.text
    assert "data.workers" in status(tmp_path / "run")["error"]


@pytest.mark.ranks
def test_an_error_is_not_replaced_by_that_of_removing_a_file(recipe: Path, tmp_path: Path) -> None:
    """On a disk that is read-only the watchdog cannot remove its own file either."""
    ended = train(recipe, tmp_path / "run", world=2, hook=hooks.read_only_from_first_save).check(4)
    assert "checkpoint of step 3 cannot be written" in ended.text
    assert "Traceback" not in ended.text


@pytest.mark.ranks
def test_the_lines_of_a_checkpoint_are_on_disk_before_it(recipe: Path, tmp_path: Path) -> None:
    """After a crash of the machine the ledger would otherwise end before the step from which the run resumes."""
    train(recipe, tmp_path / "run", "loop.max_steps=3", hook=partial(hooks.log_commits, tmp_path / "log")).check()
    lines = (tmp_path / "log").read_text().splitlines()
    before = lines[: lines.index("rename step-00000003")]
    assert {"flush ledger.jsonl", "flush metrics.jsonl"} <= set(before)


def test_a_lock_is_complete_where_a_write_takes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:7])

    monkeypatch.setattr(Path, "open", lambda self, mode, buffering: Slow(self, mode))
    lock_file.write_new(tmp_path / "lock", {"token": "a" * 32, "pid": 1}).close()
    monkeypatch.undo()
    assert json.loads((tmp_path / "lock").read_text()) == {"token": "a" * 32, "pid": 1}


# -- the campaign itself -----------------------------------------------------------------------------------------------


def test_plans_follow_from_seed_and_number() -> None:
    plans = [kinds.draw(number, 1, ()) for number in range(600)]
    assert plans == [kinds.draw(number, 1, ()) for number in range(600)]
    assert plans != [kinds.draw(number, 2, ()) for number in range(600)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(kinds.KINDS)
    assert {len(plan.faults) for plan in plans} == {1, 2, 3}
    assert all(plan.workers for plan in plans for fault in plan.faults if "loader" in fault.kind)
    few = [kinds.draw(number, 1, kinds.DISK) for number in range(600)]
    assert not {fault.kind for plan in few for fault in plan.faults} & set(kinds.DISK)


@pytest.mark.parametrize("seed", range(9))
def test_damage_is_found_by_the_checks_of_a_start(tmp_path: Path, seed: int) -> None:
    import torch

    from trainer.engine import checkpoint, saving

    content = {"model.safetensors": {"w": torch.ones(8)}}
    saving.save(tmp_path, 1, content, {})
    assert not kinds.damage_newest(tmp_path, random.Random(seed)), "the only one is not damaged"
    saving.save(tmp_path, 2, content, {})
    assert kinds.damage_newest(tmp_path, random.Random(seed))
    assert checkpoint.newest(tmp_path) == 1


def test_a_rank_may_abort_by_itself_after_a_fault_but_not_wait_for_ever(tmp_path: Path) -> None:
    def problems(late: bool, faults: bool) -> list[str]:
        return rounds.problems_of_start(starts.Ended([-6, 1], None, "", [], late), tmp_path, faults=faults)

    assert problems(late=False, faults=True) == []
    assert problems(late=True, faults=True) == ["a process did not end without help: "]
    assert problems(late=False, faults=False) == ["a start without faults ended with [-6, 1]: "]


def test_an_artifact_without_a_passed_gate_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "export/onnx").mkdir(parents=True)
    assert rounds.ungated(tmp_path, finished=False) == ["onnx has no passed gate"]
    (tmp_path / "export/onnx/gate.json").write_text('{"passed": false}')
    assert rounds.ungated(tmp_path, finished=False) == ["onnx has no passed gate"]
    (tmp_path / "export/onnx/gate.json").write_text('{"passed": true}')
    assert not rounds.ungated(tmp_path, finished=False)


def test_rounds_of_two_machines_are_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def record(number: int, *faults: tuple[str, bool], problems: Sequence[str] = ()) -> dict[str, Any]:
        engine = kinds.ENGINES[number % 3]
        return {"round": number, "engine": engine, "faults": faults, "starts": [0, 0], "problems": problems}

    first = [record(0, ("disk full", True)), record(1, ("disk full", False))]
    second = [record(2, ("clock step", True), ("disk full", True), problems=["left"]), record(3, ("disk full", True))]
    options = argparse.Namespace(seed=1, runs=4, only=None, json=tmp_path / "both.json", earlier=None)
    assert report(options, [*first, *second], {}) == 1
    at_once = options.json.read_text()
    options.earlier = summary(1, first, {})
    assert report(options, second, {}) == 1
    assert options.json.read_text() == at_once
    assert json.loads(at_once)["table"] == {
        "disk full": {"ddp": [2, 2], "zero2": [0, 0], "fsdp2": [0, 1]},
        "clock step": {"ddp": [0, 0], "zero2": [0, 0], "fsdp2": [0, 1]},
    }
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "3 of 4 rounds held (seed 1, 8 starts, 4 faults, 1 rounds whose faults came too late)"
    options.earlier["rounds"] = 3
    assert list(numbers_of(options)) == [3]


def test_temporary_files_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/.saving-00000003-ab").mkdir(parents=True)
    (tmp_path / "lock").write_text("{}")
    assert len(rounds.leftovers(tmp_path)) == 2

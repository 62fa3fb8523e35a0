"""A rank that hangs ends the run within its time limit, and is named with its stack and last step."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hooks
import psutil
import pytest
from processes import Ranks, engine_environment, next_logs, read_lines, status, wait_until
from slow import slow_except

pytestmark = pytest.mark.ranks

LIMIT = 4


def start(recipe: Path, run: Path, hook: functools.partial[None], engine: str = "ddp") -> Ranks:
    quiet = ("loop.save_every=2", "loop.eval_every=100")
    words = ("train", recipe, f"launch.hang_seconds={LIMIT}", *quiet, "--run", run)
    return Ranks(words, next_logs(run), 2, hook=hook, env=engine_environment(engine))


@pytest.mark.parametrize(
    ("where", "phase"),
    slow_except([("loss", "a forward"), ("collate", "the loading of rows")], ("loss", "a forward")),
)
@pytest.mark.parametrize("guilty", slow_except([0, 1], 1))
def test_a_rank_that_sleeps_for_ever_is_named(
    recipe: Path, tmp_path: Path, where: str, phase: str, guilty: int
) -> None:
    run = tmp_path / "run"
    ended = start(recipe, run, functools.partial(hooks.hang, where, guilty, step=5)).wait(120)
    assert ended.codes == [1, 1], ended.text
    told = status(run)
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert f"rank {guilty} (process" in told["error"], told
    assert f"rank {1 - guilty} (process" not in told["error"], told
    assert f"made no progress for {LIMIT} s (last seen in {phase}, " in told["error"]
    assert "after step 4" in told["error"]
    assert "in sleeping" in told["error"], "the stack shows the function in which it hangs"
    assert told["error"].splitlines()[0] in ended.err[0]
    assert "in sleeping" in (run / f"hang-rank-{guilty}.txt").read_text()
    assert f"the last collective of rank 0 is number {_last(run, 0)['collective_seq_id']}, gloo:" in told["error"]
    waits = _last(run, 1 - guilty)
    behind = _last(run, guilty, waits["pg_id"])
    assert waits["collective_seq_id"] > behind["collective_seq_id"], "it waits where the other has not come"
    again = Ranks(("train", recipe, "loop.save_every=2", "loop.eval_every=100", "--run", run), next_logs(run), 2).wait()
    again.check()
    assert "resumed from step 4" in again.err[0]
    assert not list(run.glob("hang-rank-*"))


def _last(run: Path, rank: int, group: int | None = None) -> dict[str, Any]:
    """The last collective of a rank, or of a rank in a process group."""
    entries: list[dict[str, Any]] = json.loads((run / f"hang-rank-{rank}.json").read_text())
    return [entry for entry in entries if group in (None, entry["pg_id"])][-1]


@pytest.mark.parametrize("guilty", slow_except([0, 1], 1))
def test_a_stopped_process_is_named_and_killed(recipe: Path, tmp_path: Path, guilty: int) -> None:
    run = tmp_path / "run"
    ranks = start(recipe, run, functools.partial(hooks.slow_step, 0.2))
    wait_until(lambda: read_lines(run / "metrics.jsonl")[-1]["step"] >= 3)
    ranks.signal(signal.SIGSTOP, guilty)
    if guilty == 0:  # nobody can kill it for rank 1, which ends alone
        ranks.processes[1].join(120)
        ranks.signal(signal.SIGKILL, 0)
    ended = ranks.wait(120)
    assert (ended.codes[guilty], ended.codes[1 - guilty]) == (-9, 1), ended.text
    if guilty == 0:  # here it keeps the store; under a launcher, which keeps it otherwise, the next test looks
        assert "rank 0, which keeps the ranks' common store, does not answer" in ended.err[1]
    else:
        assert "rank 1 (process" in status(run)["error"]
        assert "it gives no stack" in status(run)["error"]


@pytest.mark.slow
def test_long_work_of_rank_zero_is_not_a_hang(recipe: Path, tmp_path: Path) -> None:
    hook = functools.partial(hooks.long_tokenizer_training, 2.5 * LIMIT)
    began = time.monotonic()
    start(recipe, tmp_path / "run", hook).wait().check()
    assert time.monotonic() - began > 2 * LIMIT


def test_ranks_that_all_wait_before_the_first_step_end_early(recipe: Path, tmp_path: Path) -> None:
    """As after a lost connection. It took the ten minutes that loading may take."""
    run = tmp_path / "run"
    ended = start(recipe, run, functools.partial(hooks.wait_apart, LIMIT + 1)).wait(90)
    assert ended.codes == [1, 1], ended.text
    told = status(run)["error"]
    assert f"made no progress for {LIMIT + 1} s (last seen in a " in told
    assert ", after step 0)" in told
    assert "distributed_c10d.py" in told


def test_work_of_a_rank_before_the_first_step_is_not_a_hang(recipe: Path, tmp_path: Path) -> None:
    hook = functools.partial(hooks.work_before_the_first_step, 3.0 * LIMIT, LIMIT)
    began = time.monotonic()
    start(recipe, tmp_path / "run", hook).wait().check()
    assert time.monotonic() - began > 3 * LIMIT


@pytest.mark.slow
def test_a_hanging_rank_of_an_engine_whose_forward_waits_for_all(recipe: Path, tmp_path: Path) -> None:
    """The ranks under FSDP2 stand in the same forward: the stack tells who waits."""
    run = tmp_path / "run"
    start(recipe, run, functools.partial(hooks.hang, "loss", 1, step=3), engine="fsdp2").wait(120)
    assert "rank 1 (process" in status(run)["error"]
    assert "rank 0 (process" not in status(run)["error"]


def rank_of(process: psutil.Process) -> str | None:
    """From its environment; of a short-lived helper that has ended meanwhile: none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.environ().get("RANK")
    return None


@pytest.mark.slow
def test_under_the_launcher_too_and_no_process_is_left(recipe: Path, tmp_path: Path) -> None:
    """There the launcher keeps the store, so that a stopped rank zero is named as any other."""
    run = tmp_path / "run"
    words = ["train", recipe, "--config", "cpu", f"launch.hang_seconds={LIMIT}", "loop.max_steps=100000"]
    command = [sys.executable, "-c", "from launch.cli import main; main()", *map(str, words), "--run", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: process.poll() is not None or read_lines(run / "metrics.jsonl")[-1]["step"] >= 3)
        family = psutil.Process(process.pid).children(recursive=True)
        stopped = [p for p in family if rank_of(p) == "0"]
        stopped[0].suspend()
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert f"rank 0 (process {stopped[0].pid} on" in said
    assert "it gives no stack" in said
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 20)

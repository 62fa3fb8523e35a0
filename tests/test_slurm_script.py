"""What a job script does when its ranks end, and when signals come; without a cluster (see batch_world)."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_world import World, script

from launch.slurm import arrays, render, settle
from launch.slurm.job import Job
from launch.slurm.submit import render_all


@pytest.fixture
def go(tiny_job: Callable[..., Job], tmp_path: Path) -> Callable[..., Any]:
    job = tiny_job("launch.requeue_limit=4", config="cpu_multinode", nodes=2)
    world = World(tmp_path / "world", job.run)

    def run(*starts: tuple[Any, ...], **more: Any) -> Any:
        return world.go(script(job), *starts, **more)

    return run


def test_a_finished_run_ends_the_job(go: Callable[..., Any]) -> None:
    went = go((0, "finished", 9, 0))
    assert (went.code, went.requeued, len(went.words)) == (0, False, 1)
    assert went.environment["MASTER_ADDR"] == "10.1.2.3"  # the node is not in the DNS: its NodeAddr
    assert went.environment["MASTER_PORT"] == "10007"
    assert went.environment["RANKZERO_RANKS"] == "1"
    assert went.environment["SRUN_CPUS_PER_TASK"] == "6"
    assert went.environment["OMP_NUM_THREADS"] == "6"


def test_a_run_that_leaves_its_last_stages_to_another_job_ends_the_job(go: Callable[..., Any]) -> None:
    went = go((0, "running", 9, 0))
    assert (went.code, went.requeued, len(went.words)) == (0, False, 1)


def test_the_last_stages_are_left_to_the_dependent_job(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job("seed=9")
    world = World(tmp_path / "world", job.run)
    words = [world.go(rendered.text, (0,)).words[0] for rendered in render_all(job, None, True, None)]
    shared = [job.words[0], "seed=9"]
    assert words[0][-6:] == ["train", *shared, "--defer", "--run", str(job.run)]
    assert words[1][-5:] == ["train", *shared, "--run", str(job.run)]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_a_mistake_is_not_tried_again(go: Callable[..., Any], code: int) -> None:
    assert (go((143, "failed", 3, code)).code, go((code,)).code) == (code, code)


def test_the_marker_requeues(go: Callable[..., Any]) -> None:
    """Sites that send only TERM, and only to the ranks."""
    went = go((143, "preempted", 3, 75))
    assert (went.code, went.requeued, len(went.words)) == (0, True, 1)


def test_usr1_is_passed_on_and_requeues(go: Callable[..., Any]) -> None:
    went = go((75, "preempted", 3, 75, 10), send=signal.SIGUSR1)
    assert (went.code, went.requeued, went.signals) == (0, True, 1), went.log


def test_usr1_requeues_even_if_the_ranks_had_no_time_to_say_anything(go: Callable[..., Any]) -> None:
    assert go((138, None, None, None, 10), send=signal.SIGUSR1).requeued


def test_term_never_requeues(go: Callable[..., Any]) -> None:
    went = go((75, "preempted", 3, 75, 10), send=signal.SIGTERM)
    assert (went.code, went.requeued, went.signals, len(went.words)) == (75, False, 1, 1), went.log


def test_a_finished_run_is_not_requeued_by_a_late_signal(go: Callable[..., Any]) -> None:
    went = go((0, "finished", 9, 0, 10), send=signal.SIGUSR1)
    assert (went.code, went.requeued) == (0, False)


def test_requeues_have_a_limit(go: Callable[..., Any]) -> None:
    assert go((75, "preempted", 3, 75), restarts=3).requeued
    (went,) = [go((75, "preempted", 3, 75), (75, "preempted", 3, 75), restarts=4, job=8)]
    assert went.code == 75
    assert "launch.requeue_limit=4" in went.log


def test_a_dead_rank_is_restarted_in_place(go: Callable[..., Any]) -> None:
    went = go((137, "running", 3), (1, "failed", 5, 1), (0, "finished", 9, 0))
    assert (went.code, went.requeued, len(went.words)) == (0, False, 3)
    ports = [words[words.index("--main_process_port") + 1] for words in went.words]
    assert ports == ["10007", "11004", "12001"]  # the old one may linger


def test_three_failures_at_one_step_end_the_run_with_the_reason(go: Callable[..., Any], tiny_job: Any) -> None:
    went = go(*[(1, "failed", 5, 1)] * 5)
    assert (went.code, went.requeued, len(went.words)) == (1, False, 3)
    status = json.loads((tiny_job().run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["error"].startswith("failed three times at step 5")
    assert 'why, "so"' in status["error"]


def test_failures_elsewhere_end_at_the_limit(go: Callable[..., Any]) -> None:
    went = go(*[(137, "running", step) for step in range(9)])
    assert (went.code, len(went.words)) == (1, 5)
    assert "launch.requeue_limit=4" in went.log


def test_memory_is_tried_again_and_not_taken_for_a_signal(go: Callable[..., Any], tiny_job: Any) -> None:
    (tiny_job().run / "failed-rank.json").write_text('{"splits": 2}')
    went = go(*[(1, "preempted", 5, 75)] * 3, (0, "finished", 9, 0))
    assert (went.code, went.requeued, len(went.words)) == (0, False, 4)


def test_an_array_task_has_its_own_seed_and_directory(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job("seed=9")
    text = render.render("array.sbatch", arrays.training(job, "4-5"))
    assert "#SBATCH --array=4-5\n" in text
    assert f'--output="{job.run}-seed-%a/slurm/train-%A_%a.out"' in text
    went = World(tmp_path / "world", job.run).go(text, (0,))
    assert went.words[0][-3:] == ["seed=4", "--run", f"{job.run}-seed-4"]
    assert (tmp_path / "run-seed-4" / "slurm" / "jobs").read_text() == "6_4 array\n"


def test_a_task_of_an_array_is_requeued_by_its_own_number(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    """One of the tasks has the number of the whole array, which `scontrol requeue` would take for all of them."""
    job = tiny_job()
    World(tmp_path / "world", job.run).go(render.render("array.sbatch", arrays.training(job, "4")), (75,), job=6)
    assert (tmp_path / "world" / "requeued").read_text() == "6_4\n"


def test_settle_leaves_a_run_without_status_alone(tmp_path: Path) -> None:
    settle.settle(tmp_path, 1, "why")
    assert list(tmp_path.iterdir()) == []

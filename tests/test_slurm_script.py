"""Run job scripts without a cluster: after each way the ranks end, and after signals (see batch_helpers)."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import Sandbox, script

from launch.slurm import arrays, render
from launch.slurm.job import Job
from launch.slurm.submission import render_all
from launch.supervise.final_status import write_final_status
from trainer.rundir import RunDir


@pytest.fixture
def go(tiny_job: Callable[..., Job], tmp_path: Path) -> Callable[..., Any]:
    job = tiny_job("launch.requeue_limit=4", config="cpu_multinode", nodes=2)
    world = Sandbox(tmp_path / "world", job.run)

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
    world = Sandbox(tmp_path / "world", job.run)
    words = [world.go(rendered.text, (0,)).words[0] for rendered in render_all(job, None, True, None)]
    assert words[0][-5:] == ["train", *job.words, "--defer", "--run", str(job.run)]
    assert words[1][-4:] == ["train", *job.words, "--run", str(job.run)]


@pytest.mark.parametrize("array", [None, "1-2"])
def test_credentials_of_the_command_are_not_in_the_comment_of_a_script(
    tiny_job: Callable[..., Job], array: str | None
) -> None:
    secrets = (
        "data.root=https://ci:TOPSECRET@files.example.org/d?sig=SASTOKEN",
        'launch.setup=["export WANDB_API_KEY=KEYVALUE", "export SITE_TOKEN=TOKENVALUE"]',
    )
    job = tiny_job(*secrets)
    for rendered in render_all(job, array, True, None):
        comments = "\n".join(line for line in rendered.text.splitlines() if line.startswith("# "))
        assert "https://files.example.org/d" in comments and "WANDB_API_KEY=***" in comments
        for secret in ("TOPSECRET", "SASTOKEN", "KEYVALUE", "TOKENVALUE"):
            assert secret not in comments
        assert "export WANDB_API_KEY=KEYVALUE\n" in rendered.text  # the shell needs it


def test_the_training_begins_with_a_mirror(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    url = "s3://bucket/it's $(touch hacked) `id`/run"
    job = replace(tiny_job("seed=9"), resume_from=url)
    world = Sandbox(tmp_path / "world", job.run)
    words = [world.go(rendered.text, (0,)).words[0] for rendered in render_all(job, None, True, None)]
    assert words[0][-7:] == ["train", *job.words, "--resume-from", url, "--defer", "--run", str(job.run)]
    assert words[1][-4:] == ["train", *job.words, "--run", str(job.run)]
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_a_usage_error_is_not_repeated(go: Callable[..., Any], code: int) -> None:
    assert (go((143, "failed", 3, code)).code, go((code,)).code) == (code, code)


def test_the_marker_requeues(go: Callable[..., Any]) -> None:
    """Some sites send only TERM, and only to the ranks."""
    went = go((143, "preempted", 3, 75))
    assert (went.code, went.requeued, len(went.words)) == (0, True, 1)


def test_usr1_is_forwarded_and_requeues(go: Callable[..., Any]) -> None:
    went = go((75, "preempted", 3, 75, 10), send=signal.SIGUSR1)
    assert (went.code, went.requeued, went.signals) == (0, True, 1), went.log


def test_usr1_requeues_even_without_a_status_of_the_ranks(go: Callable[..., Any]) -> None:
    assert go((138, None, None, None, 10), send=signal.SIGUSR1).requeued


def test_term_never_requeues(go: Callable[..., Any]) -> None:
    went = go((75, "preempted", 3, 75, 10), send=signal.SIGTERM)
    assert (went.code, went.requeued, went.signals, len(went.words)) == (75, False, 1, 1), went.log


def test_a_finished_run_is_not_requeued_by_a_late_signal(go: Callable[..., Any]) -> None:
    went = go((0, "finished", 9, 0, 10), send=signal.SIGUSR1)
    assert (went.code, went.requeued) == (0, False)


def test_requeues_have_a_limit(go: Callable[..., Any]) -> None:
    """Only starts without a new step count, including those killed before they wrote status.json."""
    for start in range(5):
        assert go((75, "preempted", 3, 75), restarts=start).requeued, start
    went = go((75, "preempted", 3, 75), restarts=5)
    assert (went.code, went.requeued) == (75, False)
    assert "launch.requeue_limit=4" in went.log


def test_starts_with_progress_have_no_limit(go: Callable[..., Any]) -> None:
    for start in range(9):
        assert go((75, "preempted", 3 + start, 75), restarts=start).requeued, start


def test_a_dead_rank_is_restarted_in_place(go: Callable[..., Any], tiny_job: Callable[..., Job]) -> None:
    for step in ("00000004", "00000012", "100000008"):
        (tiny_job().run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (tiny_job().run / "checkpoints" / f"step-{step}" / "manifest.json").touch()
    went = go((137, "running", 3), (1, "failed", 5, 1), (0, "finished", 9, 0))
    events = RunDir(tiny_job().run).read_restarts()
    recorded = [(event["by"], event["step"], event["ranks"], event["exit_code"]) for event in events]
    assert recorded == [("job 7", 100000008, 1, 1)] * 2
    assert [event["reason"] for event in events] == [
        "the ranks ended with 1 at step 3",
        "the ranks ended with 1 at step 5",
    ]
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
    went = go(*[(137, "running", step) for step in (3, 2, 1, 2, 1, 2, 1, 2, 1)])
    assert (went.code, len(went.words)) == (1, 6)  # the first one made progress
    assert "launch.requeue_limit=4" in went.log


def test_out_of_memory_restarts_and_is_not_a_preemption(go: Callable[..., Any], tiny_job: Any) -> None:
    (tiny_job().run / "failed-rank.json").write_text('{"splits": 2}')
    went = go(*[(1, "preempted", 5, 75)] * 3, (0, "finished", 9, 0))
    assert (went.code, went.requeued, len(went.words)) == (0, False, 4)
    [event, *_] = RunDir(tiny_job().run).read_restarts()
    assert (event["reason"], event["step"], event["exit_code"]) == ("a rank ran out of memory", None, 75)


def test_an_array_task_has_its_own_seed_and_directory(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job("seed=9")
    text = render.render("array.sbatch", arrays.array_values(job, "4-5"))
    assert "#SBATCH --array=4-5\n" in text
    assert f'--output="{job.run}-seed-%a/slurm/train-%A_%a.out"' in text
    went = Sandbox(tmp_path / "world", job.run).go(text, (0,), array=True)
    assert went.words[0][-3:] == ["seed=4", "--run", f"{job.run}-seed-4"]
    assert (tmp_path / "run-seed-4" / "slurm" / "jobs").read_text() == "6_4 array\n"


def test_a_task_of_an_array_is_requeued_by_its_own_number(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    """One of the tasks has the number of the array, by which `scontrol requeue` would requeue all tasks."""
    job = tiny_job()
    Sandbox(tmp_path / "world", job.run).go(
        render.render("array.sbatch", arrays.array_values(job, "4")), (75,), job=6, array=True
    )
    assert (tmp_path / "world" / "requeued").read_text() == "6_4\n"


def test_settle_ignores_a_run_without_status(tmp_path: Path) -> None:
    write_final_status(tmp_path, 1, "why")
    assert list(tmp_path.iterdir()) == []


# -- which words count -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_the_code_of_the_ranks_goes_before_status_json(go: Callable[..., Any], code: int) -> None:
    """Also if status.json still has the state `running`."""
    went = go((code, "running", 3, None))
    assert (went.code, went.requeued, len(went.words)) == (code, False, 1)


@pytest.mark.parametrize(("state", "told"), [("preempted", 75), ("finished", 0), ("running", None), ("failed", 3)])
def test_the_status_of_another_job_is_ignored(
    go: Callable[..., Any], tiny_job: Any, state: str, told: int | None
) -> None:
    """Another job updates status.json. The ranks of this job were killed before they wrote it."""
    went = go((137, {"launch": "99.0.0", "state": state}, 3, told), *[(137,)] * 4)
    assert (went.code, went.requeued, len(went.words)) == (1, False, 3), went.log
    assert "before its first step" in went.log


def test_the_status_of_an_earlier_start_is_ignored(go: Callable[..., Any]) -> None:
    went = go((137, {"launch": "7.0.0", "state": "preempted"}, 3, 75), (0,), restarts=1)
    assert (went.code, went.requeued, len(went.words)) == (0, False, 2)


@pytest.mark.parametrize("job", ["JobState=RUNNING Restarts=1", "JobState=PENDING Restarts=0",
                                 "JobState=CANCELLED Restarts=0"])  # fmt: skip
def test_an_orphaned_script_counts_no_failures(go: Callable[..., Any], tiny_job: Any, job: str) -> None:
    """SLURM has lost the node and runs the job elsewhere. These failures are not of that start."""
    (tiny_job().run.parent / "world" / "job").write_text(f"JobId=7 {job} Requeue=1\n")
    went = go((1, "failed", 5, 1))
    assert (went.code, len(went.words)) == (75, 1), went.log
    assert not (tiny_job().run / "slurm" / "failed-7").exists()


def test_an_orphaned_script_does_not_requeue_the_job_that_runs_elsewhere(go: Callable[..., Any], tiny_job: Any) -> None:
    (tiny_job().run.parent / "world" / "job").write_text("JobId=7 JobState=RUNNING Requeue=1 Restarts=1 BatchFlag=1\n")
    went = go((75, "preempted", 5, 75))
    assert (went.code, went.requeued, len(went.words)) == (75, False, 1), went.log


def test_a_script_whose_job_slurm_runs_is_no_orphan(go: Callable[..., Any], tiny_job: Any) -> None:
    world = tiny_job().run.parent / "world"
    (world / "job").write_text("JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=2 BatchFlag=1\n")
    assert go((1, "failed", 5, 1), (0, "finished", 9, 0), restarts=2).code == 0
    assert (tiny_job().run / "slurm" / "failed-7").read_text() == "5\n"


# -- requeue and back-off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["slurm_requeue error: Unable to contact slurm controller (connect failure)",
                                   "Socket timed out on send/recv operation"])  # fmt: skip
def test_requeue_is_tried_until_the_controller_answers(go: Callable[..., Any], tiny_job: Any, reply: str) -> None:
    (tiny_job().run.parent / "world" / "refusals").write_text(f"{reply}\n" * 3)
    went = go((75, "preempted", 3, 75))
    assert (went.code, went.requeued, went.log.count("requeue failed")) == (0, True, 3), went.log
    assert not (tiny_job().run / "slurm" / "ended").exists()  # the job has not ended


@pytest.mark.parametrize("reply", ["Requested operation is presently disabled", "Access/permission denied",
                                   "Invalid job id specified"])  # fmt: skip
def test_a_refused_requeue_ends_at_once(go: Callable[..., Any], tiny_job: Any, reply: str) -> None:
    (tiny_job().run.parent / "world" / "refusals").write_text(f"{reply}\n" * 3)
    went = go((75, "preempted", 3, 75))
    assert (went.code, went.requeued) == (75, False)
    assert f"could not be requeued: {reply}" in went.log
    assert (tiny_job().run / "slurm" / "ended").read_text() == "7 75\n"


def test_requeue_ends_with_the_grace_period(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job("launch.signal_lead=1")
    world = Sandbox(tmp_path / "world", job.run)
    (world.folder / "refusals").write_text("Unable to contact slurm controller\n" * 9999)
    assert world.go(script(job), (75, "preempted", 3, 75)).code == 75


def test_two_fast_failures_on_a_node_move_the_job(go: Callable[..., Any], tiny_job: Any) -> None:
    world = tiny_job().run.parent / "world"
    (world / "job").write_text("JobState=RUNNING Restarts=0 ReqNodeList=(null) ExcNodeList=(null) X=1\n")
    went = go((1,), (1,), (1,))
    assert (went.code, went.requeued, len(went.words)) == (0, True, 2), went.log
    assert (world / "updated").read_text() == "update JobId=7 ExcNodeList=node1.invalid\n"


def test_a_job_that_must_run_on_its_node_stays(go: Callable[..., Any], tiny_job: Any) -> None:
    world = tiny_job().run.parent / "world"
    (world / "job").write_text("JobState=RUNNING Restarts=0 ReqNodeList=node1 ExcNodeList=(null) X=1\n")
    assert (go((1,), (1,), (1,)).code, (world / "updated").exists()) == (1, False)


# -- launch.setup ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [("cd /nonexistent/folder", 1), ("no_such_module_command load cuda", 127), ("false", 1), ("bash -c 'exit 7'", 7),
     ("source /nonexistent/activate", 1)],
)  # fmt: skip
def test_a_failing_setup_line_ends_the_job_with_2(
    tiny_job: Callable[..., Job], tmp_path: Path, line: str, code: int
) -> None:
    job = tiny_job(setup=["export A=1", line])
    went = Sandbox(tmp_path / "world", job.run).go(script(job), (0,))
    assert (went.code, went.words) == (2, [])
    assert f"launch.setup failed with {code}: {line}" in went.log


def test_setup_lines_may_test(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "activate").write_text("false\nexport FROM_FILE=1\n")  # a file of the site's may have failing commands
    lines = ["[ 1 = 2 ] || export A=1", "[ 1 = 2 ] && export B=1", "if false; then", "  export C=1", "fi",
             f"source {tmp_path}/activate"]  # fmt: skip
    job = tiny_job(setup=lines)
    went = Sandbox(tmp_path / "world", job.run).go(script(job), (0,))
    assert (went.code, went.environment["FROM_FILE"]) == (0, "1"), went.log


@pytest.mark.parametrize(("job", "alive", "requeued"), [("7", True, True), ("7", False, False), ("8", True, False)])
def test_an_earlier_start_that_still_writes_is_waited_for(
    go: Callable[..., Any], tiny_job: Callable[..., Job], job: str, alive: bool, requeued: bool
) -> None:
    """SLURM has requeued the job on another node. Ranks on the lost node still run, so the new ones end with 2."""
    status = tiny_job().run / "status.json"
    ended = threading.Event()

    def write_status() -> None:
        said = {"state": "running", "launch": f"{job}.0.0", "updated": time.time() if alive else 1.0}
        temporary = status.with_name("status.tmp")
        temporary.write_text(json.dumps(said, indent=2))
        temporary.replace(status)

    def keep_writing_status() -> None:
        while not ended.wait(0.05):
            write_status()

    write_status()
    heart = threading.Thread(target=keep_writing_status)
    heart.start()
    try:
        went = go((2,), restarts=1)
    finally:
        ended.set()
        heart.join()
    assert (went.code, went.requeued) == ((0, True) if requeued else (2, False)), went.log

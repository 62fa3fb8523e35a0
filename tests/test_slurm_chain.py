"""Chains of jobs without a cluster: what is submitted, and what the script of each job decides."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import Sandbox
from test_slurm_status import shown, slurm  # noqa: F401 - a fixture

from launch.slurm import checks, queue
from launch.slurm.follow import chain_of, record_job, recorded_jobs
from launch.slurm.job import Job
from launch.slurm.submission import render_all, submit_scripts, with_chain
from trainer.errors import UsageError

CONFIG = "JobRequeue              = {}\nKillWait = 30 sec\nPreemptMode             = {}\n"


class Chain:
    """Runs the script of one job of the chain 7, 8, 9."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = replace(job, chain=2)
        self.world = Sandbox(folder / "world", job.run)
        [self.script] = render_all(self.job, None, False, None)
        (job.run / "slurm").mkdir()
        (job.run / "slurm" / "chain").write_text("7\n8\n9\n")

    def go(self, *starts: tuple[Any, ...], **more: Any) -> Any:
        return self.world.go(self.script.text, *starts, **more)

    def state(self, state: str, code: int | None, job: int = 7) -> None:
        said = {"state": state, "step": 3, "exit_code": code, "error": "why", "launch": f"{job}.0.0"}
        (self.job.run / "status.json").write_text(json.dumps(said, indent=2))

    @property
    def cancelled(self) -> str:
        path = self.world.folder / "cancelled"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def chain(tiny_job: Callable[..., Job], tmp_path: Path) -> Chain:
    return Chain(tiny_job(config="cpu_multinode"), tmp_path)


def test_a_stopped_job_leaves_the_run_to_the_next_one(chain: Chain) -> None:
    assert "#SBATCH --no-requeue" in chain.script.text
    assert "#SBATCH --requeue" not in chain.script.text
    went = chain.go((75, "preempted", 3, 75))
    assert (went.code, went.requeued, chain.cancelled) == (75, False, ""), went.log
    assert (chain.job.run / "slurm" / "ended").read_text() == "7 75\n"


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6])
def test_a_job_that_ends_the_run_cancels_those_after_it(chain: Chain, code: int) -> None:
    went = chain.go((code, "failed" if code else "finished", 9, code), job=8, previous=7)
    assert (went.code, went.requeued) == (code, False), went.log
    assert chain.cancelled == "--quiet --state=PENDING 9\n"


def test_three_failures_at_one_step_end_the_chain(chain: Chain) -> None:
    assert chain.go(*[(1, "failed", 5, 1)] * 3).code == 1
    assert chain.cancelled == "--quiet --state=PENDING 8 9\n"


def test_the_last_job_has_none_to_cancel(chain: Chain) -> None:
    assert "submit again" in chain.go((75, "preempted", 3, 75), job=9, previous=8).log
    assert chain.go((0, "finished", 9, 0), job=9, previous=8).code == 0
    assert chain.cancelled == ""


@pytest.mark.parametrize(
    ("state", "code", "ends"), [("finished", 0, 0), ("running", 0, 0), ("failed", 3, 3), ("failed", 6, 6)]
)
def test_a_follow_up_job_that_is_not_needed_ends_at_once(chain: Chain, state: str, code: int, ends: int) -> None:
    chain.state(state, code)
    went = chain.go((0,), job=8, previous=7)
    assert (went.code, went.words) == (ends, []), went.log
    assert chain.cancelled == "--quiet --state=PENDING 9\n"


@pytest.mark.parametrize(("state", "code"), [("preempted", 75), ("failed", 1), ("running", None)])
def test_a_follow_up_job_continues(chain: Chain, state: str, code: int | None) -> None:
    chain.state(state, code)
    went = chain.go((0, "finished", 9, 0), job=8, previous=7)
    assert (went.code, len(went.words)) == (0, 1), went.log
    assert recorded_jobs(chain.job.run) == {"8": "follow-up-train"}


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 3)])
def test_the_state_of_an_earlier_submission_does_not_count(chain: Chain, state: str, code: int) -> None:
    """The first job may have been lost before its ranks wrote status.json."""
    chain.state(state, code, job=3)
    assert len(chain.go((0, "finished", 9, 0), job=8, previous=7).words) == 1


def test_the_first_job_of_a_new_submission_starts_a_finished_run(chain: Chain) -> None:
    """It may train longer, with another recipe."""
    chain.state("finished", 0)
    assert len(chain.go((0, "finished", 9, 0)).words) == 1


def test_a_follow_up_of_a_cancelled_job_ends_at_once(chain: Chain) -> None:
    chain.state("preempted", 75)
    (chain.world.folder / "job").write_text("JobId=7 JobState=CANCELLED Restarts=0 X=1\n")
    went = chain.go((0,), job=8, previous=7)
    assert (went.code, went.words, chain.cancelled) == (75, [], "--quiet --state=PENDING 9\n"), went.log


@pytest.mark.parametrize(
    ("state", "cancelled"), [("PreemptTime=None", True), ("PreemptTime=2026-11-29T21:00:00", False)]
)
def test_scancel_ends_the_chain_and_a_pre_emption_does_not(chain: Chain, state: str, cancelled: bool) -> None:
    """SLURM sends TERM at both, and calls the job COMPLETING at both."""
    (chain.world.folder / "job").write_text(f"JobId=7 JobState=COMPLETING Restarts=0 {state} X=1\n")
    went = chain.go((75, "preempted", 3, 75, 10), send=signal.SIGTERM)
    assert (went.code, bool(chain.cancelled)) == (75, cancelled), went.log


def test_a_setup_line_that_fails_ends_the_chain(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    chain = Chain(tiny_job(setup=["false"]), tmp_path)
    assert (chain.go((0,)).code, chain.cancelled) == (2, "--quiet --state=PENDING 8 9\n")


def test_starts_without_progress_count_over_the_chain(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    chain = Chain(tiny_job("launch.requeue_limit=1", config="cpu_multinode"), tmp_path)
    assert "follow-up job continues" in chain.go((75, "preempted", 3, 75)).log
    assert "follow-up job continues" in chain.go((75, "preempted", 3, 75), job=8, previous=7).log
    went = chain.go((75, "preempted", 3, 75), job=9, previous=8)
    assert "requeue_limit=1 starts ended without progress" in went.log


# -- the submission ----------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_chain_depend_on_each_other(
    tiny_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, calls = iter(range(11, 20)), []

    def submit(script: Path, options: list[str], arguments: tuple[str, ...] = ()) -> int:
        calls.append((script.name, options[0] if options else "", *arguments))
        return next(numbers)

    monkeypatch.setattr(queue, "submit", submit)
    job = replace(tiny_job(config="cpu_multinode"), chain=2)
    submit_scripts(job, render_all(job, None, True, None), after=5)
    assert calls == [
        ("train.sbatch", "--dependency=afterok:5"),
        ("train.sbatch", "--dependency=afterok:5,afternotok:11", "11"),
        ("train.sbatch", "--dependency=afterok:5,afternotok:12", "12"),
        ("finalize.sbatch", "--dependency=afterok:11?afterok:12?afterok:13"),
    ]
    assert chain_of(job.run) == ["11", "12", "13"]
    assert recorded_jobs(job.run)["12"] == "follow-up-train"
    assert "follow-up: jobs 12, 13" in capsys.readouterr().out


def test_a_limit_of_the_site_shortens_the_chain(
    tiny_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = iter([11, 12])

    def submit(*words: Any) -> int:
        try:
            return next(numbers)
        except StopIteration:
            raise UsageError("sbatch refuses: QOSMaxSubmitJobPerUserLimit") from None

    monkeypatch.setattr(queue, "submit", submit)
    job = replace(tiny_job(), chain=4)
    submit_scripts(job, render_all(job, None, False, None), after=None)
    assert chain_of(job.run) == ["11", "12"]
    assert "1 of 4 follow-up jobs: sbatch refuses: QOSMax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("requeue", "mode", "partition", "asked", "expected"),
    [
        (1, "REQUEUE", "REQUEUE", "auto", 0),
        (0, "REQUEUE", "REQUEUE", "auto", 5),
        (1, "CANCEL", "CANCEL", "auto", 5),
        (1, "CANCEL", "REQUEUE", "auto", 0),  # the partition has its own mode
        (0, "CANCEL", "CANCEL", "0", 0),
        (1, "REQUEUE", "REQUEUE", "7", 7),
    ],
)
def test_a_chain_is_automatic_where_slurm_does_not_requeue(
    tiny_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    requeue: int,
    mode: str,
    partition: str,
    asked: str,
    expected: int,
) -> None:
    def call(words: list[str], **more: Any) -> Any:
        partitions = f"PartitionName=debug Default=YES MaxTime=UNLIMITED PreemptMode={partition}\n"
        config = CONFIG.format(requeue, mode)

        class Done:
            returncode, stdout = 0, config if words[-1] == "config" else partitions

        return Done

    monkeypatch.setattr(queue, "here", lambda: True)
    monkeypatch.setattr(queue, "call", call)
    job = with_chain(tiny_job(f"launch.chain={asked}"), None)
    assert job.chain == expected
    check = checks._chain(job)
    assert check.status == ("warning" if asked == "0" else "ok")
    assert (f"{expected} follow-up jobs" in check.found) == bool(expected)


def test_a_chain_of_an_array_is_refused(tiny_job: Callable[..., Job]) -> None:
    with pytest.raises(UsageError, match=r"--chain 3 with --array"):
        with_chain(tiny_job("launch.chain=3"), "1-3")
    assert with_chain(tiny_job(), "1-3").chain == 0


def test_status_shows_the_chain(slurm: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "runs" / "r"
    for number, kind in ((7, "train"), (8, "follow-up-train"), (9, "follow-up-train")):
        record_job(run, str(number), kind)
    (run / "slurm" / "chain").write_text("7\n8\n9\n")
    (run / "status.json").write_text(json.dumps({"state": "running", "step": 3, "attempt": 1}))
    (slurm / "squeue").write_text("".join(f"{job}|{state}|None|N/A|x\n" for job, state in
                                          ((7, "RUNNING"), (8, "PENDING"), (9, "PENDING"))))  # fmt: skip
    text = shown(run)
    assert "job 8 (follow-up-train): PENDING" in text
    assert "chain: 8, 9 continue in turn if the run does not end before" in text

"""Runs that start themselves again: which failures, how often, after which pauses, with how many ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from processes import status, train, wait_until
from safetensors.numpy import load_file

from launch import cli, configs, local
from launch.configs import choose
from launch.local import RestartOptions, restart_policy
from launch.slurm.follow import _restarts
from launch.supervise import processes, restarts
from launch.supervise.processes import Ended
from launch.supervise.restart_policy import Failures, Restart, RestartPolicy, smaller_numbers
from trainer.engine import resume_checks
from trainer.errors import RankzeroError, UsageError
from trainer.rundir import RunDir

WORDS = ("loop.max_steps=12", "loop.save_every=3", "loop.eval_every=12", "evaluation.splits=[]")


class Starts:
    """A launcher that follows a plan: for each start the step of a new checkpoint and the exit code."""

    def __init__(self, run: Path, *plan: tuple[int | None, int], stopped: bool = False) -> None:
        self.run, self.plan, self.stopped = run, list(plan), stopped
        self.argv: list[list[str]] = []
        self.ranks: list[int] = []
        self.pauses: list[float] = []
        self.note: dict[str, Any] | None = None
        self.launcher_codes: list[int] = []

    def __call__(self, argv: Sequence[str], ranks: int) -> Ended:
        self.argv.append([*argv])
        self.ranks.append(ranks)
        step, code = self.plan[len(self.argv) - 1]
        if step is not None:
            folder = self.run / "checkpoints" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
        state = {0: "finished", 75: "preempted"}.get(code, "failed")
        said = {"state": state, "exit_code": code, "error": f"start {len(self.argv)} failed\nits stack"}
        (self.run / "status.json").write_text(json.dumps(said))
        if self.note:
            (self.run / "failed-rank.json").write_text(json.dumps(self.note))
        return Ended(self.launcher_codes.pop(0) if self.launcher_codes else code, self.stopped)

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return False

    def go(self, limit: int = 0, ranks: int = 1, argv: Sequence[str] = ("train", "x"), **policy: Any) -> int:
        return restarts.run_with_restarts(
            self, argv, self.run, ranks, RestartPolicy(limit, pause_seconds=5, **policy), self.wait
        )


def events(run: Path) -> list[dict[str, Any]]:
    return RunDir(run).read_restarts()


def test_a_dead_rank_is_started_again_until_the_run_is_finished(tmp_path: Path) -> None:
    starts = Starts(tmp_path, (None, 1), (4, 1), (None, 0))
    assert starts.go(3) == 0
    assert [event["step"] for event in events(tmp_path)] == [None, 4]
    assert [event["reason"] for event in events(tmp_path)] == ["start 1 failed", "start 2 failed"]
    assert "restarts after failures: 2" in _restarts(events(tmp_path))[0]
    assert (
        "started again from step 4 with 1 ranks (by rankzero train) after: start 2 failed"
        in (_restarts(events(tmp_path))[0])
    )


def test_the_bound_and_the_pauses_count_failures_since_the_newest_checkpoint(tmp_path: Path) -> None:
    plan = [(None, 1), (None, 1), (3, 1), (None, 1), (6, 1), (None, 1), (None, 1), (None, 1)]
    starts = Starts(tmp_path, *plan)
    assert starts.go(3) == 1
    assert starts.pauses == [5, 10, 5, 10, 5, 10, 20]
    assert len(starts.argv) == 8
    assert events(tmp_path)[-1]["gave_up"] == "3 restarts without a newer checkpoint than that of step 6 (--restarts 3)"
    assert status(tmp_path)["error"].startswith("not started again after 3 restarts without a newer checkpoint")
    assert "not started again: 3 restarts" in _restarts(events(tmp_path))[0]


def test_the_pause_has_a_limit(tmp_path: Path) -> None:
    starts = Starts(tmp_path, *[(None, 1)] * 11)
    starts.go(10)
    assert starts.pauses[5:] == [160, 300, 300, 300, 300]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 75])
def test_other_codes_are_the_result(tmp_path: Path, code: int) -> None:
    starts = Starts(tmp_path, (None, code))
    assert starts.go(3) == code
    assert not events(tmp_path)


def test_a_killed_launcher_is_started_again_though_its_ranks_have_saved(tmp_path: Path) -> None:
    starts = Starts(tmp_path, (4, 75), (None, 0))
    starts.launcher_codes = [-9, 0]
    assert starts.go(1) == 0
    [event] = events(tmp_path)
    assert (event["step"], event["reason"], event["exit_code"]) == (4, restarts.KILLED, 1)


def test_a_failure_after_a_signal_is_the_result(tmp_path: Path) -> None:
    """Ctrl-C may break connections while the ranks stop."""
    assert Starts(tmp_path, (None, 1), stopped=True).go(3) == 1


def test_without_the_option_a_failure_is_the_result(tmp_path: Path) -> None:
    assert Starts(tmp_path, (None, 1)).go(0) == 1
    assert not events(tmp_path)


def test_a_stop_during_the_pause_ends_the_run_with_75(tmp_path: Path) -> None:
    starts = Starts(tmp_path, (None, 1))
    starts.wait = lambda seconds: True  # type: ignore[method-assign]
    assert starts.go(3) == 75
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("preempted", 75)


def test_a_pause_ends_with_a_signal() -> None:
    code = "from launch.supervise.processes import pause; print('go', flush=True); print(pause(60))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "go\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "True\n"


def test_out_of_memory_starts_again_without_the_option_but_not_for_ever(tmp_path: Path) -> None:
    """A start that dies before it reads the note would leave it as it is."""
    starts = Starts(tmp_path, (None, 75), (None, 1), (None, 1))
    starts.note = {"splits": 2}
    assert starts.go(0) == 1
    assert (len(starts.argv), starts.pauses, len(events(tmp_path))) == (2, [], 1)


def test_fresh_is_for_the_start_that_sets_the_earlier_run_aside(tmp_path: Path) -> None:
    starts = Starts(tmp_path, (None, 1), (None, 0))
    assert starts.go(1, argv=("train", "x", "--fresh")) == 0
    assert starts.argv == [["train", "x", "--fresh"], ["train", "x"]]
    (tmp_path / "status.json").write_text('{"state": "finished", "exit_code": 0}')
    seen: list[list[str]] = []

    def died_at_once(argv: Sequence[str], ranks: int) -> Ended:
        seen.append([*argv])
        return Ended(1)

    restarts.run_with_restarts(
        died_at_once, ["train", "--fresh"], tmp_path, 1, RestartPolicy(1), wait=lambda seconds: False
    )
    assert seen == [["train", "--fresh"]] * 2


# -- fewer ranks -------------------------------------------------------------------------------------------------------


def test_fewer_ranks_after_two_failures_without_a_newer_checkpoint(tmp_path: Path) -> None:
    starts = Starts(tmp_path, (None, 1), (None, 1), (3, 1), (None, 1), (None, 1), (None, 1))
    starts.go(3, ranks=4, smaller=[2, 1])
    assert starts.ranks == [4, 4, 2, 2, 1, 1]
    assert [event["ranks"] for event in events(tmp_path)] == [4, 2, 2, 1, 1, 1]


def test_a_lost_device_shrinks_the_run_at_once() -> None:
    left = iter([8, 3, 1])
    failures = Failures(RestartPolicy(9, smaller=[4, 2], devices=lambda: next(left)), None, 8)
    assert failures.next(None) == Restart(1, 5.0, 8)
    assert failures.next(2) == Restart(1, 5.0, 2)
    assert failures.next(4) == "1 GPUs are left, too few for --min-ranks 2"


def test_devices_are_counted_by_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one may have counted a GPU that has been lost since."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from torch import cuda\n")
    (tmp_path / "torch" / "cuda.py").write_text("def device_count():\n    return 3\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(configs, "gpu_device_files", lambda: True)
    assert configs.gpus_of_new_process() == 3
    (tmp_path / "torch" / "cuda.py").write_text("raise OSError('no driver')\n")
    assert configs.gpus_of_new_process() == 0


def test_numbers_of_ranks_that_can_train_a_recipe() -> None:
    def every(number: int) -> bool:
        return True

    assert smaller_numbers(8, 1, 8, 1, every) == [4, 2, 1]
    assert smaller_numbers(8, 1, 8, 4, every) == [2, 1]  # fused lanes
    assert smaller_numbers(8, 5, 8, 1, every) == [7, 6, 5]  # some ranks idle
    assert smaller_numbers(8, 1, 8, 1, lambda number: number != 4) == [2, 1]


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("cpu", RestartOptions(0, 1, 4), "--min-ranks 1 is for restarts: add --restarts N"),
        ("cpu", RestartOptions(1, 2, 4), "no smaller number than 2 ranks"),
        ("cpu_fsdp2_hybrid", RestartOptions(1, 1, 4), "no smaller number than 4 ranks"),
        ("debug", RestartOptions(1, 1, 4), "no smaller number than 1 ranks"),
    ],
)
def test_wrong_numbers_are_refused(config: str, options: RestartOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        restart_policy(choose(config, None), options)


def test_the_policy_of_a_recipe() -> None:
    policy = restart_policy(choose("cpu", None), RestartOptions(3, 1, 4, 1, hang_seconds=600))
    assert (policy.limit, policy.smaller, policy.silent_seconds) == (3, [1], 660)
    assert restart_policy(choose("cpu", None), RestartOptions(3, hang_seconds=0)).silent_seconds == 0


def test_another_launcher_starts_its_ranks_again_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    monkeypatch.setattr(os, "environ", {**os.environ, **place})
    with pytest.raises(UsageError, match=r"--restarts 2: another launcher .* torchrun --max-restarts"):
        local.start(None, None, ["train"], tmp_path, lambda: 0, RestartOptions(2))


def test_the_ranks_do_not_get_the_options_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["rankzero", "train", "x", "--restarts", "3", "--min-ranks=1", "--config", "cpu", "--run", "r"]
    monkeypatch.setattr(sys, "argv", words)
    assert cli._arguments() == ["train", "x", "--run", "r"]


# -- stopped and left processes ----------------------------------------------------------------------------------------


def test_a_run_is_silent_when_its_files_do_not_change(tmp_path: Path) -> None:
    now = 0.0
    silence = restarts.Silence(tmp_path, 10, clock=lambda: now)
    now = 1000.0
    assert not silence(), "libraries are imported"
    (tmp_path / "status.json").write_text("{}")
    assert not silence()
    now = 1009.0
    (tmp_path / "lock").write_text("")
    assert not silence()
    now = 1018.0
    assert not silence()
    now = 1020.0
    assert silence()
    never = restarts.Silence(tmp_path, 0, clock=lambda: now)
    (tmp_path / "status.json").write_text("{} ")
    assert not never()
    now = 1e9
    assert not never()


def test_a_silent_start_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WATCH_SECONDS", 0.1)
    ended = processes.run(["bash", "-c", "kill -STOP $$"], os.environ, lambda: True)
    assert (ended.code, ended.stopped) == (-signal.SIGKILL, False)
    assert "were stopped" in ended.reason


def test_no_process_of_a_failed_start_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks have their own sessions, and outlive a launcher that was killed."""
    monkeypatch.setattr(processes, "LEAVE_SECONDS", 0.2)
    script = (
        f"setsid bash -c 'trap \"\" TERM; echo $$ > {tmp_path}/rank; sleep 60; :' & while [ ! -s {tmp_path}/rank ]; "
    )
    ended = processes.run(["bash", "-c", script + "do sleep 0.05; done; kill -KILL $$"], os.environ)
    assert (ended.code, ended.reason.startswith("the started process was killed by SIGKILL")) == (-9, True)
    pid = int((tmp_path / "rank").read_text())
    assert not psutil.pid_exists(pid) or not processes.is_alive(psutil.Process(pid))


# -- torchrun ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elastic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """Return a function that writes status.json of the attempt before the second one of a launcher."""

    def make(launch: str = "elastic.1", **said: Any) -> RunDir:
        monkeypatch.setenv("RANKZERO_ATTEMPT", "2")
        monkeypatch.setenv("RANKZERO_LAUNCH", "elastic.1")
        monkeypatch.setenv("WORLD_SIZE", "3")
        (tmp_path / "status.json").write_text(json.dumps({"launch": launch, **said}))
        return RunDir(tmp_path)

    return make


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_a_final_error_is_not_repeated_by_torchrun(elastic: Callable[..., RunDir], code: int) -> None:
    run = elastic(state="failed", exit_code=code, error="row 7 is bad")
    assert resume_checks.restarted_by_launcher(run)
    with pytest.raises(RankzeroError, match=f"not started again after exit code {code}: row 7 is bad") as caught:
        resume_checks.check_launcher_restart(run)
    assert (caught.value.exit_code, caught.value.everywhere) == (code, True)
    assert not run.read_restarts()


@pytest.mark.parametrize("code", [None, 1, 75])
def test_a_restart_by_torchrun_is_recorded(elastic: Callable[..., RunDir], code: int | None) -> None:
    run = elastic(state="running", exit_code=code, error=None)
    resume_checks.check_launcher_restart(run)
    [event] = run.read_restarts()
    assert (event["by"], event["ranks"], event["reason"]) == ("torchrun --max-restarts", 3, "a rank died")


def test_the_status_of_another_launcher_does_not_count(
    elastic: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not resume_checks.restarted_by_launcher(elastic("elastic.2", exit_code=3))
    assert not resume_checks.restarted_by_launcher(elastic(exit_code=3, pid=os.getpid())), "a program's second call"
    run = elastic(exit_code=3)
    monkeypatch.setenv("RANKZERO_ATTEMPT", "1")
    assert not resume_checks.restarted_by_launcher(run)


# -- real runs ---------------------------------------------------------------------------------------------------------

FAIL = """
import os, sys
from pathlib import Path

if "launch.rank" in sys.orig_argv:
    first = Path(os.environ["FIRST"])
    try:
        with first.open("x") as file:
            file.write(os.environ["RANKZERO_START"])
    except FileExistsError:
        pass
    each = os.environ["EACH"] and os.environ.get("WORLD_SIZE") == "2"
    if os.environ["RANKZERO_START"] == first.read_text() or each:
        import hooks
        hooks.at_micro_batch(8, 1, int(os.environ["NUMBER"]))
"""


def rankzero_train(
    folder: Path, recipe: Path, number: int, *words: str, each: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `rankzero train`. A rank signals itself in step 8 of the first start, or of each one with two ranks."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(FAIL)
    path = os.pathsep.join([str(folder / "site"), os.environ["PYTHONPATH"]])
    env = {**os.environ, "PYTHONPATH": path, "FIRST": str(folder / "first"), "NUMBER": str(int(number))}
    env |= {"EACH": "1" if each else "", "RANKZERO_PAUSE": "0.5"}
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), *WORDS, *words]
    return subprocess.run(
        [*command, "--run", str(folder / "run")], env=env, capture_output=True, text=True, timeout=1500
    )


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def left_behind(folder: Path) -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "run") in process.cmdline() and processes.is_alive(process):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "number", "reason"),
    [
        ("cpu", signal.SIGKILL, r"rank 1 \(process \d+\) was killed by SIGKILL|a rank died"),
        ("cpu", signal.SIGSTOP, r"rank 1 \(process \d+ on .*\) made no progress for 25 s"),
        ("debug", signal.SIGKILL, "the started process was killed by SIGKILL"),
    ],
)
def test_a_rank_that_dies_or_hangs_costs_a_restart_and_no_bit(
    recipe: Path, tmp_path: Path, config: str, number: int, reason: str
) -> None:
    hang = 25 if number == signal.SIGSTOP else 600
    words = ("--config", config, "--restarts", "2", f"launch.hang_seconds={hang}")
    ended = rankzero_train(tmp_path, recipe, number, *words)
    assert ended.returncode == 0, ended.stderr
    [event] = events(tmp_path / "run")
    assert re.match(reason, event["reason"]), event
    assert event["exit_code"] == 1
    assert event["step"] in (3, 6), "step 6 may not be written yet on a busy disk"
    assert f"restart 1 of 2 in 0.5 s from the checkpoint of step {event['step']}" in ended.stderr
    assert (status(tmp_path / "run")["attempt"], status(tmp_path / "run")["state"]) == (2, "finished")
    assert left_behind(tmp_path) == []
    world = 1 if config == "debug" else 2
    whole = tmp_path / "whole"
    train(recipe, whole, *WORDS, world=world, engine="single" if world == 1 else "ddp").check()
    one, other = weights(tmp_path / "run"), weights(whole)
    assert all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_rank_that_always_dies_leaves_the_run_to_fewer(recipe: Path, tmp_path: Path) -> None:
    """Rank 1 of two dies in step 8 of each start, as with a broken device. One rank alone finishes the run."""
    words = ("--config", "cpu", "--restarts", "2", "--min-ranks", "1")
    ended = rankzero_train(tmp_path, recipe, signal.SIGKILL, *words, each=True)
    assert ended.returncode == 0, ended.stderr
    assert [event["ranks"] for event in events(tmp_path / "run")] == [2, 1]
    assert "with 1 instead of 2 ranks" in ended.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["ranks"] == 1
    assert (status(tmp_path / "run")["attempt"], status(tmp_path / "run")["step"]) == (3, 12)
    assert left_behind(tmp_path) == []


@pytest.mark.ranks
@pytest.mark.slow
def test_torchrun_repeats_no_attempt_that_data_have_ended(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["trainer", "train", str(recipe), "data.test=missing.jsonl", "--run", str(run)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "2", "-m", "--", *words]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("not started again after exit code 3: ") == 2, done.stderr
    assert (status(run)["exit_code"], status(run)["attempt"]) == (3, 1)
    assert not events(run)


@pytest.mark.ranks
@pytest.mark.slow
def test_torchrun_continues_with_the_nodes_that_are_left(recipe: Path, tmp_path: Path) -> None:
    """Kill one of two agents with its rank. The other one meets alone and resumes from the newest checkpoint."""
    run = tmp_path / "run"
    common = ["--nnodes", "1:2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    common += ["--rdzv_endpoint", "localhost:29567", "--rdzv_conf", "last_call_timeout=5"]
    words = ["loop.max_steps=60", "loop.save_every=10", "loop.eval_every=60", "evaluation.splits=[]"]
    command = [sys.executable, "-m", "torch.distributed.run", *common, "--rdzv_id", "x", "--max-restarts", "3"]
    command += ["-m", "--", "trainer", "train", str(recipe), *words, "--run", str(run)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    agents = []
    with (tmp_path / "log").open("w") as log:
        try:
            agents.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            time.sleep(2)  # the first agent keeps the store
            agents.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            wait_until(lambda: status(run)["step"] >= 20, 240)
            processes.kill_tree(agents[1].pid)
            code = agents[0].wait(timeout=240)
        finally:
            for agent in agents:
                processes.kill_tree(agent.pid)
    assert code == 0, (tmp_path / "log").read_text()
    assert (status(run)["state"], status(run)["step"]) == ("finished", 60)
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["ranks"], [start["ranks"] for start in manifest["starts"]]) == (1, [2])
    [event] = events(run)
    assert (event["by"], event["ranks"]) == ("torchrun --max-restarts", 1)
    assert event["step"] >= 10

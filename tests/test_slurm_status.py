"""`rankzero status`, `logs` and `cancel`: their output, and how often they call SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launch.slurm import checks, compare, follow, queue
from launch.slurm.job import Job, gpu_count, make_job
from launch.slurm.submission import dependency, freeze
from trainer.errors import DataError, UsageError
from trainer.recipe_loading import load_recipe

FAKE = """#!/bin/bash
echo "$(basename "$0")" >> "$CALLS"
[ -z "$SAY" ] || cat "$SAY/$(basename "$0")" 2>/dev/null
exit 0
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose files are the output of squeue, scontrol and sbatch. Each call adds a line to `calls`."""
    folder = tmp_path / "answers"
    for name in ("squeue", "scontrol", "sbatch", "scancel"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE)
        path.chmod(0o755)
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SAY", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().split() if path.exists() else []


def run_with(tmp_path: Path, name: str, *jobs: str, **said: Any) -> Path:
    run = tmp_path / "runs" / name
    (run / "slurm").mkdir(parents=True)
    (run / "slurm" / "jobs").write_text("".join(f"{job}\n" for job in jobs))
    if said:
        (run / "status.json").write_text(json.dumps({"step": 3, "attempt": 1, "updated": time.time()} | said))
    return run


def shown(*runs: Path) -> str:
    app = typer.Typer()
    app.command()(follow.status_command)
    done = CliRunner().invoke(app, [str(run) for run in runs], catch_exceptions=False)
    return done.stdout


def test_status_of_fifty_runs_makes_two_calls_and_then_one(slurm: Path, tmp_path: Path) -> None:
    for number in range(50):
        run_with(tmp_path, f"r{number}", f"{number} train")
    (slurm / "squeue").write_text("0|PENDING|Resources|2026-12-01T10:00:00\n1|RUNNING|None|2026-11-28T10:00:00\n")
    (slurm / "scontrol").write_text("".join(f"JobId={n} JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0\n"
                                            for n in range(2, 50)))  # fmt: skip
    text = shown()
    assert sorted(calls(tmp_path)) == ["scontrol", "squeue"]
    assert "job 0 (train): PENDING (Resources), expected to start 2026-12-01T10:00:00" in text
    assert "job 49 (train): FAILED (exit code 1:0, NonZeroExitCode)" in text
    shown()  # the ended jobs are kept in their runs
    assert sorted(calls(tmp_path)) == ["scontrol", "squeue", "squeue"]


def test_states_are_kept_after_slurm_forgot_the_job(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", "5 train")
    (slurm / "scontrol").write_text("JobId=5 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:1\n")
    assert "job 5 (train): TIMEOUT (exit code 0:1, TimeLimit)" in shown(run)
    (slurm / "scontrol").write_text("")
    assert "job 5 (train): TIMEOUT (exit code 0:1, TimeLimit)" in shown(run)


@pytest.mark.parametrize(("code", "state"), [(2, "FAILED"), (0, "COMPLETED")])
def test_the_script_keeps_its_exit_code(slurm: Path, tmp_path: Path, code: int, state: str) -> None:
    """SLURM forgot the job before the first `rankzero status`."""
    run = run_with(tmp_path, "r", "5 train")
    (run / "slurm" / "ended").write_text(f"5 {code}\n")
    assert f"job 5 (train): {state} (exit code {code})" in shown(run)


def test_the_end_of_the_log_without_status_json(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", "5 train")
    (slurm / "scontrol").write_text("JobId=5 JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0\n")
    assert "no log" in shown(run)
    (run / "slurm" / "train-5.out").write_text("first\n" * 20 + "python: No such file or directory\n")
    assert "| python: No such file or directory" in shown(run)
    said = {"state": "finished", "exit_code": 0, "error": None, "waits_for": None, "launch": "4.0.0"}
    (run / "status.json").write_text(json.dumps({"step": 3, "attempt": 1, **said}))  # of an earlier job
    assert "| python: No such file or directory" in shown(run)
    (run / "status.json").write_text(json.dumps({"step": 3, "attempt": 1, **said, "launch": "5.0.0"}))
    assert "| python" not in shown(run)


def test_a_run_cannot_send_commands_to_the_terminal(slurm: Path, tmp_path: Path) -> None:
    """ESC ] 52 writes to the clipboard, and U+009B begins a command, too."""
    said = {"state": "failed", "exit_code": 1, "waits_for": None, "launch": "4.0.0"}
    run = run_with(tmp_path, "r", "5 train", **said, error="bad\x1b]52;c;eA==\x07\x9b2J")
    (slurm / "scontrol").write_text("JobId=5 JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0\n")
    (run / "slurm" / "train-5.out").write_text("end\x1b[2J\n")
    text = shown(run)
    assert "bad\ufffd]52;c;eA==\ufffd\ufffd2J" in text and "| end\ufffd[2J" in text
    assert "\x1b" not in text and "\n" in text


def test_a_run_whose_process_was_killed_has_failed_at_once(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", state="running", exit_code=None)
    program = "import pathlib, sys, time; from trainer.lock import hold\nwith hold(pathlib.Path(sys.argv[1])):\n"
    program += "    print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(run)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    assert shown(run) == f"{run}: running  step 3, start 1\n"
    holder.kill()
    holder.wait()
    text = shown(run)
    assert text.startswith(f"{run}: failed  step 3, start 1\n  process {holder.pid} on ")
    assert "was killed" in text
    assert "the same command resumes" in text


def test_the_best_score_of_a_running_run_is_that_of_its_newest_checkpoint(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", state="preempted", exit_code=75)
    (run / "recipe.yaml").write_text("loop: {early_stopping: {metric: accuracy}}\n", encoding="utf-8")
    for step, value in ((2, 0.5), (3, 0.75)):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps({"best": {"step": step, "value": value}}))
    assert shown(run) == f"{run}: preempted  step 3, start 1, best accuracy 0.75 (step 3)\n"
    (run / "manifest.json").write_text(json.dumps({"stages": {"model": {"metric": "f1", "value": 0.25, "step": 2}}}))
    assert shown(run) == f"{run}: preempted  step 3, start 1, best f1 0.25 (step 2)\n"
    (run / "manifest.json").write_text("{")
    assert shown(run) == f"{run}: preempted  step 3, start 1\n", "a damaged file hides nothing else"


def test_progress_is_shown(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", "5 train", state="running", loss=1.25, share=0.25, left=3600.0)
    (slurm / "squeue").write_text("5|RUNNING|None|2026-11-28T10:00:00\n")
    assert "step 3, start 1 of about 12 (25%), 1:00:00 left, loss 1.2500" in shown(run)


def test_each_seed_of_an_array_is_shown_with_its_reason(slurm: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, "r", "5 array", "6 compare")
    run_with(tmp_path, "r-seed-1", "5_1 array", state="finished", exit_code=0)
    run_with(tmp_path, "r-seed-2", "5_2 array", state="failed", exit_code=3, error="row 7 of train.jsonl")
    run_with(tmp_path, "r-seed-x", "5_3 array")
    (slurm / "squeue").write_text("6|PENDING|Dependency|N/A\n")
    text = shown(run)
    assert "r-seed-1: finished" in text
    assert "r-seed-2: failed" in text
    assert "row 7 of train.jsonl" in text
    assert "r-seed-x" not in text
    assert sorted(calls(tmp_path)) == ["scontrol", "squeue"]


def test_squeue_is_called_twice_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def active(run: Path) -> list[str]:
        asked.append(now)
        return ["a job"] if len(asked) < 4 else []

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(follow, "active", active)
    log = tmp_path / "train-5.out"
    log.write_text("one\ntwo\n")
    assert list(follow._tail(log, tmp_path, True, 1)) == ["two\n", ""]
    assert asked == [30, 60, 90, 120]


def test_following_a_log_that_does_not_exist_yet(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, "r", "5 train")
    (slurm / "squeue").write_text("5|PENDING|Priority|N/A\n")
    monkeypatch.setattr(follow, "POLL", 0.01)
    slept = 0

    def sleep(_: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 200:
            (run / "slurm" / "train-5.out").write_text("begun\n")

    monkeypatch.setattr(time, "sleep", sleep)
    assert follow.newest_log(run, wait=True).name == "train-5.out"
    assert calls(tmp_path) == ["squeue"]


def test_only_jobs_of_the_run_are_cancelled(slurm: Path, tmp_path: Path) -> None:
    """RUN/slurm/jobs may come from another user, and may name any job."""
    run = run_with(tmp_path, "r-seed-1", "5_1 array", "6 train", "7 train", "8 train")
    scripts = {"5_1": "runs/r/slurm/array.sbatch", "6": "runs/other/slurm/train.sbatch", "7": "elsewhere.sh",
               "8": "runs/r-seed-1/slurm/train.sbatch"}  # fmt: skip
    lines = [f"{job}|PENDING|None|N/A|{tmp_path / script}\n" for job, script in scripts.items()]
    (slurm / "squeue").write_text("".join(lines))
    app = typer.Typer()
    app.command()(follow.cancel_command)
    output = CliRunner().invoke(app, [str(run)], catch_exceptions=False).stdout
    assert "job 5_1 (PENDING): cancelled\n" in output
    assert "job 8 (PENDING): cancelled\n" in output
    assert f"job 6 (PENDING): not cancelled: its script {tmp_path}/runs/other/slurm/train.sbatch is not of" in output
    assert "job 7 (PENDING): not cancelled" in output
    (tmp_path / "calls").unlink()
    (slurm / "squeue").write_text(lines[1])
    CliRunner().invoke(app, [str(run)], catch_exceptions=False)
    assert calls(tmp_path) == ["squeue"]


# -- what reaches sbatch -----------------------------------------------------------------------------------------------


def test_variables_of_an_allocation_do_not_leak() -> None:
    inside = {
        "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "100", "SLURM_CONF": "/x", "HOME": "/h",
        "SBATCH_PARTITION": "p", "SRUN_CPUS_PER_TASK": "4", "CUDA_VISIBLE_DEVICES": "0", "CUDA_HOME": "/cuda",
        "SLURMD_NODENAME": "n", "PMIX_RANK": "0",
    }  # fmt: skip
    assert queue.outside(inside) == {"SLURM_CONF": "/x", "HOME": "/h", "CUDA_HOME": "/cuda"}
    login = {"SBATCH_PARTITION": "p", "SLURM_CONF": "/x"}
    assert queue.outside(login) == login


def found(job: Job, name: str, script: str = "#!/bin/bash\n") -> Any:
    return next(check for check in checks.checks(job, [script], None) if check.name == name)


@pytest.mark.parametrize(
    ("option", "fix"),
    [("--array=1-3", "--array SEEDS"), ("-a 1-3", "--array SEEDS"), ("--output=x", "rankzero logs"), ("-o x", "logs"),
     ("--ntasks-per-node=2", "ranks_per_node"), ("-n4", "ranks_per_node"), ("--ntasks 4", "ranks_per_node"),
     ("--nodes=2", "launch.nodes"), ("-N 2", "launch.nodes"), ("--time=5", "launch.time"), ("--signal=USR2@60", "lead"),
     ("--gpus-per-node=a100:2", "a100:4"), ("--export=NONE", "launch.setup"), ("--outp=x", "rankzero logs"),
     ("--exclusive --time=5", "launch.time")],
)  # fmt: skip
def test_options_that_break_the_script_are_refused(tiny_job: Callable[..., Job], option: str, fix: str) -> None:
    check = found(tiny_job(extra=[option]), "options")
    assert (check.status, fix in check.fix) == ("failed", True), check


@pytest.mark.parametrize(
    "option",
    ["--exclusive", "--gres=gpu:a100:2", "--nodelist=node1", "-w node1", "-C a100", "--reservation=r", "--no-requeue",
     "--mem-per-cpu=4G", "--comment='a --time b'", "--dependency=afterany:3", "--begin=now+20", "--hold"],
)  # fmt: skip
def test_other_options_pass(tiny_job: Callable[..., Job], option: str) -> None:
    assert found(tiny_job(extra=[option]), "options").status == "ok"


def test_a_script_that_bash_cannot_read_is_refused(tiny_job: Callable[..., Job]) -> None:
    check = found(tiny_job(), "script", '#!/bin/bash\nexport X="a\necho\n')
    assert (check.status, "launch.setup" in check.fix) == ("failed", True)


def test_a_finished_run_warns(tiny_job: Callable[..., Job]) -> None:
    job = tiny_job()
    assert found(job, "run").status == "ok"
    job.run.mkdir()
    (job.run / "status.json").write_text('{"state": "finished"}')
    assert found(job, "run").status == "warning"


@pytest.mark.parametrize(
    ("time_limit", "partition", "status", "words"),
    [("24:00:00", None, "failed", "MaxTime=01:00:00 of partition debug"), ("UNLIMITED", None, "failed", "MaxTime"),
     ("30", None, "warning", "GraceTime=30"), ("24:00:00", "long", "ok", "MaxTime UNLIMITED"),
     ("24:00:00", "long,debug", "failed", "partition debug")],
)  # fmt: skip
def test_limits_of_the_partition(
    slurm: Path, tiny_job: Callable[..., Job], time_limit: str, partition: str | None, status: str, words: str
) -> None:
    (slurm / "scontrol").write_text(
        "PartitionName=debug Default=YES GraceTime=30 MaxTime=01:00:00 PreemptMode=REQUEUE\n"
        "PartitionName=long Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF\n"
    )
    check = found(tiny_job(time=time_limit, partition=partition), "limits")
    assert check.status == status, check
    assert words in check.found + (check.problem or "")


@pytest.mark.parametrize(
    ("asked", "extra", "count"),
    [(4, [], 4), ("a100:4", [], 4), ("nvidia_a100_80gb:2", [], 2), (None, ["--gres=gpu:a100:4"], 4),
     (None, ["--gres=gpu:2"], 2), (None, ["--gres gpu"], 1), (None, ["--gres=scratch:10,gpu:h100:8"], 8),
     (None, ["--gres=gpu:a100:2(S:0-1)"], 2), (None, ["--gres=scratch:10"], 0), (None, [], 0)],
)  # fmt: skip
def test_gpus_of_a_node(tiny_job: Callable[..., Job], asked: Any, extra: list[str], count: int) -> None:
    job = tiny_job(config="cpu_multinode", gpus_per_node=asked, extra=extra)
    assert gpu_count(job.recipe.launch) == count


def test_typed_gpus(tiny_job: Callable[..., Job]) -> None:
    job = tiny_job(config="ddp", gpus_per_node="a100:4")
    assert (job.plan.ranks, job.values()["gpus_per_node"]) == (4, "a100:4")
    assert job.finalize_values()["gpus_per_node"] == "a100:1"
    assert tiny_job(config="ddp", extra=["--gres=gpu:a100:4"]).plan.ranks == 4
    for wrong in ("a100", "a100:", "4:a100", "a100:x"):
        with pytest.raises(UsageError, match=r"launch\.gpus_per_node"):
            tiny_job(config="ddp", gpus_per_node=wrong)


def test_numbers_are_text_for_sbatch(tiny_job: Callable[..., Job]) -> None:
    launch = tiny_job("launch={time: 90, account: 12345, memory: 64}").recipe.launch
    assert (launch.time, launch.account, launch.memory) == ("90", "12345", "64")


# -- frozen at submit --------------------------------------------------------------------------------------------------


def test_an_edited_recipe_and_config_do_not_change_a_submitted_job(recipe: Path, tmp_path: Path) -> None:
    from launch.configs import shipped

    mine = tmp_path / "mine.yaml"
    mine.write_bytes(recipe.read_bytes())
    config = tmp_path / "my.yaml"
    config.write_bytes(shipped()["cpu_multinode"].read_bytes())
    job = make_job(str(mine), ["seed=9"], {"nodes": 2}, str(config), tmp_path / "run")
    freeze(job)
    before = (job.words[0], str(job.values()["config"]))
    mine.write_text(mine.read_text().replace("lr: ", "lr: 9"))
    config.write_text(config.read_text() + "# edited\n")
    later = make_job(str(mine), ["seed=8"], {"nodes": 2}, str(config), tmp_path / "run")
    freeze(later)
    assert load_recipe(before[0]) == job.recipe
    assert later.recipe.optim.lr != job.recipe.optim.lr
    assert load_recipe(later.words[0]).seed == 8
    assert "# edited" not in Path(before[1]).read_text()
    assert "# edited" in Path(str(later.values()["config"])).read_text()
    submitted = json.loads((job.run / "slurm" / "submitted.json").read_text())
    assert (submitted["command"][1], submitted["launch"]["nodes"]) == ("seed=8", 2)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert submitted["git_commit"] == (commit.stdout.strip() or None)


# -- the comparison of an array ----------------------------------------------------------------------------------------


def test_the_comparison_runs_over_the_seeds_that_finished(recipe: Path, tmp_path: Path) -> None:
    runs = [tmp_path / f"run-seed-{seed}" for seed in (1, 2, 3)]
    for run, state in zip(runs, ("finished", "failed", "finished"), strict=True):
        (run / "evaluation" / "test").mkdir(parents=True)
        (run / "recipe.yaml").write_text(load_recipe(recipe).to_yaml())
        (run / "status.json").write_text(json.dumps({"state": state}))
        if state == "finished":
            (run / "evaluation" / "test" / "metrics.json").write_text('{"bleu": 30.0, "rows": 8}')
    told = compare.compare(runs, tmp_path)
    assert (told["missing"], told["splits"]["test"]["bleu"]["values"]) == ([str(runs[1])], [30.0, 30.0])
    assert "left out: run-seed-2" in (tmp_path / "comparison.md").read_text()
    with pytest.raises(DataError, match="no run has finished"):
        compare.compare([runs[1], tmp_path / "run-seed-9"], tmp_path)
    assert dependency([5], failed_too=True)[0] == "--dependency=afterany:5"
    assert dependency([5])[0] == "--dependency=afterok:5"
    assert dependency([5, 6])[0] == "--dependency=afterok:5?afterok:6"
    assert dependency([]) == []

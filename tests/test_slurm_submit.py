"""Resources and checks of a submission, and the commands without a cluster."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sklearn  # noqa: F401 - sets variables of the environment, for which the first test would be blamed
import torch._dynamo  # noqa: F401 - as well
from batch_helpers import ROOT, rankzero
from fault_store import FaultStore

from launch.slurm import arrays, checks, compare
from launch.slurm.job import Job, make_job, seconds
from trainer.errors import UsageError
from trainer.rank_env import RANK_VARIABLES
from trainer.slurm_env import adopt_ranks

WITHOUT_SLURM = {"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}


# -- resources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "resources", "expected"),
    [
        (None, {}, ("debug", "single", 1)),
        (None, {"nodes": 2}, ("cpu_multinode", "ddp", 2)),
        (None, {"nodes": 2, "gpus_per_node": 4}, ("ddp", "ddp", 8)),
        (None, {"gpus_per_node": 1}, ("debug", "single", 1)),
        ("cpu", {}, ("cpu", "ddp", 2)),
        ("cpu_multinode", {"nodes": 4, "ranks_per_node": 2}, ("cpu_multinode", "ddp", 8)),
        ("cpu_multinode", {}, ("cpu_multinode", "single", 1)),
        ("zero2", {"nodes": 2, "gpus_per_node": 8}, ("zero2", "zero2", 16)),
        ("zero3", {"gpus_per_node": 8, "ranks_per_node": 4}, ("zero3", "zero3", 4)),
    ],
)
def test_ranks(tiny_job: Callable[..., Job], config: str | None, resources: dict[str, Any], expected: Any) -> None:
    plan = tiny_job(config=config, **resources).plan
    assert (plan.config, plan.engine, plan.ranks) == expected


@pytest.mark.parametrize(
    ("config", "resources", "words"),
    [
        ("debug", {"nodes": 2}, "one process"),
        ("ddp", {"nodes": 2}, "--gpus-per-node"),
        ("ddp", {"gpus_per_node": 2, "ranks_per_node": 3}, "more than 2 GPUs"),
        ("debug", {"nodes": 0}, "launch.nodes"),
        ("debug", {"launcher": "tusk"}, "launch.launcher"),
        ("zero9", {}, "did you mean zero"),
    ],
)
def test_contradictory_resources_are_refused(
    tiny_job: Callable[..., Job], config: str, resources: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_job(config=config, **resources)


def test_numbers_of_nodes_that_are_left(tiny_job: Callable[..., Job]) -> None:
    def counts(lanes: int, **resources: int) -> list[int]:
        return tiny_job(f"data.lanes={lanes}", config="cpu_multinode", **resources).node_counts

    assert counts(16, nodes=4, ranks_per_node=2, min_nodes=1) == [2, 1]
    assert counts(16, nodes=4, ranks_per_node=2, min_nodes=2) == [2]
    assert counts(8, nodes=4, ranks_per_node=1, min_nodes=1) == [2], "one rank is another engine than ddp"
    assert counts(8, nodes=4, ranks_per_node=1) == []
    with pytest.raises(UsageError, match=r"launch.min_nodes=2: no smaller number than 2 nodes with 2 ranks"):
        counts(8, nodes=2, ranks_per_node=2, min_nodes=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 5400), ("1:30", 90), ("12:00:00", 43200), ("2-00", 172800), ("1-2:3", 93780), ("1-2:3:4", 93784),
     ("UNLIMITED", None)],
)  # fmt: skip
def test_times(text: str, expected: int | None) -> None:
    assert seconds(text) == expected


def test_wrong_time() -> None:
    with pytest.raises(UsageError, match=r"launch\.time"):
        seconds("1h")


def found(job: Job, name: str, *, throughput: float | None = None, script: str = "#!/bin/bash\n") -> Any:
    return next(check for check in checks.checks(job, [script], throughput) if check.name == name)


def test_lanes_against_ranks(tiny_job: Callable[..., Job]) -> None:
    of = {n: found(tiny_job(config="cpu_multinode", nodes=n), "lanes") for n in (2, 3, 5)}
    assert [of[n].status for n in of] == ["ok", "warning", "failed"]  # 4 lanes
    assert "1, 2, 4" in of[3].fix


def test_gpus_against_the_config(tiny_job: Callable[..., Job]) -> None:
    assert found(tiny_job(config="cpu_multinode", nodes=2, gpus_per_node=2), "GPUs").status == "warning"
    assert found(tiny_job(config="ddp", gpus_per_node=4, ranks_per_node=2), "GPUs").status == "warning"
    assert found(tiny_job(config="ddp", gpus_per_node=2), "GPUs").status == "ok"


def test_time_and_grace(tiny_job: Callable[..., Job]) -> None:
    assert found(tiny_job(time="2:00"), "time").status == "failed"  # the signal comes at once
    job = tiny_job(time="10:00")
    assert "not measured" in found(job, "grace").found
    folder = job.run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    for name, size, at in (("model.safetensors", 1000, 100.0), ("optimizer.safetensors", 2000, 160.0), ("m", 0, 160.0)):
        (folder / name).write_bytes(b"x" * size)
        os.utime(folder / name, (at, at))
    check = found(job, "grace")
    assert check.status == "warning"
    assert "about 60.0 s" in check.found
    assert check.fix == "launch.signal_lead=240"


def test_hours_are_planned_if_a_speed_is_known(tiny_job: Callable[..., Job]) -> None:
    job = tiny_job("loop.max_steps=null", "loop.epochs=1000", time="10:00")
    check = found(job, "time", throughput=10.0)
    assert check.status == "ok", "requeues with progress do not count"
    attempts = int(check.found.partition(" attempts, requeued in between")[0].rpartition(" ")[2])
    assert attempts > job.recipe.launch.requeue_limit + 1
    check = found(replace(job, chain=2), "time", throughput=10.0)
    assert check.status == "warning"
    assert f"--chain {attempts - 1}" in check.fix


def test_seeds() -> None:
    assert arrays.seeds_of("1-3,7,10-20:5%2") == [1, 2, 3, 7, 10, 15, 20]
    assert arrays.seeds_of("5-5,2") == [2, 5]
    for wrong in ("", "a", "1-", "5-1", "1,5-1", "1-5:0", "1 2", "1-5;id", "1-2000", "1-9999999999", f"1-{10**30}"):
        with pytest.raises(UsageError, match="--array"):
            arrays.seeds_of(wrong)
    with pytest.raises(UsageError, match="--seeds '5-1'"):
        arrays.seeds_of("5-1", "--seeds")


# -- the commands ------------------------------------------------------------------------------------------------------


def test_dry_run_prints_script_and_checks_and_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    done = rankzero(
        *("submit", recipe, "--config", "cpu_multinode", "--nodes", 2, "--dry-run", "--finalize"),
        cwd=tmp_path,
        env=WITHOUT_SLURM,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == 2
    assert "lanes    4 lanes for 2 ranks" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_preparation_is_three_arrays_and_a_last_job(recipe: Path, tmp_path: Path) -> None:
    words = ("submit", recipe, "--prepare", 3, "--out", "data/ready", "--cpus-per-task", 4, "--dry-run")
    done = rankzero(*words, cwd=tmp_path, env=WITHOUT_SLURM)
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("#!/bin/bash")[1:]
    commands = [next(line for line in script.splitlines() if line.startswith("WORDS=")) for script in scripts]
    for script, command, stage in zip(scripts, commands, ("read", "deal", "write"), strict=False):
        assert "#SBATCH --array=1-3\n" in script
        assert "#SBATCH --cpus-per-task=4\n" in script
        assert command.endswith(f'--out {tmp_path}/data/ready --part "{stage}:$SLURM_ARRAY_TASK_ID/3")')
    assert len(scripts) == 4
    assert "--array" not in scripts[3].partition("set -uo pipefail")[0]
    assert commands[3].endswith(f"--out {tmp_path}/data/ready)")
    assert f"RUN={tmp_path}/data/ready-jobs\n" in scripts[3]


def test_a_job_begins_with_a_mirror(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mirrors" / "run" / "step-00000200").mkdir(parents=True)
    (tmp_path / "mirrors" / "run" / "step-00000200" / "manifest.json").write_text("{}")

    def submit(*words: object) -> Any:
        return rankzero("submit", recipe, "--dry-run", "--resume-from", *words, cwd=tmp_path, env=WITHOUT_SLURM)

    done = submit("mirrors/run")
    assert done.returncode == 0, done.stderr
    assert ' --resume-from mirrors/run --run "$RUN")' in done.stdout
    assert "mirror   mirrors/run has 1 checkpoints, the newest of step 200" in done.stderr
    for more, text in (("--array", "1-3"), ("--prepare", "2")):
        refused = submit("mirrors/run", more, text)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"--resume-from with {more}: a mirror has the checkpoints of one run" in refused.stderr


@pytest.mark.parametrize(
    ("url", "checkpoints", "expected"),
    [
        ("mirrors/none", 0, "none has no complete checkpoint as seen from here"),
        ("memory://none", 1, "already has checkpoints, which the job resumes from: --resume-from is not used"),
        ("fault://host/run", 0, "fault://host/run cannot be listed from here (PermissionError: 403"),
    ],
)
def test_a_mirror_is_looked_at(
    tiny_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, url: str, checkpoints: int, expected: str
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("403 for https://user:S3CR3T@host/x")

    monkeypatch.setattr(FaultStore, "find", forbidden)
    job = tiny_job()
    for step in range(checkpoints):
        (job.run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    check = checks._mirror(job, url)
    assert check.status == "warning"
    assert expected in check.found
    assert "S3CR3T" not in check.found


def test_a_mirror_with_credentials_is_refused(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume-from s3://bucket/run: its credentials would be written") as refused:
        make_job(str(recipe), (), {}, "debug", resume_from="s3://key:S3CR3T@bucket/run")
    assert "S3CR3T" not in str(refused.value)


def test_without_slurm(recipe: Path, tmp_path: Path) -> None:
    env = WITHOUT_SLURM
    done = rankzero("submit", recipe, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "sbatch is not in PATH" in done.stderr
    assert rankzero("status", tmp_path, cwd=tmp_path, env=env).stdout == f"{tmp_path}: not begun\n"
    assert rankzero("logs", tmp_path, cwd=tmp_path, env=env).returncode == 2


def test_a_run_that_died_silently_is_reported(tmp_path: Path) -> None:
    said = {"state": "running", "step": 3, "attempt": 1, "exit_code": None, "error": None, "waits_for": None}
    for updated, silent in ((time.time(), False), (time.time() - 500, True)):
        (tmp_path / "status.json").write_text(json.dumps(said | {"updated": updated}))
        lines = rankzero("status", tmp_path, cwd=tmp_path, env=WITHOUT_SLURM).stdout.splitlines()
        assert lines[0] == f"{tmp_path}: running  step 3, start 1"
        assert any("no update for 50" in line for line in lines[1:]) == silent


def test_a_refused_job_lists_all_reasons(recipe: Path, tmp_path: Path) -> None:
    words = ("--nodes", 5, "--time", "1:00", "--sbatch=--gres=x:$N")
    done = rankzero("submit", recipe, *words, "--dry-run", cwd=tmp_path, env=WITHOUT_SLURM)
    assert done.returncode == 2
    assert "lanes: each rank needs a lane" in done.stderr
    assert "no time to train" in done.stderr
    assert "does not expand `$`" in done.stderr


# -- the runs of an array ----------------------------------------------------------------------------------------------


def test_compare(recipe: Path, tmp_path: Path) -> None:
    from trainer.recipe_loading import load_recipe

    runs = [tmp_path / f"run-seed-{seed}" for seed in (1, 2, 3)]
    for run, bleu, loss in zip(runs, (30.0, 32.0, 34.0), (2.0, 1.0, 3.0), strict=True):
        (run / "evaluation" / "test").mkdir(parents=True)
        (run / "recipe.yaml").write_text(load_recipe(recipe).to_yaml())
        (run / "manifest.json").write_text(json.dumps({"stages": {"model": {"metric": "loss", "value": loss}}}))
        (run / "status.json").write_text('{"state": "finished"}')
        scores = {"bleu": bleu, "bleu_ci95": [1, 2], "signature": "x", "rows": 8}
        (run / "evaluation" / "test" / "metrics.json").write_text(json.dumps(scores))
    (tmp_path / "run").mkdir()
    told = compare.compare(runs, tmp_path / "run")
    assert told["splits"] == {"test": {"bleu": {"mean": 32.0, "deviation": 2.0, "values": [30.0, 32.0, 34.0]}}}
    assert told["best"]["run"] == str(runs[1])  # by validation loss, whatever the test says
    assert "| bleu | 32 | 2 | 30 | 32 | 34 |" in (tmp_path / "run" / "comparison.md").read_text()


# -- srun python -m trainer --------------------------------------------------------------------------------------------


def test_ranks_of_srun() -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_JOB_ID": "123456", "MASTER_ADDR": "n1",
    }  # fmt: skip
    with patch.dict(os.environ, {}, clear=True):
        adopt_ranks()
        assert os.environ == {}
    with patch.dict(os.environ, step, clear=True):
        adopt_ranks()
        assert [os.environ[name] for name in RANK_VARIABLES] == ["5", "7", "1", "3", "n1", "13456"]
        os.environ["SLURM_PROCID"] = "0"
        adopt_ranks()  # below a launcher, or twice: what is set stays
        assert os.environ["RANK"] == "5"
    with patch.dict(os.environ, step | {"SLURM_PTY_PORT": "1"}, clear=True):
        with pytest.raises(UsageError, match="the other 6 tasks do not run it"):  # typed in the first task's shell
            adopt_ranks()
        with patch("trainer.slurm_env._parent", return_value="slurmstepd"):
            adopt_ranks()
            assert os.environ["WORLD_SIZE"] == "7"

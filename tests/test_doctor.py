"""`rankzero doctor`: the command, and its checks of environment, network and SLURM (others: test_doctor_*.py)."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer
from doctor_helpers import RANK_CHECKS, check

from launch import configs
from launch.configs import choose
from launch.findings import Check, Findings
from launch.slurm import queue
from launch.tools.doctor import diagnosis, disk, launching, machine
from launch.tools.doctor.command import doctor_command
from launch.tools.doctor.diagnosis import run_check, show
from trainer.cli import run_app
from trainer.rank_env import RANK_VARIABLES


def command(*words: str) -> int:
    """Run `rankzero doctor WORDS` in this process and return the exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("doctor")(doctor_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rankzero doctor", *words])
        return run_app(app)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launching.SHOWN, *RANK_VARIABLES):
        if name != "OMP_NUM_THREADS":
            monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


# -- environment and network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "env", "words"),
    [
        ("cpu", {}, []),
        ("cpu", {"ACCELERATE_USE_CPU": "true"}, []),
        ("cpu_zero2", {"ACCELERATE_USE_CPU": "true"}, ["cpu_zero2 (zero2)", "silently", "unset ACCELERATE_USE_CPU"]),
        ("cpu_fsdp2", {"ACCELERATE_USE_CPU": "1"}, ["cpu_fsdp2 (fsdp2)", "silently"]),
        ("cpu_fsdp2", {"ACCELERATE_USE_FSDP": "true"}, []),
        ("cpu", {"ACCELERATE_USE_DEEPSPEED": "true"}, ["ACCELERATE_USE_DEEPSPEED", "(ddp)"]),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "no"}, []),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "fp16"}, ["ACCELERATE_MIXED_PRECISION=fp16", "config cpu (ddp)"]),
    ],
)
def test_misleading_variables(
    monkeypatch: pytest.MonkeyPatch, config: str, env: dict[str, str], words: list[str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    result = check(launching.check_environment, choose(config, None))
    assert result.status == ("warning" if words else "ok"), result
    assert all(word in result.found + result.fix for word in words), result


@pytest.mark.parametrize(
    ("threads", "ranks", "status", "words"),
    [
        ("4", 2, "warning", "set it to 2"),
        ("2", 2, "ok", "4 of 4 cores usable; 2 ranks x 2 threads"),
        (None, 2, "ok", "4 of 4 cores usable; 2 ranks x 2 threads"),
        ("1", 5, "warning", "--nproc 4"),
    ],
)
def test_threads_times_ranks(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, ranks: int, status: str, words: str
) -> None:
    for module in ("launch.tools.doctor.machine", "launch.local"):
        monkeypatch.setattr(f"{module}.cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    result = check(machine.check_cpu, choose("cpu", ranks))
    assert result.status == status
    assert words in result.found + result.fix


def test_a_host_name_without_an_address_or_with_a_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*words: object) -> None:
        raise socket.gaierror("unknown")

    several_machines = configs.describe("ddp_multinode")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.1.1", 0))])
    assert check(launching.check_network, several_machines).status == "failed"
    assert check(launching.check_network, choose("cpu", None)).status == "ok"
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert check(launching.check_network, several_machines).status == "failed"
    assert check(launching.check_network, choose("cpu", None)).status == "ok"


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(findings: Findings) -> None:
        raise OSError("GET with hf_0123456789abcdef failed")

    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    assert run_check("x", fail).found == "GET with *** failed"
    command("--quick")
    out, err = capsys.readouterr()
    assert "0123456789" not in out + err


# -- SLURM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    """SLURM's commands as scripts. `sinfo` runs the given script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(queue, "SINFO_SECONDS", 0.7)

    def look(sinfo: str) -> Check:
        for name in ("sbatch", "sinfo"):
            (tmp_path / name).write_text(f"#!/bin/sh\n{sinfo}\n")
            (tmp_path / name).chmod(0o755)
        return check(launching.check_slurm)

    return look


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check(launching.check_slurm) == Check("check", "skipped", "not found: rankzero submit cannot be used here")


def test_a_cluster(cluster: Callable[[str], Check]) -> None:
    result = cluster("echo 'gpu*|up|2:00:00|4|mix'; echo 'old|down|1:00|1|idle'")
    partitions = "partition gpu* up, 4 mix, 2:00:00; partition old down, 1 idle, 1:00"
    assert (result.status, result.found) == ("ok", partitions)


@pytest.mark.parametrize(
    ("sinfo", "words"),
    [
        ("echo 'gpu|up|1:00|4|down*'; echo 'b|up|1:00|4|idle*'", "no node can take a job"),
        ("echo 'gpu|down|1:00|4|idle'", "no node can take a job"),
        ("exit 0", "no node can take a job"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exit 3", "exit code 3"),
        ("exec sleep 61", "does not answer within 0.7 s"),
    ],
)
def test_a_cluster_that_cannot_be_used(cluster: Callable[[str], Check], sinfo: str, words: str) -> None:
    began = time.monotonic()
    result = cluster(sinfo)
    assert (result.status, words in result.problem) == ("warning", True), result
    assert time.monotonic() - began < 10
    sleeping = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "61"]]
    assert not [one for one in sleeping if one.status() != psutil.STATUS_ZOMBIE], "the hanging command still runs"


def test_an_incomplete_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    result = check(launching.check_slurm)
    assert (result.status, "sinfo is not in PATH" in result.problem) == ("warning", True)


# -- the command -----------------------------------------------------------------------------------------------------


def test_quick_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("--quick", "--json", "--run", str(tmp_path / "x")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"passed", "checks", "bandwidth"}
    assert (answer["passed"], answer["bandwidth"]) == (True, [])
    assert all(set(one) == {"name", "status", "found", "fix"} for one in answer["checks"])
    names = [one["name"] for one in answer["checks"]]
    assert len(names) == len(set(names)) == 12
    assert {one["status"] for one in answer["checks"] if one["name"] in RANK_CHECKS} == {"skipped"}
    assert "MB/s" not in next(one["found"] for one in answer["checks"] if one["name"] == "disk")
    assert not (tmp_path / "x").exists()


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # an incomplete SLURM would be a warning
    monkeypatch.setattr(launching, "gpus", lambda: 0)
    monkeypatch.setattr(configs, "gpus", lambda: 0)
    assert command("--quick", "--config", "ddp") == 1
    out = capsys.readouterr().out
    assert re.search(r"\nfailed: config: .*needs GPUs.*\n  -> .+\n\nNot everything works here: .*1 failed.*\n$", out), (
        out
    )
    for words in (["--config", "nosuch"], ["--nproc", "0"], ["--timeout", "1"], ["--config", "debug", "--nproc", "2"]):
        assert command("--quick", *words) == 2, words


def test_an_error_in_one_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "check_memory", lambda findings: 1 / 0)
    failed = [one for one in diagnosis.diagnose(quick=True)[0] if one.status == "failed"]
    assert [one.name for one in failed] == ["memory"]
    assert "ZeroDivisionError" in failed[0].found


def test_a_check_that_hangs_has_failed() -> None:
    awake = threading.Event()
    result = run_check("disk space", lambda findings: awake.wait(60), 0.2)
    assert (result.status, result.found) == ("failed", "no answer within 0.2 s")
    awake.set()


def test_inside_a_launcher_no_ranks_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(disk, "measure", lambda folder: (1, 1e-9))
    statuses = {one.name: one.status for one in diagnosis.diagnose()[0]}
    assert [statuses[name] for name in RANK_CHECKS] == ["skipped"] * 2


def test_problems_are_last_and_failures_before_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"bytes": 4096, "seconds": 2e-4, "algorithm_gb_per_s": 0.02, "bus_gb_per_s": 0.02, "correct": False}]
    checks = [Check("a", "warning", "w [x]", "do this"), Check("b", "failed", "f", "do that"), Check("c", "ok", "fine")]
    show(checks, rows)
    out = capsys.readouterr().out
    assert out.index("WRONG") < out.index("failed: b") < out.index("warning: a: w [x]") < out.index("Not everything")
    assert "4 KiB" in out
    show(checks[2:], [])
    assert "Everything that was checked works here: 1 ok." in capsys.readouterr().out

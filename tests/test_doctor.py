"""`rankzero doctor`: what it says of the environment and of SLURM, and the command (others: test_doctor_*.py)."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer
from doctor_world import only

from launch import configs, doctor
from launch.configs import choose
from launch.doctoring import between, check, disk, machine, plans, settings, show, slurm
from launch.doctoring.check import Check
from trainer.cli import run_app


def command(*words: str) -> int:
    """`rankzero doctor WORDS` in this process; the exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("doctor")(doctor.doctor_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rankzero doctor", *words])
        return run_app(app)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*settings.TOLD, *settings.LAUNCHED, "SLURM_JOB_ID"):
        if name != "OMP_NUM_THREADS":
            monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "env", "words"),
    [
        ("cpu", {}, []),
        ("cpu", {"ACCELERATE_USE_CPU": "true"}, []),
        ("cpu_zero2", {"ACCELERATE_USE_CPU": "true"}, ["zero2 would silently be DDP", "unset ACCELERATE_USE_CPU"]),
        ("cpu_fsdp2", {"ACCELERATE_USE_CPU": "1"}, ["fsdp2 would silently be DDP"]),
        ("cpu_fsdp2", {"ACCELERATE_USE_FSDP": "true"}, []),
        ("cpu", {"ACCELERATE_USE_DEEPSPEED": "true"}, ["ACCELERATE_USE_DEEPSPEED", "ddp is wanted"]),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "fp16"}, ["fp16", "config cpu says no"]),
        ("cpu", {"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "starts none", "unset WORLD_SIZE"]),
    ],
)
def test_misleading_variables(
    monkeypatch: pytest.MonkeyPatch, config: str, env: dict[str, str], words: list[str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = only(settings.checks(choose(config, None)), "environment")
    assert found.status == ("warning" if words else "ok"), found
    assert all(word in found.found + found.fix for word in words), found


@pytest.mark.parametrize(
    ("threads", "ranks", "status", "words"),
    [
        ("4", 2, "warning", "set it to 2"),
        ("2", 2, "ok", "2 ranks x 2 threads on 4 cores"),
        (None, 2, "ok", "2 ranks x 2 threads on 4 cores"),
        ("1", 5, "warning", "--nproc 4"),
        ("many", 2, "warning", "no number"),
    ],
)
def test_threads_times_ranks(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, ranks: int, status: str, words: str
) -> None:
    monkeypatch.setattr(settings, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = only(settings.checks(choose("cpu", ranks)), "threads")
    assert found.status == status
    assert words in found.found + found.fix


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("GLOO_SOCKET_IFNAME", "nosuch0", "failed"),
        ("GLOO_SOCKET_IFNAME", "lo", "ok"),
        ("GLOO_SOCKET_IFNAME", "l", "failed"),  # whole names
        ("NCCL_SOCKET_IFNAME", "l", "ok"),  # beginnings of names
        ("NCCL_SOCKET_IFNAME", "=l", "failed"),
        ("NCCL_SOCKET_IFNAME", "^docker", "ok"),
    ],
)
def test_interfaces_named_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, status: str
) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": [], "eth0": []})
    monkeypatch.setenv(variable, value)
    found = only(settings.checks(choose("cpu", None)), "network")
    assert found.status == status, found


def test_a_name_without_an_address_and_one_that_leads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*words: object) -> None:
        raise socket.gaierror("unknown")

    many = configs.describe("ddp_multinode")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.1.1", 0))])
    assert only(settings.checks(many), "network").status == "failed"
    assert only(settings.checks(choose("cpu", None)), "network").status == "ok"
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert only(settings.checks(many), "network").status == "warning"


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = only(settings.checks(None), "hub")
    assert "off by HF_HUB_OFFLINE" in found.found
    assert "a token is set" in found.found
    assert check.without_secrets("GET with hf_0123456789abcdef failed") == "GET with <HF_TOKEN> failed"
    command("--quick")
    out, err = capsys.readouterr()
    assert "0123456789" not in out + err


# -- SLURM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    """SLURM's commands as scripts; `sinfo` does what it is told, and knows its version."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "PATIENCE", 0.7)

    def look(sinfo: str) -> Check:
        for name in slurm.COMMANDS:
            version = '[ "$1" = --version ] && { echo slurm 22.05.8; exit 0; }'
            (tmp_path / name).write_text(f"#!/bin/sh\n{version}\n{sinfo}\n")
            (tmp_path / name).chmod(0o755)
        return slurm.checks()[0]

    return look


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.checks() == [Check("slurm", "skipped", "not found: rankzero submit cannot be used here")]


def test_a_cluster(cluster: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster("echo 'gpu*|up|2:00:00|4|mix'; echo 'old|down|1:00|1|idle'")
    assert (found.status, "slurm 22.05.8" in found.found) == ("ok", True), found
    assert "gpu* up, 4 mix, 2:00:00 / old down, 1 idle, 1:00; not inside a job" in found.found
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "inside job 17 on 1 node" in cluster("echo 'gpu|up|1|1|idle'").found


@pytest.mark.parametrize(
    ("sinfo", "words"),
    [
        ("echo 'gpu|up|1:00|4|down*'; echo 'b|up|1:00|4|idle*'", "no node can take a job"),
        ("echo 'gpu|down|1:00|4|idle'", "no node can take a job"),
        ("exit 0", "no partition"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("sleep 61", "did not answer within 0.7 s"),
    ],
)
def test_a_cluster_that_is_of_no_use(cluster: Callable[[str], Check], sinfo: str, words: str) -> None:
    began = time.monotonic()
    found = cluster(sinfo)
    assert (found.status, words in found.problem) == ("warning", True), found
    assert time.monotonic() - began < 10
    sleeping = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "61"]]
    assert not [one for one in sleeping if one.status() != psutil.STATUS_ZOMBIE], "what hung is still there"


def test_half_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    found = slurm.checks()[0]
    assert (found.status, "srun, scontrol, squeue, sinfo not in PATH" in found.problem) == ("warning", True)


# -- the command -----------------------------------------------------------------------------------------------------


def test_quick_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("--quick", "--json", "--run", str(tmp_path / "x")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"passed", "checks", "bandwidth"}
    assert (answer["passed"], answer["bandwidth"]) == (True, [])
    assert all(set(one) == {"name", "status", "found", "fix"} for one in answer["checks"])
    names = [one["name"] for one in answer["checks"]]
    assert len(names) == len(set(names))
    assert {one["status"] for one in answer["checks"] if one["name"] in between.NAMES} == {"skipped"}
    assert "disk speed" not in names
    assert not (tmp_path / "x").exists()


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a SLURM that is only half there would be a warning
    monkeypatch.setattr(plans, "gpus", lambda: 0)
    monkeypatch.setattr(configs, "gpus", lambda: 0)
    assert command("--quick", "--config", "ddp") == 1
    out = capsys.readouterr().out
    assert re.search(r"\nfailed: config: .*needs GPUs.*\n  -> .+\n\nNot all works here: .*1 failed.*\n$", out), out
    for words in (["--config", "nosuch"], ["--nproc", "0"], ["--timeout", "1"], ["--config", "debug", "--nproc", "2"]):
        assert command("--quick", *words) == 2, words


def test_a_mistake_of_ours_costs_one_check_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "checks", lambda: 1 / 0)
    diagnosis = doctor.diagnose(quick=True)
    assert "ZeroDivisionError" in only(diagnosis.checks, "machine").found
    assert not diagnosis.passed
    assert len(diagnosis.checks) > 15


def test_started_by_a_launcher_it_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(disk, "measure", lambda folder: (1, 1e9, 1e9))
    found = doctor.diagnose()
    assert [only(found.checks, name).status for name in between.NAMES] == ["skipped"] * 3


def test_problems_come_last_on_a_terminal_too(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"bytes": 4096, "seconds": 2e-4, "algorithm_gb_per_s": 0.02, "bus_gb_per_s": 0.02, "correct": False}]
    checks = [Check("a", "warning", "w [x]", "do this"), Check("b", "failed", "f", "do that"), Check("c", "ok", "fine")]
    show.show(checks, rows, terminal=True)
    out = capsys.readouterr().out
    assert out.index("WRONG") < out.index("failed: b") < out.index("warning: a: w [x]") < out.index("Not all works")
    assert "4 KiB" in out
    assert show.verdict(checks[2:]) == "All that was looked at works here: 1 ok."

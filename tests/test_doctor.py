"""`rankzero doctor`: every check finds a planted fault, and the command tells it (ranks: test_doctor_ranks.py)."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml

from launch import configs, doctor
from launch.configs import choose, shipped
from launch.doctoring import (
    between,
    check,
    devices,
    disk,
    machine,
    plans,
    settings,
    show,
    slurm,
    versions,
)
from launch.doctoring.check import Check
from trainer.cli import run_app
from trainer.errors import UsageError

ROOT = Path(__file__).parent.parent


def only(checks: list[Check], name: str) -> Check:
    found = [one for one in checks if one.name == name]
    assert len(found) == 1, (name, checks)
    return found[0]


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


# -- versions --------------------------------------------------------------------------------------------------------


def _pretend(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    real = versions.installed
    names = {name.replace("_", "-"): version for name, version in found.items()}
    monkeypatch.setattr(versions, "installed", lambda name: names[name] if name in names else real(name))


def test_this_environment_is_sound() -> None:
    found = versions.checks()
    assert [one.status for one in found] == ["ok"] * 4, found
    assert f"torch {importlib.metadata.version('torch')}" in only(found, "packages").found


@pytest.mark.parametrize(
    ("name", "version", "where", "status", "words"),
    [
        ("torch", None, "packages", "failed", ["torch is missing", "pip install 'torch>=2.13'"]),
        ("datasets", "4.0.0", "packages", "failed", ["datasets 4.0.0 is not >=5.2"]),
        ("deepspeed", None, "packages", "ok", ["deepspeed not installed", "zero1"]),
        ("torch", "2.12.1", "known bad versions", "failed", ["torch 2.12.1", "weights_only"]),
        ("torch", "2.13.0+cu130", "packages", "ok", ["torch 2.13.0+cu130"]),
        ("torch", "2.14.0.dev20261101", "packages", "ok", ["torch 2.14.0.dev20261101"]),
        ("onnx", "1.20.1", "known bad versions", "failed", ["onnx 1.20.1", "external data"]),
        ("transformers", "5.10.0", "known bad versions", "failed", ["transformers 5.10.0"]),
        ("deepspeed", "0.15.0", "known bad versions", "failed", ["deepspeed 0.15.0"]),
        ("optimum_onnx", "0.1.0", "known bad versions", "warning", ["transformers < 4.58", "uninstall"]),
        ("tokenizers", "0.99.0", "package combination", "failed", ["transformers", "wants tokenizers", "0.99.0"]),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, where: str, status: str, words: list[str]
) -> None:
    _pretend(monkeypatch, **{name: version})
    found = only(versions.checks(), where)
    assert found.status == status, found
    assert all(word in found.found + found.fix for word in words), found


def test_without_a_checkout_the_installed_requirements_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.13", "deepspeed>=0.19; extra == 'deepspeed'", "pytest>=8; extra == 'test'", "x; os_name == 'nt'"]
    monkeypatch.setattr(versions, "PROJECT", Path("/nonexistent"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    found = [(requirement.name, optional) for requirement, optional in versions.requirements()]
    assert found == [("torch", False), ("deepspeed", True), ("x", True)]


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "OLDEST_PYTHON", (9, 0))
    assert only(versions.checks(), "python").status == "failed"


# -- machine ---------------------------------------------------------------------------------------------------------


def test_cpu_and_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_words", lambda: ("Some CPU", {"avx2", "amx_bf16"}))
    found = only(machine.checks(), "cpu")
    assert found.status == "ok"
    assert "Some CPU" in found.found
    assert "avx2, amx_bf16" in found.found
    monkeypatch.setattr(machine, "_cpu_words", lambda: ("Old CPU", {"sse2"}))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert only(machine.checks(), "cpu").status == "warning"


def test_little_memory_by_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_limit", lambda: (float(2**30), float(2**29)))
    found = only(machine.checks(), "memory")
    assert (found.status, found.problem) == ("warning", "only 512 MiB left")
    monkeypatch.setattr(machine, "memory_limit", lambda: (float("inf"), 0.0))
    assert "control group" not in only(machine.checks(), "memory").found


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/job/step\n", "job", {"memory.max": "4096", "memory.current": "3000"}),
        ("4:memory:/job\n", "memory/job", {"memory.limit_in_bytes": "4096", "memory.usage_in_bytes": "3000"}),
    ],
)
def test_memory_limits_of_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, folder: str, files: dict[str, str]
) -> None:
    """The cache of files is not counted as used."""
    (tmp_path / folder).mkdir(parents=True)
    for name, text in (files | {"memory.stat": "inactive_file 600\nactive_file 400\nshmem 5"}).items():
        (tmp_path / folder / name).write_text(text + "\n")
    (tmp_path / "mine").write_text("3:cpuset:/other\n" + line)
    groups = machine._memory_groups(tmp_path, tmp_path / "mine")
    assert tmp_path / folder in groups
    monkeypatch.setattr(machine, "_memory_groups", lambda: groups)
    assert machine.memory_limit() == (4096.0, 2000.0)


def test_shared_memory_small_or_with_leftovers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20, 0, 64 * 2**20))
    assert "--shm-size" in only(machine.checks(), "shared memory").fix
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**34, 0, 2**34))
    assert only(machine.checks(), "shared memory").status == "ok"
    (tmp_path / "deepspeed_allreduce_buffer_0_1").write_bytes(b"x" * 2048)
    (tmp_path / "other").write_bytes(b"x")
    found = only(machine.checks(), "shared memory")
    assert found.status == "warning"
    assert "1 files that no process here uses, 2 KiB" in found.found
    assert found.fix == f"rm {tmp_path}/deepspeed_allreduce_buffer_*"
    monkeypatch.setattr(machine, "SHARED", tmp_path / "missing")
    monkeypatch.undo()


def test_what_a_living_process_has_mapped_is_no_leftover(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "torch_1_2"
    path.write_bytes(b"x" * 4096)
    assert machine.leftovers(tmp_path) == [path]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert machine.leftovers(tmp_path) == []


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    found = only(machine.checks(), "open files")
    assert (found.status, found.fix) == ("warning", "ulimit -n 4096")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert only(machine.checks(), "open files").status == "ok"


# -- devices ---------------------------------------------------------------------------------------------------------

GPU = {"name": "NVIDIA H200", "memory": 139 * 2**30, "capability": [9, 0]}
SEEN: dict[str, Any] = {
    "build": "13.0",
    "driver": [13, 0],
    "visible": None,
    "nccl": "2.28.9",
    "error": "",
    "peers": True,
    "architectures": ["sm_80", "sm_90", "compute_90"],
    "gpus": [GPU],
}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", ["NVIDIA H200, 139 GiB, compute capability 9.0, bf16", "NCCL 2.28.9"]),
        ({"gpus": [GPU | {"capability": [7, 0]}]}, "failed", ["no bf16", "no code for GPU 0 (sm_70"]),
        ({"gpus": [GPU | {"capability": [8, 6]}]}, "ok", ["8.6"]),  # sm_80 runs on 8.6
        ({"gpus": [GPU | {"capability": [10, 0]}]}, "ok", ["10.0"]),  # by PTX
        ({"architectures": ["gfx90a"]}, "ok", []),
        ({"gpus": [GPU, GPU], "nccl": None}, "failed", ["without NCCL"]),
        ({"gpus": [GPU, GPU], "peers": False}, "ok", ["do not reach each other"]),
        ({"gpus": [], "build": None}, "warning", ["built for CPU only"]),
        ({"gpus": [], "driver": [12, 8]}, "failed", ["driver is too old", "CUDA 12.8", "13.0"]),
        ({"gpus": [], "error": "no CUDA-capable device"}, "failed", ["no CUDA-capable device", "--gpus all"]),
        ({"gpus": [], "visible": ""}, "ok", ["hidden by CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_devices(changes: dict[str, Any], status: str, words: list[str]) -> None:
    found = devices.judge(SEEN | changes)
    assert found.status == status, found
    assert all(word in found.found + found.fix for word in words), found


def test_a_driver_that_hangs_or_crashes_does_not_take_the_doctor_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_files", lambda: True)
    for code, words in (("import time; time.sleep(60)", "within 0.5 s"), ("import os; os.abort()", "exit code -6")):
        monkeypatch.setattr(devices, "PATIENCE", 0.5 if "sleep" in code else 30)
        real = check.ask
        monkeypatch.setattr(devices, "ask", lambda words, s, env, c=code, r=real: r([words[0], "-c", c], s, env))
        found = devices.checks()[0]
        assert found.status == "failed"
        assert words in found.found


def test_torch_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process really runs; without a GPU it says what this torch is built for."""
    if devices.device_files():
        pytest.skip("this machine has a GPU")
    assert devices.checks() == [Check("devices", "ok", devices.NO_GPU)]
    monkeypatch.setattr(devices, "device_files", lambda: True)
    import torch

    assert ("built for CPU only" in devices.checks()[0].found) == (torch.version.cuda is None)


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


# -- configs and port ------------------------------------------------------------------------------------------------


def test_shipped_configs_and_why_others_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "gpus", lambda: 0)
    monkeypatch.setattr(plans, "installed", lambda name: None)
    runs = {name for name in shipped() if not plans.why_not(name)}
    assert runs == {"debug", "cpu", "cpu_bf16", "cpu_fsdp2"}
    assert plans.why_not("cpu_zero1") == "DeepSpeed is not installed"
    assert plans.why_not("ddp") == "no GPU"
    monkeypatch.setattr(plans, "gpus", lambda: 1)
    assert "one process" in plans.why_not("ddp")
    monkeypatch.setattr(plans, "installed", lambda name: "0.19.8")
    monkeypatch.setattr(plans, "gpus", lambda: 2)
    found = plans.checks(None)[0]
    assert set(re.findall(r"\w+_multinode", found.found)) == {
        f"{name}_multinode" for name in ("ddp", "fsdp2", "zero2", "zero3")
    }
    assert "needs GPUs and the address" in found.found


def test_the_config_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plans, "gpus", lambda: 0)
    plan, found = plans.chosen(None, 3)
    assert plan
    assert (plan.config, plan.ranks, found.status) == ("cpu", 3, "ok")
    assert "debug" in found.found
    plan, found = plans.chosen("ddp", None)
    assert plan is None
    assert (found.status, "needs GPUs" in found.found) == ("failed", True)
    alone = tmp_path / "alone.yaml"
    alone.write_text(shipped()["cpu"].read_text().replace("MULTI_GPU", "MULTI_CPU"))
    assert "MULTI_CPU" in plans.chosen(str(alone), None)[1].found
    monkeypatch.setattr(plans, "installed", lambda name: None)
    assert "rankzero[deepspeed]" in plans.chosen("cpu_zero2", None)[1].fix
    for config, nproc in (("nosuch", None), ("debug", 2)):
        with pytest.raises(UsageError):
            plans.chosen(config, nproc)


def test_accelerates_default_file_that_trains_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert only(plans.checks(None), "accelerate's default").status == "ok"
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("{distributed_type: MULTI_CPU, num_processes: 2}")
    found = only(plans.checks(None), "accelerate's default")
    assert found.status == "warning"
    assert "MULTI_CPU" in found.found


def _with_port(folder: Path, port: object, name: str = "cpu", **more: object) -> configs.LaunchPlan:
    values = yaml.safe_load(shipped()[name].read_text()) | {"main_process_port": port} | more
    path = folder / "port.yaml"
    path.write_text(yaml.safe_dump(values))
    return configs.describe(path)


def test_the_port_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        found = plans._port(_with_port(tmp_path, taken))
        assert (found.status, f"{taken} is taken" in found.found) == ("failed", True), found
    monkeypatch.setattr(plans, "EPHEMERAL", tmp_path / "range")
    assert plans._port(_with_port(tmp_path, taken)).status == "ok"
    (tmp_path / "range").write_text(f"{taken}\t65000\n")
    assert "hands out" in plans._port(_with_port(tmp_path, taken)).problem
    assert plans._port(_with_port(tmp_path, 0)).found.startswith("any free one")
    assert plans._port(_with_port(tmp_path, 70_000)).status == "failed"
    assert plans._port(configs.describe("debug")).status == "skipped"
    many = _with_port(tmp_path, 29500, "ddp_multinode", machine_rank=1)
    assert plans._port(many).status == "skipped"


# -- disk ------------------------------------------------------------------------------------------------------------


def test_disk_of_a_run_directory_that_is_not_there(tmp_path: Path) -> None:
    found = disk.checks(tmp_path / "runs" / "x", speed=True)
    assert {one.name: one.status for one in found if one.name != "disk space"} == {"saving": "ok", "disk speed": "ok"}
    assert re.search(r"\d+ MB/s written and flushed, \d+ MB/s read", only(found, "disk speed").found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "status"), [(2**20, "failed"), (2**30, "warning"), (2**40, "ok")])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**41, 0, free))
    monkeypatch.setattr(disk, "_mount", lambda folder: ("ext4", "/dev/x"))
    assert only(disk.checks(tmp_path, speed=False), "disk space").status == status


def test_a_disk_in_memory_and_one_out_of_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "_mount", lambda folder: ("tmpfs", "tmpfs"))
    monkeypatch.setattr(disk, "LITTLE", 0)
    monkeypatch.setattr(disk, "TOO_LITTLE", 0)
    assert "lies in memory" in only(disk.checks(tmp_path, speed=False), "disk space").problem
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:5], 1000, 5, 5, *real[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    assert "5 more files" in only(disk.checks(tmp_path, speed=False), "disk space").problem


def test_a_disk_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.tempfile, "TemporaryDirectory", full)
    monkeypatch.setattr(disk.tempfile, "TemporaryFile", full)
    found = disk.checks(tmp_path, speed=True)
    assert [only(found, name).status for name in ("saving", "disk speed")] == ["failed", "failed"]
    assert "No space left" in only(found, "saving").found


def test_locks_that_do_not_lock_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(file: object, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lambda file, kind: None)
    assert "two holders at once" in only(disk.checks(tmp_path, speed=False), "saving").problem
    monkeypatch.setattr(fcntl, "flock", none)
    found = only(disk.checks(tmp_path, speed=False), "saving")
    assert (found.status, "No locks available" in found.problem) == ("failed", True)
    assert list(tmp_path.iterdir()) == []


def test_writing_in_place_would_be_seen_as_torn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def in_place(self: Path, target: Path) -> None:
        target.write_text("")
        time.sleep(0.001)
        target.write_text(self.read_text())

    monkeypatch.setattr(Path, "replace", in_place)
    assert "showed a reader a part" in only(disk.checks(tmp_path, speed=False), "saving").problem


def test_a_slow_disk_and_one_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "measure", lambda folder: (2**26, 1e7, 1e8))
    found = only(disk.checks(tmp_path, speed=True), "disk speed")
    assert (found.status, "100 s" in found.problem) == ("warning", True)
    monkeypatch.setattr(disk, "PATIENCE", 0.2)
    monkeypatch.setattr(disk, "_space", lambda run, folder: time.sleep(2))
    assert disk.checks(tmp_path, speed=False)[0].found == "no answer within 0.2 s"


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


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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

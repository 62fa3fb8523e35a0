"""`rankzero doctor`: cores, memory, devices and disk, each with a planted fault."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from doctor_world import check

from launch.configs import gpu_device_files
from launch.tools.doctor import devices, disk, machine
from trainer import cpu_info

# -- machine ---------------------------------------------------------------------------------------------------------


def test_cpu_and_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpuinfo", lambda *keys: "Some CPU" if "model name" in keys else "avx2 amx_bf16")
    result = check(machine.check_cpu)
    assert result.status == "ok"
    assert "Some CPU" in result.found
    assert "avx2, amx_bf16" in result.found
    monkeypatch.setattr(machine, "cpuinfo", lambda *keys: "sse2")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert check(machine.check_cpu).status == "warning"


def test_little_memory_by_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_limit", lambda: (float(2**30), float(2**29)))
    result = check(machine.check_memory)
    assert (result.status, result.problem) == ("warning", "only 512 MiB left")
    monkeypatch.setattr(machine, "memory_limit", lambda: (float("inf"), 0.0))
    assert "control group" not in check(machine.check_memory).found


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
    """Cached files do not count as used."""
    (tmp_path / folder).mkdir(parents=True)
    for name, text in (files | {"memory.stat": "inactive_file 600\nactive_file 400\nshmem 5"}).items():
        (tmp_path / folder / name).write_text(text + "\n")
    (tmp_path / "own").write_text("3:cpuset:/other\n" + line)
    monkeypatch.setattr(cpu_info, "_GROUPS", tmp_path)
    monkeypatch.setattr(cpu_info, "_OWN_GROUPS", tmp_path / "own")
    assert machine.memory_limit() == (4096.0, 2000.0)


def test_shared_memory_that_is_small_or_has_unused_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20, 0, 64 * 2**20))
    assert "--shm-size" in check(machine.check_shared_memory).fix
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**34, 0, 2**34))
    assert check(machine.check_shared_memory).status == "ok"
    (tmp_path / "deepspeed_allreduce_buffer_0_1").write_bytes(b"x" * 2048)
    (tmp_path / "other").write_bytes(b"x")
    result = check(machine.check_shared_memory)
    assert (result.status, result.fix) == ("warning", f"rm {tmp_path}/deepspeed_allreduce_buffer_0_1")
    assert "1 files that no process uses, 2 KiB" in result.found
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SHARED", tmp_path / "missing")
    assert check(machine.check_shared_memory).status == "failed"


def test_a_file_that_a_process_has_mapped_is_used(tmp_path: Path) -> None:
    path = tmp_path / "torch_1_2"
    path.write_bytes(b"x" * 4096)
    assert machine.unused_files(tmp_path) == [path]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert machine.unused_files(tmp_path) == []


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    result = check(machine.check_open_files)
    assert (result.status, result.fix) == ("warning", "ulimit -n 4096")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert check(machine.check_open_files).status == "ok"


# -- devices ---------------------------------------------------------------------------------------------------------


GPU = {"name": "NVIDIA H200", "memory": 139 * 2**30, "capability": [9, 0]}
SEEN: dict[str, Any] = {"build": "13.0", "nccl": "2.28.9", "error": "", "gpus": [GPU]}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", ["NVIDIA H200, 139 GiB, compute capability 9.0, bf16", "NCCL 2.28.9"]),
        ({"gpus": [GPU | {"capability": [7, 0]}]}, "ok", ["7.0, no bf16"]),
        ({"error": "no kernel image is available"}, "failed", ["cannot use GPU 1: no kernel image", "torch build"]),
        ({"gpus": [GPU, GPU], "nccl": None}, "failed", ["has no NCCL"]),
        ({"gpus": [], "build": None}, "warning", ["built for CPUs only"]),
        ({"gpus": [], "error": "driver is too old"}, "failed", ["cannot use GPU 0: driver is too old", "--gpus all"]),
    ],
)
def test_devices(changes: dict[str, Any], status: str, words: list[str]) -> None:
    result = check(devices.report, SEEN | changes)
    assert result.status == status, result
    assert all(word in result.found + result.fix for word in words), result


def test_a_driver_that_hangs_or_crashes_does_not_end_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_device_files", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    real = subprocess.run
    for code, words in (("import time; time.sleep(60)", "within 0.5 s"), ("import os; os.abort()", "exit code -6")):
        monkeypatch.setattr(devices, "SECONDS", 0.5 if "sleep" in code else 30)
        monkeypatch.setattr(devices.subprocess, "run", lambda words, c=code, **more: real([words[0], "-c", c], **more))
        result = check(devices.check_devices)
        assert (result.status, words in result.found) == ("failed", True), result


def test_torch_looks_for_gpus_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process really runs. Without a GPU it reports what this torch is built for."""
    if gpu_device_files():
        pytest.skip("this machine has a GPU")
    assert "no GPU: configs debug" in check(devices.check_devices).found
    monkeypatch.setattr(devices, "gpu_device_files", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES=''" in check(devices.check_devices).found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    import torch

    assert ("built for CPUs only" in check(devices.check_devices).found) == (torch.version.cuda is None)


# -- disk ------------------------------------------------------------------------------------------------------------


def test_the_disk_of_a_run_directory_that_does_not_exist(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    assert check(disk.check_space, run).found.startswith(f"{run}: ")
    assert check(disk.check_saving, run).status == "ok"
    assert re.search(r"\d+ MB/s written and flushed", check(disk.check_speed, run).found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "status"), [(2**20, "failed"), (2**30, "warning"), (2**40, "ok")])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**41, 0, free))
    monkeypatch.setattr(disk, "_mount", lambda folder: ("ext4", "/dev/x"))
    assert check(disk.check_space, tmp_path).status == status


def test_a_disk_in_memory_and_one_without_free_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "_mount", lambda folder: ("tmpfs", "tmpfs"))
    monkeypatch.setattr(disk, "LITTLE", 0)
    monkeypatch.setattr(disk, "TOO_LITTLE", 0)
    assert "is in memory" in check(disk.check_space, tmp_path).problem
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:5], 1000, 5, 5, *real[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    assert "only 5 more files" in check(disk.check_space, tmp_path).problem


def test_a_disk_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("TemporaryDirectory", "TemporaryFile"):
        monkeypatch.setattr(disk.tempfile, name, full)
    for function in (disk.check_saving, disk.check_speed):
        result = check(function, tmp_path)
        assert (result.status, "No space left" in result.found) == ("failed", True)


def test_locks_that_do_not_work_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The heartbeat of a run still keeps a second writer out."""

    def unsupported(file: object, kind: int) -> None:
        raise OSError(37, "No locks available")

    for flock in (lambda file, kind: None, unsupported):
        monkeypatch.setattr(fcntl, "flock", flock)
        result = check(disk.check_saving, tmp_path)
        assert (result.status, "flock does not work" in result.problem) == ("warning", True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_replaced_atomically_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def in_place(self: Path, target: Path) -> None:
        target.write_text("")
        time.sleep(0.001)
        target.write_text(self.read_text())

    monkeypatch.setattr(Path, "replace", in_place)
    assert "a part or nothing" in check(disk.check_saving, tmp_path).problem


def test_a_slow_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "measure", lambda folder: (10**8, 10.0))
    result = check(disk.check_speed, tmp_path)
    assert (result.status, "takes 100 s" in result.problem) == ("warning", True)

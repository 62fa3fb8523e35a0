"""`rankzero doctor`: cores, memory, devices and disk, each with a planted fault."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from doctor_helpers import check

from launch.configs import gpu_device_files
from launch.tools.doctor import devices, disk, machine
from launch.tools.doctor.diagnosis import run_check
from trainer import cpu_info

# -- machine ---------------------------------------------------------------------------------------------------------


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
    result = check(machine.check_memory)
    assert (result.status, result.problem) == ("warning", "only 2.0 KiB left")
    (tmp_path / folder / next(iter(files))).write_text("max\n" if "max" in next(iter(files)) else f"{2**63}\n")
    assert "KiB" not in check(machine.check_memory).found


def test_shared_memory_that_is_small_or_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 * 2**20, 0, 64 * 2**20))
    assert "--shm-size" in check(machine.check_shared_memory).fix
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**34, 0, 2**34))
    assert check(machine.check_shared_memory).status == "ok"
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SHARED", tmp_path / "missing")
    result = run_check("shared memory", machine.check_shared_memory)
    assert (result.status, str(tmp_path / "missing") in result.found) == ("failed", True)


# -- devices ---------------------------------------------------------------------------------------------------------


GPU = ["NVIDIA H200", 139 * 2**30, 9, 0]
SEEN: dict[str, Any] = {"build": "13.0", "error": "", "gpus": [GPU]}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", ["NVIDIA H200, 139 GiB, compute capability 9.0, bf16"]),
        ({"gpus": [[*GPU[:2], 7, 0]]}, "ok", ["7.0, no bf16"]),
        ({"error": "no kernel image is available"}, "failed", ["cannot use GPU 1: no kernel image", "torch build"]),
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
    result = check(disk.check_disk, run, False)
    assert result.found.startswith(f"{run}: ")
    assert re.search(r"\d+ MB/s written and flushed", result.found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "status"), [(2**20, "failed"), (2**30, "warning"), (2**40, "ok")])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**41, 0, free))
    assert check(disk.check_disk, tmp_path, True).status == status


def test_a_disk_without_free_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:5], 1000, 5, 5, *real[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    assert "only 5 more files" in check(disk.check_disk, tmp_path, True).problem


def test_a_disk_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    for name, quick in (("TemporaryDirectory", True), ("TemporaryFile", False)):
        with monkeypatch.context() as patch:
            patch.setattr(disk.tempfile, name, full)
            result = run_check("disk", partial(disk.check_disk, run=tmp_path, quick=quick))
        assert (result.status, "No space left" in result.found) == ("failed", True)
        assert "choose another --run" in result.fix


def test_locks_that_do_not_work_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The heartbeat of a run still keeps a second writer out."""

    def unsupported(file: object, kind: int) -> None:
        raise OSError(37, "No locks available")

    for flock in (lambda file, kind: None, unsupported):
        monkeypatch.setattr(fcntl, "flock", flock)
        result = check(disk.check_disk, tmp_path, True)
        assert (result.status, "flock does not work" in result.problem) == ("warning", True)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "measure", lambda folder: (10**8, 10.0))
    result = check(disk.check_disk, tmp_path, False)
    assert (result.status, "takes 100 s" in result.problem) == ("warning", True)

"""`rankzero doctor`: cores, memory, devices and disk, each with a planted fault."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from doctor_world import only

from launch.doctoring import check, devices, disk, machine
from launch.doctoring.check import Check

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
    awake = threading.Event()
    monkeypatch.setattr(disk, "_space", lambda run, folder: awake.wait(60))
    assert disk.checks(tmp_path, speed=False)[0].found == "no answer within 0.2 s"
    awake.set()
    for thread in threading.enumerate():  # it writes into a folder that is about to be removed
        if thread.name == "doctor-disk":
            thread.join()

"""The ranks of `rankzero doctor`: one that stops or dies is named in time, and no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from doctor_helpers import RANK_CHECKS, check
from slow import slow_except

from launch.configs import choose
from launch.findings import Check
from launch.tools.doctor import collectives, ranks

MODULE = "launch.tools.doctor.collectives"


@pytest.mark.parametrize(
    ("log", "found", "fix"),
    [
        ("noise\nrankzero: rank 0: UsageError: this config needs DeepSpeed\n", "rank 0: UsageError: this", "correct"),
        ("rankzero: rank 1 (process 101) was killed by SIGKILL (why)\n", "rank 1 (process 101) was", "out of memory"),
        ("rankzero: no progress: rank 1 hangs; its stack, also in x:\n  File", "no progress: rank 1 hangs;", "slow"),
        ("rankzero: no progress: rank 1 hangs\nrankzero: rank 1 was killed by SIGKILL", "rank 1 hangs", "slow"),
        ("rankzero: no progress: rank 1 hangs: the process is stopped", "rank 1 hangs", "kill -STOP"),
        ("Traceback\nOSError: last words", "OSError: last words; exit code 1", "--timeout"),
        ("", "no rank printed a message; exit code 1", "GLOO_SOCKET_IFNAME"),
    ],
)
def test_the_messages_of_the_ranks_are_the_finding(log: str, found: str, fix: str) -> None:
    result = check(ranks.report_failure, log, "exit code 1")
    assert (result.status, found in result.found, fix in result.fix) == ("failed", True, True), result
    assert "File" not in result.found


@pytest.mark.parametrize(
    ("changes", "row", "status", "words"),
    [
        ({}, {}, "ok", "the same bits"),
        ({}, {"correct": False}, "failed", "the sum is wrong at 64 MiB"),
        ({"same_bits": False}, {}, "failed", "different bits"),
        ({}, {"bus_gb_per_s": 0.01}, "warning", "slow"),
        ({"backend": "nccl", "hosts": ["a", "a"]}, {"bus_gb_per_s": 0.5}, "warning", "slow"),
    ],
)
def test_the_all_reduce(changes: dict[str, Any], row: dict[str, Any], status: str, words: str) -> None:
    rows = [{"bytes": 2**26, "seconds": 0.1, "algorithm_gb_per_s": 1.0, "bus_gb_per_s": 1.0, "correct": True} | row]
    result = {"backend": "gloo", "hosts": ["a", "b"], "latency_seconds": 1e-4, "same_bits": True, "bandwidth": rows}
    result["groups"] = [{"name": "ranks of a copy", "ranks": 2, "bus_gb_per_s": 3.0}]
    found = check(ranks.check_all_reduce, result | changes)
    assert (found.status, words in found.found) == (status, True), found


def test_one_process_has_nothing_to_measure() -> None:
    result: dict[str, Any] = {}
    assert check(ranks.check_ranks, choose("debug", None), 60, False, result).status == "skipped"
    assert check(ranks.check_all_reduce, result).status == "skipped"


# -- real ranks ------------------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_two_ranks(tmp_path: Path) -> None:
    """From a folder with another `trainer`, which must not be imported."""
    (tmp_path / "trainer.py").write_text("raise SystemExit('the wrong trainer')")
    code = "import sys; from launch.cli import main; main()"
    words = [sys.executable, "-P", "-c", code, "doctor", "--json", "--config", "cpu", "--timeout", "400"]
    done = subprocess.run([*words, "--run", tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    answer = json.loads(done.stdout)
    checks = {one["name"]: Check(**one) for one in answer["checks"]}
    assert [checks[name].status for name in RANK_CHECKS] == ["ok", "ok"], (checks, done.stderr)
    assert "2 ranks on " in checks["ranks"].found
    assert [row["bytes"] for row in answer["bandwidth"]] == list(collectives.SIZES)
    for row in answer["bandwidth"]:
        assert row["correct"]
        assert row["algorithm_gb_per_s"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)
        assert row["bus_gb_per_s"] == pytest.approx(row["algorithm_gb_per_s"])  # 2(n-1)/n is 1 for two ranks
    assert "the same bits on all ranks" in checks["all-reduce"].found
    assert done.returncode == (0 if answer["passed"] else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.py"]


@pytest.mark.ranks
@pytest.mark.slow
def test_two_copies_on_two_ranks_each(tmp_path: Path) -> None:
    """HSDP: the groups of a copy and of a part are measured, too."""
    result: dict[str, Any] = {}
    found = check(ranks.check_ranks, choose("cpu_fsdp2_hybrid", None), 400, False, result)
    assert (found.status, "4 ranks on " in found.found) == ("ok", True), found
    assert [(group["name"], group["ranks"]) for group in result["groups"]] == [
        ("ranks of a copy", 2), ("ranks with the same part", 2),
    ]  # fmt: skip
    assert all(group["bus_gb_per_s"] > 0 for group in result["groups"])
    assert "ranks of a copy (2): " in check(ranks.check_all_reduce, result).found


def _ranks(above: psutil.Process) -> dict[int, tuple[psutil.Process, Path]]:
    """The ranks below a process, each with its temporary folder."""
    found = {}
    for process in above.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words, env = process.cmdline(), process.environ()
            if MODULE in words and "LOCAL_RANK" in env:
                found[int(env["RANK"])] = (process, Path(words[words.index(MODULE) + 1]))
    return found


def _until(condition: Callable[[], Any], seconds: float = 400) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)
    return found


def _running(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def connected_ranks() -> Iterator[Callable[[], dict[int, tuple[psutil.Process, Path]]]]:
    """The ranks of a measurement that runs in a thread, once the watchdogs of both run."""
    processes: list[psutil.Process] = []

    def connected() -> dict[int, tuple[psutil.Process, Path]]:
        found = _ranks(psutil.Process())
        return found if len(found) == 2 and len(list(found[0][1].glob("hang-rank-*.txt"))) == 2 else {}

    def wait() -> dict[int, tuple[psutil.Process, Path]]:
        found: dict[int, tuple[psutil.Process, Path]] = _until(connected)
        processes.extend(process for process, _ in found.values())
        return found

    yield wait
    for process in _running(processes):
        process.kill()


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("number", "who"), slow_except([(signal.SIGSTOP, 1), (signal.SIGSTOP, 0), (signal.SIGKILL, 1)], (signal.SIGKILL, 1))
)
def test_a_rank_that_stops_is_named_and_no_process_is_left(
    connected_ranks: Callable[[], dict[int, tuple[psutil.Process, Path]]],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    who: int,
) -> None:
    monkeypatch.setattr(ranks, "NO_PROGRESS_SHARE", 100)  # 4 s
    outcomes: list[Check] = []
    plan = choose("cpu", None)
    thread = threading.Thread(target=lambda: outcomes.append(check(ranks.check_ranks, plan, 400, False, {})))
    thread.start()
    started = connected_ranks()
    time.sleep(2)  # for the watchdogs to publish the process numbers
    began = time.monotonic()
    started[who][0].send_signal(number)
    thread.join()
    assert outcomes[0].status == "failed"
    assert f"rank {who} (process {started[who][0].pid}" in outcomes[0].found
    assert ("kill -STOP" if number == signal.SIGSTOP else "out of memory") in outcomes[0].fix
    assert time.monotonic() - began < 30
    _until(lambda: not _running([process for process, _ in started.values()]), 10)
    assert not started[0][1].exists()


@pytest.mark.ranks
@pytest.mark.slow
def test_no_process_is_left_when_doctor_is_killed(tmp_path: Path) -> None:
    code = "from launch.tools.doctor.diagnosis import diagnose; diagnose('cpu')"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    doctor = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        started = _until(lambda: found if len(found := _ranks(psutil.Process(doctor.pid))) == 2 else None)
        below = psutil.Process(doctor.pid).children(recursive=True)
    finally:
        doctor.kill()
        doctor.wait()
    assert {process.pid for process, _ in started.values()} < {process.pid for process in below}
    try:
        _until(lambda: not _running(below), 30)
    finally:
        for process in _running(below):
            process.kill()

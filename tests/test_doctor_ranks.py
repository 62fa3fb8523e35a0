"""The ranks of `rankzero doctor`: one that stops, hangs or dies is named in time, and nothing is left running."""

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
from doctor_world import only

from launch.configs import choose
from launch.doctoring import between, family, rank
from launch.doctoring.check import Check

# -- between the ranks -----------------------------------------------------------------------------------------------


def test_a_roll_call_names_those_who_did_not_come() -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)
    assert rank.roll_call(store, "alone", 0, 1, 5) == []
    began = time.monotonic()
    assert rank.roll_call(store, "three of five", 1, 5, 0.3) == [0, 2, 3, 4]
    assert time.monotonic() - began < 5
    assert rank.roll_call(store, "three of five", 3, 5, 0.3) == [0, 2, 4]


def _diaries(**stages: list[dict[str, Any]]) -> family.Diaries:
    found = {}
    for name, entries in stages.items():
        begin = {"stage": "loading", "pid": 100 + int(name[1:])}
        found[int(name[1:])] = [{"at": 0.0, **entry} for entry in [begin, *entries]]
    return family.Diaries(found)


CONNECTED = [{"stage": "connecting"}, {"stage": "latency"}]


@pytest.mark.parametrize(
    ("diaries", "code", "states", "log", "name", "words"),
    [
        (
            _diaries(r0=[*CONNECTED, {"missing": [1], "stage_missed": "all-reduce of 4096 bytes"}], r1=CONNECTED),
            *(None, {}, "", "barrier"),
            ["rank 1 (process 101, running, in 'latency') did not come within 3 s", "before all-reduce of 4096 bytes"],
        ),
        (
            _diaries(r0=CONNECTED, r1=CONNECTED),
            *(None, {1: "stopped by a signal"}, "", "barrier", ["rank 1 (process 101, stopped by a signal", "STOP"]),
        ),
        (_diaries(r0=CONNECTED, r1=[]), None, {}, "", "ranks", ["rank 1 (process 101, running, in 'loading') keeps"]),
        (_diaries(r0=CONNECTED), None, {}, "", "ranks", ["rank 1 (not of this machine, or never started) keeps"]),
        (_diaries(r0=CONNECTED, r1=CONNECTED), None, {}, "", "barrier", ["wait for each other", "--timeout"]),
        (_diaries(), None, {}, "", "ranks", ["no rank was started"]),
        (
            _diaries(r0=[{"error": "UsageError: this config needs DeepSpeed"}]),
            *(1, {}, "noise\n", "ranks", ["rank 0: UsageError: this config needs DeepSpeed", "cpu.yaml"]),
        ),
        (_diaries(), 1, {}, "Traceback\nOSError: last words", "ranks", ["OSError: last words"]),
        (
            _diaries(r0=[*CONNECTED, {"missing": [1], "stage_missed": "barrier"}], r1=CONNECTED),
            *(1, {}, "rankzero: rank 1 (process 101) was killed by SIGKILL (why)\n", "ranks"),
            ["rank 1 (process 101) was killed by SIGKILL", "out of memory"],
        ),
        (
            _diaries(r0=[*CONNECTED, {"missing": [1], "stage_missed": "barrier"}], r1=CONNECTED),
            *(None, {1: "dead"}, "the launcher has not noticed", "ranks", ["rank 1 (process 101, dead, in 'latency')"]),
        ),
        (_diaries(), 0, {}, "", "ranks", ["ended with 0"]),  # all left without a result
    ],
)
def test_the_one_who_holds_up_the_others_is_named(
    diaries: family.Diaries, code: int | None, states: dict[int, str], log: str, name: str, words: list[str]
) -> None:
    checks, rows = between.judge(choose("cpu", None), family.Outcome(diaries, code, "too late", states, log), 3)
    found = only(checks, name)
    assert rows == []
    assert found.status == "failed"
    assert {one.status for one in checks if one is not found} == {"skipped"}
    assert all(word in found.found + found.fix for word in words), found


@pytest.mark.parametrize(
    ("changes", "row", "status", "words"),
    [
        ({}, {}, "ok", "the same bits"),
        ({}, {"correct": False}, "failed", "the sum is wrong at 64 MiB"),
        ({"bits_equal": False}, {}, "failed", "different bits"),
        ({}, {"bus_gb_per_s": 0.01}, "warning", "slow"),
        ({"backend": "nccl"}, {"bus_gb_per_s": 0.5}, "warning", "slow for GPUs"),
    ],
)
def test_results_are_judged(changes: dict[str, Any], row: dict[str, Any], status: str, words: str) -> None:
    rows = [{"bytes": 2**26, "seconds": 0.1, "algorithm_gb_per_s": 1.0, "bus_gb_per_s": 1.0, "correct": True} | row]
    result = {"engine": "ddp", "backend": "gloo", "ranks": 2, "places": [["a", "cpu"], ["b", "cpu"]]}
    times = {"connect_seconds": 0.1, "latency_seconds": 1e-4, "barrier_seconds": 1e-3}
    entry = {"result": {**result, **times, "bits_equal": True, "bandwidth": rows, **changes}}
    outcome = family.Outcome(_diaries(r0=[*CONNECTED, entry]), 0, "", {}, "")
    checks, table = between.judge(choose("cpu", None), outcome, 3)
    assert table == rows
    found = only(checks, "all-reduce")
    assert (found.status, words in found.found) == (status, True), found
    assert "1 on a, 1 on b" in only(checks, "ranks").found


def test_one_process_has_nobody_to_measure() -> None:
    assert {one.status for one in between.checks(choose("debug", None), 60, 15)[0]} == {"skipped"}


# -- real ranks ------------------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_two_ranks_for_real(tmp_path: Path) -> None:
    """From a folder with another `trainer`, which must not be taken."""
    (tmp_path / "trainer.py").write_text("raise SystemExit('the wrong trainer')")
    code = "import sys, typer; from launch.doctor import doctor_command; from trainer.cli import run_app; "
    code += "app = typer.Typer(); app.command('doctor')(doctor_command); sys.exit(run_app(app))"
    words = [sys.executable, "-P", "-c", code, "--json", "--config", "cpu", "--timeout", "400", "--run", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    answer = json.loads(done.stdout)
    checks = [Check(**one) for one in answer["checks"]]
    assert [only(checks, name).status for name in between.NAMES] == ["ok", "ok", "ok"], (checks, done.stderr)
    assert "2 ranks (2 on " in only(checks, "ranks").found
    assert [row["bytes"] for row in answer["bandwidth"]] == list(rank.SIZES)
    for row in answer["bandwidth"]:
        assert row["correct"]
        assert row["algorithm_gb_per_s"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)
        assert row["bus_gb_per_s"] == pytest.approx(row["algorithm_gb_per_s"])  # 2(n-1)/n is 1 for two ranks
    assert "the same bits on all ranks" in only(checks, "all-reduce").found
    assert done.returncode == (0 if answer["passed"] else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.py"]


def _ranks(above: psutil.Process) -> dict[int, tuple[psutil.Process, Path]]:
    """The ranks below a process, each with the folder of its diary."""
    found = {}
    for process in above.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words, env = process.cmdline(), process.environ()
            if "launch.doctoring.rank" in words and "LOCAL_RANK" in env:
                found[int(env["RANK"])] = (process, Path(words[words.index("launch.doctoring.rank") + 1]))
    return found


def _until(condition: Callable[[], Any], seconds: float = 400) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that nobody has taken note of after its end is dead."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def measuring() -> Iterator[Callable[[], dict[int, tuple[psutil.Process, Path]]]]:
    """The ranks of a measurement that has begun in a thread, once all have connected."""
    processes: list[psutil.Process] = []

    def begun() -> dict[int, tuple[psutil.Process, Path]]:
        found = _ranks(psutil.Process())
        return found if len(found) == 2 and family.Diaries.read(found[0][1]).connected(2) else {}

    def wait() -> dict[int, tuple[psutil.Process, Path]]:
        found: dict[int, tuple[psutil.Process, Path]] = _until(begun)
        processes.extend(process for process, _ in found.values())
        return found

    yield wait
    for process in _alive(processes):
        process.kill()


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("number", "who", "name"),
    [(signal.SIGSTOP, 1, "barrier"), (signal.SIGSTOP, 0, "barrier"), (signal.SIGKILL, 1, "ranks")],
)
def test_a_rank_that_stops_is_named_and_nothing_is_left(
    measuring: Callable[[], dict[int, tuple[psutil.Process, Path]]], number: signal.Signals, who: int, name: str
) -> None:
    outcomes: list[family.Outcome] = []
    plan = choose("cpu", None)
    thread = threading.Thread(target=lambda: outcomes.append(family.run(plan, 400, 3)))
    thread.start()
    ranks = measuring()
    began = time.monotonic()
    ranks[who][0].send_signal(number)
    thread.join()
    took = time.monotonic() - began
    checks, _ = between.judge(plan, outcomes[0], 3)
    found = only(checks, name)
    assert found.status == "failed", (checks, outcomes[0].log)
    assert f"rank {who} (process {ranks[who][0].pid}" in found.found
    if number == signal.SIGSTOP:
        assert "stopped by a signal" in found.found
        assert f"rank {1 - who} (" not in found.found
        assert took < 10
    assert _alive([process for process, _ in ranks.values()]) == []
    assert not ranks[0][1].exists()


@pytest.mark.ranks
def test_nothing_is_left_when_the_doctor_is_killed(tmp_path: Path) -> None:
    code = "from launch.doctor import diagnose; diagnose('cpu')"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    doctor = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        ranks = _until(lambda: found if len(found := _ranks(psutil.Process(doctor.pid))) == 2 else None)
        below = psutil.Process(doctor.pid).children(recursive=True)
    finally:
        doctor.kill()
        doctor.wait()
    assert {process.pid for process, _ in ranks.values()} < {process.pid for process in below}
    try:
        _until(lambda: not _alive(below), 30)
    finally:
        for process in _alive(below):
            process.kill()

"""The run directory: small files that are whole or as before, one writer at a time, a status that beats."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import rundir
from trainer.errors import CheckpointError, UsageError
from trainer.rundir import RunDir, Status, read_json, without_nan, write_atomically, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- small files -------------------------------------------------------------------------------------------------------


def test_json_comes_back_and_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": [1, None, "ä"], "a": 0.1})
    assert read_json(path) == {"b": [1, None, "ä"], "a": 0.1}
    assert "ä" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("\n")
    assert read_json(tmp_path / "missing.json") is None
    assert names(tmp_path) == ["x.json"]


def test_nan_and_inf_are_null_at_any_depth() -> None:
    assert without_nan({"a": math.nan, "b": [1, (-math.inf, 2.5)], "c": {"d": "NaN"}}) == {
        "a": None, "b": [1, [None, 2.5]], "c": {"d": "NaN"}
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "nonsense"])
def test_what_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"status\.json is not JSON"):
        read_json(path)


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(CheckpointError, match=r"x\.json cannot be written: No space left") as caught:
            write_atomically(path, "new")
    assert caught.value.exit_code == 4
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.json"], "the temporary file is away"
    write_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        write_atomically(disk / "x", "old")
        with pytest.raises(CheckpointError, match="No space left"):
            write_atomically(disk / "x", "new" * 10_000)
        assert (disk / "x").read_text() == "old"
        assert names(disk) == ["x"]
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path, stop = tmp_path / "x.json", threading.Event()
    write_json(path, {"n": 0, "padding": "x" * 5000})

    def write() -> None:
        for n in range(10**6):
            if stop.is_set():
                return
            write_json(path, {"n": n, "padding": "x" * (5000 + n % 7000)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert "n" in read_json(path)
    finally:
        stop.set()
        writer.join()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"run directory .* cannot be made.*--run"):
        RunDir(tmp_path / "file" / "run").create()


def test_set_aside_numbers_what_it_keeps(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.set_aside() is None
    for number in (1, 2):
        run.create()
        (run.path / "mark").write_text(str(number))
        assert run.set_aside() == tmp_path / f"run.old-{number}"
    assert (tmp_path / "run.old-1" / "mark").read_text() == "1"
    assert not run.path.exists()


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    run, path = RunDir(tmp_path), tmp_path / "lines.jsonl"
    for step in (1, 2, 2, 3, 4):
        run.append(path, {"step": step, "file": "Mädchen.jsonl"})
    return path


def test_lines_after_a_step_are_dropped(lines: Path) -> None:
    run = RunDir(lines.parent)
    run.cut_after(lines, 2)
    assert [json.loads(line)["step"] for line in lines.read_text(encoding="utf-8").splitlines()] == [1, 2, 2]
    run.append(lines, {"step": 3})
    assert json.loads(lines.read_text(encoding="utf-8").splitlines()[-1]) == {"step": 3}
    run.cut_after(lines.parent / "missing.jsonl", 2)


def test_a_half_written_line_is_dropped_wherever_it_was_cut(lines: Path) -> None:
    """Also within a character, and with what a file system leaves after a power cut."""
    content = lines.read_bytes()
    last = len(content.rstrip(b"\n").rpartition(b"\n")[2]) + 1
    whole = content[:-last]
    for tail in [content[-last:][:cut] for cut in range(1, last - 1)] + [b"\0" * 50, b"\xff\xfe"]:
        lines.write_bytes(whole + tail)
        RunDir(lines.parent).cut_after(lines, 9)
        assert lines.read_bytes() == whole, tail


# -- one writer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def claim(run: RunDir, pid: int, **changes: Any) -> None:
    """A lock as another process has left it."""
    run.create()
    holder = {"pid": pid, "born": rundir._born(pid), "host": os.uname().nodename, "job": None, **changes}
    run.lock_file.write_text(json.dumps(holder))


def take_over(run: RunDir) -> None:
    with run.locked():
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert not run.lock_file.exists()


def test_a_lock_is_held_and_given_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked(), pytest.raises(UsageError, match=f"in use by process {os.getpid()} ") as caught, run.locked():
        pass
    assert caught.value.exit_code == 2
    take_over(run)
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    assert not run.lock_file.exists()


def test_a_living_holder_is_named_and_a_dead_one_taken_over(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    run = RunDir(tmp_path / "run")
    claim(run, sleeper.pid)
    with pytest.raises(UsageError, match=f"process {sleeper.pid} on .*--run"), run.locked():
        pass
    sleeper.kill()
    while Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    take_over(run)  # a zombie
    claim(run, sleeper.pid, born="5")
    sleeper.wait()
    take_over(run)  # gone


def test_a_process_number_that_another_process_has_now_is_no_holder(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    run = RunDir(tmp_path / "run")
    claim(run, sleeper.pid, born="1")
    take_over(run)


def test_a_holder_on_another_machine_counts_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    claim(run, 1, host="elsewhere", job="77")
    with pytest.raises(UsageError, match="process 1 on elsewhere"), run.locked():
        pass
    os.utime(run.lock_file, (time.time() - 61, time.time() - 61))
    take_over(run)
    claim(run, 1, host="elsewhere", job="77")
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # the same job, requeued on another node
    take_over(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "17"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, text: str) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.lock_file.write_text(text)
    take_over(run)


def test_a_lock_taken_over_meanwhile_is_not_removed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked():
        claim(run, sleeper.pid)
    assert json.loads(run.lock_file.read_text())["pid"] == sleeper.pid


def test_a_lock_file_removed_while_it_was_waited_for_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder leaves between our opening of the file and our lock on it: what we hold has no name any more."""
    run, flock, times = RunDir(tmp_path / "run"), fcntl.flock, [0]

    def late(file: Any, how: int) -> None:
        times[0] += 1
        if times[0] == 1:
            run.lock_file.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    take_over(run)


def test_only_one_of_many_gets_the_lock(tmp_path: Path) -> None:
    """Processes that start at once, over a dead one's lock."""
    run, count = RunDir(tmp_path / "run"), 12
    claim(run, os.getpid(), born="1")
    start = tmp_path / "start"
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            while not start.exists():
                time.sleep(0.001)
            try:
                with run.locked():
                    time.sleep(1.0)
                os._exit(0)
            except UsageError:
                os._exit(2)
            finally:
                os._exit(1)
        children.append(child)
    start.touch()
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0] + [2] * (count - 1)


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_beats_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rundir.HEARTBEAT_SECONDS <= 2.0
    monkeypatch.setattr(rundir, "HEARTBEAT_SECONDS", 0.05)
    run = RunDir(tmp_path)
    with run.locked():
        os.utime(run.lock_file, (0, 0))
        status = Status(run, attempt=3).start()
        first = read_json(run.status)
        assert (first["state"], first["step"], first["attempt"], first["exit_code"]) == ("running", 0, 3, None)
        assert first["pid"] == os.getpid()
        status.update(step=7)
        beats = set()
        until = time.monotonic() + 10
        while len(beats) < 4 and time.monotonic() < until:
            beats.add(read_json(run.status)["updated"])
        assert len(beats) == 4
        assert read_json(run.status)["step"] == 7
        assert run.lock_file.stat().st_mtime > 0, "the lock lives, too"
        status.finish("failed", 5, "NaN")
    last = read_json(run.status)
    assert (last["state"], last["exit_code"], last["error"], last["step"]) == ("failed", 5, "NaN", 7)
    time.sleep(0.3)
    assert read_json(run.status) == last, "nothing beats after the last word"


def test_a_full_disk_does_not_stop_the_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "HEARTBEAT_SECONDS", 0.02)
    run = RunDir(tmp_path)
    status = Status(run, attempt=1).start()

    def full(path: Path, value: Any) -> None:
        raise CheckpointError("full")

    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_json", full)
        time.sleep(0.2)
        with pytest.raises(CheckpointError):
            status.update(step=1)  # where something is to be saved it is told
    before = read_json(run.status)["updated"]
    until = time.monotonic() + 10
    while read_json(run.status)["updated"] == before and time.monotonic() < until:
        time.sleep(0.01)
    assert read_json(run.status)["updated"] > before
    status.finish("finished", 0)

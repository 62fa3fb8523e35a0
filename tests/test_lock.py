"""One writer per run directory, for any clocks, process numbers and hosts of two processes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import wait_until
from slow import slow_except

from trainer import lock, lock_file
from trainer.engine import checkpoint, saving
from trainer.errors import LockLost, UsageError
from trainer.files import publish, read_json, workspace, write_json
from trainer.lock import check_held
from trainer.rundir import RunDir, Status

QUICK = 0.05  # seconds between heartbeats in these tests


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock.HEARTBEAT_SECONDS == 2.0
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", QUICK)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def write_lock_of_another(run: RunDir, pid: int, **changes: Any) -> dict[str, Any]:
    """Write a lock as another process has left it."""
    run.create()
    holder = lock_file.identity() | {"pid": pid, "born": lock_file._born(str(pid))[0], "token": "other"} | changes
    run.lock_file.write_text(json.dumps(holder))
    return holder


def seconds_to_lock(run: RunDir) -> float:
    """Take the lock and give it back. Returns the seconds until it was taken."""
    began = time.monotonic()
    with run.locked():
        seconds = time.monotonic() - began
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert not run.lock_file.exists()
    return seconds


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- who is alive ------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_and_given_back(run: RunDir) -> None:
    found = f"in use by process {os.getpid()} on .* since 2"
    with run.locked(), pytest.raises(UsageError, match=found) as caught, run.locked():
        pass
    assert caught.value.exit_code == 2
    seconds_to_lock(run)
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    assert not run.lock_file.exists()


def test_a_running_holder_is_named_and_a_dead_one_taken_over_at_once(
    run: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    write_lock_of_another(run, sleeper.pid)
    with pytest.raises(UsageError, match=f"process {sleeper.pid} on .*--run"), run.locked():
        pass
    sleeper.kill()
    wait_until(lambda: state_of(sleeper.pid) == "Z")
    assert seconds_to_lock(run) < lock.SILENT_BEATS * QUICK
    write_lock_of_another(run, sleeper.pid, born="5")
    sleeper.wait()
    assert seconds_to_lock(run) < lock.SILENT_BEATS * QUICK


def test_a_process_number_that_another_process_has_now_is_no_holder(
    run: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    write_lock_of_another(run, sleeper.pid, born="1")
    assert seconds_to_lock(run) < lock.SILENT_BEATS * QUICK


ELSEWHERE = {
    "another host": {"host": "elsewhere"},
    "another boot": {"boot": "another"},
    "another PID namespace": {"pid_namespace": "pid:[1]"},
    "no namespace known": {"pid_namespace": None},
    "an older version": {"pid_namespace": None, "boot": None, "token": None},
    "the same SLURM job on another node": {"host": "elsewhere", "job": "77"},
}


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize(
    "skew", slow_except([-120.0, 0.0, 7200.0], 7200.0), ids=["clock behind", "same clock", "clock ahead"]
)
def test_elsewhere_only_the_heartbeat_counts(
    run: RunDir, place: str, skew: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A holder that cannot be looked up is alive while its lock changes, by whatever clock, and dead when not."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    messages: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    monkeypatch.setattr(lock.log, "handlers", [handler])
    caplog.set_level(logging.INFO, "rankzero")
    write_lock_of_another(run, 1, born="5", **ELSEWHERE[place])
    stop = threading.Event()

    def heartbeat() -> None:
        while not stop.wait(QUICK):
            os.utime(run.lock_file, (time.time() + skew,) * 2)

    heart = threading.Thread(target=heartbeat)
    heart.start()
    try:
        with pytest.raises(UsageError, match="in use by process 1 on"), run.locked():
            pass
    finally:
        stop.set()
        heart.join()
    messages.clear()
    seconds = seconds_to_lock(run)
    assert seconds >= lock.SILENT_BEATS * QUICK
    assert sum("waiting 0.25 s for its heartbeat" in message for message in messages) == 1
    assert sum("taken over from process 1 on" in message for message in messages) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "17", "\xff"])
def test_a_lock_that_cannot_be_read_is_taken_over_when_it_does_not_change(run: RunDir, text: str) -> None:
    run.create()
    run.lock_file.write_text(text, encoding="latin-1")
    assert seconds_to_lock(run) >= lock.SILENT_BEATS * QUICK


def test_a_stopped_holder_is_taken_over_when_its_lock_does_not_change(
    run: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    write_lock_of_another(run, sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(sleeper.pid) == "T")
    assert seconds_to_lock(run) >= lock.SILENT_BEATS * QUICK


def test_a_holder_that_may_only_be_slow_is_given_longer(run: RunDir) -> None:
    """A process that cannot be looked up still has the file under flock."""
    write_lock_of_another(run, 1, host="elsewhere")
    with run.lock_file.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert seconds_to_lock(run) >= lock.HELD_BEATS * QUICK


def test_only_one_of_many_gets_the_lock(run: RunDir, tmp_path: Path) -> None:
    """Processes that start at once, over a dead one's lock."""
    count, start = 12, tmp_path / "start"
    write_lock_of_another(run, os.getpid(), born="1")
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


def test_a_child_does_not_keep_the_flock_of_its_dead_parent(run: RunDir, tmp_path: Path) -> None:
    """As the loader's workers live on for a while."""
    parent = os.fork()
    if parent == 0:
        with run.locked():
            if os.fork() == 0:
                (tmp_path / "child").touch()
                while not (tmp_path / "stop").exists():
                    time.sleep(0.01)
                os._exit(0)
            wait_until((tmp_path / "child").exists)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        with run.lock_file.open("r+") as file:
            assert lock_file.flock(file)  # type: ignore[arg-type]
    finally:
        (tmp_path / "stop").touch()


# -- who has lost ------------------------------------------------------------------------------------------------------


def save(run: RunDir, step: int) -> None:
    saving.save(run.checkpoints, step, {"model.safetensors": {"a": torch.ones(2)}}, {"step": step})


def _publish(run: RunDir) -> None:
    publish(workspace(run.model), run.model)


WRITES: dict[str, Callable[[RunDir], Any]] = {
    "metrics": lambda run: run.append(run.metrics, {"step": 9}),
    "ledger": lambda run: run.append(run.ledger, {"step": 9}),
    "lines": lambda run: run.cut_after(run.metrics, 0),
    "status": lambda run: Status(run, 2).finish("finished", 0),
    "manifest": lambda run: write_json(run.manifest, {"stolen": True}),
    "evaluation": lambda run: write_json(run.evaluation("test") / "metrics.json", {}),
    "model": _publish,
    "checkpoint": lambda run: save(run, 9),
    "the same checkpoint": lambda run: save(run, 3),
    "cleaning": lambda run: checkpoint.clean(run.checkpoints, 1, []),
    "setting aside": lambda run: checkpoint._set_aside(run.checkpoints, 1, "why"),
}


def contents(run: RunDir) -> dict[str, bytes]:
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("theirs", ["another holder", "no lock"])
def test_who_has_lost_the_directory_writes_nothing(run: RunDir, write: str, theirs: str) -> None:
    def use() -> None:
        run.create()
        run.evaluation("test").mkdir(parents=True)
        run.model.mkdir()
        run.append(run.metrics, {"step": 1})
        for step in (1, 2, 3):
            save(run, step)
        lock._held[str(run.path)]._stop.set()  # the heartbeat would end this test
        if theirs == "no lock":
            run.lock_file.unlink()
        else:
            write_lock_of_another(run, 4242, host="node-b", since="2026-01-01T00:00:00+0000")
        before = contents(run)
        try:
            with pytest.raises(LockLost) as caught:
                WRITES[write](run)
            assert caught.value.exit_code == 75
            told = (
                "taken over by process 4242 on node-b since 2026" if theirs == "another holder" else "lock was removed"
            )
            assert told in str(caught.value)
        finally:
            assert contents(run) == before

    with pytest.raises(LockLost), run.locked():  # noqa: PT012
        use()
        raise KeyError  # whatever fails in a process that has lost the directory, that is why
    assert run.lock_file.exists() == (theirs == "another holder"), "the lock of the new holder stays"


def test_a_write_elsewhere_is_not_checked(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(LockLost), run.locked():  # noqa: PT012
        run.lock_file.unlink()
        write_json(tmp_path / "run-of-another-name.json", 1)
        write_json(tmp_path / "file.json", 1)
        check_held(run.path)
    check_held(run.path)  # given back: others may write here


def test_the_heartbeat_interrupts_a_process_that_lost_the_lock(run: RunDir) -> None:
    began = time.monotonic()
    with pytest.raises(LockLost), run.locked():  # noqa: PT012
        run.lock_file.unlink()
        time.sleep(60)
    assert time.monotonic() - began < 30


def test_the_lock_beats_and_stops(run: RunDir) -> None:
    with run.locked():
        seen = set()
        wait_until(lambda: seen.add(run.lock_file.stat().st_mtime_ns) or len(seen) >= 4)
        os.utime(run.lock_file, (0, 0))
        Status(run, 1).update(step=1)
        assert run.lock_file.stat().st_mtime > 0, "each update of the status is a heartbeat, too"
    assert not [thread for thread in threading.enumerate() if thread.name == "rankzero-lock"]


@pytest.mark.root
def test_the_lock_beats_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    run = RunDir(disk / "run")
    try:
        with run.locked():
            with pytest.raises(OSError), (disk / "filler").open("wb") as file:
                file.write(b"x" * 100_000)
            seen = set()
            wait_until(lambda: seen.add(run.lock_file.stat().st_mtime_ns) or len(seen) >= 4)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


# -- two real processes ------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from trainer import lock
from trainer.errors import RankzeroError
from trainer.rundir import RunDir
lock.HEARTBEAT_SECONDS = 0.2
run = RunDir(sys.argv[1])
try:
    with run.locked():
        for step in range(10**9):
            run.append(run.metrics, {"step": step, "by": sys.argv[2]})
            time.sleep(0.01)
except RankzeroError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Writer:
    """A process that holds a run directory and writes lines, here or in a PID namespace of its own."""

    def __init__(self, run: RunDir, name: str, *prefix: str) -> None:
        command = [*prefix, sys.executable, "-c", WRITER, str(run.path), name]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def lines(run: RunDir) -> list[str]:
    return [json.loads(line)["by"] for line in run.metrics.read_text().splitlines()]


NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
HOST = ("unshare", "--uts", "sh", "-c", 'hostname node-b; exec "$@"', "-")


@pytest.fixture
def begin(run: RunDir) -> Iterator[Callable[..., Writer]]:
    writers: list[Writer] = []

    def start(*arguments: str) -> Writer:
        writers.append(Writer(run, *arguments))
        return writers[-1]

    yield start
    for writer in writers:
        if writer.process.poll() is None:
            writer.signal(signal.SIGKILL)
            writer.process.communicate()


def can(*prefix: str) -> None:
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces")


@pytest.mark.root
@pytest.mark.parametrize(
    "first",
    [pytest.param((), marks=pytest.mark.slow), NAMESPACE, pytest.param(HOST, marks=pytest.mark.slow)],
    ids=["here", "namespace", "host"],
)
@pytest.mark.parametrize("second", [(), NAMESPACE], ids=["here", "namespace"])
def test_a_stopped_writer_that_wakes_up_late_writes_nothing(
    run: RunDir, begin: Callable[..., Writer], first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    """The second is refused while the first lives, and takes over when it is stopped; the first then leaves with 75."""
    for prefix in filter(None, (first, second)):
        can(*prefix)
    one = begin("one", *first)
    wait_until(lambda: len(lines(run)) > 3)
    code, errors = begin("refused", *second).end()
    assert code == 2, errors
    assert "in use by process" in errors
    assert "refused" not in lines(run)
    one.signal(signal.SIGSTOP)
    count = len(lines(run))
    two = begin("two", *second)
    wait_until(lambda: lines(run)[-1] == "two")
    one.signal(signal.SIGCONT)
    code, errors = one.end()
    assert code == 75, errors
    assert "was taken over by process" in errors
    assert lines(run).count("one") <= count + 1, "one line at most, if it was stopped between check and write"
    assert "two" in set(lines(run)[-2:])
    assert two.process.poll() is None, "the new holder is not disturbed"


@pytest.mark.root
def test_a_writer_killed_in_another_namespace_is_taken_over(run: RunDir, begin: Callable[..., Writer]) -> None:
    can(*NAMESPACE)
    one = begin("one", *NAMESPACE)
    wait_until(lambda: len(lines(run)) > 3)
    one.signal(signal.SIGKILL)
    began = time.monotonic()
    begin("two")
    wait_until(lambda: lines(run)[-1] == "two")
    assert time.monotonic() - began >= lock.SILENT_BEATS * 0.2
    assert read_json(run.lock_file)["pid"] > 1

"""The run directory: small files and folders that are complete or as before, and a status that is kept up to date."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trainer import rundir
from trainer.errors import CheckpointError, UsageError
from trainer.files import publish, read_json, without_nan, workspace, write_atomically, write_json
from trainer.rundir import RunDir, Status


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
def test_invalid_json_is_named(tmp_path: Path, text: str) -> None:
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


def test_directories_set_aside_are_numbered(tmp_path: Path) -> None:
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


def test_an_evaluation_that_was_not_saved_is_dropped(tmp_path: Path) -> None:
    """It is repeated: its line would be there twice."""
    run = RunDir(tmp_path)
    for step, split in ((0, "validation"), (2, "train"), (2, "validation"), (4, "train"), (4, "validation")):
        run.append(run.metrics, {"step": step, "split": split})
    run.cut_after(run.metrics, 4, evaluated=2)
    kept = [(line["step"], line["split"]) for line in map(json.loads, run.metrics.read_text().splitlines())]
    assert kept == [(0, "validation"), (2, "train"), (2, "validation"), (4, "train")]


def test_a_partial_line_is_dropped(lines: Path) -> None:
    """Also within a character, and with what a file system leaves after a power cut."""
    content = lines.read_bytes()
    last = len(content.rstrip(b"\n").rpartition(b"\n")[2]) + 1
    whole = content[:-last]
    for tail in [content[-last:][:cut] for cut in range(1, last - 1)] + [b"\0" * 50, b"\xff\xfe"]:
        lines.write_bytes(whole + tail)
        RunDir(lines.parent).cut_after(lines, 9)
        assert lines.read_bytes() == whole, tail


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_published_atomically_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder of it is flushed before the rename, the parent after it."""
    run, events = tmp_path / "run", []
    fsync, rename = os.fsync, Path.rename

    def flushed(handle: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def renamed(path: Path, to: Path) -> Path:
        events.append(f"{path.name} -> {to.name}")
        return rename(path, to)

    for content in ("old", "new"):
        making = workspace(run / "model")
        (making / "sub").mkdir()
        (making / "sub" / "file").write_text(content)
        events.clear()
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", flushed)
            patch.setattr(Path, "rename", renamed)
            publish(making, run / "model")
        assert (run / "model" / "sub" / "file").read_text() == content
    assert set(events[:3]) == {str(making), str(making / "sub"), str(making / "sub" / "file")}
    assert events[3:] == ["model -> .model.old", f"{making.name} -> model", str(run)]
    assert names(run) == ["model"]


def test_temporary_files_of_killed_attempts_are_removed(tmp_path: Path) -> None:
    left = workspace(tmp_path / "model")
    other = workspace(tmp_path / "tokenizer")
    making = workspace(tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == sorted([making, other])
    assert left != making


def test_a_folder_that_cannot_be_published_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "model"
    place.mkdir()
    making = workspace(place)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="model cannot be written: No space left"):
        publish(making, place)
    assert place.is_dir()


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


def test_a_path_that_is_no_run_gives_the_nearest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("imdb", "sst2"):
        (tmp_path / "runs" / name / "model").mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").touch()
    for trial in ("1", "10"):
        (tmp_path / "runs/tickets-sweep/trials" / trial).mkdir(parents=True)
        (tmp_path / "runs/tickets-sweep/trials" / trial / "recipe.yaml").touch()
    (tmp_path / "runs/tickets-sweep/sweep.json").touch()
    for path, words in (
        ("runs/imbd", "runs/imbd is not a run directory (it does not exist); did you mean runs/imdb?"),
        ("imbd", "did you mean runs/imdb?"),
        ("runs/imdb/model", "runs/imdb/model is not a run directory (it has no recipe.yaml); did you mean runs/imdb?"),
        ("runs", "give the path of a run; there: runs/imdb, runs/sst2, runs/tickets-sweep"),
        ("runs/ticket-sweep", "(it does not exist); did you mean runs/tickets-sweep?"),
        ("tickets-swep/trials/1", "did you mean runs/tickets-sweep/trials/1?"),
        ("tickets-swep/trials/7", "did you mean runs/tickets-sweep?"),
        (
            "runs/tickets-sweep",
            "such as runs/tickets-sweep/trials/1 (rankzero status runs/tickets-sweep names the best)",
        ),
    ):
        with pytest.raises(UsageError) as error:
            RunDir(path).check()
        assert str(error.value).endswith(words)

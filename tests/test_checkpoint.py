"""Checkpoints are complete or absent: if a save fails anywhere, the checkpoint before it is intact."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooks import arm

from trainer.engine import checkpoint, saving
from trainer.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model.safetensors": {"a": torch.full((3, 2), value), "b": torch.arange(4.0)},
        "optimizer.safetensors": {"a.exp_avg": torch.full((3, 2), value / 2)},
    }


def save(folder: Path, step: int) -> Path:
    return saving.save(folder, step, tensors(float(step)), {"step": step, "text": "ä"})


def is_complete(folder: Path, step: int) -> bool:
    return checkpoint.fault(checkpoint.path_of(folder, step)) is None


def test_a_checkpoint_is_restored_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, 200)
    assert path == tmp_path / "step-00000200"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert checkpoint.newest(tmp_path) == 200
    for name, content in tensors(200.0).items():
        found = checkpoint.read(tmp_path, 200, name)
        assert found.keys() == content.keys()
        assert all(torch.equal(found[key], value) for key, value in content.items())
    assert checkpoint.read(tmp_path, 200, "ema.safetensors") == {}
    assert checkpoint.read_state(tmp_path, 200) == {"step": 200, "text": "ä"}
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def test_views_and_empty_files_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    saving.save(tmp_path, 1, {"model.safetensors": {"view": base.t()}, "ema.safetensors": {}}, {})
    assert torch.equal(checkpoint.read(tmp_path, 1, "model.safetensors")["view"], base.t())
    assert checkpoint.read(tmp_path, 1, "ema.safetensors") == {}


def test_nothing_yet_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "missing") is None
    (tmp_path / ".saving-00000003-77").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-12").mkdir()
    assert checkpoint.newest(tmp_path) is None


# -- a save that does not come to its end ------------------------------------------------------------------------------

POINTS = (
    "tensors._write_file",
    "tensors._flush",
    "saving.write_json",
    "saving._describe",
    "saving.flush",
    "os.fsync",
    "Path.rename",
    "shutil.rmtree",
    "Path.mkdir",
)


def died_in_save(folder: Path, point: str, nth: int, step: int) -> bool:
    """Saves in a forked process that is gone, as by SIGKILL, at the nth call of `point`; False: it came to its end."""
    child = os.fork()
    if child == 0:
        arm(point, nth, lambda: os._exit(77))
        save(folder, step)
        checkpoint.clean(folder, 2, [])
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 77)
    return code == 77


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("again", [False, True], ids=["new", "the same step again"])
def test_a_crash_at_each_point_leaves_the_newest_complete(tmp_path: Path, point: str, again: bool) -> None:
    """Also where the step is there already: between two renames it is neither here nor there."""
    crashes = 0
    for nth in range(1, 20):
        folder = tmp_path / str(nth)
        save(folder, 10)
        if again:
            save(folder, 20)
        died = died_in_save(folder, point, nth, 20)
        crashes += died
        found = checkpoint.newest(folder)
        assert found == 20 if again or not died else found in (10, 20), nth
        assert found is not None
        assert checkpoint.read(folder, found, "model.safetensors")["a"][0, 0] == found
        save(folder, 30)  # and the next one is as ever
        checkpoint.clean(folder, 2, [])
        assert checkpoint.newest(folder) == 30
        assert [p.name for p in sorted(folder.iterdir())] == [f"step-{s:08d}" for s in sorted({found, 30})]
        if not died:
            break
    assert crashes, f"{point} was never reached"


@pytest.mark.parametrize("point", [p for p in POINTS if p != "shutil.rmtree"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "the same step again"])
def test_a_full_disk_at_each_point_is_reported_and_harmless(tmp_path: Path, point: str, again: bool) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    failures = 0
    for nth in range(1, 20):
        folder = tmp_path / str(nth)
        save(folder, 10)
        if again:
            save(folder, 20)
        disarm = arm(point, nth, full)
        error = None
        try:
            save(folder, 20)
        except CheckpointError as caught:
            error = caught
        finally:
            disarm()
        failures += error is not None
        assert error is None or all(words in str(error) for words in ("step 20", "No space left", "is intact"))
        assert not list(folder.glob(".saving-*")), "what was written of it is away, for there is no room"
        assert checkpoint.newest(folder) in ((20,) if again or error is None else (10, 20))
        assert is_complete(folder, 10)
        if error is None:
            break
    assert failures, f"{point} was never reached"


@pytest.mark.slow
def test_a_writer_killed_at_random_instants(tmp_path: Path) -> None:
    """SIGKILL 20 times while it saves in a loop: there always is a whole checkpoint, and it never gets older."""
    program = """
import os, sys
from pathlib import Path
import torch
from trainer.engine import checkpoint, saving
folder = Path(sys.argv[1])
for line in sys.stdin:
    start = checkpoint.newest(folder) or 0
    for step in range(start + 1, 10**8):
        saving.save(folder, step, {"model.safetensors": {"a": torch.full((500,), float(step))}}, {"step": step})
        checkpoint.clean(folder, 2, [])
        os.write(1, b"%d\\n" % step)  # whole lines, also where Python's own output has no buffer
"""
    # forked from one parent that has imported torch, because a start takes seconds
    parent = f"""
import os, sys
sys.argv = ["-", {str(tmp_path)!r}]
import torch, trainer.engine.saving
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        exec({program!r}.replace("for line in sys.stdin:", "if True:"))
    os.write(1, b"child %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"gone\\n")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        reached = 0
        for attempt in range(20):
            process.stdin.write("go\n")
            lines: list[str] = []
            while sum(not line.startswith("child") for line in lines) < 1 + attempt % 3:  # until it saves
                lines.append(process.stdout.readline())
                assert lines[-1], "the writer died by itself"
            child = next(int(line.split()[1]) for line in lines if line.startswith("child"))
            time.sleep(0.0007 * attempt)
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()).strip() != "gone":
                assert line, "the writer died by itself"
                lines.append(line)
            committed = max(int(line) for line in lines if line.strip().isdigit())
            found = checkpoint.newest(tmp_path)
            assert found is not None
            assert found >= committed >= reached, "a checkpoint that was committed is gone"
            assert checkpoint.read(tmp_path, found, "model.safetensors")["a"][7] == found
            reached = found
    finally:
        process.kill()
        process.wait()


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def malformed(manifest: Path) -> None:
    manifest.write_text(json.dumps({"files": {"model.safetensors": 3, "state.json": None}}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda path: flip(path / "model.safetensors"), "model.safetensors has another SHA-256"),
    "a cut file": (lambda path: os.truncate(path / "optimizer.safetensors", 40), "optimizer.safetensors has 40 bytes"),
    "a longer file": (lambda path: (path / "state.json").open("a").write(" "), "state.json has"),
    "a missing file": (lambda path: (path / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 30), "manifest.json is not JSON"),
    "an empty manifest": (lambda path: os.truncate(path / "manifest.json", 0), "manifest.json is not JSON"),
    "a manifest of something else": (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json"),
    "no list of files": (lambda path: (path / "manifest.json").write_text('{"files": 3}'), "manifest.json"),
    "a malformed list": (lambda path: malformed(path / "manifest.json"), "model.safetensors"),
    "an empty list": (lambda path: (path / "manifest.json").write_text('{"files": {}}'), "manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 10)
    spoil, told = DAMAGE[damage]
    spoil(save(tmp_path, 20))
    with caplog.at_level(logging.WARNING, "rankzero"):
        assert checkpoint.newest(tmp_path) == 10
    assert told in caplog.text
    assert "step-00000020" in caplog.text, "the warning names the file"


def test_without_a_complete_checkpoint_no_run_starts_from_scratch(tmp_path: Path) -> None:
    flip(save(tmp_path, 10) / "model.safetensors")
    (save(tmp_path, 20) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint among 2.*--fresh") as caught:
        checkpoint.newest(tmp_path)
    for name in ("step-00000010/model.safetensors", "step-00000020/manifest.json"):
        assert name in str(caught.value)


def test_every_read_compares_the_hash(tmp_path: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        path = save(tmp_path, 10)
        flip(path / name)
        others = {"model.safetensors", "optimizer.safetensors"} - {name}
        with pytest.raises(CheckpointError, match=rf"step 10 is damaged: .*{name} has another SHA-256.*--fresh"):
            checkpoint.read(tmp_path, 10, name)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.checked(tmp_path, 10)
        assert all(checkpoint.read(tmp_path, 10, other) for other in others), "the other file is as it was"
    (path / "state.json").write_text('{"step": 10, "text": "x"} ')
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.read_state(tmp_path, 10)


def test_every_part_of_a_file_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.tensors, "SHARD_BYTES", 30)
    path = save(tmp_path, 10)
    assert checkpoint.read(tmp_path, 10, "model.safetensors").keys() == {"a", "b"}
    flip(next(path.glob("model-00002-of-*.safetensors")))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors has another SHA-256"):
        checkpoint.read(tmp_path, 10, "model.safetensors")


def test_each_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    read: list[str] = []
    digest = checkpoint.hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", counted)
    assert checkpoint.newest(tmp_path) == 10
    checkpoint.checked(tmp_path, 10)
    checkpoint.read(tmp_path, 10, "model.safetensors")
    checkpoint.read_state(tmp_path, 10)
    assert sorted(read) == sorted(set(FILES) - {"manifest.json"})
    path = tmp_path / "step-00000010" / "model.safetensors"
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match="another SHA-256"):
        checkpoint.read(tmp_path, 10, "model.safetensors")


def test_files_are_hashed_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    together, digest = threading.Barrier(3, timeout=20), checkpoint.hashlib.file_digest

    def waiting(file: Any, kind: str) -> Any:
        together.wait()  # breaks unless all three files are open
        return digest(file, kind)

    monkeypatch.setattr(checkpoint, "cores", lambda: 3)
    monkeypatch.setattr(checkpoint.hashlib, "file_digest", waiting)
    flip(tmp_path / "step-00000010" / "optimizer.safetensors")
    with pytest.raises(
        CheckpointError, match=r"optimizer\.safetensors has another SHA-256 than its manifest\. Restore"
    ):
        checkpoint.newest(tmp_path)


def test_unreadable_files_are_checkpoint_errors(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    (path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.read(tmp_path, 10, "model.safetensors")
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.read_state(tmp_path, 10)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.read_state(tmp_path, 10)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_protected_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    checkpoint.clean(tmp_path, 2, [20])
    assert checkpoint.steps(tmp_path) == [20, 40, 50]
    checkpoint.clean(tmp_path, 2, [20])
    assert checkpoint.steps(tmp_path) == [20, 40, 50]
    checkpoint.clean(tmp_path, 2, [])
    assert checkpoint.steps(tmp_path) == [40, 50]


def test_a_checkpoint_without_manifest_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    (checkpoint.path_of(tmp_path, 30) / "manifest.json").unlink()
    checkpoint.clean(tmp_path, 2, [])
    assert is_complete(tmp_path, 10)
    assert is_complete(tmp_path, 20)


def test_damaged_newer_checkpoints_do_not_displace_new_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are renamed where a run is resumed from an older one: they would count as the newest for ever."""
    for step in (100, 200, 300, 400):
        save(tmp_path, step)
    flip(checkpoint.path_of(tmp_path, 300) / "model.safetensors")
    flip(checkpoint.path_of(tmp_path, 400) / "optimizer.safetensors")
    damaged = (checkpoint.path_of(tmp_path, 400) / "optimizer.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "rankzero"):
        assert checkpoint.newest(tmp_path) == 200
    assert len(caplog.records) == 2, "a line for each"
    for step in (250, 300, 350):
        save(tmp_path, step)
        checkpoint.clean(tmp_path, 2, [])
        assert checkpoint.newest(tmp_path) == step
    assert checkpoint.steps(tmp_path) == [300, 350]
    assert (tmp_path / "damaged-step-00000400" / "optimizer.safetensors").read_bytes() == damaged, "never deleted"
    flip(checkpoint.path_of(tmp_path, 350) / "model.safetensors")
    assert checkpoint.newest(tmp_path) == 300
    save(tmp_path, 400)
    flip(checkpoint.path_of(tmp_path, 400) / "model.safetensors")
    assert checkpoint.newest(tmp_path) == 300
    assert (tmp_path / "damaged-step-00000400-2").is_dir()


def test_a_damaged_older_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    os.truncate(checkpoint.path_of(tmp_path, 20) / "model.safetensors", 10)
    checkpoint.clean(tmp_path, 2, [])
    assert checkpoint.steps(tmp_path) == [10, 30]
    assert (tmp_path / "damaged-step-00000020").is_dir()


def test_files_of_interrupted_saves_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for name in (".saving-00000020-123", ".deleting-00000005", ".replaced-00000010"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    checkpoint.clean(tmp_path, 2, [])
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_the_manifest_lists_sizes_and_hashes(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path, 10)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 10
    assert manifest["files"].keys() == {name for name in FILES if name != "manifest.json"}
    for name, facts in manifest["files"].items():
        content = (path / name).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_newest_intact_checkpoint_is_described(tmp_path: Path) -> None:
    assert checkpoint.describe_saved(tmp_path / "none") == "no checkpoint has been saved yet"
    save(tmp_path, 10)
    save(tmp_path, 20)
    assert checkpoint.describe_saved(tmp_path) == "the checkpoint of step 20 is intact"
    (checkpoint.path_of(tmp_path, 20) / "model.safetensors").unlink()
    assert checkpoint.describe_saved(tmp_path) == "the checkpoint of step 10 is intact"

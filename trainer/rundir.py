"""The run directory: everything a run writes, and the only thing that later commands read. No torch here.

runs/<name>/
  recipe.yaml  status.json  manifest.json  metrics.jsonl  lock
  checkpoints/step-00000200/  tokenizer/  model/  evaluation/<split>/  export/  README.md
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import CheckpointError, LockLost, UsageError
from trainer.lock import HEARTBEAT_SECONDS, RunLock, check_held, heartbeat_held, hold
from trainer.redaction import redacted

_PROCESS = secrets.token_hex(4)  # with the process number in the names of temporary files: unique over machines
# Keys of these files that hold objects, lists and truth values; and those that hold objects of objects.
FORMED = ("manifest.json", "gate.json", "benchmark.json")
FORMS: dict[str, Any] = {
    **dict.fromkeys(("data", "stages", "versions", "devices", "files", "checks", "inputs", "of"), dict),
    **dict.fromkeys(("contestants", "recommended", "left_out"), dict),
    **dict.fromkeys(("starts", "command", "failed", "courses"), list),
    "passed": bool,
}
OF_OBJECTS = ("data", "stages", "checks", "contestants")
MOST_JSON = 200_000_000  # bytes of a JSON file that is read at once
MOST_SPLITS = 1 << 16
STALE_SECONDS = 60.0  # a status.json of a running run that is older than this: its process is gone


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part.

    Raises:
        CheckpointError: the disk is full or not writable. The old file is as it was.
        LockLost: `path` is in a run directory that another process has taken over.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Do the same as `write_atomically` with bytes."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path`, flushed, when the block ends without an error.

    Raises:
        CheckpointError: the disk is full or not writable. The old file is as it was.
        LockLost: `path` is in a run directory that another process has taken over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_PROCESS}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check_held(path)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a run directory, or a folder in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"run directory {path} cannot be made: {error.strerror}; choose --run") from None


def workspace(place: Path) -> Path:
    """Make an empty temporary folder next to `place`. Such folders of killed attempts are removed."""
    check_held(place)
    for left in place.parent.glob(f".{place.name}.making-*"):
        shutil.rmtree(left, ignore_errors=True)
    making = place.with_name(f".{place.name}.making-{secrets.token_hex(4)}")
    making.mkdir(parents=True)
    return making


def publish(making: Path, place: Path) -> None:
    """Flush the files of a complete folder, rename it to `place`, and flush the parent.

    A reader sees the old folder, none, or the new one, never a part. The manifest lists the folder only after this.

    Raises:
        CheckpointError: the disk is full or not writable.
        LockLost: `place` is in a run directory that another process has taken over.
    """
    old = place.with_name(f".{place.name}.old")
    try:
        for path in [*making.rglob("*"), making]:
            flush(path)
        check_held(place)
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        making.rename(place)
        flush(place.parent)
    except LockLost:
        shutil.rmtree(making, ignore_errors=True)
        raise
    except OSError as error:
        raise _cannot_write(place, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written: {error.strerror or error}; free space or fix permissions")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, the same text for the same value."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the object in a JSON file of a run, or None if there is no file.

    Raises:
        CheckpointError: the file is not JSON, is larger than any that a run writes, or has another form.
    """
    try:
        size = path.stat().st_size
        value = json.loads(path.read_text(encoding="utf-8")) if size <= MOST_JSON else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; restore it") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it or start again with --fresh") from None
    if size > MOST_JSON:
        raise CheckpointError(f"{path} has {size:,} bytes; {MOST_JSON:,} are the most: restore it")
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object; restore it")
    if path.name in FORMED:
        _check_form(path, value)
    return value


def _check_form(path: Path, value: dict[str, Any]) -> None:
    for key, form in FORMS.items():
        found: Any = value.get(key)
        if found is not None and not isinstance(found, form):
            raise CheckpointError(f"{path}: {key} is a {type(found).__name__}, not a {form.__name__}; restore it")
        if key in OF_OBJECTS and found and not all(isinstance(part, dict) for part in found.values()):
            raise CheckpointError(f"{path}: {key} is not an object of objects; restore it")


def inside(folder: Path, name: object) -> Path | None:
    """Return the path of a file that a JSON file in the folder names, or None if the name leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name or name.startswith("/") or ".." in Path(name).parts:
        return None
    return folder / name


class RunDir:
    """Paths and small files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.status = self.path / "status.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.lock_file = self.path / "lock"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.model = self.path / "model"
        self.tensorboard = self.path / "tensorboard"
        self.export = self.path / "export"
        self.left_out = self.export / "left_out.json"
        self.note = self.path / "failed-rank.json"  # what a rank that fails alone leaves for rank zero

    def splits(self) -> int:
        """Return into how many parts each micro-batch is split to fit the memory: 1 unless a rank ran out of it.

        The note of a rank that has just run out of memory is newer than the manifest, so it is read first.
        """
        for path, key in ((self.note, "splits"), (self.manifest, "micro_batch_splits")):
            found = read_json(path)
            if found is not None and key in found:
                if type(found[key]) is not int or not 0 < found[key] <= MOST_SPLITS:
                    raise CheckpointError(
                        f"{path}: {key} is {str(found[key])[:60]!r}, not a count of parts; restore it"
                    )
                return found[key]
        return 1

    def reasons(self) -> dict[str, str]:
        """Return by name why artifacts that the recipe wants cannot be made."""
        return {str(name): str(reason) for name, reason in (read_json(self.left_out) or {}).items()}

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return what the manifest records about the stages after training.

        Raises:
            CheckpointError: manifest.json is damaged.
        """
        return dict((read_json(self.manifest) or {}).get("stages") or {})

    def evaluation(self, split: str) -> Path:
        return self.path / "evaluation" / split

    def create(self) -> None:
        make_folder(self.checkpoints)

    def check(self) -> None:
        """Raise UsageError if this is not a run directory."""
        if not self.recipe.exists():
            raise UsageError(f"{self.path} is not a run directory (it has no recipe.yaml); give the path of a run")

    def set_aside(self) -> Path | None:
        """Rename an existing run directory. Return its new path, or None if there was no run."""
        if not self.path.exists():
            return None
        number = 1
        while (to := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(to)
        return to

    # -- lines -----------------------------------------------------------------------------------------------------

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        try:
            check_held(path)
            with open(path, "a", encoding="utf-8", newline="\n", opener=no_link) as file:
                file.write(json.dumps(without_nan(line), ensure_ascii=False) + "\n")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def cut_after(self, path: Path, step: int) -> None:
        """Remove lines of steps after `step`, which are repeated, and an incomplete last line."""
        if not path.exists():
            return
        kept = []
        for line in path.read_bytes().split(b"\n"):  # bytes: an incomplete line may end within a character
            with contextlib.suppress(ValueError):
                if line and json.loads(line)["step"] <= step:
                    kept.append(line.decode() + "\n")
        write_atomically(path, "".join(kept))

    # -- one writer ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunLock]:
        """Hold the run directory for this process, with a heartbeat; see `trainer.lock`.

        Raises:
            UsageError: another process writes here.
            LockLost: at the end, if another process has taken it over.
        """
        make_folder(self.path)
        with hold(self.path) as lock:
            for left in self.path.rglob(".*.tmp"):  # of writers that were killed
                left.unlink(missing_ok=True)
            yield lock


def without_nan(value: Any) -> Any:
    """Replace NaN and Inf, which are not JSON, by None at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def no_link(path: str, flags: int) -> int:
    """Open a file for writing, but not through a symbolic link, which may lead out of the run directory."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class Status:
    """`status.json`, rewritten at each change and at least every two seconds while the run is active."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.values: dict[str, Any] = {
            "state": "running",
            "step": 0,
            "exit_code": None,
            "error": None,
            "waits_for": None,  # the job that makes the other stages of a trained run
            "stopped_early": None,  # step and reason, if early stopping ended the run
            "attempt": attempt,
            "pid": os.getpid(),
            "launch": os.environ.get("RANKZERO_LAUNCH"),  # the start of the SLURM job of this attempt
        }
        self._thread = threading.Thread(target=self._beat, name="rankzero-status", daemon=True)

    def start(self) -> Status:
        self.update()
        self._thread.start()
        return self

    def update(self, **values: Any) -> None:
        """Change fields and write the file."""
        with self._lock:
            self.values.update(values)
            with contextlib.suppress(OSError):
                heartbeat_held(self._run.path)
            write_json(self._run.status, {**redacted(self.values), "updated": time.time()})

    def finish(self, state: str, exit_code: int, error: str | None = None, **more: Any) -> None:
        """Write the final status of this attempt."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self.update(state=state, exit_code=exit_code, error=error, **more)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.update()
            except CheckpointError:  # a full disk ends the run when a checkpoint is saved, not here
                continue
            except LockLost:  # the status belongs to another process now
                return


def git_commit() -> str | None:
    """Return the commit of the source checkout that runs, or None for an installed package."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

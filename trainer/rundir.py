"""The run directory: everything a run writes, and the only thing that later commands read. No torch here.

runs/<name>/
  recipe.yaml  status.json  manifest.json  metrics.jsonl  lock
  checkpoints/step-00000200/  tokenizer/  model/  [adapter/]  evaluation/<split>/  export/  README.md
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, LockLost, UsageError
from trainer.files import (
    cannot_write,
    flush,
    is_number,
    is_special,
    make_folder,
    no_link,
    read_json,
    regular_size,
    replacing,
    without_nan,
    write_json,
)
from trainer.lock import HEARTBEAT_SECONDS, RunLock, check_held, heartbeat_held, hold
from trainer.redaction import redacted
from trainer.run_folders import is_run, is_sweep, nearest_below, runs_below

MOST_SPLITS = 1 << 16
CHECKPOINT, CHECKPOINT_MANIFEST = re.compile(r"step-(\d{8,})$"), "manifest.json"
STALE_SECONDS = 60.0  # a status.json of a running run that is older than this: its process is gone


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
        self.data = self.path / "data"  # rows that a Python program trained on
        self.adapter = self.path / "adapter"
        self.tensorboard = self.path / "tensorboard"
        self.export = self.path / "export"
        self.left_out = self.export / "left_out.json"
        self.note = self.path / "failed-rank.json"  # what a rank that fails alone leaves for rank zero
        self.restarts = self.path / "restarts.jsonl"  # a line for each restart after a failure

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer.json of the run, and that of target texts if they have a vocabulary of their own."""
        return [self.tokenizer / "tokenizer.json", *self.tokenizer.glob("*/tokenizer.json")]

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

    def fused_lanes(self) -> dict[str, Any] | None:
        """Return what a start has found out for `loop.fuse_lanes: auto`: "lanes" in one forward, and how. None before.

        The note of a rank that has run out of memory while it measured is newer than the manifest.
        """
        for path in (self.note, self.manifest):
            found = (read_json(path) or {}).get("fuse_lanes")
            if found is not None:
                lanes = found.get("lanes") if isinstance(found, dict) else found
                if type(lanes) is not int or lanes < 1:
                    raise CheckpointError(
                        f"{path}: fuse_lanes is {str(lanes)[:60]!r}, not a count of lanes; restore it"
                    )
                return dict(found)
        return None

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
        """Refuse a folder that is not a run directory, before anything of it is read.

        Raises:
            UsageError: it has no recipe.
            CheckpointError: a pipe or a device is in place of a file. Reading it may not end.
        """
        if not self.recipe.is_file():
            raise no_run(self.path)
        parts = (self.tokenizer, self.model, self.adapter, self.path / "evaluation", self.export)
        below = (Path(folder, name) for part in parts for folder, _, names in os.walk(part) for name in names)
        for path in (*self.path.glob("*"), *below):
            if is_special(path):
                raise CheckpointError(f"{path} is a pipe, a device or a socket, which no run has; remove it")

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
            raise cannot_write(path, error) from error

    def flush_lines(self) -> None:
        """Flush metrics and ledger to disk, so that they reach as far as a checkpoint that is committed afterwards."""
        try:
            for path in (self.metrics, self.ledger, self.path):
                if path.exists():
                    flush(path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def record_restart(self, by: str, **event: Any) -> None:
        """Add a line to restarts.jsonl: who starts the run again, why, and from which checkpoint."""
        self.append(self.restarts, {"time": time.time(), "by": by, "step": self.newest_checkpoint(), **event})

    def read_restarts(self) -> list[dict[str, Any]]:
        """Return the lines of restarts.jsonl, oldest first. An incomplete line is left out."""
        events = []
        with contextlib.suppress(OSError):
            regular_size(self.restarts)
            for line in self.restarts.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    events += [event] if isinstance(event, dict) and is_number(event.get("time")) else []
        return events

    def newest_checkpoint(self) -> int | None:
        """Return the step of the newest checkpoint with a manifest. Its files are not read."""
        saved = self.checkpoints.glob("step-*/manifest.json")
        return max((int(found[1]) for path in saved if (found := CHECKPOINT.match(path.parent.name))), default=None)

    def cut_after(self, path: Path, step: int, evaluated: int | None = None) -> None:
        """Remove lines of steps after `step`, which are repeated, and an incomplete last line.

        Args:
            evaluated: the last step with a finished evaluation: lines of later evaluations are removed too, since a
                run that ended before it had saved them evaluates again.
        """
        if not path.exists():
            return
        with path.open("rb") as lines, replacing(path) as kept:  # a ledger may be larger than the memory
            for line in lines:  # bytes: an incomplete line may end within a character
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    last = step if evaluated is None or entry.get("split") != "validation" else min(step, evaluated)
                    if entry["step"] <= last:
                        kept.write(line.rstrip(b"\n") + b"\n")

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


def no_run(path: Path) -> UsageError:
    """Return the error about a path that is not a run directory, with the nearest run or sweep."""
    reason = "it has no recipe.yaml" if path.exists() else "it does not exist"
    above = [folder for folder in path.parents if (folder / "recipe.yaml").is_file()]
    mistyped = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    places = [folder for parent in (Path("runs"), mistyped.parent) for folder in sorted(parent.glob("*"))]
    runs = {folder.name: folder for folder in places if is_run(folder) and folder != path}
    names = difflib.get_close_matches(mistyped.name, runs, n=1)
    near = above[:1] or [nearest_below(runs[name], path.relative_to(mistyped)) for name in names]
    if is_sweep(path):
        first = next(runs_below(path / "trials"), path / "trials" / "0")
        hint = f"it is a sweep: give one of its trials, such as {first} (rankzero status {path} names the best)"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        there = f"; there: {', '.join(str(folder) for folder in list(runs.values())[:5])}" if runs else ""
        hint = f"give the path of a run{there}"
    return UsageError(f"{path} is not a run directory ({reason}); {hint}")


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
    return commit_of(here) if (here / ".git").exists() else None


def commit_of(folder: Path) -> str | None:
    """Return the commit of the git checkout that a folder is in. None outside of one, or without git."""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

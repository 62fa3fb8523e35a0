"""Copy complete checkpoints to another place in the background (`loop.mirror`), and resume from such a place.

    URL/NAME/                    NAME: of the run directory
      recipe.yaml  manifest.json  metrics.jsonl  ledger.jsonl  tokenizer/  tracking/*.json     as in the run directory
      step-00000200/             files of a checkpoint, then its manifest.json, by which it counts

A thread of rank zero copies the newest checkpoint that the mirror does not have, and before it those that a resumed run
needs with it: the best one and those that are averaged. Then it deletes what the run directory no longer has. Files are
linked first, so that the training deletes its checkpoints whenever it likes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.engine import checkpoint
from trainer.engine.progress import Progress
from trainer.engine.remote_folder import RemoteFolder
from trainer.errors import CheckpointError, LockLost, RankzeroError, StoreError, UsageError
from trainer.files import flush, inside, read_json, write_json
from trainer.lock import check_held
from trainer.redaction import redacted
from trainer.rundir import CHECKPOINT_MANIFEST, RunDir
from trainer.tracking.position import FOLDER

log = logging.getLogger("rankzero")

POLL_SECONDS = 2.0  # between two looks at the checkpoints of the run directory
RETRY_SECONDS = 60.0  # after a copy has failed in spite of the store's retries
# How long copies are waited for at the end of a run, at its end if the last one has failed, and at a stop by a signal.
AT_END_SECONDS, FAILING_SECONDS, AT_STOP_SECONDS = 1800.0, 90.0, 5.0
LINKED, FETCHED = ".mirroring", ".fetching"  # folders in checkpoints/


class _Ended(Exception):
    """Nothing more is to be copied."""


class Mirror:
    """Copies the checkpoints of a run in the background. Only rank zero has one.

    Args:
        run: its directory.
        url: `loop.mirror`; the copies are in a folder below it with the name of the run directory.

    Raises:
        UsageError: the place has checkpoints of another run, or its protocol is not known.
    """

    def __init__(self, run: RunDir, url: str) -> None:
        self._run, self._place = run, RemoteFolder(f"{url.rstrip('/')}/{run.path.absolute().name}", "loop.mirror")
        self._ended, self._failed = threading.Event(), False
        self._known = False  # whether the place was compared with this run
        self._copied: tuple[int, int] | None = None  # step and time of the newest checkpoint that is in the mirror
        self._there: set[int] = set()  # steps of the checkpoints in the mirror, since the last copy
        shutil.rmtree(run.checkpoints / LINKED, ignore_errors=True)
        try:
            self._check_owner(seconds=10.0)
        except UsageError:
            raise
        except Exception as error:  # stores have different errors
            self._warn(error)
        self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
        self._thread.start()

    def finish(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the newest checkpoint is copied, and return whether it is. Nothing is copied afterwards.

        The wait is bounded: AT_END_SECONDS, FAILING_SECONDS if the last copy has failed, and AT_STOP_SECONDS once the
        process is to stop.
        """
        began = time.monotonic()
        if not self._is_complete():
            log.info("waiting for the mirror %s …", self._place.url)
        while self._thread.is_alive() and not self._is_complete():
            limit = AT_STOP_SECONDS if is_stopped() else FAILING_SECONDS if self._failed else AT_END_SECONDS
            if time.monotonic() - began > limit:
                break
            time.sleep(0.05)
        self._ended.set()
        if complete := self._is_complete():
            self._thread.join(AT_STOP_SECONDS)  # it deletes old copies
        else:
            log.warning("the mirror %s lacks the newest checkpoint; the same command copies it", self._place.url)
        return complete

    def _is_complete(self) -> bool:
        newest = self._newest()
        return newest is None or self._copied == newest

    def _newest(self) -> tuple[int, int] | None:
        """Return step and time of the newest complete checkpoint."""
        for step in reversed(checkpoint.steps(self._run.checkpoints)):
            with contextlib.suppress(OSError):
                path = checkpoint.path_of(self._run.checkpoints, step) / CHECKPOINT_MANIFEST
                return step, path.stat().st_mtime_ns
        return None

    def _work(self) -> None:
        while not self._ended.is_set():
            wait = POLL_SECONDS
            try:
                newest = self._newest()
                if newest is not None and newest != self._copied:
                    self._check_owner()
                    self._copy(newest[0])
                    self._copied, self._failed = newest, False
            except _Ended:
                return
            except (UsageError, LockLost) as error:
                log.warning("the mirror %s gets no more copies: %s", self._place.url, error)
                return
            except Exception as error:  # stores have different errors; the training continues in any case
                self._warn(error)
                wait = RETRY_SECONDS
            finally:
                shutil.rmtree(self._run.checkpoints / LINKED, ignore_errors=True)
            self._ended.wait(wait)
        if self._is_complete() and self._copied is not None:
            try:  # the run directory may have deleted more since the last copy
                check_held(self._run.path)
                step = self._copied[0]
                self._delete_old(step, *needed_with(self._run.checkpoints, step))
            except Exception as error:  # stores have different errors
                log.warning("the mirror %s keeps an old checkpoint: %s", self._place.url, redacted(str(error)))

    def _warn(self, error: Exception) -> None:
        log.warning(
            "the mirror %s cannot be reached or written (%s); the training continues, and the copy is retried",
            self._place.url,
            redacted(str(error) if isinstance(error, RankzeroError) else f"{type(error).__name__}: {error}"),
        )
        self._failed = True

    def _check_owner(self, seconds: float | None = None) -> None:
        """Compare the run that the mirror belongs to with this one.

        Raises:
            UsageError: it is another one, and has checkpoints.
        """
        if self._known:
            return
        there = self._place.read("manifest.json", seconds)
        if there is not None and self._place.steps(seconds):
            owner, own = _began(json.loads(there)), _began(read_json(self._run.manifest) or {})
            if owner != own:
                raise UsageError(
                    f"loop.mirror: {self._place.url} has checkpoints of another run, which began {owner}. Resume it "
                    "with --resume-from, delete it, or set loop.mirror to another place"
                )
        self._known = True

    def _copy(self, step: int) -> None:
        """Copy a checkpoint, and before it those that a run needs that is resumed from it; delete others."""
        check_held(self._run.path)
        folder, place = self._run.checkpoints, self._place
        needed = [other for other in needed_with(folder, step) if other in checkpoint.steps(folder)]
        linked = [_link(folder, other) for other in (*needed, step)]
        complete = set(place.steps())
        for path in linked:
            manifest = (path / CHECKPOINT_MANIFEST).read_bytes()
            there = int(path.name.rpartition("-")[2]) in complete
            if there and place.read(f"{path.name}/{CHECKPOINT_MANIFEST}") == manifest:
                continue
            if there:  # saved again after a resume from before it
                place.remove(f"{path.name}/{CHECKPOINT_MANIFEST}")
            for file in sorted(path.iterdir()):
                if file.name != CHECKPOINT_MANIFEST:
                    self._put(file, f"{path.name}/{file.name}")
            if path is linked[-1]:
                self._copy_run_files()
            self._put(path / CHECKPOINT_MANIFEST, f"{path.name}/{CHECKPOINT_MANIFEST}")
        self._there = {*complete, *needed, step}
        self._delete_old(step, *needed)

    def _delete_old(self, *kept: int) -> None:
        """Delete those complete checkpoints of the mirror that the run directory no longer has."""
        for other in self._there - {*kept, *checkpoint.steps(self._run.checkpoints)}:
            self._place.remove(f"step-{other:08d}/{CHECKPOINT_MANIFEST}")
            self._place.remove(f"step-{other:08d}")
            self._there.remove(other)

    def _put(self, file: Path, name: str) -> None:
        self._check_ended()
        self._place.put(file, name, self._check_ended)

    def _check_ended(self) -> None:
        if self._ended.is_set():
            raise _Ended

    def _copy_run_files(self) -> None:
        run = self._run
        files = [
            run.recipe,
            run.manifest,
            run.metrics,
            run.ledger,
            *run.tokenizer.rglob("*"),
            *(run.path / FOLDER).glob("*.json"),
        ]
        for file in files:
            if file.is_file():
                name = str(file.relative_to(run.path))
                copy = run.checkpoints / LINKED / "run" / name  # lines are appended while a file is sent
                copy.parent.mkdir(parents=True, exist_ok=True)
                self._put(Path(shutil.copyfile(file, copy)), name)


def _began(manifest: dict[str, Any]) -> str:
    """Return when the first start of a run was."""
    return str([*manifest.get("starts", []), manifest][0].get("started"))


def _link(folder: Path, step: int) -> Path:
    """Return a folder with links to the files of a checkpoint, which stay when the checkpoint is deleted."""
    path, linked = checkpoint.path_of(folder, step), folder / LINKED / f"step-{step:08d}"
    linked.mkdir(parents=True)
    for file in path.iterdir():
        try:
            os.link(file, linked / file.name)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(file, linked / file.name)
    return linked


def needed_with(folder: Path, step: int) -> list[int]:
    """Return the steps of other checkpoints that a run uses that is resumed from this one."""
    state = read_json(checkpoint.path_of(folder, step) / "state.json") or {}
    progress = Progress.from_json(state)
    steps = {*progress.scheduled_steps, *([progress.best.step] if progress.best else [])}
    return sorted(steps - {step})


# -- resuming from a mirror --------------------------------------------------------------------------------------------


def fetch(url: str, run: RunDir) -> None:
    """Copy the newest complete checkpoint of a mirror, and what belongs to it, into a run directory without any.

    A run directory that has checkpoints is left as it is: a job that starts again with the same command resumes from
    its own. Only rank zero calls this.

    Raises:
        CheckpointError: there is no complete checkpoint, or none whose files have their hashes.
        StoreError: the store has not answered for too long.
        UsageError: the protocol is not known.
    """
    fetching = run.checkpoints / FETCHED
    if checkpoint.steps(run.checkpoints) and not fetching.exists():
        log.info("--resume-from is not used: %s already has checkpoints", run.path)
        return
    place = RemoteFolder(url, "--resume-from")
    try:
        shutil.rmtree(fetching, ignore_errors=True)
        fetching.mkdir(parents=True)
        step = _fetch_newest(place, fetching)
        for other in needed_with(fetching, step):
            if wrong := _fetch_checkpoint(place, fetching, other):
                raise CheckpointError(f"--resume-from {place.url}: {wrong}; step {step} needs it")
        _fetch_run_files(place, run)
        for saved in checkpoint.steps(fetching):
            final = checkpoint.path_of(run.checkpoints, saved)
            shutil.rmtree(final, ignore_errors=True)
            checkpoint.path_of(fetching, saved).rename(final)
        flush(run.checkpoints)
        shutil.rmtree(fetching)
    except (RankzeroError, FileNotFoundError) as error:
        shutil.rmtree(fetching, ignore_errors=True)
        if isinstance(error, CheckpointError | StoreError | UsageError):
            raise
        raise CheckpointError(f"--resume-from {place.url}: {error}") from error
    except OSError as error:
        shutil.rmtree(fetching, ignore_errors=True)
        raise CheckpointError(f"--resume-from {place.url}: {type(error).__name__}: {error}") from error
    log.info("fetched the checkpoint of step %d from %s", step, place.url)


def _fetch_newest(place: RemoteFolder, folder: Path) -> int:
    """Fetch the newest checkpoint whose files have their hashes, and return its step."""
    faults = []
    for step in reversed(place.steps()):
        wrong = _fetch_checkpoint(place, folder, step)
        if wrong is None:
            return step
        log.warning("--resume-from %s: %s", place.url, wrong)
        faults.append(wrong)
    found = "; ".join(faults) or "there is none; name the folder that has step-… folders, loop.mirror/NAME"
    raise CheckpointError(f"--resume-from {place.url}: no complete checkpoint: {found}")


def _fetch_checkpoint(place: RemoteFolder, folder: Path, step: int) -> str | None:
    """Fetch one checkpoint. Return what is wrong with it, or None."""
    path = checkpoint.path_of(folder, step)
    for name in place.files(path.name):
        if (to := inside(folder, name)) is None:
            return f"{name!r} is not in the checkpoint"
        place.get(name, to)
    if wrong := checkpoint.fault(path):
        shutil.rmtree(path, ignore_errors=True)
        return wrong
    return None


def _fetch_run_files(place: RemoteFolder, run: RunDir) -> None:
    """Fetch recipe, manifest, logs and tokenizer. Stages that followed the training are not there, so not recorded."""
    for file in (run.recipe, run.metrics, run.ledger):
        if (content := place.read(file.name)) is not None:
            file.write_bytes(content)
    for name in (*place.files("tokenizer"), *place.files(FOLDER)):
        if (to := inside(run.path, name)) is not None:
            place.get(name, to)
    run.manifest.write_bytes(place.read("manifest.json") or b"{}")
    write_json(run.manifest, {**read_json(run.manifest), "stages": {}})

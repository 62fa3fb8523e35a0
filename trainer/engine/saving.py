"""Save checkpoints, from one process or from all ranks. A save is complete or leaves nothing behind.

Files are written into a temporary directory and flushed to disk, each by its rank. Rank zero then writes the manifest
with their sizes and hashes, and renames the directory. A kill at any instant leaves the older checkpoints as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors import SafetensorError

from trainer import tensors
from trainer.engine import checkpoint
from trainer.errors import CheckpointError, LockLost
from trainer.files import flush, write_json
from trainer.lock import check_held
from trainer.rundir import CHECKPOINT_MANIFEST


class Ranks(Protocol):
    """The ranks that save together. All of them enter both methods."""

    main: bool
    rank: int

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work()` on rank zero. Return its result, or raise its error, on all ranks."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return the value of each rank on rank zero, None elsewhere."""


class Alone:
    """One process that saves alone."""

    main, rank = True, 0

    def on_main(self, work: Callable[[], Any]) -> Any:
        return work()

    def gather(self, value: Any) -> list[Any]:
        return [value]


@dataclass(frozen=True)
class Share:
    """What a rank writes of a checkpoint.

    Attributes:
        files: its tensors by file and name.
        indexes: on rank zero, for each file that is written in parts: the names of the tensors in each part, and the
            bytes of all tensors.
        finish: takes part in what other ranks still need to compute what they write.
    """

    files: Mapping[str, Mapping[str, tensors.Stored]]
    indexes: Mapping[str, tuple[Mapping[str, list[str]], int]] = field(default_factory=dict)
    finish: Callable[[], None] = lambda: None


def save(
    folder: Path, step: int, content: Mapping[str, Mapping[str, tensors.Stored]], state: Mapping[str, Any]
) -> Path:
    """Save one checkpoint from one process and return its folder.

    Args:
        folder: of all checkpoints.
        step: of the checkpoint.
        content: tensors by parameter name, by file name.
        state: the content of state.json.

    Raises:
        CheckpointError: the disk is full or not writable; older checkpoints are as they were.
        LockLost: the run directory belongs to another process.
    """
    files: dict[str, Mapping[str, tensors.Stored]] = {}
    indexes = {}
    for file, found in content.items():
        plan = tensors.plan_files(file, found)
        files |= {part: {name: found[name] for name in names} for part, names in plan.items()}
        if file not in plan:
            indexes[file] = plan, sum(map(tensors.size_of, found.values()))
    return save_share(folder, step, Share(files, indexes), state, Alone())


def save_share(folder: Path, step: int, share: Share, state: Mapping[str, Any], ranks: Ranks) -> Path:
    """Save one checkpoint, of which each rank writes its share, and return its folder. All ranks.

    Rank zero makes the temporary directory, and commits it once the files of all ranks are flushed.

    Raises:
        CheckpointError, LockLost: as `save`, on all ranks, whichever of them has failed.
    """
    temporary: Path = ranks.on_main(lambda: _begin(folder, step))
    files: dict[str, dict[str, Any]] = {}
    error: Exception | None = None
    try:
        check_held(folder)
        hashes = tensors.write_files(temporary, share.files)
        files = {name: _describe(temporary / name, digest) for name, digest in hashes.items()}
    except LockLost as lost:
        error = lost
    except (OSError, SafetensorError, CheckpointError) as failed:
        error = CheckpointError(f"rank {ranks.rank}: {failed}" if ranks.rank else str(failed))
    share.finish()
    results = ranks.gather((files, error))

    def commit() -> Path:
        with _described(folder, step, temporary):
            written: dict[str, dict[str, Any]] = {}
            for of_rank, failed in results or []:
                if failed is not None:
                    raise failed
                written |= of_rank
            return _commit(folder, step, temporary, written, share.indexes, state)

    return cast("Path", ranks.on_main(commit))


def _begin(folder: Path, step: int) -> Path:
    """Make the temporary directory of a save."""
    check_held(folder)
    temporary = folder / f".saving-{step:08d}-{secrets.token_hex(4)}"
    with _described(folder, step, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    return temporary


def _commit(
    folder: Path,
    step: int,
    temporary: Path,
    files: dict[str, dict[str, Any]],
    indexes: Mapping[str, tuple[Mapping[str, list[str]], int]],
    state: Mapping[str, Any],
) -> Path:
    """Write the rest of a checkpoint whose tensors are flushed, the manifest last, and rename its directory."""
    for name, (parts, size) in indexes.items():
        tensors.write_index(temporary / name, parts, size)
    write_json(temporary / "state.json", dict(state))
    files = files | {path.name: _describe(path) for path in temporary.iterdir() if path.name not in files}
    write_json(temporary / CHECKPOINT_MANIFEST, {"format": 1, "step": step, "files": dict(sorted(files.items()))})
    flush(temporary)
    check_held(folder)
    final = checkpoint.path_of(folder, step)
    if final.exists():  # at the end of an epoch, or made again after a resume from before it
        final.rename(checkpoint.replaced(folder, step))
    temporary.rename(final)
    flush(folder)
    shutil.rmtree(checkpoint.replaced(folder, step), ignore_errors=True)
    return final


@contextlib.contextmanager
def _described(folder: Path, step: int, temporary: Path) -> Iterator[None]:
    """Remove what a failed save has written, and describe its error."""
    try:
        yield
    except LockLost:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        checkpoint.put_back(folder)
        raise CheckpointError(
            f"checkpoint of step {step} cannot be written to {folder}: {error}; {checkpoint.describe_saved(folder)}. "
            "Free space (or lower loop.keep) and run the same command again"
        ) from error


def _describe(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Return the entry of a file in the manifest. A file whose `digest` is known has been flushed by its writer."""
    if digest is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}

"""Checkpoints that are whole or not there.

    checkpoints/step-00000200/
      model.safetensors  optimizer.safetensors  [ema.safetensors]  state.json  (above 1 GB in parts: trainer/tensors.py)
      manifest.json      sizes and SHA-256 of the others, written last

Files are written into a temporary directory, flushed to disk, and the directory is renamed. A directory without its
manifest, or with a file of another size or hash, is no checkpoint. Old ones go only after a new one is committed. The
format is by parameter name and the same for every engine; only safetensors and JSON are ever read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from trainer import tensors
from trainer.errors import CheckpointError
from trainer.rundir import inside, read_json, write_json

log = logging.getLogger("rankzero")

NAME = re.compile(r"^step-(\d{8,})$")
MANIFEST = "manifest.json"


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save(folder: Path, step: int, content: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Commits one checkpoint: `content` maps file name to {parameter name: tensor}. Rank zero alone calls this.

    Raises:
        CheckpointError: the disk is full or not writable; older checkpoints are as they were.
    """
    final, temporary = path_of(folder, step), folder / f".saving-{step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, part in content.items():
            tensors.write(temporary / name, part)
        write_json(temporary / "state.json", dict(state))
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"format": 1, "step": step, "files": files})
        _flush(temporary)
        if final.exists():  # at the end of an epoch, or made again after a resume from before it
            final.rename(_replaced(folder, step))
        temporary.rename(final)
        _flush(folder)
        shutil.rmtree(_replaced(folder, step), ignore_errors=True)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        put_back(folder)
        raise CheckpointError(
            f"checkpoint of step {step} cannot be written to {folder}: {error}; earlier checkpoints are intact: "
            "free space (or lower loop.keep) and run the same command again"
        ) from error
    return final


def _replaced(folder: Path, step: int) -> Path:
    return folder / f".replaced-{step:08d}"


def put_back(folder: Path) -> None:
    """Undoes the replacement of a checkpoint by itself that came to its end between two renames."""
    for aside in folder.glob(".replaced-*"):
        final = path_of(folder, int(aside.name.rpartition("-")[2]))
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def steps(folder: Path) -> list[int]:
    """Steps of all directories that are named like a checkpoint, whole or not, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if p.is_dir() and (m := NAME.match(p.name)))


def fault(path: Path) -> str | None:
    """What keeps a directory from being a checkpoint: the file and why; None for a whole one."""
    try:
        manifest = read_json(path / MANIFEST)
    except CheckpointError as error:
        return str(error)
    if manifest is None:
        return f"{path / MANIFEST} is missing: the save was not finished"
    files = manifest.get("files") if isinstance(manifest, dict) else None
    weights = {"model.safetensors", tensors.index_of(Path("model.safetensors")).name}
    if not isinstance(files, dict) or "state.json" not in files or not files.keys() & weights:
        return f"{path / MANIFEST} does not list the files of a checkpoint"
    for name, expected in files.items():
        file = inside(path, name)
        if file is None:
            return f"{path / MANIFEST} names {name!r}, which is not in the checkpoint"
        if not file.is_file():
            return f"{file} is missing"
        if not isinstance(expected, dict) or file.stat().st_size != expected.get("size"):
            return f"{file} has {file.stat().st_size} bytes; its manifest says {expected}"
        if _describe(file)["sha256"] != expected.get("sha256"):
            return f"{file} has another SHA-256 than its manifest"
    return None


def newest(folder: Path) -> int | None:
    """The newest whole checkpoint's step, found by checking; None where none was ever begun.

    Raises:
        CheckpointError: there are checkpoint directories but none is whole. Never a silent start from scratch.
    """
    faults = []
    put_back(folder)
    for step in reversed(steps(folder)):
        wrong = fault(path_of(folder, step))
        if wrong is None:
            return step
        log.warning("step %d is no whole checkpoint and is passed over: %s", step, wrong)
        faults.append(wrong)
    if faults:
        raise CheckpointError(
            f"no whole checkpoint among {len(faults)} in {folder}: {'; '.join(faults)}. Restore one from a backup, or "
            "start again with --fresh (which keeps this run beside the new one)"
        )
    return None


def read(folder: Path, step: int, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint (or of its parts); empty when the checkpoint has no such file."""
    path = path_of(folder, step) / name
    return tensors.read(path) if tensors.exists(path) else {}


def read_state(folder: Path, step: int) -> dict[str, Any]:
    state = read_json(path_of(folder, step) / "state.json")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path_of(folder, step) / 'state.json'} is missing or not an object")
    return state


def clean(folder: Path, keep: int, protected: Iterable[int]) -> None:
    """Deletes all but the newest `keep` whole checkpoints and the protected ones, and what dead saves have left."""
    whole = [step for step in steps(folder) if (path_of(folder, step) / MANIFEST).exists()]
    for step in set(whole[:-keep]) - set(protected):
        doomed = folder / f".deleting-{step:08d}"
        with contextlib.suppress(OSError):  # a kill in between leaves a name that no one takes for a checkpoint
            path_of(folder, step).rename(doomed)
            shutil.rmtree(doomed)
    put_back(folder)
    for left in [*folder.glob(".saving-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(left, ignore_errors=True)

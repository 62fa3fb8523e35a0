"""Read and keep checkpoints. saving.py writes them.

    checkpoints/step-00000200/
      model.safetensors  optimizer.safetensors  [ema.safetensors]  state.json  (large ones in parts: parts.py)
      manifest.json      sizes and SHA-256 of the others, written last

A directory without its manifest, or with a file of another size or hash, does not count. Old ones are deleted after a
new one is committed. The format is by parameter name and the same for every engine; only safetensors and JSON are ever
read back.

Rank zero compares each file that any rank reads with its hash, once per file in a process, on all cores. A damaged
checkpoint that is newer than the one that is resumed from is renamed to damaged-step-…: it is kept, but not counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainer import tensors
from trainer.cpu_info import cores
from trainer.errors import CheckpointError
from trainer.files import inside, read_json
from trainer.lock import check_held
from trainer.rundir import CHECKPOINT, CHECKPOINT_MANIFEST

log = logging.getLogger("rankzero")

HASHED_AT_ONCE = 16  # files, at most; hashlib and reads leave the interpreter to other threads

_hashes: dict[tuple[Any, ...], str] = {}  # of files that this process has read, by path and the values of `stat`


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def describe_saved(folder: Path) -> str:
    """Return what a user can rely on after a save has failed."""
    saved = [step for step in steps(folder) if fault(path_of(folder, step), hashes=False) is None]
    return f"the checkpoint of step {saved[-1]} is intact" if saved else "no checkpoint has been saved yet"


def replaced(folder: Path, step: int) -> Path:
    return folder / f".replaced-{step:08d}"


def put_back(folder: Path) -> None:
    """Undo a replacement of a checkpoint that was interrupted between two renames."""
    check_held(folder)
    for aside in folder.glob(".replaced-*"):
        final = path_of(folder, int(aside.name.rpartition("-")[2]))
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, computed once in this process unless `stat` of the file changes."""
    status = path.stat()
    key = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def steps(folder: Path) -> list[int]:
    """Return the steps of all directories that are named like a checkpoint, complete or not, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if p.is_dir() and (m := CHECKPOINT.match(p.name)))


def fault(path: Path, *, only: str | None = None, hashes: bool = True) -> str | None:
    """Return why a directory is not a complete checkpoint, with the file. None for a complete one.

    Args:
        path: the directory.
        only: check this file alone (all parts of it); by default all files of the manifest.
        hashes: compare hashes; without them only presence and size.
    """
    try:
        manifest = read_json(path / CHECKPOINT_MANIFEST)
    except CheckpointError as error:
        return str(error)
    if manifest is None:
        return f"{path / CHECKPOINT_MANIFEST} is missing: the save was not finished"
    files = manifest.get("files") if isinstance(manifest, dict) else None
    weights = {"model.safetensors", tensors.index_of(Path("model.safetensors")).name}
    if not isinstance(files, dict) or "state.json" not in files or not files.keys() & weights:
        return f"{path / CHECKPOINT_MANIFEST} does not list the files of a checkpoint"
    for name in files:
        if inside(path, name) is None:
            return f"{path / CHECKPOINT_MANIFEST} names {name!r}, which is not in the checkpoint"
    chosen = {path / name: expected for name, expected in files.items() if only is None or _is_part(name, only)}
    for file, expected in chosen.items():
        if not file.is_file():
            return f"{file} is missing"
        if not isinstance(expected, dict) or file.stat().st_size != expected.get("size"):
            return f"{file} has {file.stat().st_size} bytes; its manifest says {expected}"
    found = _hashes_of(chosen) if hashes else {}
    wrong = [file for file, digest in found.items() if digest != chosen[file].get("sha256")]
    return f"{wrong[0]} has another SHA-256 than its manifest" if wrong else None


def _hashes_of(files: Collection[Path]) -> dict[Path, str]:
    """Return the SHA-256 of files, in their order. The largest is begun first, because it may take longest."""
    by_size = sorted(files, key=lambda file: file.stat().st_size, reverse=True)
    with ThreadPoolExecutor(max(1, min(HASHED_AT_ONCE, cores(), len(by_size)))) as pool:
        digests = dict(zip(by_size, pool.map(_hash, by_size), strict=True))
    return {file: digests[file] for file in files}


def _is_part(name: str, file: str) -> bool:
    """Whether `name` is `file` itself, one of the parts that it is saved in, or their index."""
    stem, suffix = Path(file).stem, Path(file).suffix
    return name in (file, f"{file}.index.json") or (name.startswith(f"{stem}-") and name.endswith(suffix))


def checked(folder: Path, step: int, name: str | None = None, *, hashes: bool = True) -> Path:
    """Return the path of a checkpoint, or of one of its files, after comparing it with its hashes.

    With `hashes=False` only presence and sizes are compared: by ranks of a run whose rank zero compares the hashes.

    Raises:
        CheckpointError: damaged or missing; names the file.
    """
    path = path_of(folder, step)
    if wrong := fault(path, only=name, hashes=hashes):
        raise CheckpointError(
            f"the checkpoint of step {step} is damaged: {wrong}. Restore it from a backup, or train again from the "
            "start with --fresh (which keeps this run)"
        )
    return path if name is None else path / name


def newest(folder: Path, *, set_aside: bool = True) -> int | None:
    """Return the step of the newest complete checkpoint, or None where none was ever begun. Reads all of its files.

    Damaged ones that are newer are renamed (`set_aside`). Otherwise later saves would count them as the newest ones.

    Raises:
        CheckpointError: there are checkpoint directories but none is complete. Never a silent start from scratch.
    """
    faults: dict[int, str] = {}
    put_back(folder)
    for step in reversed(steps(folder)):
        wrong = fault(path_of(folder, step))
        if wrong is None:
            for damaged, why in faults.items() if set_aside else ():
                _set_aside(folder, damaged, why)
            return step
        faults[step] = wrong
    if faults:
        raise CheckpointError(
            f"no complete checkpoint among {len(faults)} in {folder}: {'; '.join(faults.values())}. Restore one from a "
            "backup, or start again with --fresh (which keeps this run)"
        )
    return None


def _set_aside(folder: Path, step: int, why: str) -> None:
    """Rename a damaged checkpoint, so that it does not count and a later save can use its name."""
    check_held(folder)
    path = path_of(folder, step)
    to, number = folder / f"damaged-{path.name}", 1
    while to.exists():
        number += 1
        to = folder / f"damaged-{path.name}-{number}"
    try:
        path.rename(to)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged ({why}) and cannot be renamed: {error.strerror}") from error
    log.warning("the checkpoint of step %d is damaged (%s): renamed to %s", step, why, to)


def read(folder: Path, step: int, name: str, *, hashes: bool = True) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint (or of its parts); empty when the checkpoint has no such file.

    They are views of the mapped file, and only what is used is read. `hashes` is that of `checked`.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = checked(folder, step, name, hashes=hashes)
    return tensors.read(path) if tensors.exists(path) else {}


def read_state(folder: Path, step: int) -> dict[str, Any]:
    """Return what state.json of a checkpoint holds. Raises CheckpointError if it is damaged."""
    state = read_json(checked(folder, step, "state.json"))
    if not isinstance(state, dict):
        raise CheckpointError(f"{path_of(folder, step) / 'state.json'} is missing or not an object")
    return state


def clean(folder: Path, keep: int | Literal["all"], protected: Iterable[int]) -> None:
    """Delete old checkpoints, and files of killed saves.

    The newest `keep` complete checkpoints and the protected ones stay.
    Damaged ones (by presence and size of their files) are renamed and never deleted.
    """
    check_held(folder)
    complete = []
    for step in steps(folder):
        if wrong := fault(path_of(folder, step), hashes=False):
            _set_aside(folder, step, wrong)
        else:
            complete.append(step)
    surplus = [] if keep == "all" else complete[:-keep]
    for step in set(surplus) - set(protected):
        deleted = folder / f".deleting-{step:08d}"
        with contextlib.suppress(OSError):  # a kill in between leaves a name that does not count as a checkpoint
            path_of(folder, step).rename(deleted)
            shutil.rmtree(deleted)
    put_back(folder)
    for leftover in [*folder.glob(".saving-*"), *folder.glob(".deleting-*")]:
        shutil.rmtree(leftover, ignore_errors=True)

"""Write files so that readers never see a part of them, and read the JSON files of a run. No torch here."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import CheckpointError, LockLost
from trainer.lock import check_held

_PROCESS = secrets.token_hex(4)  # with the process number in the names of temporary files: unique over machines
# Keys of these files that hold objects, lists and truth values; and those that hold objects of objects.
FORMED = ("manifest.json", "gate.json", "benchmark.json", "status.json")
FORMS: dict[str, Any] = {
    **dict.fromkeys(("data", "stages", "versions", "devices", "files", "checks", "inputs", "of"), dict),
    **dict.fromkeys(("contestants", "recommended", "left_out"), dict),
    **dict.fromkeys(("starts", "command", "failed", "courses"), list),
    "passed": bool,
}
OF_OBJECTS = ("data", "stages", "checks", "contestants")
MOST_NUMBER = 1e12  # of a step, a time or a loss in these files, above which sums and times overflow
LEAST_SHARE = 1e-100  # above 0
# Keys of status.json. A number is finite.
STATUS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("state", "error", "waits_for", "launch"), (str,)),
    **dict.fromkeys(("step", "exit_code", "attempt", "pid"), (int,)),
    **dict.fromkeys(("loss", "share", "left", "updated"), (int, float)),
}
MOST_JSON = 200_000_000  # bytes of a JSON file that is read at once


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
        raise cannot_write(path, error) from error


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


def make_parents(path: Path) -> None:
    """Make the folders of a file that a command writes where the user wants it.

    Raises:
        CheckpointError: they cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.filename}: {error.strerror}; choose another") from None


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
        raise cannot_write(place, error) from error
    shutil.rmtree(old, ignore_errors=True)


def cannot_write(path: Path, error: OSError) -> CheckpointError:
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
        size = regular_size(path)
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


def regular_size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: there is none, or it is a folder, a pipe or a device, whose content may never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return found.st_size


def is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a device or a socket. One look: another process may remove a file meanwhile."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it is gone, or a link without an end
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_number(value: object) -> bool:
    """Return whether a value of a JSON file is a finite number of a size that occurs."""
    return type(value) in (int, float) and -MOST_NUMBER < value < MOST_NUMBER  # type: ignore[operator]


def _check_form(path: Path, value: dict[str, Any]) -> None:
    if path.name == "status.json":
        _check_status(path, value)
        return
    for key, form in FORMS.items():
        found: Any = value.get(key)
        if found is None and form is not bool:
            value.pop(key, None)  # null, where an object or a list is expected
        if found is not None and not isinstance(found, form):
            raise CheckpointError(f"{path}: {key} is a {type(found).__name__}, not a {form.__name__}; restore it")
        if key in OF_OBJECTS and found and not all(isinstance(part, dict) for part in found.values()):
            raise CheckpointError(f"{path}: {key} is not an object of objects; restore it")


def _check_status(path: Path, value: dict[str, Any]) -> None:
    for key, forms in STATUS.items():
        found: Any = value.get(key)
        if type(found) is float and not is_number(found) and key in ("loss", "share", "left"):
            found = value[key] = None  # not known: a loss may be NaN
        if found is not None and (type(found) not in forms or (str not in forms and not is_number(found))):
            text = str(found)[:60] if not isinstance(found, int) or is_number(found) else "too large"
            raise CheckpointError(
                f"{path}: {key} is {text!r}, not {' or '.join(f.__name__ for f in forms)}; restore it"
            )
    if (share := value.get("share")) is not None and share != 0 and not LEAST_SHARE <= share <= 1:
        raise CheckpointError(f"{path}: share is {value['share']}, not a part of 1; restore it")


def inside(folder: Path, name: object) -> Path | None:
    """Return the path of a file that a JSON file in the folder names, or None if the name leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name or name.startswith("/") or ".." in Path(name).parts:
        return None
    return folder / name


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

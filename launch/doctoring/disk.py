"""The file system of the run directory: space, speed, and whether saving and locking work on it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil

from launch.doctoring.check import GIB, Check, Findings, size, within

TOO_LITTLE, LITTLE = GIB // 4, 4 * GIB
FEW_FILES = 10_000
SLOW = 50e6  # bytes/s written: below it, saving 1 GB takes more than 20 s
TRIAL = 64 * 2**20  # bytes written for the speed
TRIAL_SECONDS = 3.0
CHUNK = 4 * 2**20
RENAMES = 100
PATIENCE = 30.0
IN_MEMORY = ("tmpfs", "ramfs")
ELSEWHERE = "choose another --run"


def checks(run: Path, *, speed: bool) -> list[Check]:
    """Space and saving, and with `speed` how fast; `run` need not exist and is not made."""
    hangs = f"the file system does not answer: look at the mount of {run}, or {ELSEWHERE}"
    return within("disk", PATIENCE, lambda: _checks(run, speed), hangs)


def _checks(run: Path, speed: bool) -> list[Check]:
    folder = existing(run)
    found = [_space(run, folder), _saving(folder)]
    if speed:
        found.append(_speed(folder))
    return found


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _space(run: Path, folder: Path) -> Check:
    findings = Findings("disk space")
    space, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    kind, device = _mount(folder)
    findings.fact(f"{run}: {size(space.free)} of {size(space.total)} free ({kind} on {device})")
    fix = f"free space, or {ELSEWHERE} (rankzero plan RECIPE tells the size of its checkpoints)"
    if space.free < TOO_LITTLE:
        findings.fail("no room for a checkpoint", fix)
    elif space.free < LITTLE:
        findings.warn("room for small checkpoints only", fix)
    if inodes.f_files and inodes.f_favail < FEW_FILES:  # some file systems count none
        findings.warn(f"{inodes.f_favail} more files may be made", f"remove small files, or {ELSEWHERE}")
    if kind in IN_MEMORY:
        findings.warn("lies in memory: takes it from the training, and is gone after a restart", ELSEWHERE)
    return findings.check()


def _mount(folder: Path) -> tuple[str, str]:
    """Kind and device of the file system: the mount point nearest above the folder."""
    found = [
        (len(Path(part.mountpoint).parts), part.fstype, part.device)
        for part in psutil.disk_partitions(all=True)
        if folder.resolve().is_relative_to(part.mountpoint)
    ]
    return max(found)[1:] if found else ("unknown", "unknown")


def _saving(folder: Path) -> Check:
    """Files are saved by rename, and the run directory is locked by `flock`: both must do what they promise."""
    findings = Findings("saving")
    try:
        with tempfile.TemporaryDirectory(prefix=".rankzero-doctor-", dir=folder) as name:
            torn = _torn_reads(Path(name) / "file")
            _rename_folder(Path(name))
            refusal = _lock(Path(name) / "lock")
    except OSError as error:
        findings.fail(f"cannot write in {folder}: {error.strerror}", f"chmod or mount it writable, or {ELSEWHERE}")
        return findings.check()
    if torn:
        text = f"{torn} of {RENAMES} renames showed a reader a part of a file, or none"
        findings.fail(text, f"a kill while saving could cost a checkpoint here: {ELSEWHERE}, on a local disk")
    else:
        findings.fact("rename replaces whole files")
    if refusal:
        fix = f"mount with locks (NFS: without nolock, with local_lock=none), or {ELSEWHERE}"
        findings.fail(f"flock does not work ({refusal}): two runs could write here at once", fix)
    else:
        findings.fact("flock keeps a second writer out")
    return findings.check()


def _torn_reads(path: Path) -> int:
    """Replaces a file again and again, as trainer.rundir does; how often a reader beside it saw less than a whole."""
    whole = ("a" * 4096, "b" * 4096)
    path.write_text(whole[0], encoding="utf-8")
    errors: list[OSError] = []

    def rewrite() -> None:
        try:
            for number in range(RENAMES):
                beside = path.with_suffix(".tmp")
                beside.write_text(whole[number % 2], encoding="utf-8")
                beside.replace(path)
        except OSError as error:
            errors.append(error)

    writer, torn = threading.Thread(target=rewrite), 0
    writer.start()
    while writer.is_alive():
        try:
            torn += path.read_text(encoding="utf-8") not in whole
        except FileNotFoundError:
            torn += 1
    writer.join()
    if errors:
        raise errors[0]
    return torn


def _rename_folder(folder: Path) -> None:
    """A checkpoint is made as a folder under another name, renamed when it is whole, and the parent flushed."""
    made = folder / "step.tmp"
    made.mkdir()
    (made / "weights").write_bytes(b"0")
    made.rename(folder / "step")
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _lock(path: Path) -> str:
    """What is wrong with `flock` here; empty where a second holder is refused as it should be."""
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        except OSError as error:
            return error.strerror or str(error)
    return "two holders at once"


def _speed(folder: Path) -> Check:
    findings = Findings("disk speed")
    try:
        written, write, read = measure(folder)
    except OSError as error:
        findings.fail(f"cannot write in {folder}: {error.strerror}", f"free space or fix rights, or {ELSEWHERE}")
        return findings.check()
    findings.fact(f"{write / 1e6:.0f} MB/s written and flushed, {read / 1e6:.0f} MB/s read ({size(written)})")
    if write < SLOW:
        seconds = 1e9 / write
        text = f"slow: each GB of a checkpoint takes {seconds:.0f} s"
        findings.warn(text, f"{ELSEWHERE} on a faster disk, or save less often (loop.save_every)")
    return findings.check()


def measure(folder: Path) -> tuple[int, float, float]:
    """Bytes written, bytes/s written with fsync, bytes/s read back past the page cache.

    The file has no name where the system can do that (O_TMPFILE), so that nothing is left whatever happens.
    """
    chunk = os.urandom(CHUNK)  # nothing that a file system could compress
    most = min(TRIAL, shutil.disk_usage(folder).free // 10)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        number, written = file.fileno(), 0
        began = time.perf_counter()
        while written == 0 or (written < most and time.perf_counter() - began < TRIAL_SECONDS):
            written += file.write(chunk) or 0
        os.fsync(number)
        write = written / (time.perf_counter() - began)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began, left = time.perf_counter(), written
        while left > 0 and (part := file.read(CHUNK)):
            left -= len(part)
        return written, write, written / (time.perf_counter() - began)

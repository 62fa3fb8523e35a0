"""Check the file system of the run directory: space, speed, and whether saving and locking work."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from launch.findings import GIB, Findings, existing_folder, size
from trainer.errors import CheckpointError
from trainer.files import publish, workspace, write_atomically
from trainer.lock_file import flock

TOO_LITTLE, LITTLE = GIB // 4, 4 * GIB
FEW_FILES = 10_000
SLOW = 50e6  # bytes/s written: below it, saving 1 GB takes more than 20 s
TRIAL = 64 * 2**20  # bytes written to measure the speed
TRIAL_SECONDS = 3.0
CHUNK = 4 * 2**20
REPLACEMENTS = 30
IN_MEMORY = ("tmpfs", "ramfs")
ELSEWHERE = "choose another --run"


def check_space(findings: Findings, run: Path) -> None:
    folder = existing_folder(run)
    space, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    kind, device = _mount(folder)
    findings.fact(f"{run}: {size(space.free)} of {size(space.total)} free ({kind} on {device})")
    fix = f"free space, or {ELSEWHERE} (rankzero plan RECIPE gives the size of its checkpoints)"
    if space.free < TOO_LITTLE:
        findings.fail("no space for a checkpoint", fix)
    elif space.free < LITTLE:
        findings.warn("space for small checkpoints only", fix)
    if inodes.f_files and inodes.f_favail < FEW_FILES:  # some file systems do not count them
        findings.warn(f"only {inodes.f_favail} more files can be created", f"remove small files, or {ELSEWHERE}")
    if kind in IN_MEMORY:
        findings.warn("the folder is in memory: it takes memory from the training and is lost at a restart", ELSEWHERE)


def _mount(folder: Path) -> tuple[str, str]:
    """Return kind and device of the file system that the folder is on."""
    mounts = [
        (len(Path(part.mountpoint).parts), part.fstype, part.device)
        for part in psutil.disk_partitions(all=True)
        if folder.resolve().is_relative_to(part.mountpoint)
    ]
    return max(mounts)[1:] if mounts else ("unknown", "unknown")


def check_saving(findings: Findings, run: Path) -> None:
    """Save a file and a folder as a run does while another thread reads, and try to lock a file twice."""
    folder = existing_folder(run)
    try:
        with tempfile.TemporaryDirectory(prefix=".rankzero-doctor-", dir=folder) as name:
            torn = _torn_reads(Path(name) / "file")
            publish(workspace(Path(name) / "step"), Path(name) / "step")
            with (Path(name) / "lock").open("wb") as first, (Path(name) / "lock").open("wb") as second:
                locks = flock(first) and not flock(second)
    except (OSError, CheckpointError) as error:
        findings.fail(f"cannot save in {folder}: {error}", f"make it writable (chmod, mount), or {ELSEWHERE}")
        return
    if torn:
        text = f"of {REPLACEMENTS} replaced files a reader saw {torn} times a part or nothing"
        findings.fail(text, f"a kill while saving could lose a checkpoint here: {ELSEWHERE}, on a local disk")
    else:
        findings.fact("files are replaced atomically")
    if locks:
        findings.fact("flock keeps a second writer out")
    else:
        text = "flock does not work: a second run notices the first one only by its heartbeat, after some seconds"
        findings.warn(text, f"mount with locks (NFS: without nolock, with local_lock=none), or {ELSEWHERE}")


def _torn_reads(path: Path) -> int:
    """Return how often a reader saw an incomplete file while another thread replaced it."""
    contents = ("a" * 4096, "b" * 4096)
    write_atomically(path, contents[0])

    def replace() -> None:
        for number in range(REPLACEMENTS):
            write_atomically(path, contents[number % 2])

    torn = 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(replace)
        while not writing.done():
            try:
                torn += path.read_text(encoding="utf-8") not in contents
            except FileNotFoundError:
                torn += 1
    writing.result()
    return torn


def check_speed(findings: Findings, run: Path) -> None:
    folder = existing_folder(run)
    try:
        count, seconds = measure(folder)
    except OSError as error:
        findings.fail(f"cannot write in {folder}: {error.strerror}", f"free space or fix rights, or {ELSEWHERE}")
        return
    findings.fact(f"{count / seconds / 1e6:.0f} MB/s written and flushed ({size(count)})")
    if count / seconds < SLOW:
        text = f"slow: each GB of a checkpoint takes {1e9 * seconds / count:.0f} s"
        findings.warn(text, f"{ELSEWHERE} on a faster disk, or save less often (loop.save_every)")


def measure(folder: Path) -> tuple[int, float]:
    """Return how many bytes were written, and the seconds including fsync.

    The temporary file has no name where the system allows it (O_TMPFILE), so nothing remains after a kill.
    """
    chunk = os.urandom(CHUNK)  # cannot be compressed by the file system
    most = min(TRIAL, shutil.disk_usage(folder).free // 10)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        count, began = 0, time.perf_counter()
        while count == 0 or (count < most and time.perf_counter() - began < TRIAL_SECONDS):
            count += file.write(chunk) or 0
        os.fsync(file.fileno())
        return count, time.perf_counter() - began

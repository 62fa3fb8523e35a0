"""Check the file system of the run directory: space, saving, locks and speed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from launch.findings import GIB, Findings, existing_folder, size
from trainer.files import publish, workspace
from trainer.lock_file import flock

TOO_LITTLE, LITTLE = GIB // 4, 4 * GIB
FEW_FILES = 10_000
SLOW = 50e6  # bytes/s written: below it, saving 1 GB takes more than 20 s
TRIAL = 64 * 2**20  # bytes written to measure the speed
TRIAL_SECONDS = 3.0
CHUNK = 4 * 2**20
ELSEWHERE = "choose another --run"


def check_disk(findings: Findings, run: Path, quick: bool) -> None:
    folder = existing_folder(run)
    space, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    findings.fact(f"{run}: {size(space.free)} of {size(space.total)} free")
    fix = f"free space, or {ELSEWHERE} (rankzero plan RECIPE gives the size of its checkpoints)"
    if space.free < TOO_LITTLE:
        findings.fail("no space for a checkpoint", fix)
    elif space.free < LITTLE:
        findings.warn("space for small checkpoints only", fix)
    if inodes.f_files and inodes.f_favail < FEW_FILES:  # some file systems do not count them
        findings.warn(f"only {inodes.f_favail} more files can be created", f"remove small files, or {ELSEWHERE}")
    with tempfile.TemporaryDirectory(prefix=".rankzero-doctor-", dir=folder) as name:
        publish(workspace(Path(name) / "step"), Path(name) / "step")
        with (Path(name) / "lock").open("wb") as first, (Path(name) / "lock").open("wb") as second:
            if not flock(first) or flock(second):
                text = "flock does not work: a second run notices the first one only by its heartbeat, after seconds"
                findings.warn(text, f"mount with locks (NFS: without nolock, with local_lock=none), or {ELSEWHERE}")
    if quick:
        return
    count, seconds = measure(folder)
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

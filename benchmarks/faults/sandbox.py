"""Where a campaign runs: separate namespaces, a file system on a loop device, a network of two hosts, a shim.

Processes, mounts, network interfaces and shared memory are in namespaces, so all of them end with the campaign.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.network import Network

from benchmarks.faults import ROOT

INSIDE, CONTROL = "FAULTS_INSIDE", "FAULTS_CONTROL"
SHARED_MEMORY = Path("/dev/shm")
DISK_BYTES = 24 << 20  # a run of the tiny recipe takes 2 MB
SPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


def ask(*words: object) -> str:
    """Run a program. Return what is wrong, empty if it ended with 0."""
    try:
        ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    text = ended.stderr.strip().splitlines()
    return (text[-1] if text else f"{words[0]} ended with {ended.returncode}") if ended.returncode else ""


def build_shim(folder: Path) -> str:
    """Compile shim.c. Return why that is not possible, empty if it is."""
    return ask("gcc", "-O2", "-shared", "-fPIC", "-o", folder / "shim.so", ROOT / "benchmarks/faults/shim.c", "-ldl")


def enter(folder: Path, argv: Sequence[str]) -> dict[str, str]:
    """Run the program again in namespaces, with the shim. There, return why "namespaces" or "shim" are missing."""
    if INSIDE not in os.environ:
        _enter(folder, argv)
    missing = dict(part.split("=", 1) for part in os.environ[INSIDE].split("\n") if part)
    if "namespaces" not in missing:
        for words in (["mount", "-t", "tmpfs", "tmpfs", SHARED_MEMORY], ["ip", "link", "set", "lo", "up"]):
            if problem := ask(*words):
                raise OSError(f"{words}: {problem}")
    return missing


def _enter(folder: Path, argv: Sequence[str]) -> None:
    missing = {"shim": build_shim(folder), "namespaces": ask("unshare", *SPACES, "true")}
    control, temporary = folder / "control", folder / "tmp"
    control.write_bytes(bytes(ctypes.sizeof(Block)))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    env = os.environ | {CONTROL: str(control), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    env[INSIDE] = "\n".join(f"{name}={why}" for name, why in missing.items() if why)
    if not missing["shim"]:
        env["LD_PRELOAD"] = str(folder / "shim.so")
    again = [sys.executable, "-m", "benchmarks.faults", *argv]
    if not missing["namespaces"]:  # the shell is their init: it collects processes whose parents have died
        again = ["unshare", *SPACES, "bash", "-c", '"$@"; exit $?', "bash", *again]
    os.execvpe(again[0], again, env)


class Block(ctypes.Structure):
    """The control block of shim.c."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("operations", "error", "remaining", "hits", "spared", "seconds")),
        ("root", ctypes.c_char * 256),
        ("pattern", ctypes.c_char * 64),
    )


class Shim:
    """Failing calls, and a wrong wall clock, in all processes but this one."""

    WRITE, READ, SYNC, RENAME, SHORT = 1, 2, 4, 8, 16

    def __init__(self, root: Path) -> None:
        with Path(os.environ[CONTROL]).open("r+b") as file:
            self._block = Block.from_buffer(mmap.mmap(file.fileno(), 0))
        self._block.spared, self._block.root = os.getpid(), str(root).encode()

    def fail(self, operations: int, pattern: str, error: int, calls: int) -> None:
        """Let so many calls of these operations on files whose path has `pattern` fail."""
        block = self._block
        block.hits, block.error, block.pattern, block.remaining = 0, error, pattern.encode(), calls
        block.operations = operations

    def step_clock(self, seconds: int) -> None:
        self._block.seconds = seconds

    @property
    def hits(self) -> int:
        """The calls that have failed since `fail`."""
        return int(self._block.hits)

    def reset(self) -> None:
        self._block.operations = self._block.seconds = self._block.remaining = 0


class Disk:
    """A small ext4 file system in a file, mounted through a loop device."""

    def __init__(self, image: Path, place: Path) -> None:
        self.image, self.place = image, place

    def make(self) -> str:
        """Make and mount it. Return what is wrong."""
        self.remove()
        self.place.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(DISK_BYTES)
        return ask("mkfs.ext4", "-q", "-m", "0", self.image) or self._mount()

    def _mount(self) -> str:
        return ask("mount", "-o", "loop,errors=remount-ro", self.image, self.place)

    def fill(self) -> None:
        """Take all of its space."""
        with contextlib.suppress(OSError), (self.place / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        with contextlib.suppress(OSError):  # read-only meanwhile: `repair` does it
            (self.place / "filler").unlink(missing_ok=True)

    def fail(self) -> None:
        """Let the kernel find an error in the file system, upon which it becomes read-only at once."""
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        (device,) = (Path(mount[0]).name for mount in mounts if mount[1] == str(self.place))
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")

    def repair(self) -> None:
        """Unmount, check and mount it again, as an administrator does."""
        problem = ask("umount", self.place)
        if not problem:
            ask("e2fsck", "-f", "-y", self.image)  # 1: errors were corrected
            problem = self._mount()
        if problem:
            raise OSError(f"{self.place}: {problem}")
        self.free()

    def remove(self) -> None:
        ask("umount", self.place)
        self.image.unlink(missing_ok=True)


class Hosts:
    """Two network namespaces, one for each rank, on a bridge."""

    def __init__(self) -> None:
        self.network, self._holders = Network(0), list[subprocess.Popen[bytes]]()

    def make(self) -> str:
        """Return what is wrong."""
        if problem := self.network.missing():
            return problem
        self.network.make()
        for node in (1, 2):
            script = f"{self.network.join(node)} exec sleep infinity"
            self._holders.append(subprocess.Popen(["unshare", "--net", "bash", "-c", script]))
        deadline = time.monotonic() + 10
        while any(self._name(holder) != "sleep" for holder in self._holders):
            if time.monotonic() > deadline:
                return "a network namespace was not ready within 10 s"
            time.sleep(0.01)
        return ""

    @staticmethod
    def _name(holder: subprocess.Popen[bytes]) -> str:
        return Path(f"/proc/{holder.pid}/comm").read_text().strip()

    @property
    def pids(self) -> set[int]:
        return {holder.pid for holder in self._holders}

    @property
    def spaces(self) -> list[str]:
        """The network namespace of each rank."""
        return [f"/proc/{holder.pid}/ns/net" for holder in self._holders]

    def cut(self, node: int) -> None:
        """Let packets of one rank be lost."""
        ask("ip", "link", "set", f"{self.network.bridge}n{node}", "down")

    def join(self) -> None:
        for node in (1, 2):
            ask("ip", "link", "set", f"{self.network.bridge}n{node}", "up")

    def reset(self, node: int) -> str:
        """Close all connections of one rank with the other host. Return what is wrong."""
        inside = ["nsenter", f"--net={self.spaces[node - 1]}", "ss", "-K", "dst", self.network.address(3 - node)]
        return ask(*inside)

    def end(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()

"""The lock file of a run directory: read it, write it, and find out whether its holder runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple


class Look(NamedTuple):
    """The lock file at one moment. A heartbeat changes `changed`, a takeover all three."""

    content: bytes
    changed: int  # ns, by whatever clock the file system has: only compared for equality
    inode: int


MOST_BYTES = 1 << 16


def _no_link(path: str, flags: int) -> int:
    """Open neither through a symbolic link, which may lead out of the run directory, nor wait for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def look(path: Path) -> Look | None:
    """Read the lock. Opening it asks the server of a network file system, where `stat` may answer from a cache."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            status = os.fstat(file.fileno())
            return Look(file.read(MOST_BYTES), status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        return None


def write_new(path: Path, me: Mapping[str, Any]) -> BinaryIO:
    """Create the file under flock and write it. Returns it open."""
    file = path.open("xb", buffering=0)
    try:
        flock(file)
        content = json.dumps(me).encode()
        while content:  # an unbuffered write may take a part
            content = content[file.write(content) :]
    except OSError:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def open_for_flock(path: Path) -> BinaryIO:
    """NFS wants a file that is open for writing for an exclusive flock; another user's lock can only be read."""
    try:
        return path.open("r+b")
    except PermissionError:
        return path.open("rb")


def flock(file: BinaryIO) -> bool:
    """Take the flock without waiting; False while another process has it, True without support."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def identity() -> dict[str, Any]:
    """Who holds a lock: for people, and for a process that can look up the holder."""
    return {
        "pid": os.getpid(),
        "born": _born("self")[0],
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid_namespace": _pid_namespace(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def name_of(holder: Mapping[str, Any] | None) -> str:
    if not holder:
        return "an unknown process (its lock cannot be read)"
    since = f" since {holder['since']}" if holder.get("since") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{since}"


def state_of(
    holder: Mapping[str, Any] | None, me: Mapping[str, Any]
) -> Literal["running", "stopped", "dead", "unknown"]:
    """The state of a holder's process, where it can be looked up from here."""
    place = ("host", "boot", "pid_namespace")
    if holder is None or any(me[key] is None or holder.get(key) != me[key] for key in place):
        return "unknown"
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        pass  # it exists
    except (KeyError, ValueError, TypeError, OverflowError):
        return "unknown"
    born, state = _born(str(holder["pid"]))
    if born is None or holder.get("born") is None:  # /proc hides processes of other users
        return "unknown"
    if born != holder["born"] or state in "ZX":
        return "dead"
    return "stopped" if state in "Tt" else "running"


def _born(pid: str) -> tuple[str | None, str]:
    """Start time and state of a process; a process number alone may be reused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], fields[0]
    except (OSError, IndexError):
        return None, ""


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    """The namespace that process numbers belong to; None where /proc shows the numbers of another one."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115
            return None
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return None

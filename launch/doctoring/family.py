"""The launcher and the ranks that the doctor starts, watched from outside and never left behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launch.configs import LaunchPlan
from launch.doctoring.settings import LAUNCHED
from launch.local import command, environment, for_launcher

SHUTDOWN = 5  # seconds that torch's agent gives ranks to end after SIGTERM
LAST_WORDS = 10.0  # seconds for the launcher to say which rank died, once another has lost its connection
DEAD = "dead"
STATES = {
    psutil.STATUS_STOPPED: "stopped by a signal",
    psutil.STATUS_TRACING_STOP: "held by a debugger",
    psutil.STATUS_ZOMBIE: DEAD,
    psutil.STATUS_DISK_SLEEP: "waiting for a disk or a driver",
}


@dataclass
class Diaries:
    """What the ranks on this machine wrote (launch/doctoring/rank.py)."""

    entries: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Diaries:
        found: dict[int, list[dict[str, Any]]] = {}
        for path in folder.glob("rank-*.jsonl"):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may be half written
            found[int(path.stem.removeprefix("rank-"))] = [json.loads(line) for line in lines]
        return cls({rank: found[rank] for rank in sorted(found) if found[rank]})

    def pid(self, rank: int) -> int:
        return int(self.entries[rank][0]["pid"])

    def stage(self, rank: int) -> str:
        return str(next(entry["stage"] for entry in reversed(self.entries[rank]) if "stage" in entry))

    def all(self, key: str) -> dict[int, Any]:
        """The last entry of each rank that has `key`."""
        return {rank: entry[key] for rank, entries in self.entries.items() for entry in entries if key in entry}

    @property
    def missing(self) -> list[int]:
        """Ranks that did not come to a roll call."""
        return sorted({rank for ranks in self.all("missing").values() for rank in ranks})

    @property
    def newest(self) -> float | None:
        """When, by the monotonic clock, a rank last gave a sign of life."""
        return max((entries[-1]["at"] for entries in self.entries.values()), default=None)

    def connected(self, ranks: int) -> bool:
        """Whether `ranks` ranks have connected: from then on they need each other's pace."""
        ready = [rank for rank in self.entries if self.stage(rank) not in ("loading", "connecting")]
        return len(ready) == ranks

    def behind(self) -> list[int]:
        """Ranks with fewer entries than the one that has come furthest."""
        most = max((len(entries) for entries in self.entries.values()), default=0)
        return [rank for rank, entries in self.entries.items() if len(entries) < most]


@dataclass(frozen=True)
class Outcome:
    """How the ranks ended. `code` None: they had to be ended, because of `late`, or of ranks missing in `diaries`.

    `states`: what the processes of the ranks looked like just before, by rank; only those that were not normal.
    """

    diaries: Diaries
    code: int | None
    late: str
    states: dict[int, str]
    log: str


def run(plan: LaunchPlan, timeout: float, patience: float) -> Outcome:
    """Starts the ranks of `plan` and waits for them, `timeout` seconds in all; afterwards none of them is left.

    Once all have connected, a rank that keeps the others waiting for `patience` seconds ends the whole.
    """
    with tempfile.TemporaryDirectory(prefix="rankzero-doctor-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log, _started(plan, folder, patience, log) as process:
            code, late = _watch(process, folder, plan, timeout, patience)
            diaries = Diaries.read(folder)
            states = _states(diaries)
        return Outcome(diaries, code, late, states, (folder / "log").read_text(errors="replace"))


def _watch(
    process: subprocess.Popen[bytes], folder: Path, plan: LaunchPlan, timeout: float, patience: float
) -> tuple[int | None, str]:
    """The launcher's exit code, or None and why it was not waited for any longer."""
    end, late = time.monotonic() + timeout, f"not done within {timeout:g} s"
    while process.poll() is None:
        now, diaries = time.monotonic(), Diaries.read(folder)
        dead = [rank for rank, state in _states(diaries).items() if state == DEAD]
        if diaries.missing and not dead:
            return None, late
        if (dead or diaries.all("error")) and now + LAST_WORDS < end:  # the launcher will say who was the cause
            end, late = now + LAST_WORDS, "the launcher did not end after a rank had"
        if now > end:
            return None, late
        # a little more than the ranks' own patience: their roll call names more surely than we do
        if diaries.newest and diaries.connected(plan.ranks_here) and now - diaries.newest > patience + 1:
            return None, f"no sign of life for {patience:g} s"
        time.sleep(0.05)
    return process.returncode, ""


@contextlib.contextmanager
def _started(plan: LaunchPlan, folder: Path, patience: float, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    words = command(plan, [str(folder), str(patience)], module="launch.doctoring.rank")
    process = subprocess.Popen(
        words, env=_environment(plan), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)


def _environment(plan: LaunchPlan) -> dict[str, str]:
    env = {key: value for key, value in environment(plan).items() if key not in LAUNCHED}
    return for_launcher(env) | {"PET_SHUTDOWN_TIMEOUT": str(SHUTDOWN)}


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills the launcher and all below it, and waits until they are dead.

    The launcher is stopped first, so that it starts no other meanwhile.
    """
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        if process.poll() is None:
            launcher = psutil.Process(process.pid)
            launcher.suspend()
            below = launcher.children(recursive=True)
    for child in below:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process back even from SIGKILL
        process.wait(LAST_WORDS)
    limit = time.monotonic() + LAST_WORDS
    while any(_state(child) != DEAD for child in below) and time.monotonic() < limit:
        time.sleep(0.01)


def _states(diaries: Diaries) -> dict[int, str]:
    found = {rank: _state(diaries.pid(rank)) for rank in diaries.entries}
    return {rank: state for rank, state in found.items() if state}


def _state(process: psutil.Process | int) -> str:
    """What is not normal about a process; empty if nothing is."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return STATES.get(process.status(), "") if process.is_running() else DEAD
    except psutil.Error:
        return DEAD

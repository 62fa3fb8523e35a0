"""A start of a round: two ranks, forked or by `rankzero train`, to which faults happen until they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from processes import Ranks, engine_environment

from benchmarks.faults import places
from benchmarks.faults.kinds import HOSTS, Fault, Plan, Strike, happen
from benchmarks.faults.sandbox import CONTROL, Disk, Hosts, Shim
from launch.supervise import forked_ranks

CONFIGS = {"ddp": "cpu", "zero2": "cpu_zero2", "fsdp2": "cpu_fsdp2"}
WORLD = 2
LIMIT_SECONDS = 300.0
forked_ranks.EXIT_SECONDS = 90.0  # a rank whose connection is cut waits for its watchdog
LEAVE_SECONDS = 20.0  # for processes that have lost their parents


@dataclass
class Place:
    """Where rounds happen. What the machine lacks is None."""

    folder: Path
    recipe: Path
    shim: Shim | None = None
    disk: Disk | None = None
    hosts: Hosts | None = None
    ours: set[int] = field(default_factory=set)  # processes of the campaign itself

    def strangers(self) -> list[psutil.Process]:
        """Return the processes that starts have left."""
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mine = process.environ().get(CONTROL) == os.environ[CONTROL]
                if mine and process.pid not in self.ours and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left


@dataclass(frozen=True)
class Ended:
    """Exit codes of the start, and of a second one; what was printed; for each fault whether it has happened.

    `late`: processes had to be ended. One may abort by itself, as gloo does if a connection is reset at a bad moment.
    """

    codes: list[int]
    second: list[int] | None
    text: str
    struck: list[bool]
    late: bool

    @property
    def done(self) -> bool:
        return set(self.codes) == {0}


class RunningStart:
    """The start `number` of a round. What it prints goes to a new folder in `logs`."""

    def __init__(self, plan: Plan, number: int, run: Path, place: Place, logs: Path) -> None:
        self.plan, self.run, self.place = plan, run, place
        self._faults = [fault for fault in plan.faults if fault.start == number]
        self._logs = logs / f"start-{number}"
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self._after: list[Callable[[], object]] = []
        self._strikes: dict[int, Strike] = {}
        self._second: Ranks | None = None
        self._over = threading.Event()
        self._error: Exception | None = None
        self._ranks: Ranks | None = None
        self._command: subprocess.Popen[bytes] | None = None
        argv = words_of(plan, run, place)
        if plan.command:
            self._logs.mkdir(parents=True)
            start = "import sys; from launch.cli import main; main()"
            with (self._logs / "out").open("wb") as log:
                self._command = subprocess.Popen(
                    [sys.executable, "-c", start, *argv, "--config", CONFIGS[plan.engine]],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
                )  # fmt: skip
        else:
            hook = None
            if any(fault.kind in HOSTS for fault in plan.faults) and place.hosts:
                hook = partial(places.on_host, place.hosts.spaces, place.hosts.network.address(1))
            self._ranks = Ranks(argv, self._logs, WORLD, env=engine_environment(plan.engine), hook=hook)

    # -- what faults ask ---------------------------------------------------------------------------------------------

    def processes(self, target: str) -> list[int]:
        launchers, ranks = [], []
        if self._ranks:
            ranks = [process.pid or 0 for process in self._ranks.processes]
        elif self._command:
            tree = _tree(self._command.pid)
            ranks = [process.pid for process in tree if "LOCAL_RANK" in _environment(process) and _is_rank(process)]
            launchers = [self._command.pid, *(p.pid for p in tree if "launch.supervise.launcher" in _words(p))]
        workers = [p.pid for rank in ranks for p in _tree(rank) if _name(p) == "pt_data_worker"]
        return {
            "rank": ranks,
            "loader worker": workers,
            "launcher": launchers,
            "whole group": [*launchers, *ranks, *workers],
        }[target]

    def later(self, seconds: float, work: Callable[[], object]) -> None:
        self._undo.append((time.monotonic() + seconds, work))

    def afterwards(self, work: Callable[[], object]) -> None:
        self._after.append(work)

    def start_second(self) -> None:
        if self._second is not None:
            return  # it is there already
        logs = self._logs.with_name(f"{self._logs.name}.second")
        argv = words_of(self.plan, self.run, self.place)
        env = engine_environment(self.plan.engine)
        self._second = Ranks(argv, logs, WORLD, env=env, hook=places.elsewhere)

    # -- to the end --------------------------------------------------------------------------------------------------

    def wait(self) -> Ended:
        """Let the faults happen, and wait for all processes."""
        thread = threading.Thread(target=self._let_happen)
        thread.start()
        try:
            codes, text, late = self._wait_for_processes()
        finally:
            self._over.set()
            thread.join()
        if self._error:
            raise self._error
        for _, work in self._undo:
            work()
        second = None
        if self._second is not None:
            ended = self._second.wait(LIMIT_SECONDS)
            second, text = ended.codes, f"{text}\n-- second start --\n{ended.text}"
            late = late or ended.late
        left = self._wait_for_strangers()
        if left:
            text = f"{text}\nprocesses left: {left}"
        for work in self._after:
            work()
        struck = [i in self._strikes and self._strikes[i]() for i in range(len(self._faults))]
        if self.place.shim:
            self.place.shim.reset()
        return Ended(codes, second, text, struck, late or bool(left))

    def _wait_for_processes(self) -> tuple[list[int], str, bool]:
        if self._ranks:
            ended = self._ranks.wait(LIMIT_SECONDS)
            return ended.codes, ended.text, ended.late
        assert self._command
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._command.wait(LIMIT_SECONDS)
        late = code is None
        return [-signal.SIGABRT if code is None else code], (self._logs / "out").read_text(errors="replace"), late

    def _wait_for_strangers(self) -> list[str]:
        """Wait until no process of the start is left. Kill those that stay, and return their command lines."""
        seconds = LIMIT_SECONDS if self._command else LEAVE_SECONDS  # ranks whose launcher was killed save and exit
        deadline = time.monotonic() + seconds
        while (left := self.place.strangers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return [f"{process.pid} {_words(process)[:200]}" for process in left]

    def _let_happen(self) -> None:
        since: dict[int, float] = {}  # fault -> when its step was seen
        while not self._over.wait(0.004):
            now, step = time.monotonic(), self._step()
            for i, fault in enumerate(self._faults):
                if step >= fault.step:
                    since.setdefault(i, now)
                if i not in self._strikes and i in since and now >= since[i] + fault.delay:
                    self._strike(i, fault)
            for entry in [entry for entry in self._undo if entry[0] <= now]:
                self._undo.remove(entry)
                entry[1]()

    def _strike(self, number: int, fault: Fault) -> None:
        try:
            strike = happen(fault, self)
        except Exception as error:  # of the campaign itself: it ends
            self._error, strike = error, lambda: False
        if strike is not None:
            self._strikes[number] = strike

    def _step(self) -> int:
        try:
            return (self.run / "ledger.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0


def words_of(plan: Plan, run: Path, place: Place) -> list[str]:
    """Return the arguments of the command that every start of a round has."""
    words = ["train", str(place.recipe), f"data.workers={plan.workers}", "--run", str(run)]
    return [*words, "export.model=true", "export.safetensors=true", "export.bench=0"] if plan.export else words


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _environment(process: psutil.Process) -> dict[str, Any]:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ()
    return {}


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_rank(process: psutil.Process) -> bool:
    return "launch.rank" in _words(process) and "launch.supervise" not in _words(process) and not _is_worker(process)


def _is_worker(process: psutil.Process) -> bool:
    return _name(process) == "pt_data_worker"


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    return ""

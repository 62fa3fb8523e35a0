"""The kinds of faults: draw some for a round, and let one happen to a start."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from outcomes import STEPS

from trainer.engine import checkpoint

ENGINES = ("ddp", "zero2", "fsdp2")
TARGETS = {"rank": 4.0, "whole group": 2.0, "loader worker": 2.0, "launcher": 0.6}  # with weights: launchers cost most
SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP", "SIGHUP")
SIGNAL_WEIGHT = 8.0  # against 1 for each other kind
DISK = ("disk full", "disk read-only")
CALLS = ("I/O error", "short writes")
SHIM = (*CALLS, "clock step")
HOSTS = ("connection reset", "connection cut")
OTHER = (*DISK, *SHIM, *HOSTS, "damaged checkpoint", "second start")
KINDS = (*(f"{name} {target}" for target in TARGETS for name in SIGNALS), *OTHER)
ENDING = (  # a start, mostly
    *(
        f"{name} {target}"
        for name in ("SIGKILL", "SIGTERM", "SIGHUP")
        for target in ("rank", "whole group", "launcher")
    ),
    *("SIGKILL loader worker", *DISK, "connection reset", "damaged checkpoint"),
)
BOOT_SECONDS = 1.5  # of a start before its first step, on an idle machine
PLACES = (  # parts of paths whose files get I/O errors
    *("/checkpoints/", "/ledger.jsonl", "/metrics.jsonl", "status.json", "/lock", "manifest.json", "/evaluation"),
    *("tokenizer", "/model", "recipe.yaml", "state.json", ".safetensors", "/corpus/", "/"),
)


@dataclass(frozen=True)
class Fault:
    """A fault of a round.

    Attributes:
        kind: one of `KINDS`.
        start: the start of the round in which it happens, from 0.
        step: it happens once so many steps have been logged,
        delay: and so many seconds have passed since.
        seed: of the choices of the fault: which rank, which file, for how long.
    """

    kind: str
    start: int
    step: int
    delay: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """A round. `command`: it is started by `rankzero train`; otherwise ranks are forked, which saves the imports."""

    number: int
    engine: str
    workers: int
    export: bool
    command: bool
    faults: tuple[Fault, ...]


def draw(number: int, seed: int, missing: Collection[str], export_share: float = 0.05) -> Plan:
    """Return round `number` of the campaign of this seed, without kinds that are missing here."""
    rng = random.Random(f"{seed} {number}")
    kinds = [_kind(rng, missing)]
    for _ in range(rng.randrange(3)):
        kind = _kind(rng, missing)
        if not ({kind, *kinds} & set(HOSTS) and any("launcher" in one for one in (kind, *kinds))):
            kinds.append(kind)
    faults: list[Fault] = []
    start, ends = 0, None  # the fault that ends the start
    for kind in kinds:
        same = {fault.kind for fault in faults if fault.start == start}
        if ends and (rng.random() < 0.5 or any(kind in group and same & set(group) for group in (DISK, CALLS))):
            start, ends = start + 1, None  # the disk and the calls of a start fail in one way
        elif any(kind in group and same & set(group) for group in (DISK, CALLS)):
            continue
        step = rng.randrange(7 if kind == "damaged checkpoint" else 0, STEPS + 1)
        delay = rng.uniform(0, BOOT_SECONDS if step == 0 else 1.0 if step == STEPS else 0.3)
        if ends:  # at about the same time: later is too late
            step, delay = ends.step, max(0.0, ends.delay + rng.uniform(-0.3, 0.3))
        faults.append(Fault(kind, start, step, round(delay, 3), rng.randrange(1 << 30)))
        if ends is None and kind in ENDING:
            ends = faults[-1]
    workers = 1 if any("loader" in kind for kind in kinds) else rng.randrange(2)
    command = any("launcher" in kind for kind in kinds)
    return Plan(number, ENGINES[number % 3], workers, rng.random() < export_share, command, tuple(faults))


def _kind(rng: random.Random, missing: Collection[str]) -> str:
    kinds = [kind for kind in KINDS if kind not in missing]
    weights = [
        1.0 if kind in OTHER else SIGNAL_WEIGHT * TARGETS[kind.split(" ", 1)[1]] / sum(TARGETS.values()) / len(SIGNALS)
        for kind in kinds
    ]
    return rng.choices(kinds, weights)[0]


class Start(Protocol):
    """A running start of a round, to which faults happen."""

    run: Path
    place: Any  # shim, disk and hosts

    def processes(self, target: str) -> list[int]:
        """Return the processes of a target that run now."""

    def later(self, seconds: float, work: Callable[[], object]) -> None:
        """Call `work()` after so many seconds, or at the end of the start."""

    def afterwards(self, work: Callable[[], object]) -> None:
        """Call `work()` once all processes of the start have ended."""

    def start_second(self) -> None:
        """Start the same command in another namespace."""


Strike = Callable[[], bool]  # called at the end of the start: whether the fault has happened


def happen(fault: Fault, start: Start) -> Strike | None:
    """Let a fault happen now. Return None if its target has no process yet."""
    rng = random.Random(fault.seed)
    name, _, target = fault.kind.partition(" ")
    if name in SIGNALS:
        return _signal(getattr(signal, name), target, start, rng)
    return {
        "disk full": _disk_full,
        "disk read-only": _read_only,
        "I/O error": _io_error,
        "short writes": _short_writes,
        "clock step": _clock_step,
        "connection reset": _reset,
        "connection cut": _cut,
        "damaged checkpoint": _damage,
        "second start": _second,
    }[fault.kind](start, rng)


def send(number: int, processes: list[int]) -> bool:
    """Send a signal. Return whether a process got it."""
    sent = False
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            sent = True
    return sent


def _signal(number: int, target: str, start: Start, rng: random.Random) -> Strike | None:
    processes = start.processes(target)
    if not processes:
        return None
    if target != "whole group":
        processes = [rng.choice(processes)]
    sent = send(number, processes)
    if number == signal.SIGSTOP:
        start.later(rng.uniform(0.2, 4.0), lambda: send(signal.SIGCONT, processes))
    return lambda: sent


def _disk_full(start: Start, rng: random.Random) -> Strike:
    start.place.disk.fill()
    if rng.random() < 0.5:
        start.later(rng.uniform(0.1, 2.0), start.place.disk.free)
    start.afterwards(start.place.disk.free)
    return lambda: True


def _read_only(start: Start, rng: random.Random) -> Strike:
    start.place.disk.fail()
    start.afterwards(start.place.disk.repair)
    return lambda: True


def _io_error(start: Start, rng: random.Random) -> Strike:
    shim = start.place.shim
    operation = rng.choice([shim.WRITE, shim.WRITE, shim.READ, shim.SYNC, shim.RENAME])
    shim.fail(operation, rng.choice(PLACES), rng.choice([errno.EIO, errno.EIO, errno.ENOSPC]), rng.randint(1, 3))
    return lambda: bool(shim.hits)


def _short_writes(start: Start, rng: random.Random) -> Strike:
    start.place.shim.fail(start.place.shim.SHORT, rng.choice(PLACES), 0, 1_000_000)
    return lambda: bool(start.place.shim.hits)


def _clock_step(start: Start, rng: random.Random) -> Strike:
    start.place.shim.step_clock(rng.choice([-3600, 3600]))
    return lambda: True


def _reset(start: Start, rng: random.Random) -> Strike:
    problem = start.place.hosts.reset(rng.choice([1, 2]))
    return lambda: not problem


def _cut(start: Start, rng: random.Random) -> Strike:
    start.place.hosts.cut(rng.choice([1, 2]))
    if rng.random() < 0.7 or not (start.run / "ledger.jsonl").exists():  # a longer limit holds before the first step
        start.later(rng.uniform(0.2, 4.0), start.place.hosts.join)
    start.afterwards(start.place.hosts.join)
    return lambda: True


def _second(start: Start, rng: random.Random) -> Strike:
    start.start_second()
    return lambda: True


def _damage(start: Start, rng: random.Random) -> Strike:
    """Kill the whole group, and damage a file of the newest checkpoint if there is another one."""
    struck: list[bool] = []
    send(signal.SIGKILL, start.processes("whole group"))
    start.afterwards(lambda: struck.append(damage_newest(start.run / "checkpoints", rng)))
    return lambda: struck == [True]


def damage_newest(folder: Path, rng: random.Random) -> bool:
    """Corrupt, truncate or delete a file of the newest complete checkpoint, unless it is the only one."""
    complete = [step for step in checkpoint.steps(folder) if not checkpoint.fault(checkpoint.path_of(folder, step))]
    if len(complete) < 2:
        return False
    file = rng.choice(sorted(path for path in checkpoint.path_of(folder, complete[-1]).iterdir()))
    how, content = rng.choice(["corrupt", "truncate", "delete"]), bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 + rng.randrange(255)
        file.write_bytes(content)
    return True

"""`accelerate launch` that lets its ranks end by themselves: `python -m launch.shim ARGUMENTS-OF-ACCELERATE-LAUNCH`.

Torch's elastic agent dies of SIGUSR1, kills its ranks 30 s after SIGTERM, and turns any exit code into 1. Here TERM,
INT and USR1 are passed on to the ranks, each once, and the agent waits for them; the code that the ranks ended with is
kept; and a rank that died is named in one line. Where RANKZERO_PARENT (a process id) is set, the launcher ends with
that process: its ranks are told to save and leave.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import psutil

PARENT = "RANKZERO_PARENT"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ERROR_CODES = (2, 3, 4, 5, 6)  # what a rank ends with on purpose, see trainer/errors.py
PREEMPTED = 75
GRACE_SECONDS = 300  # for ranks to save and leave when another rank has died, or when nobody waits for them any more
_PR_SET_PDEATHSIG = 1

_seen: set[int] = set()


def main() -> int:
    """Runs `accelerate launch` with this process's arguments; returns the exit code (0, a rank's own code, or 1)."""
    for number in PASSED_ON:
        signal.signal(number, _pass_on)
    signal.signal(signal.SIGHUP, _orphaned)
    signal.signal(signal.SIGALRM, _give_up)
    end_with_parent(signal.SIGHUP)
    os.environ[PARENT] = str(os.getpid())  # for the ranks: launch/rank.py
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # leaves the others to the handlers above
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    logging.disable(logging.ERROR)  # the agent's own report of a failed rank: `_verdict` says it in a line

    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate_launch()
    except ChildFailedError as error:
        return _verdict(error)
    return 0


def end_with_parent(number: int) -> None:
    """The kernel sends this process the signal `number` when the process named by RANKZERO_PARENT dies. Linux only."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the call above
        os.kill(os.getpid(), number)


def _ranks() -> list[psutil.Process]:
    """The ranks among the children; those of torch's agent carry LOCAL_RANK."""
    ranks = []
    for child in psutil.Process().children():
        try:
            if "LOCAL_RANK" in child.environ():
                ranks.append(child)
        except psutil.Error:
            continue  # gone meanwhile
    return ranks


def _pass_on(number: int, frame: FrameType | None) -> None:
    if number in _seen:
        return
    _seen.add(number)
    ranks = _ranks()
    if not ranks:  # not started yet: nothing to save. An exception here could be caught by what is being imported
        os._exit(PREEMPTED)
    for rank in ranks:
        _send(rank, number)


def _orphaned(number: int, frame: FrameType | None) -> None:
    signal.alarm(GRACE_SECONDS)
    _pass_on(signal.SIGTERM, frame)


def _give_up(number: int, frame: FrameType | None) -> None:
    for rank in _ranks():
        _send(rank, signal.SIGKILL)


def _send(rank: psutil.Process, number: int) -> None:
    try:
        rank.send_signal(number)
    except psutil.Error:
        return  # gone meanwhile


def _verdict(error: Any) -> int:
    """The exit code for `ChildFailedError`: the ranks' own, or 1 with a line for the rank that died."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    codes = [failure.exitcode for _, failure in failures]
    if _seen and any(code == PREEMPTED or -code in _seen for code in codes):  # or killed before it could listen
        return PREEMPTED
    for code in codes:
        if code in ERROR_CODES:
            return int(code)
    if PREEMPTED in codes and set(codes) <= {PREEMPTED, -signal.SIGTERM}:  # the run directory was taken over, say
        return PREEMPTED
    # the agent itself terminates the ranks that are left when one has died: those are not the cause
    causes = [item for item in failures if item[1].exitcode not in (PREEMPTED, -signal.SIGTERM)] or failures
    rank, failure = min(causes, key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
    print(f"rankzero: rank {rank} (process {failure.pid}) {_how_it_died(failure.exitcode)}", file=sys.stderr)
    return 1


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"died with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (the kernel does that when memory runs out)" if name == "SIGKILL" else "")


if __name__ == "__main__":
    sys.exit(main())

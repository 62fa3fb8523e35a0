"""Turn the exit codes of the ranks into the one of their launcher. Ranks import this: it needs no other package."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Mapping
from typing import Any

ERROR_CODES = (2, 3, 4, 5, 6)  # of a rank that reports an error, see trainer/errors.py
PREEMPTED = 75


def exit_code_of_ranks(failures: Mapping[int, Any], forwarded: Collection[int]) -> int:
    """Return a code that the ranks chose, or 1 after printing which rank died.

    Args:
        failures: by rank, each with `exitcode` (negative: killed by that signal), `timestamp` and `pid`.
        forwarded: signals that the ranks were sent.
    """
    codes = [failure.exitcode for failure in sorted(failures.values(), key=lambda failure: failure.timestamp)]
    if forwarded and any(code == PREEMPTED or -code in forwarded for code in codes):  # negative: not yet handled
        return PREEMPTED
    for code in codes:
        if code in ERROR_CODES:
            return int(code)
    if PREEMPTED in codes and set(codes) <= {PREEMPTED, -signal.SIGTERM}:  # another process has the run directory
        return PREEMPTED
    print(f"rankzero: {cause_of_death(failures)}", file=sys.stderr)
    return 1


def cause_of_death(failures: Mapping[int, Any]) -> str:
    """Return the message about the rank whose death ended the others. `failures` are as of `exit_code_of_ranks`."""
    # torch's agent terminates the remaining ranks after one has died: these are not the cause
    causes = {r: f for r, f in failures.items() if f.exitcode not in (PREEMPTED, -signal.SIGTERM)} or failures
    rank, failure = min(causes.items(), key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
    text = f"rank {rank} (process {failure.pid}) {describe_exit(failure.exitcode)}"
    return f"{text}; the same command resumes from the newest checkpoint"


def describe_exit(code: int) -> str:
    """Describe how a process died."""
    if code >= 0:
        return f"died with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (the kernel does that when memory runs out)" if name == "SIGKILL" else "")

"""Run one rank: `python -m trainer` that saves and exits, as on SIGTERM, when its launcher is killed."""

from __future__ import annotations

import runpy
import signal
import sys

from launch.supervise.exit_codes import PREEMPTED
from launch.supervise.signals import FORWARDED, end_with_parent

if __name__ == "__main__":
    for number in FORWARDED:  # until the engine handles them: nothing to save yet
        signal.signal(number, lambda *_: sys.exit(PREEMPTED))
    end_with_parent(signal.SIGTERM)
    try:
        runpy.run_module("trainer", run_name="__main__", alter_sys=True)
    finally:  # everything is saved: a late signal, such as the agent's, must not change the exit code
        for number in FORWARDED:
            signal.signal(number, signal.SIG_IGN)

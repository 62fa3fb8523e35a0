"""One rank of a run: `python -m trainer` that saves and leaves, as on SIGTERM, when its launcher is killed."""

from __future__ import annotations

import runpy
import signal
import sys

from launch.shim import PASSED_ON, PREEMPTED, end_with_parent

if __name__ == "__main__":
    for number in PASSED_ON:  # until the engine listens: nothing to save yet
        signal.signal(number, lambda *_: sys.exit(PREEMPTED))
    end_with_parent(signal.SIGTERM)
    try:
        runpy.run_module("trainer", run_name="__main__", alter_sys=True)
    finally:  # all is said and saved: a late signal, such as the agent's, does not change how this rank ends
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)

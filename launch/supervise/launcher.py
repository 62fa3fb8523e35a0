"""Run `accelerate launch` so that its ranks end by themselves: `python -m launch.supervise.launcher ARGUMENTS`.

Torch's elastic agent dies of SIGUSR1, kills its ranks 30 s after SIGTERM, and turns any exit code into 1. Here TERM,
INT and USR1 are forwarded to the ranks, each once, and the agent waits for them. The ranks' exit code is kept, and a
rank that died is named in one line, and in status.json of the directory RANKZERO_RUN_DIR if rank zero could not do it.
If RANKZERO_PARENT (a process id) is set and that process dies, the ranks get a SIGTERM, so they save and exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil

from launch.supervise.exit_codes import PREEMPTED, cause_of_death, exit_code_of_ranks
from launch.supervise.final_status import RUN, settle
from launch.supervise.signals import FORWARDED, PARENT, SignalForwarder, end_with_parent

GRACE_SECONDS = 300  # for ranks to save and exit after another rank or the parent of the launcher has died


def main() -> int:
    """Run `accelerate launch` with this process's arguments. Return 0, a rank's own exit code, or 1."""
    forwarder = SignalForwarder(_forward)

    def parent_died(number: int, frame: FrameType | None) -> None:
        signal.alarm(GRACE_SECONDS)
        forwarder(signal.SIGTERM)

    for number in FORWARDED:
        signal.signal(number, forwarder)
    signal.signal(signal.SIGHUP, parent_died)
    signal.signal(signal.SIGALRM, lambda number, frame: _send(_ranks(), signal.SIGKILL))
    end_with_parent(signal.SIGHUP)
    os.environ[PARENT] = str(os.getpid())  # for the ranks: launch/rank.py
    run = os.environ.pop(RUN, None)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the handlers above keep the others
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    sys.argv[1:1] = ["--log_dir", os.devnull]  # for streams that are not redirected; else each start leaves a folder
    logging.disable(logging.ERROR)  # the agent's report of a failed rank: `exit_code_of_ranks` prints one line

    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate_launch()
    except ChildFailedError as error:
        code = exit_code_of_ranks(error.failures, forwarder.received)
        if run and code == 1:
            settle(Path(run), code, cause_of_death(error.failures))
        return code
    return 0


def _ranks() -> list[psutil.Process]:
    """Return the children that are ranks. Torch's agent sets LOCAL_RANK for them."""
    ranks = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "LOCAL_RANK" in child.environ():
                ranks.append(child)
    return ranks


def _forward(number: int) -> None:
    ranks = _ranks()
    if not ranks:  # nothing to save yet. A module that is being imported could catch an exception raised here
        os._exit(PREEMPTED)
    _send(ranks, number)


def _send(ranks: list[psutil.Process], number: int) -> None:
    for rank in ranks:
        with contextlib.suppress(psutil.Error):
            rank.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())

"""Start the process of the trackers on rank zero, and end it with the run. Nothing waits for it during the training."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.rank_env import RANK_VARIABLES
from trainer.recipe.trackers import check_installed, options_of
from trainer.rundir import RunDir
from trainer.tracking.position import BUSY

log = logging.getLogger("rankzero")

RESTART_SECONDS = 60.0  # after the process has died
# How long the process may take for what is left: at the end of a run, and at a stop or an error.
AT_END_SECONDS, AT_STOP_SECONDS = 60.0, 5.0
LAUNCHERS = (
    "RANKZERO_",
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "PMI_",
    "OMPI_",
    "MV2_",
    "SLURM_PROCID",
    "SLURM_NTASKS",
)


class Tracking:
    """The trackers of a run. Only rank zero has them.

    Args:
        track: of the recipe.
        resumed_at: the step from which the run is resumed: later steps are repeated. -1 for a new run.

    Raises:
        UsageError: a tracker is not installed.
    """

    def __init__(self, run: RunDir, track: Sequence[Any], resumed_at: int) -> None:
        self._run, self._entries, self._resumed_at = run, options_of(track), str(resumed_at)
        check_installed(list(self._entries))
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="tracking")
        if self._entries:
            self._start()
            self._thread.start()

    def finish(self, state: str, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Wait until the trackers have everything, at most AT_END_SECONDS, and AT_STOP_SECONDS at a stop."""
        with self._lock:
            self._ended.set()
            process = self._process
        if process is None:
            return
        began = time.monotonic()
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.write(f"end {state}\n".encode())
            process.stdin.close()
        while process.poll() is None:
            limit = AT_STOP_SECONDS if state != "finished" or is_stopped() else AT_END_SECONDS
            if time.monotonic() - began > limit:
                log.warning(
                    "%s: the trackers do not have everything yet. `rankzero track %s` uploads the rest",
                    self._run.path, self._run.path,
                )  # fmt: skip
                break
            time.sleep(0.02)
        _kill(process)
        self._thread.join(AT_STOP_SECONDS)
        self._process = None

    def _start(self) -> None:
        command = [
            sys.executable, "-P", "-m", "trainer.tracking.worker",
            str(self._run.path.absolute()), self._resumed_at, json.dumps(self._entries),
        ]  # fmt: skip
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True
        )

    def _watch(self) -> None:
        """Log the messages of the process. Start it again if it dies."""
        warned = False
        while (process := self._process) is not None and process.stdout is not None:
            for line in process.stdout:
                with suppress(ValueError, KeyError, TypeError):
                    message = json.loads(line)
                    log.log(int(message["level"]), "%s", message["text"])
            code = process.wait()
            self._resumed_at = self._resumed_at if code == BUSY else "-"  # any other has recorded it
            if not self._ended.is_set() and not warned:
                log.warning("the process of the trackers has ended with %d; the training continues", code)
                warned = True
            if self._ended.wait(RESTART_SECONDS):
                return
            with self._lock:
                if not self._ended.is_set():
                    self._start()


def environment() -> Mapping[str, str]:
    """Return the environment of a process without ranks, which uses no GPU."""
    kept = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES and not k.startswith(LAUNCHERS)}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    return {
        **kept,
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and those that it has started, if it still runs."""
    if process.poll() is None:  # else its number may be that of another process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""The process of the trackers: one thread for each. It reads metrics.jsonl of a run in progress until the run ends.

It is a separate process because trackers may hang, end the process, patch torch or wait for a server at exit. Rank
zero writes `end STATE` to its stdin at the end of the run, and gets messages from its stdout, a line of JSON each. If
rank zero is killed, the process ends after the line that it logs.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trainer.errors import CheckpointError, LockLost, UsageError
from trainer.recipe.trackers import TRACKERS
from trainer.redaction import redacted
from trainer.rundir import RunDir
from trainer.tracking.position import BUSY, exclusive
from trainer.tracking.service import Place, Service
from trainer.tracking.uploader import Uploader

log = logging.getLogger("rankzero")

POLL_SECONDS = 1.0  # between two looks at metrics.jsonl
RETRY_SECONDS = 30.0  # after a tracker has failed
LOCK_SECONDS = 30.0  # for the process of a killed rank zero to leave
# How long the last lines may take at the end of a run (rank zero may end it earlier), if the tracker was not reached by
# then, and without rank zero.
END_SECONDS, UNREACHED_SECONDS, ORPHAN_SECONDS = 3600.0, 20.0, 10.0
MOST_CHARACTERS = 1200  # of an error in a message; of a longer one, the middle is left out


class Follower(threading.Thread):
    """Keeps one tracker up to date until the run ends. A failure is a warning, once, and is retried."""

    def __init__(self, run: RunDir, name: str, options: Mapping[str, Any], resumed_at: int | None) -> None:
        super().__init__(name=f"track-{name}", daemon=True)
        self.tracker, self._run = name, run
        self._uploader = Uploader(run, name, options, make_service)
        if resumed_at is not None:
            self._uploader.position.mark_resumed(resumed_at)
        self._ending, self._failed = threading.Event(), False
        self._state: str | None = None
        self.complete = False

    @property
    def is_connected(self) -> bool:
        """Whether the tracker has answered."""
        return self._uploader.is_connected

    def end(self, state: str | None) -> None:
        """Log what is left, with scores and files if the state of the run is known, and end."""
        self._state = state
        self._ending.set()

    def run(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            pause = POLL_SECONDS if self._works(self._uploader.catch_up) else RETRY_SECONDS
        self.complete = self._works(self._finish)

    def _finish(self) -> None:
        self._uploader.catch_up(scores=self._state is not None)
        self._uploader.finish(self._state)

    def _works(self, attempt: Callable[[], None]) -> bool:
        known = self._uploader.position.url
        try:
            attempt()
        except Exception as error:  # trackers have different errors
            if not self._failed:
                log.warning(
                    "%s; the training continues, and what is missing is logged later", failure(self.tracker, error)
                )
            self._failed = True
            return False
        if self._failed:
            log.info("the tracker %s works again, and has all lines so far", self.tracker)
        self._failed = False
        if self._uploader.position.url not in (None, known):
            log.info("%s: %s", self.tracker, self._uploader.position.url)
        return True


def failure(name: str, error: Exception) -> str:
    """Return the message about a tracker that has failed."""
    text = " ".join(str(redacted(f"{type(error).__name__}: {error}")).split())
    if len(text) > MOST_CHARACTERS:  # the cause is at the beginning, what to do often at the end
        text = f"{text[: MOST_CHARACTERS // 2]} […] {text[-MOST_CHARACTERS // 2 :]}"
    place = TRACKERS[name].environment
    return f"the tracker {name} failed ({text})" + (
        f"; its server and credentials are those of {place}" if place else ""
    )


def make_service(place: Place) -> Service:
    """Load the module of a tracker, which imports its package, and return the run in it."""
    module = importlib.import_module(f"trainer.tracking.services.{place.position.path.stem}")
    made: Service = module.Service(place)
    return made


def follow(run: RunDir, entries: Mapping[str, Any], resumed_at: int | None) -> None:
    """Keep all trackers up to date until rank zero ends the run or is gone."""
    parent = os.getppid()
    followers = list[Follower]()
    for name, options in entries.items():
        try:
            followers.append(Follower(run, name, options, resumed_at))
        except CheckpointError as error:  # its position is damaged: the others are kept up to date
            log.warning("%s; the training continues without the tracker %s", error, name)
    for follower in followers:
        follower.start()
    state = _end_of_run(parent)
    for follower in followers:
        follower.end(state)
    began = time.monotonic()
    for follower in followers:
        while follower.is_alive():
            limit = END_SECONDS if follower.is_connected else UNREACHED_SECONDS
            if time.monotonic() - began > (ORPHAN_SECONDS if state is None else limit):
                break
            follower.join(POLL_SECONDS)
    if lacking := [follower.tracker for follower in followers if not follower.complete]:
        log.warning(
            "%s: not everything was uploaded to %s; `rankzero track %s` uploads the rest",
            run.path, ", ".join(lacking), run.path,
        )  # fmt: skip


def _end_of_run(parent: int) -> str | None:
    """Wait for the end of the run. Return its state, or None if rank zero is gone."""
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            words = sys.stdin.readline().split()
            return words[1] if words[:1] == ["end"] else None
    return None


def without_ranks() -> None:
    """Make this a process of one rank for accelerate's trackers, which ask for it."""
    PartialState(cpu=True)


class _Messages(logging.Handler):
    """Write messages to rank zero."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._to = to

    def emit(self, record: logging.LogRecord) -> None:
        line = json.dumps({"level": record.levelno, "text": redacted(record.getMessage())}) + "\n"
        try:
            os.write(self._to, line.encode())
        except OSError:  # rank zero is gone
            return


def silence() -> int:
    """Discard what trackers print. Return a descriptor of the former stdout."""
    messages, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    return messages


def main() -> None:
    """Run the process: RUN, the step from which it was resumed or -, and the trackers with their options as JSON."""
    logger = logging.getLogger("rankzero")
    logger.handlers, logger.propagate = [_Messages(silence())], False
    logger.setLevel(logging.INFO)
    folder, step, entries = sys.argv[1:4]
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(kind, lambda *_: None)  # of a job; rank zero decides. Not inherited, unlike SIG_IGN
    without_ranks()
    run, began = RunDir(Path(folder)), time.monotonic()
    while True:
        try:
            with exclusive(run):
                follow(run, json.loads(entries), None if step == "-" else int(step))
            break
        except UsageError as error:
            if time.monotonic() - began > LOCK_SECONDS:
                log.warning("%s", error)
                os._exit(BUSY)
            time.sleep(POLL_SECONDS)
        except LockLost:
            break
    os._exit(0)  # without the exit hooks of trackers, which wait for their servers


if __name__ == "__main__":
    main()

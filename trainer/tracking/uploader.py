"""Bring one tracker up to date with a run directory, so that it has each line once.

The position (position.py) is written after each line. A process that is killed between a log and the position leaves
one line in doubt: the next one asks the tracker for the last step that it has of each split. What a tracker has counts
more than the position, because trackers send in the background and may lose what a killed process had sent.

After a resume from an earlier step, a tracker that can is rewound to it. Others keep the later steps, and steps that
they have are not logged again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from trainer.files import read_json
from trainer.rundir import RunDir
from trainer.stages import digest
from trainer.tracking.position import Position
from trainer.tracking.records import Lines, Record, config_of, documents_of, scores_of
from trainer.tracking.service import Place, Service

log = logging.getLogger("rankzero")

CONFIG = "recipe"  # key in Position.logged


class Uploader:
    """One tracker of a run. All calls are from one thread, because some trackers keep their run for each thread.

    Args:
        name: of the tracker.
        options: of the recipe.
        make: the class of the tracker.
    """

    def __init__(self, run: RunDir, name: str, options: Mapping[str, Any], make: Callable[[Place], Service]) -> None:
        self.name, self._run, self._options, self._make = name, run, dict(options), make
        self.position = Position.read(run, name)
        self._lines = Lines(run)
        self._service: Service | None = None
        self.logged = 0  # lines and scores of this process

    def catch_up(self, *, scores: bool = False) -> None:
        """Log all lines that the tracker lacks, and with `scores` those of the evaluations and the files.

        Raises:
            Exception: of the tracker. The next call begins with what the tracker has.
        """
        try:
            if self._service is None and self._lines.exist():
                self._opened()  # only now it is known what the tracker has
                self._lines.again()
            for record in self._lines.new():
                if self._is_new(record):
                    self._log(record)
            if scores:
                self._log_scores()
                self._log_files()
        except BaseException:
            self.close()
            raise

    def close(self, state: str | None = None) -> None:
        """End the connection. Errors are left out: what was not logged is logged later.

        Args:
            state: of the run, as in status.json. None: it is not known, and the run may continue.
        """
        service, self._service = self._service, None
        self._lines.again()
        if service is not None:
            with suppress(Exception):
                service.close(state)

    def finish(self, state: str | None) -> None:
        """End the connection, and wait until the tracker has everything.

        Raises:
            Exception: of the tracker.
        """
        service, self._service = self._service, None
        if service is not None:
            service.close(state)

    @property
    def is_connected(self) -> bool:
        """Whether the tracker has opened the run."""
        return self._service is not None

    # -- one connection --------------------------------------------------------------------------------------------

    def _is_new(self, record: Record) -> bool:
        return record.step > self.position.last.get(record.split, -1)

    def _opened(self) -> Service:
        """Return the connection. A new one asks what the tracker has."""
        if self._service is not None:
            return self._service
        self.position.save()
        settings = config_of(self._run)
        service = self._make(Place(self._run, self.position, self._options))
        service.open()
        self._service = service
        if (held := service.held()) is not None:
            self.position.last = held
        self._rewind(service)
        self.position.url = service.url()
        self.position.save()
        if self.position.logged.get(CONFIG) != digest(settings):
            service.configure(settings)
            self._record(CONFIG, digest(settings))
        return service

    def _rewind(self, service: Service) -> None:
        step, last = self.position.rewind, self.position.last
        if step is not None and any(logged > step for logged in last.values()):
            if service.rewind(step):
                self.position.last = {split: min(logged, step) for split, logged in last.items()}
            else:
                log.info(
                    "%s: resumed from step %d; it has steps up to %d, which are not logged again",
                    self.name, step, max(last.values()),
                )  # fmt: skip
        self.position.rewind = None

    def _log(self, record: Record) -> None:
        self._opened().log(record)
        self.position.last[record.split] = record.step
        self.position.save()
        self.logged += 1

    def _log_scores(self) -> None:
        for record, sha256 in scores_of(self._run):
            if self.position.logged.get(record.split) == sha256:
                continue
            service = self._opened()
            if self._is_new(record) or record.split in self.position.logged:  # else a killed process has logged it
                service.log(record)
                self.logged += 1
            self.position.last[record.split] = record.step
            self._record(record.split, sha256)

    def _log_files(self) -> None:
        if not self._options.get("files", True):
            return
        for document in documents_of(self._run):
            if self.position.logged.get(document.name) != document.sha256:
                self._opened().document(document)
                self._record(document.name, document.sha256)

    def _record(self, key: str, sha256: str) -> None:
        self.position.logged[key] = sha256
        self.position.save()


def state_of(run: RunDir) -> str | None:
    """Return the state of the run in status.json."""
    state = (read_json(run.status) or {}).get("state")
    return state if isinstance(state, str) else None

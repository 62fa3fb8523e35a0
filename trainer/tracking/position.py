"""`tracking/NAME.json`: the id of a run in a tracker, and what the tracker has of the run. No torch here."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, UsageError
from trainer.files import make_folder, read_json, write_json
from trainer.lock_file import flock
from trainer.rundir import RunDir

FOLDER = "tracking"
BUSY = 75  # exit code of a process that another one has kept from the trackers (EX_TEMPFAIL)
ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


@dataclass
class Position:
    """What one tracker has of a run.

    Attributes:
        id: of the run, chosen before the tracker gets it, so that a start that is killed in between finds it again.
        own_id: the id that the tracker has chosen, if it chooses them.
        last: the last logged step of each split. Lines of a split are logged in order.
        logged: SHA-256 of the recipe, the scores and the files that were logged.
        rewind: the step from which the run was resumed, until the tracker is rewound to it.
        url: of the run in the tracker.
    """

    path: Path
    id: str
    own_id: str | None = None
    last: dict[str, int] = field(default_factory=dict)
    logged: dict[str, str] = field(default_factory=dict)
    rewind: int | None = None
    url: str | None = None

    @classmethod
    def read(cls, run: RunDir, name: str) -> Position:
        """Return the position of a tracker, or a new one with an id.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = path_of(run, name)
        values = read_json(path) or {"id": secrets.token_hex(16)}
        form = {
            "id": _is_id(values.get("id")),
            "own_id": values.get("own_id") is None or _is_id(values["own_id"]),
            "last": _is_mapping(values.get("last", {}), int),
            "logged": _is_mapping(values.get("logged", {}), str),
            "rewind": isinstance(values.get("rewind"), int | None),
            "url": isinstance(values.get("url"), str | None),
        }
        if wrong := [key for key, right in form.items() if not right]:
            raise CheckpointError(
                f"{path}: {wrong[0]} has another form; restore the file, or delete it: the run is then logged again, "
                "under another id"
            )
        return cls(path, **{key: values[key] for key in form if key in values})

    def save(self) -> None:
        """Write the file.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        make_folder(self.path.parent)
        values = asdict(self)
        del values["path"]
        write_json(self.path, values)

    def mark_resumed(self, step: int) -> None:
        """Record that the run was resumed from a step, if the tracker has later ones."""
        if any(logged > step for logged in self.last.values()):
            self.rewind = step if self.rewind is None else min(self.rewind, step)
            self.save()


def path_of(run: RunDir, name: str) -> Path:
    """Return the file of a tracker."""
    return run.path / FOLDER / f"{name}.json"


@contextlib.contextmanager
def exclusive(run: RunDir) -> Iterator[None]:
    """Hold the trackers of a run for this process: two would log the same lines.

    Raises:
        UsageError: another process has them.
    """
    folder = run.path / FOLDER
    make_folder(folder)
    with (folder / "lock").open("ab") as file:
        if not flock(file):
            raise UsageError(f"{run.path}: another process uploads to the trackers of this run; wait for it")
        yield


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and type(v) is kind for k, v in value.items())

"""The base of all trackers: a class of accelerate.tracking, and what rankzero needs besides it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from trainer.recipe.trackers import PROJECT
from trainer.rundir import RunDir
from trainer.tracking.position import FOLDER, Position
from trainer.tracking.records import Document, Record


@dataclass(frozen=True)
class Place:
    """Where a run is in a tracker."""

    run: RunDir
    position: Position
    options: dict[str, Any]

    @property
    def project(self) -> str:
        """The project, or what the tracker has in place of it."""
        return str(self.options.get("project", PROJECT))

    @property
    def name(self) -> str:
        """The name of the run, by default that of its directory."""
        return str(self.options.get("name", self.run.path.absolute().name))

    @property
    def folder(self) -> Path:
        """A folder for what the tracker writes itself."""
        return self.run.path.absolute() / FOLDER

    def own(self, *keys: str) -> dict[str, Any]:
        """Return those of the options that the recipe has."""
        return {key: self.options[key] for key in keys if key in self.options}


class Service:
    """One run in one tracker.

    A subclass gives the arguments of accelerate's class, and overrides what the tracker can do more.

    Attributes:
        tracker: of accelerate.
    """

    name: ClassVar[str]

    def __init__(self, place: Place) -> None:
        self.place = place
        self.tracker: Any = self.make(LOGGER_TYPE_TO_CLASS[self.name])

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        """Return accelerate's tracker, which is not started yet."""
        raise NotImplementedError

    def open(self) -> None:
        """Start or resume the run under the id of its position."""
        self.tracker.start()

    def held(self) -> dict[str, int] | None:
        """Return the last step of each split that the tracker has. None if it cannot be asked."""
        return None

    def rewind(self, step: int) -> bool:
        """Remove all after a step, and return whether the tracker can."""
        return False

    def configure(self, values: dict[str, Any]) -> None:
        """Log the recipe by dotted keys."""
        self.tracker.store_init_configuration(values)

    def log(self, record: Record) -> None:
        """Log the numbers of one step and split."""
        self.tracker.log(record.values, step=record.step)

    def document(self, document: Document) -> None:
        """Upload a file or an image. A tracker without files leaves it out."""

    def url(self) -> str | None:
        """Return where the run is shown."""
        return None

    def close(self, state: str | None) -> None:
        """End the connection, after all was sent. `state`: of the run, None if it may continue."""
        self.tracker.finish()


def mark_of(split: str) -> str:
    """Return a key that every record of a split has."""
    return f"{split}/step" if split.startswith("evaluation/") else f"{split}/epoch"


def split_of(key: str) -> str | None:
    """Return the split whose mark a key is."""
    split, _, last = key.rpartition("/")
    return split if split and mark_of(split) == key and last else None

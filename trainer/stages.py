"""Make an output of a run once, and skip it while its inputs are unchanged. No torch here.

A stage names its inputs (settings, hashes of files, the step of the weights) and its outputs. Outputs are written to a
temporary folder or file, flushed and renamed. After that the inputs are recorded, in manifest.json or next to the
output. A stage that is killed at any point is completed by the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.files import publish, read_json, workspace, write_json
from trainer.rundir import RunDir


class Times:
    """The seconds that the parts of a run have taken, for one line in the log."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - began

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, the same for the same keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, both None if there is no such file."""
    if not path.is_file():
        return {"bytes": None, "sha256": None}
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def unchanged(inputs: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> bool:
    """Return whether all inputs have the values that were recorded with the output."""
    return recorded is not None and all(recorded.get(name) == value for name, value in inputs.items())


@contextlib.contextmanager
def published(place: Path) -> Iterator[Path]:
    """Give an empty folder, whose content replaces `place` when the block ends without an error.

    Raises:
        CheckpointError: the disk is full or not writable. The old folder is as it was.
        LockLost: `place` is in a run directory that another process has taken over.
    """
    making = workspace(place)
    try:
        yield making
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    publish(making, place)


@dataclass(frozen=True)
class Stage:
    """A stage after training, recorded under "stages" in manifest.json.

    Attributes:
        name: its key in the manifest.
        inputs: JSON values that the outputs follow from.
        outputs: the files that prove that the stage is complete.
        complete: whether such a file is there.
    """

    name: str
    inputs: Mapping[str, Any]
    outputs: Sequence[Path] = ()
    complete: Callable[[Path], bool] = Path.exists

    def is_done(self, run: RunDir) -> bool:
        """Return whether the outputs are complete and were made from the same inputs."""
        return unchanged(self.inputs, run.stages().get(self.name)) and all(map(self.complete, self.outputs))

    def record(self, run: RunDir, **facts: Any) -> None:
        """Write into the manifest that the stage is done. `facts`: what else to keep about it."""
        manifest = read_json(run.manifest) or {}
        manifest.setdefault("stages", {})[self.name] = {**self.inputs, **facts}
        write_json(run.manifest, manifest)

    def make(self, run: RunDir, work: Callable[[], Any]) -> bool:
        """Call `work` and record the stage, unless it is done. Return whether it was made now."""
        if self.is_done(run):
            return False
        work()
        self.record(run)
        return True

"""Read what trackers get from a run directory: lines, scores, files and the recipe. No torch here."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UsageError
from trainer.files import read_json
from trainer.recipe import parse_yaml
from trainer.redaction import shareable
from trainer.rundir import RunDir
from trainer.stages import digest, file_facts

SPLIT = re.compile(r"\w{1,40}")
IMAGES, DOCUMENTS = (".png",), (".html", ".json", ".txt", ".md", ".yaml")
MOST_BYTES = 100_000_000  # of a file that is uploaded


@dataclass(frozen=True)
class Record:
    """Numbers of one step and split, named SPLIT/KEY."""

    split: str
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Document:
    """A file of the run.

    Attributes:
        name: relative to the run directory.
    """

    name: str
    path: Path
    step: int
    sha256: str

    @property
    def is_image(self) -> bool:
        return self.path.suffix in IMAGES


class Lines:
    """The lines of metrics.jsonl, in order. A resume replaces the file, which is then read from its beginning."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.metrics
        self._read: tuple[int, int] = (0, 0)  # inode and bytes

    def new(self) -> Iterator[Record]:
        """Yield the records of complete lines that were not read before."""
        try:
            file = open(self._path, "rb")  # noqa: PTH123, SIM115 - closed below
        except FileNotFoundError:
            return
        with file:
            inode, place = self._stat(file)
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                place += len(line)
                self._read = (inode, place)
                if (record := record_of(line)) is not None:
                    yield record

    def exist(self) -> bool:
        """Return whether there are lines."""
        return self._path.is_file() and self._path.stat().st_size > 0

    def again(self) -> None:
        """Begin with the first line again."""
        self._read = (0, 0)

    def _stat(self, file: Any) -> tuple[int, int]:
        status = os.fstat(file.fileno())
        same = status.st_ino == self._read[0] and status.st_size >= self._read[1]
        return status.st_ino, self._read[1] if same else 0


def record_of(line: bytes) -> Record | None:
    """Return the numbers of a line of metrics.jsonl. None if it is none."""
    try:
        values = json.loads(line)
        split, step = values.pop("split"), values.pop("step")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if type(step) is not int or not isinstance(split, str) or not SPLIT.fullmatch(split):
        return None
    corpora = values.pop("corpora", None)
    numbers = numbers_in(values, split)
    for name, of in corpora.items() if isinstance(corpora, dict) else ():
        for key, value in of.items() if isinstance(of, dict) else ():
            numbers |= numbers_in({key: {name: value}}, split)
    return Record(split, step, numbers)


def numbers_in(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return all finite numbers of a mapping at any depth, by their keys with `/` between them."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}/{re.sub(r'[^A-Za-z0-9_. -]', '_', str(key))}"
        if isinstance(value, Mapping):
            found |= numbers_in(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value
    return found


def scores_of(run: RunDir) -> Iterator[tuple[Record, str]]:
    """Yield the scores of each evaluated split, named evaluation/SPLIT/KEY, and their SHA-256."""
    for name, facts in sorted(run.stages().items()):
        part, _, split = name.partition("/")
        if part != "evaluation" or not SPLIT.fullmatch(split) or type(facts.get("step")) is not int:
            continue
        scores = read_json(run.evaluation(split) / "metrics.json")
        if scores is not None:
            yield Record(name, facts["step"], numbers_in({"step": facts["step"], **scores}, name)), digest(scores)


def documents_of(run: RunDir) -> Iterator[Document]:
    """Yield recipe, model card, and the files of each evaluation without rows of the data, besides the report."""
    steps = {record.split: record.step for record, _ in scores_of(run)}
    newest = max(steps.values(), default=0)
    yield from _documents(run, [run.recipe, run.path / "README.md"], newest)
    names = ("report.html", "confusion_matrix.png", "classification_report.txt", "learning_curves.svg", "metrics.json")
    for split, step in steps.items():
        yield from _documents(run, [run.path / split / name for name in names], step)


def _documents(run: RunDir, paths: list[Path], step: int) -> Iterator[Document]:
    for path in paths:
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_BYTES:
            yield Document(str(path.relative_to(run.path)), path, step, str(file_facts(path)["sha256"]))


def config_of(run: RunDir) -> dict[str, Any]:
    """Return the recipe of a run by dotted keys, without credentials and local folders. Values are texts and numbers.

    Raises:
        UsageError: it is no recipe.
    """
    values = recipe_values(run)
    return dict(_flat(shareable({key: value for key, value in values.items() if key != "track"})))


def recipe_values(run: RunDir) -> dict[str, Any]:
    """Return recipe.yaml as it is."""
    run.check()
    values = parse_yaml(run.recipe.read_text(encoding="utf-8"), str(run.recipe))
    if not isinstance(values, dict):
        raise UsageError(f"{run.recipe}: a recipe is a mapping of sections, not {type(values).__name__}")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)

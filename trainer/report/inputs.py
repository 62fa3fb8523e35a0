"""What the analysis of one split reads from a run directory, checked once."""

from __future__ import annotations

import contextlib
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.formats import encodable
from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import Record, json_line, read_predictions
from trainer.recipe import read_yaml
from trainer.redaction import shareable
from trainer.rundir import RunDir, read_json, write_atomically

KINDS = ("classification", "translation", "text_to_text", "language_modeling")


@dataclass(frozen=True)
class Inputs:
    """Recipe, manifest, status, scores, history and records of one split of one run."""

    run: RunDir
    split: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    scores: dict[str, Any]
    history: list[dict[str, Any]]
    records: list[Record]

    @property
    def folder(self) -> Path:
        return self.run.evaluation(self.split)

    @property
    def recipe_text(self) -> str:
        """recipe.yaml as a page shows it."""
        return str(shareable(self.run.recipe.read_text(encoding="utf-8")))

    @property
    def kind(self) -> str:
        return str(self.recipe["task"]["kind"])


def read_inputs(run: RunDir, split: str) -> Inputs:
    """Reads all that the analysis of a split needs.

    Raises:
        DataError: no run directory, a split that was not evaluated, or a record without what its task's carry.
        UsageError: a task that this analysis does not know.
        CheckpointError: a JSON file of the run is damaged.
    """
    kind = _recipe(run)["task"]["kind"]
    if kind not in KINDS:
        raise UsageError(f"{run.recipe}: task.kind={kind!r} cannot be analysed; known: {', '.join(KINDS)}")
    records = read_records(run, split)
    for record in records:
        check_record(record, kind)
    return replace(read_run(run, split), records=records)


def read_run(run: RunDir, split: str) -> Inputs:
    """The same without the records, of any task and of a split that may not have been evaluated.

    Raises:
        DataError: no run directory.
        CheckpointError: a JSON file of the run is damaged.
    """
    return Inputs(
        run=run,
        split=split,
        recipe=shareable(_recipe(run)),
        manifest=shareable(read_json(run.manifest) or {}),
        status=read_json(run.status) or {},
        scores=read_json(run.evaluation(split) / "metrics.json") or {},
        history=_history(run.metrics),
        records=[],
    )


def read_records(run: RunDir, split: str) -> list[Record]:
    """All records of a split, probabilities as `Shares` if they have any.

    Raises:
        DataError: the split was not evaluated, or has no row.
    """
    path = run.evaluation(split) / "predictions.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing: evaluate the split first (rankzero evaluate {run.path} --split {split})")
    index: dict[str, int] = {}
    records = [_compact(record, index) for record in read_predictions(path)]
    if not records:
        raise DataError(f"{path} is empty: there is no row to analyse")
    return records


class Shares(Mapping[str, float]):
    """Probabilities by label in 8 bytes each: rows that have the same labels share their names."""

    def __init__(self, index: Mapping[str, int], values: array[float]) -> None:
        self._index, self._values = index, values

    def __getitem__(self, label: str) -> float:
        return self._values[self._index[label]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def _compact(record: Record, index: dict[str, int]) -> Record:
    """The record with its probabilities as `Shares` of `index`, which the first record fills.

    With 1,000 labels a dictionary of them takes over 100 KB a row. What is no table of numbers with the labels of the
    first record stays as it is: `check_record` or `label_names` refuses it, with its id.
    """
    shares = record.get("probabilities")
    if not isinstance(shares, dict) or not all(type(share) in (float, int) for share in shares.values()):
        return record
    if not index:
        index.update(zip(shares, range(len(shares)), strict=True))
    if shares.keys() != index.keys():
        return record
    return {**record, "probabilities": Shares(index, array("d", map(shares.__getitem__, index)))}


def check_record(record: Record, kind: str) -> None:
    """Raises DataError if a record lacks what the analysis of its task reads."""
    where = f"prediction {record['id']!r}"
    for key in ("input", "target", "prediction"):
        if not isinstance(record[key], str):
            raise DataError(f"{where}: {key} is {record[key]!r}; a text is expected")
    if kind != "classification":
        return
    shares = record.get("probabilities")
    if not isinstance(shares, Mapping) or not all(_is_share(share) for share in shares.values()):
        raise DataError(f"{where}: probabilities is {shares!r}; a number from 0 to 1 for each label is expected")
    for key in ("prediction", "target"):
        if record[key] not in shares:
            raise DataError(f"{where}: {key} {record[key]!r} has no probability; labels: {', '.join(shares)}")


def _is_share(value: Any) -> bool:
    # sums of rounded numbers may pass 1 by a little
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e-6 <= value <= 1 + 1e-6


def label_names(records: Sequence[Record], labels: Sequence[str] | None = None) -> list[str]:
    """Names of the classes in the model's order: those given, else those of the first record's probabilities.

    Raises:
        DataError: a record has other labels.
    """
    names = list(labels) if labels is not None else list(records[0]["probabilities"])
    expected = set(names)
    for record in records:
        if record["probabilities"].keys() != expected:
            found = ", ".join(record["probabilities"])
            raise DataError(f"prediction {record['id']!r} has labels {found}; {', '.join(names)} are expected")
    return names


def confidence(record: Record) -> float:
    """Probability that the model gave to its own answer."""
    return float(record["probabilities"][record["prediction"]])


def is_wrong(record: Record) -> bool:
    return bool(record["prediction"] != record["target"])


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """JSON lines, atomically."""
    write_atomically(path, "".join(map(json_line, lines)))
    return path


def without_surrogates(text: str) -> str:
    """Half surrogate pairs become U+FFFD, so that the text can be written as UTF-8."""
    return text if encodable(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _recipe(run: RunDir) -> dict[str, Any]:
    if not run.recipe.is_file():
        raise DataError(f"{run.path} is no run directory: recipe.yaml is missing")
    try:
        recipe = read_yaml(run.recipe)
    except UsageError as error:
        raise DataError(str(error)) from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("task"), dict) or "kind" not in recipe["task"]:
        raise DataError(f"{run.recipe} has no task.kind; restore it")
    return recipe


def _history(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last one that a kill left half written is not yet a line."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def finite(value: Any) -> bool:
    """A number that can be drawn or printed: metrics.jsonl holds null for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

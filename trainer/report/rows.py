"""Rows by their length in words, and rows whose input is also in the training set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.files import read_json
from trainer.report.task_report import Measure, TaskReport

LENGTH_EDGES = (10, 25, 50, 100, 200, 400)  # words of a text; a bucket ends with its edge
SHARED_TEXTS = "shared_texts.json"


def words(record: Record) -> int:
    """Words of the input, split at white space."""
    return len(record["input"].split())


def length_buckets(
    records: Sequence[Record], edges: Sequence[int] = LENGTH_EDGES
) -> list[tuple[dict[str, int | None], list[Record]]]:
    """({"from": fewest words, "to": most words}, rows) of each bucket that has rows; the last has no upper end."""
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(sum(words(record) > edge for edge in edges), []).append(record)
    starts, ends = (0, *(edge + 1 for edge in edges)), (*edges, None)
    return [({"from": starts[i], "to": ends[i]}, found[i]) for i in sorted(found)]


def find_shared_texts(train_texts: Iterable[str], records: Sequence[Record], measure: Measure) -> dict[str, Any]:
    """Return `shared_summary` of the rows of a split whose input is also the input of a training row.

    `train_texts` are compared with hashes of the split's inputs: the memory depends on the split alone.
    """
    rows: dict[bytes, list[str]] = {}
    for record in records:
        rows.setdefault(_digest(record["input"]), []).append(record["id"])
    shared = {digest for text in train_texts if (digest := _digest(text)) in rows}
    return shared_summary({row_id for digest in shared for row_id in rows[digest]}, records, measure)


def shared_summary(ids: Iterable[str], records: Sequence[Record], measure: Measure) -> dict[str, Any]:
    """{"count", "rows", "ids"} and, under the measure's key, its score of all rows, of those that are not in the
    training set (`*_without`) and of those that are (`*_shared`); null where there is no such row."""
    known, (key, score) = set(ids), (measure.key, measure.score)
    seen, new = ([row for row in records if (row["id"] in known) == which] for which in (True, False))
    return {
        "count": len(seen),
        "rows": len(records),
        key: score(records),
        f"{key}_without": score(new) if new else None,
        f"{key}_shared": score(seen) if seen else None,
        "ids": [record["id"] for record in seen],
    }


def shared_rows(report: TaskReport) -> dict[str, Any] | None:
    """The rows of shared_texts.json with the scores of today's records; None if they were never searched."""
    known, measure = read_json(report.folder / SHARED_TEXTS), report.measure()
    if not known or measure is None:
        return None
    found = shared_summary(known["ids"], report.records, measure)
    scores = (found[f"{measure.key}{part}"] for part in ("", "_without", "_shared"))
    texts = [None if score is None else measure.form.format(score) for score in scores]
    return {**found, "scores": texts, "name": measure.name, "units": report.units}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

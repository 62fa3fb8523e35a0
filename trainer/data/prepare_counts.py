"""Put the counts of chunks together: the same survey of a split as one process makes that reads all rows in order."""

from __future__ import annotations

from typing import Any

from trainer.data.bad_rows import BadRows
from trainer.data.cleaning import BadRow
from trainer.data.prepare_work import Workspace
from trainer.data.sources import Split
from trainer.data.survey import _Reading, survey
from trainer.data.survey_counts import EXAMPLES, REASONS, Numbers, Survey
from trainer.errors import DataError, UsageError


def usable_chunks(workspace: Workspace, split: Split) -> list[tuple[int, int, int]]:
    """Return file number, first row and number of usable rows of each chunk of a split."""
    return [(shard, counts["first"], counts["rows"]) for shard, counts in _chunks(workspace, split)]


def merged(workspace: Workspace, split: Split, fingerprint: str, *, empty: bool = False) -> Survey:
    """Return the survey of a split whose rows are in chunks. `empty`: it may have no usable row.

    Raises:
        DataError: as `survey`.
        UsageError: a chunk is missing.
    """
    source, data, roles = workspace.sources[split], workspace.recipe.data, workspace.roles
    found = Survey(split, fingerprint=fingerprint, shard_rows=[0] * len(source.shards))
    bad: dict[int, BadRows] = {}
    for shard, counts in _chunks(workspace, split):
        found.shard_rows[shard] += counts["read"]
        _add(found, counts)
        if counts["mistakes"] and (shard in bad or sum(len(rows.counts) for rows in bad.values()) < EXAMPLES):
            _add_mistakes(bad.setdefault(shard, BadRows()), counts["mistakes"])
    for shard, rows in bad.items():
        if room := EXAMPLES - len(found.examples):
            rows.quoted.sort(key=lambda place: place[0].id)
            found.examples += rows.sentences(source.shards[shard], source.forms(shard)[0], room)
    try:
        if found.rows or not empty:
            _Reading(data, roles, found).check([shard.name for shard in source.shards])
        if data.on_bad_row == "fail" and bad:
            raise DataError(f"data.{split}: {found.examples[0]}")
    except DataError:
        survey(source, data, roles, split)  # raises the error with all it knows
        raise
    return found


def _chunks(workspace: Workspace, split: Split) -> Any:
    """Yield the number of the file and the counts of each chunk, in order."""
    shard = 0
    for counts in workspace.chunks(split):
        if counts is None:
            raise UsageError(f"prepare: not all rows of {split} are read yet: run every part of stage read first")
        yield shard, counts
        shard += counts["ended"]


def _add(found: Survey, counts: dict[str, Any]) -> None:
    found.rows += counts["rows"]
    found.read += counts["read"]
    found.lost += counts["lost"]
    found.labels.update(counts["labels"])
    found.without.update(counts["without"])
    for role, numbers in counts["numbers"].items():
        for number in numbers:
            found.numbers.setdefault(role, Numbers()).add(number)
    for reason, rows in counts["reasons"].items():
        known = reason in found.bad or len(found.bad) < REASONS
        found.bad[reason if known else "other reasons"] += rows


def _add_mistakes(rows: BadRows, mistakes: list[dict[str, Any]]) -> None:
    """Count the mistakes of a chunk as if its rows were read one by one."""
    for mistake in mistakes:
        places = [
            (
                BadRow(**{**place["row"], "id": tuple(place["row"]["id"])}),
                (tuple(place["span"][0]), tuple(place["span"][1])),
            )
            for place in mistake["places"]
        ]
        kind = places[0][0].mistake
        before = rows.counts[kind]
        for row, span in places:
            rows.add(row, span)
        if kind in rows.counts:
            rows.counts[kind] = before + mistake["rows"]

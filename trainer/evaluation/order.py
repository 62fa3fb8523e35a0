"""The order of the rows of a corpus, which their ids alone decide."""

from __future__ import annotations

from trainer.errors import DataError

MOST_DIGITS = 20  # of the number of a row


def corpus_order(row_id: str) -> tuple[str, int, str]:
    """Sort key of a row id "file:row": by file name, then by row number. Ids of another shape sort by their text."""
    name, colon, row = row_id.rpartition(":")
    if colon and row.isascii() and row.isdigit() and len(row) < MOST_DIGITS:
        return name, int(row), row_id
    return row_id, -1, row_id


def repeated(row_id: str) -> DataError:
    return DataError(f"two predictions have the id {row_id!r}: each row is evaluated exactly once")

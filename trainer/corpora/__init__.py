"""Corpora generated from grammars that this project wrote: nothing to download, any number of rows.

The words and templates are in the YAML files of this folder. Their comments say what the fields mean.
A row depends on (corpus, seed, split, row) only. Rows can therefore be made in any order, on any shard.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.corpora import reviews, translation
from trainer.errors import DataError

SPLITS = ("train", "validation", "test")


CORPORA = {"translation": translation.row, "reviews": reviews.row}


def embedded_rows(corpus: str, split: str, rows: int, seed: int, shard: int, shards: int) -> Iterator[dict[str, str]]:
    """Yield the rows shard, shard + shards, … below `rows`. DataError if there is no such corpus, split or shard."""
    if corpus not in CORPORA:
        raise DataError(f"data.root: no embedded corpus {corpus!r}; there are: {', '.join(CORPORA)}")
    if split not in SPLITS:
        raise DataError(f"embedded://{corpus}: no split {split!r}; there are: {', '.join(SPLITS)}")
    if rows < 1 or not 0 <= shard < shards:
        raise DataError(
            f"embedded://{corpus}: rows={rows}, shard {shard} of {shards}; need rows >= 1 and 0 <= shard < shards"
        )
    make = CORPORA[corpus]
    return (make(split, row, seed) for row in range(shard, rows, shards))

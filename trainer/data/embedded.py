"""Corpora generated from grammars that this project wrote: nothing to download, any number of rows.

A row is a function of (corpus, seed, split, row) alone, so rows are made lazily, in any order, on any shard. The data
layer names a corpus by a root such as `embedded://translation` and patterns such as `train?rows=24000&shards=8`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from trainer.data import embedded_reviews, embedded_translation
from trainer.errors import DataError

Item = TypeVar("Item")
SPLITS = ("train", "validation", "test")


class Draw:
    """Random choices from 512 bits that are a hash of the key: no state to save, faster than seeding a generator.

    A choice among n takes log2(n) of the bits. `combinations` collects the combinations that the row is made of.
    """

    __slots__ = ("bits", "combinations")

    def __init__(self, *key: object) -> None:
        self.bits = int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode()).digest(), "little")
        self.combinations: list[tuple[str, str]] = []

    def below(self, n: int) -> int:
        self.bits, choice = divmod(self.bits, n)
        return choice

    def pick(self, options: Sequence[Item]) -> Item:
        self.bits, choice = divmod(self.bits, len(options))
        return options[choice]

    def combine(self, first: str, second: str) -> None:
        self.combinations.append((first, second))


def translation_pair(split: str, row: int, seed: int = 0) -> dict[str, str]:
    """Row `row` (from 0) of a split of the German-English corpus: {"de": …, "en": …}."""
    de, en = embedded_translation.generate(Draw("translation", seed, split, row), split)
    return {"de": de, "en": en}


def review(split: str, row: int, seed: int = 0) -> dict[str, str]:
    """Row `row` (from 0) of a split of the review corpus: {"text": …, "label": "negative" or "positive"}.

    Of the rows 2k and 2k + 1 one is positive and one negative.
    """
    label = "+-"[(Draw("reviews", seed, split, "pair", row // 2).below(2) + row) % 2]
    text = embedded_reviews.generate(Draw("reviews", seed, split, row), split, label)
    return {"text": text, "label": embedded_reviews.LABELS[label]}


CORPORA: dict[str, Callable[[str, int, int], dict[str, str]]] = {"translation": translation_pair, "reviews": review}


def embedded_rows(corpus: str, split: str, rows: int, seed: int, shard: int, shards: int) -> Iterator[dict[str, str]]:
    """The rows shard, shard + shards, … below `rows`. DataError: a corpus, split or shard that is not there."""
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

"""Deterministic random choices, the split of a combination of words, and the loader of the data files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Item = TypeVar("Item")
PERCENT = range(100)
HELD_OUT = {0: "test", 1: "test", 2: "validation", 3: "validation"}  # twentieths of the combinations; the rest trains


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def hashed(key: Sequence[object], size: int = 64) -> int:
    """Return an integer of `size` bytes from the key, the same on every machine."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=size).digest(), "little")


class Draw:
    """Random choices from the hash of a key. A choice among n uses log2(n) of its 512 bits."""

    def __init__(self, *key: object) -> None:
        self.bits = hashed(key)
        self.combinations: list[tuple[str, str]] = []  # of words in the row

    def one_in(self, n: int) -> bool:
        self.bits, choice = divmod(self.bits, n)
        return not choice

    def pick(self, options: Sequence[Item]) -> Item:
        self.bits, choice = divmod(self.bits, len(options))
        return options[choice]


def split_of(corpus: str, first: str, second: str) -> str:
    """Return the only split of the corpus that combines these words."""
    return HELD_OUT.get(hashed((corpus, first, second), 8) % 20, "train")


def load(name: str) -> dict[str, Any]:
    """Read a data file of this package."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def weighted(weights: Mapping[Item, int]) -> list[Item]:
    """Return each item as often as its weight says."""
    return [item for item, weight in weights.items() for _ in range(weight)]

"""Read source texts and write target texts: what the programs of text pairs share. Part of their run.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from trainer.export.artifact import Array, Artifact


class PairsReader(Artifact):
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(folder, settings)
        target = folder / "target" / "tokenizer.json"  # with separate vocabularies
        if target.exists():
            self.target_tokenizer = tokenizers.Tokenizer.from_file(str(target))

    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        return ([*self.settings["before"], *self.ids(sides[0])[: self.room], *self.settings["after"]],)

    @property
    def room(self) -> int:
        return self.settings["max_length"] - len(self.settings["before"]) - len(self.settings["after"])

    def limits(self, lengths: Array) -> Array:
        """Most new tokens of rows with sources of these lengths, <eos> included."""
        counted = (lengths - self.settings["prefix_length"]).astype(np.float32)
        factor = np.float32(self.settings["max_length_factor"])
        return np.minimum((counted * factor + 10).astype(np.int64), self.settings["longest"])

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for ids, score in self.search([src for (src,) in examples]):
            yield {"prediction": self.target_tokenizer.decode(ids, skip_special_tokens=True), "score": score}

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """Ids, without <eos>, and score of the best hypothesis of each row."""
        raise NotImplementedError

"""Lengths of rows in tokens, measured with the tokenizer of the model or estimated from words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.profile import Column, word_count
from trainer.data.token_ids import encoding_errors
from trainer.errors import UsageError
from trainer.hub_paths import check_tokenizer_files, folder_of

SPECIAL = 3  # special tokens of a row, at most
TOKENS_PER_WORD = 1.5  # for an estimate; rare words take more
STEP, LEAST = 8, 64


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample of rows, with special tokens.

    Attributes:
        sorted: the lengths in ascending order.
        measured: false if they are an estimate.
        unknown: share of the tokens that the vocabulary lacks.
    """

    sorted: tuple[int, ...]
    measured: bool
    unknown: float = 0.0

    def quantile(self, share: float) -> int:
        """Return the length that this share of the rows does not exceed."""
        return self.sorted[min(len(self.sorted) - 1, math.ceil(share * len(self.sorted)) - 1)]

    @property
    def mean(self) -> float:
        return sum(self.sorted) / len(self.sorted)

    def max_length(self, most: int) -> int:
        """Return data.max_length: nearly all rows fit, and a few long ones do not slow down all others.

        It is at least LEAST, because later texts may be longer. Micro-batches are only as wide as their longest row.
        """
        usual, longest = self.quantile(0.98), self.sorted[-1]
        chosen = longest if longest <= max(LEAST, 1.3 * usual) else usual
        return min(most, max(LEAST, math.ceil(chosen / STEP) * STEP))

    def cut(self, length: int) -> float:
        """Return the share of the rows that are longer."""
        return sum(size > length for size in self.sorted) / len(self.sorted)


def measure(columns: Sequence[Column], model: str | None, joined: bool) -> Lengths:
    """Return the lengths of the sampled texts of some columns.

    Args:
        columns: of the input texts.
        model: a pretrained model, whose tokenizer measures if it is on this machine.
        joined: the texts of a row are one sequence, as those of a pair are.

    Raises:
        UsageError, DataError: the tokenizer of the model is damaged.
    """
    tokenizer = _tokenizer(model) if model else None
    sizes, unknown, total = [], 0, 0
    for column in columns:
        texts = column.texts or [""]
        if tokenizer is None:
            sizes.append(sorted(math.ceil(TOKENS_PER_WORD * word_count(text)) for text in texts))
            continue
        with encoding_errors(str(model)):
            encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = {tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>")} - {None}
        unknown += sum(number in ids for one in encoded for number in one.ids)
        total += sum(len(one.ids) for one in encoded)
        sizes.append(sorted(len(one.ids) for one in encoded))
    count = min(map(len, sizes))
    if joined:  # the longest with the longest, which is at least the length of a row
        rows = [sum(size[len(size) * i // count] for size in sizes) for i in range(count)]
    else:
        rows = sorted(length for size in sizes for length in size)
    return Lengths(tuple(n + SPECIAL for n in rows), tokenizer is not None, unknown / max(1, total))


def _tokenizer(model: str) -> Any:
    try:
        folder = folder_of(model)
    except UsageError:  # reported when the recipe is loaded
        return None
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    check_tokenizer_files(model)
    from tokenizers import Tokenizer

    with encoding_errors(model, "be loaded"):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

"""Token ids word by word, where a tokenizer allows it: a corpus has far fewer words than it has tokens to encode."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"  # stands for the space before a word, as in SentencePiece
REMEMBERED_WORDS = 200_000  # about 40 MB; then forgotten and begun anew


class Words(dict[str, "list[int] | None"]):
    """Word -> its token ids, remembered: the ids of a text are those of its words, one after the other.

    None for what is not the sum of its words: special tokens are cut out of a text before it is split at spaces, and
    two spaces hold an empty word between them.
    """

    def __init__(self, backend: Tokenizer):
        super().__init__()
        self._backend = backend
        self._whole = (SPACE, *(token.content for token in backend.get_added_tokens_decoder().values()))

    def __missing__(self, word: str) -> list[int] | None:
        alone = word and not any(mark in word for mark in self._whole)
        self[word] = ids = self._encode(word) if alone else None
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """The same as `_encode`."""
        if len(self) > REMEMBERED_WORDS:
            self.clear()
        try:
            return list(chain.from_iterable(map(self.__getitem__, text.split(" "))))  # type: ignore[arg-type]
        except TypeError:  # a None among them
            return self._encode(text)


def splits_at_spaces(backend: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words at U+0020: our own tokenizers and BERT's."""
    steps = json.loads(backend.to_str())
    normalizers, splitters = _steps(steps["normalizer"], "normalizers"), _steps(steps["pre_tokenizer"], "pretokenizers")
    plain = all(
        token["special"] and not (token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"])
        for token in steps["added_tokens"]
    )
    first = splitters[0] if splitters else {"type": None}
    metaspace = first["type"] == "Metaspace" and first["prepend_scheme"] == "always" and first["split"]
    return (
        plain
        and all(step["type"] in ("NFC", "Lowercase", "BertNormalizer") for step in normalizers)
        and all(step["type"] in ("Punctuation", "Digits") for step in splitters[1:])
        and (metaspace or first["type"] == "BertPreTokenizer")
    )


def _steps(found: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    if found is None:
        return []
    return list(found[several]) if found["type"] == "Sequence" else [found]

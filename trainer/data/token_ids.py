"""Token ids of texts: special tokens are added by `Layout`, and words are encoded once where a tokenizer allows it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trainer.errors import DataError, is_panic

# Before `tokenizers` is imported: its thread pool does not survive the fork of a loader process, and ranks and loader
# processes are planned with one thread each.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"  # represents the space before a word, as in SentencePiece
REMEMBERED_WORDS = 200_000  # about 40 MB; then the memory is cleared


@contextmanager
def encoding_errors(name: str, what: str = "encode a text") -> Iterator[None]:
    """Name the tokenizer in errors of the `tokenizers` library, which loads damaged files and fails when it is used.

    Raises:
        DataError: in place of an error of the library.
    """
    try:
        yield
    except BaseException as error:
        if not is_panic(error) and type(error) is not Exception:  # the library raises Exception itself
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"the tokenizer {name!r} cannot {what}: {reason}. Its tokenizer.json is damaged, or has no token for "
            "unknown words; use another tokenizer, or copy the file again"
        ) from None


@dataclass(frozen=True)
class Layout:
    """Where a tokenizer puts its special tokens. Token ids can then be cut before special tokens are added.

    Attributes:
        parts: in their order (token id, -1, type id) for a special token, (-1, side, type id) for the first (0) or
            second (1) text.
    """

    parts: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, pair: bool) -> Layout:
        """Return the layout of one text, or of a pair of texts."""
        with encoding_errors(tokenizer.name_or_path):
            probe = tokenizer.backend_tokenizer.encode("a", "a" if pair else None, add_special_tokens=True)
        parts: list[tuple[int, int, int]] = []
        for token, side, kind in zip(probe.ids, probe.sequence_ids, probe.type_ids, strict=True):
            part = (token, -1, kind) if side is None else (-1, side, kind)
            if part not in parts or side is None:
                parts.append(part)
        return cls(tuple(parts))

    @property
    def special(self) -> int:
        """Number of special tokens of a row."""
        return sum(side < 0 for _, side, _ in self.parts)

    def join(self, sides: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Return ids with special tokens, and type ids, from the token ids of one text or two."""
        ids: list[int] = []
        types: list[int] = []
        for token, side, kind in self.parts:
            piece = [token] if side < 0 else sides[side]
            ids += piece
            types += [kind] * len(piece)
        return ids, types


class Words(dict[str, "list[int] | None"]):
    """Cache of word -> token ids, for tokenizers that encode a text word by word.

    The value is None where the ids of a text are not those of its words: special tokens are cut out of a text before
    it is split at spaces, and two spaces have an empty word between them.
    """

    def __init__(self, backend: Tokenizer):
        super().__init__()
        self._backend = backend
        self._marks = (SPACE, *(token.content for token in backend.get_added_tokens_decoder().values()))

    def __missing__(self, word: str) -> list[int] | None:
        plain = word and not any(mark in word for mark in self._marks)
        self[word] = ids = self._encode(word) if plain else None
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        if len(self) > REMEMBERED_WORDS:
            self.clear()
        try:
            return list(chain.from_iterable(map(self.__getitem__, text.split(" "))))  # type: ignore[arg-type]
        except TypeError:  # a None among them
            return self._encode(text)


def splits_at_spaces(backend: Tokenizer) -> bool:
    """Return whether the ids of a text are those of its words at U+0020, as with our own tokenizers and BERT's."""
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


def _steps(config: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if config is None:
        return []
    return list(config[key]) if config["type"] == "Sequence" else [config]


_WORDS: WeakKeyDictionary[Any, Words | None] = WeakKeyDictionary()


def encode_batch(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    special_tokens: bool = False,
) -> list[list[int]]:
    """Return the token ids of each text, or of each pair of texts, neither cut nor padded.

    They are those of the tokenizer's own batch encoding. Without pairs and special tokens, a tokenizer that first
    splits at spaces encodes each word only once: about 10 times as fast on captions.

    Raises:
        DataError: the tokenizer cannot encode a text.
    """
    backend = tokenizer.backend_tokenizer
    with encoding_errors(tokenizer.name_or_path):
        if pairs is None and not special_tokens:
            if tokenizer not in _WORDS:
                _WORDS[tokenizer] = Words(backend) if splits_at_spaces(backend) else None
            if (words := _WORDS[tokenizer]) is not None:
                return list(map(words.encode, texts))
        inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [encoding.ids for encoding in backend.encode_batch_fast(inputs, add_special_tokens=special_tokens)]


def decode_batch(tokenizer: PreTrainedTokenizerFast, sequences: Any) -> list[str]:
    """Return the text of each sequence of token ids, without special tokens.

    Raises:
        DataError: the tokenizer cannot decode them.
    """
    with encoding_errors(tokenizer.name_or_path, "decode token ids"):
        return list(tokenizer.batch_decode(sequences, skip_special_tokens=True))

"""Tokenizers: trained on the run's own rows, or loaded; and the fast path from texts to token ids.

BPE is the one for translation: words carry a leading "▁" as in SentencePiece, punctuation and every digit stand alone
("man." never becomes a token, numbers can be copied digit by digit), and `decode(encode(x))` gives back any cleaned
text whose characters occur in training. WordPiece is BERT's, its decoding is only nearly exact. Byte-level BPE is
GPT-2's and RoBERTa's and holds any text exactly; Unigram is T5's, ALBERT's and XLNet's (Kudo 2018).
Training is deterministic: the same rows give a byte-identical tokenizer.json.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

# Before `tokenizers` is imported: its thread pool does not survive the fork of a loader process, and one thread per
# rank and per loader process is what the cores are planned for.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import uniform
from trainer.data.sources import Source, held_out
from trainer.data.tokenizer_files import check_vocabulary, no_files
from trainer.data.words import SPACE, Words, splits_at_spaces
from trainer.errors import DataError, UsageError
from trainer.hub_paths import FORMS, VOCABULARIES, check_tokenizer_files, folder_of, locate
from trainer.recipe.sections import DataConfig, TokenizerTraining

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

UNIGRAM_ROUNDS = 4
# RoBERTa's and T5's. A document of a language model begins with the end of the one before it, as GPT-2's.
_ANGULAR = {
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "bos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
# In this order from id 0 on. WordPiece has BERT's own; a decoder begins with [CLS] and ends with [SEP] there.
SPECIAL_TOKENS = {
    "byte_bpe": _ANGULAR,
    "unigram": _ANGULAR,
    "bpe": {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"},
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
    },
}


@dataclass(frozen=True)
class TrainingTexts:
    """The cleaned texts of a train split, streamed anew each time it is iterated.

    Rows held out for validation and bad rows are left out; of more than `limit` rows, a sample spread evenly over the
    corpus is taken, the same one each time.

    Attributes:
        source: the train split.
        data: cleaning, columns and the share held out.
        roles: those with text; a label has no text.
        rows: rows of the split, as surveyed; None = unknown: the first `limit` rows are taken.
        limit: rows taken, about this many.
    """

    source: Source
    data: DataConfig
    roles: Iterable[str]
    limit: int
    rows: int | None = None

    def __iter__(self) -> Iterator[str]:
        clean = cleaner(self.data.cleaning)
        roles = [role for role in self.roles if role != "label"]
        share = self.data.validation if isinstance(self.data.validation, float) else 0.0
        taken = 0
        for row in self.source:
            if self.rows is None and taken >= self.limit:
                return
            if self.rows is not None and uniform("tokenizer", *row.id) * self.rows >= self.limit:
                continue
            texts = clean_row(row, self.roles, self.data.columns, clean)
            if isinstance(texts, BadRow) or (share and held_out(texts, share)):
                continue
            taken += 1
            yield from (texts[role] for role in roles)


def train_tokenizer(texts: Iterable[str], config: TokenizerTraining, max_length: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on `texts`, which are iterated twice: for the alphabet, then for the merges.

    Args:
        texts: cleaned; source and target texts together give a joint vocabulary.
        config: kind, sizes, lower-casing.
        max_length: tokens of a row, special ones included; stored as `model_max_length`.

    Raises:
        DataError: there is no text.
    """
    if iter(texts) is texts:
        raise TypeError("texts must be iterable twice: a list or TrainingTexts, not an iterator")
    tokenizer = _untrained(config)
    alphabet = _alphabet(texts, tokenizer, config)
    if not alphabet:
        raise DataError("tokenizer.train: there is no text to train on")
    if config.kind == "wordpiece":
        _train_wordpiece(tokenizer, texts, config, alphabet)
    elif config.kind == "unigram":
        _train_unigram(tokenizer, texts, config, alphabet)
    else:
        tokenizer.train_from_iterator(texts, _trainer(config, alphabet, _specials(config)))
    return _wrapped(tokenizer, config, max_length)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder, from `pkg://package/folder` inside an installed package, or a Hub id (`id@revision`).

    Truncation and padding that its file may carry are switched off: what a row is cut to is the recipe's decision.

    Raises:
        UsageError: there is no such folder or package, the Hub cannot be reached, or it has no fast version.
    """
    from transformers import AutoTokenizer

    place, revision = locate(name)
    check_tokenizer_files(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # the `tokenizers` library raises Exception itself
        check_tokenizer_files(name, deep=True)
        if (folder := folder_of(name)) is not None and not any((folder / file).exists() for file in VOCABULARIES):
            raise UsageError(no_files(folder, "tokenizer.json")) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"tokenizer {name!r} cannot be loaded: {reason}. Give {FORMS}") from error
    if not tokenizer.is_fast:
        raise UsageError(f"tokenizer {name!r} has no tokenizer.json: only tokenizers of the `tokenizers` library serve")
    check_vocabulary(tokenizer, folder_of(name))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class Layout:
    """Where a tokenizer puts its special tokens, learnt from a probe: the ids can then be cut before they are joined.

    Attributes:
        parts: in their order (token id, -1, type id) for a special token, (-1, side, type id) for the first (0) or
            second (1) text.
    """

    parts: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, pair: bool) -> Layout:
        found = tokenizer.backend_tokenizer.encode("a", "a" if pair else None, add_special_tokens=True)
        parts: list[tuple[int, int, int]] = []
        for token, side, kind in zip(found.ids, found.sequence_ids, found.type_ids, strict=True):
            part = (token, -1, kind) if side is None else (-1, side, kind)
            if part not in parts or side is None:
                parts.append(part)
        return cls(tuple(parts))

    @property
    def special(self) -> int:
        """Special tokens of a row."""
        return sum(side < 0 for _, side, _ in self.parts)

    def join(self, sides: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Token ids of one text or two -> ids with special tokens, and type ids."""
        ids: list[int] = []
        types: list[int] = []
        for token, side, kind in self.parts:
            piece = [token] if side < 0 else sides[side]
            ids += piece
            types += [kind] * len(piece)
        return ids, types


_WORDS: WeakKeyDictionary[Any, Words | None] = WeakKeyDictionary()


def encode_batch(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    special_tokens: bool = False,
) -> list[list[int]]:
    """Token ids of each text (or of each pair of texts), neither cut nor padded.

    The same ids as the tokenizer's own batch encoding. Without pairs and special tokens, a tokenizer that splits at
    spaces first is asked for each word once only: about 10 times as fast on captions.
    """
    backend = tokenizer.backend_tokenizer
    if pairs is None and not special_tokens:
        if tokenizer not in _WORDS:
            _WORDS[tokenizer] = Words(backend) if splits_at_spaces(backend) else None
        if (words := _WORDS[tokenizer]) is not None:
            return list(map(words.encode, texts))
    inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    return [found.ids for found in backend.encode_batch_fast(inputs, add_special_tokens=special_tokens)]


def _specials(config: TokenizerTraining) -> list[str]:
    return list(dict.fromkeys(SPECIAL_TOKENS[config.kind].values()))


def _untrained(config: TokenizerTraining) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = SPECIAL_TOKENS[config.kind]["unk_token"]
    lower = [normalizers.Lowercase()] if config.lowercase else []
    if config.kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        bert = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=False)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), bert])
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer
    if config.kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(lower)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    tokenizer = Tokenizer(models.Unigram() if config.kind == "unigram" else models.BPE(unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    if config.kind == "unigram":
        tokenizer.pre_tokenizer = words
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
        return tokenizer
    punctuation, digits = pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, punctuation, digits])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer, config: TokenizerTraining) -> list[str]:
    """The most frequent characters, ties by code point; the trainers' own cut at a tie depends on hash order."""
    if config.kind == "byte_bpe":
        from tokenizers.pre_tokenizers import ByteLevel

        return sorted(ByteLevel.alphabet()) if any(texts) else []
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    spaces = [char for char in counts if char.isspace()]
    total = sum(counts.pop(char) for char in spaces)
    if config.kind in ("bpe", "unigram") and counts:
        counts[SPACE] += total + 1
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[: config.limit_alphabet])


def _trainer(config: TokenizerTraining, alphabet: list[str], special_tokens: list[str]) -> Any:
    from tokenizers import trainers

    if config.kind == "unigram":
        unknown = SPECIAL_TOKENS["unigram"]["unk_token"]
        return trainers.UnigramTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special_tokens,
            initial_alphabet=alphabet,
            unk_token=unknown,
            show_progress=False,
        )
    kind = trainers.WordPieceTrainer if config.kind == "wordpiece" else trainers.BpeTrainer
    return kind(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )


def _train_wordpiece(
    tokenizer: Tokenizer, texts: Iterable[str], config: TokenizerTraining, alphabet: list[str]
) -> None:
    """WordPiece with a fixed order of its "##x" tokens.

    The trainer numbers them as it meets them in a hash map, anew in each process, and breaks ties between merges by
    those numbers. Given as special tokens they are numbered beforehand; the model is then built from the vocabulary.
    """
    from tokenizers import Tokenizer, models

    scratch = Tokenizer.from_str(tokenizer.to_str())
    continuations = ["##" + char for char in alphabet]
    scratch.train_from_iterator(texts, _trainer(config, alphabet, _specials(config) + continuations))
    vocab = json.loads(scratch.to_str())["model"]["vocab"]
    tokenizer.model = models.WordPiece(vocab=vocab, unk_token=SPECIAL_TOKENS["wordpiece"]["unk_token"])


def _train_unigram(tokenizer: Tokenizer, texts: Iterable[str], config: TokenizerTraining, alphabet: list[str]) -> None:
    """Unigram with the library's pieces, in a fixed order and with probabilities of our own.

    The trainer sums in the order of a hash map, anew in each process: the pieces that it keeps are the same, their
    order and the fourth digit of their scores are not. Here a piece's score is its log-frequency in the likeliest
    segmentation of the texts, found in a few rounds that begin with all pieces alike (Kudo 2018, hard assignments).
    """
    from tokenizers import Tokenizer, models

    scratch = Tokenizer.from_str(tokenizer.to_str())
    scratch.train_from_iterator(texts, _trainer(config, alphabet, _specials(config)))
    specials = _specials(config)
    pieces = sorted({piece for piece, _ in json.loads(scratch.to_str())["model"]["vocab"]} - set(specials))
    unknown = specials.index(SPECIAL_TOKENS["unigram"]["unk_token"])

    def score_pieces(scores: Sequence[float]) -> None:
        vocab = [*((special, 0.0) for special in specials), *zip(pieces, scores, strict=True)]
        tokenizer.model = models.Unigram(vocab, unk_id=unknown)

    score_pieces([-10.0] * len(pieces))
    for _ in range(UNIGRAM_ROUNDS):
        words = Words(tokenizer)  # each word is cut once a round
        counts = Counter(token for text in texts for token in words.encode(text))
        total = sum(counts.values())
        # a piece that is not taken stays possible: as likely as one seen in every second corpus
        score_pieces([math.log(max(counts[len(specials) + i], 0.5) / total) for i in range(len(pieces))])


def _wrapped(tokenizer: Tokenizer, config: TokenizerTraining, max_length: int) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(_specials(config))
    names = SPECIAL_TOKENS[config.kind]
    first, last = names.get("cls_token", names["bos_token"]), names.get("sep_token", names["eos_token"])
    begin = "" if config.begin is False else f"{first} "
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin}$A {last}",
        pair=f"{begin}$A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    types = ["token_type_ids"] if config.kind == "wordpiece" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", *types, "attention_mask"],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS[config.kind],
    )

"""Train a tokenizer on the rows of a run, or load one.

BPE is meant for translation. Words have a leading "▁" as in SentencePiece. Punctuation and every digit are tokens of
their own, so that numbers can be copied digit by digit. `decode(encode(x))` returns any cleaned text whose characters
occur in training. WordPiece is BERT's; its decoding is only nearly exact. Byte-level BPE is GPT-2's and RoBERTa's and
represents any text exactly. Unigram is T5's, ALBERT's and XLNet's (Kudo 2018).
Training is deterministic: the same rows give a byte-identical tokenizer.json.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import uniform
from trainer.data.heads import first_rows
from trainer.data.quotas import Quotas
from trainer.data.roles import Roles
from trainer.data.sources import MixedSource, Source, belongs
from trainer.data.target_tokenizer import fetch_target, with_target
from trainer.data.token_ids import SPACE, Words
from trainer.data.tokenizer_files import check_vocabulary, loader, no_files
from trainer.errors import DataError, UsageError, is_panic
from trainer.hub_paths import VOCABULARIES, check_tokenizer_files, folder_of, locate, suggestion
from trainer.recipe.sections import DataConfig, TokenizerTraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNIGRAM_ROUNDS = 4
# As RoBERTa and T5. A document of a language model begins with the end of the one before it, as with GPT-2.
_ANGULAR = {
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "bos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
# In this order, from id 0. WordPiece has BERT's: there, a decoder begins with [CLS] and ends with [SEP].
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
    """The cleaned texts of a train split, streamed again at each iteration.

    Rows held out for validation and bad rows are left out. Of more than `limit` rows, a sample spread evenly over the
    corpus is taken, the same one each time.

    Attributes:
        source: the train split.
        data: cleaning, columns and the share held out.
        roles: of the task.
        limit: about how many rows are taken.
        rows: rows of the split, as surveyed; None if unknown: the first `limit` rows are taken.
        spread: of unknown rows, the first ones of every file are taken.
        target: True: only texts that the task predicts; False: only the others; None: all.
    """

    source: Source
    data: DataConfig
    roles: Roles
    limit: int
    rows: int | None = None
    target: bool | None = None
    spread: bool = False

    def __iter__(self) -> Iterator[str]:
        clean = cleaner(self.data.cleaning)
        taken = 0
        for row in first_rows(self.source, self.limit) if self.spread else self.source:
            if self.rows is None and taken >= self.limit:
                return
            if self.rows is not None and uniform("tokenizer", *row.id) * self.rows >= self.limit:
                continue
            values = clean_row(row, self.roles, self.data.columns, clean)
            if isinstance(values, BadRow) or not belongs(values, self.data, "train"):
                continue
            taken += 1
            for name, role in self.roles.items():
                if name in values and self.target in (None, role.target):
                    yield from role.texts(values[name])


@dataclass(frozen=True)
class MixedTexts:
    """The texts of the corpora of `data.mix`, each as often as its share says.

    Attributes:
        parts: of the corpora, which may be there several times: `TrainingTexts`, or others with `target`.
        target: as for `TrainingTexts`.
    """

    parts: Sequence[Any]
    target: bool | None = None

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from replace(part, target=self.target)


def training_texts(
    source: Source, data: DataConfig, roles: Roles, limit: int, counts: Mapping[str, Any]
) -> TrainingTexts | MixedTexts:
    """Return the texts that a tokenizer is trained on.

    Args:
        source, data, roles, limit: as for `TrainingTexts`.
        counts: what the survey has counted: "rows", for `data.mix` also "corpora", and "check". If not all rows were
            read, the sample is the first ones of every file.
    """
    rows, spread = counts["rows"], counts.get("check", "full") != "full"
    if not isinstance(source, MixedSource):
        return TrainingTexts(source, data, roles, limit, None if spread else rows, spread=spread)
    known = [counts["corpora"][name]["rows"] for name in source.names]
    limit = limit if rows is None else min(limit, rows)
    parts = []
    for part, section, share, number in zip(
        source.parts, source.sections, Quotas.of(data, known).shares, known, strict=True
    ):
        times, rest = divmod(round(share * limit), number or limit + 1)
        of = None if spread else number
        parts += [TrainingTexts(part, section, roles, number or limit, of, spread=spread)] * times
        parts += [TrainingTexts(part, section, roles, rest, of, spread=spread)] if rest else []
    return MixedTexts(parts)


def train_tokenizer(texts: Iterable[str], config: TokenizerTraining, max_length: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`, which are iterated twice: for the alphabet, then for the merges.

    Args:
        texts: cleaned; source and target texts together for a joint vocabulary.
        config: kind, sizes, lower-casing.
        max_length: tokens of a row, special ones included; stored as `model_max_length`.

    Raises:
        DataError: there is no text.
    """
    if iter(texts) is texts:
        raise TypeError("texts must be iterable twice: use a list or TrainingTexts, not an iterator")
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


def train_tokenizers(
    texts: TrainingTexts | MixedTexts, config: TokenizerTraining, max_length: int
) -> PreTrainedTokenizerFast:
    """Train the tokenizer of a run. With `shared: false` it gets a second one, trained on the targets.

    Arguments and errors as `train_tokenizer`.
    """
    if config.shared:
        return train_tokenizer(texts, config, max_length)
    source = train_tokenizer(replace(texts, target=False), config, max_length)
    of_target = config.model_copy(update={"vocab_size": config.target_size})
    return with_target(source, train_tokenizer(replace(texts, target=True), of_target, max_length))


def load_tokenizer(name: str, key: str = "tokenizer") -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, `pkg://package/folder` inside an installed package, or a Hub id (`id@revision`).

    A folder may have the tokenizer of target texts in its folder target/. Truncation and padding that a file may set
    are switched off: the recipe sets the length of rows.

    Args:
        name: of the tokenizer.
        key: of the recipe that names it, for messages.

    Raises:
        UsageError: there is no such folder or package, the Hub cannot be reached, or it has no fast version.
    """
    tokenizer = _load(name, key)
    folder = fetch_target(name)
    return tokenizer if folder is None else with_target(tokenizer, _load(str(folder), key))


def _load(name: str, key: str) -> PreTrainedTokenizerFast:
    place, revision = locate(name)
    check_tokenizer_files(name)
    try:
        tokenizer = loader(folder_of(name)).from_pretrained(place, revision=revision, trust_remote_code=False)
    except BaseException as error:  # the `tokenizers` library raises Exception itself, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        check_tokenizer_files(name, deep=True)
        if (folder := folder_of(name)) is not None and not any((folder / file).exists() for file in VOCABULARIES):
            raise UsageError(no_files(folder, "tokenizer.json")) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(f"{key}={name!r} cannot be loaded: {reason}. {suggestion(name)}") from error
    if not tokenizer.is_fast:
        raise UsageError(f"{key}={name!r} has no tokenizer.json: a tokenizer of the `tokenizers` library is needed")
    check_vocabulary(tokenizer, folder_of(name))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _specials(config: TokenizerTraining) -> list[str]:
    return list(dict.fromkeys(SPECIAL_TOKENS[config.kind].values()))


def _untrained(config: TokenizerTraining) -> Tokenizer:
    unknown, nfc = SPECIAL_TOKENS[config.kind]["unk_token"], normalizers.NFC()
    lower = [normalizers.Lowercase()] if config.lowercase else []
    bert = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=False)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    punctuation, digits = pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)
    spaces = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    parts: dict[str, tuple[Any, list[Any], Any, Any]] = {
        "wordpiece": (
            *(models.WordPiece(unk_token=unknown), [nfc, bert]),
            *(pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()),
        ),
        "byte_bpe": (models.BPE(), lower, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        "unigram": (models.Unigram(), [nfc, *lower], words, spaces),
        "bpe": (
            *(models.BPE(unk_token=unknown), [nfc, *lower]),
            *(pre_tokenizers.Sequence([words, punctuation, digits]), spaces),
        ),
    }
    model, steps, splitter, decoder = parts[config.kind]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer, config: TokenizerTraining) -> list[str]:
    """Return the most frequent characters, ties by code point. In the library a cut at a tie depends on hash order."""
    if config.kind == "byte_bpe":
        return sorted(pre_tokenizers.ByteLevel.alphabet()) if any(texts) else []
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    spaces = [char for char in counts if char.isspace()]
    total = sum(counts.pop(char) for char in spaces)
    if config.kind in ("bpe", "unigram") and counts:
        counts[SPACE] += total + 1
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[: config.limit_alphabet])


def _trainer(config: TokenizerTraining, alphabet: list[str], special_tokens: list[str]) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "special_tokens": special_tokens,
        "initial_alphabet": alphabet,
    }
    if config.kind == "unigram":
        unknown = SPECIAL_TOKENS["unigram"]["unk_token"]
        return trainers.UnigramTrainer(**settings, unk_token=unknown, show_progress=False)
    kind = trainers.WordPieceTrainer if config.kind == "wordpiece" else trainers.BpeTrainer
    settings |= {"min_frequency": config.min_frequency, "limit_alphabet": len(alphabet)}
    return kind(**settings, show_progress=False)


def _train_wordpiece(
    tokenizer: Tokenizer, texts: Iterable[str], config: TokenizerTraining, alphabet: list[str]
) -> None:
    """Train WordPiece with a fixed order of its "##x" tokens.

    The library numbers them in the order of a hash map, which differs in each process, and breaks ties between merges
    by these numbers. As special tokens they have fixed numbers. The model is then built from the vocabulary.
    """
    scratch = Tokenizer.from_str(tokenizer.to_str())
    continuations = ["##" + char for char in alphabet]
    scratch.train_from_iterator(texts, _trainer(config, alphabet, _specials(config) + continuations))
    vocab = json.loads(scratch.to_str())["model"]["vocab"]
    tokenizer.model = models.WordPiece(vocab=vocab, unk_token=SPECIAL_TOKENS["wordpiece"]["unk_token"])


def _train_unigram(tokenizer: Tokenizer, texts: Iterable[str], config: TokenizerTraining, alphabet: list[str]) -> None:
    """Train Unigram with the library's pieces, in a fixed order and with our own probabilities.

    The library sums in the order of a hash map, which differs in each process: it keeps the same pieces, but their
    order and the fourth digit of their scores differ. Here the score of a piece is its log-frequency in the most
    probable segmentation of the texts. A few rounds that begin with equal scores find it (Kudo 2018, hard assignments).
    """
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
        words = Words(tokenizer)  # each word is segmented once a round
        counts = Counter(token for text in texts for token in words.encode(text))
        total = sum(counts.values())
        # a piece that is not used stays possible: half as probable as one that is used once
        score_pieces([math.log(max(counts[len(specials) + i], 0.5) / total) for i in range(len(pieces))])


def _wrapped(tokenizer: Tokenizer, config: TokenizerTraining, max_length: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(_specials(config))
    names = SPECIAL_TOKENS[config.kind]
    first, last = names.get("cls_token", names["bos_token"]), names.get("sep_token", names["eos_token"])
    begin = "" if config.begin is False else f"{first} "
    tokenizer.post_processor = processors.TemplateProcessing(
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

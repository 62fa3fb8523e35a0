"""Folders of tokenizers from elsewhere: changed values in their files, and parts that make the library fail."""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import runs, words
from trainer.data.target_tokenizer import save_tokenizer
from trainer.data.token_ids import Layout, decode_batch, encode_batch
from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.recipe.sections import TokenizerTraining

KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram")
FILES = ("tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json", "merges.txt",
"vocab.json", "target/tokenizer.json", "special_tokens_map.json")  # fmt: skip
TEXTS = ("a good film", "", "x" * 300, "\ufffd é 日本", "[CLS] <s> ▁", "a\0b\n")
REPLACE = "Replace"


def _charsmap() -> st.SearchStrategy[Any]:
    """Draw the table of a SentencePiece normalizer: the size of a tree, the tree, and texts."""
    table = st.builds(lambda size, rest: size.to_bytes(4, "little") + rest,
                      st.sampled_from([0, 4, 8, 2**31 - 1]), st.binary(max_size=24))  # fmt: skip
    return st.one_of(st.binary(max_size=8), table).map(
        lambda content: {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}
    )


def _of(kind: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(kind), **keys})


NUMBER = st.sampled_from([0, 1, 2, 7, -1, 2**31, 2**32 - 1, 2**32, 2**62])
TEXT = st.one_of(st.sampled_from(["", "a", "▁", "##", "[UNK]", "</w>", "é"]), words.text(4))
PATTERN = st.one_of(
    st.builds(lambda text: {"String": text}, TEXT),
    st.sampled_from([{"Regex": text} for text in ("", "(a+)+$", "[", "(?=a)", "x{1000}{1000}", "\\p{L}", ".")]),
)
BEHAVIOR = st.sampled_from(["Isolated", "Removed", "Contiguous", "MergedWithNext", "x"])
FLAG = st.booleans()
NORMALIZERS = st.one_of(
    _charsmap(), _charsmap(), _of("Prepend", prepend=TEXT), _of(REPLACE, pattern=PATTERN, content=TEXT),
    _of("Strip", strip_left=FLAG, strip_right=FLAG), _of("Sequence", normalizers=st.just([])), st.none(),
    st.sampled_from([{"type": name} for name in ("NFC", "NFKD", "Lowercase", "Nmt", "ByteLevel", "x")]),
)  # fmt: skip
PRE_TOKENIZERS = st.one_of(
    _of("FixedLength", length=NUMBER), _of("Split", pattern=PATTERN, behavior=BEHAVIOR, invert=FLAG),
    _of("Metaspace", replacement=TEXT, prepend_scheme=st.sampled_from(["always", "never", "first"]), split=FLAG),
    _of("Digits", individual_digits=FLAG), _of("CharDelimiterSplit", delimiter=TEXT), st.none(),
    _of("ByteLevel", add_prefix_space=FLAG, trim_offsets=FLAG, use_regex=FLAG), _of("Punctuation", behavior=BEHAVIOR),
    st.sampled_from([{"type": name} for name in ("BertPreTokenizer", "Whitespace", "UnicodeScripts", "x")]),
)  # fmt: skip
PIECE = st.one_of(
    st.builds(lambda name, kind: {"SpecialToken": {"id": name, "type_id": kind}}, TEXT, NUMBER),
    st.builds(lambda name: {"Sequence": {"id": name, "type_id": 0}}, st.sampled_from(["A", "B", "C"])),
)
SPECIAL = st.dictionaries(
    TEXT, st.builds(lambda name, ids: {"id": name, "ids": ids, "tokens": [name] * len(ids)}, TEXT,
    st.lists(NUMBER, max_size=2)), max_size=2,
)  # fmt: skip
PROCESSORS = st.one_of(
    _of("TemplateProcessing", single=st.lists(PIECE, max_size=3), pair=st.lists(PIECE, max_size=3),
        special_tokens=SPECIAL),
    _of("BertProcessing", sep=st.tuples(TEXT, NUMBER), cls=st.tuples(TEXT, NUMBER)), st.none(),
    _of("ByteLevel", add_prefix_space=FLAG, trim_offsets=FLAG, use_regex=FLAG),
)  # fmt: skip
DECODERS = st.one_of(
    _of("Strip", content=TEXT, start=NUMBER, stop=NUMBER), _of("WordPiece", prefix=TEXT, cleanup=FLAG), st.none(),
    _of("CTC", pad_token=TEXT, word_delimiter_token=TEXT, cleanup=FLAG), _of("BPEDecoder", suffix=TEXT),
    _of(REPLACE, pattern=PATTERN, content=TEXT), st.sampled_from([{"type": "ByteFallback"}, {"type": "Fuse"}]),
    _of("Metaspace", replacement=TEXT, prepend_scheme=st.just("always"), split=FLAG),
)  # fmt: skip
VOCABULARY = st.dictionaries(TEXT, NUMBER, max_size=4)
MODELS = st.one_of(
    _of("WordLevel", vocab=VOCABULARY, unk_token=TEXT),
    _of("WordPiece", vocab=VOCABULARY, unk_token=TEXT, continuing_subword_prefix=TEXT,
        max_input_chars_per_word=NUMBER),
    _of("BPE", vocab=VOCABULARY, merges=st.lists(st.tuples(TEXT, TEXT), max_size=2), dropout=st.sampled_from([None, 1.0,
        0.0, 2.0]), continuing_subword_prefix=st.one_of(st.none(), TEXT)),
    _of("Unigram", vocab=st.lists(st.tuples(TEXT, st.floats(width=32)), max_size=4),
        unk_id=st.one_of(st.none(), NUMBER), byte_fallback=FLAG),
)  # fmt: skip
PADDING = st.builds(
    lambda length, multiple: {"strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": multiple,
                              "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    NUMBER, st.one_of(st.none(), NUMBER),
)  # fmt: skip
ADDED = st.lists(
    st.builds(lambda content, number, flag: {"id": number, "content": content, "single_word": False, "lstrip": flag,
                                             "rstrip": False, "normalized": flag, "special": not flag},
              TEXT, NUMBER, FLAG),
    max_size=2,
)  # fmt: skip
PARTS = {"normalizer": NORMALIZERS, "pre_tokenizer": PRE_TOKENIZERS, "post_processor": PROCESSORS, "decoder": DECODERS,
         "model": MODELS, "padding": PADDING, "added_tokens": ADDED}  # fmt: skip


def part(name: str) -> st.SearchStrategy[Any]:
    """Draw another part of a tokenizer.json, as a change of a file."""
    key = st.sampled_from([*PARTS, "normalizer", "decoder"])
    value = key.flatmap(lambda found: PARTS[found].map(lambda put: json.dumps({found: put})))
    return st.tuples(st.just(name), st.just("merge"), st.just([0]), value)


def cases() -> st.SearchStrategy[Any]:
    """Draw which tokenizer, and what is changed in its files."""
    return st.tuples(
        st.sampled_from(KINDS), st.one_of(st.lists(part("tokenizer.json"), min_size=1, max_size=2), runs.changes(FILES))
    )


def model_cases() -> st.SearchStrategy[Any]:
    """Draw what is changed in the files of a run that `predict` reads."""
    own = st.sampled_from(["tokenizer/tokenizer.json", "model/tokenizer.json"]).flatmap(part)
    every = runs.changes(runs.MODEL_FILES)
    return st.one_of(every, every, every, own.map(lambda change: [change]))


def prepare(place: Path) -> None:
    """Train the tokenizers."""
    runs.load_torch(place)  # AutoTokenizer imports it
    _train(place)


@functools.cache
def _train(place: Path) -> None:
    texts = ["a good film", "a bad film", "good and bad films", "the film is good", "é 日本 ▁"] * 3
    for kind in KINDS:
        settings = TokenizerTraining.model_validate({"kind": kind, "vocab_size": 300, "min_frequency": 1})
        save_tokenizer(train_tokenizer(texts, settings, 32), place / "tokenizers" / kind)


def check(case: Sequence[Any], folder: Path) -> str:
    """Load a tokenizer, and encode and decode texts."""
    kind, changes = case
    shutil.copytree(folder.parent / "tokenizers" / kind, folder / "own")
    runs.damage(folder / "own", changes)
    tokenizer = load_tokenizer(str(folder / "own"))
    Layout.of(tokenizer, pair=False)
    ids = encode_batch(tokenizer, TEXTS)
    encode_batch(tokenizer, TEXTS, TEXTS, special_tokens=True)
    decode_batch(tokenizer, ids)
    return "read"

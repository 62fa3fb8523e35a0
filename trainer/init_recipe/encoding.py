"""The encoding of text files that are not UTF-8, guessed by the language that their texts are in when decoded."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from trainer.data import formats
from trainer.data.discovery import Shard
from trainer.data.file_types import compression_of
from trainer.data.language import languages_of
from trainer.data.profile import MOSTLY
from trainer.data.sniffing import MARKS

BYTES = 1 << 20  # of a file that are looked at
LINES = 300
# Encoding -> languages that are written in it. Multi-byte ones first: they refuse most other texts.
ENCODINGS = {
    "shift_jis": ("ja",),
    "euc_jp": ("ja",),
    "euc_kr": ("ko",),
    "gb18030": ("zh",),
    "big5": ("zh",),
    "cp1251": ("ru", "uk", "bg"),
    "koi8_r": ("ru",),
    "cp1253": ("el",),
    "cp1255": ("he",),
    "cp1256": ("ar", "fa"),
    "cp874": ("th",),
    "cp1252": ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "id"),
    "cp1250": ("cs", "pl", "hu", "ro"),
    "cp1257": ("lt", "lv", "et"),
    "cp1254": ("tr",),
}


def guess_encoding(shards: Sequence[Shard]) -> str | None:
    """Return the most probable encoding of text files. None for UTF-8, and if none is clear."""
    for shard in shards:
        if shard.format in ("jsonl", "csv", "tsv", "text", "conll"):
            for url in shard.urls:
                if (encoding := _of_bytes(_head(url))) is not None:
                    return encoding
    return None


def _head(url: str) -> bytes:
    """Return the first bytes of a file, decompressed by its content."""
    with formats.opened(url) as file:
        compression = compression_of(file.read(4))
    head = b""
    for chunk in formats.chunks(url, 0, compression):
        head += chunk
        if len(head) >= BYTES:
            break
    return head


def _of_bytes(head: bytes) -> str | None:
    if any(head.startswith(mark) for mark, _ in MARKS) or b"\0" in head:
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return None
    except UnicodeDecodeError:
        lines = [line for line in head.split(b"\n")[:-1] or [head] if not line.isascii()][:LINES]
    for encoding, languages in ENCODINGS.items():
        try:
            texts = [line.decode(encoding) for line in lines]
        except UnicodeDecodeError:
            continue
        shares = languages_of(texts)
        if sum(shares.get(code, 0.0) for code in languages) >= MOSTLY:
            return encoding
    return None

"""SST-2 with whole sentences held out, to choose a recipe by something that resembles the development sentences.

    python -m benchmarks.sst2_sentences --data FOLDER --out ROWS
    rankzero train sst2 data.root=ROWS data.train=train.tsv data.validation=validation.tsv data.test=null \
        evaluation.splits=[validation] …

GLUE's training file holds 67,349 phrases: every constituent of about 7,000 sentences. A random share of them held out
says little, because parts and wholes of the same sentence stand on both sides. Here a tenth of the sentences is held
out, and every phrase of three words or more that stands in one of them is taken out of training.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SHARE, WORDS = 0.1, 3  # of the sentences held out; of the shortest phrase that must not stand on both sides

Words = tuple[str, ...]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="folder that holds sst2/")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for train.tsv and validation.tsv")
    return parser.parse_args()


def phrases_in(words: Words, shortest: int = 1) -> Iterator[Words]:
    """Every run of at least `shortest` of the words, the whole included."""
    for length in range(shortest, len(words) + 1):
        yield from (words[at : at + length] for at in range(len(words) - length + 1))


def sentences_of(rows: Sequence[Words]) -> set[Words]:
    """The rows that are no part of another row."""
    found: set[Words] = set()
    parts: set[Words] = set()
    for words in sorted(set(rows), key=len, reverse=True):
        if words not in parts:
            found.add(words)
            parts.update(phrases_in(words))
    return found


def held_out(words: Words) -> bool:
    """Whether a sentence belongs to the held-out share, by its text alone."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8, person=b"sst2").digest()
    return int.from_bytes(digest, "big") < SHARE * 2**64


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines "text<tab>label" to train on, and the held-out sentences."""
    rows = [tuple(line.rpartition("\t")[0].split()) for line in lines]
    away = {words for words in sentences_of(rows) if held_out(words)}
    shared = {phrase for words in away for phrase in phrases_in(words, WORDS)} | away
    train = [line for line, words in zip(lines, rows, strict=True) if words not in shared]
    return train, [line for line, words in zip(lines, rows, strict=True) if words in away]


def main() -> None:
    options = arguments()
    with gzip.open(options.data / "sst2" / "train.tsv.gz", "rt", encoding="utf-8") as file:
        header, *lines = file.readlines()
    train, validation = split(lines)
    options.out.mkdir(parents=True)
    for name, part in (("train", train), ("validation", validation)):
        (options.out / f"{name}.tsv").write_text(header + "".join(part), encoding="utf-8")
    print(f"{len(lines):,} rows: {len(train):,} to train on, {len(validation):,} held-out sentences, in {options.out}")


if __name__ == "__main__":
    main()

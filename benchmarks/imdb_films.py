"""IMDB with complete films held out, to choose a recipe by something that resembles the test half.

    python -m benchmarks.imdb_films --data FOLDER --out ROWS
    rankzero train imdb-scratch data.root=ROWS data.train=train.jsonl data.validation=validation.jsonl data.test=null \
        evaluation.splits=[validation] …

The test half has other films than the training half. A random share of training reviews has the same ones, and a model
that remembers the names of actors looks better on it than it is. The numbers of the reviews (in their file names, and
`id` in `shards/`) follow the films, so here blocks of successive numbers are held out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path

EVERY, HELD = 3125, 400  # of so many successive reviews of a label, so many are held out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="folder that holds imdb/")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for train.jsonl and validation.jsonl")
    return parser.parse_args()


def split(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the JSON lines to train on, and those of the held-out films."""
    parts: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        parts[json.loads(line)["id"] % EVERY < HELD].append(line)
    return parts


def main() -> None:
    options = arguments()
    lines: list[str] = []
    for path in sorted((options.data / "imdb" / "shards").glob("train-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines += file
    train, validation = split(lines)
    options.out.mkdir(parents=True)
    for name, part in (("train", train), ("validation", validation)):
        (options.out / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    print(f"{len(lines):,} reviews: {len(train):,} to train on, {len(validation):,} of other films, in {options.out}")


if __name__ == "__main__":
    main()

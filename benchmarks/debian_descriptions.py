"""A translation corpus from Debian's archive: descriptions of packages in English and another language.

    base=https://deb.debian.org/debian/dists/bookworm/main
    curl -LO $base/i18n/Translation-de.bz2 -LO $base/i18n/Translation-en.xz -LO $base/binary-amd64/Packages.xz
    python -m benchmarks.debian_descriptions --files . --out ROWS
    rankzero train multi30k data.root=ROWS name=debian …

Volunteers translate the descriptions (https://www.debian.org/international/l10n/ddtp). A translation names the MD5
of its English text, so it belongs to exactly this text. A pair is a title or a paragraph.

Binary packages of one source package have similar descriptions, so all of them are in one split. Of equal pairs one is
kept, and a training pair of which a side is also in validation or test is left out. Every pair left out is counted.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = {"val": 0.03, "test": 0.03}  # shares of the source packages
MOST_WORDS = 60  # of a side

Description = tuple[str, ...]  # the title, then the paragraphs
Pair = tuple[str, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=Path, required=True, help="folder that holds the three files of the archive")
    parser.add_argument("--language", default="de", help="of the translations (default de)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for train, val and test.jsonl")
    return parser.parse_args()


def read(folder: Path, name: str) -> str:
    """The text of a compressed file, NAME.xz or NAME.bz2."""
    for suffix, module in ((".xz", lzma), (".bz2", bz2)):
        if (path := folder / f"{name}{suffix}").exists():
            return module.decompress(path.read_bytes()).decode("utf-8")
    raise SystemExit(f"{folder / name}.xz or .bz2 is missing; see the first lines of benchmarks/debian_descriptions.py")


def descriptions(text: str, language: str) -> dict[str, tuple[str, Description]]:
    """Package and description by the MD5 of the English text."""
    found = {}
    body = re.compile(rf"^Description-{language}: (.*(?:\n .*)*)", re.M)
    for stanza in text.split("\n\n"):
        package = re.search(r"^Package: (\S+)", stanza, re.M)
        key, match = re.search(r"^Description-md5: (\w+)", stanza, re.M), body.search(stanza)
        if package and key and match:
            title, _, rest = match[1].partition("\n")
            paragraphs = (" ".join(part.split()) for part in re.split(r"^ \.$", rest, flags=re.M))
            found[key[1]] = package[1], (title.strip(), *paragraphs)
    return found


def sources(text: str) -> dict[str, str]:
    """The source package of each binary package that is called otherwise."""
    stanzas = re.finditer(r"^Package: (\S+)\n(?:.+\n)*?Source: (\S+)", text, re.M)
    return {match[1]: match[2] for match in stanzas}


def split_of(source: str) -> str:
    """The split of a source package, by its name alone."""
    digest = hashlib.blake2b(source.encode(), digest_size=8, person=b"debian").digest()
    place = int.from_bytes(digest, "big") / 2**64
    for name, share in HELD_OUT.items():
        if place < share:
            return name
        place -= share
    return "train"


def pairs_of(theirs: Description, english: Description, left_out: Counter[str]) -> Iterator[Pair]:
    """Yield title and paragraphs of a translation that are fit to train on."""
    if len(theirs) != len(english):
        left_out["other number of paragraphs"] += 1
        theirs, english = theirs[:1], english[:1]
    for pair in zip(theirs, english, strict=True):
        if not all(pair):
            left_out["empty"] += 1
        elif pair[0] == pair[1]:
            left_out["not translated"] += 1
        elif max(len(side.split()) for side in pair) > MOST_WORDS:
            left_out[f"over {MOST_WORDS} words"] += 1
        else:
            yield pair


def split(
    translated: dict[str, tuple[str, Description]], english: dict[str, tuple[str, Description]], source: dict[str, str]
) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """Return the pairs of each split, and how many were left out and why."""
    left_out: Counter[str] = Counter()
    splits: dict[str, dict[Pair, None]] = {"train": {}, **{name: {} for name in HELD_OUT}}
    for key, (package, theirs) in translated.items():
        if key not in english:
            left_out["no English text"] += 1
            continue
        into = splits[split_of(source.get(package, package))]
        for pair in pairs_of(theirs, english[key][1], left_out):
            left_out["repeated"] += pair in into
            into[pair] = None
    for name, before in (("val", ("test",)), ("train", ("test", "val"))):
        sides = [{pair[side] for other in before for pair in splits[other]} for side in (0, 1)]
        kept = {pair: None for pair in splits[name] if pair[0] not in sides[0] and pair[1] not in sides[1]}
        left_out[f"of {name}, in {' or '.join(before)}"] = len(splits[name]) - len(kept)
        splits[name] = kept
    return {name: [*pairs] for name, pairs in splits.items()}, left_out


def main() -> None:
    options = arguments()
    translated = descriptions(read(options.files, f"Translation-{options.language}"), options.language)
    english = descriptions(read(options.files, "Translation-en"), "en")
    splits, left_out = split(translated, english, sources(read(options.files, "Packages")))
    options.out.mkdir(parents=True)
    for name, pairs in splits.items():
        rows = (json.dumps({options.language: a, "en": b}, ensure_ascii=False) + "\n" for a, b in pairs)
        (options.out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        words = sum(len(pair[1].split()) for pair in pairs)
        print(f"{name}: {len(pairs):,} pairs, {words:,} English words")
    print("left out: " + ", ".join(f"{count:,} {why}" for why, count in left_out.items()))


if __name__ == "__main__":
    main()

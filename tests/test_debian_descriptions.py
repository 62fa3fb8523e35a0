"""The corpus that benchmarks/debian_descriptions.py makes of Debian's archive."""

from __future__ import annotations

import bz2
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import debian_descriptions as debian

GERMAN = """Package: foo
Description-md5: 01
Description-de: Spiel mit
 Fortsetzung
 .
 Der erste  Absatz
 geht weiter.
 .
 foo 1.0

Package: foo-data
Description-md5: 02
Description-de: Daten
 Ein Absatz.
 .
 Ein zweiter.

Package: gone
Description-md5: 03
Description-de: weg
"""
ENGLISH = """Package: foo
Description-md5: 01
Description-en: game
 The first paragraph
 goes on.
 .
 foo 1.0

Package: foo-data
Description-md5: 02
Description-en: data
 One paragraph.
"""


def test_descriptions() -> None:
    found = debian.descriptions(ENGLISH, "en")
    assert found == {
        "01": ("foo", ("game", "The first paragraph goes on.", "foo 1.0")),
        "02": ("foo-data", ("data", "One paragraph.")),
    }
    assert debian.descriptions(GERMAN, "fr") == {}


def test_sources() -> None:
    text = "Package: a-data\nVersion: 1\nSource: a\n\nPackage: b\nVersion: 2\n\nPackage: c-doc\nSource: c (1.2)\n"
    assert debian.sources(text) == {"a-data": "a", "c-doc": "c"}


def test_pairs_left_out_are_counted() -> None:
    left_out: Counter[str] = Counter()
    long = "word " * (debian.MOST_WORDS + 1)
    german, english = ("Titel", "gleich", "", long.strip()), ("title", "gleich", "some", "short")
    assert [*debian.pairs_of(german, english, left_out)] == [("Titel", "title")]
    assert [*debian.pairs_of(("Titel", "a", "b"), ("title", "x"), left_out)] == [("Titel", "title")]
    assert left_out == {"not translated": 1, "empty": 1, "over 60 words": 1, "other number of paragraphs": 1}


def test_splits_share_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "split_of", lambda source: {"t": "test", "v": "val"}.get(source, "train"))
    rows = {
        "1": ("t-bin", ("eins", "one")),
        "2": ("v", ("zwei", "two")),
        "3": ("a", ("drei", "three")),
        "4": ("b", ("eins", "ONE")),  # its German text is in test
        "5": ("c", ("ZWEI", "two")),  # its English text is in val
        "6": ("d", ("drei", "three")),
        "7": ("e", ("sieben", "seven")),
    }
    translated = {key: (package, (german,)) for key, (package, (german, _)) in rows.items()}
    english = {key: (package, (text,)) for key, (package, (_, text)) in rows.items() if key != "7"}
    splits, left_out = debian.split(translated, english, {"t-bin": "t"})
    assert splits == {"train": [("drei", "three")], "val": [("zwei", "two")], "test": [("eins", "one")]}
    assert left_out == {"repeated": 1, "no English text": 1, "of val, in test": 0, "of train, in test or val": 2}


def test_the_split_of_a_package_is_fixed() -> None:
    counts = Counter(debian.split_of(f"package{i}") for i in range(10_000))
    assert 200 < counts["val"] < 400 and 200 < counts["test"] < 400
    assert [debian.split_of(name) for name in ("linux", "gimp")] == [
        debian.split_of(name) for name in ("linux", "gimp")
    ]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["", "--files", str(tmp_path), "--out", str(tmp_path / "rows")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="Translation-de"):
        debian.main()
    (tmp_path / "Translation-de.bz2").write_bytes(bz2.compress(GERMAN.encode()))
    (tmp_path / "Translation-en.xz").write_bytes(lzma.compress(ENGLISH.encode()))
    (tmp_path / "Packages.xz").write_bytes(lzma.compress(b"Package: foo-data\nSource: foo\n"))
    debian.main()
    rows = [json.loads(line) for path in (tmp_path / "rows").iterdir() for line in path.read_text().splitlines()]
    assert sorted((row["de"], row["en"]) for row in rows) == [("Daten", "data"), ("Spiel mit", "game")]
    assert "1 no English text" in capsys.readouterr().out

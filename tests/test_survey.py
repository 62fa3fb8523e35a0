"""One pass over a split: counts, conditions that exit with 3, and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.fingerprints import fingerprint
from trainer.data.roles import Label, Text
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.data.survey_counts import Survey
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

PAIR = {"src": Text(), "trg": Text(target=True)}
GOOD = [json.dumps({"de": f"Satz {i}", "en": f"Sentence {i}"}).encode() for i in range(20)]
BAD = {
    b'{"de": "x"}': ("column 'en' is missing", r'train\.jsonl, line 8 \(row 8\), column "en": is missing'),
    b'{"de": null, "en": "x"}': ("column 'de' is null", r'row 8\), column "de": is null'),
    b'{"de": 3, "en": "x"}': ("column 'de' is not text but int", r'column "de": is not text but int: 3'),
    b'{"de": "x", "en": " \\u00a0"}': ("column 'en' is empty after cleaning", r'column "en": is empty after cleaning'),
    b'{"de": "\xff", "en": "x"}': ("invalid UTF-8", r"row 8\): invalid UTF-8: at byte 8 of"),
    b'{"de": "a\\u0000", "en": "x"}': ("column 'de' holds a NUL character", r'column "de": holds a NUL'),
    b'{"de": "\0", "en": "x"}': ("NUL byte", r"row 8\): NUL byte"),
    b'{"de": "' + b"x" * 1_000_000 + b'", "en": "x"}': ("too long", r"row 8\): too long: 1000021 bytes"),
    b"no": ("not JSON", r"row 8\): not JSON"),
}


def surveyed(folder: Path, content: bytes, split: str = "train", **more: object) -> Survey:
    (folder / "train.jsonl").write_bytes(content)
    data = DataConfig(root=str(folder), train="train.jsonl", columns={"src": "de", "trg": "en"}, **more)
    source = open_split(data, split)
    assert source is not None
    return survey(source, data, PAIR, split)


def with_bad(line: bytes) -> bytes:
    return b"\n".join([*GOOD[:7], line, *GOOD[7:]])


@pytest.mark.parametrize("line", BAD, ids=[kind for kind, _ in BAD.values()])
def test_a_bad_row_ends_the_run_or_is_counted(tmp_path, line):
    kind, sentence = BAD[line]
    with pytest.raises(DataError, match=sentence) as caught:
        surveyed(tmp_path, with_bad(line))
    assert caught.value.exit_code == 3
    assert "data.on_bad_row=skip" in str(caught.value)
    found = surveyed(tmp_path, with_bad(line), on_bad_row="skip", max_bad_fraction=0.05)
    assert (found.rows, found.read, found.shard_rows, dict(found.bad)) == (20, 21, [21], {kind: 1})
    assert found.examples[0].startswith("train.jsonl, line 8 (row 8)")
    with pytest.raises(DataError, match=r"data\.train: 1 of 21 rows are bad \(4\.76%\), more than .*=0\.01"):
        surveyed(tmp_path, with_bad(line), on_bad_row="skip", max_bad_fraction=0.01)


def test_one_sided_pairs(tmp_path):
    (tmp_path / "a.de").write_bytes(b"eins\nzwei\ndrei\n")
    (tmp_path / "a.en").write_bytes(b"one\n\nthree\nfour\n")
    files = {"src": "a.de", "trg": "a.en"}
    data = DataConfig(root=str(tmp_path), train=files, on_bad_row="skip", max_bad_fraction=0.6, lanes=1)
    source = open_split(data, "train")
    assert dict(survey(source, data, PAIR).bad) == {
        "column 'trg' is empty": 1,
        "one-sided pair": 1,
    }
    with pytest.raises(DataError, match=r'a\.de\+a\.en, line 2 \(row 2\), column "trg": is empty'):
        survey(source, data.model_copy(update={"on_bad_row": "fail"}), PAIR)


def test_survey_counts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n{"text": "x"}\n')
    data = DataConfig(root=str(tmp_path), train="a.jsonl", on_bad_row="skip", max_bad_fraction=0.5, lanes=2)
    source = open_split(data, "train")
    assert survey(source, data, {"text": Text(), "label": Label(("0", "1"))}).report() == {
        "rows": 2,
        "bad_rows": {"column 'label' is missing": 1},
        "bad_examples": ['a.jsonl, line 3 (row 3), column "label": is missing; columns here: text'],
        "labels": {"0": 1, "1": 1},
        "fingerprint": fingerprint(source),
    }


@pytest.mark.parametrize("content", [b"\n", b"\n\n"])
def test_an_empty_split(tmp_path, content):
    with pytest.raises(DataError, match=r"data\.train has no usable row: 0 rows were read") as caught:
        surveyed(tmp_path, content)
    assert caught.value.exit_code == 3


def test_more_lanes_than_rows(tmp_path):
    with pytest.raises(DataError, match=r"data\.lanes=21 is more than the 20 rows of data\.train"):
        surveyed(tmp_path, b"\n".join(GOOD), lanes=21)
    assert surveyed(tmp_path, b"\n".join(GOOD), lanes=20).rows == 20
    assert surveyed(tmp_path, b"\n".join(GOOD), "validation", validation="train.jsonl", lanes=21).rows == 20


def test_the_two_sides_of_a_share_held_out_add_up(tmp_path):
    content = b"\n".join(GOOD)
    train = surveyed(tmp_path, content, validation=0.3)
    held = surveyed(tmp_path, content, "validation", validation=0.3)
    assert train.rows + held.rows == train.read == held.read == 20
    assert 0 < held.rows < 20
    assert surveyed(tmp_path, content, "test", validation=0.3, test="train.jsonl").rows == 20
    with pytest.raises(DataError, match=r"no usable row in its part of data\.validation=0\.0"):
        surveyed(tmp_path, content, "validation", validation=0.0)

"""Mistakes in a whole data file: the message names the key to change, and rows are named by their line."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.data.columns import as_yaml, guess_columns, is_no_header
from trainer.data.labels import look_alike, unknown_label
from trainer.data.roles import Label, Text
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.data.survey_counts import Survey
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

LABELS = frozenset(("negative", "positive"))
PAIR = {"src": Text(), "trg": Text(target=True)}
ROLES = {"text": Text(), "label": Label(LABELS)}


def surveyed(folder: Path, split: str = "train", roles: Mapping[str, Any] = ROLES, **more: Any) -> Survey:
    [file] = folder.iterdir()
    data = DataConfig(root=str(folder), train=file.name, test=file.name, lanes=1, **more)
    source = open_split(data, split)  # type: ignore[arg-type]
    assert source is not None
    return survey(source, data, roles, split)  # type: ignore[arg-type]


def message(folder: Path, split: str = "train", roles: Mapping[str, Any] = ROLES, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        surveyed(folder, split, roles, **more)
    assert caught.value.exit_code == 3
    assert "Mend" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("mode", ["fail", "skip"])
@pytest.mark.parametrize(
    ("columns", "roles", "mapping"),
    [
        (("review", "sentiment"), ROLES, "{text: review, label: sentiment}"),
        (("Text", "stars"), ROLES, "{text: Text, label: stars}"),
        (("id", "whatever"), ROLES, "{text: id, label: whatever}"),  # by the labels in it
        (("my text", "label"), ROLES, '{text: "my text"}'),
        (("premise", "hypothesis", "gold_label"), {"text": Text(), "text_pair": Text(), "label": Label(LABELS)},
         "{text: premise, text_pair: hypothesis, label: gold_label}"),
        (("german", "english"), PAIR, "{src: german, trg: english}"),
        (("highlights", "article"), PAIR, "{src: article, trg: highlights}"),
        (("n", "abstract"), {"text": Text()}, "{text: abstract}"),
    ],
)  # fmt: skip
def test_a_column_that_no_row_has(tmp_path, columns, roles, mapping, mode):
    write(tmp_path, [dict.fromkeys(columns, "x") | {columns[-1]: "positive"} for _ in range(30)])
    found = message(tmp_path, roles=roles, on_bad_row=mode)
    assert found.startswith("data.train: no row of a.jsonl has a column")
    assert f"columns there: {', '.join(map(repr, columns))}" in found
    assert found.endswith(f"Set data.columns={mapping}")


def test_nested_columns_are_named_by_their_paths(tmp_path):
    write(tmp_path, [{"id": i, "translation": {"de": "ein", "en": "one"}} for i in range(30)])
    found = message(tmp_path, roles=PAIR)
    assert "columns there: 'id', 'translation.de', 'translation.en'" in found
    assert found.endswith("Set data.columns={src: translation.de, trg: translation.en}")


def test_a_column_that_one_row_lacks_is_no_mistake_of_the_file(tmp_path):
    rows = [{"text": f"t{i}", "label": "positive"} for i in range(30)]
    write(tmp_path, [{"label": "positive"}, *rows])
    found = message(tmp_path)
    assert found.startswith('data.train: a.jsonl, line 1 (row 1), column "text": is missing; columns here: label. Fix')
    assert "data.on_bad_row=skip" in found


@pytest.mark.parametrize(
    ("name", "content", "header"),
    [
        ("a.tsv", "I have used it for five weeks\tnegative\nIt is fine\tpositive\n", "text<TAB>label"),
        ("a.csv", "positive,Good\nnegative,Bad\n", "label,text"),
    ],
)
def test_a_file_without_a_header(tmp_path, name, content, header):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = message(tmp_path)
    assert f"{name} has no header" in found
    assert f"Write a line with the names above it: {header}; or set data.header=false" in found


def test_header_detection():
    assert not is_no_header(["review", "sentiment", "user id"], ROLES)
    assert is_no_header(["0", "a"], {})
    assert is_no_header(["Ein Hund läuft schnell", "A dog runs fast"], {})


@pytest.mark.parametrize("label", [-1, None, "", "?", "-1", "nan", -100])
def test_a_split_without_labels(tmp_path, label):
    write(tmp_path, [{"text": f"t{i}", "label": label} for i in range(30)])
    found = message(tmp_path, "test")
    assert found.startswith(f"data.test: every row of a.jsonl has the label {label!r}: the split is unlabeled")
    assert "Remove data.test" in found
    assert "Train on rows with labels" in message(tmp_path)


def test_a_test_file_without_the_column_of_labels(tmp_path):
    write(tmp_path, [{"text": f"t{i}"} for i in range(30)])
    found = message(tmp_path, "test")
    assert "no row of a.jsonl has a column 'label' (columns: 'text'): the split is unlabeled" in found
    assert "Remove data.test" in found


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (("neg", "pos"), "Set task.labels={neg: negative, pos: positive}"),
        ((0, 1), "Set task.labels={0: NAME, 1: NAME}"),
        (("Negative", "Positive"), "'Negative' differs from 'negative' by case, spaces or Unicode form only"),
    ],
)
def test_all_labels_unknown(tmp_path, values, hint):
    write(tmp_path, [{"text": f"t{i}", "label": values[i % 2]} for i in range(30)])
    found = message(tmp_path)
    assert f"every label in column 'label' of a.jsonl is unknown: {str(values[0])!r} (15 rows)" in found
    assert hint in found


def test_labels_in_another_column(tmp_path):
    write(tmp_path, [{"body": f"t{i}", "label": i, "mood": "positive"} for i in range(30)])
    found = message(tmp_path, columns={"text": "body"})
    assert found.endswith("Column 'mood' has such labels: set data.columns={text: body, label: mood}")


@pytest.mark.parametrize(
    ("label", "other", "alike"),
    [
        (unicodedata.normalize("NFD", "café"), "café", True),
        ("ｐｏｓ", "pos", True),
        ("pos\u200b", "pos", True),
        ("\ufeffpos", "pos", True),
        ("very\u00a0good", "very good", True),
        ("POS ", "pos", True),
        ("poz", "pos", False),
    ],
)
def test_differences_that_cannot_be_seen(label, other, alike):
    assert look_alike(label, other) is alike
    found = unknown_label(label, {other, "else"})
    if alike:
        assert f"differs from {other!a} by case, spaces or Unicode form only: the file has {label!a}" in found
    else:
        assert f"did you mean {other!r}?" in found


def test_a_class_in_another_unicode_form_is_shown_escaped(tmp_path):
    labels = frozenset(("café", "thé"))
    write(tmp_path, [{"text": f"t{i}", "label": "cafe\u0301" if i == 7 else "thé"} for i in range(30)])
    found = message(tmp_path, roles={"text": Text(), "label": Label(labels)})
    assert r"'caf\xe9' by case, spaces or Unicode form only: the file has 'cafe\u0301'" in found
    assert "a.jsonl, line 8 (row 8)" in found


def test_equal_mistakes_are_one_line_with_their_number_and_first_places(tmp_path):
    rows = [{"text": f"t{i}", "label": "no" if i % 4 == 1 else "positive"} for i in range(6000)]
    write(tmp_path, [*rows, {"text": None, "label": "positive"}, {"label": "positive"}])
    found = message(tmp_path)
    assert found.count("\n") == 4
    assert "data.train: 1,502 bad rows of a.jsonl:\n" in found
    places = "line 2 (row 2), line 6 (row 6), line 10 (row 10) and 1,497 more"
    assert f"  a.jsonl, 1,500 rows ({places}), column \"label\": holds 'no', which is not in task.labels" in found
    assert '  a.jsonl, line 6001 (row 6001), column "text": is null' in found
    assert '  a.jsonl, line 6002 (row 6002), column "text": is missing; columns here: label' in found
    write(tmp_path, rows)
    assert message(tmp_path).startswith("data.train: a.jsonl, 1,500 rows (line 2 (row 2)")
    skipped = surveyed(tmp_path, on_bad_row="skip", max_bad_fraction=0.5)
    assert [line.partition(" rows")[0] for line in skipped.examples] == ["a.jsonl, 1,500"]
    assert skipped.bad.total() == 1500


def test_up_to_ten_mistakes_with_their_lines(tmp_path):
    """A header, blank lines and quoted line ends: the line is not the number of the row."""
    rows = [f'"two\nlines {i}",{"positive" if i % 2 else f"so-so {i}"}\n\n' for i in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    found = message(tmp_path)
    assert found.count("a.csv, lines ") == 10
    assert "the first 10 bad rows of a.csv" in found
    assert "a.csv, lines 2 to 3 (row 1), column" in found
    assert "a.csv, lines 8 to 9 (row 3), column" in found
    assert "Fix the rows, or set data.on_bad_row=skip" in found


def test_the_first_row_after_a_line_that_names_the_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\ntext;label\nt;no\nu;no\nv;positive\n", encoding="utf-8")
    assert "a.csv, 2 rows (line 3 (row 1), line 4 (row 2))" in message(tmp_path)


def test_lines_after_blank_ones_and_in_a_compressed_file(tmp_path):
    import gzip

    rows = b"".join(b'\n{"text": "a", "label": "positive"}\n' for _ in range(9)) + b'{"text": "b", "label": "no"}'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows))
    assert "a.jsonl.gz, line 19 (row 10), column" in message(tmp_path)


def test_the_lines_of_a_text_file_count_blank_ones(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nfour\n", encoding="utf-8")
    assert 'a.txt, line 3 (row 3), column "text": is empty' in message(tmp_path, roles={"text": Text()})


def test_bad_rows_count_on_one_side_of_a_share_held_out(tmp_path):
    rows: list[dict[str, Any]] = [{"text": f"t{i}", "label": "positive"} for i in range(200)]
    write(tmp_path, [*rows, *({"text": f"b{i}", "label": None} for i in range(50))])
    more = {"validation": 0.4, "on_bad_row": "skip", "max_bad_fraction": 0.9}
    train, held = surveyed(tmp_path, **more), surveyed(tmp_path, "validation", **more)
    assert train.bad.total() + held.bad.total() == 50
    assert min(train.bad.total(), held.bad.total()) > 0
    assert train.rows + held.rows == 200


def test_guesses_keep_what_is_right():
    rows = [{"body": "x", "tag": "a", "note": "long text here"}]
    roles = {"text": Text(), "label": Label("a")}
    assert guess_columns(roles, rows, {"text": "body"}) == {"text": "body", "label": "tag"}
    assert guess_columns(roles, [{"a": 1}], {}) is None
    assert as_yaml({"label": " label", "text": "yes"}) == '{label: " label", text: "yes"}'

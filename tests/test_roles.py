"""Types of the values in a row: accepted values of JSON, CSV and Parquet files, and messages."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.columns import guess_columns
from trainer.data.prepare import prepare
from trainer.data.roles import BadValue, Label, Labels, Number, Role, Text, Tokens
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.data.tokenization import TrainingTexts
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig
from trainer.recipe_loading import Recipe
from trainer.tasks.classification.roles import RowWeight

TAGS = Labels(("O", "PER", "LOC"))
ROLES = {"tokens": Tokens(), "tags": TAGS, "score": Number()}
ROWS = [
    {"tokens": ["Anna", "lives", "in", "Rome"], "tags": ["PER", "O", "O", "LOC"], "score": 0.5},
    {"tokens": ["Yes"], "tags": [], "score": -2},
]


def write(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> DataConfig:
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        quoted = [[json.dumps(value).replace('"', '""') for value in row.values()] for row in rows]
        lines = [",".join(f'"{value}"' for value in row) for row in quoted]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n", encoding="utf-8")
    return DataConfig(root=str(folder), train=path.name, lanes=1)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_lists_and_numbers_of_every_format(tmp_path, kind):
    data = write(tmp_path, kind)
    source = open_split(data, "train", ROLES)
    assert source is not None
    assert [clean_row(row, ROLES, {}, str) for row in source] == ROWS
    found = survey(source, data, ROLES)
    assert found.report()["labels"] == {"LOC": 1, "O": 2, "PER": 1}
    assert (found.rows, len(set(found.inputs))) == (2, 2)
    for roles in (ROLES, {**ROLES, "weight": RowWeight()}):  # rows may lack a column that was not surveyed
        assert list(TrainingTexts(source, data, roles, 9)) == ["Anna lives in Rome", "Yes"]


@pytest.mark.parametrize(
    ("role", "raw", "value"),
    [
        (Text(), " a ", "a"),
        (Label("01"), 1.0, "1"),
        (Labels("01"), [1, "0", True], ["1", "0", "1"]),
        (Labels("01"), "[]", []),
        (Number(), "3.5", 3.5),
        (Number(), Decimal("2"), 2.0),
        (Tokens(), [" A ", "dog"], ["A", "dog"]),
        (Tokens(), '["A", "dog"]', ["A", "dog"]),
    ],
)
def test_converted_values(role: Role, raw: object, value: object) -> None:
    found = role.convert(raw, cleaner(["fold_whitespace"]))
    assert found == value
    assert type(found) is type(value)
    assert role.convert(found, str) == value, "a prepared corpus gives clean values"


@pytest.mark.parametrize(
    ("role", "raw", "reason", "detail"),
    [
        (Text(), 5, "is not text but int", ": 5"),
        (Labels("ab"), None, "is null", ""),
        (Labels("ab"), ["a", "c"], "holds 'c', which is not in task.labels", "; known: 'a', 'b'"),
        (Labels("ab"), "a", "is not a list but str", ': a. Write a JSON list such as ["a", "b"], or name another'),
        (Labels("ab"), {"a": 1}, "is not a list but dict", ": {'a': 1}. Write a JSON list"),
        (Number(), "many", "is not a number", ": many. Write a number such as 3.5, or name another column"),
        (Number(), True, "is not a number but bool", ": True. Write a number"),
        (Number(), [1], "is not a number but list", ": [1]. Write a number"),
        (Number(), float("nan"), "is not a finite number", ": nan. Write a number"),
        (Number(), "1e999", "is not a finite number", ": 1e999. Write a number"),
        (Number(), None, "is null", ""),
        (Tokens(), [], "is an empty list", ""),
        (Tokens(), ["a", " "], "holds a token that is empty after cleaning", " (token 2)"),
        (Tokens(), ["a", 3], "holds a token that is not text but int", ": 3 (token 2)"),
    ],
)
def test_refused_values(role: Role, raw: object, reason: str, detail: str) -> None:
    with pytest.raises(BadValue) as caught:
        role.convert(raw, cleaner(["fold_whitespace"]))
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(detail)
    assert caught.value.detail.endswith("(token 2)") == ("token" in reason)


def test_the_message_names_row_column_and_fix(tmp_path):
    data = write(tmp_path, "jsonl", [*ROWS, {"tokens": ["a"], "tags": ["O"], "score": "high"}])
    source = open_split(data, "train", ROLES)
    assert source is not None
    with pytest.raises(DataError, match=r'a\.jsonl, line 3 \(row 3\), column "score": is not a number: high\. Write a'):
        survey(source, data, ROLES)
    assert [isinstance(clean_row(row, ROLES, {}, str), BadRow) for row in source] == [False, False, True]


def test_a_list_column_is_only_read_for_a_role_that_is_a_list(tmp_path):
    data = write(tmp_path, "parquet")
    source = open_split(data, "train", {"tokens": Text()})
    assert source is not None
    with pytest.raises(DataError, match=r"column 'tokens' has the type list<.*>, which is neither text nor a label"):
        list(source)


def test_class_names_of_a_list_of_indices(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"tokens": [Value("string")], "tags": [ClassLabel(names=["O", "PER"])]})
    Dataset.from_list([{"tokens": ["Anna", "is"], "tags": [1, 0]}], features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    roles = {"tokens": Tokens(), "tags": TAGS}
    source = open_split(DataConfig(root=str(tmp_path), train="a.parquet"), "train", roles)
    assert source is not None
    [row] = source
    assert clean_row(row, {**roles, "tags": Labels(("O", "PER"))}, {}, str) == {
        "tokens": ["Anna", "is"],
        "tags": ["PER", "O"],
    }


def test_columns_are_guessed_by_name_and_by_labels():
    rows = [{"id": 1, "words": ["a"], "classes": ["PER"], "rating": 3.0}]
    assert guess_columns(ROLES, rows, {}) == {"tokens": "words", "tags": "classes", "score": "rating"}


def test_a_prepared_corpus_keeps_the_types(tmp_path):
    write(tmp_path, "jsonl")
    recipe = Recipe.parse(
        {
            "name": "x",
            "task": {"kind": "translation"},
            "data": {"root": str(tmp_path), "train": "a.jsonl", "lanes": 1},
            "tokenizer": {"train": {"vocab_size": 40}},
            "model": {"kind": "transformer"},
            "loop": {"max_steps": 1},
        }
    )
    prepare(recipe, ROLES, lambda _: lambda rows: [{"ids": [len(row["tokens"])]} for row in rows], tmp_path / "out")
    data = recipe.data.model_copy(update={"root": str(tmp_path / "out")})
    source = open_split(data, "train", ROLES)
    assert source is not None
    rows = sorted(source, key=lambda row: -len(row.values["tokens"]))  # type: ignore[arg-type]
    assert [clean_row(row, ROLES, {}, str.upper) for row in rows] == ROWS
    assert [row.example for row in rows] == [{"ids": [4]}, {"ids": [1]}]


def test_values_of_another_kind_are_no_labels() -> None:
    """A hint about a missing column asks every column, also one that holds lists."""
    label = Label(("a", "b"))
    assert [label.matches(raw) for raw in ("a", ["a"], {"a": 1}, None, 1.5, "c")] == [True] + [False] * 5

"""Labels, nested columns, missing values and encodings are the same in every file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.cleaning import BadRow, clean_row
from trainer.data.roles import Label, Text
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

LABELED = [{"text": "good film", "label": 1}, {"text": "bad plot", "label": 0}, {"text": "a, b\nc", "label": 1}]
NESTED = [{"r": {"t": row["text"]}, "label": row["label"]} for row in LABELED]


def write_labeled(folder: Path, kind: str, rows: list[dict[str, Any]], label: pa.DataType | None = None) -> str:
    """Write rows in a format. Return the name of the file or folder."""
    table = pa.Table.from_pylist(rows)
    if label is not None:
        table = table.set_column(table.schema.get_field_index("label"), "label", table["label"].cast(label))
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet")
    elif kind in ("arrow stream", "arrow file"):
        with (pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file)(
            folder / "a.arrow", table.schema
        ) as sink:
            sink.write_table(table)
    elif kind == "save_to_disk":
        datasets.DatasetDict({"a": datasets.Dataset(table)}).save_to_disk(folder)
    elif kind in ("csv", "tsv"):
        table.to_pandas().to_csv(folder / f"a.{kind}", sep="," if kind == "csv" else "\t", index=False)
    elif kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        (folder / "a.json").write_text(json.dumps(table.to_pylist(), indent=2 if kind == "pretty array" else None))
    endings = {"save_to_disk": "a", "array": "a.json", "pretty array": "a.json"}
    return endings.get(kind) or f"a.{kind.split()[0]}"


COLUMNAR = ["parquet", "arrow stream", "arrow file", "save_to_disk"]
TYPED = [*COLUMNAR, "jsonl", "array", "pretty array"]


@pytest.mark.parametrize(
    "label", [pa.float64(), pa.float32(), pa.int8(), pa.uint64(), pa.string(), pa.bool_()], ids=str
)
@pytest.mark.parametrize("kind", [*TYPED, "csv", "tsv"])
def test_a_label_matches_by_value_in_every_format(tmp_path, kind, label):
    name = write_labeled(tmp_path, kind, LABELED, label)
    for labels in (("0", "1"), ("1.0", "0.0")):
        roles = {"text": Text(), "label": Label(labels)}
        data = DataConfig(root=str(tmp_path), train=name)
        found = [clean_row(row, roles, {}, str) for row in open_split(data, "train", roles)]
        wanted = [{**row, "label": labels[labels[0].startswith("0") == row["label"]]} for row in LABELED]
        assert found == wanted


@pytest.mark.parametrize("kind", TYPED)
def test_nested_columns_of_every_format(tmp_path, kind):
    name = write_labeled(tmp_path, kind, [*NESTED, {"r": None, "label": 0}])
    roles, columns = {"text": Text(), "label": Label(("0", "1"))}, {"text": "r.t"}
    data = DataConfig(root=str(tmp_path), train=name, columns=columns)
    *found, last = [clean_row(row, roles, columns, str) for row in open_split(data, "train", roles)]
    assert found == [{"text": row["text"], "label": str(row["label"])} for row in LABELED]
    assert isinstance(last, BadRow)
    assert (last.id, last.column) == ((0, 3), "r.t")


@pytest.mark.parametrize("kind", [*TYPED, "csv", "tsv"])
def test_nan_is_a_bad_row_in_every_format(tmp_path, kind):
    rows = [{**row, "label": float(row["label"])} for row in LABELED]
    rows[1]["label"] = float("nan")
    name, roles = write_labeled(tmp_path, kind, rows), {"text": Text(), "label": Label(("0", "1"))}
    data = DataConfig(root=str(tmp_path), train=name, lanes=1)
    with pytest.raises(DataError, match=r'(line 3, .*|:1 )?\(row 2\), column "label"'):
        survey(open_split(data, "train", roles), data, roles)


@pytest.mark.parametrize("kind", COLUMNAR)
@pytest.mark.parametrize(
    "text",
    [pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())],
    ids=str,
)
def test_large_and_dictionary_encoded_texts(tmp_path, kind, text):
    if kind == "save_to_disk" and pa.types.is_dictionary(text):
        pytest.skip("datasets decodes dictionaries before it saves them")
    table = pa.Table.from_pylist(LABELED)
    for name in ("text", "label"):
        column = pa.chunked_array([pa.array(table[name].cast(pa.string()).to_pylist()).cast(text)])
        table = table.set_column(table.schema.get_field_index(name), name, column)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    elif kind == "save_to_disk":
        datasets.Dataset(table).save_to_disk(tmp_path)
    else:
        with (pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file)(
            tmp_path / "a.arrow", table.schema
        ) as sink:
            sink.write_table(table)
    roles = {"text": Text(), "label": Label(("0", "1"))}
    data = DataConfig(root=str(tmp_path), train={"parquet": "a.parquet", "save_to_disk": "."}.get(kind, "a.arrow"))
    found = [clean_row(row, roles, {}, str) for row in open_split(data, "train", roles)]
    assert found == [{**row, "label": str(row["label"])} for row in LABELED]


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_names_of_class_labels(tmp_path, kind):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    made = datasets.Dataset.from_list(LABELED, features=features)
    if kind == "parquet":
        made.to_parquet(tmp_path / "a.parquet")
    else:
        datasets.DatasetDict({"a": made}).save_to_disk(tmp_path)
    for labels in (("positive", "negative"), ("0", "1")):
        roles = {"text": Text(), "label": Label(labels)}
        data = DataConfig(root=str(tmp_path), train="a.parquet" if kind == "parquet" else "a")
        found = [clean_row(row, roles, {}, str)["label"] for row in open_split(data, "train", roles)]
        assert found == (["positive", "negative", "positive"] if labels[0] == "positive" else ["1", "0", "1"])

"""Discovery and pairing of data files, detection of formats, and files that contain no data."""

from __future__ import annotations

import decimal
import gzip
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from trainer.data import sniffing
from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.fingerprints import fingerprint
from trainer.data.roles import Label, Text
from trainer.data.sources import Row, Source, open_split
from trainer.data.survey import survey
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

ROLES = {"text": Text(), "label": Label(("pos", "neg"))}
RECORDS = [("a fine film; really", "pos"), ("what a bore | no", "neg"), ("über all", "pos"), ("so so", "neg")] * 3


def put(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def source_of(root: Path | str, train: Any, roles: Any = None, **more: Any) -> Source:
    found = open_split(DataConfig(root=str(root), train=train, lanes=1, **more), "train", roles)
    assert found is not None
    return found


def texts_of(source: Source, roles: Any = ROLES, columns: Any = None) -> list[Any]:
    """(text, label) of each row as a task gets them; a BadRow where there are none."""
    rows = [clean_row(row, roles, columns or {}, cleaner([])) for row in source]
    return [row if isinstance(row, BadRow) else tuple(row.values()) for row in rows]


def names_of(source: Source) -> list[str]:
    return [shard.name for shard in source.shards]


def csv_of(delimiter: str, end: str = "\n") -> str:
    rows = [("text", "label"), *((f'"{text}"', label) for text, label in RECORDS)]
    return "".join(delimiter.join(row) + end for row in rows)


def assert_resumes_everywhere(source: Source) -> None:
    stream = source.stream(0)
    states, rows = [stream.state()], []
    for row in stream:
        rows.append(row)
        states.append(json.loads(json.dumps(stream.state())))
    assert rows
    for at, state in enumerate(states):
        again = source.stream(0, state)
        some = list(itertools.islice(again, 2))
        assert some + list(source.stream(0, again.state())) == rows[at:]


# -- parallel files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "files", "paired"),
    [
        (
            {"src": "part*.de", "trg": "part*.en"},
            "part1.de part2.de part10.de part01.en part02.en part10.en",
            ["part1.de+part01.en", "part10.de+part10.en", "part2.de+part02.en"],
        ),
        (
            {"src": "*.de", "trg": "*.en"},
            "1.de 2.de 10.de 1.en 2.en 10.en",
            ["1.de+1.en", "10.de+10.en", "2.de+2.en"],
        ),
        ({"src": "*/x.de", "trg": "*/x.en"}, "a/x.de b/x.de a/x.en b/x.en", ["a/x.de+a/x.en", "b/x.de+b/x.en"]),
        ({"src": "**/*.de", "trg": "**/*.en"}, "b/1.de a/1.de b/1.en a/1.en", ["a/1.de+a/1.en", "b/1.de+b/1.en"]),
        ({"src": "de/*", "trg": "en/*"}, "de/1 de/2.gz en/1.gz en/2", ["de/1+en/1.gz", "de/2.gz+en/2"]),
        ({"src": "x[0-9].de", "trg": "x?.en"}, "x1.de x2.de x1.en x2.en", ["x1.de+x1.en", "x2.de+x2.en"]),
        ({"src": "train.de", "trg": "target*.txt"}, "train.de target1.txt", ["train.de+target1.txt"]),
    ],
)
def test_parallel_files_pair_by_the_matches_of_wildcards(tmp_path, patterns, files, paired):
    for name in files.split():
        put(tmp_path, name, b"x")
    assert names_of(source_of(tmp_path, patterns)) == paired


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ("a.de b.de a.en c.en", r"src: b\.de; trg: c\.en"),
        ("1.de 01.de 1.en 2.en", r"without a partner are src: 01\.de; trg: 2\.en"),
        ("1.de 2.en", r"src: 1\.de; trg: 2\.en"),
        ("1.de 2.de 3.de 1.en 3.en", r"src: 3 \(\*\.de\), trg: 2 .*src: 2\.de"),
    ],
)
def test_parallel_files_without_a_partner_are_named(tmp_path, files, says):
    for name in files.split():
        put(tmp_path, name, b"x")
    with pytest.raises(DataError, match=says):
        source_of(tmp_path, {"src": "*.de", "trg": "*.en"})


# -- which files -------------------------------------------------------------------------------------------------------

LEFTOVERS = (
    ".ipynb_checkpoints/train-copy.jsonl .git/train.jsonl sub/.hidden/deep/train.jsonl ._train.jsonl .train.jsonl "
    "train.jsonl~ train.jsonl.bak train.jsonl.orig .train.jsonl.swp #train.jsonl# train.jsonl.tmp CVS/train.jsonl "
    ".svn/train.jsonl __MACOSX/train.jsonl _SUCCESS"
)


def test_hidden_files_and_backup_copies_are_left_out_and_logged(tmp_path, caplog):
    root = tmp_path / ".data" / "corpus"
    for name in [*LEFTOVERS.split(), "train.jsonl", "sub/train.jsonl"]:
        put(root, name, b"{}")
    with caplog.at_level(logging.WARNING, "rankzero"):
        assert names_of(source_of(root, "**/*train*")) == ["sub/train.jsonl", "train.jsonl"]
    assert "left out" in caplog.text
    assert names_of(source_of(root, "**")) == ["sub/train.jsonl", "train.jsonl"]


def test_a_leftover_that_is_named_is_read(tmp_path):
    for name in (".cache/a.jsonl", ".a.jsonl", "b.jsonl"):
        put(tmp_path, name, b"{}")
    assert names_of(source_of(tmp_path, ".a.jsonl")) == [".a.jsonl"]
    assert names_of(source_of(tmp_path, ".cache/*.jsonl")) == [".cache/a.jsonl"]
    assert names_of(source_of(tmp_path, ".*.jsonl")) == [".a.jsonl"]
    with pytest.raises(DataError, match=r"no file matches .*\.cache/a\.jsonl is left out"):
        source_of(tmp_path, "*/a.jsonl")


@pytest.mark.parametrize("train", [["a.jsonl", "a.jsonl"], ["*.jsonl", "a*"], ["a.jsonl", "./a.jsonl"]])
def test_a_file_that_is_listed_twice_is_refused(tmp_path, train):
    put(tmp_path, "a.jsonl", b"{}")
    with pytest.raises(DataError, match=r"data\.train: a\.jsonl is listed 2 times, by "):
        source_of(tmp_path, train)


@pytest.mark.parametrize("name", ["a::b", "a [x] b", "a*b", "what?", "a#b", "a%20b", "ünï 数据", "a::b::c", "a:b"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_special_characters_in_a_root(tmp_path, name, scheme):
    put(tmp_path / name, "a::1.jsonl", b'{"text": "x", "label": "pos"}\n')
    pq.write_table(pa.table({"text": ["y"], "label": ["neg"]}), tmp_path / name / "b.parquet")
    source = source_of(f"{scheme}{tmp_path / name}", ["*.jsonl", "*.parquet"])
    assert texts_of(source) == [("x", "pos"), ("y", "neg")]
    assert len(fingerprint(source)) == 64


# -- what is no data ---------------------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
NO_DATA = {
    "a Git LFS pointer": LFS,
    "an HTML page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "a zip archive": b"PK\x03\x04\x14\0" + b"train.txt",
    "an Office document": b"PK\x03\x04\x14\0" + b"[Content_Types].xml",
    "an xz archive": b"\xfd7zXZ\0\0",
    "a bzip2 archive": b"BZh91AY&SY\0",
    "a PDF document": b"%PDF-1.7\n",
    "a Parquet file": b"PAR1\x15\x04",
    "an Arrow file": b"ARROW1\0\0",
    "an Arrow stream": b"\xff\xff\xff\xff\x10\0\0\0",
    "the error message of a server": b'{"error": "not found", "status": 404}\n',
    "it is binary": bytes(range(4)) + b"\0" * 100,
    "of its first bytes are control codes": b"\x89PNG\r\n\x1a\n" + bytes(range(1, 256)) * 4,
}


@pytest.mark.parametrize("what", NO_DATA)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.de"])
def test_files_without_rows_are_refused_by_their_first_bytes(tmp_path, name, what):
    put(tmp_path, name, NO_DATA[what])
    put(tmp_path, "b.en", b"one\n")
    train = {"src": name, "trg": "b.en"} if name == "a.de" else name
    with pytest.raises(DataError, match=rf"{name} cannot be read .*{what}"):
        list(source_of(tmp_path, train))


def test_every_file_is_looked_at_and_pointers_have_their_fix(tmp_path):
    put(tmp_path, "a.parquet", LFS)
    with pytest.raises(DataError, match="git lfs pull"):
        list(source_of(tmp_path, "a.parquet"))
    put(tmp_path, "1.jsonl", b'{"text": "x", "label": "pos"}\n')
    put(tmp_path, "2.jsonl", LFS)
    with pytest.raises(DataError, match=r"2\.jsonl .*git lfs pull"):
        list(source_of(tmp_path, "*.jsonl"))
    put(tmp_path, "b.jsonl.gz", LFS)
    with pytest.raises(DataError, match="git lfs pull"):
        list(source_of(tmp_path, "b.jsonl.gz"))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_compressed_content_without_its_ending_is_read(tmp_path, name, compress):
    content = {"a.jsonl": b'{"text": "x"}\n{"text": "y"}\n', "a.csv": b"text\nx\ny\n", "a.txt": b"x\ny\n"}[name]
    put(tmp_path, name, compress(content))
    source = source_of(tmp_path, name)
    assert [row.values for row in source] == [{"text": "x"}, {"text": "y"}]
    assert_resumes_everywhere(source)


def test_a_word_that_looks_like_a_file_type_is_text(tmp_path):
    put(tmp_path, "a.txt", b"ORCAS swim\nBZh is no word\n")
    assert len(list(source_of(tmp_path, "a.txt"))) == 2


# -- forms of CSV ------------------------------------------------------------------------------------------------------

FORMS = {
    "semicolon": (csv_of(";").encode(), {}),
    "tab": (csv_of("\t").encode(), {}),
    "bar": (csv_of("|").encode(), {}),
    "sep line": (b"sep=;\r\n" + csv_of(";", "\r\n").encode(), {}),
    "sep line of a caret": (b"sep=^\n" + csv_of("^").encode(), {}),
    "utf-16": (csv_of(",").encode("utf-16"), {}),
    "utf-16 big endian": (b"\xfe\xff" + csv_of(",").encode("utf-16-be"), {}),
    "utf-16 of Excel": (("sep=;\r\n" + csv_of(";", "\r\n")).encode("utf-16"), {}),
    "utf-32": (csv_of(",").encode("utf-32"), {}),
    "CR only": (csv_of(",", "\r").encode(), {}),
    "cp1252": (csv_of(",").encode("cp1252"), {"encoding": "cp1252"}),
    "latin-1": (csv_of(";", "\r\n").encode("latin-1"), {"encoding": "latin-1"}),
    "spaces in the header": (csv_of(",").replace("text,label", "text , label ").encode(), {}),
    "empty header cells": (csv_of(",").replace("\n", ",,,\n").encode(), {}),
    "delimiter": (csv_of("~").encode(), {"delimiter": "~"}),
    "quote": (csv_of(",").replace('"', "'").encode(), {"quote": "'"}),
    "byte order mark": (b"\xef\xbb\xbf" + csv_of(";").encode(), {}),
    "unused column twice": (
        csv_of(",")
        .replace("label\n", "label,x,x\n")
        .replace("pos\n", "pos,1,2\n")
        .replace("neg\n", "neg,1,2\n")
        .encode(),
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_forms_of_csv_are_read_and_resume(tmp_path, form, compress):
    content, keys = FORMS[form]
    put(tmp_path, "a.csv", compress(content))
    source = source_of(tmp_path, "a.csv", ROLES, **keys)
    assert texts_of(source) == RECORDS
    assert_resumes_everywhere(source)


def test_a_found_form_is_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sniffing, "_logged", set())
    put(tmp_path, "a.csv", FORMS["semicolon"][0])
    with caplog.at_level(logging.INFO, "rankzero"):
        list(source_of(tmp_path, "a.csv", ROLES))
    assert "a.csv is read with delimiter ';'" in caplog.text


def test_backslash_quotes(tmp_path):
    content = "text,label\n" + '"so \\"good\\" it, is",pos\n"C:\\\\new\\x",neg\n' * 3
    put(tmp_path, "a.csv", content.encode())
    source = source_of(tmp_path, "a.csv", ROLES)
    assert texts_of(source) == [('so "good" it, is', "pos"), ("C:\\new\\x", "neg")] * 3
    assert_resumes_everywhere(source)
    put(tmp_path, "b.csv", b'text,label\n"ends with \\",pos\n')
    assert texts_of(source_of(tmp_path, "b.csv", ROLES)) == [("ends with \\", "pos")]


def test_no_quotes_and_no_header(tmp_path):
    put(tmp_path, "a.tsv", b'"so he said\tpos\nand "left"\tneg\n')
    source = source_of(tmp_path, "a.tsv", ROLES, quote="none", header=False, columns={"text": "0", "label": "1"})
    assert texts_of(source, columns={"text": "0", "label": "1"}) == [('"so he said', "pos"), ('and "left"', "neg")]
    assert_resumes_everywhere(source)


def test_a_missing_header_has_a_remedy_that_works(tmp_path):
    put(tmp_path, "a.csv", b"a fine film,pos\nwhat a bore,neg\n")
    data = DataConfig(root=str(tmp_path), train="a.csv", lanes=1)
    with pytest.raises(DataError, match=r"has no header.*data\.header=false and data\.columns=\{text: 0, label: 1\}"):
        survey(source_of(tmp_path, "a.csv", ROLES), data, ROLES)
    keys: Any = {"header": False, "columns": {"text": 0, "label": 1}}
    data = DataConfig(root=str(tmp_path), train="a.csv", lanes=1, **keys)
    assert survey(source_of(tmp_path, "a.csv", ROLES, **keys), data, ROLES).rows == 2


def test_a_single_column_is_not_split(tmp_path):
    put(tmp_path, "a.csv", b"text\none; two\nthree; four\n")
    assert [row.values for row in source_of(tmp_path, "a.csv", {"text": Text()})] == [
        {"text": "one; two"},
        {"text": "three; four"},
    ]


def test_another_encoding_is_not_guessed(tmp_path):
    put(tmp_path, "a.csv", csv_of(",").encode("latin-1"))
    bad = [row for row in source_of(tmp_path, "a.csv", ROLES) if row.error]
    assert len(bad) == 3
    assert "set data.encoding, such as cp1252" in str(bad[0].error)
    put(tmp_path, "b.csv", csv_of(",").encode("utf-16-le"))
    with pytest.raises(DataError, match=r"set data\.encoding=utf-16-le"):
        list(source_of(tmp_path, "b.csv", ROLES))
    assert texts_of(source_of(tmp_path, "b.csv", ROLES, encoding="utf-16-le")) == RECORDS


@pytest.mark.parametrize("keys", [{"encoding": "utf-9"}, {"delimiter": "::"}, {"quote": "ab"}, {"delimiter": ""}])
def test_keys_of_a_form_are_checked(keys):
    with pytest.raises(ValidationError):
        DataConfig(root=".", train="a.csv", **keys)


def test_bad_bytes_in_an_unused_column_are_no_fault(tmp_path):
    put(tmp_path, "a.csv", b"text,note,label\nx,\xff,pos\n\xff,y,neg\n")
    first, second = source_of(tmp_path, "a.csv", ROLES)
    assert (first.error, first.values["text"]) == (None, "x")
    assert "invalid UTF-8 in column 'text'" in str(second.error)


def test_lines_of_text_and_json_in_other_encodings(tmp_path):
    put(tmp_path, "a.de", "über\nzwei\n".encode("utf-16"))
    put(tmp_path, "a.en", b"over\rtwo\r")
    source = source_of(tmp_path, {"src": "a.de", "trg": "a.en"})
    assert [tuple(row.values.values()) for row in source] == [("über", "over"), ("zwei", "two")]
    assert_resumes_everywhere(source)
    put(tmp_path, "a.jsonl", '{"text": "über"}\n{"text": "x"}\n'.encode("utf-16"))
    source = source_of(tmp_path, "a.jsonl")
    assert [row.values["text"] for row in source] == ["über", "x"]
    assert_resumes_everywhere(source)


def test_bad_rows_are_weighed_in_lines(tmp_path):
    rows = [f"a fine film number {i},pos" for i in range(2000)]
    rows[1000] = '"Great film that I liked he said, and left,pos'
    put(tmp_path, "a.csv", ("text,label\n" + "\n".join(rows) + "\n").encode())
    data = DataConfig(root=str(tmp_path), train="a.csv", on_bad_row="skip", lanes=1)
    with pytest.raises(DataError, match=r"1 of 1001 rows are bad .*max_bad_fraction=0.01"):
        survey(source_of(tmp_path, "a.csv", ROLES), data, ROLES)
    lenient = data.model_copy(update={"max_bad_fraction": 0.6})
    assert survey(source_of(tmp_path, "a.csv", ROLES), lenient, ROLES).rows == 1000


# -- JSON arrays, nested columns, labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_json_arrays_are_read_and_resume(tmp_path, monkeypatch, indent, encoding, chunk):
    monkeypatch.setattr("trainer.data.formats.CHUNK_BYTES", chunk)
    rows = [{"text": "über [1, 2] }", "label": "pos", "n": i} for i in range(5)] + [{"text": "\\\"'", "label": "neg"}]
    put(tmp_path, "a.json", json.dumps(rows, indent=indent, ensure_ascii=False).encode(encoding))
    source = source_of(tmp_path, "a.json")
    assert [row.values for row in source] == rows
    assert_resumes_everywhere(source)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"text": "x"}, {"text": ', r"JSON array that cannot be read after byte 14.*jq -c '\.\[\]'"),
        (b'[{"text": "x"} {"text": "y"}]', r"JSON array that cannot be read"),
        (b'[{"text": "x"}]\n[{"text": "y"}]\n', r"more text after the end of its JSON array.*jq -c"),
        (b'{\n  "data": [\n    {"text": "x"}\n  ]\n}\n', r"over several lines.*jq -c"),
    ],
)
def test_broken_arrays_name_the_command(tmp_path, content, says):
    put(tmp_path, "a.json", content)
    with pytest.raises(DataError, match=says):
        list(source_of(tmp_path, "a.json"))


def test_elements_that_are_no_objects_are_bad_rows(tmp_path):
    put(tmp_path, "a.json", b'[{"text": "x"}, 12, null, {"text": "y"}]')
    assert [row.error for row in source_of(tmp_path, "a.json")][1:3] == [
        "not a JSON object: int; one object per line is needed",
        "not a JSON object: NoneType; one object per line is needed",
    ]


PAIRS = {"src": Text(), "trg": Text(target=True)}
NESTED = {"src": "translation.de", "trg": "translation.en"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_nested_columns_by_path(tmp_path, kind):
    rows = [{"translation": {"de": f"eins {i}", "en": f"one {i}"}, "id": i} for i in range(3)]
    write(tmp_path / f"a.{kind}", pa.Table.from_pylist(rows), kind)
    source = source_of(tmp_path, f"a.{kind}", PAIRS, columns=NESTED)
    assert texts_of(source, PAIRS, NESTED) == [(f"eins {i}", f"one {i}") for i in range(3)]
    assert_resumes_everywhere(source)
    missing = texts_of(source_of(tmp_path, f"a.{kind}", PAIRS), PAIRS)[0]
    assert "columns here: translation.de, translation.en, id" in missing.detail


def write(path: Path, table: Any, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_unused_columns_of_any_type_are_not_read(tmp_path, kind):
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    columns = {
        "text": ["x", "y"],
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
        "label": ["pos", "neg"],
        "bytes": [b"\xff", b""],
        "uuid": pa.array([b"0" * 16] * 2, pa.uuid()),
        "duration": pa.array([1, 2], pa.duration("s")),
        "list": [[1], [2]],
        "struct": pa.array([{"m": [("a", 1)]}, None], pa.struct([("m", pa.map_(pa.string(), pa.int32()))])),
        "bad": bad,
    }
    write(tmp_path / f"a.{kind}", pa.table(columns), kind)
    assert texts_of(source_of(tmp_path, f"a.{kind}", ROLES)) == [("x", "pos"), ("y", "neg")]
    if kind == "arrow":
        interval = pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval())
        write(tmp_path / "b.arrow", pa.table({**columns, "interval": interval}), kind)
        assert texts_of(source_of(tmp_path, "b.arrow", ROLES)) == [("x", "pos"), ("y", "neg")]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([b"x"], "column 'text' has the type binary, which is bytes, not text"),
        ([["x"]], r"'text' has the type list<.*neither text"),
    ],
)
def test_a_text_of_another_type_is_refused(tmp_path, values, says):
    pq.write_table(pa.table({"text": values, "label": ["pos"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=says):
        list(source_of(tmp_path, "a.parquet", ROLES))


@pytest.mark.parametrize("rows", [5, 2500])
def test_a_saved_data_set_is_read(tmp_path, rows):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    made = Dataset.from_list([{"text": f"t{i}", "label": i % 2} for i in range(rows)], features=features)
    DatasetDict({"train": made, "test": made.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    put(tmp_path, "saved/train/cache-123.arrow", b"no data")
    expected = [(f"t{i}", ["neg", "pos"][i % 2]) for i in range(rows)]
    for root, train in (
        (tmp_path / "saved", "train"),
        (tmp_path / "saved", "train/*"),
        (tmp_path / "saved/train", "*"),
    ):
        assert texts_of(source_of(root, train, ROLES)) == expected
    assert len(names_of(source_of(tmp_path / "saved", "**"))) == 2
    source = source_of(tmp_path / "saved", "train", ROLES)
    stream = source.stream(0)
    first = list(itertools.islice(stream, rows - 2))
    assert [*first, *source.stream(0, stream.state())] == list(source.stream(0))


def test_class_names_in_parquet(tmp_path):
    about = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["x", "y", "z"], "label": [0, 1, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path, "a.parquet")
    first, second, third = texts_of(source)
    assert (first, second) == (("x", "neg"), ("y", "pos"))
    assert "'-1'" in third.reason
    digits = {"text": Text(), "label": Label("01")}
    assert texts_of(source, digits)[:2] == [("x", "0"), ("y", "1")]


@pytest.mark.parametrize("allowed", ["1", "1.0"])
@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1.00", True, decimal.Decimal("1.0"), decimal.Decimal(1)])
def test_integral_labels_match_in_every_form(allowed, value):
    roles = {"label": Label((allowed, "0"))}
    assert clean_row(Row((0, 0), {"label": value}), roles, {}, str) == {"label": allowed}


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), decimal.Decimal("NaN"), None, "nan", b"1", [1]])
def test_null_labels_are_bad_rows(value):
    assert isinstance(clean_row(Row((0, 0), {"label": value}), {"label": Label("01")}, {}, str), BadRow)


def test_a_folder_in_the_place_of_a_pattern(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.csv").write_text("text,label\nx,y\n")
    with pytest.raises(
        DataError, match=r"data\.train='train' is a folder .* such as 'train/\*\.csv'; there: train/a\.csv"
    ):
        open_split(DataConfig(root=str(tmp_path), train="train"), "train")


def test_lines_of_a_value_that_is_too_long_are_no_rows(tmp_path):
    big = '"' + "\n".join(["x" * 80] * 13000) + "\nI quote: never buy it,bad\nso he said,good\nthe end" + '",bad'
    small = [f"a fine film {i},good" for i in range(20)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join([*small, big, *small]) + "\n")
    source = open_split(DataConfig(root=str(tmp_path), train="train.csv"), "train")
    rows = list(source)
    assert [row.values["text"] for row in rows if row.error is None] == [f"a fine film {i}" for i in range(20)] * 2
    assert [row.lines for row in rows if row.error] == [13003]
    stream = source.stream(0)
    for _ in range(21):
        next(stream)
    assert len(list(source.stream(0, stream.state()))) == 20


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["plain", "gzip"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_an_empty_part_among_others_has_no_rows(tmp_path, ending, content):
    text = {".csv": "text,label\nx,good\n", ".jsonl": '{"text": "x", "label": "good"}\n', ".txt": "x\n"}[ending]
    (tmp_path / f"part-0{ending}").write_text(text)
    (tmp_path / f"part-1{ending}").write_bytes(content)
    source = open_split(DataConfig(root=str(tmp_path), train=f"part-*{ending}"), "train")
    assert [row.error for row in source] == [None]

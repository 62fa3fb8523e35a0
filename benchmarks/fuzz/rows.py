"""Strategies that draw files of rows: valid ones with something wrong in them."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pq
from hypothesis import strategies as st

from benchmarks.fuzz import words

ENCODINGS = (
    "utf-16",
    "utf-32",
    "utf-8-sig",
    "cp1252",
    "latin-1",
    "gb18030",
    "utf-7",
    "utf-16-le",
    "shift_jis",
    "big5",
    "idna",
)
READINGS = st.fixed_dictionaries(
    {},
    optional={
        "delimiter": st.sampled_from([",", ";", "\t", "|", "a", " ", "é", "\0", '"', "\\", "\u2028"]),
        "quote": st.sampled_from(["none", "backslash", "'", '"', "|", "§", "\\"]),
        "header": st.booleans(),
        "encoding": st.sampled_from(ENCODINGS),
    },
)


def _file(name: Any, content: Any, data: Any = None) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw a case of `files.File`: most are stored plainly and read with the defaults."""
    none = st.just({})
    return st.tuples(
        st.sampled_from(name) if isinstance(name, tuple) else st.just(name),
        content if isinstance(content, st.SearchStrategy) else st.just(content),
        st.one_of(none, none, none, data) if data is not None else none,
        st.sampled_from(["", "", "", "", ".gz", ".zst"]),
        st.sampled_from([0] * 12 + [1, 3, 9]),
        st.integers(0, 30),
    )


def _one(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, ...]]:
    return content.map(lambda found: (found,))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


FIELDS = st.one_of(
    st.sampled_from(["", "a", "0", "1", "a b", ' "', '"', '""', '"x"', '"x', 'x"', '"a,b"', '"a\nb"', '"a""b"', "\\",
    '\\"', "a\tb", "\r",
                     "'", "sep=;", "=1+1", "é", "\x85", "\u2028", '"\n', ",", ";", "\0", "-", "\ufeff"]),
    st.text(max_size=6),
)  # fmt: skip


def csv_files() -> st.SearchStrategy[Any]:
    """Draw CSV and TSV files."""
    header = st.sampled_from(["text,label", "text;label", "text\tlabel", '"text","label"', "label,text,x", "text,text",
    ",text", "text",
                              "sep=;\ntext;label", '"te\nxt",label', "", " text , label ", "text,label,"])  # fmt: skip
    plain = st.builds(
        lambda text, label: f'"{text.replace(chr(34), chr(34) * 2)}",{label}', st.text(max_size=8), st.integers(0, 1)
    )
    record = st.one_of(
        plain,
        plain,
        st.builds(lambda mark, fields: mark.join(fields), st.sampled_from(",;\t|"), st.lists(FIELDS, max_size=4)),
    )
    end = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n"])
    whole = st.builds(
        lambda head, lines, ends, last: _encoded(ends.join([head, *lines]) + ends * last), header, st.lists(record,
        max_size=8), end,
        st.booleans(),
    )  # fmt: skip
    # no bad row, so that pyarrow reads it, too
    quoted = st.builds(lambda text: f'"{text.replace(chr(34), chr(34) * 2)}"', st.text(max_size=8))
    field = st.one_of(quoted, quoted, st.sampled_from(["a b", "0", "NA", "", "é", "1.50", "2001-01-01", " x ", "'"]))
    right = st.builds(
        lambda records, last: _encoded("\n".join(["text,label", *map(",".join, records)]) + "\n" * last),
        st.lists(st.tuples(field, field), min_size=1, max_size=8),
        st.booleans(),
    )
    content = st.one_of(whole, whole, right, words.damaged(whole), st.binary(max_size=60))
    return _file(("rows.csv", "rows.csv", "rows.tsv"), _one(content), READINGS)


def _row() -> st.SearchStrategy[str]:
    plain = st.builds(
        lambda text, label: json.dumps({"text": text, "label": label}), st.text(max_size=10), st.integers(0, 1)
    )
    raw = st.builds(
        lambda text, label: json.dumps({"text": text, "label": label}, ensure_ascii=False),
        st.text(max_size=10),
        st.integers(0, 1),
    )
    odd = st.builds(lambda key, inner: f'{{{json.dumps(key)}: {inner}, "label": 1}}', words.text(8), words.json_text())
    return st.one_of(plain, raw, odd)


def json_lines() -> st.SearchStrategy[Any]:
    """Draw JSON lines."""
    line = st.one_of(_row(), _row(), words.json_text(), st.sampled_from(["", " ", "\t", "\r", "\x0b", "//", "\x85"]))
    end = st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\r"])
    whole = st.builds(
        lambda lines, ends, last: _encoded(ends.join(lines) + ends * last),
        st.lists(line, max_size=8),
        end,
        st.booleans(),
    )
    content = st.one_of(whole, whole, _equal_rows(), words.damaged(whole), st.binary(max_size=60))
    encoding = st.fixed_dictionaries({"encoding": st.sampled_from(ENCODINGS)})
    return _file(("rows.jsonl", "rows.ndjson"), _one(content), encoding)


def _equal_rows() -> st.SearchStrategy[bytes]:
    """Draw lines with the same columns and types, so that pyarrow reads them, too."""
    columns = {"text": st.text(max_size=8), "label": st.integers(-(2**61), 2**61), "flag": st.booleans(),
               "score": st.floats(allow_nan=False, allow_infinity=False)}  # fmt: skip
    names = st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True)
    row = names.flatmap(
        lambda own: st.lists(
            st.fixed_dictionaries({name: st.one_of(columns[name], columns[name], st.none()) for name in own}),
            min_size=1, max_size=6)
    )  # fmt: skip
    return st.builds(
        lambda rows, escaped, end: _encoded(end.join(json.dumps(one, ensure_ascii=escaped) for one in rows)),
        row, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]),
    )  # fmt: skip


def json_arrays() -> st.SearchStrategy[Any]:
    """Draw JSON arrays of rows."""
    element = st.one_of(_row(), _row(), _row(), words.json_text())
    space = st.sampled_from(["", "", " ", "\n", "\r\n\t", "\ufeff", "\x0b"])
    whole = st.builds(
        lambda elements, mark, before,
        after: _encoded(f"{before}[{mark}{f'{mark},{mark}'.join(elements)}{mark}]{after}"),
        st.lists(element, max_size=6), space, space, st.one_of(space, st.sampled_from(["[]", ",", "x"])),
    )  # fmt: skip
    content = st.one_of(whole, whole, words.damaged(whole))
    return _file("rows.json", _one(content))


def conll_files() -> st.SearchStrategy[Any]:
    """Draw CoNLL files."""
    token = st.builds(lambda word, mark, tag: f"{word}{mark}{tag}", st.one_of(st.sampled_from(["a", "B", "#", "# c",
    "é", "\x85", "\u00a0"]),
                      st.text(max_size=4)), st.sampled_from([" ", "\t", "  ", " x ", ""]), st.sampled_from(["O", "B-X",
                      "I-X", ""]))  # fmt: skip
    line = st.one_of(
        token, token, st.sampled_from(["", "", " ", "\t", "\r", "# comment", "-DOCSTART- O", "-DOCSTART-", "#", "\x0c"])
    )
    whole = st.lists(line, max_size=14).map(lambda lines: _encoded("\n".join(lines)))
    content = st.one_of(whole, whole, words.damaged(whole), st.binary(max_size=60))
    return _file(
        "rows.conll", _one(content), st.fixed_dictionaries({"delimiter": st.sampled_from([" ", "\t", ",", "é"])})
    )


def text_files() -> st.SearchStrategy[Any]:
    """Draw a text file, or two parallel ones."""
    line = st.one_of(st.text(max_size=12), st.sampled_from(["", " ", "a\r", "\x85", "\u2028", "\0", "\ufeff"]))
    whole = st.lists(line, max_size=10).map(lambda lines: _encoded("\n".join(lines)))
    content = st.one_of(whole, words.damaged(whole), st.binary(max_size=60))
    encoding = st.fixed_dictionaries({"encoding": st.sampled_from(ENCODINGS)})
    return _file("rows.txt", st.lists(content, min_size=1, max_size=2).map(tuple), encoding)


COLUMNS: tuple[tuple[Any, st.SearchStrategy[Any]], ...] = (
    (pa.string(), st.text(max_size=8)),
    (pa.large_string(), st.text(max_size=8)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.int8(), st.integers(-128, 127)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(10, 2), st.integers(-999, 999).map(lambda n: Decimal(n) / 4)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.list_(pa.string()), st.lists(st.text(max_size=4), max_size=3)),
    (pa.struct([("x", pa.string()), ("y", pa.int32())]), st.just({"x": "a", "y": 1})),
    (pa.timestamp("us"), st.datetimes()),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", "é"])),
    (pa.null(), st.none()),
)
SCHEMA_NOTES = ("{}", "[]", "1", "{", '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}',
                '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, null]}}}}', '{"info": 5}',
                '{"info": {"features": []}}',
                '{"info": {"features": {"text": 5}}}', "[" * 5000)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> tuple[Any, ...]:
    """Draw Parquet and Arrow files, some of them damaged."""
    rows = draw(st.integers(0, 9))
    names = draw(
        st.lists(
            st.one_of(st.sampled_from(["text", "label", "x.y", "", "text "]), st.text(max_size=4)),
            min_size=1,
            max_size=4,
        )
    )
    columns = []
    for _ in names:
        kind, values = draw(st.sampled_from(COLUMNS))
        columns.append(
            pa.array(draw(st.lists(st.one_of(values, values, st.none()), min_size=rows, max_size=rows)), type=kind)
        )
    table = pa.Table.from_arrays(columns, names=names)
    if (note := draw(st.sampled_from([None, None, *SCHEMA_NOTES]))) is not None:
        table = table.replace_schema_metadata({"huggingface": note})
    kind = draw(st.sampled_from(["parquet", "parquet", "arrow", "stream"]))
    content = _written(table, kind)
    if draw(st.integers(0, 3)) == 0:
        content = draw(words.damaged(st.just(content)))
    name = "rows.parquet" if kind == "parquet" else "rows.arrow"
    return name, (content,), {}, "", 0, draw(st.integers(0, 12))


def _written(table: Any, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=3)
    else:
        with (pa_ipc.new_file if kind == "arrow" else pa_ipc.new_stream)(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return out.getvalue()

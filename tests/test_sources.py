"""Every format in every kind of root, bad rows at their exact place, and resuming at any position."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import itertools
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.utils.data
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data import fingerprints, formats
from trainer.data.fingerprints import fingerprint
from trainer.data.sources import Row, Source, held_out, open_split
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig

ROWS = [
    {"de": "Zwei junge Männer.", "en": "Two young men."},
    {"de": "Zeile\u0085mit NEL, \u2028 und \x0b", "en": 'He said "no", twice; tab\there'},
    {"de": "Ein\u00a0Hund 犬 🐕", "en": "A dog,\nacross lines"},
    {"de": "x" * 70_000, "en": "long, but a row"},
]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def encoded(kind: str, rows: list[dict[str, str]]) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
        return sink.getvalue()
    sink_text = io.StringIO()
    writer = csv.DictWriter(sink_text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink_text.getvalue().encode()


@pytest.fixture(params=["absolute", "relative", "file", "memory"])
def root(request, tmp_path, monkeypatch):
    """A root as a recipe would name it, below a folder whose name a glob would misread."""
    folder = tmp_path / "data [1]"
    folder.mkdir()
    if request.param == "memory":
        yield "memory://corpus"
        fsspec.filesystem("memory").rm("/corpus", recursive=True)
        return
    monkeypatch.chdir(tmp_path)
    yield {"absolute": str(folder), "relative": "data [1]", "file": f"file://{folder}"}[request.param]


def put(root: str | Path, name: str, content: bytes) -> None:
    system, path = fsspec.core.url_to_fs(str(root))
    system.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
    system.pipe_file(f"{path}/{name}", content)


def config(root: str | Path, train: object, **more: object) -> DataConfig:
    return DataConfig(root=str(root), train=train, **more)


def source_of(root: str | Path, train: object) -> Source:
    found = open_split(config(root, train), "train")
    assert found is not None
    return found


def one_file(tmp_path: Path, name: str, content: bytes) -> list[Row]:
    put(tmp_path, name, content)
    return list(source_of(tmp_path, name))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_below_every_root(root, kind):
    for extension, compress in COMPRESS.items():
        if kind == "parquet" and extension:
            continue
        name = f"train.{kind}{extension}"
        put(root, name, compress(encoded(kind, ROWS)))
        source = source_of(root, name)
        rows = list(source)
        assert [row.values for row in rows] == ROWS
        assert [row.id for row in rows] == [(0, i) for i in range(len(ROWS))]
        assert all(row.error is None for row in rows)
        assert source.shards[0].name == name
        assert source.shards[0].size == len(compress(encoded(kind, ROWS)))
        assert source.name_of((0, 3)) == f"{name}:3"


@pytest.mark.parametrize("extension", COMPRESS)
def test_parallel_text_and_single_text(root, extension):
    compress = COMPRESS[extension]
    put(root, f"a.de{extension}", compress("eins\r\nzwei\u0085drei\u2028vier\n\nletzte".encode()))
    put(root, f"a.en{extension}", compress(b"one\ntwo\rthree\n\nlast\n"))
    source = source_of(root, {"src": f"*.de{extension}", "trg": f"*.en{extension}"})
    assert source.shards[0].name == f"a.de{extension}+a.en{extension}"
    assert source.shards[0].roles == ("src", "trg")
    assert [row.values for row in source] == [
        {"src": "eins", "trg": "one"},
        {"src": "zwei\u0085drei\u2028vier", "trg": "two\rthree"},
        {"src": "", "trg": ""},
        {"src": "letzte", "trg": "last"},
    ]
    put(root, f"b.txt{extension}", compress(b"one\ntwo"))
    assert [row.values for row in source_of(root, f"b.txt{extension}")] == [{"text": "one"}, {"text": "two"}]


def test_shards_are_sorted(root):
    for name in ("b-2.jsonl", "b-10.jsonl", "sub/a.jsonl", "other.csv"):
        put(root, name, b"")
    names = [shard.name for shard in source_of(root, ["sub/*.jsonl", "b-*.jsonl"]).shards]
    assert names == ["b-10.jsonl", "b-2.jsonl", "sub/a.jsonl"]
    assert [shard.name for shard in source_of(root, "**/*.jsonl").shards] == names


def test_glob_characters_in_a_file_name_are_literal(tmp_path):
    put(tmp_path, "x[1].parquet", encoded("parquet", ROWS))
    assert len(list(source_of(tmp_path, "*.parquet"))) == len(ROWS)


def test_a_file_may_be_named_although_its_name_has_brackets(root):
    put(root, "x [final].jsonl", encoded("jsonl", ROWS))
    assert [row.values for row in source_of(root, "x [final].jsonl")] == ROWS
    for side, text in (("de", b"eins\nzwei"), ("en", b"one\ntwo")):
        put(root, f"a[1].{side}", text)
        put(root, f"a1.{side}", text.upper())
    pair = {"src": "a[1].de", "trg": "a[1].en"}
    assert source_of(root, pair).shards[0].name == "a1.de+a1.en"  # a pattern first
    for side in ("de", "en"):
        system, path = fsspec.core.url_to_fs(str(root))
        system.rm(f"{path}/a1.{side}")
    assert [row.values for row in source_of(root, pair)] == [
        {"src": "eins", "trg": "one"},
        {"src": "zwei", "trg": "two"},
    ]


def test_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert [r.values for r in one_file(tmp_path, "a.jsonl", mark + b'{"a": "1"}\n\n \r\n{"a": "2"}')] == [
        {"a": "1"},
        {"a": "2"},
    ]
    assert [r.values for r in one_file(tmp_path, "a.csv", mark + b"a,b\r\n1,2\r\n\r\n3,4\r\n")] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    assert [r.values for r in one_file(tmp_path, "a.txt", mark + b"one\n")] == [{"text": "one"}]


BAD_JSON = {
    b'{"a": "\xff"}': "invalid UTF-8: at byte 7",
    b'{"a": "b\0"}': "NUL byte",
    b'{"a": 1': "not JSON",
    b"[1]": "not a JSON object: list",
    b"[" * 100_000: "not JSON",
    b'{"a": "' + b"x" * 1_000_000 + b'"}': "too long: 1000009 bytes",
}


@pytest.mark.parametrize("line", BAD_JSON, ids=BAD_JSON.values())
def test_a_bad_json_line_spoils_no_other(tmp_path, line):
    rows = one_file(tmp_path, "a.jsonl", b'{"a": "1"}\n' + line + b'\n{"a": "2"}\n')
    assert [row.id for row in rows] == [(0, 0), (0, 1), (0, 2)]
    assert [row.values for row in rows] == [{"a": "1"}, {}, {"a": "2"}]
    assert BAD_JSON[line] in rows[1].error
    assert [rows[0].error, rows[2].error] == [None, None]


BAD_CSV = {
    b"1,\xff": "invalid UTF-8 in column 'b'",
    b"1": "wrong number of fields: 1, where the header has 2",
    b"1,2,3": "wrong number of fields: 3, where the header has 2",
    b"1,a\rb": "a line is not a record: new-line character",
    b'1,"b" c': "a line is not a record: ',' expected after '\"'; a value that begins with a quotation mark must",
    b'1,"b\n5,6\n"7,8': "3 lines are not a record: ',' expected after '\"'",
    b"1," + b"x" * 1_000_000: "fewer than 1000000 are allowed",
}


@pytest.mark.parametrize("line", BAD_CSV, ids=BAD_CSV.values())
def test_a_bad_csv_record_affects_no_other_record(tmp_path, line):
    rows = one_file(tmp_path, "a.csv", b"a,b\n1,2\n" + line + b"\n3,4\n")
    assert rows[0].values == {"a": "1", "b": "2"}
    assert BAD_CSV[line] in rows[1].error
    assert rows[-1].values == {"a": "3", "b": "4"}


def test_a_quoted_field_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 20)
    rows = one_file(tmp_path, "a.csv", b'a,b\n1,2\n3,"' + b"x\n" * 10 + b"5,6\n7,8\n")
    assert "fewer than 20 are allowed; a value that begins with a quotation mark must end with one" in rows[1].error
    assert [row.values for row in rows if row.error is None] == [{"a": n, "b": m} for n, m in ("12", "56", "78")]


def test_an_open_quote_does_not_swallow_the_file_silently(tmp_path):
    rows = one_file(tmp_path, "a.csv", b'a,b\n1,2\n3,"never closed\n5,6\n')
    assert rows[0].error is None
    assert "2 lines are not a record: unexpected end of data; a value that begins" in rows[1].error
    assert len(rows) == 2


def test_an_open_quote_does_not_swallow_records_of_a_tsv_silently(tmp_path):
    """The texts of GLUE and others are not quoted; two that begin with a mark took all between them."""
    rows = one_file(tmp_path, "a.tsv", b'a\tb\n1\t2\n"so he said\t3\n4\t5\nand so"\t6\n"x\ty"\t"7\n8"\n')
    assert "3 lines are one value, with tabs, of column 'a'" in str(rows[1].error)
    assert [row.values for row in rows if row.error is None] == [{"a": "1", "b": "2"}, {"a": "x\ty", "b": "7\n8"}]


def test_bad_bytes_in_parquet_are_found_in_their_row_and_column(tmp_path):
    column = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc"))
    pq.write_table(pa.table({"text": column, "label": [0, 1, 0]}), tmp_path / "a.parquet")
    rows = list(source_of(tmp_path, "a.parquet"))
    assert [row.values for row in rows] == [{"text": "a", "label": 0}, {}, {"text": "c", "label": 0}]
    assert rows[1].error == "invalid UTF-8 in column 'text'"


def test_one_sided_pairs_are_bad_at_their_line(tmp_path):
    put(tmp_path, "a.de", b"eins\nzwei\ndr\xff\nvier\n" + b"x" * 1_000_000)
    put(tmp_path, "a.en", b"one\ntwo\nthree\n")
    rows = list(source_of(tmp_path, {"src": "a.de", "trg": "a.en"}))
    assert [row.error for row in rows] == [
        None,
        None,
        f"invalid UTF-8: at byte 2 of the line, 'src'{formats.OTHER_ENCODING}",
        "one-sided pair: the file of 'trg' has ended",
        "too long: 1000000 bytes; fewer than 1000000 are allowed, 'src'",
    ]


# -- going on ----------------------------------------------------------------------------------------------------------


def assert_resumes_everywhere(source: Source, shard: int = 0) -> None:
    """From every position, twice in a row, the stream goes on with exactly the rows that are left."""
    whole, states = [], []
    stream = source.stream(shard)
    states.append(stream.state())
    for row in stream:
        whole.append(row)
        states.append(json.loads(json.dumps(stream.state())))
    for at, state in enumerate(states):
        again = source.stream(shard, state)
        some = list(itertools.islice(again, 2))
        rest = list(source.stream(shard, again.state()))
        assert some + rest == whole[at:]


@pytest.mark.parametrize("extension", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_resumes_at_every_row(tmp_path, kind, extension):
    if kind == "parquet" and extension:
        pytest.skip("parquet compresses itself")
    rows = [{"a": f"row {i}\n" if i % 3 else "", "b": "é" * i} for i in range(11)]
    put(tmp_path, f"a.{kind}{extension}", COMPRESS[extension](encoded(kind, rows)))
    assert_resumes_everywhere(source_of(tmp_path, f"a.{kind}{extension}"))


def test_resumes_at_every_row_of_a_generated_corpus():
    source = source_of("embedded://translation", "train?rows=9&shards=2&seed=3")
    assert [len(list(source.stream(shard))) for shard in (0, 1)] == [5, 4]
    assert_resumes_everywhere(source, 1)


LINE = st.lists(st.sampled_from([b"a", b'"', b",", b"\r", b"\0", b"\xff", "é".encode(), b"x" * 30]), max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=st.lists(LINE.map(b"".join), max_size=8),
    ended=st.booleans(),
    chunk=st.integers(1, 70),
    extension=st.sampled_from(list(COMPRESS)),
)
def test_lines_of_any_bytes(tmp_path, monkeypatch, found, ended, chunk, extension):
    """Against `bytes.split`, with tiny chunks and a low limit, in a text, a pair and a CSV file."""
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 60)
    content = b"\n".join([b"x" * 50] * 4 + found) + (b"\n" if ended else b"")
    put(tmp_path, f"a.txt{extension}", COMPRESS[extension](content))
    put(tmp_path, "b.txt", b"1\n2\n3\n")
    put(tmp_path, f"a.csv{extension}", COMPRESS[extension](b"a\n" + content))
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    lines = [line for line, _ in formats.lines(str(tmp_path / f"a.txt{extension}"))]
    assert lines == [line if len(line) < 60 else len(line) for line in expected]
    text, pair = f"a.txt{extension}", {"src": f"a.txt{extension}", "trg": "b.txt"}
    assert len(list(source_of(tmp_path, pair))) == max(3, len(expected))
    for train in (text, pair, f"a.csv{extension}"):
        assert_resumes_everywhere(source_of(tmp_path, train))


def test_going_on_seeks_instead_of_reading(tmp_path, monkeypatch):
    put(tmp_path, "a.jsonl", encoded("jsonl", [{"a": "x" * 1000}] * 2000))
    source = source_of(tmp_path, "a.jsonl")
    stream = source.stream(0)
    for _ in range(1900):
        next(stream)
    read = []
    real = formats.chunks
    monkeypatch.setattr(formats, "chunks", lambda *args: (read.append(len(c)) or c for c in real(*args)))
    assert next(source.stream(0, stream.state())).id == (0, 1900)
    assert sum(read) < 110_000
    read.clear()
    next(source.stream(0))
    assert sum(read) < 600_000, "streamed, not loaded whole"


class _InWorkers(torch.utils.data.IterableDataset):
    def __init__(self, source: Source, shards: list[int]):
        self.source, self.shards = source, shards

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for row in self.source.stream(self.shards[worker.id]):
            yield row.id, dict(row.values)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("shards", [[0, 0], [0, 1]])
def test_a_loader_process_sees_all_rows_of_its_shard(tmp_path, kind, shards):
    """`datasets` divides shards among loader processes by itself, which would lose half of the rows here."""
    for name in "ab":
        put(tmp_path, f"{name}.{kind}", encoded(kind, [{"t": f"{name}{i}"} for i in range(7)]))
    source = source_of(tmp_path, f"*.{kind}")
    loader = torch.utils.data.DataLoader(_InWorkers(source, shards), batch_size=None, num_workers=2)
    seen = sorted((tuple(row_id), values["t"]) for row_id, values in loader)
    assert seen == sorted(((shard, i), "ab"[shard] + str(i)) for shard in shards for i in range(7))


# -- content -----------------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_names_and_content_not_of_the_root(tmp_path):
    prints = []
    for place in ("one", "two"):
        put(tmp_path / place, "train.jsonl", encoded("jsonl", ROWS))
        prints.append(fingerprint(source_of(tmp_path / place, "*.jsonl")))
    put("memory://prints", "train.jsonl", encoded("jsonl", ROWS))
    prints.append(fingerprint(source_of("memory://prints", "train.jsonl")))
    assert len(set(prints)) == 1
    put(tmp_path / "two", "train.jsonl", encoded("jsonl", ROWS).replace(b"young", b"Young"))
    assert fingerprint(source_of(tmp_path / "two", "*.jsonl")) != prints[0]
    put(tmp_path / "three", "other.jsonl", encoded("jsonl", ROWS))
    assert fingerprint(source_of(tmp_path / "three", "*.jsonl")) != prints[0]


def test_fingerprint_of_a_large_remote_corpus_takes_the_store_s_checksum(monkeypatch):
    put("memory://large", "a.jsonl", b"{}")
    source = source_of("memory://large", "a.jsonl")
    small = fingerprint(source)
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 1)
    assert fingerprint(source) == fingerprint(source) != small


def test_fingerprint_of_a_generated_corpus():
    one, two = (source_of("embedded://translation", f"train?rows=20&seed={seed}") for seed in (0, 1))
    assert fingerprint(one) == fingerprint(one) != fingerprint(two)


def test_held_out_rows_are_chosen_by_content():
    rows = [{"src": f"Satz {i}", "trg": f"sentence {i}"} for i in range(4000)]
    out = [held_out(row, 0.1) for row in rows]
    assert 340 < sum(out) < 460
    assert [held_out(dict(reversed(row.items())), 0.1) for row in rows] == out
    assert all(held_out(row, 0.3) for row, was in zip(rows, out, strict=True) if was)
    assert not any(held_out(row, 0.0) for row in rows)
    assert [i for i in range(60) if out[i]] == HELD_OUT_OF_60, "the split of existing runs must not move"


HELD_OUT_OF_60: list[int] = [6, 17, 18, 24, 32]


def test_a_share_for_validation_streams_train(tmp_path):
    put(tmp_path, "a.jsonl", encoded("jsonl", ROWS))
    data = config(tmp_path, "a.jsonl", validation=0.5)
    assert open_split(data, "validation").shards == open_split(data, "train").shards
    assert open_split(data, "test") is None


# -- errors ------------------------------------------------------------------------------------------------------------


def test_no_file_matches(root):
    put(root, "train.jsonl", b"{}")
    put(root, "sub/x.csv", b"a")
    with pytest.raises(DataError, match=r"data\.train='trian.jsonl': no file matches .*nearest: train.jsonl"):
        source_of(root, "trian.jsonl")
    with pytest.raises(DataError, match=r"no file matches .*there: sub, train.jsonl"):
        source_of(root, "*.parquet")
    with pytest.raises(DataError, match=r"there: sub/x.csv"):
        source_of(root, "sub/*-of-00008.zip")


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match=r"data\.root='.*/nowhere' cannot be read: .*no such folder"):
        source_of(tmp_path / "nowhere", "a.jsonl")


@pytest.mark.parametrize("name", ["a.xlsx", "a.parquet.gz", "README"])
def test_unknown_format(tmp_path, name):
    put(tmp_path, name, b"")
    with pytest.raises(DataError, match=r"unknown format .*known: \.jsonl, .*\.parquet"):
        source_of(tmp_path, name)


def test_parallel_text_that_does_not_pair_up(tmp_path):
    for name in ("a.de", "b.de", "a.en", "c.jsonl"):
        put(tmp_path, name, b"x")
    with pytest.raises(DataError, match=r"src: 2 \(\*\.de\), trg: 1"):
        source_of(tmp_path, {"src": "*.de", "trg": "*.en"})
    with pytest.raises(DataError, match=r"'c\.jsonl' is jsonl"):
        source_of(tmp_path, {"src": "a.de", "trg": "c.jsonl"})


@pytest.mark.parametrize(
    ("root", "says"),
    [("foo://a", "Protocol not known: foo"), ("s3://a/b", "s3fs"), ("hf://datasets/nobody/none", "data.root=PATH")],
)
def test_roots_that_cannot_be_reached(root, says, monkeypatch):
    if root.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=says):
        source_of(root, "train.jsonl")


@pytest.mark.parametrize("extension", [".gz", ".zst"])
def test_a_cut_archive_is_an_error_not_an_early_end(tmp_path, extension):
    whole = COMPRESS[extension](encoded("jsonl", [{"a": os.urandom(50).hex()} for _ in range(2000)]))
    put(tmp_path, f"a.jsonl{extension}", whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"a\.jsonl{extension} cannot be read \(after \d+ rows\)"):
        list(source_of(tmp_path, f"a.jsonl{extension}"))


@pytest.mark.parametrize("extension", [".gz", ".zst"])
def test_several_members_are_read_on(tmp_path, extension):
    put(tmp_path, f"a.txt{extension}", COMPRESS[extension](b"one\ntw") + COMPRESS[extension](b"o\nthree\n"))
    assert [row.values["text"] for row in source_of(tmp_path, f"a.txt{extension}")] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1 no, not really", "a.parquet cannot be read"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz cannot be read"),
        ("a.csv", b"a,a\n1,2\n", "column is listed twice"),
        ("a.csv", b"a,\xff\n1,2\n", "header is not UTF-8"),
        ("c++.txt", b"%PDF-1.7", r"^c\+\+\.txt cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, says):
    put(tmp_path, name, content)
    with pytest.raises(DataError, match=says):
        list(source_of(tmp_path, name))


@pytest.mark.parametrize("pattern", ["train?rows=x", "train?lines=3", "dev?rows=3", "train?shards=0"])
def test_patterns_of_generated_corpora(pattern):
    with pytest.raises(UsageError, match=r"data\.train="):
        source_of("embedded://translation", pattern)


def test_an_unknown_generated_corpus():
    with pytest.raises(DataError, match="no embedded corpus 'nothing'"):
        list(source_of("embedded://nothing", "train"))


# -- the real ones -----------------------------------------------------------------------------------------------------

corpora = pytest.mark.skipif("RANKZERO_DATA" not in os.environ, reason="RANKZERO_DATA names no folder of real corpora")


@pytest.mark.corpora
@corpora
@pytest.mark.parametrize(
    ("folder", "train", "rows"),
    [
        ("multi30k", "train.jsonl", 29_000),
        ("multi30k/raw", {"de": "train.de.gz", "en": "train.en.gz"}, 29_000),
        ("imdb", "plain_text/train-*.parquet", 25_000),
        ("imdb", "shards/*.jsonl.gz", 25_000),
        ("sst2", "train.tsv.gz", 67_349),
    ],
)
def test_real_corpora_are_read_completely(folder, train, rows):
    found = list(source_of(Path(os.environ["RANKZERO_DATA"]) / folder, train))
    assert (len(found), len({row.id for row in found})) == (rows, rows)
    assert all(row.error is None and all(value is not None for value in row.values.values()) for row in found)


@pytest.mark.corpora
@corpora
def test_nel_stays_inside_its_review():
    """IMDB holds U+0085, at which `str.splitlines` would break a row."""
    folder = Path(os.environ["RANKZERO_DATA"]) / "imdb"
    parquet = sorted(row.values["text"] for row in source_of(folder, "plain_text/train-*.parquet"))
    lines = sorted(row.values["text"] for row in source_of(folder, "shards/*.jsonl.gz"))
    assert parquet == lines
    assert any("\u0085" in text for text in lines)


# -- decompression bombs-------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".gz", ".zst"])
@pytest.mark.parametrize("content", [b" ", b"\n", b'{"text": "a", "label": 1}\n', b"x" * 2000 + b"\n"])
def test_a_decompression_bomb_is_refused_in_small_pieces(tmp_path, monkeypatch, extension, content):
    monkeypatch.setattr(formats, "BOMB_BYTES", 1_000_000)
    monkeypatch.setattr(formats, "BOMB_RATIO", 100)
    put(tmp_path, f"a.jsonl{extension}", COMPRESS[extension](content * (20_000_000 // len(content))))
    with pytest.raises(DataError, match=rf"a\.jsonl{extension} cannot be read .* it is a decompression bomb"):
        list(source_of(tmp_path, f"a.jsonl{extension}"))
    sizes = []
    with pytest.raises(formats.BadFile):
        sizes.extend(map(len, formats.chunks(str(tmp_path / f"a.jsonl{extension}"))))
    assert max(sizes) <= formats.CHUNK_BYTES
    assert sum(sizes) < 5_000_000


def test_zst_frames_are_decompressed_in_chunks(tmp_path):
    """256 MB of zeros in one frame of a few kB: 16 kB of it once became 256 MB at once."""
    put(tmp_path, "a.zst", zstandard.ZstdCompressor().compress(bytes(50_000_000)))
    sizes = list(map(len, formats.chunks(str(tmp_path / "a.zst"))))
    assert (sum(sizes), max(sizes)) == (50_000_000, formats.CHUNK_BYTES)


@pytest.mark.parametrize("extension", ["", ".gz", ".zst"])
def test_rows_that_repeat_are_no_bomb(tmp_path, extension):
    rows = [{"de": "Ein Hund.", "en": "A dog."}] * 40_000
    put(tmp_path, f"a.jsonl{extension}", COMPRESS[extension](encoded("jsonl", rows)))
    found = list(source_of(tmp_path, f"a.jsonl{extension}"))
    assert [row.values for row in found] == rows

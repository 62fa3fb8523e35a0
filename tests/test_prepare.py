"""A prepared corpus contains every row once, evenly mixed, and replaces the original one."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer.data import prepare_stages, prepare_work
from trainer.data.cleaning import clean_row, cleaner
from trainer.data.prepare import prepare, prepared_tokenizer
from trainer.data.roles import Text
from trainer.data.sources import Row, open_split
from trainer.data.survey import survey
from trainer.data.token_ids import encode_batch
from trainer.data.tokenization import train_tokenizer
from trainer.errors import DataError, UsageError
from trainer.models.configs import TransformerConfig
from trainer.recipe import Recipe, recipe_class
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe as AnyRecipe
from trainer.task.registry import make_task
from trainer.tasks.classification.roles import RowWeight
from trainer.tasks.translation.task import TranslationConfig

ROLES = {"src": Text(), "trg": Text(target=True)}
COLUMNS = {"src": "de", "trg": "en"}


def encoder(tokenizer):
    """As a task encodes: cut to a length, source ended."""

    def encode(rows):
        return [
            {"src": [*src[:9], 3], "trg": trg}
            for src, trg in zip(*(encode_batch(tokenizer, [row[role] for row in rows]) for role in ROLES), strict=True)
        ]

    return encode


def corpus(folder: Path, rows: int = 40) -> None:
    """Two files, sorted: the first half begins with "a"; one text needs cleaning."""
    for name, numbers in (("a", range(rows // 2)), ("b", range(rows // 2, rows))):
        lines = [json.dumps({"de": f"{name}  satz\u00a0{i}", "en": f"{name} sentence &amp;amp; {i}"}) for i in numbers]
        (folder / f"train-{name}.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text("".join(f'{{"de": "t {i}", "en": "t {i}"}}\n' for i in (3, 1, 2)))


def recipe(root: Path | str, **overrides: object) -> Recipe:
    values = {
        "version": 1,
        "name": "x",
        "task": {"kind": "translation"},
        "data": {
            "root": str(root),
            "train": "train-*.jsonl",
            "test": "test.jsonl",
            "columns": COLUMNS,
            "cleaning": ["unescape_html", "fold_whitespace"],
            "lanes": 4,
        },
        "tokenizer": {"train": {"vocab_size": 60}},
        "model": {"kind": "transformer"},
        "loop": {"epochs": 1},
    }
    changes = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return recipe_class([TranslationConfig], [TransformerConfig]).parse(values, changes)


@pytest.fixture
def out(tmp_path):
    corpus(tmp_path)
    prepare(recipe(tmp_path), ROLES, encoder, tmp_path / "out")
    return tmp_path / "out"


def rows_of(found: Recipe, split: str = "train") -> list[list[Row]]:
    source = open_split(found.data, split)
    return [list(source.stream(shard)) for shard in range(len(source.shards))]


def original_texts(root: Path, split: str = "train") -> list[tuple[str, ...]]:
    data = recipe(root).data
    source, clean = open_split(data, split), cleaner(data.cleaning)
    return [tuple(clean_row(row, ROLES, COLUMNS, clean).values()) for row in source]


def test_every_row_once_in_shards_of_one_size(tmp_path, out):
    shards = rows_of(recipe(out))
    assert [len(shard) for shard in shards] == [10, 10, 10, 10]
    found = [(row.values["src"], row.values["trg"]) for shard in shards for row in shard]
    original = original_texts(tmp_path)
    assert sorted(found) == sorted(original)
    assert found != original
    assert "a sentence &amp; 3" in {trg for _, trg in found}, "cleaned once, not twice"


def test_a_sorted_corpus_is_mixed_in_every_shard(out):
    for shard in rows_of(recipe(out)):
        firsts = [row.values["src"][0] for row in shard]
        assert firsts.count("a") == 5, "each shard is an even sample"
        assert firsts != sorted(firsts)


def test_rows_carry_token_ids_and_their_original_id(tmp_path, out):
    import pyarrow.parquet as pq

    found = recipe(out)
    encode = encoder(prepared_tokenizer(found))
    for shard in rows_of(found):
        for row in shard:
            texts = clean_row(row, ROLES, COLUMNS, cleaner(found.data.cleaning))
            assert texts == row.values
            assert row.example == encode([texts])[0]
    ids = [x for path in out.glob("train-*.parquet") for x in pq.read_table(path)["id"].to_pylist()]
    assert sorted(ids) == sorted(f"train-{name}.jsonl:{i}" for name in "ab" for i in range(20))


def test_other_splits_keep_their_order(tmp_path, out):
    (rows,) = rows_of(recipe(out), "test")
    assert [(row.values["src"], row.values["trg"]) for row in rows] == original_texts(tmp_path, "test")
    assert open_split(recipe(out).data, "validation") is None


def test_it_is_surveyed_like_any_other_corpus(out):
    data = recipe(out).data
    found = survey(open_split(data, "train"), data, ROLES)
    assert (found.rows, found.shard_rows) == (40, [10] * 4)
    more = recipe(out, **{"data.lanes": 41}).data
    with pytest.raises(DataError, match=r"lanes=41 is more than the 40 rows"):
        survey(open_split(more, "train"), more, ROLES)


def test_a_stream_resumes_at_every_row(out):
    source = open_split(recipe(out).data, "train")
    whole = list(source.stream(2))
    for at in range(len(whole) + 1):
        stream = source.stream(2)
        for _ in range(at):
            next(stream)
        assert list(source.stream(2, stream.state())) == whole[at:]


@pytest.mark.parametrize("bucket_rows", [1, 3, 1000])
def test_buckets_lose_nothing(tmp_path, monkeypatch, bucket_rows):
    corpus(tmp_path, 50)
    monkeypatch.setattr(prepare_stages, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(prepare_work, "WRITE_ROWS", 4)
    monkeypatch.setattr(prepare_work, "BUCKET_ROWS", bucket_rows)
    prepare(recipe(tmp_path), ROLES, encoder, tmp_path / "out")
    found = [row.values["src"] for shard in rows_of(recipe(tmp_path / "out")) for row in shard]
    assert sorted(found) == sorted(src for src, _ in original_texts(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "test.jsonl", "train-a.jsonl", "train-b.jsonl"]


def test_more_lanes_than_files_that_may_be_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        corpus(tmp_path, 200)
        written = prepare(recipe(tmp_path, **{"data.lanes": 100}), ROLES, encoder, tmp_path / "out")
        assert len(written["shards"]["train"]) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_same_recipe_writes_the_same_bytes(tmp_path, out):
    prepare(recipe(tmp_path), ROLES, encoder, tmp_path / "again")
    prepare(recipe(tmp_path, seed=2), ROLES, encoder, tmp_path / "other")
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(out)).read_bytes()
    name = "train-00000-of-00004.parquet"
    assert (tmp_path / "other" / name).read_bytes() != (out / name).read_bytes()


def test_in_order_it_is_one_shard_in_order(tmp_path):
    corpus(tmp_path)
    prepare(recipe(tmp_path, **{"data.order": "sequential"}), ROLES, encoder, tmp_path / "out")
    (rows,) = rows_of(recipe(tmp_path / "out"))
    assert [tuple(row.values.values()) for row in rows] == original_texts(tmp_path)


def test_a_held_out_share_becomes_a_split(tmp_path):
    corpus(tmp_path)
    share = {"data.validation": 0.25}
    about = prepare(recipe(tmp_path, **share), ROLES, encoder, tmp_path / "out")
    found = recipe(tmp_path / "out", **share)
    train, held = ([row for shard in rows_of(found, split) for row in shard] for split in ("train", "validation"))
    assert len(train) + len(held) == 40
    assert 3 < len(held) < 20
    for split, rows in (("train", train), ("validation", held)):
        assert survey(open_split(found.data, split), found.data, ROLES, split).rows == len(rows)
        assert about["splits"][split]["rows"] == len(rows)


def test_a_column_that_only_training_rows_need(tmp_path):
    """Some rows of test have it. It is no part of the prepared split, and all rows are there."""
    lines = [{"de": f"satz {i}", "en": f"sentence {i}", "weight": i / 4} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    some = [{k: v for k, v in line.items() if k != "weight" or i % 2} for i, line in enumerate(lines[:6])]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    roles = {**ROLES, "weight": RowWeight()}
    for share in (None, 0.3):
        out, options = tmp_path / f"out-{share}", {"data.train": "train.jsonl", "data.validation": share}
        prepare(recipe(tmp_path, **options), roles, encoder, out)
        found = recipe(out, **options)
        train, test = ([row for shard in rows_of(found, split) for row in shard] for split in ("train", "test"))
        held = [row for shard in rows_of(found, "validation") for row in shard] if share else []
        assert sorted(row.values["weight"] for row in [*train, *held]) == [i / 4 for i in range(40)]
        assert [row.values for row in test] == [{"src": line["de"], "trg": line["en"]} for line in lines[:6]]
        for split, rows in {"train": train, "validation": held, "test": test}.items():
            if (source := open_split(found.data, split)) is not None:
                assert survey(source, found.data, roles, split).rows == len(rows) > 3


def test_bad_rows_end_it_or_are_left_out(tmp_path):
    corpus(tmp_path)
    with (tmp_path / "train-a.jsonl").open("a") as file:
        file.write('\n{"de": "no other side"}\n')
    with pytest.raises(DataError, match=r'train-a\.jsonl, line 2\d \(row 21\), column "en": is missing'):
        prepare(recipe(tmp_path), ROLES, encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    skip = {"data.on_bad_row": "skip", "data.max_bad_fraction": 0.1}
    about = prepare(recipe(tmp_path, **skip), ROLES, encoder, tmp_path / "out")
    assert about["splits"]["train"]["bad_rows"] == {"column 'en' is missing": 1}
    assert sum(map(len, rows_of(recipe(tmp_path / "out")))) == 40


@pytest.mark.parametrize(
    "change",
    [{"data.cleaning": []}, {"data.max_length": 9}, {"data.columns": {}}, {"data.train": "x.jsonl"}],
    ids=lambda change: next(iter(change)),
)
def test_another_recipe_is_refused(out, change):
    (key,) = change
    with pytest.raises(UsageError, match=rf"prepared with another recipe:\n  {key}: .* -> ") as caught:
        open_split(recipe(out, **change).data, "train")
    assert caught.value.exit_code == 2


def test_the_tokenizer_comes_with_the_corpus(tmp_path, out):
    assert prepared_tokenizer(recipe(tmp_path)) is None
    assert prepared_tokenizer(recipe("embedded://translation")) is None
    assert prepared_tokenizer(recipe(out)).get_vocab()["[EOS]"] == 3
    with pytest.raises(UsageError, match=r"tokenizer: .*'vocab_size': 60.* -> .*'vocab_size': 61"):
        prepared_tokenizer(recipe(out, **{"tokenizer.train.vocab_size": 61}))


def of_architecture(root: Path, architecture: str, **values: Any) -> Any:
    sections: dict[str, Any] = {
        "name": "x",
        "task": {"kind": "text_to_text"},
        "data": {"root": str(root), "train": "train-*.jsonl", "columns": COLUMNS, "max_length": 32, "lanes": 2},
        "model": {"kind": "pretrained", "architecture": architecture, "size": "tiny"},
        "loop": {"max_steps": 1},
    }
    return AnyRecipe.parse(sections | values)


@pytest.mark.parametrize(
    ("one", "other", "tokenizer", "same"),
    [
        ("t5", "bart", {}, False),
        ("t5", "pegasus", {}, True),
        (
            "t5",
            "bart",
            {"train": {"kind": "byte_bpe", "vocab_size": 300}},
            False,
        ),  # one begins texts, the other does not
        ("bart", "pegasus", {"train": {"kind": "byte_bpe", "vocab_size": 300, "begin": True}}, True),
    ],
)
def test_a_corpus_is_prepared_for_an_architecture(tmp_path, one, other, tokenizer, same):
    corpus(tmp_path)
    made = of_architecture(tmp_path, one, tokenizer=tokenizer)
    prepare(made, ROLES, lambda t: make_task(made, t).encode, tmp_path / "out")
    assert prepared_tokenizer(of_architecture(tmp_path / "out", one, tokenizer=tokenizer)) is not None
    changed = of_architecture(tmp_path / "out", other, tokenizer=tokenizer)
    if same:
        assert prepared_tokenizer(changed) is not None
    else:
        with pytest.raises(UsageError, match=r"prepared with another recipe:\n  tokenizer: .*'begin': False"):
            prepared_tokenizer(changed)


def test_a_corpus_with_another_tokenizer_than_its_model_has_is_refused(tmp_path):
    corpus(tmp_path)
    train_tokenizer(["a sentence b"], TokenizerTraining(kind="wordpiece", vocab_size=60), 9).save_pretrained(
        tmp_path / "t"
    )
    given = {"pretrained": str(tmp_path / "t")}
    made = of_architecture(
        tmp_path, "bert", tokenizer=given, task={"kind": "translation"}, model={"kind": "transformer"}
    )
    prepare(made, ROLES, encoder, tmp_path / "out")
    again = made.model_copy(update={"data": made.data.model_copy(update={"root": str(tmp_path / "out")})})
    assert prepared_tokenizer(again) is not None
    train_tokenizer(["x y z sentence"], TokenizerTraining(kind="wordpiece", vocab_size=60), 9).save_pretrained(
        tmp_path / "t"
    )
    with pytest.raises(UsageError, match=r"prepared with another tokenizer than .* has now"):
        prepared_tokenizer(again)
    shutil.rmtree(tmp_path / "t")
    assert prepared_tokenizer(again) is not None, "the corpus brings its own"
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    begins = TokenizerTraining(kind="wordpiece", vocab_size=60, begin=False)
    train_tokenizer(["a sentence b"], begins, 9).save_pretrained(tmp_path / "out" / "tokenizer")
    with pytest.raises(UsageError, match="is not the one that it was prepared with"):
        prepared_tokenizer(again)


def test_a_corpus_of_an_earlier_version_is_refused(out):
    about = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps({**about, "version": 1}))
    with pytest.raises(UsageError, match=r"another version .* version 1, needed: 2.*`rankzero prepare` again"):
        prepared_tokenizer(recipe(out))


def test_a_finished_one_is_left_and_nothing_is_overwritten(tmp_path, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    about = prepare(recipe(tmp_path), ROLES, encoder, out)
    assert about == json.loads((out / "prepared.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UsageError, match="has other content"):
        prepare(recipe(tmp_path, **{"data.cleaning": []}), ROLES, encoder, out)
    with pytest.raises(UsageError, match="is a prepared corpus already"):
        prepare(recipe(out), ROLES, encoder, tmp_path / "again")
    shutil.rmtree(out)
    out.mkdir()
    prepare(recipe(tmp_path), ROLES, encoder, out)
    assert (out / "prepared.json").exists()


def test_bad_rows_leave_no_files(tmp_path):
    corpus(tmp_path)
    (tmp_path / "train-b.jsonl").write_text('{"de": "no other side"}')
    with pytest.raises(DataError):
        prepare(recipe(tmp_path), ROLES, encoder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl", "train-a.jsonl", "train-b.jsonl"]

"""Prepared corpora in a mixture: prepared together or alone, with one tokenizer, and the same steps as the files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mix_helpers import LONG, SHORT, mixed, write_corpora
from test_prepare_parts import contents

from trainer import train
from trainer.data.mix_ledger import check_run
from trainer.data.prepare import prepared_tokenizer
from trainer.data.sources import MixedSource, open_split
from trainer.data.survey import survey
from trainer.data.token_ids import encode_batch
from trainer.data.tokenization import load_tokenizer, train_tokenizers, training_texts
from trainer.errors import DataError, UsageError
from trainer.preparation import prepare
from trainer.recipe_loading import Recipe
from trainer.task.registry import roles_of

DATA = {"block_rows": 10, "tokens_per_batch": 64, "max_length": 32, "validation": None, "test": "test.jsonl"}
LOOP = {"max_steps": 30, "eval_every": 100, "save_every": 100, "log_every": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long corpus has two files."""
    root = write_corpora(tmp_path_factory.mktemp("corpora"))
    lines = (root / "long" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (root / "long" / "a.jsonl").write_text("".join(lines[:90]), encoding="utf-8")
    (root / "long" / "b.jsonl").write_text("".join(lines[90:]), encoding="utf-8")
    (root / "long" / "train.jsonl").unlink()
    return root


def recipe(root: Path, **data: Any) -> Any:
    made = mixed(root, data={**DATA, **data}, loop=LOOP, evaluation={"splits": []})
    return made.model_copy(update={"loop": made.loop.model_copy(update={"ledger": True})})


@pytest.fixture(scope="module")
def out(root: Path) -> Path:
    prepare(recipe(root, validation=0.2), out=root / "prepared" / "both")
    return root / "prepared" / "both"


def alone(root: Path, name: str, **sections: Any) -> Any:
    """The recipe of one of the corpora, without a mixture."""
    columns = {"text": "review", "label": "stars"} if name == "long" else {}
    data = {"root": str(root / name), "train": "*.jsonl", "columns": columns, "mix": []}
    values = mixed(root, data={**DATA, "test": None}).model_dump(mode="json")
    values["data"] |= data
    return Recipe.parse({**values, **sections})


def train_of(made: Any, split: Any = "train") -> MixedSource:
    found = open_split(made.data, split, roles_of(made))
    assert isinstance(found, MixedSource)
    return found


# -- rows --------------------------------------------------------------------------------------------------------------


def test_each_corpus_has_its_folder_and_its_rows(root: Path, out: Path) -> None:
    made = recipe(out, validation=0.2)
    splits = {
        split: survey(train_of(made, split), made.data, roles_of(made), split) for split in ("train", "validation")
    }
    for name, rows in (("short", SHORT), ("long", LONG)):
        found = [splits[split].corpora[name].rows for split in splits]
        assert sum(found) == rows
        assert found[1] == pytest.approx(0.2 * rows, abs=20)
        about = json.loads((out / "corpora" / name / "prepared.json").read_text())
        assert [about["splits"][split]["rows"] for split in splits] == found
    about = json.loads((out / "prepared.json").read_text())
    assert about["corpora"] == ["short", "long"]
    assert about["splits"]["train"]["rows"] == splits["train"].rows
    names = {train_of(made).name_of(row.id).rpartition(":")[0] for row in train_of(made)}
    assert names == {f"{name}/train-{shard:05d}-of-00004.parquet" for name in ("short", "long") for shard in range(4)}
    test = open_split(made.data, "test", roles_of(made))
    assert test is not None
    assert len(list(test)) == 40


def test_the_tokenizer_is_that_of_the_original_mixture(root: Path, out: Path) -> None:
    made = recipe(root, validation=0.2)
    counts = survey(train_of(made), made.data, roles_of(made)).report()
    settings = made.tokenizer_training
    texts = training_texts(train_of(made), made.data, roles_of(made), settings.sample_rows, counts)
    expected = train_tokenizers(texts, settings, made.data.max_length).backend_tokenizer.to_str()
    found = prepared_tokenizer(recipe(out, validation=0.2))
    assert found is not None
    assert found.backend_tokenizer.to_str() == expected
    for row in train_of(recipe(out, validation=0.2)):
        text = encode_batch(found, [row.values["text"]])[0]  # type: ignore[list-item]
        assert row.example is not None
        assert row.example["input_ids"][1:-1] == text[:30]


def test_jobs_of_an_array_prepare_the_same(root: Path, out: Path, tmp_path: Path) -> None:
    made = recipe(root, validation=0.2)
    for stage in ("read", "deal", "write"):
        for number in range(3):
            prepare(made, out=tmp_path / "out", part=(stage, number, 3))
    prepare(made, out=tmp_path / "out")
    assert contents(tmp_path / "out") == contents(out)
    before = (tmp_path / "out" / "prepared.json").stat().st_mtime_ns
    prepare(made, out=tmp_path / "out")
    assert (tmp_path / "out" / "prepared.json").stat().st_mtime_ns == before, "it is complete"
    with pytest.raises(UsageError, match="has other content"):
        prepare(recipe(root), out=tmp_path / "out")


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_prepared_corpus_is_not_prepared_again(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.root=.*is a prepared corpus already"):
        prepare(recipe(out, validation=0.2), out=tmp_path / "again")
    entry = {"name": "ready", "root": str(out / "corpora" / "short"), "train": "train.jsonl", "weight": 1}
    with pytest.raises(UsageError, match=r"data\.mix\.ready\.root=.*is a prepared corpus already"):
        prepare(mixed(out.parents[1], entry, data=DATA), out=tmp_path / "again")


def test_an_entry_that_was_not_prepared_needs_a_root(root: Path, out: Path) -> None:
    short = {"name": "short", "train": "train.jsonl", "weight": 1}
    new = {"name": "new", "train": "train.jsonl", "weight": 1}
    with pytest.raises(
        DataError, match=r"^data\.mix\.new\.root=.* is a prepared mixture of short, long: give an entry"
    ):
        train_of(mixed(out, short, new, data={**DATA, "validation": 0.2}))
    found = train_of(mixed(out, short, {**new, "root": str(root / "short")}, data={**DATA, "validation": 0.2}))
    assert {shard.format for shard in found.parts[0].shards} == {"prepared"}
    assert {shard.format for shard in found.parts[1].shards} == {"jsonl"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cleaning": []}, r"data\.cleaning: .* -> \[\]"),
        ({"validation": 0.3}, r"data\.validation: 0\.2 -> 0\.3"),
        ({"validation": None}, r"data\.validation: 0\.2 -> None"),
        ({"max_length": 16}, r"data\.max_length: 32 -> 16"),
    ],
)
def test_another_recipe_is_refused(out: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_of(recipe(out, **{"validation": 0.2, **change}))


def test_corpora_with_different_tokenizers_are_not_mixed(root: Path, tmp_path: Path) -> None:
    for name in ("short", "long"):
        prepare(alone(root, name), out=tmp_path / name)
    entries = [
        {"name": name, "root": str(tmp_path / name), "train": "*.jsonl", "weight": 1} for name in ("short", "long")
    ]
    entries[1]["columns"] = {"text": "review", "label": "stars"}
    made = mixed(root, *entries, data=DATA)
    with pytest.raises(UsageError, match=r"data\.mix: short and long were prepared with different tokenizers"):
        prepared_tokenizer(made)
    pretrained = {"tokenizer": {"train": None, "pretrained": str(tmp_path / "short" / "tokenizer")}}
    prepare(alone(root, "long", **pretrained), out=tmp_path / "same")
    entries[0]["root"], entries[1]["root"] = str(root / "short"), str(tmp_path / "same")
    made = mixed(root, *entries, data=DATA)
    made = Recipe.parse({**made.model_dump(mode="json"), **pretrained})
    found = prepared_tokenizer(made)
    assert found is not None
    assert found.get_vocab() == load_tokenizer(str(tmp_path / "short" / "tokenizer")).get_vocab()
    rows = Counter(row.example is not None for row in train_of(made))
    assert rows == {False: SHORT, True: LONG}, "a prepared corpus with one that is not"


# -- runs --------------------------------------------------------------------------------------------------------------


def test_in_their_order_the_corpora_make_the_steps_of_the_files(root: Path, tmp_path: Path) -> None:
    prepare(recipe(root, order="sequential"), out=tmp_path / "both")
    files = train(recipe(root), run=tmp_path / "files").path
    ready = train(recipe(tmp_path / "both"), run=tmp_path / "ready").path
    assert (ready / "model" / "model.safetensors").read_bytes() == (files / "model" / "model.safetensors").read_bytes()
    lines = [(path / "ledger.jsonl").read_text() for path in (files, ready)]
    for number, name in enumerate(("a", "b")):
        lines[0] = lines[0].replace(f"long/{name}.jsonl", f"long/train-{number:05d}-of-00002.parquet")
    assert lines[0].replace("short/train.jsonl", "short/train-00000-of-00001.parquet") == lines[1]
    assert "is listed" not in prepare(recipe(tmp_path / "both"), verify=True, run=ready)
    assert prepare(recipe(root), verify=True, out=tmp_path / "both").count("agrees") == 2
    (root / "long" / "c.jsonl").write_text('{"review": "the good", "stars": 1}\n')
    try:
        with pytest.raises(DataError, match=r"data\.train: the content of 4 files differs"):
            prepare(recipe(root), verify=True, out=tmp_path / "both")
    finally:
        (root / "long" / "c.jsonl").unlink()


def test_shuffled_corpora_keep_their_proportions(out: Path, tmp_path: Path) -> None:
    done = train(recipe(out, validation=0.2), run=tmp_path / "run").path
    assert check_run(done) == []
    first = [json.loads(line) for line in (done / "ledger.jsonl").read_text().splitlines()]
    served = Counter(row for step in first if not step["epoch"] for ids in step["rows"].values() for row in ids)
    short = {row: times for row, times in served.items() if row.startswith("short/")}
    assert set(short.values()) == {1}
    about = json.loads((out / "corpora" / "short" / "prepared.json").read_text())
    assert len(short) == about["splits"]["train"]["rows"], "the short corpus ends the epoch"


SCRIPT = """
import sys
from trainer.data import prepare as module
from trainer.preparation import prepare
module.INDEXED_BYTES = 0  # several processes for few rows
prepare(sys.argv[1], out=sys.argv[2], processes=2)
loaded = [name for name in ("torch", "accelerate", "onnx", "datasets") if name in sys.modules]
assert not loaded, loaded
"""


def test_it_does_not_import_torch(root: Path, out: Path, tmp_path: Path) -> None:
    """Neither do its two processes, which import the same modules: it takes seconds and hundreds of megabytes."""
    made = recipe(root, validation=0.2)
    (tmp_path / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
    subprocess.run(words, check=True)
    assert contents(tmp_path / "out") == contents(out)

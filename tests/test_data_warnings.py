"""Warnings about data: truncated rows, unknown tokens, splits and classes."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import review_helpers
from conftest import tiny_recipe, write_corpus

from trainer import predict, train
from trainer.data.roles import Label, Text
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.data.survey_counts import LabelParts
from trainer.data.tokenization import train_tokenizer
from trainer.engine import token_counts
from trainer.engine.corpus import Corpus
from trainer.engine.data_notes import notes
from trainer.engine.setup import survey_data
from trainer.engine.token_counts import TokenCounts, count_tokens
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.report.page import sentences
from trainer.rundir import RunDir
from trainer.task.base import Task
from trainer.task.registry import make_task

HANZI = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train") -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def counted(
    folder: Path, kind: str = "bpe", alphabet: int = 1000, **sections: dict[str, Any]
) -> tuple[TokenCounts, Task]:
    recipe = Recipe.parse(tiny_recipe(folder, **sections))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": None, "test": None})})
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for key, text in row.items() if key != "label"]
    settings = TokenizerTraining(kind=kind, vocab_size=900, limit_alphabet=alphabet)  # type: ignore[arg-type]
    task = make_task(recipe, train_tokenizer(texts, settings, recipe.data.max_length))
    return count_tokens(Corpus(recipe, task), "train", len(rows)), task


# -- cut rows ----------------------------------------------------------------------------------------------------------


def words(*counts: int) -> list[dict[str, Any]]:
    return [{"de": " ".join(["ab"] * n), "en": " ".join(["ab"] * m)} for n, m in zip(counts, counts[::-1], strict=True)]


def test_rows_are_counted_on_the_side_that_is_cut(tmp_path):
    """data.max_length=40 leaves 39 tokens of a text beside [EOS]."""
    write(tmp_path, [*words(39, 40, 5, 41, 200), {"de": "ab", "en": "ä" * 39 + " x"}])
    found, task = counted(tmp_path)
    assert found.rows == 6
    assert found.cut == {"src": 3, "trg": 3 + (len(task.token_ids([{"trg": "ä" * 39 + " x"}])["trg"][0]) > 39)}
    assert found.cut_rows == 4 + (found.cut["trg"] - 3)


@pytest.mark.parametrize("sample", [0, 20_000])
def test_the_count_is_that_of_the_encoded_rows(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(token_counts, "SAMPLE", sample)
    write_corpus(tmp_path, train=300)
    found, task = counted(tmp_path, data={"max_length": 16})
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    long = [
        [len(task.tokenizer(row[c], add_special_tokens=False)["input_ids"]) > 15 for c in ("de", "en")] for row in rows
    ]
    assert [found.cut["src"], found.cut["trg"]] == [sum(side) for side in zip(*long, strict=True)]
    assert found.cut_rows == sum(map(any, long)) > 50
    assert found.sampled == (300 if sample else 0)


def test_a_cut_target_has_no_end_and_others_are_as_before(tmp_path):
    write(tmp_path, words(5, 39, 40, 60))
    _, task = counted(tmp_path)
    texts = [{"src": "ab", "trg": " ".join(["ab"] * n)} for n in (5, 39, 40, 60)]
    examples = task.encode(texts)
    batch = task.collate(examples)
    eos, bos = task.tokenizer.eos_token_id, task.tokenizer.bos_token_id
    for row, (example, count) in enumerate(zip(examples, (5, 39, 40, 60), strict=True)):
        labels = [token for token in batch["labels"][row].tolist() if token != -100]
        read = batch["trg_in"][row].tolist()[: len(labels)]
        assert len(labels) == min(count + 1, 40) == task.tokens(example) - len(example["src"])
        assert (labels[-1] == eos) == (count < 40), "a target that was cut does not end there"
        assert read == [bos, *labels[:-1]]
    assert batch["labels"].shape == batch["trg_in"].shape == (4, 40)


def test_which_text_of_a_pair_is_cut(tmp_path):
    section = {"kind": "classification", "labels": ["a", "b"], "pair": True}
    data = {"columns": {}, "max_length": 20}
    model = {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64}
    write(
        tmp_path,
        [{"text": "ab " * 30, "text_pair": "ab", "label": "a"}, {"text": "ab", "text_pair": "ab", "label": "b"}],
    )
    recipe = tiny_recipe(tmp_path, data=data) | {"task": section, "model": model}
    made = Recipe.parse(recipe)
    settings = TokenizerTraining(kind="wordpiece", vocab_size=60)
    task = make_task(made, train_tokenizer(["ab ab ab"], settings, 20))
    assert task.cut_roles({"text": 30, "text_pair": 1}) == ["text"]
    assert task.cut_roles({"text": 30, "text_pair": 30}) == ["text", "text_pair"]
    assert task.cut_roles({"text": 8, "text_pair": 8}) == []
    for line, cut in (("ab " * 30 + "\tab", True), ("ab\tab", False), ("ab\t" + "ab " * 30, True)):
        assert task.truncated(line, task.encode_lines([line])[0]) is cut


def test_rows_that_all_have_the_same_peculiarity_are_warned_of(tmp_path):
    """Equal texts on both sides, and a prefix that the rows have already; not if few rows have it."""
    for rows, expected in (([*words(3, 4, 5), *words(2)], 2), (words(3, 3, 3), 3)):
        write(tmp_path, rows)
        found, _ = counted(tmp_path)
        equal = sum(row["de"] == row["en"] for row in rows)
        assert sum(found.doubts.values()) == equal == expected
        recipe = Recipe.parse(tiny_recipe(tmp_path))
        facts = {"rows": len(rows), "bad_rows": {}, "tokens": found.report()}
        warned = [note for note in notes(recipe, {"train": facts}) if "same text" in note]
        assert len(warned) == (2 * equal >= len(rows))
        if warned:
            assert warned[0].startswith(f'data.train: {equal} of {len(rows)} rows have the same text in "src"')


def test_a_prefix_that_the_rows_have_already(tmp_path):
    write(tmp_path, [{"de": f"translate: {n} ab", "en": "ab"} for n in range(5)])
    sections = {
        "task": {"kind": "text_to_text", "prefix": "translate: "},
        "model": {"kind": "pretrained", "architecture": "t5", "size": "tiny"},
    }
    values = tiny_recipe(tmp_path) | sections
    values["data"] |= {"validation": None, "test": None}
    recipe = Recipe.parse(values)
    settings = TokenizerTraining(kind="unigram", vocab_size=60)
    task = make_task(recipe, train_tokenizer(["translate: ab 01234"] * 3, settings, 40))
    found = count_tokens(Corpus(recipe, task), "train", 5)
    [note] = notes(recipe, {"train": {"rows": 5, "bad_rows": {}, "tokens": found.report()}})
    assert note.startswith("data.train: 5 of 5 rows begin with task.prefix='translate:'")


# -- unknown tokens ----------------------------------------------------------------------------------------------------


def chinese(rows: int) -> list[dict[str, Any]]:
    return [{"de": f"Satz {i}", "en": HANZI[i % 250 : i % 250 + 20]} for i in range(rows)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_an_alphabet_that_is_too_small_is_refused(tmp_path, kind):
    write(tmp_path, chinese(300))
    with pytest.raises(
        DataError, match=r'data\.train: \d+\.\d% of the tokens of "trg" are unknown \(such as '
    ) as caught:
        counted(tmp_path, kind, 60, tokenizer={"train": {"kind": kind, "limit_alphabet": 60}})
    assert caught.value.exit_code == 3
    assert any(char in str(caught.value) for char in HANZI)
    assert "60 (limit_alphabet)" in str(caught.value)
    assert "tokenizer.train.kind=byte_bpe" in str(caught.value)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_tokenizer_of_other_texts_is_refused(tmp_path, kind):
    write(tmp_path, chinese(60))
    recipe = Recipe.parse(
        tiny_recipe(tmp_path, data={"validation": None, "test": None}, tokenizer={"train": None, "pretrained": "there"})
    )
    settings = TokenizerTraining(kind=kind, vocab_size=60)  # type: ignore[arg-type]
    task = make_task(recipe, train_tokenizer(["Satz 0123456789 " * 9] * 9, settings, 40))
    with pytest.raises(
        DataError, match=r'of the tokens of "trg" are unknown .*more than 20%.*tokenizer \'there\' was not'
    ):
        count_tokens(Corpus(recipe, task), "train", 60)


def test_known_and_byte_level_tokenizers_have_no_unknown_tokens(tmp_path):
    write(tmp_path, chinese(300))
    for kind, alphabet in (("bpe", 1000), ("byte_bpe", 60)):
        found, _ = counted(tmp_path, kind, alphabet, data={"max_length": 120})
        assert sum(found.unknown.values()) == 0
        assert found.report()["unknown"] == {"src": 0.0, "trg": 0.0}


def test_a_few_unknown_tokens_are_a_warning(tmp_path):
    write(tmp_path, [*chinese(20), *({"de": "ab cd " * 3, "en": "cd ab " * 3} for _ in range(300))])
    found, task = counted(tmp_path, alphabet=20)
    share = found.report()["unknown"]["trg"]
    assert 0.02 < share < 0.2
    facts = {"rows": 320, "bad_rows": {}, "labels": {}, "tokens": found.report()}
    [note] = notes(task.recipe, {"train": facts})
    assert note.startswith(f'data.train: {share:.1%} of the tokens of "trg" are unknown (such as')
    lines = sentences("facts.txt.jinja", data={"train": facts}, seconds=-1)
    assert f"Unknown tokens: train src 1.60%, train trg {share:.2%}" in lines


# -- splits and classes ------------------------------------------------------------------------------------------------


def labelled(counts: dict[str, int], start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"{label} {start + i}", "label": label} for label, n in counts.items() for i in range(n)]


def class_notes(folder: Path, **data: Any) -> list[str]:
    section = {"kind": "classification", "labels": ["a", "b", "c"]}
    model = {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64}
    recipe = Recipe.parse(
        tiny_recipe(folder, data={"columns": {}, "test": None, **data}) | {"task": section, "model": model}
    )
    roles = {"text": Text(), "label": Label("abc")}
    found = {}
    for split in ("train", "validation", "test"):
        if (source := open_split(recipe.data, split)) is not None:  # type: ignore[arg-type]
            found[split] = survey(source, recipe.data, roles, split).report()  # type: ignore[arg-type]
    return notes(recipe, found)


def test_classes_without_rows(tmp_path):
    write(tmp_path, labelled({"a": 30, "b": 3}))
    write(tmp_path, labelled({"a": 5}), "validation")
    assert class_notes(tmp_path) == [
        "data.train: no row of class 'c'",
        "data.validation: all 5 rows are of one class, 'a': scores say little",
    ]
    write(tmp_path, labelled({"b": 9}))
    assert class_notes(tmp_path, validation=None) == [
        "data.train: all 9 rows are of one class, 'b': a model can learn nothing but to answer it"
    ]
    write(tmp_path, labelled({"a": 30, "b": 30, "c": 30}))
    assert class_notes(tmp_path, validation=None) == []


def test_a_file_that_is_sorted_by_label_and_longer_than_a_block(tmp_path):
    rows = labelled({"a": 600, "b": 300, "c": 300})
    write(tmp_path, rows)
    small = {"lanes": 4, "block_rows": 100, "validation": None}
    [note] = class_notes(tmp_path, **small)
    assert note == (
        "data.train: label 'a' is 0% of rows 801 to 1,200 and 75% of the rows before them: the files seem sorted by "
        "label. Rows are mixed within a block of each lane only (data.block_rows), so some steps of an epoch see other "
        "labels than others. `rankzero prepare` shuffles all rows; or set data.block_rows=1200"
    )
    # the first block is much like all rows, but the rest is of one class
    [note] = class_notes(tmp_path, **{**small, "block_rows": 270})
    assert "label 'c' is 100% of rows 1,081 to 1,200 and 17% of the rows before" in note
    assert class_notes(tmp_path, **{**small, "block_rows": 1200}) == []
    assert class_notes(tmp_path, **{**small, "order": "sequential"}) == []  # as the recipe wants it
    random.Random(0).shuffle(rows)
    write(tmp_path, rows)
    assert class_notes(tmp_path, **small) == []


def mixed(counts: dict[str, int], start: int = 0) -> list[dict[str, Any]]:
    rows = labelled(counts, start)
    random.Random(0).shuffle(rows)
    return rows


def test_rows_that_are_sorted_behind_the_first_block(tmp_path):
    """The first block has the labels of all rows together, and so has the rest."""
    small = {"lanes": 4, "block_rows": 100, "validation": None}
    write(tmp_path, [*mixed({"a": 200, "b": 200, "c": 10}), *labelled({"a": 400, "b": 400}, 1000)])
    [note] = class_notes(tmp_path, **small)
    assert "label 'b' is 98% of rows 801 to 1,200 and 25% of the rows before them" in note


def test_files_of_one_class_each(tmp_path):
    """Several files are read one after the other, unless every lane has its own ones."""
    for name, rows in {"a": 500, "b": 600, "c": 700}.items():
        write(tmp_path, labelled({name: rows}), f"train-{name}")
    small = {"lanes": 4, "block_rows": 100, "validation": None, "train": "train-*.jsonl"}
    [note] = class_notes(tmp_path, **small)
    assert "label 'c' is 100% of rows 1,201 to 1,600 and 8% of the rows before them" in note
    assert class_notes(tmp_path, **{**small, "block_rows": 450}) == []
    for name in "abc":
        write(tmp_path, labelled({name: 600}), f"train-{name}")
    assert class_notes(tmp_path, **{**small, "lanes": 3}) == []  # a file for each lane, so a step has all classes
    for name in "abc":
        write(tmp_path, labelled({"a": 300, "b": 290 + ord(name) % 3, "c": 10}), f"train-{name}")
    [note] = class_notes(tmp_path, **{**small, "lanes": 3})  # but all lanes have first the one and then the other
    assert "label 'a' is 17% of rows 257 to 512 and 100% of the rows before them" in note


def test_a_corpus_of_a_mixture_that_is_sorted_by_label(tmp_path):
    for name in ("plain", "sorted"):
        (tmp_path / name).mkdir()
    write(tmp_path / "plain", mixed({"a": 300, "b": 300, "c": 300}))
    write(tmp_path / "sorted", labelled({"a": 300, "b": 300, "c": 300}))
    mix = [
        {"name": name, "root": str(tmp_path / name), "train": "train.jsonl", "weight": 1}
        for name in ("plain", "sorted")
    ]
    [note] = class_notes(tmp_path, lanes=4, block_rows=100, validation=None, train=[], mix=mix)
    assert note.startswith("data.mix.sorted.train: label 'a' is 0% of rows 401 to 800 and 75% of the rows before")
    assert note.endswith("`rankzero prepare` shuffles all rows")


def test_many_labels_drift_together():
    """Of 200 labels in order, a part has 20, each a twentieth of its rows."""
    rows = [f"{i // 50:03}" for i in range(10_000)]
    parts = LabelParts(1000)
    for label in rows:
        parts.add([label])
    assert parts.report() == {"label": "000", "share": 0.0, "before": 0.05, "rows": [1001, 2000]}
    for size in (1000, 300):
        random.Random(0).shuffle(rows)
        parts = LabelParts(size)
        for label in rows:
            parts.add([label])
        assert parts.report() is None


def test_keys_that_cut_rows_are_changed_in_the_middle_of_an_epoch(tmp_path, caplog):
    made = review_helpers.recipe(review_helpers.write_reviews(tmp_path), evaluation={"splits": []})
    values, run = made.model_dump(mode="json"), tmp_path / "run"

    def resumed(steps: int, *words: str) -> list[str]:
        caplog.clear()
        keys = [word.partition("=")[0] for word in words]
        more = Recipe.parse(values, [f"loop.max_steps={steps}", *words])
        with caplog.at_level(logging.WARNING, logger="rankzero"):
            train(more, run=run, allow_change=["loop.max_steps", *keys])
        return [record.getMessage() for record in caplog.records if "left out or used twice" in record.getMessage()]

    assert resumed(2) == resumed(3, "optim.lr=1e-4") == []
    [message] = resumed(4, "optim.lr=1e-4", "data.tokens_per_batch=64")
    assert message.startswith("data.tokens_per_batch changed in the middle of epoch 0: rows of a block")
    with pytest.raises(
        UsageError, match=r"data\.lanes=2: run directory .* has 4 lanes.*cannot be changed: use another"
    ):
        resumed(5, "optim.lr=1e-4", "data.tokens_per_batch=64", "data.lanes=2")


def test_wrong_paths_of_all_splits_are_found_before_any_row_is_read(tmp_path, monkeypatch):
    write_corpus(tmp_path, train=40, validation=12)
    monkeypatch.setattr("trainer.engine.setup.survey", pytest.fail)
    recipe = Recipe.parse(tiny_recipe(tmp_path, data={"validation": "validatoin.jsonl", "test": "tests/*.jsonl"}))
    with pytest.raises(DataError) as error:
        survey_data(RunDir(tmp_path / "run"), recipe)
    first, second = str(error.value).split("\n")
    assert first.startswith("data.validation='validatoin.jsonl': no file matches below data.root=")
    assert first.endswith("nearest: validation.jsonl, train.jsonl, test.jsonl")
    assert second.startswith("data.test='tests/*.jsonl': no file matches")


def test_a_share_held_out_that_misses_a_class(tmp_path):
    write(tmp_path, labelled({"a": 90, "b": 90, "c": 1}))
    [note] = class_notes(tmp_path, validation=0.1)
    assert note == (
        "data.validation: no row of class 'c' (1 in data.train): the share data.validation=0.1, drawn by hash, is "
        "too small. Raise it"
    )


def test_a_run_warns_of_truncated_and_shared_rows_and_predict_marks_truncated_ones(tmp_path, caplog):
    write_corpus(tmp_path / "data", train=120, validation=12)
    lines = (tmp_path / "data/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "data/extra.jsonl").write_text("".join(lines[:9]), encoding="utf-8")
    sections: dict[str, dict[str, Any]] = {
        "data": {"max_length": 16, "test": "extra.jsonl", "lanes": 2},
        "loop": {"max_steps": 2, "eval_every": 2, "save_every": 2},
        "evaluation": {"splits": ["validation"], "beam_size": 1, "bootstrap": 2},
    }
    recipe = Recipe.parse(tiny_recipe(tmp_path / "data", **sections))
    with caplog.at_level(logging.WARNING, logger="rankzero"):
        train(recipe, run=tmp_path / "run")
    data = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))["data"]
    cut = data["train"]["tokens"]["cut"]
    assert min(cut.values()) > 6
    assert f"data.train: {cut['src']} of 120 rows" in caplog.text
    assert 'are cut in "src" to data.max_length=16: raise it, or divide long texts' in caplog.text
    assert (data["test"]["in_train"], data["validation"]["in_train"]) == (9, 0)
    assert "data.test: 9 of 9 rows have an input that is also in data.train" in caplog.text
    page = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert f"train {data['train']['tokens']['cut_rows']} of 120" in page
    assert "test 9 of 9" in page
    short, long = predict(tmp_path / "run", ["der Hund", "der Hund " * 40])
    assert list(short) == ["text", "prediction", "score"]
    assert list(long) == ["text", "prediction", "score", "truncated"]
    assert long["truncated"] is True

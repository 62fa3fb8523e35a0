"""Mixed corpora before the training: the recipe, rows and bad rows of each corpus, held-out rows, the tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import review_helpers
from mix_helpers import LONG, SHORT, mixed, write_corpora

from trainer.data.fingerprints import fingerprint
from trainer.data.quotas import Quotas
from trainer.data.sources import MixedSource, open_split
from trainer.data.survey import survey
from trainer.data.survey_counts import Numbers
from trainer.data.tokenization import training_texts
from trainer.engine.corpus import Corpus
from trainer.errors import DataError, UsageError
from trainer.recipe import changed_keys
from trainer.recipe_loading import Recipe, check_recipe
from trainer.task.registry import roles_of

A, B = {"name": "a", "train": "a.jsonl"}, {"name": "b", "train": "b.jsonl"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))


# -- recipe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        ([{**A, "weight": 1, "rows_per_epoch": 5}], {}, r"data: mix\.a: weight and rows_per_epoch are both set"),
        ([{**A, "weight": 1}, B], {}, r"data: mix\.b: give weight or rows_per_epoch, or set mix_temperature"),
        ([{**A, "weight": 1}, {**B, "rows_per_epoch": 5}], {}, r"mix\.b has rows_per_epoch and mix\.a has weight"),
        ([{**A, "weight": 1}, {**A, "weight": 2}], {}, "two entries have the name 'a'"),
        ([{**A, "weight": 1}], {"mix_temperature": 2}, r"mix\.a\.weight and mix_temperature are both set"),
        ([{**A, "weight": 1}], {"train": "x.jsonl"}, r"mix and train='x\.jsonl' are both set: leave train out"),
        ([], {"train": "x.jsonl", "mix_temperature": 2}, "mix_temperature is set without mix"),
        ([], {}, r"data\.train: required and not given"),
        ([{**A, "weight": 1}, {**B, "wieght": 2}], {}, r"data\.mix\.1\.wieght: unknown key; did you mean 'weight'"),
        ([{**A, "weight": 0}], {}, r"data\.mix\.0\.weight: Input should be greater than 0"),
        ([{"name": "a", "weight": 1}], {}, r"data\.mix\.0\.train: required and not given"),
        ([{**A, "name": "a/b", "weight": 1}], {}, r"data\.mix\.0\.name: 'a/b' has another form; use letters"),
        ([{**A, "weight": 1, "on_end": "drop"}], {}, r"data\.mix\.0\.on_end: Input should be 'stop' or 'repeat'"),
    ],
)
def test_a_wrong_mixture_is_named(entries: list[Any], more: dict[str, Any], message: str) -> None:
    values = review_helpers.recipe(Path("x")).model_dump(mode="json")
    del values["data"]["train"], values["data"]["mix"], values["data"]["mix_temperature"]
    values["data"] |= {**({"mix": entries} if entries else {}), **more}
    with pytest.raises(UsageError, match=message):
        Recipe.parse(values)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": "x"}, r"data\.mix\.a\.columns\.txt: no role of the task; its roles: text, label"),
        ({"weight": "w"}, "such as weight, is set in data.columns, too"),
    ],
)
def test_columns_of_a_corpus_are_roles(columns: dict[str, str], message: str) -> None:
    made = mixed(Path("x"), {**A, "weight": 1, "columns": columns})
    with pytest.raises(UsageError, match=message):
        check_recipe(made)


def test_changed_keys_name_the_corpus_and_its_root_is_free() -> None:
    before, after = (
        mixed(Path("x"), {**A, "weight": 1, "root": root}, {**B, "weight": weight}).model_dump(mode="json")
        for root, weight in (("here", 1), ("there", 2))
    )
    assert changed_keys(before, after) == {"data.mix.b.weight": (1.0, 2.0)}
    fewer = mixed(Path("x"), {**A, "weight": 1, "root": "here"}).model_dump(mode="json")
    assert changed_keys(before, fewer)["data.mix"] == (["a", "b"], ["a"])


def test_a_resolved_recipe_is_read_again(root: Path) -> None:
    made = mixed(root)
    assert Recipe.parse(made.model_dump(mode="json")) == made
    assert Recipe.parse(review_helpers.recipe(root).model_dump(mode="json")).data.mix == []


def data_of(*entries: dict[str, Any], **more: Any) -> Any:
    return mixed(Path("x"), *entries, data=more).data


def test_weights_epochs_and_temperature() -> None:
    stop, again = {**A, "weight": 3}, {**B, "weight": 1, "on_end": "repeat"}
    found = Quotas.of(data_of(stop, again), [300, 7])
    assert (found.weights, found.epoch_rows, found.expected_rows) == ([3, 1], None, 400)
    both = Quotas.of(data_of({**stop, "on_end": "repeat"}, again), [300, 7])
    assert (both.epoch_rows, both.expected_rows) == (307, 307)
    assert Quotas.of(data_of({**stop, "on_end": "repeat"}, again), [300, None]).epoch_rows is None
    exact = Quotas.of(data_of({**A, "rows_per_epoch": 30}, {**B, "rows_per_epoch": 10, "on_end": "repeat"}), [15, 9])
    assert (exact.weights, exact.epoch_rows, exact.expected_rows) == ([30, 10], 40, 20)
    warm = Quotas.of(data_of(A, B, mix_temperature=2), [900, 100])
    assert warm.shares == pytest.approx([0.75, 0.25])
    assert warm.expected_rows == 400, "the smaller one ends the epoch"
    with pytest.raises(UsageError, match=r"data\.mix_temperature needs the number of rows"):
        Quotas.of(data_of(A, B, mix_temperature=2), [900, None])


# -- rows --------------------------------------------------------------------------------------------------------------


def train_of(made: Any, split: Any = "train") -> MixedSource:
    found = open_split(made.data, split, roles_of(made))
    assert isinstance(found, MixedSource)
    return found


def test_each_corpus_has_its_columns_and_its_counts(root: Path) -> None:
    made = mixed(root, data={"validation": None})
    found = survey(train_of(made), made.data, roles_of(made))
    assert {name: of.rows for name, of in found.corpora.items()} == {"short": SHORT, "long": LONG}
    assert (found.rows, found.labels.total(), len(found.inputs)) == (SHORT + LONG, SHORT + LONG, SHORT + LONG)
    assert found.report()["corpora"]["long"]["rows"] == LONG
    assert found.fingerprint == fingerprint(train_of(made))
    names = {train_of(made).name_of(row.id).partition(":")[0] for row in train_of(made)}
    assert names == {"short/train.jsonl", "long/train.jsonl"}


def test_a_bad_row_names_its_corpus(root: Path, tmp_path: Path) -> None:
    lines = (root / "long" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:2], '{"stars": 1}', *lines[3:]]), encoding="utf-8")
    entry = {"name": "bad", "root": str(tmp_path), "train": "bad.jsonl", "weight": 1}
    entry["columns"] = {"text": "review", "label": "stars"}
    good = {"name": "short", "root": str(root / "short"), "train": "train.jsonl", "weight": 1}
    made = mixed(root, good, entry)
    with pytest.raises(DataError, match=r'^data\.mix\.bad\.train: bad/bad\.jsonl, line 3 \(row 3\), column "review"'):
        survey(train_of(made), made.data, roles_of(made))
    made = mixed(root, good, entry, data={"on_bad_row": "skip", "validation": None})
    found = survey(train_of(made), made.data, roles_of(made))
    assert [of.bad.total() for of in found.corpora.values()] == [0, 1]
    assert found.bad.total() == 1


def test_missing_files_of_all_corpora_are_named(root: Path) -> None:
    made = mixed(root, {**A, "weight": 1}, {**B, "root": "/nowhere", "weight": 1})
    with pytest.raises(DataError) as caught:
        train_of(made)
    first, second = str(caught.value).splitlines()
    assert "data.mix.a.train" in first
    assert "data.mix.b.root='/nowhere'" in second


def test_a_corpus_with_fewer_rows_than_lanes_is_refused(root: Path) -> None:
    made = mixed(root, data={"lanes": 100})
    with pytest.raises(DataError, match=r"data\.lanes=100 is more than the \d+ rows of data\.mix\.short\.train"):
        survey(train_of(made), made.data, roles_of(made))


def test_a_share_of_each_corpus_is_held_out(root: Path) -> None:
    made = mixed(root, data={"validation": 0.2})
    corpus = Corpus(made, review_helpers.task_of(made))
    train, held_out = ({name for name, _ in corpus.texts(split)} for split in ("train", "validation"))
    assert not train & held_out
    assert len(train | held_out) == SHORT + LONG
    counts = Counter(name.partition("/")[0] for name in held_out)
    assert counts["short"] == pytest.approx(0.2 * SHORT, abs=9)
    assert counts["long"] == pytest.approx(0.2 * LONG, abs=20)
    assert survey(train_of(made, "validation"), made.data, roles_of(made), "validation").rows == len(held_out)


def test_the_tokenizer_sees_the_corpora_in_their_proportions(root: Path) -> None:
    """The short corpus has 60 rows and a share of 0.9: it comes several times. Of the long one some rows are taken."""
    entries = [
        {"name": "short", "root": str(root / "short"), "train": "train.jsonl", "weight": 9},
        {"name": "long", "root": str(root / "long"), "train": "*.jsonl", "weight": 1, "on_end": "repeat"},
    ]
    entries[1]["columns"] = {"text": "review", "label": "stars"}
    made = mixed(root, *entries, data={"validation": None})
    counts = {"rows": SHORT + LONG, "corpora": {"short": {"rows": SHORT}, "long": {"rows": LONG}}}
    texts = list(training_texts(train_of(made), made.data, roles_of(made), 10**6, counts))
    found = Counter(text.split()[0] for text in texts)
    assert found["short"] == pytest.approx(0.9 * (SHORT + LONG), abs=20)
    assert found["long"] == pytest.approx(0.1 * (SHORT + LONG), abs=20)
    assert texts == list(training_texts(train_of(made), made.data, roles_of(made), 10**6, counts))


def test_numbers_of_two_parts_are_those_of_all() -> None:
    values = [1.0, 4.0, 2.5, -3.0, 8.0, 0.25]
    parts, whole = [Numbers(), Numbers()], Numbers()
    for i, value in enumerate(values):
        parts[i > 1].add(value)
        whole.add(value)
    parts[0].join(parts[1])
    assert parts[0].report() == pytest.approx(whole.report())


def test_entries_without_a_root_are_of_the_data_set() -> None:
    values = mixed(Path("x"), {**A, "weight": 1}, {**B, "weight": 1, "root": "s3://b"}).model_dump(mode="json")
    values["data"] |= {"dataset": "owner/name", "root": None}
    del values["data"]["train"]
    data: Any = Recipe.parse(values).data
    own, other = (data.of_corpus(entry) for entry in data.mix)
    assert (own.dataset, own.root, own.train) == ("owner/name", "hf://datasets/owner/name", "a.jsonl")
    assert (other.dataset, other.root, other.train) == (None, "s3://b", "b.jsonl")

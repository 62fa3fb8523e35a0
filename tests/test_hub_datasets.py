"""`data.dataset`: configurations and splits of a folder, of the cache and of the Hub; its commit is pinned."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import hooks
import hub_helpers
import huggingface_hub
import processes
import pytest
import review_helpers
from hub_helpers import COMMIT, CONFIGS, NAME, cached, hub, write

from trainer.data import hub_datasets
from trainer.data.hub_datasets import pinned
from trainer.data.sources import open_split
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig


def shards(data: DataConfig, split: Any = "train") -> list[str]:
    source = open_split(data, split)
    assert source is not None
    assert sum(1 for _ in source) > 0
    return [shard.name for shard in source.shards]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget what was found in an earlier test."""
    forget()
    yield
    forget()


def forget() -> None:
    hub_datasets._place.cache_clear()
    hub_datasets._commit.cache_clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = ["long/train-00000-of-00002.parquet", "long/train-00001-of-00002.parquet", "s/all.parquet"]
    return write(
        tmp_path / "reviews", dict.fromkeys([*files, "long/extra-0.parquet", "long/extra-1.parquet"], 3), CONFIGS
    )


@pytest.mark.parametrize(
    ("config", "split", "names"),
    [
        (":long", "train", ["long/train-00000-of-00002.parquet", "long/train-00001-of-00002.parquet"]),
        (":long", "unlabeled", ["long/extra-0.parquet", "long/extra-1.parquet"]),
        (":short", "train", ["s/all.parquet"]),
        ("", "train", ["s/all.parquet"]),
    ],
)
def test_configurations_of_a_card(folder, config, split, names):
    assert shards(DataConfig(dataset=f"{folder}{config}", train=split)) == names


@pytest.mark.parametrize(
    ("files", "config", "splits"),
    [
        (["train.jsonl", "dev.jsonl", "notes.md"], "", {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}),
        (["rows.jsonl", "dataset_infos.json", "en/config.json"], "", {"train": ["rows.jsonl"]}),
        (
            ["data/train-00000-of-00001.parquet", "data/extra-00000-of-00001-8f3a.parquet", "train.jsonl"],
            "",
            {"train": ["data/train-00000-of-00001.parquet"], "extra": ["data/extra-00000-of-00001-8f3a.parquet"]},
        ),
        (
            ["mrpc/train/0000.parquet", "mrpc/test/0000.parquet", "cola/train/0000.parquet"],
            ":mrpc",
            {"train": ["mrpc/train/0000.parquet"], "test": ["mrpc/test/0000.parquet"]},
        ),
        (["reviews.parquet", ".git/x.parquet"], "", {"train": ["reviews.parquet"]}),
        (["en/my_train_set.parquet", "en/eval.parquet"], ":en", {"test": ["en/eval.parquet"]}),
    ],
)  # fmt: skip
def test_splits_by_the_names_of_files(tmp_path, files, config, splits):
    write(tmp_path, dict.fromkeys(files, 2))
    for split, names in splits.items():
        assert shards(DataConfig(dataset=f"{tmp_path}{config}", train=split)) == names


@pytest.mark.parametrize(
    ("config", "train", "says"),
    [
        (":other", "train", "no configuration 'other'.*one of long, short"),
        (":long", "test", "has no such split; it has train, unlabeled. Set data.train"),
        (":long", ["train", "test"], "'test'.*has no such split"),
    ],
)
def test_missing_configurations_and_splits_are_named(folder, config, train, says):
    with pytest.raises(DataError, match=says):
        open_split(DataConfig(dataset=f"{folder}{config}", train=train), "train")


def test_other_mistakes(tmp_path, folder):
    outside = write(tmp_path / "x", {"a.parquet": 1}, CONFIGS.replace("long/train-*", "../../secret.parquet"))
    with pytest.raises(DataError, match="not below it"):
        open_split(DataConfig(dataset=f"{outside}:long"), "train")
    bomb = "---\na: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{to}: &{to} [{', '.join([f'*{of}'] * 10)}]\n" for of, to in pairwise("abcdefghi")
    )
    for card in (f"{bomb}---\n", "---\nconfigs: [1]\n---\n", "---\nconfigs: {\n---\n"):
        with pytest.raises(DataError, match="no valid `configs`"):
            open_split(DataConfig(dataset=str(write(tmp_path / "z", {"a.parquet": 1}, card))), "train")
    with pytest.raises(DataError, match=r"no files in a known format in de/;.*folders there: en"):
        open_split(DataConfig(dataset=f"{write(tmp_path / 'y', {'en/a.csv': 1})}:de"), "train")
    with pytest.raises(UsageError, match="not a mapping"):
        open_split(DataConfig(dataset=str(folder), train={"src": "a"}), "train")
    with pytest.raises(ValueError, match="both set"):
        DataConfig(dataset="me/reviews", root="elsewhere", train="train")
    with pytest.raises(DataError, match=r"me/reviews, revision main, cannot be read.*hf download --repo-type dataset"):
        open_split(DataConfig(dataset=NAME), "train")  # tests are offline, and it is not in the cache


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """A fake endpoint. Its main branch has only a script; the other branch is the conversion of the Hub."""
    write(tmp_path / "main", {"reviews.py": 1})
    write(tmp_path / "refs/convert/parquet", {"long/train/0000.parquet": 5, "long/test/0000.parquet": 3})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub(tmp_path) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        data = DataConfig(dataset=f"{NAME}:long", test="test")
        assert (shards(data), shards(data, "test")) == (["long/train/0000.parquet"], ["long/test/0000.parquet"])
        assert pinned(data).revision == "c0" * 20
        write(tmp_path / "main", {"long/train.parquet": 4}, CONFIGS.replace("train-*", "train.parquet"))
        forget()
        assert pinned(data).revision == COMMIT
        source = open_split(pinned(data), "train")
        assert source is not None
        assert [dict(row.values) for row in source] == hub_helpers.rows("long/train.parquet", 4)


def test_a_run_keeps_the_commit_of_its_first_start(tmp_path):
    """Without a connection the cache is read. A branch that moves changes no run."""
    write(cached(tmp_path / "cache"), {"train.jsonl": 60, "dev.jsonl": 20})
    made = review_helpers.recipe(
        tmp_path,
        data={"root": f"hf://datasets/{NAME}", "dataset": NAME, "train": "train", "test": "validation"},
        loop={"max_steps": 2, "eval_every": 2, "save_every": 2},
    )
    recipe, run = review_helpers.written(tmp_path, made), tmp_path / "run"
    hook = functools.partial(hooks.hub_cache, tmp_path / "cache")
    processes.train(recipe, run, world=2, hook=hook).check()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["dataset"] == {"name": NAME, "revision": COMMIT}
    assert manifest["data"]["test"]["rows"] == 20
    write(cached(tmp_path / "cache", "b2" * 20), {"train.jsonl": 50, "dev.jsonl": 20})
    processes.train(recipe, run, hook=hook).check()
    ended = processes.train(recipe, run, "data.revision=main", hook=hook).check(2)
    assert f"data.revision: '{COMMIT}' -> '{'b2' * 20}'" in ended.text


def test_a_resolved_recipe_is_read_anywhere(tmp_path, monkeypatch):
    """`predict` needs no data: a folder that is not there any more, or is by now, changes nothing."""
    write(tmp_path / "here/copy", {"train.jsonl": 2})
    monkeypatch.chdir(tmp_path / "here")
    made = DataConfig(dataset="copy:en")
    assert (made.root, made.config, made.train) == ("copy", "en", "train")
    monkeypatch.chdir(tmp_path)
    assert DataConfig(**made.model_dump()) == made
    hub = DataConfig(dataset="copy:en")
    assert (hub.root, hub.config) == ("hf://datasets/copy", "en")
    monkeypatch.chdir(tmp_path / "here")
    assert DataConfig(**hub.model_dump()) == hub

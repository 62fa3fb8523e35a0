"""Rows from Python: written once below the run directory, resumed without the program, refused when they differ."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import hooks
import numpy as np
import pandas as pd
import polars as pl
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import review_helpers

from trainer.api import has_inputs, predict
from trainer.data.cleaning import clean_row
from trainer.data.python_rows import split_overrides, with_own_rows, write_rows
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.errors import DataError, RankzeroError, UsageError
from trainer.export import backend
from trainer.recipe.sections import DataConfig
from trainer.rundir import RunDir
from trainer.task.registry import roles_of

ROWS = [{"text": f"a film, part {i}", "label": i % 2, "note": None} for i in range(25)]
TABLE = pa.Table.from_pylist(ROWS)
CLASSES = datasets.Features(
    {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
)


def as_object_frame() -> pd.DataFrame:
    """A frame with an index, and a column that Arrow cannot hold."""
    frame = pd.DataFrame(ROWS, index=range(100, 125))
    frame["note"] = [object() if i % 2 else {"a": i} for i in range(25)]
    return frame


def of_two_types() -> Iterator[dict[str, Any]]:
    """Rows without features, whose labels are first whole numbers and later others."""
    yield from ({"text": "a film", "label": i // 1000 / 2 or 0} for i in range(2000))


def with_classes() -> datasets.Dataset:
    return datasets.Dataset.from_list([{k: row[k] for k in ("text", "label")} for row in ROWS], features=CLASSES)


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "generator": lambda: (dict(row) for row in ROWS),
    "numpy scalars": lambda: [{"text": np.str_(row["text"]), "label": np.int64(row["label"])} for row in ROWS],
    "pandas": as_object_frame,
    "pandas strings and categories": lambda: pd.DataFrame(
        {"text": pd.array([r["text"] for r in ROWS], "string"), "label": pd.Categorical([r["label"] for r in ROWS])}
    ),
    "polars": lambda: pl.DataFrame(ROWS),
    "polars lazy": lambda: pl.DataFrame(ROWS).lazy(),
    "arrow": lambda: TABLE,
    "arrow batches": lambda: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(7)),
    "dataset": with_classes,
    "dataset with an index mapping": lambda: datasets.Dataset.from_list(ROWS[::-1]).select(range(24, -1, -1)),
    "iterable dataset": lambda: with_classes().to_iterable_dataset(),
}


def recipe_for(root: Path, **data: Any) -> Any:
    return review_helpers.recipe(root, data={"root": str(root), "train": "train.parquet", "test": None, **data})


def write(tmp_path: Path, rows: Any, **data: Any) -> tuple[RunDir, Any]:
    run = RunDir(tmp_path)
    recipe = recipe_for(run.data, **data)
    write_rows(run, {"train": rows}, recipe, roles_of(recipe))
    return run, recipe


def rows_of(recipe: Any) -> list[Any]:
    roles = roles_of(recipe)
    source = open_split(recipe.data, "train", roles)
    assert source is not None
    return [clean_row(row, roles, recipe.data.columns, str) for row in source]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_has_the_same_content(tmp_path, kind):
    run, recipe = write(tmp_path, KINDS[kind]())
    assert rows_of(recipe) == [{"text": row["text"], "label": str(row["label"])} for row in ROWS]
    path = run.data / "train.parquet"
    before = path.stat()
    write(tmp_path, ROWS)  # the same rows as a list: the file is kept
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in run.data.iterdir()] == ["train.parquet"]


def test_class_names_of_a_data_set_are_labels(tmp_path):
    _, recipe = write(tmp_path, with_classes())
    named = recipe.model_copy(
        update={"task": recipe.task.model_copy(update={"labels": {"positive": "p", "negative": "n"}})}
    )
    assert [row["label"] for row in rows_of(named)[:3]] == ["negative", "positive", "negative"]


def test_nested_columns_and_later_rows_without_a_value(tmp_path):
    rows = [{"r": {"t": row["text"]}, "label": row["label"]} for row in ROWS]
    _, recipe = write(tmp_path, [*rows, {"r": {}}], columns={"text": "r.t"})
    assert rows_of(recipe)[:-1] == [{"text": row["text"], "label": str(row["label"])} for row in ROWS]
    assert rows_of(recipe)[-1].reason == "is null"


@pytest.mark.parametrize("missing", [float("nan"), None, np.nan], ids=str)
@pytest.mark.parametrize("frame", [list, pd.DataFrame, pl.DataFrame], ids=["list", "pandas", "polars"])
def test_a_missing_label_is_refused_by_its_row(tmp_path, frame, missing):
    rows = [{"text": row["text"], "label": float(row["label"])} for row in ROWS]
    rows[17]["label"] = missing
    _, recipe = write(tmp_path, frame(rows))
    source = open_split(recipe.data, "train", roles_of(recipe))
    with pytest.raises(DataError, match=r'train.parquet:17 \(row 18\), column "label"'):
        survey(source, recipe.data, roles_of(recipe))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"review": "a", "label": 0}], r"data\['train'\] has no column 'text'.*data.columns=\{text: review\}"),
        ([{"t": {"text": "a"}, "label": 0}], r"data.columns=\{text: t.text\}"),
        (pd.DataFrame({"review": ["a"], "label": [0]}), r"columns there: review, label.*\{text: review\}"),
        (datasets.Dataset.from_list([{"text": "a", "sentiment": 0}]), r"\{label: sentiment\}"),
        ([*ROWS, {"text": 7, "label": 1}], r"column 'text' holds 7 in row 25, which has another type"),
        ([*ROWS, "a film"], "row 25 is a str, not a dict"),
        ([], "has no rows"),
        (7, "is a int; rows are a list"),
        (pd.DataFrame({"text": ["a", 1], "label": [0, 1]}), r"cannot be written as Parquet.*one type"),
        (datasets.IterableDataset.from_generator(of_two_types), "Parquet: Table schema does not match"),
    ],
    ids=["name", "path", "pandas", "dataset", "type", "no dict", "empty", "no rows", "mixed", "two types"],
)  # fmt: skip
def test_rows_that_cannot_be_used(tmp_path, rows, says):
    with pytest.raises(DataError, match=says):
        write(tmp_path, rows)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("rows", [ROWS, {"validation": ROWS}, {"train": ROWS, "dev": ROWS}, pd.DataFrame(ROWS)])
def test_data_is_a_mapping_of_splits(rows):
    with pytest.raises(UsageError, match=r'give \{"train": rows\}'):
        split_overrides(rows)


# -- runs --------------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return review_helpers.write_reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, world) -> Path:
    """A run on rows of two ranks that is killed, moved, and resumed by the command line."""
    folder = tmp_path_factory.mktemp("run")
    recipe = review_helpers.written(folder, review_helpers.recipe(world))
    data = {split: pd.DataFrame(read(world / f"{split}.jsonl")) for split in ("train", "test")}
    killed = functools.partial(hooks.at_micro_batch, 6, 1)
    ended = processes.train(recipe, folder / "first", world=2, hook=functools.partial(hooks.with_rows, data, killed))
    assert set(ended.codes) != {0}, ended.text
    assert (folder / "first" / "checkpoints" / "step-00000004").is_dir(), ended.text
    moved = folder / "moved"
    shutil.move(folder / "first", moved)
    processes.train(moved / "recipe.yaml", moved, world=2).check()
    return moved


def test_a_run_on_rows_is_the_run_on_their_files(tmp_path, world, run):
    files = review_helpers.train(tmp_path, review_helpers.recipe(world), "files", ranks=2)
    assert review_helpers.metrics(run) == review_helpers.metrics(files)
    weights = [(of / "model" / "model.safetensors").read_bytes() for of in (run, files)]
    assert weights[0] == weights[1]


def test_the_same_rows_resume_and_others_are_refused(tmp_path, world, run):
    run = shutil.copytree(run, tmp_path / "run")
    path = run / "data" / "train.parquet"
    before, rows = path.read_bytes(), {split: read(world / f"{split}.jsonl") for split in ("train", "test")}
    recipe = review_helpers.written(tmp_path, review_helpers.recipe(world))
    processes.train(recipe, run, hook=functools.partial(hooks.with_rows, rows)).check()
    ended = processes.train(recipe, run, hook=functools.partial(hooks.with_rows, {**rows, "train": rows["train"][1:]}))
    assert ended.codes == [3]
    assert "data['train'] has changed since this run began" in ended.text
    assert path.read_bytes() == before


def test_predict_takes_rows(run):
    texts = ["a good film", "bad acting", ""]
    wanted = list(predict(run, texts))
    frames: list[Any] = [pd.DataFrame({"text": texts}), pl.DataFrame({"text": texts, "id": [1, 2, 3]})]
    dicts = [{"text": text, "other": object()} for text in texts]
    for rows in (dicts, iter(dicts), datasets.Dataset.from_dict({"text": texts}), *frames):
        assert list(predict(run, rows)) == wanted
    [missing, null] = predict(run, [{"review": "a"}, {"text": None}])
    assert missing["error"] == "DataError: column 'text' is missing; columns here: review"
    assert null["error"] == "DataError: column 'text' is null"
    assert (has_inputs(run, {"text": "a"}), has_inputs(run, {"review": "a"})) == (True, False)
    for wrong, says in (("a good film", "a single str"), (["a", 7], "row 1 is a int"), (7, "a single int")):
        with pytest.raises(RankzeroError, match=says):
            list(predict(run, wrong))


def test_a_root_that_exists_is_kept(tmp_path):
    run, recipe = write(tmp_path / "run", ROWS)
    assert with_own_rows(recipe, run) is recipe
    gone = recipe.model_copy(update={"data": DataConfig(root="/nowhere/data", train="train.parquet")})
    assert with_own_rows(gone, run).data.root == str(run.data)
    assert pq.read_metadata(run.data / "train.parquet").num_rows == len(ROWS)


def predicted(run: Path, lines: list[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    stdin = "".join(line + "\n" for line in lines).encode()
    ended = processes.run_ranks(["predict", run, *words], processes.next_logs(run), stdin=stdin).check(code)
    return [json.loads(line) for line in ended.out[0].splitlines()]


def test_json_lines_on_stdin(tmp_path, run):
    run = shutil.copytree(run, tmp_path / "run")
    texts = ["a good film", "{bad} acting"]
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    assert predicted(run, [*rows, ""]) == list(predict(run, texts))
    assert predicted(run, rows, "--format", "text") == list(predict(run, rows))
    other = ['{"review": "a"}', "a film"]  # the first line lacks the run's column: both lines are texts
    assert [record["text"] for record in predicted(run, other)] == other
    lines = [rows[0], "a film", *other[:1], rows[1]]
    first, not_json, no_text, last = predicted(run, lines, "--format", "jsonl", code=3)
    assert [first, last] == list(predict(run, texts))
    assert not_json["error"] == "DataError: column 'text' is missing; columns here: (the line is not a JSON object)"
    assert no_text["error"] == "DataError: column 'text' is missing; columns here: review"


def test_a_row_of_a_pair(world):
    made = review_helpers.recipe(
        world, task={"pair": True}, data={"columns": {"text": "q.body", "text_pair": "answer"}}
    )
    task, row = review_helpers.task_of(made), {"q": {"body": "good\u00a0 film"}, "answer": "bad\tplot", "label": None}
    assert task.cleaned_row(row) == {"text": "good film", "text_pair": "bad plot"}
    assert task.line_of(row) == "good\u00a0 film\tbad\tplot"
    assert task.cleaned_row("good film\tbad plot") == task.cleaned_row(row)


def test_rows_for_an_artifact_are_lines_and_errors_keep_their_place(world):
    """The program of an artifact reads texts only, perhaps several in advance."""
    task = review_helpers.task_of(review_helpers.recipe(world))

    def answer(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        for text in list(texts):
            yield {"text": text, "label": text.upper()}

    rows = [{"text": None}, {"text": "a"}, "b", {"review": "c"}, {}, {"text": "d"}, {"text": 7}]
    found = list(backend._answer_rows(answer, task, rows))
    assert [record["text"] for record in found] == ["", "a", "b", "", "", "d", "7"]
    assert [record.get("label") for record in found] == [None, "A", "B", None, None, "D", None]
    assert found[0]["error"] == "DataError: column 'text' is null"
    assert found[6]["error"] == "DataError: column 'text' is not text but int: 7"
    assert list(backend._answer_rows(answer, task, [{}])) == [{"text": "", "error": found[4]["error"]}]

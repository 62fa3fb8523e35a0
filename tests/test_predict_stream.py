"""`rankzero predict` on a stream of lines: one answer for each line, in order, and bad lines by their numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import entity_helpers
import modes_helpers
import pytest
from typer.testing import CliRunner

import trainer.cli
from trainer import api
from trainer.engine.trained_run import PREDICT_WINDOW
from trainer.errors import DataError

LINES = PREDICT_WINDOW + 88  # more than one window
BAD = (3, PREDICT_WINDOW + 2, LINES)
QUIET = {"model": False, "onnx": False, "int8": False, "bench": 0}
Row = Callable[[random.Random], dict[str, Any]]
ANSWERS = {"multi": "labels", "regression": "value", "token_classification": "entities"}
KINDS = tuple(ANSWERS)


def row_of(kind: str) -> tuple[str, Row]:
    """Return the input column of a kind of run, and a function that draws a row."""
    return ("tokens", entity_helpers.sentence) if kind == "token_classification" else ("text", modes_helpers.topic)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained run of each kind. Read only."""
    root = tmp_path_factory.mktemp("streams")
    topics, names = modes_helpers.write_topics(root), entity_helpers.write_sentences(root / "names")
    recipes = {
        "multi": modes_helpers.recipe(topics, modes_helpers.MULTI, export=QUIET),
        "regression": modes_helpers.recipe(topics, modes_helpers.REGRESSION, export=QUIET),
        "token_classification": entity_helpers.recipe(names, export=QUIET),
    }
    for kind, recipe in recipes.items():
        api.train(recipe, ["evaluation.splits=[]", "loop.max_steps=2", "loop.eval_every=2"], run=root / kind)
    return {kind: root / kind for kind in recipes}


def predict(run: Path, lines: list[str]) -> tuple[list[dict[str, Any]], BaseException | None]:
    ended = CliRunner().invoke(trainer.cli.app, ["predict", str(run)], input="".join(f"{line}\n" for line in lines))
    return [json.loads(line) for line in ended.stdout.splitlines()], ended.exception


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_rows_are_answered_in_order(runs: dict[str, Path], kind: str) -> None:
    """Lines of text and rows of the same inputs have the same predictions."""
    column, draw = row_of(kind)
    drawn = random.Random(5)
    rows = [{column: draw(drawn)[column], "id": i} for i in range(LINES)]
    texts = [" ".join(row[column]) if column == "tokens" else row[column] for row in rows]
    as_text, failed = predict(runs[kind], texts)
    assert failed is None
    as_rows, failed = predict(runs[kind], [json.dumps(row) for row in rows])
    assert failed is None
    assert [record["text"] for record in as_text] == [record["text"] for record in as_rows] == texts
    assert all(ANSWERS[kind] in record and "error" not in record for record in as_text + as_rows)
    if kind != "token_classification":  # tokens may be split otherwise than a text
        assert as_text == as_rows


@pytest.mark.parametrize("kind", KINDS)
def test_bad_lines_are_named_by_number_and_the_others_answered(runs: dict[str, Path], kind: str) -> None:
    """Numbers are those of the input, where empty lines count."""
    column, draw = row_of(kind)
    drawn = random.Random(6)
    lines = [json.dumps({column: draw(drawn)[column]}) for _ in range(LINES)]
    for number, line in zip(BAD, ('{"text": ', '{"other": 1}', json.dumps({column: {"a": 1}})), strict=True):
        lines[number - 1] = line
    lines[1] = ""
    records, failed = predict(runs[kind], lines)
    assert len(records) == LINES - 1
    assert [i for i, record in enumerate(records) if "error" in record] == [number - 2 for number in BAD]
    assert all((ANSWERS[kind] in record) != ("error" in record) for record in records)
    assert isinstance(failed, DataError)
    numbers = ", ".join(map(str, BAD))
    assert f'3 lines have an "error" instead of a prediction: lines {numbers}. All other' in str(failed)

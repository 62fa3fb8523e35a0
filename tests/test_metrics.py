"""Scores compared with corpus_score of sacreBLEU, closed forms, and records in any order."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from trainer.errors import DataError, NumericsError
from trainer.evaluation.evaluate_metrics import Bleu, Chrf, Perplexity, Ter
from trainer.evaluation.metrics import bleu, chrf, score_translation, ter
from trainer.evaluation.predictions import read_predictions, write_predictions
from trainer.evaluation.resampling import bootstrap_interval, perplexity

TEXT = "a two man woman dog red blue house street plays with the ball , and runs ; it's in Paris near 3 trees ."
WORDS = TEXT.split()


def corpus(rows: int, seed: int = 1) -> list[dict[str, Any]]:
    """Targets of random words, predictions with words dropped, swapped and re-cased."""
    draw = random.Random(seed)
    records = []
    for row in range(rows):
        target = [draw.choice(WORDS) for _ in range(draw.randint(4, 16))]
        guess = [w.upper() if draw.random() < 0.05 else w for w in target if draw.random() > 0.1]
        if len(guess) > 3 and draw.random() < 0.3:
            guess[1], guess[3] = guess[3], guess[1]
        texts = {"input": "-", "target": " ".join(target), "prediction": " ".join(guess)}
        tokens = len(target) + 1
        records.append({"id": f"test.jsonl:{row}", **texts, "loss": tokens * draw.random() * 3, "tokens": tokens})
    return records


def texts(records: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    return [r["prediction"] for r in records], [r["target"] for r in records]


@pytest.mark.parametrize(
    ("metric", "reference", "key"), [(bleu, BLEU, "bleu"), (chrf, CHRF, "chrf"), (ter, TER, "ter")]
)
def test_scores_and_intervals_are_those_of_sacrebleu(metric: Callable[..., Any], reference: type, key: str) -> None:
    """sacreBLEU draws the same resamples and reports half the width of the interval; it sums in fp32."""
    predictions, targets = texts(corpus(120))
    scores = metric(predictions, targets)
    theirs = reference()
    score = theirs.corpus_score(predictions, [targets], n_bootstrap=1000)
    low, high = scores[f"{key}_ci95"]
    assert scores[key] == score.score
    assert (high - low) / 2 == pytest.approx(score._ci, abs=1e-3)
    assert low < score._mean < high


def test_signature_and_length_ratio() -> None:
    predictions, targets = texts(corpus(20))
    scores = bleu(predictions, targets, resamples=2)
    theirs = BLEU()
    total = theirs.corpus_score(predictions, [targets])
    assert scores["signature"] == str(theirs.get_signature())
    assert "tok:13a" in scores["signature"]
    assert "case:mixed" in scores["signature"]
    assert scores["length_ratio"] == total.sys_len / total.ref_len


def test_order_of_arrival_does_not_matter_to_the_last_digit(tmp_path: Path) -> None:
    records = corpus(97)
    expected = score_translation(records)
    assert score_translation(random.Random(5).sample(records, len(records))) == expected
    write_predictions(tmp_path / "p.jsonl", records[::-1])
    assert score_translation(read_predictions(tmp_path / "p.jsonl")) == expected
    assert json.loads(json.dumps(expected, allow_nan=False)) == expected


def test_loss_and_perplexity_have_their_closed_form() -> None:
    records = corpus(50)
    scores = score_translation(records, resamples=1000)
    loss = math.fsum(r["loss"] for r in records) / sum(r["tokens"] for r in records)
    assert scores["loss"] == loss
    assert scores["perplexity"] == math.exp(loss)
    low, high = scores["perplexity_ci95"]
    assert low < scores["perplexity"] < high


def test_the_interval_covers_as_in_normal_theory() -> None:
    """The mean of 2,000 values of known spread: the percentile interval is 1.96 standard errors either side."""
    values = np.random.default_rng(0).normal(10.0, 2.0, size=2000)
    low, high = bootstrap_interval(values[:, None], lambda sums: sums[0] / 2000)
    error = values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)


def test_one_row() -> None:
    (record,) = corpus(1, seed=8)
    scores = score_translation([record])
    assert scores["rows"] == 1
    for key in ("bleu", "chrf", "ter", "perplexity"):
        assert scores[f"{key}_ci95"] == [scores[key], scores[key]]


def test_all_equal() -> None:
    records = [r | {"prediction": r["target"], "loss": 0.0} for r in corpus(9)]
    scores = score_translation(records, resamples=20)
    assert scores["bleu"] == pytest.approx(100.0)
    assert scores["chrf"] == pytest.approx(100.0)
    assert (scores["ter"], scores["loss"], scores["perplexity"], scores["length_ratio"]) == (0.0, 0.0, 1.0, 1.0)
    assert scores["bleu_ci95"] == pytest.approx([100.0, 100.0])


def test_empty_predictions_and_targets() -> None:
    silent = score_translation([r | {"prediction": ""} for r in corpus(7)], resamples=20)
    assert (silent["bleu"], silent["chrf"], silent["ter"], silent["length_ratio"]) == (0.0, 0.0, 100.0, 0.0)
    nothing = score_translation([r | {"prediction": "", "target": ""} for r in corpus(2)], resamples=20)
    assert (nothing["bleu"], nothing["ter"], nothing["length_ratio"]) == (0.0, 0.0, 0.0)
    one_of_seven = [r | ({"prediction": ""} if i == 3 else {}) for i, r in enumerate(corpus(7))]
    assert 0.0 < score_translation(one_of_seven, resamples=20)["bleu"] < 100.0


def test_perplexity_of_a_diverged_model_is_a_number() -> None:
    scores = perplexity([1e6, 2e6], [2, 2], resamples=10)
    assert scores["loss"] == 750_000.0
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prediction": None}, DataError, "prediction is None"),
        ({"target": 3}, DataError, "target is 3"),
        ({"tokens": 0}, DataError, "tokens is 0"),
        ({"tokens": 1.5}, DataError, r"tokens is 1\.5"),
        ({"loss": "1"}, DataError, "loss is '1'"),
        ({"loss": math.nan}, NumericsError, "loss is nan"),
        ({"id": "test.jsonl:0"}, DataError, "two predictions"),
    ],
)
def test_bad_records_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    records = corpus(3)
    records[2] |= change
    with pytest.raises(error, match=rf"'test\.jsonl:[02]'.*{message}|{message}.*'test\.jsonl:0'"):
        score_translation(records)


def test_missing_values_and_no_rows() -> None:
    records = corpus(2)
    del records[1]["tokens"]
    with pytest.raises(DataError, match=r"'test\.jsonl:1'.*tokens is missing"):
        score_translation(records)
    with pytest.raises(DataError, match="empty"):
        score_translation([])


def test_nothing_is_written_or_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own class would make folders and lock files here; two of ours at once keep their rows apart."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    first, second = Bleu(), Bleu()
    first.add_batch(predictions=["a red dog runs ."], references=["a red dog runs ."])
    second.add_batch(predictions=["no"], references=["yes"])
    assert first.compute(resamples=1)["bleu"] == pytest.approx(100.0)
    assert second.compute(resamples=1)["bleu"] == 0.0
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_the_library_evaluate_give_the_same_scores() -> None:
    predictions, targets = texts(corpus(20))
    combined = evaluate.combine([Bleu("en"), Chrf(), Ter("en")])
    combined.add_batch(predictions=predictions, references=targets)
    expected = bleu(predictions, targets, "en") | chrf(predictions, targets) | ter(predictions, targets, "en")
    assert combined.compute() == expected
    assert Perplexity().compute(losses=[3.0, 1.0], tokens=[2, 2], resamples=0) == perplexity(
        [3.0, 1.0], [2, 2], resamples=0
    )


def test_training_does_not_import_the_library_evaluate() -> None:
    code = "import sys, trainer.tasks.translation.task, trainer.evaluation.metrics; print('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_thousand_rows_take_seconds() -> None:
    """Three on a free core; the bound leaves room for a busy machine."""
    records = corpus(1000)
    start = time.process_time()
    score_translation(records)
    assert time.process_time() - start < 6.0

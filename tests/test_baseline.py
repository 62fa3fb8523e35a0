"""The baselines of classifiers: their scores are those of scikit-learn, and they are bounded and repeatable."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import review_helpers
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from test_analysis import CLASSIFICATION, random_records, write_run

from trainer.api import report
from trainer.files import write_json
from trainer.report.baselines import _is_worse, baseline_warning
from trainer.report.task_report import open_report
from trainer.task.metrics import Metric
from trainer.tasks.classification import baseline
from trainer.tasks.classification.baseline import baselines
from trainer.tasks.classification.regression.baseline import baselines as regression_baselines

GOOD, BAD = "good great fine", "bad awful dull"
OTHER = ["the", "film", "was", "with", "some", "scenes", "and", "a", "plot"]


def rows(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Reviews of which a few say nothing about their class."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = draw.choice(("pos", "neg"))
        words = draw.choices(OTHER, k=8)
        if draw.random() < 0.8:
            words.append(draw.choice((GOOD if label == "pos" else BAD).split()))
        draw.shuffle(words)
        found.append((" ".join(words), [label]))
    return [text for text, _ in found], [label for _, label in found]


def records(texts: list[str], targets: list[Any]) -> list[dict[str, Any]]:
    return [{"id": f"t:{n}", "input": t, "target": y} for n, (t, y) in enumerate(zip(texts, targets, strict=True))]


def test_predictions_are_those_of_scikit_learn() -> None:
    texts, targets = rows(300, 1)
    test, truth = rows(200, 2)
    found = baselines(texts, targets, ["neg", "pos"], pair=False, several=False)
    assert not isinstance(found, str)
    linear, frequent = found
    own = list(linear.predict(records(test, [t[0] for t in truth])))
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(C=10, tol=1e-7, max_iter=5000).fit(vectors.fit_transform(texts), [t[0] for t in targets])
    shares = model.predict_proba(vectors.transform(test))
    np.testing.assert_allclose([r["probabilities"]["pos"] for r in own], shares[:, 1], atol=2e-3)
    assert [r["prediction"] for r in own] == model.predict(vectors.transform(test)).tolist()
    accuracy = np.mean([r["prediction"] == r["target"] for r in own])
    assert 0.8 < accuracy < 0.97  # a fifth of the rows can only be guessed
    assert own[0]["loss"] == pytest.approx(-math.log(own[0]["probabilities"][own[0]["target"]]))
    assert linear.about["converged"]
    assert linear.about["features"] == len(vectors.vocabulary_)

    most = max(("neg", "pos"), key=lambda name: targets.count([name]))
    constant = list(frequent.predict(records(test, [t[0] for t in truth])))
    assert {r["prediction"] for r in constant} == {most}
    assert constant[0]["probabilities"]["pos"] == targets.count(["pos"]) / 300


def test_several_labels_are_one_regression_each() -> None:
    draw = random.Random(5)
    words = {"sport": "goal", "food": "soup", "money": "bank"}
    targets = [[name for name in words if draw.random() < 0.4] for _ in range(200)]
    texts = [" ".join([*draw.choices(OTHER, k=5), *(words[name] for name in row)]) for row in targets]
    names = [*words, "never"]
    found = baselines(texts, targets, names, pair=False, several=True)
    assert not isinstance(found, str)
    own = list(found[0].predict(records(texts, targets)))
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(texts)
    truth = np.array([[name in row for name in words] for row in targets])
    each = OneVsRestClassifier(LogisticRegression(C=10, tol=1e-7, max_iter=5000, class_weight="balanced"))
    each.fit(vectors.transform(texts), truth)
    mine = [[r["probabilities"][name] for name in words] for r in own]
    np.testing.assert_allclose(mine, each.predict_proba(vectors.transform(texts)), atol=2e-3)
    assert [r["prediction"] for r in own] == targets
    assert {r["probabilities"]["never"] for r in own} == {0.0}
    assert own[0]["tokens"] == 4


def test_pairs_texts_without_words_and_rows_of_one_class() -> None:
    texts = ["same word\tyes", "same word\tno"] * 20
    found = baselines(texts, [["a"], ["b"]] * 20, ["a", "b"], pair=True, several=False)
    assert not isinstance(found, str)
    assert [r["prediction"] for r in found[0].predict(records(["x\tno", "x\tyes", "yes\tno"], ["a"] * 3))] == list(
        "bab"
    )
    chinese = [("好看的电影非常精彩", "a"), ("难看的电影非常无聊", "b")] * 20
    found = baselines([t for t, _ in chinese], [[y] for _, y in chinese], ["a", "b"], pair=False, several=False)
    assert not isinstance(found, str)
    assert [r["prediction"] for r in found[0].predict(records(["精彩", "无聊"], ["a", "b"]))] == ["a", "b"]
    assert found[0].about["analyzer"] == "1 to 3 characters"
    assert "one class" in str(baselines(["x", "y"], [["a"], ["a"]], ["a", "b"], pair=False, several=False))
    assert "no features" in str(baselines(["", " "], [["a"], ["b"]], ["a", "b"], pair=False, several=False))


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = rows(300, 1)
    assert "took more than" in str(baselines(texts, targets, ["neg", "pos"], pair=False, several=False, seconds=-1))
    monkeypatch.setattr(baseline, "ITERATIONS", 0)
    monkeypatch.setattr(baseline, "WEIGHTS", 20)
    found = baselines(texts, targets, ["neg", "pos"], pair=False, several=False)
    assert not isinstance(found, str)
    assert (found[0].about["iterations"], found[0].about["converged"], found[0].about["features"]) == (5, False, 10)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_has_its_baseline_in_json_report_and_card(reviews: Path, tmp_path: Path) -> None:
    made = review_helpers.recipe(reviews, loop={"max_steps": 4, "eval_every": 4, "save_every": 4})
    run = review_helpers.train(tmp_path, made, "run")
    file = run / "evaluation/test/baseline.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    linear, frequent = found["baselines"]

    train = [json.loads(line) for line in (reviews / "train.jsonl").read_text().splitlines()]
    predicted = (run / "evaluation/test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in predicted]
    assert (
        found["train_rows"]
        == found["of_rows"]
        == json.loads((run / "manifest.json").read_text())["data"]["train"]["rows"]
    )
    assert found["train_rows"] < len(train)  # rows of validation are held out
    assert linear["scores"]["accuracy"] > 0.9  # one word decides, and words are few
    model = np.mean([record["prediction"] == record["target"] for record in records])
    difference = linear["model_minus_baseline"]["accuracy"]
    assert difference["difference"] == pytest.approx(model - linear["scores"]["accuracy"])
    assert difference["difference_ci95"][0] <= difference["difference"] <= difference["difference_ci95"][1]
    assert frequent["scores"]["accuracy"] == pytest.approx(
        np.mean([record["target"] == frequent["answer"] for record in records])
    )
    page = (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    assert "Against simple models" in page
    assert f"TF-IDF + logistic regression on {found['train_rows']} training rows" in page
    assert "TF-IDF + logistic regression" in (run / "README.md").read_text(encoding="utf-8")
    assert ("trained model is worse than TF-IDF" in page) == (difference["difference_ci95"][1] < 0)

    before = file.stat().st_mtime_ns
    report(run)  # finds it complete
    assert file.stat().st_mtime_ns == before
    fewer = "".join(f"{line}\n" for line in predicted[:-1])
    (run / "evaluation/test/predictions.jsonl").write_text(fewer, encoding="utf-8")
    report(run)  # of other predictions
    assert file.stat().st_mtime_ns != before


# -- numbers -----------------------------------------------------------------------------------------------------------


def squared(true: Any, predicted: Any) -> Any:
    return ((true - predicted) ** 2).sum(axis=1)


def stars(count: int, seed: int) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Texts in which each "good" adds a star and each "bad" takes one, and a second number, ten times as much."""
    draw = random.Random(seed)
    texts, numbers = [], []
    for _ in range(count):
        good, bad = draw.randint(0, 3), draw.randint(0, 3)
        words = [*draw.choices(OTHER, k=6), *["good"] * good, *["bad"] * bad]
        draw.shuffle(words)
        texts.append(" ".join(words))
        numbers.append([3.0 + good - bad, 30.0 + 10 * (good - bad)])
    return texts, np.array(numbers)


def test_numbers_are_those_of_ridge_regression_and_of_the_mean() -> None:
    texts, numbers = stars(300, 1)
    test, truth = stars(100, 2)
    found = regression_baselines(texts, numbers, ["stars", "points"], squared, pair=False)
    assert not isinstance(found, str)
    ridge, mean = found
    rows = records(test, [dict(zip(("stars", "points"), row, strict=True)) for row in truth.tolist()])
    own = list(ridge.predict(rows))
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    model = Ridge(alpha=1.0, solver="sparse_cg", tol=1e-10).fit(vectors.fit_transform(texts), numbers)
    expected = model.predict(vectors.transform(test))
    np.testing.assert_allclose(
        [[r["prediction"]["stars"], r["prediction"]["points"]] for r in own], expected, atol=0.02
    )
    assert own[0]["loss"] == pytest.approx(((expected[0] - truth[0]) ** 2).sum(), rel=0.05)
    assert own[0]["tokens"] == 2
    assert np.corrcoef([r["prediction"]["stars"] for r in own], truth[:, 0])[0, 1] > 0.9
    assert (ridge.about["converged"], ridge.about["features"]) == (True, len(vectors.vocabulary_))
    constant = list(mean.predict(rows))
    assert (
        constant[0]["prediction"]
        == constant[1]["prediction"]
        == pytest.approx({"stars": numbers[:, 0].mean(), "points": numbers[:, 1].mean()})
    )


def test_one_number_has_no_name_and_equal_numbers_no_baseline() -> None:
    texts, numbers = stars(60, 3)
    found = regression_baselines(texts, numbers[:, :1], None, squared, pair=False)
    assert not isinstance(found, str)
    answers = [next(iter(one.predict(records(texts[:1], [3.0])))) for one in found]
    assert [type(answer["prediction"]) for answer in answers] == [float, float]
    assert answers[1]["loss"] == pytest.approx((numbers[:, 0].mean() - 3.0) ** 2)
    assert "same numbers" in str(regression_baselines(texts, np.ones((60, 1)), None, squared, pair=False))
    assert "no features" in str(regression_baselines(["", " "], np.array([[1.0], [2.0]]), None, squared, pair=False))


@pytest.mark.parametrize(
    ("direction", "difference", "interval", "expected"),
    [
        ("max", -0.1, [-0.15, -0.05], True),
        ("max", -0.1, [-0.25, 0.05], False),
        ("max", 0.1, [0.05, 0.15], False),
        ("min", 0.1, [0.05, 0.15], True),
        ("min", -0.1, [-0.15, -0.05], False),
        ("max", -0.1, None, True),
        ("max", -0.01, None, False),
        ("min", 0.1, None, True),
        ("max", None, None, False),
    ],
)
def test_when_a_model_is_worse_than_its_baseline(
    direction: Any, difference: float | None, interval: list[float] | None, expected: bool
) -> None:
    metric, change = Metric("score", direction, "Score"), {"difference": difference, "difference_ci95": interval}
    assert _is_worse(metric, {"score": 0.7}, {"score": change}) == expected


def test_the_report_names_the_simple_models_that_are_better(tmp_path: Path) -> None:
    records = random_records(40)
    score = float(np.mean([row["prediction"] == row["target"] for row in records]))
    run = write_run(tmp_path / "run", records, CLASSIFICATION, {"accuracy": score})

    def simple(name: str, gain: float) -> dict[str, Any]:
        change = {"difference": -gain, "difference_ci95": [-gain - 0.01, -gain + 0.01], "p": 0.01}
        return {"name": name, "scores": {"accuracy": score + gain}, "model_minus_baseline": {"accuracy": change}}

    baselines = [simple("Linear", 0.2), simple("Floor", 0.1), simple("Weak", -0.1)]
    content = {"train_rows": 10, "of_rows": 10, "baselines": baselines}
    write_json(run.evaluation("test") / "baseline.json", content)
    warning = baseline_warning(open_report(run, "test"))
    texts = [f"{score + gain:.1%}" for gain in (0.2, 0.1)]
    assert f"is worse than Linear ({texts[0]}) and Floor ({texts[1]}): its Accuracy is {score:.1%}." in warning
    write_json(run.evaluation("test") / "baseline.json", {**content, "baselines": baselines[2:]})
    assert baseline_warning(open_report(run, "test")) == ""

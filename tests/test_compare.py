"""`rankzero compare`: numbers held against scikit-learn, scipy and sacreBLEU; refusals; text, JSON and page."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu.significance
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import f1_score, roc_auc_score
from test_analysis import CLASSIFICATION, LABELS, TRANSLATION, binary, random_records, translated, write_run
from typer.testing import CliRunner

import launch.cli
from trainer.compare.comparison import compare
from trainer.compare.runs import _names
from trainer.compare.significance import holm, mcnemar
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.evaluation.metrics import resampled_translation, score_translation
from trainer.evaluation.paired import drawn, p_value, paired_bootstrap
from trainer.evaluation.resampling import RESAMPLES
from trainer.report.formats import short_values
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.tasks.classification.metrics import resampled_classes, score_classification
from trainer.tasks.classification.multi_label.metrics import resampled_labels, score_labels
from trainer.tasks.classification.regression.metrics import resampled_regression, score_regression
from trainer.tasks.language_modeling.metrics import resampled_tokens, score_tokens
from trainer.tasks.text_to_text.metrics import resampled_rouge, score_rouge
from trainer.tasks.token_classification.metrics import resampled_entities, score_entities

TYPES = ["PER", "LOC"]
TEXT = "<script>alert(1)</script> row"


def answers(seed: int, skill: float, rows: int = 120) -> list[dict[str, Any]]:
    """Rows of a classifier that is right with a probability; truth and texts are the same for each seed."""
    truth, own = np.random.default_rng(0).integers(2, size=rows), np.random.default_rng(seed)
    found = []
    for number, label in enumerate(truth.tolist()):
        share = float(own.uniform(0.5, 0.99))
        right = own.random() < skill
        found.append(binary(number, LABELS[label], share if right == bool(label) else 1 - share, f"{TEXT} {number}"))
    return found


def classifier(path: Path, records: list[dict[str, Any]], seed: int = 1, **more: Any) -> RunDir:
    run = write_run(path, records, CLASSIFICATION, {"accuracy": 0.5})
    text = run.recipe.read_text(encoding="utf-8") + f"seed: {seed}\noptim: {{lr: {seed / 1000}}}\n"
    run.recipe.write_text(text, encoding="utf-8")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = [classifier(tmp_path / name, answers(n, skill), n) for n, (name, skill) in enumerate(SKILLS.items(), 1)]
    return [run.path for run in made]


SKILLS = {"first": 0.7, "better": 0.9, "same": 0.72}


def test_differences_are_those_of_scikit_learn_on_the_same_draws(runs: list[Path]) -> None:
    found, opened = compare(runs, "test")
    by_key = {line["key"]: line for line in found["metrics"]}
    truth = np.array([row["target"] == "positive" for row in opened[0].records])
    said = [np.array([row["prediction"] == "positive" for row in run.records]) for run in opened]
    assert by_key["f1"]["values"]["better"] == pytest.approx(f1_score(truth, said[1], average="macro"))
    shares = [
        [json.loads(line)["probabilities"]["positive"] for line in lines.splitlines()]
        for path in runs
        for lines in [(path / "evaluation/test/predictions.jsonl").read_text(encoding="utf-8")]
    ]
    assert by_key["roc_auc"]["values"]["first"] == pytest.approx(roc_auc_score(truth, shares[0]))

    draw, rows = np.random.default_rng(12345), len(truth)
    made = []
    for _ in range(RESAMPLES):
        some = draw.integers(0, rows, rows)
        made.append(np.mean(said[1][some] == truth[some]) - np.mean(said[0][some] == truth[some]))
    difference = by_key["accuracy"]["differences"][0]
    assert difference["difference"] == pytest.approx(np.mean(said[1] == truth) - np.mean(said[0] == truth))
    assert difference["difference_ci95"] == pytest.approx([sorted(made)[25], sorted(made)[-26]])
    far = np.abs(np.array(made) - np.mean(made)) >= abs(difference["difference"]) - 1e-12
    assert difference["p"] == pytest.approx((far.sum() + 1) / (RESAMPLES + 1))
    assert difference["p_holm"] == pytest.approx(2 * difference["p"])  # the smaller of two
    assert difference["p_holm"] < 0.05 < by_key["accuracy"]["differences"][1]["p_holm"]

    right = [answer == truth for answer in said]
    test = found["mcnemar"][0]
    assert test["only_run_right"] == (right[1] & ~right[0]).sum()
    assert test["only_reference_right"] == (right[0] & ~right[1]).sum()
    side = found["rows_changed"][0]
    assert (side["better"], side["worse"]) == (test["only_run_right"], test["only_reference_right"])
    assert side["better"] + side["worse"] + side["equal"] == 120
    changed = {row["id"] for row in side["rows_better"]}
    assert changed == {f"test.jsonl:{n}" for n in np.flatnonzero(right[1] & ~right[0])}
    assert {line["key"] for line in found["recipe"]} == {"name", "seed", "optim.lr"}


def test_mcnemar_and_holm_by_hand() -> None:
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)  # the binomial tail, both sides
    assert (mcnemar(5, 5), mcnemar(0, 0)) == (1.0, 1.0)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}
    assert p_value(0.0, [0.0] * 99) == 1.0  # equal runs


def test_bleu_differences_are_drawn_as_in_sacrebleu(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "sacrebleu")
    draw = np.random.default_rng(4)
    words = ["a", "man", "walks", "his", "dog", "near", "the", "old", "river", "and", "two", "women", "watch"]
    targets = [" ".join(draw.choice(words, 9)) for _ in range(60)]

    def corrupted(share: float) -> list[str]:
        return [" ".join(w if draw.random() > share else "thing" for w in text.split()) for text in targets]

    systems = {"first": corrupted(0.4), "second": corrupted(0.32)}
    rows = {
        name: [translated(n, "x", t, p) for n, (t, p) in enumerate(zip(targets, texts, strict=True))]
        for name, texts in systems.items()
    }
    scores = [resampled_translation(found, "English") for found in rows.values()]
    found = paired_bootstrap(scores, 60)[0]
    metrics = {"BLEU": BLEU(), "chrF2": CHRF()}
    test = sacrebleu.significance.PairedTest(list(systems.items()), metrics, [targets], "bs", RESAMPLES)  # type: ignore[arg-type]
    results = dict(test()[1])
    for key, name in (("bleu", "BLEU"), ("chrf", "chrF2")):
        first, second = results[name]
        assert found[key]["difference"] == pytest.approx(second.score - first.score)
        first_made, made = (np.array([score(w)[key] for w in drawn(60, RESAMPLES)]) for score in scores)
        assert made.mean() == pytest.approx(second.mean, abs=1e-3)  # other draws would differ by some hundredths
        made = made - first_made
        size, gap = np.abs(made), abs(second.score - first.score)
        own = ((size - size.mean() > gap).sum() + 1) / (RESAMPLES + 1)
        assert second.p_value == pytest.approx(own, abs=0.003)  # its sums are in float32
        assert found[key]["p"] == pytest.approx(p_value(second.score - first.score, made))


def _tasks() -> list[Any]:
    entities = [{"start": 0, "end": 3, "label": "PER"}, {"start": 5, "end": 9, "label": "LOC"}]
    numbers = np.random.default_rng(2)
    rows = random_records(40)
    labels = [
        {**row, "target": [row["target"]], "prediction": [row["prediction"]], "probabilities": row["probabilities"]}
        for row in rows
    ]
    values = [{**row, "target": float(numbers.normal()), "prediction": float(numbers.normal())} for row in rows]
    tokens = [{**row, "tokens": 2 + n, "correct": n % 3, "target": "two words"} for n, row in enumerate(rows)]
    spans = [
        {**row, "target": entities[: n % 3], "prediction": entities[n % 2 :], "tokens": 3} for n, row in enumerate(rows)
    ]
    texts = [translated(n, "x", "a red dog runs", "a dog runs " + "fast " * (n % 3)) for n in range(20)]
    return [
        (rows, lambda r: resampled_classes(r, LABELS), lambda r: score_classification(r, LABELS, resamples=0)),
        (labels, lambda r: resampled_labels(r, LABELS), lambda r: score_labels(r, LABELS)),
        (values, lambda r: resampled_regression(r, ["value"]), lambda r: score_regression(r, ["value"])),
        (tokens, lambda r: resampled_tokens(r, words=True), lambda r: score_tokens(r, 0, words=True)),
        (
            spans,
            lambda r: resampled_entities(r, ["PER", "LOC"]),
            lambda r: score_entities(r, ["PER", "LOC"], resamples=0),
        ),
        (texts, resampled_translation, lambda r: score_translation(r, resamples=0)),
        (texts, resampled_rouge, lambda r: score_rouge(r, 0)),
    ]


@pytest.mark.parametrize("number", range(7))
def test_scores_of_a_draw_are_those_of_the_drawn_rows(number: int) -> None:
    """For every task: a weight of 2 is the row twice, a weight of 0 a row less."""
    records, resampled, score = _tasks()[number]
    weights = np.random.default_rng(1).integers(0, 3, len(records))
    copies = [{**row, "id": f"x:{n}{k}"} for n, row in enumerate(records) for k in range(weights[n])]
    found, expected = resampled(records)(weights.astype(float)), score(copies)
    assert found
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-9, abs=1e-12), key


def test_translators_are_compared_by_rows(tmp_path: Path) -> None:
    rows = [("the dog runs home", "the dog runs home", "a cat"), ("two men sit", "two", "two men sit")]
    for name, place in (("a", 1), ("b", 2)):
        records = [translated(n, "x", row[0], row[place]) for n, row in enumerate(rows)]
        write_run(tmp_path / name, records, TRANSLATION, {"bleu": 1.0, "off_by_one": 0.25 * place})
    found, _ = compare([tmp_path / "a", tmp_path / "b"], "test")
    side = found["rows_changed"][0]
    assert (side["binary"], side["better"], side["worse"]) == (False, 1, 1)
    assert side["rows_better"][0]["predictions"] == {"a": "two", "b": "two men sit"}
    assert found["mcnemar"] == []
    assert {"bleu", "chrf", "ter", "loss"} <= {line["key"] for line in found["metrics"]}


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], tmp_path: Path) -> None:
    few = classifier(tmp_path / "few", answers(1, 0.7)[:100]).path
    with pytest.raises(DataError, match=r"20 rows that not all have, such as test\.jsonl:100"):
        compare([runs[0], few], "test")
    found, _ = compare([runs[0], few], "test", common=True)
    assert found["rows"] == 100
    other = answers(1, 0.7)
    other[7]["target"] = LABELS[other[7]["target"] == LABELS[0]]
    with pytest.raises(DataError, match=r"row 'test\.jsonl:7' has the target"):
        compare([runs[0], classifier(tmp_path / "targets", other).path], "test")
    translator = write_run(tmp_path / "mt", [translated(0, "a", "b", "c")], TRANSLATION).path
    with pytest.raises(UsageError, match=r"task\.kind is 'classification' in the first and 'translation'"):
        compare([runs[0], translator], "test")
    with pytest.raises(UsageError, match="two runs or more"):
        compare(runs[:1], "test")
    (few / "evaluation" / "validation").mkdir()
    shutil.copy(few / "evaluation/test/predictions.jsonl", few / "evaluation/validation/predictions.jsonl")
    with pytest.raises(DataError) as lacking:
        compare([runs[0], few, runs[1]], "validation")
    assert str(lacking.value).splitlines() == [
        f"not evaluated on validation, so there are no rows to compare: {runs[0]}, {runs[1]}. Evaluate first:",
        f"  rankzero evaluate {runs[0]} --split validation",
        f"  rankzero evaluate {runs[1]} --split validation",
        "All were evaluated on test: compare with --split test",
    ]
    cleaned = [{**row, "input": row["input"].lower().replace("row", "line")} for row in answers(2, 0.8)]
    found, _ = compare([runs[0], classifier(tmp_path / "cleaned", cleaned).path], "test")
    assert "The inputs of 120 rows differ" in found["notes"][0]


def test_text_json_and_page(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "out" / "compare.html"
    words = ["compare", *map(str, runs)]
    text = CliRunner().invoke(launch.cli.app, [*words, "--html", str(page)], catch_exceptions=False).stdout
    for part in (
        "120 rows of test, against first",
        "accuracy",
        "McNemar's exact test",
        "optim.lr",
        "right only in better",
    ):
        assert part in text
    html = page.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    for part in ("Rows that changed sides", "Learning curves", "McNemar", "optim.lr", 'aria-label="Training loss'):
        assert part in html
    names = re.findall(r'<th scope="row">([A-Z][^<&]*)&nbsp;', html)
    assert {"Accuracy", "F1, macro", "Precision", "Recall", "Average precision"} <= set(names)
    assert "precision&nbsp;" not in html.replace("Average precision", ""), "a name as the other names"
    labels = re.findall(r'<td data-label="([^"]+)">', html)
    assert labels[:5] == ["first", "better", "Difference", "95% interval", "p"], (
        "cells of a phone have the column's name"
    )
    assert "style-src &#39;sha256-" in html

    printed = CliRunner().invoke(launch.cli.app, [*words, "--json", "--no-rows", "--html", str(page)]).stdout
    assert "alert(1)" not in printed + page.read_text(encoding="utf-8")
    found = json.loads(printed)
    assert [run["name"] for run in found["runs"]] == list(SKILLS)
    assert set(found["rows_changed"][0]) == {"run", "binary", "better", "worse", "equal"}
    scores = open_report(RunDir(runs[1]), "test").records
    assert found["metrics"][0]["values"]["better"] == np.mean([row["prediction"] == row["target"] for row in scores])


def test_a_page_in_a_place_that_cannot_be_made(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["compare", *map(str, runs), "--html", str(tmp_path / "file" / "new" / "page.html")]
    error = CliRunner().invoke(launch.cli.app, words).exception
    assert isinstance(error, CheckpointError)
    assert str(error) == f"{words[-1]} cannot be written: {tmp_path / 'file/new'}: Not a directory; choose another"


def test_trials_of_a_sweep_are_named_with_their_sweep() -> None:
    paths = [Path("runs/tickets-sweep/trials/2"), Path("runs/tickets-sweep/trials/13"), Path("runs/tickets")]
    assert _names(paths) == ["tickets-sweep/2", "tickets-sweep/13", "tickets"]
    assert _names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]


def test_numbers_of_recipes_are_short_unless_they_would_be_equal() -> None:
    assert short_values([0.0017552739806087753, 0.0036801197254]) == ["0.001755", "0.00368"]
    assert short_values([0.00100001, 0.00100002]) == ["0.00100001", "0.00100002"]
    assert short_values([None, 3, "x", True, 1e-9]) == ["–", "3", "x", "True", "1e-09"]

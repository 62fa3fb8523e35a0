"""Several labels and numbers per row: rows, losses, metrics, calibration, complete runs."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import modes_helpers
import numpy as np
import processes
import pytest
import torch
import torch.nn.functional as F
import yaml
from export_helpers import exported, finished_run
from modes_helpers import LABELS, MULTI, REGRESSION
from processes import Ranks, next_logs, read_lines, run_ranks, wait_until
from review_helpers import metrics, written
from safetensors.numpy import load_file
from scipy import stats
from sklearn import metrics as sk
from slow import slow_except
from torch import nn
from typer.testing import CliRunner

from trainer import api
from trainer.data.roles import BadValue, Number
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.engine.corpus import Corpus
from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import write_predictions
from trainer.evaluation.resampling import SEED, percentiles
from trainer.export.gates import Gate
from trainer.recipe_loading import Recipe, check_recipe, load_recipe
from trainer.report.report import write_report
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.task.base import IGNORED
from trainer.task.registry import roles_of
from trainer.tasks.classification.calibration import best_temperature, scale_outputs, tempered
from trainer.tasks.classification.config import ClassificationConfig
from trainer.tasks.classification.losses import binary_cross_entropy, focal_cross_entropy, regression_loss
from trainer.tasks.classification.multi_label.metrics import score_labels
from trainer.tasks.classification.multi_label.thresholds import best_thresholds, checked_thresholds
from trainer.tasks.classification.regression.metrics import score_regression
from trainer.tasks.classification.roles import LabelSet, RowWeight

SCORES = {"multi": ["f1_micro", "f1_macro", "subset_accuracy", "hamming_loss", "lrap"]}


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modes_helpers.write_topics(tmp_path_factory.mktemp("topics"))


def same(text: str) -> str:
    return text


# -- recipes and rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": ["a", "b"], "separator": ";"}, "separator is for mode multi, and mode is single"),
        ({"labels": ["a", "b"], "mode": "regression"}, "labels is for modes single and multi"),
        ({"mode": "regression", "focal_gamma": 2}, "focal_gamma is for mode single and multi"),
        ({"mode": "regression", "targets": ["x", "x"]}, "a name twice"),
        ({"mode": "regression", "targets": ["text"]}, "the name of another role"),
        ({"mode": "multi", "labels": []}, "one or more are needed"),
        ({"labels": ["a"]}, "two or more are needed"),
        ({"mode": "multi", "labels": ["a"], "thresholds": {"b": 0.5}}, "'b', which is no class"),
        ({"labels": ["a", "b"], "class_weights": {"c": 1}}, "'c', which is no class; the classes: a, b"),
        ({"mode": "multi", "labels": ["a"], "calibration": "temperature"}, "calibration is for mode single"),
    ],
)
def test_keys_of_another_mode_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassificationConfig(**values)


def test_a_stored_recipe_may_hold_the_defaults_of_other_modes(topics: Path) -> None:
    for task in (MULTI, REGRESSION):
        made = modes_helpers.recipe(topics, task)
        assert Recipe.parse(made.model_dump(mode="json")) == made
    weights = ClassificationConfig(labels=["a", "b"], class_weights={"b": 3}).weights_by_class  # type: ignore[arg-type]
    assert weights == [1.0, 3.0]


def test_settings_without_validation_or_classes_are_refused(topics: Path, tmp_path: Path) -> None:
    single = modes_helpers.recipe(
        topics, {"labels": ["a", "b"], "calibration": "temperature"}, data={"validation": None}
    )
    with pytest.raises(UsageError, match=r"task\.calibration: needs data\.validation"):
        load_recipe(written(tmp_path, single))
    smoothed = modes_helpers.recipe(topics, REGRESSION, optim={"label_smoothing": 0.1})
    with pytest.raises(UsageError, match=r"optim\.label_smoothing: task\.mode regression"):
        load_recipe(written(tmp_path, smoothed))
    lone = modes_helpers.recipe(topics, {"labels": ["a", "b"]}, data={"columns": {"text_pair": "other"}})
    with pytest.raises(UsageError, match=r"names a second text; set task\.pair=true"):
        load_recipe(written(tmp_path, lone))


@pytest.mark.parametrize(
    ("separator", "raw", "labels"),
    [
        (None, ["b", "a", "b"], ["b", "a"]),
        (None, '["a"]', ["a"]),
        (None, [], []),
        (";", "a; b;", ["a", "b"]),
        (";", "", []),
        (";", None, []),
        (";", ["a"], ["a"]),  # of a prepared corpus
    ],
)
def test_labels_of_a_row(separator: str | None, raw: object, labels: list[str]) -> None:
    assert LabelSet(frozenset("ab"), separator=separator).convert(raw, same) == labels


@pytest.mark.parametrize(
    ("role", "raw", "words"),
    [
        (LabelSet(frozenset("ab")), None, r"is null. Write \[\]"),
        (LabelSet(frozenset("ab"), separator=";"), "a;c", "'c', which is not in task.labels"),
        (LabelSet(frozenset("ab")), "a", "is not a list"),
        (RowWeight(), -1, "is negative: -1"),
        (RowWeight(), math.nan, "is not a finite number"),
        (Number(), "nan", "is not a finite number"),
        (Number(), "high", "is not a number: high"),
    ],
)
def test_values_that_no_row_may_have(role: Any, raw: object, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        role.convert(raw, same)


def test_a_bad_number_names_file_row_and_column(topics: Path, tmp_path: Path) -> None:
    lines = (topics / "train.jsonl").read_text().splitlines()
    lines[6] = json.dumps({**json.loads(lines[6]), "value": "n/a"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    made = modes_helpers.recipe(tmp_path, REGRESSION, data={"validation": 0.2, "test": None})
    source, roles = open_split(made.data, "train", roles_of(made)), roles_of(made)
    assert source is not None
    with pytest.raises(DataError, match=r'train\.jsonl, line 7 \(row 7\), column "value": is not a number: n/a'):
        survey(source, made.data, roles)


def test_the_survey_measures_numbers(topics: Path) -> None:
    made = modes_helpers.recipe(topics, REGRESSION)
    source, roles = open_split(made.data, "train", roles_of(made)), roles_of(made)
    assert source is not None
    values = [json.loads(line)["value"] for line in (topics / "train.jsonl").read_text().splitlines()]
    found = survey(source, made.data, roles).report()["numbers"]["value"]
    assert found == pytest.approx({"mean": np.mean(values), "deviation": np.std(values), "min": 38, "max": 43})


def test_labels_that_are_not_known_count_nothing(topics: Path) -> None:
    task = modes_helpers.task(modes_helpers.recipe(topics, MULTI))
    batch = task.collate(task.encode([{"text": "a film", "labels": ["food", "sport"]}, {"text": "a"}]))
    assert batch["labels"].tolist() == [[1, 1, 0], [IGNORED] * 3]
    assert task.targets(batch) == 3
    task = modes_helpers.task(modes_helpers.recipe(topics, REGRESSION | {"targets": ["value", "size"]}))
    batch = task.collate(task.encode([{"text": "a film", "value": 2.5, "size": 3}, {"text": "a"}]))
    assert batch["labels"].tolist() == [[2.5, 3.0], [IGNORED] * 2]
    assert task.targets(batch) == 2


def test_weights_decide_the_denominator(topics: Path) -> None:
    made = modes_helpers.recipe(topics, MULTI, data={"columns": {"weight": "weight"}})
    task = modes_helpers.task(made)
    rows = [{"text": "a film", "labels": ["food"], "weight": w} for w in (0.25, 3.0)]
    batch = task.collate(task.encode(rows))
    assert task.targets(batch) == 3.25 * 3
    assert task.targets(task.filler()) == 0
    model = task.build_model().eval()
    alone = [task.loss(model, task.collate(task.encode([{**row, "weight": 1.0}]))).item() for row in rows]
    assert task.loss(model, batch).item() == pytest.approx(0.25 * alone[0] + 3 * alone[1], rel=1e-5)
    assert "weights" not in task.exporter()(task).settings(model)["inputs"]


def test_only_training_rows_need_a_weight(topics: Path, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (topics / f"{name}.jsonl").read_text().splitlines()]
        kept = [row if name == "train" else {k: v for k, v in row.items() if k != "weight"} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    made = modes_helpers.recipe(tmp_path, REGRESSION, data={"columns": {"weight": "weight"}})
    roles = roles_of(made)
    sources = {split: open_split(made.data, split, roles) for split in ("train", "validation")}  # type: ignore[arg-type]
    surveyed = {split: survey(source, made.data, roles, split) for split, source in sources.items() if source}  # type: ignore[arg-type]
    assert {split: found.rows for split, found in surveyed.items()} == {"train": 160, "validation": 40}
    wrong = made.data.model_copy(update={"train": "validation.jsonl"})
    source = open_split(wrong, "train", roles)
    assert source is not None
    with pytest.raises(DataError, match=r"data\.train: 40 of 40 rows have no column 'weight'"):
        survey(source, wrong, roles)


def test_a_prepared_corpus_keeps_numbers(topics: Path, tmp_path: Path) -> None:
    made = modes_helpers.recipe(topics, REGRESSION, data={"columns": {"weight": "weight"}})
    api.prepare(made, out=tmp_path / "prepared")
    prepared = Recipe.parse(made.model_dump(mode="json"), [f"data.root={tmp_path / 'prepared'}"])
    corpus = Corpus(prepared, modes_helpers.task(prepared))
    rows = list(islice(corpus.train, 20))
    for row, encoded in zip(rows, corpus._encode(rows), strict=True):
        assert encoded is not None
        assert encoded[0]["value"] == [row.values["value"]]
        assert encoded[0]["weight"] == [row.values["weight"]]
        assert len(encoded[0]["input_ids"]) == encoded[1]


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_are_torchs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(0, 2, (6, 4))
    positive = torch.tensor([1.0, 2.0, 0.5, 3.0])
    theirs = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=positive, reduction="none").sum(1)
    assert torch.allclose(binary_cross_entropy(logits, labels, positive), theirs)
    ignored = labels.masked_fill(torch.arange(6)[:, None] == 2, IGNORED)
    assert binary_cross_entropy(logits, ignored, positive)[2] == 0
    soft = binary_cross_entropy(logits, labels, smoothing=0.2)
    target = labels * 0.8 + 0.1
    assert torch.allclose(soft, F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1))
    values = torch.randn(6, 4)
    assert torch.allclose(
        regression_loss(logits, values, "mse", 1.0).sum(), F.mse_loss(logits, values, reduction="sum")
    )
    assert torch.allclose(regression_loss(logits, values, "mae", 1.0).sum(), F.l1_loss(logits, values, reduction="sum"))
    huber = F.huber_loss(logits, values, reduction="sum", delta=0.5)
    assert torch.allclose(regression_loss(logits, values, "huber", 0.5).sum(), huber)


def test_focal_losses_by_their_formula() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 2, 1, IGNORED, 0])
    p = logits.softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    expected = torch.where(labels == IGNORED, 0.0, -((1 - p) ** 2) * p.log())
    assert torch.allclose(focal_cross_entropy(logits, labels, None, 0.0, 2.0), expected, atol=1e-6)
    hard = torch.randint(0, 2, (5, 3))
    p = torch.where(hard == 1, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(
        binary_cross_entropy(logits, hard, gamma=1.5), (-((1 - p) ** 1.5) * p.log()).sum(1), atol=1e-6
    )
    certain = torch.tensor([[60.0, -60.0, 0.0]], requires_grad=True)
    loss = focal_cross_entropy(certain, torch.tensor([0]), None, 0.0, 0.5)
    loss.sum().backward()
    assert certain.grad is not None and torch.isfinite(certain.grad).all(), "a right row has a finite slope"


@pytest.mark.parametrize("changes", [{"focal_gamma": 2.0}, {"label_smoothing": 0.3}, {"class_weights": {"b": 4.0}}])
def test_settings_of_one_label_change_its_loss(topics: Path, changes: dict[str, Any]) -> None:
    def loss(**task: Any) -> float:
        made = modes_helpers.task(modes_helpers.recipe(topics, {"labels": ["a", "b"], **task}))
        torch.manual_seed(0)
        model, rows = made.build_model().eval(), [{"text": "a film", "label": c} for c in "abb"]
        return made.loss(model, made.collate(made.encode(rows))).item()  # type: ignore[no-any-return]

    assert abs(loss(**changes) - loss()) > 1e-3
    assert loss(label_smoothing=0.0, focal_gamma=0.0) == loss()


# -- metrics -----------------------------------------------------------------------------------------------------------


def label_records(rows: int = 200) -> tuple[list[dict[str, Any]], Any, Any, Any]:
    draw = np.random.default_rng(0)
    names = [*LABELS, "rare"]
    p = draw.random((rows, 4)).round(2)  # with ties
    true = draw.random((rows, 4)) < 0.6 * p + np.array([0.1, 0.2, 0, 0])
    true[:, 3] = False
    true[:3], true[3] = False, [True, True, True, False]
    given = p >= 0.5
    records = [
        {"id": f"t:{i}", "target": [n for n, y in zip(names, true[i], strict=True) if y],
         "prediction": [n for n, y in zip(names, given[i], strict=True) if y], "loss": float(i % 7), "tokens": 4,
         "probabilities": dict(zip(names, p[i].tolist(), strict=True))}
        for i in range(rows)
    ]  # fmt: skip
    return records, true, given, p


def test_scores_of_labels_are_scikit_learns() -> None:
    records, true, given, p = label_records()
    names = [*LABELS, "rare"]
    found: Any = score_labels(records, names, resamples=50)
    for average in ("micro", "macro"):
        assert found[f"f1_{average}"] == pytest.approx(sk.f1_score(true, given, average=average, zero_division=0))
    assert found["precision_micro"] == pytest.approx(sk.precision_score(true, given, average="micro"))
    assert found["recall_micro"] == pytest.approx(sk.recall_score(true, given, average="micro"))
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(true, given))
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(true, given))
    assert found["lrap"] == pytest.approx(sk.label_ranking_average_precision_score(true, p))
    assert found["loss"] == pytest.approx(sum(r["loss"] for r in records) / 800)
    assert found["absent_classes"] == ["rare"]
    for key in (*SCORES["multi"], "loss"):
        low, high = found[f"{key}_ci95"]
        assert low <= found[key] <= high, key
        assert low < high, key
    assert score_labels(records[::-1], names, resamples=50) == found, "whatever the order they come in"


def test_scores_of_numbers_are_scikit_learns_and_scipys() -> None:
    draw = np.random.default_rng(3)
    true = draw.normal(50, 3, (150, 2)).round(1)  # with ties
    given = true + draw.normal(0.5, 2, (150, 2)).round(1)
    names = ["a", "b"]
    records = [
        {"id": f"t:{i}", "target": dict(zip(names, y, strict=True)), "prediction": dict(zip(names, p, strict=True)),
         "loss": 1.0, "tokens": 2}
        for i, (y, p) in enumerate(zip(true.tolist(), given.tolist(), strict=True))
    ]  # fmt: skip
    found: Any = score_regression(records, names, resamples=40)
    expected: dict[str, Callable[[Any, Any], Any]] = {
        "mse": sk.mean_squared_error,
        "mae": sk.mean_absolute_error,
        "r2": sk.r2_score,
        "pearson": lambda y, p: stats.pearsonr(y, p).statistic,
        "spearman": lambda y, p: stats.spearmanr(y, p).statistic,
    }
    for key, score in expected.items():
        of_each = [float(score(true[:, i], given[:, i])) for i in (0, 1)]
        assert [found["targets"][name][key] for name in names] == pytest.approx(of_each), key
        assert found[key] == pytest.approx(sum(of_each) / 2), key
        low, high = found[f"{key}_ci95"]
        assert low < found[key] < high, key
    assert found["loss"] == 0.5
    assert score_regression(records[::-1], names, resamples=40) == found


def test_resampled_ranks_are_those_of_the_drawn_rows() -> None:
    from trainer.tasks.classification.regression.metrics import measures_of

    draw = np.random.default_rng(5)
    true, given = draw.integers(0, 9, 60).astype(float), draw.integers(0, 9, 60).astype(float)
    rows = draw.integers(0, 60, 60)
    weights = np.bincount(rows, minlength=60).astype(float)
    found = measures_of(true, given)
    assert found["spearman"](weights) == pytest.approx(stats.spearmanr(true[rows], given[rows]).statistic)
    assert found["pearson"](weights) == pytest.approx(stats.pearsonr(true[rows], given[rows]).statistic)
    assert found["r2"](weights) == pytest.approx(sk.r2_score(true[rows], given[rows]))


def test_constants_have_no_correlation() -> None:
    def score(true: list[float], given: list[float]) -> Any:
        rows = enumerate(zip(true, given, strict=True))
        records = [{"id": f"t:{i}", "target": y, "prediction": p, "loss": 0.0, "tokens": 1} for i, (y, p) in rows]
        return score_regression(records, ["value"], resamples=5)

    assert score([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])["pearson"] == 0.0
    assert not {"pearson", "spearman", "r2"} & score([1.0, 1.0], [1.0, 2.0]).keys()


def test_resamples_of_equal_values_do_not_count() -> None:
    """Rounding leaves of three times 0.1 a variance of 1e-34, by which R² would be -1e32."""
    true, given = np.array([0.1] * 7 + [0.7]), np.array([0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
    records = [
        {"id": f"t:{i}", "target": y, "prediction": p, "loss": 0.0, "tokens": 1}
        for i, (y, p) in enumerate(zip(true.tolist(), given.tolist(), strict=True))
    ]
    found: Any = score_regression(records, ["value"], resamples=200)
    draw, expected = np.random.default_rng(SEED), []
    for rows in (draw.integers(0, 8, 8) for _ in range(200)):
        if 7 in rows and not (rows == 7).all():
            expected.append([sk.r2_score(true[rows], given[rows]), stats.pearsonr(true[rows], given[rows]).statistic])
    assert 100 < len(expected) < 200
    for key, values in zip(("r2", "pearson"), np.array(expected).T, strict=True):
        assert found[f"{key}_ci95"] == pytest.approx(percentiles(values.tolist())), key


@pytest.mark.parametrize("mode", ["single", "multi", "regression"])
def test_a_report_has_the_metrics_of_the_mode_and_of_the_user(topics: Path, tmp_path: Path, mode: str) -> None:
    task = {"single": {"labels": LABELS}, "multi": MULTI, "regression": REGRESSION}[mode]
    values = yaml.safe_load(modes_helpers.recipe(topics, task).to_yaml())
    values["evaluation"]["metrics"] = ["own_module:off_by_one"]  # which a report does not import
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    report = open_report(RunDir(tmp_path), "test", with_records=False)
    first = {"single": "accuracy", "multi": "f1_micro", "regression": "pearson"}[mode]
    assert [report.metrics[0].key, report.metrics[-1].name] == [first, "Off by one"]


@pytest.mark.parametrize("validation", ["validation.jsonl", None])
def test_a_page_says_where_the_thresholds_are_from(topics: Path, tmp_path: Path, validation: str | None) -> None:
    values = yaml.safe_load(modes_helpers.recipe(topics, MULTI | {"labels": [*LABELS, "rare"]}).to_yaml())
    values["data"]["validation"] = validation
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    rows = [{**record, "input": "a b c"} for record in label_records()[0][:20]]
    write_predictions(tmp_path / "evaluation/test/predictions.jsonl", rows)
    page = write_report(RunDir(tmp_path), "test").read_text(encoding="utf-8")
    assert ("had the best F1 on validation" in page) == (validation is not None)
    assert ("the probability in the last column" in page) == (validation is None)


@pytest.mark.parametrize("task", [{"labels": LABELS}, MULTI, REGRESSION])
def test_a_second_text_that_the_task_does_not_read_is_refused(topics: Path, task: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"text_pair names a second text; set task\.pair=true"):
        check_recipe(modes_helpers.recipe(topics, task, data={"columns": {"text_pair": "text_pair"}}))


# -- what is chosen after the training ---------------------------------------------------------------------------------


def test_thresholds_have_the_best_f1() -> None:
    records, true, _, p = label_records()
    found = best_thresholds(records, [*LABELS, "rare"])
    for number, name in enumerate(LABELS):
        own = sk.f1_score(true[:, number], p[:, number] >= found[name])
        every = [sk.f1_score(true[:, number], p[:, number] >= t, zero_division=0) for t in np.arange(0, 1.01, 0.005)]
        assert own == pytest.approx(max(every)), name
    assert found["rare"] == 0.5
    assert checked_thresholds({"thresholds": {"a": 0.2, "b": "x", "c": 7}}, "abc") == {"a": 0.2, "b": 0.5, "c": 0.5}


def test_one_of_two_classes_has_a_threshold(topics: Path) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])  # 27%, 73% and 12% for the second class

    def predicted(**task: Any) -> list[str]:
        made = modes_helpers.task(modes_helpers.recipe(topics, {"labels": ["ham", "spam"], **task}))
        if task.get("thresholds") == "auto":
            records = [
                {"target": name, "probabilities": {"ham": 1 - p, "spam": p}}
                for name, p in (("ham", 0.1), ("spam", 0.2), ("spam", 0.9))
            ]
            found = made.calibration(records)
            assert found == {"thresholds": {"spam": pytest.approx(0.15)}}
            assert made.calibrate(made.build_model(), found) == {}
        return [record["prediction"] for record in made._records(logits)]

    assert predicted() == ["ham", "spam", "ham"]
    assert predicted(thresholds=0.25) == ["spam", "spam", "ham"]
    assert predicted(thresholds={"ham": 0.8}) == ["spam", "spam", "ham"]
    assert predicted(thresholds="auto") == ["spam", "spam", "ham"]
    for thresholds, words in ((0.5, "is for two classes"), ({"a": 0.5}, "two classes")):
        with pytest.raises(ValueError, match=words):
            ClassificationConfig(labels=["a", "b", "c"], thresholds=thresholds)  # type: ignore[arg-type]


def test_a_temperature_is_found_again() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 1.5, (4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = [draw.choice(3, p=row) for row in p]
    sharp = np.exp(2.5 * logits) / np.exp(2.5 * logits).sum(1, keepdims=True)
    records = [
        {"target": "abc"[t], "probabilities": dict(zip("abc", row, strict=True))}
        for t, row in zip(true, sharp.tolist(), strict=True)
    ]
    assert best_temperature(records) == pytest.approx(2.5, rel=0.05)


def test_an_output_layer_that_is_not_the_last_part_stays(topics: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = modes_helpers.task(modes_helpers.recipe(topics, REGRESSION))
    model: Any = task.build_model()
    before = model.head.weight.clone()
    assert set(scale_outputs(task, model, [3.0], [40.0])) == {"head.weight", "head.bias"}
    assert torch.allclose(model.head.weight, before * 3)
    model.head.register_forward_hook(lambda module, inputs, output: output.tanh())
    now = model.head.weight.clone()
    assert scale_outputs(task, model, [3.0], [40.0]) == {}
    assert torch.equal(model.head.weight, now)
    assert "stays as trained" in caplog.text


def test_a_threshold_stays_where_the_temperature_cannot(topics: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"43.0": "high", "40.0": "low", "41.0": "high", "38.0": "low"}
    settings = {"labels": labels, "thresholds": "auto", "calibration": "temperature"}
    task: Any = modes_helpers.task(modes_helpers.recipe(topics, settings, data={"columns": {"label": "value"}}))
    model: Any = task.build_model()
    number, other = task.settings.names[1], task.settings.names[0]
    found = {"temperature": 2.0, "thresholds": {number: 0.2}}
    model.head.register_forward_hook(lambda module, inputs, output: output.tanh())
    assert task.calibrate(model.eval(), found) == {}
    ((name, share),) = task.calibrated.pop("thresholds").items()
    rows = [{"target": number, "probabilities": {other: 1 - share, number: share}}]
    assert (name, task.calibrated) == (number, {})
    assert next(tempered(rows, 2.0))["probabilities"][number] == pytest.approx(0.2)
    assert "task.calibration" in caplog.text


# -- whole runs --------------------------------------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "multi": MULTI,
    "regression": REGRESSION,
    "targets": REGRESSION | {"targets": ["value", "size"], "pair": True, "loss": "huber"},
}


@pytest.fixture(scope="module")
def trained(topics: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    runs: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in runs:
            folder = tmp_path_factory.mktemp(mode)
            made = modes_helpers.recipe(topics, MODES[mode], loop={"max_steps": 30}, optim={"lr": 5e-3})
            processes.train(written(folder, made), folder / "run").check()
            runs[mode] = folder / "run"
        return runs[mode]

    return run


def parity(run: Path) -> None:
    """Compare metrics.json with scikit-learn and scipy on the rows of predictions.jsonl."""
    found, records = metrics(run), read_lines(run / "evaluation/test/predictions.jsonl")
    if "f1_micro" in found:
        true, given = (np.array([[n in r[k] for n in LABELS] for r in records]) for k in ("target", "prediction"))
        p = np.array([[r["probabilities"][n] for n in LABELS] for r in records])
        assert found["f1_micro"] == pytest.approx(sk.f1_score(true, given, average="micro"))
        assert found["f1_macro"] == pytest.approx(sk.f1_score(true, given, average="macro", zero_division=0))
        assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(true, given))
        assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(true, given))
        assert found["lrap"] == pytest.approx(sk.label_ranking_average_precision_score(true, p))
        return
    pairs = np.array([[list(r[k].values()) if isinstance(r[k], dict) else [r[k]] for k in ("target", "prediction")]
                      for r in records]).transpose(2, 1, 0)  # fmt: skip
    assert found["mse"] == pytest.approx(np.mean([sk.mean_squared_error(*pair) for pair in pairs]))
    assert found["mae"] == pytest.approx(np.mean([sk.mean_absolute_error(*pair) for pair in pairs]))
    assert found["r2"] == pytest.approx(np.mean([sk.r2_score(*pair) for pair in pairs]))
    assert found["pearson"] == pytest.approx(np.mean([stats.pearsonr(*pair).statistic for pair in pairs]))
    assert found["spearman"] == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in pairs]))


@pytest.mark.ranks
@pytest.mark.parametrize("mode", slow_except(MODES, "multi"))
def test_scores_do_not_depend_on_ranks(trained: Callable[[str], Path], mode: str) -> None:
    """On 1, 2 and 4 ranks, of small batches: the same files, whose scores are scikit-learn's and scipy's."""
    run, found = trained(mode), []
    parity(run)
    for world in (1, 2, 4):
        words = ("evaluation.tokens_per_batch=60", "--split", "test")
        run_ranks(["evaluate", run, *words], next_logs(run), world).check()
        parity(run)
        files = ("metrics.json", "predictions.jsonl", "errors.jsonl")
        found.append([(run / "evaluation/test" / name).read_bytes() for name in files])
    assert found[0] == found[1] == found[2]


STEPS = [("single", "fsdp2"), ("multi", "zero2"), ("regression", "ddp"), ("targets", "ddp"), ("targets", "fsdp2")]


@pytest.mark.ranks
@pytest.mark.parametrize(("mode", "engine"), slow_except(STEPS, ("targets", "ddp")))
def test_one_and_two_ranks_take_the_same_steps(topics: Path, tmp_path: Path, mode: str, engine: str) -> None:
    """Weights after 8 SGD steps with row weights, and the same scores."""
    task = MODES.get(mode) or {"labels": {43.0: "high", 40.0: "middle", 41.0: "mixed", 38.0: "low"}, "focal_gamma": 1.0,
                               "class_weights": "balanced", "calibration": "temperature"}  # fmt: skip
    columns = {"weight": "weight", **({"label": "value"} if mode == "single" else {})}
    made = modes_helpers.recipe(topics, task, data={"columns": columns}, optim={"name": "sgd", "lr": 0.05})
    runs = [tmp_path / str(ranks) for ranks in (1, 2)]
    for ranks, run in enumerate(runs, start=1):
        processes.train(written(tmp_path, made), run, world=ranks, engine=engine if ranks > 1 else None).check()
    a, b = (load_file(run / "checkpoints/step-00000008/model.safetensors") for run in runs)
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    one, two = (json.loads((run / "model/config.json").read_text())["calibration"] for run in runs)
    if mode == "single":
        assert one["temperature"] == pytest.approx(two["temperature"], rel=1e-3)
    logged = [[line["loss"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"] for run in runs]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(topics: Path, tmp_path: Path) -> None:
    """Numbers with weights; and a start after the model is written reads mean and deviation from it."""
    made = modes_helpers.recipe(topics, REGRESSION, data={"columns": {"weight": "weight"}}, loop={"save_every": 2})
    path, whole, run = written(tmp_path, made), tmp_path / "whole", tmp_path / "run"
    processes.train(path, whole, world=2).check()
    killed = Ranks(["train", path, "loop.max_steps=8", "--run", run], next_logs(run), 2)
    wait_until(lambda: (run / "checkpoints/step-00000002/manifest.json").exists())
    for rank in (0, 1):
        killed.signal(signal.SIGKILL, rank)
    killed.wait()
    processes.train(path, run, world=2).check()
    files = ("model/model.safetensors", "evaluation/test/predictions.jsonl")
    assert all((run / name).read_bytes() == (whole / name).read_bytes() for name in files)
    for name in ("predictions.jsonl", "metrics.json"):
        (run / "evaluation/test" / name).unlink()
    processes.train(path, run, world=1).check()
    again, first = (read_lines(r / "evaluation/test/predictions.jsonl") for r in (run, whole))
    assert [r["value"] for r in again] == pytest.approx([r["value"] for r in first], abs=1e-4)


@pytest.mark.parametrize("mode", slow_except(["single", "decision", "multi", "regression", "targets"], "regression"))
def test_stock_transformers_and_the_artifact_give_the_same(
    topics: Path, bert: Path, tmp_path: Path, mode: str, near: None
) -> None:
    """A BERT with its own head: config.json, outputs, and the gates of ONNX."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = {"43.0": "high", "40.0": "low", "41.0": "high" if mode == "decision" else "mixed", "38.0": "low"}
    threshold = {"thresholds": {"high": 0.3}} if mode == "decision" else {}
    single, task = mode in ("single", "decision"), MODES.get(mode) or {"labels": labels, **threshold}
    data = {"columns": {"label": "value"}} if single else {}
    made = modes_helpers.recipe(topics, task, {"kind": "pretrained", "name": str(bert)}, data=data,
                              export={"onnx": True})  # fmt: skip

    def calibrated(task: Any, model: nn.Module) -> None:
        model.classifier.weight.data.mul_(40)  # type: ignore[operator, union-attr]
        task.data = {"train": {"numbers": {"value": {"mean": 40.0, "deviation": 2.5}}}}
        found = {"temperature": 2.0} if single else task.calibration([])
        task.calibrate(model.eval(), found)

    run = exported(finished_run(tmp_path / "run", made, modes_helpers.task(made).tokenizer, calibrated))
    own: Any = run.finished.task
    assert own.calibrated, "read from config.json"
    rows, answered = run.rows()
    gate = Gate("onnx", run.folder, rows, answered, lambda text: None).run()
    assert gate["passed"], gate

    folder = run.run.model
    run.finished.task.save_tokenizer(folder)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    kind = {"multi": "multi_label_classification"}.get(mode, None if single else "regression")
    assert stock.config.problem_type == kind
    assert list(stock.config.id2label.values()) == made.task.names
    sides = ("the team with soup", "a bank") if made.task.pair else ("the team with soup",)
    inputs = AutoTokenizer.from_pretrained(folder)(*sides, return_tensors="pt")
    with torch.no_grad():
        logits = stock(**inputs).logits[0]
    (answer,) = run.finished.predict(["\t".join(sides)])
    if single:
        found = list(answer["probabilities"].values())
        assert mode == "single" or (answer["label"] == "high") == (answer["probabilities"]["high"] >= 0.3)
        assert found == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    elif mode == "multi":
        assert list(answer["probabilities"].values()) == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
        assert answer["labels"] == [n for n, p in answer["probabilities"].items() if p >= 0.5]
    else:
        found = list(answer["values"].values()) if mode == "targets" else [answer["value"]]
        assert found == pytest.approx(logits.tolist(), abs=1e-4)
    (artifact,) = run.artifact(["\t".join(sides)])
    assert artifact.keys() == answer.keys()


@pytest.mark.ranks
@pytest.mark.parametrize("mode", slow_except(MODES, "multi"))
def test_a_report_shows_labels_and_residuals(trained: Callable[[str], Path], mode: str) -> None:
    run = trained(mode)
    folder = run / "evaluation/test"
    page, card = (folder / "report.html").read_text(), (run / "README.md").read_text()
    assert ("By label" if mode == "multi" else "Residuals") in page
    assert ("f1_micro" if mode == "multi" else "pearson") in card
    if mode == "multi":
        lines = json.loads((folder / "label_report.json").read_text())["labels"]
        f1 = {line["label"]: line["f1-score"] for line in lines}
        assert [f1[label] for label in LABELS] == pytest.approx(by_label(folder).tolist())
        thresholds = json.loads((run / "model/config.json").read_text())["calibration"]["thresholds"]
        assert {line["label"]: line["threshold"] for line in lines} == thresholds
    else:
        targets = json.loads((folder / "residuals.json").read_text())["targets"]
        assert sum(line["rows"] for line in targets[0]["by_value"]) == 40
        assert (folder / "residuals.svg").read_text().startswith("<svg")


def by_label(folder: Path) -> Any:
    records = read_lines(folder / "predictions.jsonl")
    true, given = (np.array([[n in r[k] for n in LABELS] for r in records]) for k in ("target", "prediction"))
    return sk.f1_score(true, given, average=None, zero_division=0)


@pytest.mark.parametrize("mode", slow_except(MODES, "regression"))
def test_the_plan_traces_an_evaluation(topics: Path, bert: Path, tmp_path: Path, mode: str) -> None:
    from launch.cli import app

    made = modes_helpers.recipe(topics, MODES[mode], {"kind": "pretrained", "name": str(bert)})
    words = ["plan", str(written(tmp_path, made)), "--cpu", "--run", str(tmp_path / "none"), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)

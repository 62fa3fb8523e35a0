"""Analysis: numbers compared with scikit-learn and sacreBLEU, files of a run directory, ensembles."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from sacrebleu.metrics import CHRF
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score

from trainer.errors import CheckpointError, DataError, UsageError
from trainer.files import read_json
from trainer.report import curves, run_summary
from trainer.report.confusion_matrix import draw_confusion
from trainer.report.figures import draw, inline, standalone
from trainer.report.report import analyse
from trainer.report.rows import find_shared_texts
from trainer.report.task_report import Measure, TaskReport, open_report
from trainer.rundir import RunDir
from trainer.task import Task
from trainer.tasks.classification import analysis
from trainer.tasks.classification.analysis import calibration, classification_report, confusion
from trainer.tasks.classification.ensemble import ensemble
from trainer.tasks.classification.report import write_confusion
from trainer.tasks.translation import report as translations
from trainer.tasks.translation.task import Translation

LABELS = ("negative", "positive")
ACCURACY = Measure("accuracy", "Accuracy", "{:.1%}", analysis.accuracy)
Rows = Sequence[dict[str, Any]]


def confident(rows: Rows) -> list[dict[str, Any]]:
    """Records as the report of a classifier reads them."""
    return [{**row, "confidence": row["probabilities"][row["prediction"]]} for row in rows]


def classified(number: int, target: str, probabilities: dict[str, float], text: str = "a b c") -> dict[str, Any]:
    """A record of a classifier that says what it finds likeliest."""
    prediction = max(probabilities, key=lambda label: probabilities[label])
    loss = -math.log(max(probabilities[target], 1e-12))
    row = {"id": f"test.jsonl:{number}", "input": text, "target": target, "prediction": prediction}
    return {**row, "probabilities": probabilities, "loss": loss, "tokens": 1}


def binary(number: int, target: str, positive: float, text: str = "a b c") -> dict[str, Any]:
    return classified(number, target, {"negative": 1 - positive, "positive": positive}, text)


def translated(number: int, source: str, target: str, prediction: str) -> dict[str, Any]:
    row = {"id": f"test.jsonl:{number}", "input": source, "target": target, "prediction": prediction}
    return {**row, "score": -0.5, "loss": 3.25, "tokens": 4}


def random_records(rows: int, labels: Sequence[str] = LABELS, seed: int = 0) -> list[dict[str, Any]]:
    """Classified rows of which most are right."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        truth = int(draw.integers(len(labels)))
        shares = draw.dirichlet(np.ones(len(labels)) + 3 * np.eye(len(labels))[truth])
        text = "word " * int(draw.integers(1, 500))
        found.append(
            classified(number, labels[truth], dict(zip(labels, shares.tolist(), strict=True)), f"{number} {text}")
        )
    return found


def history(steps: int = 8) -> list[dict[str, Any]]:
    """Lines as the reporter writes them, each second step with a validation."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        train = {"loss": 1 / step, "lr": 1e-4 * step, "grad_norm": 1.0, "tokens_per_second": 100.0, "padding": 0.1}
        lines.append({"step": step, "epoch": step // 5, "split": "train", **train, "memory": 1})
        if step % 2 == 0:
            scores = {"loss": 1.2 / step, "accuracy": 1 - 1 / step, "rows": 4}
            lines.append({"step": step, "epoch": step // 5, "split": "validation", **scores})
    return lines


def write_run(
    path: Path, records: Rows, task: dict[str, Any], scores: dict[str, Any] | None = None, **files: Any
) -> RunDir:
    """A run directory with one evaluated split, test; `files` are more JSON files beside its predictions."""
    run = RunDir(path)
    run.evaluation("test").mkdir(parents=True)
    recipe = {"version": 1, "name": path.name, "task": task, "model": {"kind": "pretrained", "name": "tiny-bert"}}
    recipe |= {"loop": {"early_stopping": {"metric": "accuracy"}}, "evaluation": {"bootstrap": 100}}
    run.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    data = {"train": {"rows": 1200, "bad_rows": {"empty": 2}, "labels": {}, "fingerprint": "f00d"}}
    manifest = {"engine": "ddp", "ranks": 2, "precision": "bf16", "devices": {"gpus": [], "cpu": "a CPU"}, "data": data}
    manifest |= {"versions": {"torch": "2.13.0"}, "git_commit": "abc", "command": ["rankzero", "train", "tiny"]}
    manifest |= {
        "started": "2026-11-22T13:00:00+0000",
        "starts": [],
        "stages": {"model": {"step": 8, "weights": "average of steps 4, 6"}},
    }
    run.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    run.status.write_text(json.dumps({"state": "finished", "step": 8, "updated": 1795352495.0}), encoding="utf-8")
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in history()), encoding="utf-8")
    folder = run.evaluation("test")
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    for name, value in {"metrics": scores or {}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return run


CLASSIFICATION = {"kind": "classification", "labels": {"0": "negative", "1": "positive"}}
TRANSLATION = {"kind": "translation", "src_language": "German", "trg_language": "English"}


# -- confusion ---------------------------------------------------------------------------------------------------------


def test_confusion_by_hand() -> None:
    rows = [
        binary(0, "negative", 0.1),
        binary(1, "negative", 0.9),
        binary(2, "positive", 0.8),
        binary(3, "positive", 0.7),
    ]
    found = confusion(rows, LABELS)
    assert found == {"labels": list(LABELS), "counts": [[1, 1], [0, 2]], "row_shares": [[0.5, 0.5], [0.0, 1.0]]}


def test_confusion_and_report_agree_with_scikit_learn_in_the_given_order() -> None:
    labels = ["c", "a", "d", "b"]
    rows = random_records(300, labels)
    truth, said = [r["target"] for r in rows], [r["prediction"] for r in rows]
    assert confusion(rows, labels)["counts"] == confusion_matrix(truth, said, labels=labels).tolist()
    numbers, text = classification_report(rows, labels)
    assert numbers["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert numbers["macro avg"]["f1-score"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert [line.split()[0] for line in text.splitlines()[2:6]] == labels
    json.dumps(numbers)  # plain numbers


def test_a_class_without_rows_has_no_shares() -> None:
    found = confusion([classified(0, "a", {"a": 0.6, "b": 0.4}), classified(1, "a", {"a": 0.2, "b": 0.8})], ["a", "b"])
    assert found["row_shares"] == [[0.5, 0.5], [None, None]]


@pytest.mark.parametrize("size", [2, 20])
def test_the_picture_grows_with_the_classes(tmp_path: Path, size: int) -> None:
    labels = [f"{'a very long name of a ' * (n % 2)}class $x_{n}$ <b>" for n in range(size)]
    draw_confusion(confusion(random_records(200, labels), labels), tmp_path / "m.png")
    head = (tmp_path / "m.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") > 100 * size**0.5
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_confusion_files(tmp_path: Path) -> None:
    rows = [binary(0, "negative", 0.1), binary(1, "positive", 0.2)]
    files = write_confusion(confusion(rows, LABELS), *classification_report(rows, LABELS), tmp_path)
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    assert read_json(tmp_path / "classification_report.json")["positive"]["recall"] == 0
    assert "weighted avg" in (tmp_path / "classification_report.txt").read_text(encoding="utf-8")


# -- calibration -------------------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    rows = [
        binary(0, "positive", 0.95),
        binary(1, "negative", 0.95),
        binary(2, "negative", 0.45),
        binary(3, "positive", 1.0),
    ]
    found = calibration(confident(rows), bins=10)
    # three rows in [0.9, 1]: 2/3 right, (0.95 + 0.95 + 1) / 3 sure; one in [0.5, 0.6): right, 0.55 sure
    assert found["ece"] == pytest.approx(3 / 4 * abs(2 / 3 - 2.9 / 3) + 1 / 4 * 0.45)
    assert [b["rows"] for b in found["bins"]] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert found["bins"][0] == {"from": 0.0, "to": 0.1, "rows": 0, "confidence": None, "accuracy": None}
    assert found["accuracy"] == 0.75 and found["mean_confidence"] == pytest.approx((0.95 * 2 + 0.55 + 1) / 4)


def test_calibration_agrees_with_a_second_implementation() -> None:
    rows = random_records(500, ["a", "b", "c"])
    sure = np.array([max(r["probabilities"].values()) for r in rows])
    right = np.array([r["target"] == r["prediction"] for r in rows])
    at = np.digitize(sure, np.linspace(0, 1, 16))
    ece = sum((at == k).mean() * abs(right[at == k].mean() - sure[at == k].mean()) for k in set(at.tolist()))
    found = calibration(confident(rows))
    assert found["ece"] == pytest.approx(ece)
    assert sum(b["rows"] for b in found["bins"]) == found["rows"] == 500


def test_calibration_is_the_one_of_metrics_json() -> None:
    from trainer.tasks.classification.metrics import calibration_error

    labels = ["a", "b", "c"]
    rows = random_records(300, labels)
    rows += [classified(300 + n, "a", {"a": n / 15, "b": 1 - n / 15, "c": 0.0}) for n in range(16)]  # on the edges
    shares = np.array([[row["probabilities"][label] for label in labels] for row in rows])
    for row in rows[::3]:  # as by a threshold
        row["prediction"] = min(labels, key=lambda label: row["probabilities"][label])
    truth, given = (np.array([labels.index(row[key]) for row in rows]) for key in ("target", "prediction"))
    assert calibration(confident(rows))["ece"] == pytest.approx(calibration_error(shares, given, truth), abs=1e-12)


def test_a_perfectly_sure_and_right_model_has_no_error() -> None:
    assert calibration(confident([binary(n, "positive", 1.0) for n in range(3)]))["ece"] == 0


# -- errors ------------------------------------------------------------------------------------------------------------


def test_wrong_rows_most_confident_first() -> None:
    rows = [binary(0, "negative", 0.6), binary(1, "negative", 0.9, "two words"), binary(2, "positive", 0.9)]
    found = analysis.wrong_rows(confident(rows))
    assert [row["id"] for row in found] == ["test.jsonl:1", "test.jsonl:0"]
    assert found[0] | {"loss": None} == {
        "id": "test.jsonl:1", "text": "two words", "target": "negative", "prediction": "positive", "confidence": 0.9,
        "loss": None, "words": 2,
    }  # fmt: skip


def test_errors_by_length_and_class() -> None:
    rows = [binary(n, "negative", 0.9 if n == 0 else 0.1, "w " * words) for n, words in enumerate([10, 10, 11, 401])]
    rates = analysis.error_rates(rows, LABELS)
    assert [(b["from"], b["to"], b["rows"], b["errors"]) for b in rates["by_length"]] == [
        (0, 10, 2, 1),
        (11, 25, 1, 0),
        (401, None, 1, 0),
    ]
    (negative,) = rates["by_class"]  # no row is positive
    assert (negative["label"], negative["rows"], negative["error_rate"]) == ("negative", 4, 0.25)
    assert negative["mostly_taken_for"] == "positive"


@pytest.mark.parametrize(
    ("hits", "trials", "interval"), [(0, 10, [0, 0.2775]), (5, 10, [0.2366, 0.7634]), (3, 3, [0.4385, 1])]
)
def test_wilson_as_in_the_tables(hits: int, trials: int, interval: list[float]) -> None:
    assert analysis.wilson(hits, trials) == pytest.approx(interval, abs=1e-4)


def test_shared_texts_are_found_and_scored() -> None:
    rows = [
        binary(0, "positive", 0.9, "seen"),
        binary(1, "positive", 0.9, "new"),
        binary(2, "positive", 0.1, "new too"),
    ]
    rows += [binary(3, "negative", 0.1, "seen"), binary(4, "negative", 0.1, "half \ud83d pair")]
    found = find_shared_texts(iter(["unknown", "seen", "seen", "Seen", "half \ud83d pair"]), rows, ACCURACY)
    assert found["ids"] == ["test.jsonl:0", "test.jsonl:3", "test.jsonl:4"] and found["count"] == 3
    assert (found["accuracy"], found["accuracy_without"], found["accuracy_shared"]) == (0.8, 0.5, 1.0)
    nothing = find_shared_texts([], rows, ACCURACY)
    assert (nothing["count"], nothing["accuracy_shared"], nothing["accuracy_without"]) == (0, None, 0.8)
    assert find_shared_texts(["seen"], rows[:1], ACCURACY)["accuracy_without"] is None


def test_shared_texts_stream_in_constant_memory() -> None:
    rows = [binary(n, "positive", 0.9, f"text {n} {'x' * 1000}") for n in range(0, 40_000, 4_000)]
    tracemalloc.start()
    try:
        found = find_shared_texts((f"text {n} {'x' * 1000}" for n in range(20_000)), rows, ACCURACY)
        assert tracemalloc.get_traced_memory()[1] < 200_000  # the training texts have 20 MB, their hashes 320 kB
    finally:
        tracemalloc.stop()
    assert found["count"] == 5


# -- translations ------------------------------------------------------------------------------------------------------


def test_translations_are_scored_as_by_sacrebleu() -> None:
    rows = [
        translated(0, "Ein Hund läuft .", "A dog runs .", "A dog runs ."),
        translated(1, "Eine Katze schläft im Garten .", "A cat sleeps in the garden .", "A cat sleeps in the garden ."),
        translated(2, "Ja .", "Yes .", ""),
        translated(3, "Ein Mann", "", "A man"),
        translated(4, "Die Frau liest .", "The woman reads .", "The woman eats a very long lunch again ."),
    ]
    judged = translations.scored_rows(rows)
    for row in judged:
        assert row["chrf"] == pytest.approx(CHRF().sentence_score(row["prediction"], [row["target"]]).score)
    assert [row["chrf"] for row in judged] == sorted(row["chrf"] for row in judged)
    by_id = {row["id"]: row for row in judged}
    assert by_id["test.jsonl:3"]["length_ratio"] is None and by_id["test.jsonl:4"]["length_ratio"] == 2.25
    assert [row["id"] for row in translations.best_rows(judged, 2)] == ["test.jsonl:1", "test.jsonl:0"]
    assert [row["id"] for row in translations.length_outliers(judged, 2)] == ["test.jsonl:2", "test.jsonl:4"]
    summary = translations.summarize(rows, judged)
    assert (summary["rows"], summary["identical"], summary["empty"]) == (5, 2, 1)
    assert sum(bucket["rows"] for bucket in summary["by_length"]) == 5
    assert summary["mean_chrf"] == pytest.approx(np.mean([row["chrf"] for row in judged]))


# -- curves and figures ------------------------------------------------------------------------------------------------


def test_curves_use_the_last_value_of_a_step_and_skip_non_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9)], CLASSIFICATION)
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 8, "epoch": 1, "split": "train", "loss": 0.5, "lr": 1e-4}\n')
        file.write('{"step": 9, "epoch": 1, "split": "train", "loss": null, "lr": 1e-4}\n{"step": 10, "spl')
    loss, accuracy, rate = curves.panels(open_report(run, "test"))
    assert loss.lines["training"][-1] == (8, 0.5)
    assert loss.lines["validation"] == [(s, 1.2 / s) for s in (2, 4, 6, 8)]
    assert (accuracy.title, loss.weights, rate.weights) == ("Validation Accuracy", (4, 6), ())
    assert rate.lines["learning rate"][-1] == (9, 1e-4)


def test_a_run_that_logged_nothing_has_no_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9)], CLASSIFICATION)
    run.metrics.unlink()
    report = open_report(run, "test")
    assert curves.panels(report) == [] and curves.write_curves(report) == []


def test_the_curve_file_is_self_contained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9)], CLASSIFICATION)
    (path,) = curves.write_curves(open_report(run, "test"))
    text = path.read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert {"Loss", "Validation Accuracy", "Learning rate"} <= {e.text for e in ET.fromstring(text).iter() if e.text}
    for word in ("<script", "style=", "<style", "<image", "<metadata", "xlink"):
        assert word not in text, word
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    first = text
    curves.write_curves(open_report(run, "test"))
    assert path.read_text(encoding="utf-8") == first


def test_inline_figures_do_not_meet() -> None:
    svg = draw(lambda figure: figure.subplots().plot([1, 2], [3, 4], marker="o", label="<b> & $x$"))
    one, two = ET.fromstring(inline(svg, "a", "first")), ET.fromstring(inline(svg, "b", 'a "label" <'))
    ids = [{e.get("id") for e in root.iter() if e.get("id")} for root in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for root, own in zip((one, two), ids, strict=True):
        uses = {e.get("href", "")[1:] for e in root.iter() if e.get("href")}
        uses |= {e.get("clip-path", "")[5:-1] for e in root.iter() if e.get("clip-path")}
        assert uses and uses <= own
    assert two.get("aria-label") == 'a "label" <' and one.tag == "svg"
    assert "var(--" in inline(svg, "a", "") and ET.fromstring(standalone(svg)) is not None


# -- reading a run -----------------------------------------------------------------------------------------------------


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no is no run directory: recipe\.yaml"):
        open_report(RunDir(tmp_path / "no"), "test")
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9)], CLASSIFICATION)
    with pytest.raises(DataError, match=r"rankzero evaluate .*run --split validation"):
        open_report(run, "validation")
    (run.evaluation("test") / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.json is not JSON"):
        open_report(run, "test")
    (run.evaluation("test") / "metrics.json").unlink()
    (run.evaluation("test") / "predictions.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no row"):
        open_report(run, "test")


def test_an_unknown_task_and_a_wrong_record_are_refused(tmp_path: Path) -> None:
    row = binary(7, "positive", 0.9)
    with pytest.raises(UsageError, match=r"task\.kind='chess' is not known; allowed: classification"):
        open_report(write_run(tmp_path / "a", [row], {"kind": "chess"}), "test")
    for number, (change, words) in enumerate(
        [
            ({"probabilities": None}, "'test.jsonl:7': probabilities is None"),
            ({"probabilities": {"negative": 2.0, "positive": 0.0}}, "from 0 to 1"),
            ({"target": "other"}, "target 'other' has no probability; labels: negative, positive"),
            ({"prediction": 1}, "prediction 1 has no probability"),
        ]
    ):
        with pytest.raises(DataError, match=words):
            open_report(write_run(tmp_path / str(number), [row | change], CLASSIFICATION), "test")


def test_labels_keep_the_order_of_the_model_and_must_agree(tmp_path: Path) -> None:
    rows = [binary(0, "positive", 0.9), classified(1, "b", {"b": 0.5, "a": 0.5})]
    report: Any = open_report(write_run(tmp_path / "a", rows[1:], CLASSIFICATION), "test")
    assert report.names == ["b", "a"]
    with pytest.raises(DataError, match=r"'test\.jsonl:1' has labels b, a; negative, positive are expected"):
        open_report(write_run(tmp_path / "b", rows, CLASSIFICATION), "test")


def test_a_task_without_a_reporter_has_a_plain_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Translation, "reporter_path", Task.reporter_path)
    rows = [translated(n, f"<b>in {n}", f"out {n}", f"said {n}") | {"loss": float(n)} for n in range(20)]
    run = write_run(tmp_path / "run", rows, TRANSLATION, {"bleu": 42.0})
    assert type(open_report(run, "test")) is TaskReport
    page = analyse(run, "test", train_texts=["in 3"])[-1].read_text(encoding="utf-8")
    for words in (
        "42.0",
        "Rows worth reading",
        "do the task translation",
        "&lt;b&gt;in 19",
        "test.jsonl:0 · loss 0.00",
        "Learning curves",
    ):
        assert words in page, words
    assert "test.jsonl" not in analyse(run, "test", with_rows=False)[-1].read_text(encoding="utf-8")


def test_analyse_a_classifier(tmp_path: Path) -> None:
    rows = random_records(60)
    run = write_run(tmp_path / "run", rows, CLASSIFICATION, {"accuracy": 0.8, "accuracy_ci95": [0.7, 0.9]})
    files = analyse(run, "test", train_texts=iter([rows[3]["input"]]))
    assert {path.name for path in files} == {
        "confusion_matrix.json", "confusion_matrix.png", "classification_report.json", "classification_report.txt",
        "calibration.json", "errors.jsonl", "errors.json", "shared_texts.json", "learning_curves.svg", "report.html",
    }  # fmt: skip
    assert all(path.parent == run.evaluation("test") and path.stat().st_size for path in files)
    assert read_json(files[0])["labels"] == ["negative", "positive"]
    lines = [json.loads(line) for line in (files[0].parent / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (
        len(lines)
        == sum(row["target"] != row["prediction"] for row in rows)
        == read_json(files[0].parent / "errors.json")["errors"]
    )
    assert read_json(files[0].parent / "shared_texts.json")["ids"] == [rows[3]["id"]]
    again = analyse(run, "test")  # the training texts are not at hand: what was found stays, and is told
    assert "shared_texts.json" not in {path.name for path in again}
    assert "1 of 60 texts is also in the training set" in again[-1].read_text(encoding="utf-8")


def test_analyse_a_translator(tmp_path: Path) -> None:
    rows = [translated(n, f"Satz {n}", f"sentence {n}", f"sentence {n % 2}") for n in range(6)]
    run = write_run(tmp_path / "run", rows, TRANSLATION, {"bleu": 30.0, "signature": "s", "rows": 6})
    files = analyse(run, "test", train_texts=["Satz 0"])
    assert [path.name for path in files] == [
        "errors.jsonl",
        "errors.json",
        "shared_texts.json",
        "learning_curves.svg",
        "report.html",
    ]
    assert len(files[0].read_text(encoding="utf-8").splitlines()) == 4
    shared = read_json(files[2])
    assert shared["count"] == 1 and shared["mean_chrf_shared"] == pytest.approx(100)


def test_analysis_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9), binary(1, "negative", 0.1)], CLASSIFICATION)
    code = "import sys, trainer.tasks.classification.ensemble, trainer.report.card; from pathlib import Path; "
    code += "from trainer.report.report import analyse; from trainer.rundir import RunDir; "
    code += "analyse(RunDir(Path(sys.argv[1])), 'test'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- ensembles ---------------------------------------------------------------------------------------------------------


def test_ensemble_by_hand(tmp_path: Path) -> None:
    first = [
        binary(0, "positive", 0.9),
        binary(1, "negative", 0.6),
        binary(2, "negative", 0.2),
        binary(10, "positive", 0.6),
    ]
    second = [
        binary(0, "positive", 0.7),
        binary(1, "negative", 0.1),
        binary(2, "negative", 0.9),
        binary(10, "positive", 0.8),
    ]
    runs = [write_run(tmp_path / name, rows, CLASSIFICATION) for name, rows in (("a", first), ("b", second[::-1]))]
    records, summary = ensemble(runs, "test", lambda rows: {"rows": len(list(rows))})
    assert [row["id"] for row in records] == [row["id"] for row in first]
    assert [row["probabilities"]["positive"] for row in records] == pytest.approx([0.8, 0.35, 0.55, 0.7])
    assert [row["prediction"] for row in records] == ["positive", "negative", "positive", "positive"]
    assert records[1]["loss"] == pytest.approx(-math.log(0.65)) and records[1]["tokens"] == 1
    assert [member["accuracy"] for member in summary["members"]] == [0.75, 0.75]
    assert summary["ensemble"] == {"accuracy": 0.75, "rows": 4}
    (pair,) = summary["agreement"]
    assert pair["equal"] == 0.5 and pair["runs"] == [str(run.path) for run in runs]
    assert pair["kappa"] == pytest.approx(cohen_kappa_score([1, 1, 0, 1], [1, 0, 1, 1]))
    assert (summary["all_equal"], summary["some_right"]) == (0.5, 1.0)


def test_members_with_constant_predictions_have_no_kappa(tmp_path: Path) -> None:
    rows = [binary(0, "positive", 0.9), binary(1, "negative", 0.8)]
    runs = [write_run(tmp_path / name, rows, CLASSIFICATION) for name in "abc"]
    _, summary = ensemble(runs, "test")
    assert [(pair["equal"], pair["kappa"]) for pair in summary["agreement"]] == [(1.0, None)] * 3
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ([binary(0, "positive", 0.9)], r"first that differs is .*a: test\.jsonl:1 and .*b: no more row"),
        ([binary(0, "positive", 0.9), binary(2, "negative", 0.1)], r"a: test\.jsonl:1 and .*b: test\.jsonl:2"),
        (
            [binary(0, "negative", 0.9), binary(1, "negative", 0.1)],
            r"'test\.jsonl:0' has target 'positive'.*'negative'",
        ),
        (
            [classified(0, "positive", {"positive": 1.0}), binary(1, "negative", 0.1)],
            r"b: prediction 'test\.jsonl:1' has labels negative, positive; positive are expected",
        ),
        ([translated(0, "x", "positive", "y")], "only classifiers can be averaged"),
    ],
)
def test_members_must_fit(tmp_path: Path, second: Rows, words: str) -> None:
    first = [binary(0, "positive", 0.9), binary(1, "negative", 0.1)]
    runs = [write_run(tmp_path / "a", first, CLASSIFICATION), write_run(tmp_path / "b", second, CLASSIFICATION)]
    with pytest.raises(DataError, match=words):
        ensemble(runs, "test")
    with pytest.raises(UsageError, match="two runs or more, not 1"):
        ensemble(runs[:1], "test")


def test_training_rows_are_counted_by_the_names_of_the_classes(tmp_path: Path) -> None:
    """The manifest counts the values in the files; several values may be one class."""
    task = {"kind": "classification", "labels": {"0": "negative", "neg": "negative", "1": "positive"}}
    run = write_run(tmp_path / "run", [binary(0, "positive", 0.9)], task)
    manifest = read_json(run.manifest)
    manifest["data"]["train"] |= {"rows": 30, "labels": {"0": 10, "neg": 5, "1": 15}}
    run.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    facts = dict(run_summary.facts(open_report(run, "test")))
    assert facts["Training rows"] == "30, 2 skipped as bad (15 negative, 15 positive)"


def test_a_report_reads_the_first_rows_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", random_records(30), CLASSIFICATION)
    assert len(open_report(run, "test", most=30).records) == 30
    assert not caplog.messages
    assert len(open_report(run, "test", most=20).records) == 20
    assert caplog.messages == [
        "report of test: its tables, figures and lists are of the first 20 rows, its scores of all"
    ]

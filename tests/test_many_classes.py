"""Reports of classifiers with many classes, with classes of any name, and with classes that do not occur."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from test_analysis import classified, random_records, write_run

from trainer import report_stages
from trainer.errors import CheckpointError, Preempted
from trainer.files import read_json
from trainer.report import confusion_matrix
from trainer.report.confusion_matrix import MOST_CLASSES, most_confused
from trainer.report.formats import code, label
from trainer.report.report import analyse
from trainer.report.task_report import open_report
from trainer.tasks.classification.analysis import classification_report, confusion
from trainer.tasks.classification.metrics import Ranking, from_confusion, score_classification
from trainer.tasks.classification.report import MOST_LINES
from trainer.tasks.classification.task import ClassificationConfig

AVERAGES = ["accuracy", "macro avg", "weighted avg", "micro avg", "samples avg", "classes"]
NAMES = ["<b>bold</b>", "two\nlines", "$x_1$", "$", "\\frac", "\N{PILE OF POO}", "日本語", "__proto__", "1", "", "a`b`",
         "\x00\x1b", "x" * 5000, "x" * 4999 + "y"]  # fmt: skip

PEAK = """
import sys
from pathlib import Path
from trainer.tasks.classification.analysis import classification_report, confusion
from trainer.tasks.classification.report import write_confusion
labels = [f"class {n}, with a name of some length" for n in range(int(sys.argv[1]))]
records = [{"target": t, "prediction": p} for t, p in zip(labels, labels[1:] + labels[:1])]
write_confusion(confusion(records, labels), *classification_report(records, labels), Path(sys.argv[2]))
status = Path("/proc/self/status").read_text()  # ru_maxrss of a child begins at that of its parent
print(status.partition("VmHWM:")[2].split()[0])
"""


def task(labels: list[str]) -> dict[str, Any]:
    return {"kind": "classification", "labels": labels}


def without_recipe(page: str) -> str:
    return page.partition('<section id="configuration"')[0]


@pytest.mark.parametrize("classes", [150, 1000])
def test_the_files_of_many_classes_take_little_memory(tmp_path: Path, classes: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, str(classes), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(ended.stdout) < 700_000, "KiB"
    assert (tmp_path / "confusion_matrix.png").stat().st_size < 2e6
    assert len(read_json(tmp_path / "confusion_matrix.json")["counts"]) == classes


def test_the_classes_with_most_mistakes_are_shown_and_rows_stay_complete() -> None:
    labels = [f"c{n}" for n in range(40)]
    right = [(label, label) for label in labels for _ in range(3)]
    wrong = [("c39", "c7")] * 5 + [("c20", "c39")] * 2 + [("c7", "c1")]
    matrix = confusion([{"target": t, "prediction": p} for t, p in right + wrong], labels)
    shown = most_confused(matrix, 3)
    assert (shown["labels"], shown["columns"], shown["hidden"]) == (
        ["c7", "c20", "c39"], ["c7", "c20", "c39", "37 others"], 37)  # fmt: skip
    assert shown["counts"] == [[3, 0, 0, 1], [0, 3, 2, 0], [5, 0, 3, 0]]
    assert [sum(row) for row in shown["row_shares"]] == pytest.approx([1.0] * 3)
    assert most_confused(matrix, 40)["counts"] == matrix["counts"]


def test_the_page_of_many_classes_is_bounded(tmp_path: Path) -> None:
    sizes = []
    for classes in (60, 300):
        labels = [f"class number {n}" for n in range(classes)]
        run = write_run(tmp_path / str(classes), random_records(600, labels), task(labels))
        analyse(run, "test")
        page = (run.evaluation("test") / "report.html").read_text(encoding="utf-8")
        assert f"Of {classes} classes the table shows the {MOST_CLASSES} with the most mistakes" in page
        assert f"The {MOST_LINES} classes with the lowest F1" in page
        sizes.append(len(without_recipe(page)))
        report = read_json(run.evaluation("test") / "classification_report.json")
        assert [line["label"] for line in report["classes"]] == labels
    assert sizes[1] < 1.2 * sizes[0]


def test_any_name_of_a_class_can_be_reported(tmp_path: Path) -> None:
    labels = [*AVERAGES, *NAMES]
    records = random_records(400, labels)
    run = write_run(tmp_path / "run", records, task(labels), score_classification(records, labels, resamples=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analyse(run, "test")
    folder = run.evaluation("test")
    truth, said = [r["target"] for r in records], [r["prediction"] for r in records]
    report = read_json(folder / "classification_report.json")
    expected = sk.precision_recall_fscore_support(truth, said, labels=labels, zero_division=0)
    for line, *values in zip(report["classes"], *expected, strict=True):
        assert [line[key] for key in ("precision", "recall", "f1-score", "support")] == pytest.approx(values)
    assert [line["label"] for line in report["classes"]] == labels
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    assert report["macro avg"]["f1-score"] == pytest.approx(sk.f1_score(truth, said, average="macro"))
    assert report["weighted avg"]["recall"] == pytest.approx(sk.recall_score(truth, said, average="weighted"))
    assert report["micro avg"]["support"] == truth.count("micro avg"), "no average of ours: a class as any other"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page
    assert "x" * 100 not in without_recipe(page), "a name of 5,000 characters is shortened"
    text = (folder / "classification_report.txt").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(labels) + 6, "one line for each class"


def test_a_name_is_shortened_in_the_middle() -> None:
    assert label("a  b\nc") == "a b c"
    assert label("") == "(empty)"
    one, other = (label(f"a request about an invoice, part {n}", 22) for n in "12")
    assert one != other
    assert len(one) == len(other) == 22


# -- classes that do not occur -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", ["abab", "aaaa", "abca", "bbdd"])
@pytest.mark.parametrize("said", ["abab", "aacc", "dddd"])
def test_averages_are_scikit_learns_where_classes_do_not_occur(truth: str, said: str) -> None:
    names = list("abcde")
    shares = np.full(5, 0.1) + 0.5 * np.eye(5)[[names.index(label) for label in said]]
    records = [
        classified(n, t, dict(zip(names, p.tolist(), strict=True)))
        for n, (t, p) in enumerate(zip(truth, shares, strict=True))
    ]
    scores = score_classification(records, names, resamples=20)
    pair, macro = (list(truth), list(said)), {"average": "macro", "zero_division": 0}
    assert scores["f1"] == pytest.approx(sk.f1_score(*pair, **macro))
    assert scores["precision"] == pytest.approx(sk.precision_score(*pair, **macro))
    assert scores["recall"] == pytest.approx(sk.recall_score(*pair, **macro))
    with warnings.catch_warnings(action="ignore"):
        assert scores["mcc"] == pytest.approx(sk.matthews_corrcoef(*pair))
    assert "roc_auc" not in scores and "average_precision" not in scores, "undefined without rows of a class"
    assert scores["absent_classes"] == [name for name in names if name not in truth]
    numbers, text = classification_report(records, names)
    for average in ("macro avg", "weighted avg"):
        expected = sk.classification_report(*pair, output_dict=True, zero_division=0)[average]
        assert numbers[average] == pytest.approx(expected)
    missing = [name for name in names if name not in truth + said]
    assert [line["label"] for line in numbers["classes"] if line["f1-score"] is None] == missing
    assert f"Neither a true nor a predicted class: {', '.join(missing)}" in text


def test_no_mistake_is_a_perfect_score_and_absent_classes_are_named(tmp_path: Path) -> None:
    names = ["here", "there", "nowhere <i>"]
    records = [classified(n, name, {**dict.fromkeys(names, 0.1), name: 0.8}) for n, name in enumerate(names[:2] * 3)]
    scores = score_classification(records, names, resamples=10)
    assert (scores["accuracy"], scores["f1"], scores["f1_ci95"]) == (1.0, 1.0, [1.0, 1.0])
    run = write_run(tmp_path / "run", records, task(names), scores)
    analyse(run, "test")
    page = (run.evaluation("test") / "report.html").read_text(encoding="utf-8")
    assert 'No row of this split belongs to the class <bdi class="label">nowhere &lt;i&gt;</bdi>' in page
    assert "<td>nowhere &lt;i&gt;</td>" in page, "and in the table of all numbers"
    assert from_confusion(np.diag([3.0, 0.0])) == dict.fromkeys(("accuracy", "precision", "recall", "f1"), 1.0) | {
        "mcc": 0.0
    }


def test_areas_are_scikit_learns_with_ties_and_weights() -> None:
    draw = np.random.default_rng(1)
    p, true = np.round(draw.dirichlet(np.ones(4), 200), 1), draw.integers(0, 4, 200)
    ranking = Ranking(p, true)
    for weights in (None, draw.integers(0, 3, 200).astype(float)):
        for ours, theirs in (
            (ranking.roc_auc, sk.roc_auc_score),
            (ranking.average_precision, sk.average_precision_score),
        ):
            expected = [theirs(true == c, p[:, c], sample_weight=weights) for c in range(4)]
            assert ours(weights) == pytest.approx(np.mean(expected), abs=1e-12)


# -- what fails --------------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_costs_no_other_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    labels = ["a", "b"]
    run = write_run(tmp_path / "run", random_records(30, labels), task(labels))
    monkeypatch.setattr(confusion_matrix, "draw_confusion", fail)
    with pytest.raises(MemoryError):
        analyse(run, "test")
    written = {path.name for path in run.evaluation("test").iterdir()}
    assert written >= {"report.html", "errors.json", "confusion_matrix.json", "classification_report.txt"}


def test_a_report_that_fails_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise MemoryError("Unable to allocate 23 GiB")

    run = write_run(tmp_path / "run", random_records(5), task(["negative", "positive"]))
    with caplog.at_level(logging.WARNING, "rankzero"):
        report_stages.attempt("the report of test", run, fail)
    (line,) = caplog.messages
    assert "the report of test could not be written: MemoryError: Unable to allocate 23 GiB." in line
    assert f"rankzero report {run.path}" in line

    def stopped() -> None:
        raise Preempted("stopped by SIGTERM")

    with pytest.raises(Preempted):
        report_stages.attempt("the report of test", run, stopped)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_report_is_tried_again_after_an_error_of_the_disk(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_stages, "PAUSES", (0.0, 0.0))
    run = write_run(tmp_path / "run", random_records(5), task(["negative", "positive"]))
    errors: list[Exception] = [OSError(errno.ENOSPC, "No space left on device"), CheckpointError("status.json")]
    errors[1].__context__ = OSError(errno.EIO, "Input/output error")
    left = [*errors, errors[0]][:failures]

    def work() -> str:
        if left:
            raise left.pop()
        return "written"

    with caplog.at_level(logging.INFO, "rankzero"):
        made = report_stages.attempt("the report of test", run, work)
    assert not left
    assert made == ("written" if failures == 2 else None)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (failures == 3)


def test_rows_keep_one_probability_and_share_the_names_of_their_labels(tmp_path: Path) -> None:
    labels = [f"class {n}" for n in range(30)]
    records = random_records(20, labels)
    read = open_report(write_run(tmp_path / "run", records, task(labels)), "test").records
    assert [row["confidence"] for row in read] == [max(row["probabilities"].values()) for row in records]
    assert all("probabilities" not in row and row["labels"] is read[0]["labels"] for row in read)


def test_backticks_become_code() -> None:
    assert code("as `predict` <does>; one ` alone") == "as <code>predict</code> &lt;does&gt;; one ` alone"


@pytest.mark.parametrize("labels", [["a", "b", "a"], [1, "1", 2], {1: "a", "1": "b"}, [1.0, "1.0", 0]])
def test_labels_that_are_the_same_text_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"labels has '(a|1|1\.0)' twice"):
        ClassificationConfig(labels=labels)

"""Confusion matrix as numbers and picture, and precision, recall and F1 of each class."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation.predictions import Record
from trainer.report.formats import label as shortened
from trainer.report.formats import without_surrogates
from trainer.rundir import write_atomically, write_bytes_atomically, write_json

LONGEST_LABEL = 22  # characters of a label's name in the picture
MOST_CLASSES = 25  # in the picture and in the table of the page; cells grow with the square of the classes
COLUMNS = ("precision", "recall", "f1-score", "support")


def confusion(records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """Counts and row shares: row = true class, column = predicted class, both in the order of `labels`.

    Returns:
        {"labels": […], "counts": [[int]], "row_shares": [[float or null]]}; a class without rows has null shares.
    """
    truth, predicted = _ids(records, labels)
    counts = np.bincount(truth * len(labels) + predicted, minlength=len(labels) ** 2).reshape(len(labels), -1)
    return {"labels": list(labels), **_table(counts, counts.sum(1))}


def _table(counts: Any, totals: Any) -> dict[str, Any]:
    pairs = zip(counts.tolist(), totals.tolist(), strict=True)
    shares = [[n / total if total else None for n in row] for row, total in pairs]
    return {"counts": counts.tolist(), "row_shares": shares}


def _ids(records: Sequence[Record], labels: Sequence[str]) -> Any:
    """Class ids of truth and prediction (2, rows): a name may be any text, such as that of an average of a report."""
    ids = {label: number for number, label in enumerate(labels)}
    return np.array([[ids[record[key]] for record in records] for key in ("target", "prediction")], dtype=np.int64)


def most_confused(matrix: dict[str, Any], most: int = MOST_CLASSES) -> dict[str, Any]:
    """The part of a confusion matrix that can be read: at most `most` classes, those with the most mistakes.

    A mistake counts for its true and for its predicted class. Predictions of classes that are left out are summed in
    one more column, so that the shares of a row add up to 1.

    Returns:
        `matrix` with "columns", the labels over the columns, and "hidden", the number of classes left out.
    """
    labels, counts = matrix["labels"], np.array(matrix["counts"], dtype=np.int64)
    if len(labels) <= most:
        return {**matrix, "columns": list(labels), "hidden": 0}
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    kept = np.sort(np.argsort(-wrong, kind="stable")[:most])
    totals, inner = counts[kept].sum(1), counts[np.ix_(kept, kept)]
    shown = np.hstack([inner, (totals - inner.sum(1))[:, None]])
    names, hidden = [labels[i] for i in kept], len(labels) - most
    return {"labels": names, "columns": [*names, f"{hidden} others"], "hidden": hidden, **_table(shown, totals)}


def classification_report(records: Sequence[Record], labels: Sequence[str]) -> tuple[dict[str, Any], str]:
    """scikit-learn's report as numbers and as text: precision, recall, F1 and support per class and averaged.

    As in scikit-learn the averages are over the classes that occur, as truth or as prediction.

    Returns:
        numbers: {"classes": [{"label", "precision", "recall", "f1-score", "support"}], "accuracy", "macro avg": {…},
            "weighted avg": {…}}. "classes" has the order of `labels`, with null scores for a class that does not occur.
            A class is also a key of its own, as scikit-learn writes it, unless its name is another key's.
        text: the table with one line for each class that occurs, and the names of the others.
    """
    from sklearn.metrics import classification_report as report

    truth, predicted = _ids(records, labels)
    occurring = sorted({*truth.tolist(), *predicted.tolist()})
    common: dict[str, Any] = {"labels": occurring, "zero_division": 0}
    found = report(truth, predicted, target_names=list(map(str, occurring)), output_dict=True, **common)
    nothing = {**dict.fromkeys(COLUMNS), "support": 0}
    classes = [{"label": label, **found.get(str(number), nothing)} for number, label in enumerate(labels)]
    for line in classes:
        line["support"] = int(line["support"])
    numbers = {line["label"]: {key: line[key] for key in COLUMNS} for line in classes} | {"classes": classes}
    numbers |= {key: found[key] for key in ("accuracy", "macro avg", "weighted avg")}
    names = [shortened(label, 2 * LONGEST_LABEL) for label in labels]
    text = str(report(truth, predicted, digits=4, target_names=[names[number] for number in occurring], **common))
    absent = ", ".join(name for number, name in enumerate(names) if number not in occurring)
    return numbers, text + (f"\nNeither a true nor a predicted class: {absent}\n" if absent else "")


def write_confusion(matrix: dict[str, Any], report: tuple[dict[str, Any], str], folder: Path) -> list[Path]:
    """Write confusion_matrix.json and .png, classification_report.json and .txt."""
    names = ("confusion_matrix.json", "confusion_matrix.png", "classification_report.json", "classification_report.txt")
    files = [folder / name for name in names]
    lines = (f'  "{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n  ]" for key, rows in matrix.items())
    write_atomically(files[0], "{\n" + ",\n".join(lines) + "\n}\n")  # a line for each class, not for each number
    write_json(files[2], report[0])
    write_atomically(files[3], without_surrogates(report[1]))
    draw_confusion(matrix, files[1])
    return files


def draw_confusion(matrix: dict[str, Any], path: Path) -> None:
    """A heat map of at most MOST_CLASSES classes: counts, and the share of the true class as text and shade."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = most_confused(matrix)
    rows, columns = ([shortened(name, LONGEST_LABEL) for name in shown[key]] for key in ("labels", "columns"))
    shares = np.array(shown["row_shares"], dtype=float)  # null is NaN
    longest = max(map(len, [*rows, *columns]))
    side = max(2.6, 0.62 * len(columns)) + 0.09 * longest
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # emoji in a label: a box is drawn
        figure = Figure(figsize=(side + 0.6, side + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        ax.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            text = f"{shown['counts'][i][j]:,}" + ("" if np.isnan(share) else f"\n{share:.0%}")
            color = "white" if share > 0.5 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color).set_in_layout(False)
        level = len(columns) * longest <= 30  # the names fit side by side
        slant: dict[str, Any] = {} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(len(columns)), columns, **slant)
        ax.set_yticks(range(len(rows)), rows)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted", ylabel="true")
        hidden = f" ({len(rows)} of {len(matrix['labels'])} classes)" if shown["hidden"] else ""
        ax.set_title(f"Rows and share of the true class{hidden}", fontsize=11, loc="left")
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
    write_bytes_atomically(path, target.getvalue())

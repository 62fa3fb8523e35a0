"""Confusion matrix as numbers and picture, and precision, recall and F1 of each class."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.predictions import Record
from trainer.report.inputs import without_surrogates
from trainer.rundir import write_atomically, write_bytes_atomically, write_json

LONGEST_LABEL = 22  # characters of a label's name in the picture
MOST_CLASSES = 25  # in the picture and in the table of the page; cells grow with the square of the classes
AVERAGES = ("macro avg", "weighted avg")
COLUMNS = ("precision", "recall", "f1-score", "support")


def confusion(records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """Counts and row shares: row = true class, column = predicted class, both in the order of `labels`.

    Returns:
        {"labels": […], "counts": [[int]], "row_shares": [[float or null]]}; a class without rows has null shares.
    """
    counts = _counts(records, labels)
    shares = [[n / total if total else None for n in row] for row, total in zip(counts, map(sum, counts), strict=True)]
    return {"labels": list(labels), "counts": counts, "row_shares": shares}


def _counts(records: Sequence[Record], labels: Sequence[str]) -> list[list[int]]:
    truth, predicted = _ids(records, labels)
    cells = np.bincount(truth * len(labels) + predicted, minlength=len(labels) ** 2)
    table: list[list[int]] = cells.reshape(len(labels), len(labels)).tolist()
    return table


def _ids(records: Sequence[Record], labels: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Class ids (rows,) of truth and prediction: a name may look like anything, such as an average of a report."""
    ids = {label: number for number, label in enumerate(labels)}
    pairs = [(ids[record["target"]], ids[record["prediction"]]) for record in records]
    table = np.array(pairs, dtype=np.int64)
    return table[:, 0], table[:, 1]


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
    totals = counts[kept].sum(1)
    shown = np.hstack([counts[np.ix_(kept, kept)], (totals - counts[np.ix_(kept, kept)].sum(1))[:, None]])
    names, hidden = [labels[i] for i in kept], len(labels) - most
    shares = [[n / total if total else None for n in row] for row, total in zip(shown.tolist(), totals, strict=True)]
    return {
        "labels": names,
        "columns": [*names, f"{hidden} others"],
        "counts": shown.tolist(),
        "row_shares": shares,
        "hidden": hidden,
    }


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
    from sklearn.metrics import precision_recall_fscore_support as scores

    truth, predicted = _ids(records, labels)
    occurring = sorted({*truth.tolist(), *predicted.tolist()})
    common: dict[str, Any] = {"labels": occurring, "zero_division": 0}
    each = dict(zip(occurring, np.transpose(scores(truth, predicted, **common)).tolist(), strict=True))
    classes = [_line(label, each.get(number)) for number, label in enumerate(labels)]
    numbers: dict[str, Any] = {"accuracy": float((truth == predicted).mean())}
    for average in AVERAGES:
        values = scores(truth, predicted, average=average.partition(" ")[0], **common)[:3]
        numbers[average] = dict(zip(COLUMNS, [*map(float, values), len(records)], strict=True))
    numbers = {line["label"]: {key: line[key] for key in COLUMNS} for line in classes} | {"classes": classes} | numbers
    names = [shortened(labels[number], 2 * LONGEST_LABEL) for number in occurring]
    text = str(report(truth, predicted, digits=4, target_names=names, **common))
    absent = [shortened(label, 2 * LONGEST_LABEL) for number, label in enumerate(labels) if number not in each]
    return numbers, text + (f"\nNeither a true nor a predicted class: {', '.join(absent)}\n" if absent else "")


def _line(label: str, scores: Sequence[float] | None) -> dict[str, Any]:
    if scores is None:
        return {"label": label, **dict.fromkeys(COLUMNS), "support": 0}
    *shares, support = scores
    return {"label": label, **dict(zip(COLUMNS, [*shares, int(support)], strict=True))}


def write_confusion(records: Sequence[Record], labels: Sequence[str], folder: Path) -> list[Path]:
    """confusion_matrix.json and .png, classification_report.json and .txt in `folder`."""
    matrix = confusion(records, labels)
    numbers, text = classification_report(records, labels)
    files = [
        folder / name
        for name in (
            "confusion_matrix.json",
            "confusion_matrix.png",
            "classification_report.json",
            "classification_report.txt",
        )
    ]
    if len(labels) > MOST_CLASSES:  # one line for each class rather than for each number
        write_atomically(files[0], _rows(matrix))
    else:
        write_json(files[0], matrix)
    write_json(files[2], numbers)
    write_atomically(files[3], without_surrogates(text))
    draw_confusion(matrix, files[1])
    return files


def _rows(matrix: dict[str, Any]) -> str:
    parts = [f'  "{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n  ]" for key, rows in matrix.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def draw_confusion(matrix: dict[str, Any], path: Path) -> None:
    """Two heat maps, counts and shares of each true class, of at most MOST_CLASSES classes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = most_confused(matrix)
    names, columns = list(map(shortened, shown["labels"])), list(map(shortened, shown["columns"]))
    size = len(columns)
    wide = size <= 8  # beside each other; larger ones stand above each other
    side = max(2.6, (0.62 if wide else 0.5) * size) + 0.09 * max(map(len, names))
    figsize = (2 * side + 1.2, side + 0.9) if wide else (side + 1.6, 2 * side + 1.6)
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # emoji in a label: a box is drawn
        figure = Figure(figsize=figsize, layout="constrained")
        FigureCanvasAgg(figure)  # without a canvas seaborn makes a renderer, which holds a picture, per tick label
        left, right = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
        counts = np.array(shown["counts"], dtype=float)
        shares = np.array([[np.nan if s is None else s for s in row] for row in shown["row_shares"]], dtype=float)
        _heat(left, [[f"{int(n):,}" for n in row] for row in counts], names, columns, "rows", shares)
        texts = [["" if np.isnan(s) else f"{s:.0%}" for s in row] for row in shares]
        _heat(right, texts, names, columns, "share of the true class", shares)
        if shown["hidden"]:
            note = f"The {len(names)} of {len(matrix['labels'])} classes with the most mistakes"
            figure.suptitle(note, fontsize=11, x=0.01, ha="left")
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=150 if wide else 100, metadata={"Software": None})
    write_bytes_atomically(path, target.getvalue())


def _heat(
    ax: Any, texts: list[list[str]], names: list[str], columns: list[str], title: str, shade: npt.NDArray[Any]
) -> None:
    import seaborn  # type: ignore[import-untyped]

    size = len(columns)
    seaborn.heatmap(
        np.nan_to_num(shade),  # both are shaded by shares: with unequal classes counts would show the largest only
        annot=np.array(texts, dtype=object),
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=1,
        square=True,
        cbar=False,
        linewidths=1,
        linecolor="white",
        xticklabels=columns,
        yticklabels=names,
        annot_kws={"fontsize": 11 if size <= 8 else 8},
        ax=ax,
    )
    for text in ax.texts:  # lie inside the cells: the layout need not measure hundreds of them
        text.set_in_layout(False)
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.tick_params(axis="both", length=0, labelsize=10 if size <= 8 else 8)
    ax.tick_params(axis="y", rotation=0)
    level = size * max(map(len, columns)) <= 30  # the names fit side by side
    slant: dict[str, Any] = {"rotation": 0} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticklabels(columns, **slant)


def shortened(name: str, longest: int = LONGEST_LABEL) -> str:
    """A class name on one line, without characters that cannot be printed; the middle of a long one is left out."""
    line = " ".join(without_surrogates(name).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) or "(empty)"
    head = longest * 2 // 3
    return line if len(line) <= longest else f"{line[:head]}…{line[head + 1 - longest :]}"

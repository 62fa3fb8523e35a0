"""Which class is taken for which: the confusion matrix as numbers and picture, and scikit-learn's report per class."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.analysis.inputs import without_surrogates
from trainer.evaluation.predictions import Record
from trainer.rundir import write_atomically, write_bytes_atomically, write_json

LONGEST_LABEL = 22  # characters of a label's name in the picture


def confusion(records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """Counts and row shares: row = true class, column = predicted class, both in the order of `labels`.

    Returns:
        {"labels": […], "counts": [[int]], "row_shares": [[float or null]]}; a class without rows has null shares.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(
        [record["target"] for record in records], [record["prediction"] for record in records], labels=list(labels)
    )
    rows = counts.sum(axis=1)
    shares = [[int(n) / int(total) if total else None for n in row] for row, total in zip(counts, rows, strict=True)]
    return {"labels": list(labels), "counts": counts.tolist(), "row_shares": shares}


def classification_report(records: Sequence[Record], labels: Sequence[str]) -> tuple[dict[str, Any], str]:
    """scikit-learn's report as numbers and as text: precision, recall, F1 and support per class and averaged."""
    from sklearn.metrics import classification_report as report

    truth, found = [record["target"] for record in records], [record["prediction"] for record in records]
    common: dict[str, Any] = {"labels": list(labels), "target_names": list(labels), "zero_division": 0}
    numbers = report(truth, found, output_dict=True, **common)
    return _plain(numbers), str(report(truth, found, digits=4, **common))


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
    write_json(files[0], matrix)
    draw_confusion(matrix, files[1])
    write_json(files[2], numbers)
    write_atomically(files[3], without_surrogates(text))
    return files


def draw_confusion(matrix: dict[str, Any], path: Path) -> None:
    """Two heat maps, counts and shares of each true class, readable for 2 to about 20 classes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [_short(name) for name in matrix["labels"]]
    size = len(names)
    wide = size <= 8  # beside each other; larger ones stand above each other
    side = max(2.6, (0.62 if wide else 0.5) * size) + 0.09 * max(map(len, names))
    figsize = (2 * side + 1.2, side + 0.9) if wide else (side + 1.6, 2 * side + 1.6)
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # emoji in a label: a box is drawn
        figure = Figure(figsize=figsize, layout="constrained")
        left, right = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
        counts = np.array(matrix["counts"], dtype=float)
        shares = np.array([[np.nan if s is None else s for s in row] for row in matrix["row_shares"]], dtype=float)
        _heat(left, counts, [[f"{int(n):,}" for n in row] for row in counts], names, "rows", shares)
        texts = [["" if np.isnan(s) else f"{s:.0%}" for s in row] for row in shares]
        _heat(right, shares, texts, names, "share of the true class", shares)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=150 if wide else 100, metadata={"Software": None})
    write_bytes_atomically(path, target.getvalue())


def _heat(
    ax: Any, values: npt.NDArray[Any], texts: list[list[str]], names: list[str], title: str, shade: npt.NDArray[Any]
) -> None:
    import seaborn  # type: ignore[import-untyped]

    size = len(names)
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
        xticklabels=names,
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
    level = size * max(map(len, names)) <= 30  # the names fit side by side
    slant: dict[str, Any] = {"rotation": 0} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticklabels(names, **slant)


def _short(name: str) -> str:
    name = " ".join(without_surrogates(name).split()) or "(empty)"
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def _plain(value: Any) -> Any:
    """numpy numbers as Python's, for JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value

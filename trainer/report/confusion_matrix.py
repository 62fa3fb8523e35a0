"""The confusion matrix of a report: the part that can be read, and its picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from trainer.files import write_bytes_atomically
from trainer.report.formats import label

LONGEST_LABEL = 22  # characters of a class name in the picture
MOST_CLASSES = 25  # in the picture and in the table of the page; cells grow with the square of the classes


def matrix_values(counts: Any, totals: Any) -> dict[str, Any]:
    """Return the counts and their shares of the totals of the lines, null where a total is 0."""
    pairs = zip(counts.tolist(), totals.tolist(), strict=True)
    shares = [[n / total if total else None for n in row] for row, total in pairs]
    return {"counts": counts.tolist(), "row_shares": shares}


def most_confused(matrix: dict[str, Any], most: int = MOST_CLASSES) -> dict[str, Any]:
    """Return the part of a confusion matrix that can be read: at most `most` classes, those with the most mistakes.

    A mistake counts for its true and for its predicted class. "columns" are the labels over the columns. In the last
    are the predictions of the "hidden" other classes, so that the shares of a row add up to 1.
    """
    labels, counts = matrix["labels"], np.array(matrix["counts"], dtype=np.int64)
    if len(labels) <= most:
        return {**matrix, "columns": list(labels), "hidden": 0}
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    kept = np.sort(np.argsort(-wrong, kind="stable")[:most])
    totals, inner = counts[kept].sum(1), counts[np.ix_(kept, kept)]
    shown = np.hstack([inner, (totals - inner.sum(1))[:, None]])
    names, hidden = [labels[i] for i in kept], len(labels) - most
    return {"labels": names, "columns": [*names, f"{hidden} others"], "hidden": hidden, **matrix_values(shown, totals)}


def draw_confusion(matrix: dict[str, Any], path: Path, unit: str = "Rows") -> None:
    """Draw a heat map of at most MOST_CLASSES classes: counts, and the share of the true class as text and shade.

    Args:
        matrix: "labels", "counts" and "row_shares".
        path: of the PNG file.
        unit: what is counted.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = most_confused(matrix)
    rows, columns = ([label(name, LONGEST_LABEL) for name in shown[key]] for key in ("labels", "columns"))
    shares = np.array(shown["row_shares"], dtype=float)  # null is NaN
    longest = max(map(len, [*rows, *columns]))
    side = max(2.6, 0.62 * len(columns)) + 0.09 * longest
    slant: dict[str, Any] = {}
    if len(columns) * longest > 30:  # the names do not fit side by side
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # emoji in a label: a box is drawn
        figure = Figure(figsize=(side + 0.6, side + 0.9), layout="constrained")
        ax = figure.subplots()
        ax.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            text = f"{shown['counts'][i][j]:,}" + ("" if np.isnan(share) else f"\n{share:.0%}")
            color = "white" if share > 0.5 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color).set_in_layout(False)
        ax.set_xticks(range(len(columns)), columns, **slant)
        ax.set_yticks(range(len(rows)), rows)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted", ylabel="true")
        hidden = f" ({len(rows)} of {len(matrix['labels'])} classes)" if shown["hidden"] else ""
        ax.set_title(f"{unit} and share of the true class{hidden}", fontsize=11, loc="left")
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
    write_bytes_atomically(path, target.getvalue())

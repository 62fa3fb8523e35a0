"""What the sections of a report show, as plain values for the templates."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.report import curves
from trainer.report.calibration import calibration
from trainer.report.confusion import classification_report, confusion, most_confused
from trainer.report.errors import Measure, accuracy, errors_by_class, errors_by_length, shared_summary, wrong_rows
from trainer.report.figures import FIRST, INK, SECOND, draw, inline
from trainer.report.inputs import Inputs, finite
from trainer.report.page import fixed, percent
from trainer.report.samples import best_rows, judged_rows, length_outliers, mean_chrf, summarise
from trainer.report.texts import PERPLEXITY, extremes, judged_texts, loss_by_length
from trainer.rundir import read_json

MOST_ERRORS, WORST, BEST, OUTLIERS = 20, 8, 6, 5
MOST_LINES = 50  # classes in a table by class
FEW_ROWS = 20  # an error rate of fewer says little
PREVIEW = 150  # characters of a text before it is opened
HARDEST = 8  # texts of a language model that are shown, and as many of the easiest
HARDEST_READING = (
    "The hardest texts",
    "Their tokens surprised the model most: other languages, lists, names, broken text.",
)
EASIEST_READING = (
    "The easiest",
    "Their tokens surprised it least: often phrases that the training knows by heart.",
)
SHARED_TEXTS = "shared_texts.json"
WORST_READING = (
    "Worst by chrF",
    "The sentences that share least with their one reference: real mistakes, and other ways to say the same.",
)
OUTLIER_READING = (
    "Too long or too short",
    "Of the others, those whose length in words is farthest from the reference's: dropped or repeated parts show here.",
)
BEST_READING = ("Best by chrF", "The best, and of equally good ones the longest.")


def curve_section(inputs: Inputs) -> dict[str, Any] | None:
    """Learning curves and the validations as a table."""
    panels = curves.panels(inputs)
    if not panels:
        return None
    figures = [
        {"svg": Markup(curves.inline_panel(panel, f"c{number}")), "reading": panel.reading}  # noqa: S704  (our own)
        for number, panel in enumerate(panels)
    ]
    lines = curves.evaluations(inputs)
    keys = [key for key in lines[0] if finite(lines[0][key]) and key not in ("epoch", "rows")] if lines else []
    table = [
        [f"{line['step']:,}", *(f"{line[key]:.4f}" if finite(line.get(key)) else "" for key in keys[1:])]
        for line in lines
    ]
    return {"figures": figures, "keys": keys, "table": table}


def confusion_section(inputs: Inputs, labels: Sequence[str]) -> dict[str, Any]:
    """The matrix, its most frequent confusion, and the scores of each class; bounded for any number of classes."""
    matrix = confusion(inputs.records, labels)
    numbers, _ = classification_report(inputs.records, labels)
    classes = numbers["classes"]
    return {
        "total": len(labels),
        "worst": _worst(matrix),
        "classes": sorted_out([line for line in classes if line["precision"] is not None], "f1-score", False),
        "absent": [line["label"] for line in classes if not line["support"]],
        **_table(most_confused(matrix)),
    }


def _table(shown: dict[str, Any]) -> dict[str, Any]:
    """Cells of the confusion matrix."""
    rows = [
        {
            "label": label,
            "total": sum(counts),
            "cells": [
                {"count": count, "share": share, "right": i == j, "shade": _shade(share or 0.0, i == j)}
                for j, (count, share) in enumerate(zip(counts, shares, strict=True))
            ],
        }
        for i, (label, counts, shares) in enumerate(
            zip(shown["labels"], shown["counts"], shown["row_shares"], strict=True)
        )
    ]
    return {"labels": shown["columns"], "hidden": shown["hidden"], "rows": rows}


def _worst(matrix: dict[str, Any]) -> tuple[int, float, str, str] | None:
    """The most frequent confusion: rows, share of the true class, true class, predicted class. None without one."""
    labels, wrong = matrix["labels"], np.array(matrix["counts"], dtype=np.int64)
    np.fill_diagonal(wrong, 0)
    true, predicted = divmod(int(wrong.argmax()), len(labels))
    count = int(wrong[true, predicted])
    return (count, matrix["row_shares"][true][predicted], labels[true], labels[predicted]) if count else None


def sorted_out(lines: list[dict[str, Any]], key: str, largest: bool) -> dict[str, Any]:
    """All lines of a table by class where they are few; else those with the worst values of `key`, in their order."""
    ranked = sorted(range(len(lines)), key=lambda n: lines[n][key], reverse=largest)[:MOST_LINES]
    return {"lines": [lines[n] for n in sorted(ranked)], "total": len(lines)}


def _shade(share: float, right: bool) -> int:
    """0 to 10. Wrong cells are shaded by the root of their share: a tenth of a class must be seen."""
    return round(10 * (share if right else share**0.5))


def calibration_section(inputs: Inputs) -> dict[str, Any]:
    """The reliability curve and what it says in a word."""
    found = calibration(inputs.records)
    gap = found["mean_confidence"] - found["accuracy"]
    filled = [b for b in found["bins"] if b["rows"]]
    label = (
        f"Reliability curve: mean confidence {found['mean_confidence']:.1%}, accuracy {found['accuracy']:.1%}, "
        f"expected calibration error {found['ece']:.3f}"
    )
    svg = inline(draw(lambda figure: _paint_reliability(figure, found), 5.0, 4.3), "calibration", label)
    return {**found, "gap": gap, "filled": filled, "svg": Markup(svg)}  # noqa: S704  (our own)


def _paint_reliability(figure: Any, found: dict[str, Any]) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [b for b in found["bins"] if b["rows"]]
    sure, right = [b["confidence"] for b in filled], [b["accuracy"] for b in filled]
    top.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (2, 3)), label="honest")
    top.vlines(sure, sure, right, color=SECOND, linewidth=1.2)
    top.plot(sure, right, color=FIRST, marker="o", markersize=5, label="this model")
    top.set(ylabel="share right", ylim=(-0.03, 1.03), title="Reliability")
    top.legend(loc="upper left", fontsize=10)
    width = 1 / len(found["bins"])
    bottom.bar(
        [(b["from"] + b["to"]) / 2 for b in found["bins"]],
        [b["rows"] for b in found["bins"]],
        width * 0.86,
        color=FIRST,
    )
    bottom.set(xlabel="confidence", ylabel="rows", xlim=(max(0.0, filled[0]["from"] - width), 1.005))
    bottom.yaxis.set_major_locator(_few_ticks())
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for ax in (top, bottom):
        ax.tick_params(length=0, pad=6)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    top.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(2, integer=True)


def error_section(inputs: Inputs, labels: Sequence[str]) -> dict[str, Any]:
    """The most confident errors and the error rates."""
    wrong, pair = wrong_rows(inputs.records), bool(inputs.recipe["task"].get("pair"))
    shown = [
        {**row, "parts": row["text"].split("\t", 1) if pair else [row["text"]], "preview": preview(row["text"])}
        for row in wrong[:MOST_ERRORS]
    ]
    by_length, by_class = errors_by_length(inputs.records), errors_by_class(inputs.records, labels)
    known = [row for row in (*by_length, *by_class) if row["rows"] >= FEW_ROWS] or by_class
    largest = max(row["error_rate_ci95"][1] for row in known)  # a bucket of three rows must not set the scale
    return {
        "count": len(wrong),
        "rows": len(inputs.records),
        "shown": shown,
        "by_length": by_length,
        "by_class": sorted_out(by_class, "error_rate", True),
        "largest": largest,
        "shared": _shared(inputs, ("accuracy", accuracy), "Accuracy", percent),
    }


def sample_section(inputs: Inputs) -> dict[str, Any]:
    """The best and the worst translations, and chrF by length."""
    rows = judged_rows(inputs.records)
    worst = rows[:WORST]
    seen = {row["id"] for row in worst}
    outliers = [row for row in length_outliers(rows, OUTLIERS + WORST) if row["id"] not in seen][:OUTLIERS]
    groups = [(WORST_READING, worst), (OUTLIER_READING, outliers), (BEST_READING, best_rows(rows, BEST))]
    return {
        **summarise(inputs.records, rows),
        "groups": [
            (*reading, [{**row, "diff": word_diff(row["target"], row["prediction"])} for row in group])
            for reading, group in groups
            if group
        ],
        "shared": _shared(inputs, mean_chrf(rows), "Mean chrF of the sentences", lambda chrf: fixed(chrf, 1)),
    }


def text_section(inputs: Inputs) -> dict[str, Any]:
    """Continuations, the hardest and the easiest texts, and perplexity by length."""
    rows, causal = judged_texts(inputs.records), inputs.recipe["task"].get("objective") == "causal"
    hardest, easiest = extremes(rows, HARDEST)
    groups = [(*HARDEST_READING, hardest), (*EASIEST_READING, easiest)]
    by_length = loss_by_length(inputs.records)
    return {
        "continued": (read_json(inputs.folder / "samples.json") or {}).get("rows", []),
        "groups": [
            (title, text, [{**row, "preview": preview(row["text"])} for row in group])
            for title, text, group in groups
            if group
        ],
        "by_length": by_length,
        "largest": max(line["perplexity"] for line in by_length),
        "reading": "Long texts give a model more to go by, up to the length that it looks back." if causal else "",
        "shared": _shared(inputs, PERPLEXITY, "Perplexity", lambda value: fixed(value, 1)),
    }


def _shared(inputs: Inputs, measure: Measure, name: str, text: Callable[[float], str]) -> dict[str, Any] | None:
    """Texts known from training, scored by today's records; None if nobody has looked."""
    known = read_json(inputs.folder / SHARED_TEXTS)
    if not known:
        return None
    found, key = shared_summary(known["ids"], inputs.records, measure), measure[0]
    scores = {"all": found[key], "without": found[f"{key}_without"], "alone": found[f"{key}_shared"]}
    texts = {which: None if score is None else text(score) for which, score in scores.items()}
    return {"count": found["count"], "rows": found["rows"], "ids": found["ids"], "name": name, **texts}


def word_diff(target: str, prediction: str) -> dict[str, list[tuple[str, bool]]]:
    """Both texts as runs of words, each with whether the other side lacks it: {"target": […], "prediction": […]}."""
    left, right = target.split(), prediction.split()
    sides: dict[str, list[tuple[str, bool]]] = {"target": [], "prediction": []}
    for tag, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if b > a:
            sides["target"].append((" ".join(left[a:b]), tag != "equal"))
        if d > c:
            sides["prediction"].append((" ".join(right[c:d]), tag != "equal"))
    return sides


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= PREVIEW else f"{line[:PREVIEW].rsplit(' ', 1)[0][:PREVIEW]} …"

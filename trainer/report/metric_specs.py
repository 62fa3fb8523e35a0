"""The headline numbers of each task: how each is named, written and read, in a line for a newcomer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.report.confusion import shortened
from trainer.report.inputs import finite
from trainer.report.page import percent


@dataclass(frozen=True)
class Metric:
    """A number of metrics.json."""

    key: str
    name: str
    meaning: str
    scale: tuple[float, float] | None = None  # ends of its bar; None = no natural end
    form: str = "{:.3f}"  # "" = a share, written as percent
    better: str = "Higher is better."

    def text(self, value: float) -> str:
        return self.form.format(value) if self.form else percent(value)


MOST_NAMES = 12  # of a list, in the table
LOWER = "Lower is better."
METRICS = {
    "classification": (
        Metric("accuracy", "Accuracy", "Share of rows whose predicted class is the true one.", (0, 1), ""),
        Metric(
            "f1",
            "F1, macro",
            "Precision and recall of a class in one number, averaged over the classes that occur.",
            (0, 1),
        ),
        Metric("mcc", "MCC", "Matthews correlation of truth and prediction: 1 is perfect, 0 is guessing.", (-1, 1)),
        Metric(
            "roc_auc",
            "ROC-AUC",
            "Chance that a row of a class gets a higher probability for it than a row of another.",
            (0, 1),
        ),
        Metric(
            "ece",
            "ECE",
            "By how much confidence and accuracy differ on average: 0 is honest.",
            (0, 1),
            better=LOWER,
        ),
        Metric("loss", "Loss", "Mean negative log probability of the true class, in nats.", better=LOWER),
    ),
    "language_modeling": (
        Metric(
            "perplexity",
            "Perplexity",
            "Between how many equally likely tokens the model hesitates at each step; depends on the tokenizer.",
            form="{:.2f}",
            better=LOWER,
        ),
        Metric(
            "bits_per_byte",
            "Bits per byte",
            "What a byte of the text costs if the model packs it: comparable between tokenizers.",
            form="{:.3f}",
            better=LOWER,
        ),
        Metric(
            "word_perplexity",
            "Perplexity per word",
            "The same hesitation counted per word at white space: comparable between tokenizers.",
            form="{:.1f}",
            better=LOWER,
        ),
        Metric("accuracy", "Accuracy", "Share of tokens for which the likeliest one was right.", (0, 1), ""),
        Metric("loss", "Loss", "Mean negative log probability of a token, in nats.", better=LOWER),
    ),
    "translation": (
        Metric(
            "bleu",
            "BLEU",
            "Word sequences shared with the reference, 0 to 100; comparable only under the same signature.",
            (0, 100),
            "{:.1f}",
        ),
        Metric(
            "chrf",
            "chrF",
            "Character sequences shared with the reference, 0 to 100; kinder to word endings than BLEU.",
            (0, 100),
            "{:.1f}",
        ),
        Metric(
            "ter",
            "TER",
            "Edits that would turn the translations into the references, per 100 words of these.",
            (0, 100),
            "{:.1f}",
            LOWER,
        ),
        Metric(
            "perplexity",
            "Perplexity",
            "Between how many equally likely tokens the model hesitates at each step.",
            form="{:.2f}",
            better=LOWER,
        ),
        Metric(
            "length_ratio",
            "Length ratio",
            "Length of all translations over that of all references.",
            better="1 is right.",
        ),
    ),
}
_ROUGE = "Mean F1 of the rows, without stemming."
METRICS["text_to_text"] = (
    *METRICS["translation"],
    Metric("rouge1", "ROUGE-1", f"Words shared with the reference. {_ROUGE}", (0, 1)),
    Metric("rouge2", "ROUGE-2", f"Pairs of words shared with the reference. {_ROUGE}", (0, 1)),
    Metric("rougeL", "ROUGE-L", f"Longest common subsequence of words. {_ROUGE}", (0, 1)),
)


def cards(scores: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """The headline numbers that metrics.json holds, the most important one first."""
    return [_card(metric, scores) for metric in METRICS[kind] if finite(scores.get(metric.key))]


def _card(metric: Metric, scores: Mapping[str, Any]) -> dict[str, Any]:
    value, interval = scores[metric.key], interval_of(scores, metric.key)
    return {
        "name": metric.name,
        "value": metric.text(value),
        "interval": [metric.text(end) for end in interval] if interval else None,
        "bar": _bar(metric.scale, interval) if interval and metric.scale else None,
        "meaning": metric.meaning,
        "better": metric.better,
    }


def interval_of(scores: Mapping[str, Any], key: str) -> list[float] | None:
    """[low, high] of a score, None when there is none."""
    interval = scores.get(f"{key}_ci95")
    known = isinstance(interval, list) and len(interval) == 2 and all(map(finite, interval))
    return interval if known else None


def _bar(scale: tuple[float, float], interval: list[float]) -> dict[str, float]:
    """Where an interval lies on a scale, in percent of its width."""
    low, high = (max(0.0, min(100.0, 100 * (end - scale[0]) / (scale[1] - scale[0]))) for end in interval)
    return {"low": round(min(low, 99.2), 2), "width": round(max(0.8, high - low), 2)}


def all_scores(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every number of metrics.json with its interval, for the table."""
    lines = []
    for key, value in scores.items():
        if not key.endswith("_ci95"):
            interval = " to ".join(f"{end:.4f}" for end in interval_of(scores, key) or [])
            lines.append({"name": key, "value": _plain(value), "interval": interval})
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):  # names of classes
        more = f" and {len(value) - MOST_NAMES:,} more" if len(value) > MOST_NAMES else ""
        return ", ".join(shortened(str(name)) for name in value[:MOST_NAMES]) + more
    return f"{value:,}" if isinstance(value, int) else str(value)


def interval_reading(scores: Mapping[str, Any], resamples: int | None) -> str:
    """How to read the intervals; empty when there are none."""
    if not any(key.endswith("_ci95") for key in scores):
        return ""
    drawn = f"{resamples:,} times" if resamples else "many times"
    return (
        f"An interval comes from drawing the rows of this split again, with replacement, {drawn} (bootstrap): 95% of"
        " the scores fell between its ends. It says how much of a score is the luck of these rows; two models whose"
        " intervals overlap widely may be equally good."
    )

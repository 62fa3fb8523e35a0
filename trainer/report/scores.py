"""The numbers of metrics.json as reports, index page and model card show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report.formats import finite, label
from trainer.report.task_report import Section, TaskReport

MOST_NAMES = 12  # of a list, in the table
SHORT_LABEL = 22  # characters of a name in such a list


def headline(report: TaskReport) -> list[dict[str, Any]]:
    """The headline numbers that metrics.json holds, the most important one first: metric, value and interval."""
    return [
        {"metric": metric, "value": report.scores[metric.key], "interval": _interval(report.scores, metric.key)}
        for metric in report.metrics
        if metric.name and finite(report.scores.get(metric.key))
    ]


def all_scores(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Every number of metrics.json: name, value, interval."""
    return [
        (key, _plain(value), " to ".join(f"{end:.4f}" for end in _interval(scores, key) or []))
        for key, value in scores.items()
        if not key.endswith("_ci95")
    ]


def score_section(report: TaskReport) -> list[Section]:
    """The headline numbers, and the table of all."""
    cards = headline(report)
    data = {
        "cards": cards,
        "intervals": any(key.endswith("_ci95") for key in report.scores),
        "resamples": report.recipe.get("evaluation", {}).get("bootstrap"),
        "signature": report.scores.get("signature"),
        "table": all_scores(report.scores),
    }
    return [Section("scores", "Headline numbers", "scores.html.jinja", data)] if cards else []


def _interval(scores: Mapping[str, Any], key: str) -> list[float] | None:
    """[low, high] of a score, None when there is none."""
    ends = scores.get(f"{key}_ci95")
    return ends if isinstance(ends, list) and len(ends) == 2 and all(map(finite, ends)) else None


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):  # names of classes
        more = f" and {len(value) - MOST_NAMES:,} more" if len(value) > MOST_NAMES else ""
        return ", ".join(label(str(name), SHORT_LABEL) for name in value[:MOST_NAMES]) + more
    return f"{value:,}" if isinstance(value, int) else str(value)

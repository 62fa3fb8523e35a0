"""The baselines of a report: simple models on the same rows, from baseline.json."""

from __future__ import annotations

from typing import Any

from trainer.errors import DataError
from trainer.files import read_json
from trainer.report.formats import finite
from trainer.report.run_summary import headline
from trainer.report.task_report import Section, TaskReport

FILE = "baseline.json"
COLUMNS = 4  # headline metrics in the table
FAR = 0.05  # share of a baseline's score by which a model without an interval is worse


def read_baselines(report: TaskReport) -> dict[str, Any] | None:
    """Return baseline.json of the split; None without one that has numbers."""
    found = read_json(report.folder / FILE)
    return found if found and isinstance(found.get("baselines"), list) else None


def baseline_section(report: TaskReport) -> list[Section]:
    """A table of the trained model and the baselines, with the differences of the first metric.

    Raises:
        DataError: baseline.json is not what a run writes.
    """
    found, items = read_baselines(report), headline(report)[:COLUMNS]
    if found is None or not items:
        return []
    metrics, first = [item["metric"] for item in items], items[0]["metric"]
    try:
        data = {
            "metrics": metrics,
            "own": [metric.text(item["value"]) for metric, item in zip(metrics, items, strict=True)],
            "lines": [_line(one, metrics, first) for one in found["baselines"]],
            "warning": _warning(report, items[0], found["baselines"]),
            "train_rows": int(found["train_rows"]),
            "of_rows": found["of_rows"],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{report.folder / FILE}: {error} is missing or wrong; remove the file") from None
    return [Section("baseline", "Against simple models", "baseline.html.jinja", data)]


def _line(one: dict[str, Any], metrics: list[Any], first: Any) -> dict[str, Any]:
    """Return a baseline with its scores and its difference as texts."""
    scores, change = one["scores"], one["model_minus_baseline"].get(first.key) or {}
    texts = [metric.text(scores[metric.key]) if finite(scores.get(metric.key)) else "" for metric in metrics]
    return {**one, "name": str(one["name"]), "texts": texts, "change": _change(first, change)}


def baseline_warning(report: TaskReport) -> str:
    """A sentence about a trained model that is clearly worse than a simple one; empty if it is not."""
    section = baseline_section(report)
    return section[0].data["warning"] if section else ""


def _warning(report: TaskReport, own: dict[str, Any], baselines: list[dict[str, Any]]) -> str:
    metric = own["metric"]
    better = [one for one in baselines if _is_worse(metric, one["scores"], one["model_minus_baseline"])]
    if not better:
        return ""
    texts = [f"{one['name']} ({metric.text(one['scores'][metric.key])})" for one in better]
    return (
        f"On {report.split}, the trained model is worse than {' and '.join(texts)}: its {metric.name} is "
        f"{metric.text(own['value'])}. Train longer, try another optim.lr, and check the labels before you use it."
    )


def _is_worse(metric: Any, scores: dict[str, Any], differences: dict[str, Any]) -> bool:
    """Whether the interval of the difference is on the wrong side of 0. Without one: by more than FAR of the score."""
    change = differences.get(metric.key) or {}
    found: Any = change.get("difference")
    sign = -1 if metric.direction == "min" else 1
    if not finite(found) or not finite(scores.get(metric.key)):
        return False
    ends = change.get("difference_ci95")
    return sign * found < -FAR * abs(scores[metric.key]) if not ends else max(sign * end for end in ends) < 0


def _change(metric: Any, change: dict[str, Any]) -> str:
    """Return how much the trained model differs from a baseline, with the interval."""
    if not finite(change.get("difference")):
        return ""
    factor, digits, unit = (100, 1, " points") if "%" in metric.form else (1, 3, "")
    ends = change.get("difference_ci95")
    interval = f" (95%: {factor * ends[0]:+.{digits}f} to {factor * ends[1]:+.{digits}f})" if ends else ""
    return f"{factor * change['difference']:+.{digits}f}{unit}{interval}"


def baseline_sentence(report: TaskReport) -> str:
    """The first baseline, or why there is none, in a sentence; empty without baseline.json."""
    if reason := (read_json(report.folder / FILE) or {}).get("left_out"):
        return f"There is no baseline: {reason}."
    section = baseline_section(report)
    if not section:
        return ""
    data = section[0].data
    line, of = data["lines"][0], data["of_rows"]
    rows = f"{data['train_rows']:,}" + (f" of {of:,}" if of and of != data["train_rows"] else "")
    change = f"; the trained model differs by {line['change']}" if line["change"] else ""
    warning = f" {data['warning']}" if data["warning"] else ""
    return (
        f"{line['name']} on {rows} training rows reaches {data['metrics'][0].name} {line['texts'][0]}{change}.{warning}"
    )

"""The corpora of data.mix in a report: their rows, how many of them were used, and the last loss."""

from __future__ import annotations

from typing import Any

from trainer.data.quotas import Quotas
from trainer.recipe.sections import DataConfig
from trainer.report.task_report import Section, TaskReport


def mixture_section(report: TaskReport) -> list[Section]:
    """A table of the corpora, if the run has mixed some and logged a step."""
    lines = [line["corpora"] for line in report.history if line.get("corpora")]
    counted = report.manifest.get("data", {}).get("train", {}).get("corpora") or {}
    if not lines or not counted:
        return []
    data = DataConfig.model_validate(report.recipe["data"])
    quotas = Quotas.of(data, [counted[entry.name]["rows"] for entry in data.mix])
    used = {name: of["rows"] for name, of in lines[-1].items()}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "rows": counted[name]["rows"],
            # of rows that were checked in the training, counts are of all corpora together
            "skipped": None if "checked_rows" in counted[name] else sum(counted[name]["bad_rows"].values()),
            "share": share,
            "used": used[name],
            "used_share": used[name] / max(1, sum(used.values())),
            "passes": used[name] / counted[name]["rows"] if counted[name]["rows"] else None,
            "on_end": "repeat" if repeat else "stop",
            "loss": next((line[name]["loss"] for line in reversed(lines) if line[name]["loss"] is not None), None),
        }
        for name, share, repeat in zip(quotas.names, quotas.shares, quotas.repeat, strict=True)
    ]
    return [Section("mixture", "Mixed corpora", "mixture.html.jinja", {"rows": rows})]

"""What was trained on what, and how well it does: sentences, facts and scores of report, index page and model card."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors

from trainer.report.formats import finite
from trainer.report.page import sentences
from trainer.report.task_report import TaskReport

FEW_GROUPS = 4  # of training rows are named in a sentence
MOST_GROUPS = 30  # in a list


def lede(report: TaskReport) -> str:
    """The run in a sentence."""
    goal, unit = report.goal()
    model, rows = report.recipe.get("model", {}), report.manifest.get("data", {}).get("train", {}).get("rows")
    size = parameters(report.run.model)
    return " ".join(sentences("lede.txt.jinja", model=model, parameters=size, goal=goal, unit=unit, rows=rows))


def facts(report: TaskReport) -> list[tuple[str, str]]:
    """(name, value) of what was trained on what; what is not known is left out."""
    manifest = report.manifest
    train = manifest.get("data", {}).get("train", {})
    counted = isinstance(train.get("labels"), dict) and train.get("check", "full") == "full"
    groups = report.row_groups(train["labels"]) if counted else {}
    lines = sentences(
        "facts.txt.jinja",
        report=report,
        manifest=manifest,
        data=manifest.get("data", {}),
        model=report.recipe.get("model", {}),
        stage=report.stage,
        parameters=parameters(report.run.model),
        groups=groups if len(groups) <= FEW_GROUPS and all(map(finite, groups.values())) else {},
        most_groups=_largest(groups) if len(groups) > FEW_GROUPS else [],
        other_groups=max(0, len(groups) - MOST_GROUPS),
        loop_settings=report.recipe.get("loop", {}),
        gpus=Counter(map(str, manifest.get("devices", {}).get("gpus") or [])),
        seconds=_elapsed(manifest, report.status),
        **_progress(report),
    )
    pairs = (line.partition(": ") for line in lines)
    return [(name, value.strip()) for name, _, value in pairs if value.strip()]


def _largest(groups: Mapping[str, Any]) -> list[tuple[str, Any]]:
    known = [(name, rows) for name, rows in groups.items() if finite(rows)]
    return sorted(known, key=lambda group: -group[1])[:MOST_GROUPS]


def left_out(report: TaskReport) -> list[str]:
    """The artifacts that cannot be made, and why; a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in report.run.reasons().items():
        names.setdefault(reason, []).append(name)
    return [f"No {' and no '.join(of)}: {reason}." for reason, of in names.items()]


def headline(report: TaskReport) -> list[dict[str, Any]]:
    """The headline numbers that metrics.json holds, the most important one first: metric, value and interval."""
    return [
        {"metric": metric, "value": report.scores[metric.key], "interval": _interval(report.scores, metric.key)}
        for metric in report.metrics
        if metric.name and finite(report.scores.get(metric.key))
    ]


def _interval(scores: Mapping[str, Any], key: str) -> list[float] | None:
    """[low, high] of a score, None when there is none."""
    ends = scores.get(f"{key}_ci95")
    return ends if isinstance(ends, list) and len(ends) == 2 and all(map(finite, ends)) else None


def parameters(folder: Path) -> int | None:
    """Number of weights in the safetensors files of a folder; None without a complete one.

    A weight that is used twice is counted once. What only a stock library has (see trainer.models.stock) is left out.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("**/*.safetensors")):
        try:
            with safetensors.safe_open(path, framework="np") as file:  # reads the header only
                names = json.loads((file.metadata() or {}).get("rankzero", "null")) or {n: [n] for n in file.keys()}  # noqa: SIM118
                held = set(file.keys())
                for name, parts in names.items():
                    shapes = [file.get_slice(part).get_shape() for part in parts if part in held]
                    sizes[name] = max(sizes.get(name, 0), sum(map(math.prod, shapes)))
        except (OSError, ValueError, AttributeError, safetensors.SafetensorError):
            return None
    return sum(sizes.values()) or None


def _progress(report: TaskReport) -> dict[str, Any]:
    """step, epochs, and medians of the training (speed, MFU, waiting, communication); 0 if not known."""
    last = max((line["step"] for line in report.history), default=report.status.get("step"))
    trained, validated = ([x for x in report.history if x.get("split") == split] for split in ("train", "validation"))
    medians = {}
    for key in ("tokens_per_second", "mfu", "data_wait", "communication"):
        found = sorted(line[key] for line in trained if finite(line.get(key)) and line[key] > 0)
        medians[key] = found[len(found) // 2] if found else 0
    epochs = (line["epoch"] + 1 for line in trained or validated if "epoch" in line)  # counted from 0
    return {
        "step": max(last or 0, report.stage.get("step") or 0),
        "epochs": max(epochs, default=0),
        **medians,
    }


def _elapsed(manifest: Mapping[str, Any], status: Mapping[str, Any]) -> float:
    """Seconds from the first start to the last update of the status; negative if not known."""
    try:
        times = [start["started"] for start in (*manifest.get("starts", []), manifest)]
        began = min(datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z").timestamp() for time in times)
        return float(status["updated"]) - began
    except (KeyError, TypeError, ValueError):
        return -1

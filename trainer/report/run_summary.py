"""What was trained on what, and how well it does: the sentences and facts at the head of a report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.report.formats import finite
from trainer.report.page import sentences
from trainer.report.task_report import TaskReport

FEW_GROUPS = 4  # of training rows are named in a sentence
MODELS = {
    "transformer": "encoder-decoder Transformer",
    "encoder": "Transformer encoder",
    "transformer_xl": "Transformer-XL",
}


def lede(report: TaskReport) -> str:
    """The run in a sentence."""
    goal, unit = report.goal()
    rows = report.manifest.get("data", {}).get("train", {}).get("rows")
    values = {"model": report.recipe.get("model", {}), "parameters": parameters(report.run.model)}
    return " ".join(
        sentences("lede.txt.jinja", name=model_name(report.recipe), goal=goal, unit=unit, rows=rows, **values)
    )


def facts(report: TaskReport) -> list[tuple[str, str]]:
    """(name, value) of what was trained on what; what is not known is left out."""
    manifest, data = report.manifest, report.manifest.get("data", {})
    train = data.get("train", {})
    groups = report.row_groups(train["labels"]) if isinstance(train.get("labels"), dict) else {}
    lines = sentences(
        "facts.txt.jinja",
        name=model_name(report.recipe),
        model=report.recipe.get("model", {}),
        parameters=parameters(report.run.model),
        train=train,
        skipped=sum((train.get("bad_rows") or {}).values()),
        groups=groups if len(groups) <= FEW_GROUPS and all(map(finite, groups.values())) else {},
        data=data,
        split=report.split,
        rows=len(report.records),
        manifest=manifest,
        devices=Counter(map(str, manifest.get("devices", {}).get("gpus") or [])),
        stage=report.stage,
        starts=len(manifest.get("starts", [])) + 1,
        **_progress(report),
    )
    pairs = (line.partition(": ") for line in lines)
    return [(name, value.strip()) for name, _, value in pairs if value.strip()]


def left_out(report: TaskReport) -> list[str]:
    """Which artifacts there can be none of, and why; a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in report.run.reasons().items():
        names.setdefault(reason, []).append(name)
    return [f"No {' and no '.join(of)}: {reason}." for reason, of in names.items()]


def model_name(recipe: Mapping[str, Any]) -> str:
    """The model in a few words, from the recipe."""
    model = recipe.get("model", {})
    if model.get("name") and not model.get("size"):
        return str(model["name"])
    if model.get("architecture"):
        return f"{model['size']} {model['architecture']}" if model.get("size") else str(model["architecture"])
    return MODELS.get(model.get("kind"), str(model.get("kind", "model")))


def parameters(folder: Path) -> int | None:
    """Number of weights in the safetensors files of a folder, from their headers; None without a complete one.

    A weight that is used twice is stored, and counted, once.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, 100_000_000)))
            total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return total or None


def _progress(report: TaskReport) -> dict[str, Any]:
    """step, epochs, tokens_per_second (median) and seconds of the training; 0 or None if not known."""
    history = report.history
    last = max((line["step"] for line in history), default=report.status.get("step"))
    trained = [line for line in history if line.get("split") == "train"]
    lines = trained or [line for line in history if line.get("split") == "validation"]
    speeds = [line["tokens_per_second"] for line in trained if finite(line.get("tokens_per_second"))]
    speeds = sorted(speed for speed in speeds if speed > 0)
    return {
        "step": max(last or 0, report.stage.get("step") or 0),
        "epochs": max((line["epoch"] + 1 for line in lines if "epoch" in line), default=0),  # counted from 0
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else 0,
        "seconds": _elapsed(report.manifest, report.status),
    }


def _elapsed(manifest: Mapping[str, Any], status: Mapping[str, Any]) -> float | None:
    """Seconds from the first start to the last update of the status."""
    try:
        times = [start["started"] for start in (*manifest.get("starts", []), manifest)]
        began = min(datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z").timestamp() for time in times)
        seconds = float(status["updated"]) - began
    except (KeyError, TypeError, ValueError):
        return None
    return seconds if seconds >= 0 else None

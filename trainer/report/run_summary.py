"""What was trained on what, and how well it does: the sentences and facts at the head of a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.report.confusion import shortened
from trainer.report.data_facts import data_facts
from trainer.report.inputs import Inputs, finite
from trainer.report.metric_specs import cards
from trainer.report.page import LONGEST_LABEL, count, percent

FEW_CLASSES = 4  # are named in a sentence


def model_name(recipe: Mapping[str, Any]) -> str:
    """The model in a few words, from the recipe."""
    model = recipe.get("model", {})
    if model.get("name") and not model.get("size"):
        return str(model["name"])
    if model.get("architecture"):
        return f"{model['size']} {model['architecture']}" if model.get("size") else str(model["architecture"])
    kinds = {
        "transformer": "encoder-decoder Transformer",
        "encoder": "Transformer encoder",
        "transformer_xl": "Transformer-XL",
    }
    return kinds.get(model.get("kind"), str(model.get("kind", "model")))


def parameters(folder: Path) -> int | None:
    """Number of weights in the safetensors files of a folder, from their headers; None without a whole one.

    A weight that is used twice is stored, and counted, once.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, 100_000_000)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    elements = 1
                    for length in tensor["shape"]:
                        elements *= length
                    total += elements
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return total or None


def lede(inputs: Inputs, labels: Sequence[str] | None) -> str:
    """The run in a sentence."""
    weights, rows = parameters(inputs.run.model), inputs.manifest.get("data", {}).get("train", {}).get("rows")
    name, size = model_name(inputs.recipe), f" ({round_words(weights)} parameters)" if weights else ""
    if (asked := inputs.recipe.get("model", {})).get("name") and not asked.get("size"):
        model = f"The pretrained model {name}{size} was fine-tuned"
    else:
        model = f"{'An' if name[0] in 'aeiou' else 'A'} {name}{size} was trained from scratch"
    goal, unit = _goal(inputs.recipe["task"], inputs.kind, labels or ())
    return f"{model} to {goal}" + (f" on {count(rows)} {unit}." if rows else ".")


def _goal(task: Mapping[str, Any], kind: str, labels: Sequence[str]) -> tuple[str, str]:
    """What is learned, and what a row is."""
    if kind == "language_modeling":
        causal = task.get("objective") == "causal"
        return ("tell every next token of a text" if causal else "tell which tokens were masked"), "texts"
    if kind == "text_to_text":
        return "write one text after another" + (
            f" (“{task['prefix'].strip()}”)" if task.get("prefix") else ""
        ), "pairs"
    if kind == "translation":
        languages = task.get("src_language", "one language"), task.get("trg_language", "another")
        return f"translate {languages[0]} to {languages[1]}", "sentence pairs"
    unit = "labelled pairs of texts" if task.get("pair") else "labelled texts"
    names = ", ".join(shortened(label, LONGEST_LABEL) for label in labels) if len(labels) <= FEW_CLASSES else ""
    names = f" ({names})" if names else ""
    return f"tell {len(labels)} classes of texts apart{names}", unit


def outcome(inputs: Inputs) -> str:
    """What the headline score means, beside what no learning at all would score."""
    scores, rows = inputs.scores, len(inputs.records)
    first = next(iter(cards(scores, inputs.kind)), None)
    if first is None:
        return ""
    text = f"On the {count(rows)} rows of the {inputs.split} split it reaches {first['name']} {first['value']}"
    text += f" (95% interval {first['interval'][0]} to {first['interval'][1]})." if first["interval"] else "."
    if inputs.kind == "classification":
        label, most = Counter(record["target"] for record in inputs.records).most_common(1)[0]
        name = shortened(label, LONGEST_LABEL)
        text += f" Answering “{name}” every time would be right for {percent(most / rows)} of them."
    return text


def facts(inputs: Inputs) -> list[tuple[str, str]]:
    """(name, value) of what was trained on what; what is not known is left out."""
    recipe, manifest, model = inputs.recipe, inputs.manifest, inputs.recipe.get("model", {})
    weights, data = parameters(inputs.run.model), manifest.get("data", {})
    lines = [
        ("Model", ", ".join(filter(None, (model_name(recipe), _sizes(model))))),
        ("Parameters", count(weights) if weights else ""),
        ("Training rows", _rows(data.get("train", {}), recipe["task"].get("labels"))),
        *data_facts(data),
        ("Rows of this split", f"{count(len(inputs.records))} ({inputs.split})" if inputs.records else ""),
        ("Trained by", _machine(manifest)),
        ("Steps", _steps(inputs)),
        ("Weights in use", _chosen(manifest)),
        ("Time", elapsed(manifest, inputs.status)),
    ]
    lines += [("Warning", _sentence(text)) for text in manifest.get("stages", {}).get("model", {}).get("warnings", ())]
    return [(name, value) for name, value in lines if value]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def left_out(inputs: Inputs) -> list[str]:
    """Which artifacts there can be none of, and why; a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in inputs.run.reasons().items():
        names.setdefault(reason, []).append(name)
    return [f"No {' and no '.join(of)}: {reason}." for reason, of in names.items()]


def _sizes(model: Mapping[str, Any]) -> str:
    layers = model.get("layers") or (
        f"{model['encoder_layers']} + {model['decoder_layers']}" if "encoder_layers" in model else None
    )
    parts = [f"{layers} layers" if layers else "", f"width {model['d_model']}" if "d_model" in model else ""]
    parts += [f"{model['heads']} heads" if "heads" in model else ""]
    parts += [f"pooling {model['pooling']}" if model.get("pooling") not in (None, "auto") else ""]
    return ", ".join(filter(None, parts))


def _rows(train: Mapping[str, Any], names: Any) -> str:
    """Rows, by class where there are few of them; `names`: of the classes, by what stands in the files."""
    if not train.get("rows"):
        return ""
    bad = train.get("bad_rows") or {}
    skipped = sum(bad.values()) if isinstance(bad, dict) else 0
    shares = train.get("labels") or {}
    if isinstance(names, dict) and isinstance(shares, dict):
        named: Counter[str] = Counter()
        for value, rows in shares.items():
            named[str(names.get(value, value))] += rows if finite(rows) else 0
        shares = dict(named)
    text = count(train["rows"]) + (f", {count(skipped)} skipped as bad" if skipped else "")
    if isinstance(shares, dict) and 0 < len(shares) <= FEW_CLASSES and all(map(finite, shares.values())):
        text += f" ({', '.join(f'{count(n)} {label}' for label, n in shares.items())})"
    return text


def _machine(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("engine"):
        return ""
    devices = manifest.get("devices", {})
    gpus = devices.get("gpus") or []
    on = ", ".join(f"{n} × {name}" if n > 1 else name for name, n in Counter(map(str, gpus)).items()) or devices.get(
        "cpu", ""
    )
    ranks = manifest.get("ranks", 1)
    precision = manifest.get("precision", "")
    precision = "fp32" if precision == "no" else precision  # accelerate's word for it
    parts = [f"{manifest['engine']} on {ranks} {'rank' if ranks == 1 else 'ranks'}", precision, on]
    return ", ".join(filter(None, parts))


def _steps(inputs: Inputs) -> str:
    last = max((line["step"] for line in inputs.history), default=inputs.status.get("step"))
    step = max(last or 0, inputs.manifest.get("stages", {}).get("model", {}).get("step") or 0)
    if not step:
        return ""
    trained = [line for line in inputs.history if line.get("split") == "train"]
    lines = trained or [line for line in inputs.history if line.get("split") == "validation"]
    epochs = max((line["epoch"] + 1 for line in lines if "epoch" in line), default=0)  # counted from 0
    known = [float(line["tokens_per_second"]) for line in trained if finite(line.get("tokens_per_second"))]
    speeds = sorted(speed for speed in known if speed > 0)
    text = f"{count(step)}" + (f" in {epochs} {'epoch' if epochs == 1 else 'epochs'}" if epochs else "")
    text += f", {count(speeds[len(speeds) // 2])} tokens a second (median)" if speeds else ""
    early = inputs.manifest.get("stages", {}).get("model", {}).get("stopped_early")
    return text + (f"; stopped early: {_why(early)}" if early else "")


def _why(early: Mapping[str, Any]) -> str:
    """Why early stopping ended a run."""
    evaluations = "1 evaluation" if early["patience"] == 1 else f"{early['patience']} evaluations"
    return f"validation {early['metric']} had not improved in {evaluations}"


def _chosen(manifest: Mapping[str, Any]) -> str:
    stage = manifest.get("stages", {}).get("model", {})
    if not stage:
        return ""
    text = str(stage.get("weights") or f"step {count(stage['step'])}")
    if finite(stage.get("value")) and stage.get("metric"):
        text += f" (validation {stage['metric']} {stage['value']:.4f})"
    return text


def elapsed(manifest: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """From the first start to the status's last word."""
    starts = [*manifest.get("starts", []), manifest]
    try:
        began = min(datetime.strptime(start["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp() for start in starts)
        seconds = float(status["updated"]) - began
    except (KeyError, TypeError, ValueError):
        return ""
    if seconds < 0:
        return ""
    paused = f", {len(starts)} starts and the pauses between them" if len(starts) > 1 else ""
    return f"{duration(seconds)} from start to end{paused}"


def duration(seconds: float) -> str:
    """95 -> 1 min 35 s"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def round_words(number: int | None) -> str:
    """22713216 -> 22.7 million"""
    if not number:
        return ""
    for size, word in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return count(number)

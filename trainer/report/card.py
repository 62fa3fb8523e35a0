"""The model card: README.md of the run directory, in the layout of the Hugging Face Hub, from the run's files alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.report import metric_specs, run_summary
from trainer.report.inputs import Inputs, finite, read_run
from trainer.report.page import TEMPLATES, count
from trainer.report.speed import read_benchmark, recommended
from trainer.rundir import RunDir, read_json, write_atomically

SPLITS = ("test", "validation")
ARTIFACTS = ("onnx", "int8", "bf16", "safetensors")
WEIGHTS = ("bf16", "safetensors")  # what transformers loads
AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
}
PIPELINES = {
    "classification": "text-classification",
    "translation": "translation",
    "text_to_text": "text2text-generation",
    "language_modeling mlm": "fill-mask",
    "language_modeling causal": "text-generation",
}
GOALS = {"accuracy": "accuracy", "bleu": "BLEU", "perplexity": "perplexity"}  # checks of a gate that compare scores
MEGA = 1e6
FEW = 1000


def write_card(run: RunDir) -> Path:
    """Writes README.md; what the run did not leave is left out.

    Raises:
        DataError: no run directory.
        CheckpointError: a JSON file of the run is damaged.
    """
    evaluated = [inputs for split in SPLITS if (inputs := read_run(run, split)).scores]
    inputs = evaluated[0] if evaluated else read_run(run, SPLITS[0])
    gates = {name: gate for name in ARTIFACTS if (gate := read_json(run.export / name / "gate.json"))}
    text = _environment().get_template("card.md.jinja").render(
        front_matter=yaml.safe_dump(front_matter(inputs), sort_keys=False, allow_unicode=True),
        name=inputs.recipe.get("name") or run.path.name,
        lede=run_summary.lede(inputs, _labels(inputs)),
        splits=[(one.split, _rows(one), metric_specs.all_scores(one.scores)) for one in evaluated],
        facts=run_summary.facts(inputs),
        data=[(split, facts) for split, facts in inputs.manifest.get("data", {}).items()],
        root=inputs.recipe["data"].get("root"),
        tokenizer=inputs.manifest.get("tokenizer", {}).get("sha256"),
        manifest=inputs.manifest,
        artifacts=[_artifact(name, gate) for name, gate in gates.items()],
        published=[name for name, gate in gates.items() if gate["passed"]],
        speed=_speed(run),
        limits=_limits(inputs, gates),
        left_out=run_summary.left_out(inputs),
        weights=[name for name in WEIGHTS if gates.get(name, {}).get("passed")],
        auto=_auto(run, inputs.recipe),
        relative=not re.match(r"[\w+]+://|/|~|…", str(inputs.recipe["data"].get("root") or "/")),
        recipe=inputs.recipe_text.rstrip(),
        command=shlex.join(["rankzero", *inputs.manifest.get("command", [])[1:]]),
    )  # fmt: skip
    path = run.path / "README.md"
    write_atomically(path, text)
    return path


def front_matter(inputs: Inputs) -> dict[str, Any]:
    """The YAML that the Hub reads: task, base model, data set, results."""
    recipe, kind = inputs.recipe, inputs.kind
    name, root = str(recipe["model"].get("name") or ""), str(recipe["data"].get("root") or "")
    dataset = root.removeprefix("hf://datasets/") if root.startswith("hf://datasets/") else None
    metrics = [m.key for m in metric_specs.METRICS.get(kind, ()) if finite(inputs.scores.get(m.key))]
    pipeline = pipeline_of(recipe)
    result = {
        "task": {"type": pipeline},
        "dataset": {
            "name": dataset or recipe.get("name"),
            "type": dataset or recipe.get("name"),
            "split": inputs.split,
        },
        "metrics": [{"type": key, "value": round(inputs.scores[key], 6)} for key in metrics],
    }
    found = {
        "library_name": "rankzero",
        "pipeline_tag": pipeline,
        "tags": ["rankzero", str(recipe["model"].get("kind"))],
        "base_model": name.partition("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", name) else None,
        "datasets": [dataset] if dataset else None,
        "metrics": metrics or None,
        "model-index": [{"name": recipe.get("name"), "results": [result]}] if metrics else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def pipeline_of(recipe: Mapping[str, Any]) -> str:
    """The Hub's word for the task."""
    task = recipe["task"]
    return PIPELINES.get(" ".join(filter(None, (task["kind"], task.get("objective")))), task["kind"])


def _auto(run: RunDir, recipe: Mapping[str, Any]) -> str | None:
    """The class of transformers that opens the weights; None of a model that has parts of ours."""
    known = read_json(run.model / "config.json") or {}
    return None if str(known.get("model_type", "rankzero")).startswith("rankzero") else AUTO.get(pipeline_of(recipe))


def _labels(inputs: Inputs) -> list[str] | None:
    names = inputs.recipe["task"].get("labels")
    if inputs.kind != "classification":
        return None
    return list(dict.fromkeys(map(str, names.values() if isinstance(names, dict) else names or [])))


def _rows(inputs: Inputs) -> str:
    return count(inputs.scores["rows"]) if finite(inputs.scores.get("rows")) else "?"


def _artifact(name: str, gate: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table of artifacts."""
    checks = gate.get("checks", {})
    size = sum(
        facts["bytes"]
        for file, facts in gate.get("files", {}).items()
        if file.endswith((".onnx", ".onnx.data", ".safetensors"))
    )
    shown = []
    if finite(checks.get("logits", {}).get("largest_difference")):
        shown.append(f"logits within {checks['logits']['largest_difference']:.2g} of the weights'")
    for key, title in GOALS.items():
        if finite(checks.get(key, {}).get("difference")):
            shown.append(_fall(title, checks[key], 100 if key == "accuracy" else 1))
    if "identical" in checks:
        texts = "continuations" if "perplexity" in checks else "answers"
        shown.append(f"{checks['identical']['share']:.1%} of the {texts} identical")
    if gate.get("kept_fp32"):
        shown.append(f"{len(gate['kept_fp32'])} matrices left in fp32")
    verdict = "passed" if gate["passed"] else f"**failed** ({', '.join(gate['failed'])}), not published"
    return {
        "name": name,
        "size": f"{size / MEGA:.1f} MB" if gate["passed"] else "-",
        "verdict": verdict,
        "rows": f"{count(gate['rows'])} ({gate['split']})" if "rows" in gate else "",
        "numbers": "; ".join(shown),
    }


def _fall(title: str, check: Mapping[str, Any], scale: int) -> str:
    text = f"{title} {scale * check['reference']:.2f} → {scale * check['artifact']:.2f}"
    ends = check.get("difference_ci95")
    return text + (f" (95%: {scale * ends[0]:+.2f} to {scale * ends[1]:+.2f})" if ends else "")


def _speed(run: RunDir) -> dict[str, Any]:
    """Which artifact is the fastest for which batch size, by `rankzero bench`, and where too little was measured."""
    benchmark = read_benchmark(run)
    if benchmark is None:
        return {"fastest": [], "unknown": {}}
    return {"fastest": recommended(benchmark), "unknown": benchmark["not_recommended"]}


def _limits(inputs: Inputs, gates: Mapping[str, Any]) -> list[str]:
    """What a user of the model must know, as far as the run's files tell."""
    data, limits = inputs.recipe["data"], []
    length = data.get("max_length")
    if length:
        cut = "cut" if inputs.kind == "translation" else "cut as in training"
        limits.append(f"Texts of more than {count(length)} tokens are {cut}.")
    limits.append(
        "It knows what its training rows show. Scores on other kinds of text were not measured, nor were fairness, "
        "safety or private content of the data."
    )
    if inputs.recipe["model"].get("name"):
        limits.append(f"What the pretrained model {inputs.recipe['model']['name']} learned before is in it, too.")
    rows = inputs.scores.get("rows")
    if isinstance(rows, int) and rows < FEW:
        limits.append(f"Only {count(rows)} rows were scored: mind the intervals.")
    if gates.get("int8", {}).get("passed"):
        limits.append("In int8 a row's result depends on the rows in its batch; row by row it does not.")
    return limits


def _environment() -> Environment:
    made = Environment(  # noqa: S701 - Markdown, in which `cell` keeps what a run holds from breaking out
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    made.filters["cell"] = cell
    made.filters["count"] = count
    return made


def cell(value: object) -> str:
    """Text within a line or table of Markdown, with no markup of its own."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(str(value).split()))

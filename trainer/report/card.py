"""The model card: README.md of the run directory, in the layout of the Hugging Face Hub, from the run's files alone."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from trainer.files import read_json, write_atomically
from trainer.report import run_summary
from trainer.report.page import environment
from trainer.report.speed import read_benchmark, recommended
from trainer.report.task_report import TaskReport, open_report
from trainer.rundir import RunDir

SPLITS = ("test", "validation")
ARTIFACTS = ("onnx", "int8", "bf16", "safetensors")
WEIGHTS = ("bf16", "safetensors")  # what transformers loads
FILES = (".onnx", ".onnx.data", ".safetensors")  # that count for the size of an artifact


def write_card(run: RunDir) -> Path:
    """Write README.md; what the run does not have is left out.

    Raises:
        DataError: no run directory.
        UsageError: a task that is not known.
        CheckpointError: a JSON file of the run is damaged.
    """
    evaluated = [report for split in SPLITS if (report := open_report(run, split, with_records=False)).scores]
    report = evaluated[0] if evaluated else open_report(run, SPLITS[0], with_records=False)
    gates = {name: gate for name in ARTIFACTS if (gate := read_json(run.export / name / "gate.json"))}
    files = {name: gate.get("files", {}).items() for name, gate in gates.items()}
    sizes = {name: sum(f["bytes"] for path, f in of if path.endswith(FILES)) for name, of in files.items()}
    model_type = (read_json(run.model / "config.json") or {}).get("model_type", "rankzero")
    own_parts = str(model_type).startswith("rankzero")  # transformers cannot load those
    benchmark = read_benchmark(run)
    text = environment(html=False).get_template("card.md.jinja").render(
        front_matter=yaml.safe_dump(front_matter(report), sort_keys=False, allow_unicode=True),
        report=report,
        name=report.recipe.get("name") or run.path.name,
        lede=run_summary.lede(report),
        evaluated=evaluated,
        facts=run_summary.facts(report),
        root=str(report.recipe["data"].get("root") or "/"),
        adapter=read_json(run.adapter / "gate.json"),
        gates={name: {"checks": {}, **gate, "size": sizes[name]} for name, gate in gates.items()},
        published=[name for name, gate in gates.items() if gate["passed"]],
        weights=WEIGHTS,
        fastest=recommended(benchmark) if benchmark else [],
        not_recommended=benchmark["not_recommended"] if benchmark else {},
        left_out=run_summary.left_out(report),
        auto=None if own_parts else report.auto_class,
        command=shlex.join(["rankzero", *report.manifest.get("command", [])[1:]]),
    )  # fmt: skip
    path = run.path / "README.md"
    write_atomically(path, text)
    return path


def front_matter(report: TaskReport) -> dict[str, Any]:
    """The YAML that the Hub reads: task, base model, data set, results."""
    recipe = report.recipe
    name, root = str(recipe["model"].get("name") or ""), str(recipe["data"].get("root") or "")
    hub = root.removeprefix("hf://datasets/") if root.startswith("hf://datasets/") else None
    dataset = hub or recipe.get("name")
    values = {item["metric"].key: round(item["value"], 6) for item in run_summary.headline(report)}
    result = {
        "task": {"type": report.pipeline},
        "dataset": {"name": dataset, "type": dataset, "split": report.split},
        "metrics": [{"type": key, "value": value} for key, value in values.items()],
    }
    found = {
        "library_name": "rankzero",
        "pipeline_tag": report.pipeline,
        "tags": ["rankzero", str(recipe["model"].get("kind"))],
        "base_model": name.partition("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", name) else None,
        "datasets": [hub] if hub else None,
        "metrics": list(values) or None,
        "model-index": [{"name": recipe.get("name"), "results": [result]}] if values else None,
    }
    return {key: value for key, value in found.items() if value is not None}

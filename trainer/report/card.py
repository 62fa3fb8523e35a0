"""The model cards: README.md of the run directory and of model/, in the layout of the Hugging Face Hub.

They are written from the run's files alone.
"""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from trainer.artifact_kinds import KINDS, RUNTIMES, WEIGHTS
from trainer.errors import UsageError
from trainer.files import read_json, write_atomically
from trainer.hub_paths import folder_of
from trainer.report import run_summary
from trainer.report.baselines import baseline_sentence
from trainer.report.page import environment
from trainer.report.speed import read_benchmark, recommended
from trainer.report.task_report import TaskReport, open_report
from trainer.rundir import RunDir

SPLITS = ("test", "validation")
COMMON = ("tokenizers", "numpy")  # packages of every run.py
_ORDER = sorted(KINDS, key=lambda name: name in WEIGHTS)  # programs first
FILES = (".onnx", ".onnx.data", ".xml", ".bin", ".safetensors")  # that count for the size of an artifact


def write_card(run: RunDir) -> Path:
    """Write README.md of the run and of model/; what the run does not have is left out. Return the first.

    Raises:
        DataError: no run directory.
        UsageError: a task that is not known.
        CheckpointError: a JSON file of the run is damaged.
    """
    report, evaluated = _reports(run)
    stock = stock_facts(report)
    for place in (run.path, run.model):
        if place.is_dir():
            text = _rendered(report, evaluated, stock, alone=place == run.model)
            write_atomically(place / "README.md", text)
    return run.path / "README.md"


def hub_card(run: RunDir, repo: str) -> str:
    """Return the card of a repository of the Hub, which has the files of model/, and the artifacts in export/.

    Raises:
        As `write_card`.
    """
    report, evaluated = _reports(run)
    return _rendered(report, evaluated, stock_facts(report), alone=True, repo=repo)


def _reports(run: RunDir) -> tuple[TaskReport, list[TaskReport]]:
    """Return the report that the card is about, and those of all evaluated splits."""
    evaluated = [report for split in SPLITS if (report := open_report(run, split, with_records=False)).scores]
    return (evaluated[0] if evaluated else open_report(run, SPLITS[0], with_records=False)), evaluated


def _rendered(
    report: TaskReport, evaluated: list[TaskReport], stock: dict[str, Any], *, alone: bool, repo: str | None = None
) -> str:
    """Return a card. `alone`: for model/, which may be uploaded without the run. `repo`: the name of its repository."""
    template, run = environment(html=False).get_template("card.md.jinja"), report.run
    gates = {name: gate for name in _ORDER if (gate := read_json(run.export / name / "gate.json"))}
    files = {name: gate.get("files", {}).items() for name, gate in gates.items()}
    sizes = {name: sum(f["bytes"] for path, f in of if path.endswith(FILES)) for name, of in files.items()}
    benchmark, config = read_benchmark(run), report.manifest.get("config")
    front = front_matter(report, evaluated) | ({"library_name": stock["library"]} if alone else {})
    values = {
        "front_matter": yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        "report": report,
        "name": report.recipe.get("name") or run.path.name,
        "lede": run_summary.lede(report),
        "evaluated": evaluated,
        "facts": run_summary.facts(report),
        "root": str(report.recipe["data"].get("root") or "/"),
        "adapter": read_json(run.adapter / "gate.json"),
        "gates": {name: {"checks": {}, **gate, "size": sizes[name]} for name, gate in gates.items()},
        "published": [name for name, gate in gates.items() if gate["passed"]],
        "weights": WEIGHTS,
        "packages": {name: " ".join(_packages([name])) for name in gates},
        "all_packages": _packages([name for name, gate in gates.items() if gate["passed"] and name not in WEIGHTS]),
        "fastest": recommended(benchmark) if benchmark else [],
        "not_recommended": benchmark["not_recommended"] if benchmark else {},
        "left_out": run_summary.left_out(report),
        "config": f" --config {shlex.quote(config)}" if config else "",
        "command": shlex.join(["rankzero", *report.manifest.get("command", [])[1:]]),
        "alone": alone,
        "repo": repo,
        "baselines": {one.split: baseline_sentence(one) for one in evaluated},
        "stock": stock,
        "usage": partial(report.usage, pooling=stock["pooling"]),
    }
    return template.render(values)


def _packages(names: list[str]) -> list[str]:
    """Return the packages that the programs of artifacts need."""
    return list(dict.fromkeys([*(p for name in names for p in RUNTIMES[KINDS[name].runtime].packages), *COMMON]))


def stock_facts(report: TaskReport) -> dict[str, Any]:
    """Return which stock library loads model/, by its files and its gate.

    Keys: `library`, its name on the Hub; `pooling` of sentence-transformers or None; `loads`, whether the library is
    expected to give the outputs of rankzero; `gate`, the content of gate.json or an empty object.
    """
    run = report.run
    gate = read_json(run.model / "gate.json") or {}
    modes = read_json(run.model / "1_Pooling" / "config.json") or {}
    pooling = next((key.removeprefix("pooling_mode_") for key, on in modes.items() if on is True), None)
    model_type = str((read_json(run.model / "config.json") or {}).get("model_type", "rankzero"))
    loads = not model_type.startswith("rankzero") and gate.get("passed", True) and gate.get("applicable", True)
    library = "rankzero" if not loads else "sentence-transformers" if pooling else "transformers"
    return {"library": library, "pooling": pooling, "loads": loads, "gate": gate}


def front_matter(report: TaskReport, evaluated: list[TaskReport]) -> dict[str, Any]:
    """The YAML that the Hub reads: task, base model, data set, results of the evaluated splits (model-index)."""
    recipe = report.recipe
    name, root = str(recipe["model"].get("name") or ""), str(recipe["data"].get("root") or "")
    hub = root.removeprefix("hf://datasets/") if root.startswith("hf://datasets/") else None
    dataset = str(hub or recipe.get("name"))
    results = [
        EvalResult(
            task_type=report.pipeline,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=one.split,
            metric_type=item["metric"].key,
            metric_name=item["metric"].name,
            metric_value=round(item["value"], 6),
        )
        for one in evaluated
        for item in run_summary.headline(one)
    ]
    data = ModelCardData(
        library_name="rankzero",
        pipeline_tag=report.pipeline,
        tags=["rankzero", str(recipe["model"].get("kind"))],
        license=base_license(name),
        base_model=name.partition("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", name) else None,
        datasets=[hub] if hub else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=str(recipe.get("name")) if results else None,
        eval_results=results or None,
    )
    found: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return found


def base_license(name: str) -> str | None:
    """Return the license in the model card of the pretrained model, if its folder has one."""
    try:
        folder = folder_of(name) if name else None
        text = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
    except (OSError, ValueError, UsageError):
        return None
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = re.search(r"^license: *([\w.-]+)$", head, re.MULTILINE)
    return found[1] if found else None

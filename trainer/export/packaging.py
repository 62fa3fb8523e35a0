"""What an artifact has besides its graphs: tokenizers, settings.json, run.py, serve.py and a Dockerfile."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from trainer.artifact_kinds import RUNTIMES, Kind
from trainer.data.target_tokenizer import TARGET, target_of
from trainer.export.program import NAME, generated
from trainer.export.task_export import TaskExport
from trainer.files import write_json

SERVER = "serve.py"
SERVING = ("fastapi", "uvicorn", "prometheus-client")  # packages of the server, besides those of run.py
GRAPHS = ("*.onnx", "*.onnx.data", "gate.json", "README.md")  # files of export/onnx that are no part of other artifacts
DOCKERFILE = """\
# docker build -t {name} . && docker run --rm -p 8000:8000 {gpus}{name}
FROM python:3.12-slim
RUN pip install --no-cache-dir {packages}
WORKDIR /artifact
COPY . .
USER 65534
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["python", "{server}", "--host", "0.0.0.0"]
"""


def write_program(export: TaskExport, model: nn.Module, folder: Path, kind: Kind, **changes: Any) -> None:
    """Write all that a folder needs besides graphs. `changes`: to its settings."""
    tokenizer = export.task.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    if (target := target_of(tokenizer)) is not tokenizer:
        (folder / TARGET).mkdir()
        target.backend_tokenizer.save(str(folder / TARGET / "tokenizer.json"))
    _complete(export, folder, kind, settings(export, model) | changes)


def derive(export: TaskExport, source: Path, folder: Path, kind: Kind) -> None:
    """Write the same for an artifact that is made from the one in `source`."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*GRAPHS), dirs_exist_ok=True)
    _complete(export, folder, kind, json.loads((source / "settings.json").read_text(encoding="utf-8")))


def _complete(export: TaskExport, folder: Path, kind: Kind, values: dict[str, Any]) -> None:
    of_kind = {"runtime": kind.runtime, "device": kind.device, "one_by_one": kind.one_by_one}
    write_json(folder / "settings.json", values | of_kind)
    (folder / NAME).write_text(generated(export, folder), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(SERVER), folder / SERVER)
    (folder / "Dockerfile").write_text(dockerfile(kind), encoding="utf-8")


def dockerfile(kind: Kind) -> str:
    """Return a Dockerfile with the versions that the gate has checked; those of the server if they are installed."""
    packages = [*RUNTIMES[kind.runtime].packages, "tokenizers", "numpy", *SERVING]
    pinned = {name: _pinned(name) for name in packages}
    if kind.device == "cuda":  # the package for GPUs, with the libraries of CUDA
        pinned["onnxruntime"] = pinned["onnxruntime"].replace("onnxruntime", "'onnxruntime-gpu[cuda,cudnn]'")
    gpus = "--gpus all " if kind.device == "cuda" else ""
    name = f"rankzero-{kind.name.replace('_', '-')}"
    return DOCKERFILE.format(name=name, gpus=gpus, packages=" ".join(pinned.values()), server=SERVER)


def _pinned(package: str) -> str:
    module = package.replace("-", "_")
    return f"{package}=={importlib.metadata.version(package)}" if find_spec(module) else package


def settings(export: TaskExport, model: nn.Module) -> dict[str, Any]:
    """Return what run.py needs besides graphs and tokenizer."""
    task, recipe = export.task, export.task.recipe
    shared = {
        "format": 1,
        "name": recipe.name,
        "task": task.kind,
        "program": export.program_name,
        "cleaning": recipe.data.cleaning,
        "columns": list(task.input_columns.values()),  # of the inputs, in a row that is a JSON object
        "prefix": "",
        "max_length": recipe.data.max_length,
        "pad_id": task.pad_id,
        "tokens_per_batch": recipe.evaluation.tokens_per_batch,
        "one_by_one": False,
        "pair": False,
        "left": task.padding.left,
    }
    return shared | export.settings(model)

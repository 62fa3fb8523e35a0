"""How each artifact with a program is made. A conversion writes a folder, and returns the result of its gate."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.artifact_kinds import Kind
from trainer.export.onnx import write_artifact
from trainer.export.quantize import quantize
from trainer.export.rows import Progress, Rows
from trainer.files import read_json
from trainer.rundir import RunDir
from trainer.task.base import Record, Task

TUNING_ROWS = 32  # on which sensitive matrices are found
_CONVERSIONS = {  # by artifact, imported when it is made: most need a package that may not be installed
    "onnx": "trainer.export.conversions:exported",
    "int8": "trainer.export.conversions:quantized",
    "fp16": "trainer.export.half:convert",
    "openvino": "trainer.export.openvino_graphs:convert",
    "openvino_int8": "trainer.export.openvino_graphs:quantize",
    "ctranslate2": "trainer.export.ctranslate2_model:convert",
    "ctranslate2_int8": "trainer.export.ctranslate2_model:convert",
}
CALIBRATED = ("openvino_int8",)  # artifacts whose graph is run on rows before it is written
CTRANSLATE2_MODELS = ("bart", "m2m_100", "marian", "mt5", "pegasus", "t5")  # model_type in config.json of model/


@dataclass(frozen=True)
class Conversion:
    """What a conversion gets.

    Attributes:
        kind: of the artifact.
        rows: with the task, its export and the trained model.
        source: the folder with the fp32 graphs, for a kind that is made from them.
        folder: of the artifact; it exists and is empty.
        gate: checks the artifact in `folder`.
        progress: receives messages.
    """

    kind: Kind
    rows: Rows
    source: Path | None
    folder: Path
    gate: Callable[[], Record]
    progress: Progress

    @property
    def graphs(self) -> Path:
        """The folder with the fp32 graphs."""
        assert self.source is not None
        return self.source


def convert(conversion: Conversion) -> Record:
    """Write the artifact. Return the result of its gate."""
    function: Callable[[Conversion], Record] = pkgutil.resolve_name(_CONVERSIONS[conversion.kind.name])
    return function(conversion)


def why_not_kind(kind: Kind, task: Task, run: RunDir) -> str | None:
    """Return why a kind cannot be made of a run whose model has graphs, as a part of a sentence; None if it can."""
    export = task.exporter()
    if kind.name in CALIBRATED and not hasattr(export.program, "feeds"):
        return f"{kind.name} is for classification and regression"
    if not kind.own_search:
        return None
    if kind.runtime not in export.own_programs:
        return f"{kind.runtime} is for tasks that write a target text for a source text"
    model_type = (read_json(run.model / "config.json") or {}).get("model_type")
    if model_type not in CTRANSLATE2_MODELS:
        return f"{kind.runtime} converts {', '.join(CTRANSLATE2_MODELS)}, not {model_type}"
    return None


def export_graphs(rows: Rows, folder: Path) -> None:
    """Write the fp32 artifact, from which others are made."""
    write_artifact(rows.export, rows.model, folder)


def exported(conversion: Conversion) -> Record:
    """Export the fp32 graphs. Return the result of their gate."""
    export_graphs(conversion.rows, conversion.folder)
    return conversion.gate()


def quantized(conversion: Conversion) -> Record:
    """Quantize the fp32 graphs with onnxruntime."""
    c = conversion
    examples = partial(c.rows.tuning_examples, TUNING_ROWS)
    return quantize(c.rows.export, c.graphs, c.folder, examples, c.gate, c.progress)

"""The graphs in OpenVINO's format: in fp32, or in int8 by NNCF, which leaves operators in fp32 until the score is kept.

int8 scales activations by what it has seen on other rows, so that the answer of a row does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import openvino

from trainer.export.conversions import Conversion
from trainer.export.onnx import quiet
from trainer.export.packaging import derive
from trainer.export.parity_checks import Comparison
from trainer.export.program import load
from trainer.export.runtimes.graphs_openvino import OpenVinoGraph, same_signal_stack
from trainer.task.base import Record

CALIBRATION_ROWS, VALIDATION_ROWS = 300, 1000  # of the split on which no artifact is checked


def convert(conversion: Conversion) -> Record:
    """Convert all graphs. Return the result of the gate."""
    c = conversion
    for path in sorted(c.graphs.glob("*.onnx")):
        openvino.save_model(read_graph(path), c.folder / f"{path.stem}.xml", compress_to_fp16=False)
    derive(c.rows.export, c.graphs, c.folder, c.kind)
    return c.gate()


def quantize(conversion: Conversion) -> Record:
    """Quantize the graph until the loss on tuning rows is within the limit of the gate. Return the gate's result."""
    c, export, task = conversion, conversion.rows.export, conversion.rows.task
    rows, gates = c.rows.tuning_rows(VALIDATION_ROWS, c.progress), task.recipe.export.gates
    artifact: Any = load(export, c.graphs)

    def validate(graph: openvino.CompiledModel, numbers: Iterable[int]) -> tuple[float, None]:
        chosen = [rows[number] for number in numbers]
        artifact.sessions = {"model": OpenVinoGraph(graph)}
        answers = export.artifact_answers(artifact, chosen, c.progress)
        checks, _ = export.compare(Comparison(chosen, answers, exact=False, limits=gates, resamples=1))
        return -max(check["loss"] for check in checks.values() if "loss" in check), None

    examples = [export.encoded(example) for example in c.rows.tuning_examples(CALIBRATION_ROWS)]
    with quiet(), same_signal_stack():
        quantized = nncf.quantize_with_accuracy_control(
            read_graph(c.graphs / "model.onnx"),
            nncf.Dataset(examples, lambda example: artifact.feeds([example])),
            nncf.Dataset(range(len(rows))),
            validate,
            max_drop=gates.int8_accuracy,
            drop_type=nncf.DropType.ABSOLUTE,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(examples),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(num_ranking_workers=1),
        )  # one worker: `validate` puts each graph into the same artifact
    openvino.save_model(quantized, c.folder / "model.xml", compress_to_fp16=False)
    derive(export, c.graphs, c.folder, c.kind)
    return c.gate()


def read_graph(path: Path) -> openvino.Model:
    """Read an ONNX graph. `openvino.convert_model` would do the same and send usage statistics."""
    return openvino.Core().read_model(path)

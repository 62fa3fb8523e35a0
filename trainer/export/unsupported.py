"""Which models cannot be exported to ONNX, and why. These are reported in a sentence and do not fail the export.

Any other error of the exporter is a failure of the gate.
"""

from __future__ import annotations

from trainer.rundir import RunDir, read_json
from trainer.task.base import Task

# By model_type (for our own models: model.kind). tests/test_export_families.py fails once one can be exported.
ARCHITECTURES = {
    "longformer": "torch's exporter cannot follow its windows of attention, whose number differs for each length",
    "reformer": "torch's exporter fixes its hashed attention to the batch that it was shown",
    "transformer_xl": "its memory of the segments before has no place in a graph of one call",
}
BLOCKS = "torch's exporter fixes its blocks of attention to the length that it was shown"


def why_not(task: Task, run: RunDir) -> str | None:
    """Return why the model of a run cannot be exported, as a part of a sentence; None if no reason is known."""
    export = task.exporter()
    if export is None or export.program is None:
        return "its task has no exporter" if export is None else export.no_graphs
    config = read_json(run.model / "config.json") or {}
    config = config.get("trunk", config)
    model_type = str(config.get("model_type", "")).removeprefix("rankzero-")
    reason = ARCHITECTURES.get(model_type)
    if model_type == "big_bird" and config.get("attention_type") == "block_sparse":
        reason = f"{BLOCKS}; model.config={{attention_type: original_full}} avoids that"
    return None if reason is None else f"{model_type}: {reason}"

"""Which models cannot be exported to ONNX, and why: what is known is said in a sentence, and is no failure.

Whatever else the exporter meets is a failure of the gate.
"""

from __future__ import annotations

from trainer.rundir import RunDir, read_json
from trainer.task.base import Task

# By model_type (of our own kinds: model.kind); tests/test_export_families.py tells when one can be exported after all.
ARCHITECTURES = {
    "longformer": "torch's exporter cannot follow its windows of attention, which are counted anew for each length",
    "reformer": "torch's exporter fixes its hashed attention to the batch that it was shown",
    "transformer_xl": "its memory of the segments before has no place in a graph of one call",
}
BLOCKS = "torch's exporter fixes its blocks of attention to the length that it was shown"
# By what a task calls its artifact.
TASKS = {
    "": "its task has no exporter",
    "masked": "a masked language model is where others begin (model.init_from): what is fine-tuned from it is exported",
}


def why_not(task: Task, run: RunDir) -> str | None:
    """Why the model of a run cannot be exported, as a part of a sentence; None if it can, as far as we know."""
    if (reason := TASKS.get(task.artifact)) is not None:
        return reason
    config = read_json(run.model / "config.json") or {}
    config = config.get("trunk", config)
    found = str(config.get("model_type", "")).removeprefix("rankzero-")
    reason = ARCHITECTURES.get(found)
    if found == "big_bird" and config.get("attention_type") == "block_sparse":
        reason = f"{BLOCKS}; model.config={{attention_type: original_full}} has none"
    return None if reason is None else f"{found}: {reason}"

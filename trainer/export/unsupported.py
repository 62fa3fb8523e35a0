"""Which models cannot be exported to ONNX. The reason is reported in a sentence, and the export does not fail.

Any other error of the exporter is a failure of the gate. tests/test_export_families.py fails once a reason is outdated.
"""

from __future__ import annotations

from trainer.files import read_json
from trainer.models.families import family_of
from trainer.rundir import RunDir
from trainer.task.base import Task


def why_not(task: Task, run: RunDir) -> str | None:
    """Return why the model of a run cannot be exported, as a part of a sentence; None if no reason is known."""
    export = task.exporter()
    if export.program is None:
        return export.no_graphs
    config = read_json(run.model / "config.json") or {}
    config = config.get("trunk", config)
    reason = family_of(config).export_problem(config)
    return None if reason is None else f"{config['model_type']}: {reason}"

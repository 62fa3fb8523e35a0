"""What a run of the tiny recipe comes to, to compare it with another run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from processes import read_lines

STEPS = 14  # saved at 3, 4, 6, 8, 9, 12 and 14; evaluated at 4, 8, 12 and 14


def checkpoint_of(run: Path, step: int = STEPS) -> Path:
    return run / f"checkpoints/step-{step:08d}"


def outcome(run: Path, step: int = STEPS) -> dict[str, Any]:
    """All that a run has come to: last checkpoint, chosen weights, scores and predictions as hashes; rows by step."""
    files = [
        *checkpoint_of(run, step).glob("*.safetensors"),
        *[path for path in (run / "model").glob("*") if path.name != "README.md"],  # it has the command
        *[path for path in (run / "evaluation").glob("*/*") if path.name != "report.html"],  # it tells the time
    ]
    hashes = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(hashes) >= 9, hashes
    return {
        **hashes,
        "state": json.loads((checkpoint_of(run, step) / "state.json").read_text()),
        "rows": read_lines(run / "ledger.jsonl"),
        "scores": [line for line in read_lines(run / "metrics.jsonl") if line["split"] == "validation"],
        "steps": [line["step"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"],
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bitwise equal, naming what is not."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, {name: (found[name], expected[name]) for name in different if name in ("state", "steps")}

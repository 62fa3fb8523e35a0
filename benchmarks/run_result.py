"""Write what benchmarks/results keeps of a training: versions, machine, validation curve, scores with intervals.

    python -m benchmarks.run_result RUN --what 'rankzero train …' --note 'other programs ran' --json FILE

`--what` is the command as a reader would type it, `--note` what the machine did meanwhile. The rest is read from the
run directory. Folders of this machine are not written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import write
from trainer.files import read_json

COPIED = ("versions", "engine", "ranks", "precision")  # of manifest.json


def result(run: Path, what: str, note: str) -> dict[str, Any]:
    """Return the content of the file.

    Raises:
        SystemExit: the run is not finished, or nothing of it was evaluated.
    """
    manifest = read_json(run / "manifest.json") or {}
    status = read_json(run / "status.json") or {}
    scores = {path.parent.name: read_json(path) for path in sorted(run.glob("evaluation/*/metrics.json"))}
    if status.get("state") != "finished" or not scores:
        raise SystemExit(f"{run}: its state is {status.get('state')}, evaluated splits: {', '.join(scores) or 'none'}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    dropped = ("epoch", "split", "rows", "perplexity")
    return {
        "what": what,
        "commit": manifest["git_commit"][:7],
        "machine": {
            "cpu": manifest["devices"]["cpu"],
            "gpus": manifest["devices"]["gpus"],
            "cores": manifest["devices"]["cores"],
            "note": note,
        },
        "started": manifest["started"][:10],
        **{key: manifest[key] for key in COPIED},
        "starts": 1 + len(manifest["starts"]),
        "steps": status["step"],
        "model": manifest["stages"]["model"],
        "curve": [
            {key: value for key, value in line.items() if key not in dropped}
            for line in lines
            if line.get("split") == "validation" and line["step"]
        ],
        **scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--what", required=True, help="the command of the run, as a reader types it")
    parser.add_argument("--note", required=True, help="what else ran on the machine")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    write(options.json, result(options.run, options.what, options.note))


if __name__ == "__main__":
    main()

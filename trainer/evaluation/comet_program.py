"""Score translations with COMET. Runs in COMET's own environment, which has no rankzero: Python 3.8, comet and no more.

Standard input: {"model": FILE, "batch_size": n, "rows": [{"src", "mt", "ref"}, …]}. The argument is the file for the
scores, because libraries print to standard output.
"""

from __future__ import annotations

import json
import pathlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def main() -> dict[str, Any]:
    job = json.load(sys.stdin)
    try:
        import torch
        from comet import load_from_checkpoint  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        return {"missing": str(error)}
    model = load_from_checkpoint(job["model"])
    gpus = 1 if torch.cuda.is_available() else 0
    found = model.predict(job["rows"], batch_size=job["batch_size"], gpus=gpus)
    try:
        package = "unbabel-comet " + version("unbabel-comet")
    except PackageNotFoundError:
        package = "comet"
    return {"scores": [float(score) for score in found["scores"]], "package": package}


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(json.dumps(main()), encoding="utf-8")

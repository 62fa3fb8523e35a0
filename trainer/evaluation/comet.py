"""COMET (Rei et al. 2020): quality of translations by a trained model, in a separate Python environment.

The package unbabel-comet pins other versions of torch, numpy and transformers, so it cannot be installed with rankzero.
Its interpreter and the checkpoint of its model are options or variables; without them the score is skipped with the
reason. A checkpoint is a pickle that COMET's environment reads: it is never taken from a run directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import DataError, RankError, UsageError
from trainer.evaluation import comet_program
from trainer.evaluation.predictions import json_line, read_predictions
from trainer.evaluation.resampling import bootstrap_interval
from trainer.files import read_json, write_atomically, write_json
from trainer.rundir import RunDir

log = logging.getLogger("rankzero")

PYTHON, MODEL = "RANKZERO_COMET_PYTHON", "RANKZERO_COMET_MODEL"
BATCH_ROWS = 16
KEYS = ("comet", "comet_ci95", "comet_model", "comet_sha256", "comet_package", "comet_skipped")


def add_comet(run: RunDir, split: str, python: Path | None, model: Path | None, resamples: int) -> dict[str, Any]:
    """Score predictions.jsonl of a split, and return metrics.json with the score. It is written, too.

    comet: mean of the rows. comet_model and comet_sha256: name and hash of the checkpoint. comet.jsonl has the score of
    each row. Without the environment or the checkpoint comet_skipped has the reason instead.

    Args:
        python: interpreter of COMET's environment; default: the variable RANKZERO_COMET_PYTHON.
        model: checkpoint (.ckpt), or a folder with checkpoints/model.ckpt; default: RANKZERO_COMET_MODEL.
        resamples: behind the interval; 0 = none.

    Raises:
        UsageError: the rows have no texts, as those of a classifier.
        DataError: there are no predictions of the split, or they cannot be read.
        RankError: COMET failed.
    """
    folder = run.evaluation(split)
    rows = [*read_predictions(folder / "predictions.jsonl")]
    if not rows:
        raise DataError(f"{folder}: there are no predictions to score")
    if wrong := next((row for row in rows if not _has_texts(row)), None):
        raise UsageError(f"--with comet: prediction {wrong['id']!r} is no translation of a text")
    found = _skipped(python, model) or _scored(rows, *_places(python, model), resamples)
    if "comet_skipped" in found:
        log.warning("COMET is skipped: %s", found["comet_skipped"])
        (folder / "comet.jsonl").unlink(missing_ok=True)
    else:
        scores = found.pop("scores")
        lines = [json_line({"id": row["id"], "comet": score}) for row, score in zip(rows, scores, strict=True)]
        write_atomically(folder / "comet.jsonl", "".join(lines))
    before = {key: value for key, value in (read_json(folder / "metrics.json") or {}).items() if key not in KEYS}
    write_json(folder / "metrics.json", before | found)
    return before | found


def _has_texts(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row[key], str) for key in ("input", "target", "prediction"))


def _places(python: Path | None, model: Path | None) -> tuple[Path, Path]:
    """Return interpreter and checkpoint, which may not exist."""
    interpreter, checkpoint = python or Path(os.environ.get(PYTHON, "")), model or Path(os.environ.get(MODEL, ""))
    inner = checkpoint / "checkpoints" / "model.ckpt"
    return interpreter, inner if inner.is_file() else checkpoint


def _skipped(python: Path | None, model: Path | None) -> dict[str, Any] | None:
    """Return why COMET cannot run here, None if it may."""
    for place, option, name, what in zip(
        _places(python, model), ("--comet-python", "--comet-model"), (PYTHON, MODEL),
        ("interpreter of an environment with unbabel-comet", "checkpoint of a COMET model"), strict=True,
    ):  # fmt: skip
        if place == Path():
            return {"comet_skipped": f"no {what}: set {option} or {name}"}
        if not place.is_file():
            return {"comet_skipped": f"no {what} at {place}: set {option} or {name}"}
    return None


def _scored(rows: list[dict[str, Any]], python: Path, model: Path, resamples: int) -> dict[str, Any]:
    texts = [{"src": row["input"], "mt": row["prediction"], "ref": row["target"]} for row in rows]
    found = _run(python, {"model": str(model.absolute()), "batch_size": BATCH_ROWS, "rows": texts})
    if "missing" in found:
        return {"comet_skipped": f"{python} has no COMET ({found['missing']}): {python} -m pip install unbabel-comet"}
    scores = found["scores"]
    if len(scores) != len(rows) or not all(map(math.isfinite, scores)):
        raise RankError(f"COMET returned {len(scores)} scores for {len(rows)} rows, or some are not numbers")
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"comet_model": name_of(model), "comet_sha256": digest, "comet_package": found["package"]}
    result = {"comet": math.fsum(scores) / len(scores), **about, "scores": scores}
    if resamples:
        table = np.column_stack([scores, np.ones(len(scores))])
        result["comet_ci95"] = bootstrap_interval(table, lambda sums: sums[0] / sums[1], resamples)
    return result


def name_of(model: Path) -> str:
    """Return the name of a checkpoint's model: "Unbabel/wmt22-comet-da" in a cache of the Hub, else of its folder."""
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/", str(model))
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    folder = model.parent.parent if model.parent.name == "checkpoints" else model.parent
    return folder.name if model.stem == "model" and folder.name else model.stem


def _run(python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run the program in COMET's environment, in an empty folder. Nothing is fetched unless the user allows it."""
    program = Path(str(comet_program.__file__)).read_text(encoding="utf-8")
    env = {"HF_HUB_OFFLINE": "1", **os.environ}
    env.pop("VIRTUAL_ENV", None)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        words = [str(python.absolute()), "-c", program, str(out)]
        done = subprocess.run(words, input=json.dumps(job).encode(), capture_output=True, cwd=folder, env=env)
        found = read_json(out)
    if done.returncode or found is None:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RankError(f"COMET failed in {python} (exit code {done.returncode}): {' '.join(lines[-3:])[-600:]}")
    return found

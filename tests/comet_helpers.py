"""A stand-in for the environment of COMET: an interpreter with the packages comet and torch, and a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

# The interface of unbabel-comet 2.2: comet.load_from_checkpoint(path).predict(samples, batch_size, gpus) -> Prediction,
# a dict with attributes. The score is the share of words of the reference that the translation has.
COMET = """
import json, sys

class Prediction(dict):
    def __getattr__(self, name):
        return self[name]

class Model:
    def __init__(self, factor):
        self.factor = factor

    def predict(self, samples, batch_size=16, gpus=1, devices=None, mc_dropout=0, progress_bar=True, num_workers=None):
        assert gpus == 0 and all(set(sample) == {"src", "mt", "ref"} for sample in samples), samples
        print("Predicting DataLoader 0: 100%")  # as Lightning does
        scores = [
            self.factor * len(set(s["mt"].split()) & set(s["ref"].split())) / len(s["ref"].split()) for s in samples
        ]
        return Prediction(scores=scores, system_score=sum(scores) / len(scores))

def load_from_checkpoint(checkpoint_path, reload_hparams=False, strict=False, local_files_only=False):
    content = open(checkpoint_path).read()
    if content == "broken":
        raise RuntimeError("invalid magic number; corrupt file?")
    return Model(float(content))
"""
TORCH = "class cuda:\n    @staticmethod\n    def is_available():\n        return False\n"


def comet_python(folder: Path) -> Path:
    """Return an interpreter that has comet and torch, and nothing of this environment."""
    packages = folder / "comet-env"
    for name, text in (("comet", COMET), ("torch", TORCH)):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(text)
    interpreter = folder / "comet-python"
    base = getattr(sys, "_base_executable", sys.executable)
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {base} -S "$@"\n')
    interpreter.chmod(0o755)
    return interpreter


def comet_model(folder: Path) -> Path:
    """Return a checkpoint in a cache of the Hub. Its content is the factor of the scores."""
    path = folder / "hub/models--Unbabel--wmt22-comet-da/snapshots/371e/checkpoints/model.ckpt"
    path.parent.mkdir(parents=True)
    path.write_text("0.5")
    return path

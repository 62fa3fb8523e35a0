"""Hostile input: generated rows, recipes, overrides, names, run directories, model files and command lines."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

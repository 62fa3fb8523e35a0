"""Attention of a few rows for the page: read from attention.json, checked, and made small.

    {"note": "…", "rows": [{"id", "title", "prediction", "target", "tokens": […], "keys": […], "layers": L, "heads": H,
     "weights": L x H x T x S, "cls": L x H x S (optional), "relevance": S numbers or null}]}

T tokens are queries, S tokens are keys; for self-attention both are the same. The page draws the mean over layers and
heads without a script. Its script shows any layer and head from the numbers that the page carries.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.files import read_json

Floats = npt.NDArray[np.float64]
LARGEST = 64  # tokens along one side of a matrix; longer rows show their beginning


def read_attention(path: Path) -> list[dict[str, Any]]:
    """Rows ready for the template, [] without the file.

    Raises:
        DataError: a row whose numbers do not fit its tokens, layers and heads, naming row and key.
    """
    found = read_json(path)
    if not found:
        return []
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise DataError(f"{path}: an object with a list `rows` is expected")
    try:
        filled = [row for row in found["rows"] if row["tokens"] != [] and row["keys"] != []]  # an empty text: nothing
        return [_row({"note": found.get("note"), "number": n, **row}) for n, row in enumerate(filled, start=1)]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a row lacks or misuses {error}") from None


def _row(row: dict[str, Any]) -> dict[str, Any]:
    tokens, keys = [str(t) for t in row["tokens"]], [str(t) for t in row["keys"]]
    layers, heads = int(row["layers"]), int(row["heads"])
    where = f"row {row['id']!r}"
    weights = _numbers(row["weights"], (layers, heads, len(tokens), len(keys)), f"{where}, weights")
    strip = weights.mean(axis=2) if tokens == keys else None  # L x H x S: what each token receives
    if row.get("cls") is not None:
        strip = _numbers(row["cls"], (layers, heads, len(keys)), f"{where}, cls")
    relevance = row.get("relevance")
    if relevance is not None:
        relevance = _numbers(relevance, (len(keys),), f"{where}, relevance", signed=True)
    shown, top, left = weights[:, :, :LARGEST, :LARGEST], keys[:LARGEST], tokens[:LARGEST]
    mean = shown.mean(axis=(0, 1))
    script = {"layers": layers, "heads": heads, "tokens": left, "keys": top, "weights": pack(shown)}
    return {
        **{name: str(row.get(name) or "") for name in ("prediction", "target", "note")},
        "number": row["number"],
        "id": str(row["id"]),
        "title": str(row.get("title") or row["id"]),
        "alignment": tokens != keys,
        "from_cls": row.get("cls") is not None,
        "shares": (mean / max(float(mean.max()), 1e-9)).tolist(),
        "cut": (len(left), len(tokens), len(top), len(keys)) if max(len(tokens), len(keys)) > LARGEST else None,
        "strip": _pieces(keys, strip.mean(axis=(0, 1))) if strip is not None else None,
        "relevance": _pieces(keys, relevance) if relevance is not None else None,
        "data": {**script, "strip": pack(strip) if strip is not None else None},
    }


def _numbers(values: Any, shape: tuple[int, ...], where: str, *, signed: bool = False) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: numbers in {len(shape)} even dimensions are expected") from None
    if array.shape != shape or not array.size:
        raise DataError(f"{where}: shape {array.shape} does not fit layers, heads and tokens, which need {shape}")
    if not np.isfinite(array).all() or (not signed and (array.min() < 0 or array.max() > 1.001)):
        raise DataError(f"{where}: a number is not finite or, for a weight, not from 0 to 1")
    return array


def pack(weights: Floats) -> str:
    """Bytes round(255 * sqrt(weight)) in base64. The root keeps small weights apart."""
    roots = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)
    return base64.b64encode(roots.tobytes()).decode()


def _pieces(keys: Sequence[str], values: Floats) -> list[tuple[str, bool, int]]:
    """A token strip: text, whether it continues the word before it (WordPiece's ##), and its shade, -10 to 10."""
    shades = np.rint(10 * values / max(float(np.abs(values).max()), 1e-12)).astype(int).tolist()
    return [
        (key.removeprefix("##") or key, key.startswith("##") and key != "##", shade)
        for key, shade in zip(keys, shades, strict=True)
    ]

"""Attention of a few rows for the page: read from attention.json, checked, and made small.

    {"note": "…", "rows": [{"id", "title", "prediction", "target", "tokens": […], "keys": […], "layers": L, "heads": H,
     "weights": L x H x T x S, "cls": L x H x S (optional), "relevance": S numbers or null}]}

T tokens ask (queries), S keys are looked at; for self-attention both are the same tokens. The page draws the mean over
layers and heads without a script; its script then shows any layer and head from the numbers that the page carries.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from trainer.errors import DataError
from trainer.rundir import read_json

Floats = npt.NDArray[np.float64]
LARGEST = 64  # tokens along one side of a matrix; longer rows show their beginning
LONGEST_NAME = 16  # characters of a token in the matrix
FEW = 20  # tokens; a matrix of no more has wide cells
CELL, WIDE_CELL, LETTER = 17, 24, 7.2  # units


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
        filled = [
            row for row in found["rows"] if row["tokens"] != [] and row["keys"] != []
        ]  # an empty text shows nothing
        return [_row(row, number, found.get("note") or "") for number, row in enumerate(filled, start=1)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {error if isinstance(error, DataError) else f'a row lacks or misuses {error}'}"
        ) from None


def page_data(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the script reads: per row the weights as bytes in base64, each the root of a weight times 255.

    The root keeps small weights apart: among 100 tokens a weight of 0.01 is usual.
    """
    return {"rows": [row["data"] for row in rows]}


def _row(row: dict[str, Any], number: int, note: str) -> dict[str, Any]:
    tokens, keys = [str(t) for t in row["tokens"]], [str(t) for t in row["keys"]]
    layers, heads = int(row["layers"]), int(row["heads"])
    where = f"row {row['id']!r}"
    weights = _numbers(row["weights"], (layers, heads, len(tokens), len(keys)), f"{where}, weights")
    own = tokens == keys
    strip = None  # L x H x S: what one glance shows
    if row.get("cls") is not None:
        strip = _numbers(row["cls"], (layers, heads, len(keys)), f"{where}, cls")
    elif own:
        strip = weights.mean(axis=2)
    relevance = row.get("relevance")
    if relevance is not None:
        relevance = _signed(_numbers(relevance, (len(keys),), f"{where}, relevance", low=None))
    shown, top, left = weights[:, :, :LARGEST, :LARGEST], keys[:LARGEST], tokens[:LARGEST]
    return {
        "number": number,
        "id": str(row["id"]),
        "title": str(row.get("title") or row["id"]),
        "prediction": str(row.get("prediction") or ""),
        "target": str(row.get("target") or ""),
        "note": str(row.get("note") or note),
        "layers": layers,
        "heads": heads,
        "alignment": not own,
        "from_cls": row.get("cls") is not None,
        "matrix": matrix_svg(shown.mean(axis=(0, 1)), left, top, number),
        "cut": (len(left), len(tokens), len(top), len(keys)) if max(len(tokens), len(keys)) > LARGEST else None,
        "strip": _pieces(keys, _share_of_largest(strip.mean(axis=(0, 1)))) if strip is not None else None,
        "relevance": _pieces(keys, relevance) if relevance is not None else None,
        "data": {
            "layers": layers,
            "heads": heads,
            "tokens": left,
            "keys": top,
            "weights": pack(shown),
            "strip": pack(strip) if strip is not None else None,
        },
    }


def _numbers(values: Any, shape: tuple[int, ...], where: str, low: float | None = 0.0) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: numbers in {len(shape)} even dimensions are expected") from None
    if array.shape != shape or not array.size:
        raise DataError(f"{where}: shape {array.shape} does not fit layers, heads and tokens, which need {shape}")
    if not np.isfinite(array).all() or (low is not None and (array.min() < low or array.max() > 1.001)):
        raise DataError(f"{where}: a number is not finite or, for a weight, not from 0 to 1")
    return array


def pack(weights: Floats) -> str:
    """Bytes round(255 * sqrt(weight)) in base64."""
    roots = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)
    return base64.b64encode(roots.tobytes()).decode()


def _share_of_largest(values: Floats) -> Floats:
    return values / max(float(values.max()), 1e-9)


def _signed(values: Floats) -> Floats:
    return values / max(float(np.abs(values).max()), 1e-12)


def _pieces(keys: Sequence[str], shares: Floats) -> list[dict[str, Any]]:
    """A token strip: text, whether it continues the word before it (WordPiece's ##), and its shade -10 to 10."""
    return [
        {
            "text": key.removeprefix("##") or key,
            "joined": key.startswith("##") and key != "##",
            "shade": round(float(share) * 10),
        }
        for key, share in zip(keys, shares, strict=True)
    ]


def matrix_svg(weights: Floats, tokens: Sequence[str], keys: Sequence[str], number: int) -> Markup:
    """A heat map, tokens down and keys along the top; the largest weight has full colour."""
    cell = CELL if max(len(tokens), len(keys)) > FEW else WIDE_CELL
    left = round(max(len(_short(t)) for t in tokens) * LETTER) + 10
    slope = max(len(_short(k)) for k in keys) * LETTER
    top = round(slope * 0.87) + 14  # names rise at 60 degrees
    width, height = left + cell * len(keys) + round(slope * 0.5) + 8, top + cell * len(tokens) + 4
    names = [_name(left - 6, top + cell * (t + 0.5) + 4, 0, token) for t, token in enumerate(tokens)]
    names += [_name(left + cell * (s + 0.5) + 3, top - 6, -60, key) for s, key in enumerate(keys)]
    size = f'width="{cell - 1}" height="{cell - 1}"'
    cells = [
        f'<rect x="{left + cell * s}" y="{top + cell * t}" {size} fill-opacity="{share:.2g}"/>'
        for t, row in enumerate(_share_of_largest(weights))
        for s, share in enumerate(row)
    ]
    label = f"Attention matrix, {len(tokens)} by {len(keys)} tokens; arrow keys read single weights"
    head = Markup(
        '<svg class="matrix" id="matrix-{}" width="{w}" height="{h}" viewBox="0 0 {w} {h}" tabindex="0" role="img" '
        'aria-label="{}">'
    ).format(number, label, w=width, h=height)
    body = Markup('<g class="names">{}</g><g class="cells">{}</g>').format(
        Markup("").join(names),
        Markup("".join(cells)),  # noqa: S704  (numbers only)
    )
    return head + body + Markup(f'<rect class="cursor" {size} x="-99" y="-99"/></svg>')  # noqa: S704  (numbers only)


def _name(x: float, y: float, angle: int, token: str) -> Markup:
    anchor = "start" if angle else "end"
    turn = Markup('transform="translate({},{})rotate({})"').format(x, y, angle)
    return Markup('<text {} text-anchor="{}">{}</text>').format(turn, anchor, _short(token))


def _short(token: str) -> str:
    return token if len(token) <= LONGEST_NAME else f"{token[: LONGEST_NAME - 1]}…"

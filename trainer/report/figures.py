"""Figures as SVG within a page: system fonts, no inline style, colors that follow the page's color scheme.

matplotlib draws. A strict Content-Security-Policy refuses `style` attributes and elements, and a page holds several
figures whose ids must differ, so the SVG is rewritten. Colors become CSS variables with the drawn color as fallback:
the same text can be written to a file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from trainer.report.page import TEMPLATES

INK, LINE, FIRST, SECOND = "#1d2129", "#c9ccd1", "#2558a8", "#b4530f"  # as in figures.mplstyle
PAPER = "#fcfcfa"  # behind figures
VARIABLES = {INK: "--ink", PAPER: "--paper", LINE: "--line", FIRST: "--accent", SECOND: "--warm", "#23704a": "--good"}
DOTTED = {"color": INK, "linewidth": 0.9, "linestyle": (0, (2, 3))}  # reference lines


def draw(paint: Callable[[Any], None], width: float = 5.0, height: float = 3.1) -> str:
    """What `paint` draws on an empty matplotlib Figure of some inches, as SVG. The same figure gives the same text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    target = io.StringIO()
    with rc_context(fname=TEMPLATES / "figures.mplstyle"):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, metadata=metadata)
    return target.getvalue()


def standalone(svg: str) -> str:
    """The figure as the text of a file."""
    return _rewrite(svg, "f").replace("<svg ", '<svg font-family="system-ui, sans-serif" ', 1)


def inline(svg: str, prefix: str, label: str) -> Markup:
    """The figure as an element of a page, in which `prefix` makes its ids unique. `label`: for screen readers."""
    head, _, body = _rewrite(svg, prefix).partition("<svg ")[2].partition(">")
    head = re.sub(r'\b(width|height|xmlns|version)="[^"]*" ?', "", head)
    return Markup('<svg class="figure" role="img" aria-label="{}" {}>{}').format(label, Markup(head), Markup(body))  # noqa: S704


def _rewrite(svg: str, prefix: str) -> str:
    """Turn `style` into attributes, prefix ids, and make colors variables. The text is matplotlib's own."""
    svg = re.sub(r"(?s)<\?xml.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>| xmlns:xlink=\"[^\"]*\"", "", svg)
    svg = re.sub(r'style="([^"]*)"', lambda match: _attributes(match[1]), svg)
    svg = re.sub(r'\bid="|(?:xlink:)?href="#|url\(#', lambda match: match[0].removeprefix("xlink:") + f"{prefix}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(f'"{color}"', f'"var({variable}, {color})"')
    return svg.replace("<svg ", f'<svg stroke-linejoin="round" stroke-linecap="butt" fill="var(--ink, {INK})" ', 1)


def _attributes(style: str) -> str:
    pairs = (part.split(":") for part in style.split(";") if part.strip() and "font-family" not in part)
    return " ".join(f'{name.strip()}="{value.strip().removesuffix("px")}"' for name, value in pairs)

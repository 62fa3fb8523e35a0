"""Figures as SVG within a page: system fonts, no inline style, colors that follow the page's color scheme.

matplotlib draws. A strict Content-Security-Policy refuses `style` attributes and elements, and a page holds several
figures whose ids must differ, so the SVG is rewritten. Colors become CSS variables with the drawn color as fallback:
the same text is also a file of its own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

from markupsafe import Markup

from trainer.report.page import TEMPLATES

INK, LINE, FIRST, SECOND = "#1d2129", "#c9ccd1", "#2558a8", "#b4530f"  # as in figures.mplstyle
VARIABLES = {INK: "--ink", LINE: "--line", FIRST: "--accent", SECOND: "--warm"}
SVG = "http://www.w3.org/2000/svg"
DOTTED = {"color": INK, "linewidth": 0.9, "linestyle": (0, (2, 3))}  # reference lines


def draw(paint: Callable[[Any], None], width: float = 5.0, height: float = 3.1) -> str:
    """What `paint` draws on an empty matplotlib Figure, as SVG text. The same figure gives the same text.

    Args:
        paint: gets the Figure and adds axes.
        width, height: in inches of 72 units; text is 11 units high.
    """
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
    """The figure as a file of its own."""
    root = _rewrite(svg, "f")
    root.set("font-family", "system-ui, sans-serif")
    ET.register_namespace("", SVG)
    return ET.tostring(root, encoding="unicode") + "\n"


def inline(svg: str, prefix: str, label: str) -> Markup:
    """The figure as an element of an HTML page.

    Args:
        svg: from `draw`.
        prefix: for the figure's ids, unique in the page.
        label: what the figure shows, for screen readers.
    """
    root = _rewrite(svg, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"class": "figure", "role": "img", "aria-label": label}
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]  # HTML knows svg without a namespace
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))  # noqa: S704  (escaped by ET)


def _rewrite(svg: str, prefix: str) -> ET.Element:
    root = ET.fromstring(svg)  # noqa: S314  (matplotlib's own text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    used = set(re.findall(r'#([\w-]+)["\)]', svg))
    for element in root.iter():
        _rewrite_element(element, prefix, used)
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "fill": f"var(--ink, {INK})"}
    return root


def _rewrite_element(element: ET.Element, prefix: str, used: set[str]) -> None:
    """Turn `style` into attributes, drop ids that nothing refers to, and prefix the others."""
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name and not name.startswith("font-family"):
            element.set(name, value.removesuffix("px") if name == "font-size" else value)
    if (own := element.attrib.pop("id", None)) in used:
        element.set("id", f"{prefix}-{own}")
    for key, value in list(element.attrib.items()):
        if key.endswith("}href"):
            del element.attrib[key]
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif value.startswith("url(#"):
            element.set(key, f"url(#{prefix}-{value[5:]}")
        elif value in VARIABLES:
            element.set(key, f"var({VARIABLES[value]}, {value})")

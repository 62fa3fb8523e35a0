"""Small figures as SVG that a page can hold: system fonts, no inline style, colours that follow the page's scheme.

matplotlib draws; what it writes is then rewritten, because a strict Content-Security-Policy refuses `style` attributes
and elements, and because a page holds several figures whose ids must not meet. Colours become CSS variables with the
drawn colour as fallback, so that the same text is also a file of its own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

INK, LINE, FIRST, SECOND = "#1d2129", "#c9ccd1", "#2558a8", "#b4530f"
VARIABLES = {INK: "--ink", LINE: "--line", FIRST: "--accent", SECOND: "--warm"}
SVG = "http://www.w3.org/2000/svg"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rankzero",  # the same ids for the same figure
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def draw(paint: Callable[[Any], None], width: float = 5.0, height: float = 3.1) -> str:
    """What `paint` draws on an empty matplotlib Figure, as SVG text. Same figure, same text.

    Args:
        paint: gets the Figure and adds axes.
        width, height: in inches of 72 units; text is 11 units high.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    target = io.StringIO()
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, metadata=bare)
    return target.getvalue()


def standalone(svg: str) -> str:
    """The figure as a file of its own."""
    root = _rewrite(svg, "f")
    root.set("font-family", "system-ui, sans-serif")
    ET.register_namespace("", SVG)
    return ET.tostring(root, encoding="unicode") + "\n"


def inline(svg: str, prefix: str, label: str) -> str:
    """The figure as an element of an HTML page.

    Args:
        svg: from `draw`.
        prefix: for the figure's ids, unique in the page.
        label: what the figure shows, for those who do not see it.
    """
    root = _rewrite(svg, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"class": "figure", "role": "img", "aria-label": label}
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]  # HTML knows svg without a namespace
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _rewrite(svg: str, prefix: str) -> ET.Element:
    root = ET.fromstring(svg)  # noqa: S314  (matplotlib's own text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)\"|url\(#([\w-]+)\)", svg))
    names = {name for pair in used for name in pair if name}
    for element in root.iter():
        _rewrite_element(element, prefix, names)
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "fill": "var(--ink, #1d2129)"}
    return root


def _rewrite_element(element: ET.Element, prefix: str, names: set[str]) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name and not name.startswith("font-family"):
            element.set(name, value.removesuffix("px") if name == "font-size" else value)
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in names:
                element.set("id", f"{prefix}-{value}")
            else:
                del element.attrib["id"]
        elif key.endswith("}href"):
            del element.attrib[key]
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif value.startswith("url(#"):
            element.set(key, f"url(#{prefix}-{value[5:]}")
        elif value in VARIABLES:
            element.set(key, f"var({VARIABLES[value]}, {value})")

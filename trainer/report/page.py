"""One self-contained HTML page: templates with autoescape, and a Content-Security-Policy that allows only its own text.

Everything that a run holds (reviews, labels, tokens, file names) goes through Jinja's escaping, or, for the script's
data, through JSON whose `<`, `>` and `&` are escapes. The style sheet and the script are allowed by their SHA-256; no
`style` attribute, inline handler, image, font or request of anybody else's works even if some text broke out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from trainer.report.confusion import shortened
from trainer.report.inputs import without_surrogates
from trainer.rundir import write_atomically

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_LABEL = 60  # characters of a class name in a page


def write_page(path: Path, template: str, script: str | None = None, **context: Any) -> Path:
    """Renders a template of this package into a file.

    Args:
        path: the HTML file; replaced atomically.
        template: name of the template; it gets `style`, `script` and `policy` besides the context.
        script: name of the script file that the page holds, if any.
        context: values for the template.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    code = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    html = (
        environment()
        .get_template(template)
        .render(
            style=Markup(style),  # noqa: S704  (our own file)
            script=Markup(code),  # noqa: S704  (our own file)
            policy=content_policy(style, code),
            **context,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, without_surrogates(html))
    return path


def content_policy(style: str, script: str) -> str:
    """The policy of a page that holds this style sheet and this script and nothing else that acts."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'" if script else "script-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_data(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: ASCII, and without a character that could end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  (no markup can be left in it)


@functools.cache
def environment() -> Environment:
    """Templates with autoescape for every file, and a value that is missing is a mistake."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": count,
        "percent": percent,
        "fixed": fixed,
        "words_range": words_range,
        "label": label,
        "code": code,
    }
    return made


def count(value: float) -> str:
    """29000 -> 29,000"""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.9214 -> 92.1%"""
    return f"{share * 100:.{digits}f}%"


def fixed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"


def words_range(low: int, high: int | None) -> str:
    """Name of a length bucket."""
    if high is None:
        return f"{low:,} or more"
    return f"up to {high:,}" if low == 0 else f"{low:,} to {high:,}"


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """A class name on one line; the middle of a long one is left out."""
    return shortened(name, longest)


def code(text: str) -> Markup:
    """Text of our own as HTML: what is between backticks becomes code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  (escaped)

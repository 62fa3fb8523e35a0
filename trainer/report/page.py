"""Templates as files: self-contained HTML pages, and texts in Markdown.

All that a run holds (reviews, labels, tokens, file names) is escaped by Jinja, or, for the data of a script, by JSON
whose `<`, `>` and `&` are escapes. A Content-Security-Policy allows the style sheet and the script by their SHA-256.
It forbids `style` attributes, inline handlers, images, fonts and requests, should a text break out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.files import make_parents, write_atomically
from trainer.report.formats import FILTERS, without_surrogates

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def environment(*folders: Path, html: bool) -> Environment:
    """Templates of HTML, in which a missing value is an error, or of Markdown and text, which leave it out."""
    found = Environment(
        loader=FileSystemLoader([TEMPLATES, *folders]),
        autoescape=html,  # noqa: S701  (Markdown has `cell`)
        undefined=StrictUndefined if html else ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    found.filters |= FILTERS
    return found


def write_page(path: Path, template: str, *folders: Path, script: str | None = None, **context: Any) -> Path:
    """Render a template of this package or of `folders` into an HTML file.

    The template gets `style`, `policy` and the text of `script`, the name of a file, besides the context.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    code = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    own = {"style": Markup(style), "script": Markup(code), "policy": content_policy(style, code)}  # noqa: S704
    html = environment(*folders, html=True).get_template(template).render(own | context)
    make_parents(path)
    write_atomically(path, without_surrogates(html))
    return path


def sentences(template: str, **context: Any) -> list[str]:
    """The lines of a template of plain text that are not empty. No value can break a line."""
    found = environment(html=False).overlay(finalize=_unbroken).get_template(template).render(context)
    return [line.strip() for line in found.splitlines() if line.strip()]


def _unbroken(value: object) -> str:
    return " ".join(str(value).splitlines())


def content_policy(style: str, script: str) -> str:
    """The policy of a page that holds this style sheet and this script and nothing else that acts."""
    scripts = f"'{_hash(script)}'" if script else "'none'"
    styles = f"img-src data:; style-src '{_hash(style)}'; script-src {scripts}"
    return f"default-src 'none'; {styles}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_data(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: ASCII, and without a character that could end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  (no markup can be left in it)

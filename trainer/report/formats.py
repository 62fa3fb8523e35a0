"""Number and text formats of reports and model card, in Python and as filters of the templates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

LONGEST_LABEL = 60  # characters of a class name in a page
PREVIEW = 150  # characters of a text that can be opened


def finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn or printed: metrics.jsonl holds null for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """95 -> 1 min 35 s"""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def round_words(number: int) -> str:
    """22713216 -> 22.7 million"""
    for size, word in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return f"{number:,}"


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """A class name on one line, without characters that cannot be printed; the middle of a long one is left out."""
    line = " ".join(without_surrogates(name).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) or "(empty)"
    head = longest * 2 // 3
    return line if len(line) <= longest else f"{line[:head]}…{line[head + 1 - longest :]}"


def short_values(values: Sequence[Any]) -> list[str]:
    """Return values of a recipe as texts. Numbers have four digits, unless different ones would be equal."""
    texts = [f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value) for value in values]
    return texts if len(set(texts)) == len(set(map(str, values))) else [str(value) for value in values]


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= PREVIEW else f"{line[:PREVIEW].rsplit(' ', 1)[0][:PREVIEW]} …"


def without_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD, so that the text can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def code(text: str) -> Markup:
    """HTML of a text that is not from the data: what is between backticks becomes code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  (escaped)


def cell(value: object) -> str:
    """Text within a line or table of Markdown, without markup."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(str(value).split()))


FILTERS: dict[str, Any] = {
    "count": "{:,.0f}".format,  # 29,000
    "percent": lambda share, digits=1: f"{share:.{digits}%}",  # 0.9214 -> 92.1%
    "fixed": lambda value, digits=2: f"{value:.{digits}f}",
} | {form.__name__: form for form in (duration, round_words, label, preview, code, cell)}

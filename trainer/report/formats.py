"""Number and text formats of reports and model card, in Python and as filters of the templates."""

from __future__ import annotations

import math
import re
from typing import Any

from markupsafe import Markup, escape

LONGEST_LABEL = 60  # characters of a class name in a page
PREVIEW = 150  # characters of a text that can be opened


def finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn or printed: metrics.jsonl holds null for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: float) -> str:
    """29000 -> 29,000"""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.9214 -> 92.1%"""
    return f"{share:.{digits}%}"


def fixed(value: float, digits: int = 2) -> str:
    """0.9214 -> 0.92"""
    return f"{value:.{digits}f}"


def words_range(low: int, high: int | None) -> str:
    """Name of a bucket of lengths; without `high` it has no upper end."""
    if high is None:
        return f"{low:,} or more"
    return f"up to {high:,}" if low == 0 else f"{low:,} to {high:,}"


def duration(seconds: float) -> str:
    """95 -> 1 min 35 s"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def round_words(number: int) -> str:
    """22713216 -> 22.7 million"""
    for size, word in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return count(number)


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """A class name on one line, without characters that cannot be printed; the middle of a long one is left out."""
    line = one_line(without_surrogates(name))
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) or "(empty)"
    head = longest * 2 // 3
    return line if len(line) <= longest else f"{line[:head]}…{line[head + 1 - longest :]}"


def one_line(value: object) -> str:
    """The value as text on one line."""
    return " ".join(str(value).split())


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = one_line(text)
    return line if len(line) <= PREVIEW else f"{line[:PREVIEW].rsplit(' ', 1)[0][:PREVIEW]} …"


def without_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD, so that the text can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def code(text: str) -> Markup:
    """HTML of a text of our own: what is between backticks becomes code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  (escaped)


def cell(value: object) -> str:
    """Text within a line or table of Markdown, with no markup of its own."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", one_line(value))


FILTERS = {
    form.__name__: form
    for form in (count, percent, fixed, words_range, duration, round_words, label, preview, code, cell)
}

"""From a row as it stands in a file to the texts that a task sees: named cleaning steps, and the check of every row.

The steps are pure functions `str -> str`; `data.cleaning` lists the ones that are applied, in order. The usual recipe
for sentiment reviews is `[unescape_html, strip_tags, replace_urls, replace_emails, normalize_unicode, fold_whitespace,
lowercase]`: entities first, so that an escaped `&lt;br /&gt;` becomes a tag before tags are stripped.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from trainer.data.formats import MAX_LINE_BYTES, encodable
from trainer.data.labels import label_form, unknown_label
from trainer.data.paths import MISSING, leaves, value_at
from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.data.sources import Row

Cleaner = Callable[[str], str]
MAX_CHARACTERS = MAX_LINE_BYTES  # of one field: as long as a whole line may be

# Every step takes time that is linear in the length of its text, whatever the text is (python -m benchmarks.cleaners).
# An HTML tag: "<" right before a letter or "/", so that "a < b > c" and "<3" stay.
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TAG_OR_COMMENT = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]+\.[^\s<>\"]+", re.IGNORECASE)
_URL_END = ".,;:!?)]}'"  # closes the sentence or the bracket around an address more often than the address
_MAILBOX = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"  # characters before the "@"
_MAIL_HOST = re.compile(r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_WORD_EDGE = re.compile(r"\b(?!\Z)")
_ZERO_WIDTH = {0x200B: " ", 0xFEFF: " "}  # spaces that str.split does not know
_LONG_NUMBER = re.compile(r"&#([0-9]{8,})")
_MARKS = re.compile(r"[^\0-\u02ff]{30,}")  # below U+0300 there are no combining marks


def unescape_html(text: str) -> str:
    """Entities to the characters they stand for: "&amp;" to "&"."""
    return html.unescape(_LONG_NUMBER.sub(_short_number, text)) if "&" in text else text


def _short_number(match: re.Match[str]) -> str:
    """The same character reference with eight digits at most: Python's int() refuses more than 4,300."""
    return "&#" + (match[1].lstrip("0")[:8] or "0")


def strip_tags(text: str) -> str:
    """HTML tags and comments to a space: "good.<br /><br />But" keeps its sentences apart."""
    if "<" not in text:
        return text
    end = text.rfind("-->") + 3 if "-->" in text else 0  # no comment behind it is closed: none is searched for
    return _TAG_OR_COMMENT.sub(" ", text[:end]) + _TAG.sub(" ", text[end:])


def replace_urls(text: str) -> str:
    """Web addresses to the word URL; the punctuation after one stays."""

    def word(match: re.Match[str]) -> str:
        address = match.group()
        return "URL" + address[len(address.rstrip(_URL_END)) :]

    return _URL.sub(word, text)


def replace_emails(text: str) -> str:
    """E-mail addresses to the word EMAIL."""
    parts, done, low, at = [], 0, 0, text.find("@")
    while at >= 0:
        if host := _MAIL_HOST.match(text, at):
            begin = low + len(text[low:at].rstrip(_MAILBOX))
            if edge := _WORD_EDGE.search(text, begin, at):
                parts += [text[done : edge.start()], "EMAIL"]
                done = host.end()
        low = max(done, at + 1)
        at = text.find("@", low)
    return "".join([*parts, text[done:]]) if parts else text


def normalize_unicode(text: str) -> str:
    """Composed form (NFC): what looks alike and means the same is written alike."""
    return unicodedata.normalize("NFC", _MARKS.sub(lambda run: _sorted_marks(run[0], "NFD"), text))


def normalize_compatibility(text: str) -> str:
    """Compatibility form (NFKC). It also changes meaning ("x²" to "x2", "½" to "1⁄2"), so it is never a default."""
    return unicodedata.normalize("NFKC", _MARKS.sub(lambda run: _sorted_marks(run[0], "NFKD"), text))


def _sorted_marks(text: str, form: Literal["NFD", "NFKD"]) -> str:
    """The text decomposed, with its combining marks in canonical order.

    The normalization of Python sorts each run of marks in time that is quadratic in the length of the run.
    """
    characters = "".join(unicodedata.normalize(form, character) for character in text)
    if not any(map(unicodedata.combining, characters)):
        return characters
    runs = groupby(characters, lambda character: unicodedata.combining(character) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)


def fold_whitespace(text: str) -> str:
    """Any run of white space (no-break and zero-width ones, U+0085 and line ends too) to one space; ends stripped."""
    if "\u200b" in text or "\ufeff" in text:
        text = text.translate(_ZERO_WIDTH)
    return " ".join(text.split())


def lowercase(text: str) -> str:
    """Lower case; "ß" stays (`casefold` would make it "ss")."""
    return text.lower()


CLEANERS: dict[str, Cleaner] = {
    step.__name__: step
    for step in (
        unescape_html,
        strip_tags,
        replace_urls,
        replace_emails,
        normalize_unicode,
        normalize_compatibility,
        fold_whitespace,
        lowercase,
    )
}


def cleaner(names: Sequence[str]) -> Cleaner:
    """The steps named, applied in their order.

    Raises:
        UsageError: an unknown step; all unknown ones at once, each with the nearest known one.
    """
    unknown = [name for name in names if name not in CLEANERS]
    if unknown:
        near = {name: difflib.get_close_matches(name, CLEANERS, n=1, cutoff=0.5) for name in unknown}
        hints = [f"{name!r}" + (f" (did you mean {near[name][0]!r}?)" if near[name] else "") for name in unknown]
        raise UsageError(f"data.cleaning: unknown step {', '.join(hints)}; known: {', '.join(CLEANERS)}")
    steps = [CLEANERS[name] for name in names]

    def clean(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return clean


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        id: (shard, row), both from 0.
        reason: what is wrong, in the words that are counted ("is null").
        column: the column at fault; None when the row as a whole cannot be read.
        detail: what was found there, for the message only.
        unknown: a label that task.labels does not list.
    """

    id: tuple[int, int]
    reason: str
    column: str | None = None
    detail: str = ""
    unknown: str | None = None

    def describe(self, shard_name: str, line: str = "") -> str:
        """'train.jsonl, line 19 (row 18), column "en": is null'; without a line 'train.jsonl:17 (row 18), …'.

        An id counts rows from 0. Rows and lines count from 1. A header and blank lines are no rows.

        Args:
            shard_name: name of the file.
            line: from `line_numbers.lines_of`, where it is known.
        """
        column = f', column "{self.column}"' if self.column is not None else ""
        place = f"{shard_name}, {line}" if line else f"{shard_name}:{self.id[1]}"
        return f"{place} (row {self.id[1] + 1}){column}: {self.reason}{self.detail}"


def clean_row(row: Row, roles: Iterable[str], columns: Mapping[str, str], clean: Cleaner) -> dict[str, str] | BadRow:
    """The cleaned texts of a row by role, or what is wrong with it.

    Args:
        row: as read.
        roles: those that the task needs, as a mapping with the values that each may have; "label" may hold a whole
            number or a truth value too, and is not cleaned.
        columns: role -> column, for the roles whose column has another name (`data.columns`).
        clean: from `cleaner`.
    """
    if row.error is not None:
        reason, _, detail = row.error.partition(":")
        return BadRow(row.id, reason, None, f":{detail}" if detail else "")
    if row.example is not None:  # prepared: cleaned already, and its columns are roles
        columns, clean = {}, str
    texts: dict[str, str] = {}
    for role in roles:
        column = columns.get(role, role)
        value = value_at(row.values, column)
        allowed = roles.get(role) if isinstance(roles, Mapping) else None
        if role == "label":
            value = label_form(value, frozenset("01") if allowed is None else allowed)
        if not isinstance(value, str):
            return _no_text(row, column, value)
        if "\0" in value:
            return BadRow(row.id, "holds a NUL character", column, f" at {value.index(chr(0))}")
        if len(value) >= MAX_CHARACTERS:
            return BadRow(row.id, "is too long", column, f": {len(value)} characters, {MAX_CHARACTERS} are no row")
        if not value.isascii() and not encodable(value):
            return BadRow(row.id, "holds half a surrogate pair", column)
        try:
            text = value if role == "label" else clean(value)
        except Exception as error:  # whatever a step meets in a text: it is about this row
            return BadRow(row.id, "cannot be cleaned", column, f": {type(error).__name__}: {str(error)[:200]}")
        if not text or text.isspace():
            return BadRow(row.id, "is empty" if not value else "is empty after cleaning", column)
        if allowed is not None and text not in allowed:
            reason = f"holds {text[:60]!r}, which is not in task.labels"
            return BadRow(row.id, reason, column, unknown_label(text, allowed), text[:60])
        texts[role] = text
    return texts


def _no_text(row: Row, column: str, value: object) -> BadRow:
    if value is MISSING:
        there = ", ".join(leaves(row.values)) or "none"
        return BadRow(row.id, "is missing", column, f"; columns here: {there}")
    if value is None:
        return BadRow(row.id, "is null", column)
    if isinstance(value, bytes):
        fix = "; write it as text, in pandas df[column] = df[column].str.decode('utf-8')"
        return BadRow(row.id, "is no text but bytes", column, fix)
    return BadRow(row.id, f"is no text but {type(value).__name__}", column, f": {str(value)[:60]}")

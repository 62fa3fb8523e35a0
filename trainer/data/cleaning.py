"""Cleaning steps for texts, and the conversion of a raw row into the values that a task reads.

A step is a pure function `str -> str`. `data.cleaning` lists the steps in the order in which they are applied. The
usual order for reviews is `[unescape_html, strip_tags, replace_urls, replace_emails, normalize_unicode,
fold_whitespace, lowercase]`. Entities come first, so that `&lt;br /&gt;` becomes a tag before tags are stripped.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from trainer import user_code
from trainer.data.paths import MISSING, flat, value_at
from trainer.data.roles import BadValue, Cleaner, Roles
from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.data.sources import Row

# The time of every step is linear in the length of its text, for any text (python -m benchmarks.cleaners).
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
    """Replace entities by their characters: "&amp;" by "&"."""
    return html.unescape(_LONG_NUMBER.sub(_short_number, text)) if "&" in text else text


def _short_number(match: re.Match[str]) -> str:
    """Return the character reference with at most eight digits: int() refuses more than 4,300."""
    return "&#" + (match[1].lstrip("0")[:8] or "0")


def strip_tags(text: str) -> str:
    """Replace HTML tags and comments by a space: "good.<br /><br />But" stays two sentences."""
    if "<" not in text:
        return text
    end = text.rfind("-->") + 3 if "-->" in text else 0  # a comment that begins after it is not closed
    return _TAG_OR_COMMENT.sub(" ", text[:end]) + _TAG.sub(" ", text[end:])


def replace_urls(text: str) -> str:
    """Replace web addresses by the word URL. The punctuation after an address stays."""

    def word(match: re.Match[str]) -> str:
        address = match.group()
        return "URL" + address[len(address.rstrip(_URL_END)) :]

    return _URL.sub(word, text)


def replace_emails(text: str) -> str:
    """Replace e-mail addresses by the word EMAIL."""
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
    """Convert to the composed form (NFC): one spelling for characters of the same look and meaning."""
    return unicodedata.normalize("NFC", _MARKS.sub(lambda run: _sorted_marks(run[0], "NFD"), text))


def normalize_compatibility(text: str) -> str:
    """Convert to the compatibility form (NFKC). It can change the meaning: "x²" becomes "x2", "½" becomes "1⁄2"."""
    return unicodedata.normalize("NFKC", _MARKS.sub(lambda run: _sorted_marks(run[0], "NFKD"), text))


def _sorted_marks(text: str, form: Literal["NFD", "NFKD"]) -> str:
    """Decompose the text and sort its combining marks in canonical order.

    Python's normalization sorts a run of marks in time that is quadratic in the length of the run.
    """
    characters = "".join(unicodedata.normalize(form, character) for character in text)
    if not any(map(unicodedata.combining, characters)):
        return characters
    runs = groupby(characters, lambda character: unicodedata.combining(character) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)


def fold_whitespace(text: str) -> str:
    """Replace each run of white space by one space, and strip the ends. No-break and zero-width spaces count."""
    if "\u200b" in text or "\ufeff" in text:
        text = text.translate(_ZERO_WIDTH)
    return " ".join(text.split())


def lowercase(text: str) -> str:
    """Convert to lower case. "ß" stays: `casefold` would make it "ss"."""
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
    """Return a function that applies the steps of these names in their order.

    Args:
        names: of steps here, or `package.module:function` of a function `str -> str`.

    Raises:
        UsageError: steps are unknown. The message lists all of them, each with the nearest known one.
    """
    unknown = [name for name in names if name not in CLEANERS and not user_code.is_reference(name)]
    if unknown:
        near = {name: difflib.get_close_matches(name, CLEANERS, n=1, cutoff=0.5) for name in unknown}
        hints = [f"{name!r}" + (f" (did you mean {near[name][0]!r}?)" if near[name] else "") for name in unknown]
        raise UsageError(
            f"data.cleaning: unknown step {', '.join(hints)}; known: {', '.join(CLEANERS)}, and functions "
            "of your own as package.module:function"
        )
    for name in names:
        if name not in CLEANERS:
            CLEANERS[name] = user_code.load(name, "data.cleaning")
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
        column: the column at fault; None if the row as a whole cannot be read.
        detail: what the value is, and the fix; for the message only.
        unknown: a label that task.labels does not list.
    """

    id: tuple[int, int]
    reason: str
    column: str | None = None
    detail: str = ""
    unknown: str | None = None

    def describe(self, shard_name: str, line: str = "") -> str:
        """Return 'train.jsonl, line 19 (row 18), column "en": is null', or "train.jsonl:17 (row 18), …" without a line.

        An id counts rows from 0. Rows and lines in messages count from 1. A header and blank lines are not rows.

        Args:
            shard_name: name of the file.
            line: from `line_numbers.lines_of`, if it is known.
        """
        place = f", {self.place(line)}" if line else f":{self.id[1]} ({self.place()})"
        return f"{shard_name}{place}{self._fault}"

    def describe_all(self, shard_name: str, count: int, places: Sequence[str]) -> str:
        """Return 'train.jsonl, 40 rows (line 4 (row 4), line 9 (row 9) and 38 more), column "en": is null'.

        Args:
            shard_name: name of the file.
            count: rows of this mistake.
            places: those of the first ones, from `place`.
        """
        more = f" and {count - len(places):,} more" if count > len(places) else ""
        return f"{shard_name}, {count:,} rows ({', '.join(places)}{more}){self._fault}"

    def place(self, line: str = "") -> str:
        """Return "line 19 (row 18)", or "row 18" without a line."""
        row = f"row {self.id[1] + 1}"
        return f"{line} ({row})" if line else row

    @property
    def mistake(self) -> BadRow:
        """The same for all rows of a file that have this mistake."""
        return replace(self, id=(self.id[0], 0))

    @property
    def _fault(self) -> str:
        column = f', column "{self.column}"' if self.column is not None else ""
        return f"{column}: {self.reason}{self.detail}"


def clean_row(row: Row, roles: Roles, columns: Mapping[str, str], clean: Cleaner) -> dict[str, Any] | BadRow:
    """Return the values of a row by role, converted and cleaned, or what is wrong with the row.

    Args:
        row: as read.
        roles: of the task.
        columns: role -> column, for the roles whose column has another name (`data.columns`).
        clean: from `cleaner`.
    """
    if row.error is not None:
        reason, _, detail = row.error.partition(":")
        return BadRow(row.id, reason, None, f":{detail}" if detail else "")
    if row.example is not None:  # a prepared corpus has clean values, and its columns are named as the roles
        columns, clean = {}, str
    values: dict[str, Any] = {}
    for name, role in roles.items():
        column = columns.get(name, name)
        raw = value_at(row.values, column)
        if raw is MISSING and role.optional:  # the survey of the training rows checks that they have it
            continue
        if raw is MISSING:
            return BadRow(row.id, "is missing", column, f"; columns here: {', '.join(flat(row.values)) or 'none'}")
        try:
            values[name] = role.convert(raw, clean)
        except BadValue as error:
            return BadRow(row.id, error.reason, column, error.detail, error.unknown)
    for name, value in values.items():
        try:
            roles[name].check(value, values)
        except BadValue as error:
            return BadRow(row.id, error.reason, columns.get(name, name), error.detail)
    return values

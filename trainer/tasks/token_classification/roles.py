"""Types of the values in a row: tags of tokens, and spans of characters."""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

from trainer.data.roles import BadValue, Cleaner, Role, Text, Tokens, checked_text, items_of
from trainer.tasks.token_classification.decoding import words_of
from trainer.tasks.token_classification.schemes import entities_of, to_bio


class Span(NamedTuple):
    """Characters `start` to `end` - 1 of a text are an entity of a type."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Tags(Role):
    """A tag for each token, in BIO, BIOES, BILOU or IOB1. The value of a row is BIO.

    Attributes:
        labels: type in the files -> type of the recipe.
        iob1: the tags are IOB1.
    """

    labels: Mapping[str, str]
    iob1: bool = False
    target: bool = True
    is_list: ClassVar[bool] = True
    synonyms: ClassVar[str] = "tags ner_tags ner labels bio tag label"

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        return to_bio(items_of(raw), self.labels, self.iob1)

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        if len(value) != len(values["tokens"]):
            detail = f": {len(value)} tags for {len(values['tokens'])} tokens. Give each token one tag"
            raise BadValue("is not as long as the tokens", detail)

    def counted(self, value: Any) -> Sequence[str]:
        return [name for _, _, name in entities_of(value)]


@dataclass(frozen=True)
class RawText(Text):
    """A text as it is in the file, because spans count its characters. Its words are cleaned when it is encoded."""

    def convert(self, raw: object, clean: Cleaner) -> str:
        text = checked_text(raw)
        if not text or text.isspace():
            raise BadValue("is empty")
        return text


@dataclass(frozen=True)
class RawTokens(Tokens):
    """A list of tokens as it is in the file. They are cleaned when they are encoded."""

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        tokens = [checked_text(item) for item in items_of(raw)]
        if not tokens:
            raise BadValue("is an empty list")
        if "" in tokens:
            raise BadValue("holds an empty token", f" (token {tokens.index('') + 1})")
        return tokens


@dataclass(frozen=True)
class Spans(Role):
    """The entities of a text: {"start": 0, "end": 5, "label": "PER"} each, or [0, 5, "PER"].

    The value of a row is a list of such triples as JSON texts, in the order of the text. `span_of` reads one.
    """

    labels: Mapping[str, str]
    target: bool = True
    is_list: ClassVar[bool] = True
    synonyms: ClassVar[str] = "spans entities labels label annotations"

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        return [json.dumps(span, ensure_ascii=False) for span in sorted(map(self._span, items_of(raw)))]

    def _span(self, raw: object) -> Span:
        value = raw
        if isinstance(raw, str):  # JSON as a text, such as the value of a row
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(raw)
        if isinstance(value, Mapping):
            value = [value.get(key) for key in Span._fields]
        if not isinstance(value, list) or len(value) != 3 or not all(type(place) is int for place in value[:2]):
            fix = ': {"start": 0, "end": 5, "label": "PER"} is expected, with numbers of characters'
            raise BadValue("holds something else than a span", f" ({str(raw)[:60]}){fix}")
        start, end, label = value
        label = checked_text(label)
        if label not in self.labels and label not in self.labels.values():
            fix = f"; it lists {', '.join(list(self.labels)[:8])}. Add the type to task.labels"
            raise BadValue(f"holds the type {label[:60]!r}, which is not in task.labels", fix)
        return Span(start, end, self.labels.get(label, label))

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        text, spans = values["text"], [span_of(item) for item in value]
        for start, end, label in spans:
            if not 0 <= start < end <= len(text):
                detail = f": {start} to {end} ({label}); the text has {len(text)} characters"
                raise BadValue("holds a span outside of its text", detail)
            if not text[start:end].strip():
                raise BadValue("holds a span of white space", f": {start} to {end} ({label})")
        for first, second in pairwise(spans):
            if second.start < first.end:
                detail = f": {tuple(first)} and {tuple(second)}. Keep one of them: a token has one tag"
                raise BadValue("holds spans that overlap", detail)
        covered = [words_in(words_of(text), span) for span in spans]
        for (_, last), (begin, _), span in zip(covered, covered[1:], spans[1:], strict=False):
            if begin < last:
                detail = f": {text[span.start : span.end][:40]!r} at {span.start} and the one before it"
                raise BadValue("holds two spans in one word", detail)

    def counted(self, value: Any) -> Sequence[str]:
        return [span_of(item).label for item in value]


def span_of(item: str) -> Span:
    """Return a span of a row's value."""
    return Span(*json.loads(item))


def words_in(words: Sequence[tuple[int, int]], span: Span) -> tuple[int, int]:
    """Return the first word of a span and the one after its last. A word belongs to it if a character of it does."""
    first = bisect_right(words, span.start, key=itemgetter(1))
    return first, max(first, bisect_left(words, span.end, key=itemgetter(0)))

"""From a row to its text, words and pieces, and to the label of each piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.data.token_ids import encoding_errors
from trainer.task.base import IGNORED, Example, Row
from trainer.tasks.token_classification.decoding import SpanReader, Words, joined, words_of
from trainer.tasks.token_classification.roles import span_of, words_in
from trainer.tasks.token_classification.schemes import OUTSIDE, entities_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.tasks.token_classification.config import TokenClassificationConfig


def text_of(row: Row) -> tuple[str, Words]:
    """Return the text of a row, and the characters of each word."""
    return joined(row["tokens"]) if "tokens" in row else (row["text"], words_of(row["text"]))


def read_row(row: Row, tokenizer: PreTrainedTokenizerFast, clean: Callable[[str], str]) -> Example:
    """Return a row with its words and pieces, see `SpanReader.read`."""
    backend = tokenizer.backend_tokenizer

    def encode(cleaned: str) -> tuple[list[int], list[tuple[int, int]]]:
        with encoding_errors(tokenizer.name_or_path):
            pieces = backend.encode(cleaned, add_special_tokens=False)
        return pieces.ids, pieces.offsets

    return SpanReader.read(*text_of(row), "tokens" in row, clean, encode)


def piece_labels(example: Example, row: Row, settings: TokenClassificationConfig) -> list[int]:
    """Return a label for each piece: the id of the tag at the first piece of each word, or at all of its pieces.

    A row without target has no label.
    """
    labels = [IGNORED] * len(example["input_ids"])
    if not (tags := word_tags(row)):
        return labels
    ids = {name: i for i, name in enumerate(settings.names)}
    pairs = zip(example["heads"], tags, strict=True)
    places = [(head, ids.get(tag, IGNORED)) for head, tag in pairs if head >= 0]  # toy rows may have other types
    ends = [*(head for head, _ in places[1:]), len(labels)]
    for (head, tag), end in zip(places, ends, strict=True):
        if labels[head] != IGNORED:  # several words in one piece
            continue
        labels[head] = tag
        if settings.align == "all":
            labels[head + 1 : end] = [tag + tag % 2] * (end - head - 1)  # I- after B-
    return labels


def word_tags(row: Row) -> list[str]:
    """Return the tag of each word of a row. Empty for a row without target."""
    if "spans" not in row:
        return list(row.get("tags", ()))
    words = words_of(row["text"])
    tags = [OUTSIDE] * len(words)
    for span in map(span_of, row["spans"]):
        first, end = words_in(words, span)
        tags[first:end] = [f"B-{span.label}", *[f"I-{span.label}"] * (end - first - 1)]
    return tags


def true_entities(row: Row) -> list[dict[str, Any]]:
    """Return the entities of a row that has a target."""
    text, words = text_of(row)
    if "spans" in row:
        spans: list[tuple[int, int, str]] = [span_of(item) for item in row["spans"]]
    else:
        spans = [(words[first][0], words[end - 1][1], name) for first, end, name in entities_of(row["tags"])]
    return [{"start": start, "end": end, "label": name, "text": text[start:end]} for start, end, name in spans]

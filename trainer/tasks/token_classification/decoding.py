"""From a text to words, pieces and windows, and from probabilities of tags back to entities.

This module is a part of run.py, so that it uses the standard library only. A piece is a token of the model, and
`offsets` of the tokenizer say which characters it covers. The tag of a word is predicted at its first piece.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

# A web address, an e-mail address, a tag of HTML, an entity of HTML, a @name and a #topic are one word each.
WHOLE = re.compile(
    r"(?:https?|ftp)://[^\s<>\"]+|www\.[^\s<>\"]+|[\w.%+-]+@[\w-]+(?:\.[\w-]+)+|</?[A-Za-z][^<>]*>|&#?\w{1,30};|[@#]\w+"
)
CLOSING = ".,;:!?)]}'"  # punctuation that ends the sentence around a web address
LETTERS = ("M", "Cf")  # categories of Unicode besides letters and digits: marks and joiners
IDEOGRAPHS = (("\u2e80", "\u303f"), ("\u3040", "\u312f"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff"))
Words = list[tuple[int, int]]


class SpanReader:
    """Reads texts into pieces, and writes the tags of words as entities."""

    @staticmethod
    def read(
        text: str,
        words: Words,
        tokens: bool,
        clean: Callable[[str], str],
        encode: Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]],
    ) -> dict[str, list[int]]:
        """Return a text with its words and pieces.

        Args:
            text: as given.
            words: the characters of each word, see `words_of` and `joined`.
            tokens: whether the words are the tokens of a row, which gets a tag for each.
            clean: the cleaning steps. A word is cleaned alone, so that offsets are those of the given text.
            encode: from a text to ids and offsets of its pieces, without special tokens.

        Returns:
            input_ids of all pieces; the first piece of each word as `heads`, -1 for a word without one; `starts` and
            `ends` of the words; `text` as numbers of characters; `tokens`: [1] or [0].
        """
        cleaned, places = cleaned_words(text, words, clean)
        ids, offsets = encode(cleaned)
        return {
            "input_ids": list(ids),
            "heads": head_pieces(places, offsets),
            "starts": [start for start, _ in words],
            "ends": [end for _, end in words],
            "text": list(map(ord, text)),
            "tokens": [int(tokens)],
        }

    @staticmethod
    def answer(
        probabilities: Sequence[Sequence[float]],
        heads: Sequence[int],
        words: Words,
        text: str,
        names: Sequence[str],
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the entities of a text, and a BIO tag for each word.

        Args:
            probabilities: of the tags at the first piece of each word; those of a word without a piece are ignored.
            heads: places of these pieces; negative for a word without one. A word that shares its piece with the word
                before it continues the entity.
            words: their characters.
            text: as given.
            names: of the tags: O, B-TYPE, I-TYPE, ….
        """
        tags, entities = best_tags(probabilities, heads), []
        for begin, end, kind in tag_runs(tags):
            shares = [probabilities[i][kind] + probabilities[i][kind + 1] for i in range(begin, end)]
            first, last = words[begin][0], words[end - 1][1]
            entity = {"start": first, "end": last, "label": names[kind][2:], "text": text[first:last]}
            entities.append({**entity, "score": sum(shares) / len(shares)})
        return entities, [names[tag] for tag in tags]


# -- words and pieces ------------------------------------------------------------------------------------------------


def words_of(text: str) -> Words:
    """Return the characters of each word of a text.

    Words end at white space. A mark of punctuation, a symbol and an ideograph are words of their own.
    """
    words: Words = []
    for chunk in re.finditer(r"\S+", text):
        if chunk.group().isalnum() and chunk.group().isascii():
            words.append(chunk.span())
            continue
        at = chunk.start()
        while at < chunk.end():
            whole = WHOLE.match(text, at)
            end = min(whole.end(), chunk.end()) if whole else at
            while end > at + 1 and whole and "://" in whole.group() and text[end - 1] in CLOSING:
                end -= 1
            if end <= at:
                end = at + 1
                while is_letter(text[at]) and end < chunk.end() and (is_letter(text[end]) or is_mark(text[end])):
                    end += 1
            words.append((at, end))
            at = end
    return words


def is_letter(character: str) -> bool:
    """Whether a character continues a word, other than an ideograph."""
    if character.isascii():
        return character.isalnum() or character == "_"
    if any(low <= character <= high for low, high in IDEOGRAPHS) or character >= "\U00020000":
        return False
    return character.isalnum() or is_mark(character)


def is_mark(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith(LETTERS)


def joined(tokens: Sequence[str]) -> tuple[str, Words]:
    """Return the text of tokens, joined by spaces, and the characters of each."""
    words, at = [], 0
    for token in tokens:
        words.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), words


def cleaned_words(text: str, words: Words, clean: Callable[[str], str]) -> tuple[str, list[tuple[int, int] | None]]:
    """Return the cleaned text, and the characters of each word in it; None for a word of which nothing is left."""
    parts: list[str] = []
    places: list[tuple[int, int] | None] = []
    size, before = 0, -1
    for start, end in words:
        word = clean(text[start:end])
        if not word or word.isspace():
            places.append(None)
            continue
        if parts and start > before:
            parts.append(" ")
            size += 1
        parts.append(word)
        places.append((size, size + len(word)))
        size, before = size + len(word), end
    return "".join(parts), places


def head_pieces(places: Sequence[tuple[int, int] | None], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first piece of each word, -1 for a word without one: a tokenizer drops some characters.

    A piece that is only the space before a word belongs to the word, as in `word_ids` of the library.
    """
    heads, piece, before = [], 0, 0
    for place in places:
        if place is None:
            heads.append(-1)
            continue
        while piece < len(offsets) and offsets[piece][1] <= before:
            piece += 1
        before = place[1]
        heads.append(piece if piece < len(offsets) and offsets[piece][0] < place[1] else -1)
    return heads


def windows(size: int, room: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return the windows over the pieces of a text: first piece, end, first and end of the pieces it decides on.

    Each piece is decided in one window, in which it is farthest from the edges.

    Args:
        size: pieces of the text.
        room: pieces of a window, at most.
        overlap: the share of a window that is in the next one, too.
    """
    room = max(1, room)
    step = max(1, room - int(room * overlap))
    begins = [0] if size <= room else [*range(0, size - room, step), size - room]
    cuts = [0, *((after + begin + room + 1) // 2 for begin, after in pairwise(begins)), size]
    return [(begin, min(begin + room, size), cuts[i], cuts[i + 1]) for i, begin in enumerate(begins)]


# -- tags and entities -----------------------------------------------------------------------------------------------


def best_tags(probabilities: Sequence[Sequence[float]], heads: Sequence[int]) -> list[int]:
    """Return the most probable tag of each word as a valid sequence: an I- tag without entity becomes B-."""
    tags: list[int] = []
    for i, (row, head) in enumerate(zip(probabilities, heads, strict=True)):
        tag = max(range(len(row)), key=row.__getitem__) if head >= 0 else 0
        if tag and i and head == heads[i - 1]:  # another word of the same piece
            tag += tag % 2
        if tag and tag % 2 == 0 and not (tags and tags[-1] in (tag, tag - 1)):
            tag -= 1
        tags.append(tag)
    return tags


def tag_runs(tags: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (first word, last word + 1, tag B-TYPE) of each entity of a valid sequence of tags."""
    runs: list[tuple[int, int, int]] = []
    for i, tag in enumerate(tags):
        if tag % 2:
            runs.append((i, i + 1, tag))
        elif tag:
            runs[-1] = (runs[-1][0], i + 1, runs[-1][2])
    return runs

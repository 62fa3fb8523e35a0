"""What the columns of a file hold: kinds of values, labels and their counts, lengths and scripts of texts."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from trainer.data.columns import SYNONYMS, is_no_header
from trainer.data.conll import looks_like_conll
from trainer.data.discovery import Shard
from trainer.data.labels import ClassIndex, is_unlabeled
from trainer.data.language import languages_of
from trainer.data.paths import UNREAD, flat
from trainer.data.roles import list_in
from trainer.data.sniffing import Reading
from trainer.data.sources import OUR_MISTAKES, Source
from trainer.errors import DataError

Kind = Literal["text", "number", "list", "empty"]
DISTINCT = 2000  # different values of a column that are counted
SAMPLE = 2000  # texts of a column that are kept to measure lengths
HEAD_LINES = 200  # lines of a text file that decide whether it has tokens with tags
FIRST = 50  # rows that are kept completely
LONGEST_LABEL = 80  # characters
MOSTLY = 0.8  # share of the texts in one language that makes it the language of a column
_WIDE = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


@dataclass
class Column:
    """The values of one column.

    Attributes:
        name: of the column, or the dotted path of a nested one.
        filled: values that are neither null nor empty.
        kinds: kind -> values.
        values: value as text -> count. Lists count their items.
        many: more than DISTINCT different values occurred; `values` has the first ones.
        whole: all numbers are integral.
        texts: a random sample of the texts, and of lists with spaces between their items.
        first: the first values as the file has them.
    """

    name: str
    filled: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    many: bool = False
    whole: bool = True
    texts: list[str] = field(default_factory=list)
    first: list[object] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """The kind of all values, or text if several kinds occur."""
        return next(iter(self.kinds)) if len(self.kinds) == 1 else "text" if self.kinds else "empty"

    @property
    def labels(self) -> dict[str, int]:
        """Value -> count, the most frequent first. Values that mean "no label" are left out."""
        return {value: count for value, count in self.values.most_common() if not is_unlabeled(value)}

    @property
    def different(self) -> str:
        """How many different values there are, as a text. Those of long texts are not counted."""
        if not self.many:
            return f"{len(self.values):,}"
        return f"more than {DISTINCT:,}" if len(self.values) >= DISTINCT else "many"

    @property
    def characters(self) -> float:
        """Mean length of the sampled texts."""
        return sum(map(len, self.texts)) / len(self.texts) if self.texts else 0.0

    @cached_property
    def words(self) -> float:
        """Mean number of words of the sampled texts."""
        sample = self.texts[:200]
        return sum(map(word_count, sample)) / len(sample) if sample else 0.0

    @cached_property
    def languages(self) -> dict[str, float]:
        """Code of a language -> share of the texts, the most frequent first. Empty if it is not clear."""
        return languages_of(self.texts)

    @property
    def language(self) -> str | None:
        """The code of the language of most texts, or None."""
        return next((code for code, share in self.languages.items() if share >= MOSTLY), None)

    def add(self, raw: object, draw: random.Random) -> None:
        """Count a value."""
        if raw is None or (isinstance(raw, str) and not raw.strip()):
            return
        self.filled += 1
        kind, items = _kind(raw)
        self.kinds[kind] += 1
        if len(self.first) < FIRST:
            self.first.append(raw)
        if kind == "number":
            self.whole &= float(str(raw)) % 1 == 0
        for item in items:
            if isinstance(item, str) and len(item) > LONGEST_LABEL:
                self.many = True
            elif (label := str(_named(item)).strip()) in self.values or len(self.values) < DISTINCT:
                self.values[label] += 1
            else:
                self.many = True
        if kind != "number":
            text = str(raw) if kind == "text" else " ".join(map(str, items))
            if len(self.texts) < SAMPLE:
                self.texts.append(text)
            elif (place := draw.randrange(self.filled)) < SAMPLE:
                self.texts[place] = text

    def scripts(self) -> dict[str, float]:
        """Return script -> share of the letters of the sampled texts, the most usual first: {"Latin": 0.98, …}."""
        counts: Counter[str] = Counter()
        for text in self.texts[:200]:
            counts.update(_script(character) for character in text[:500] if character.isalpha())
        total = counts.total()
        return {name: count / total for name, count in counts.most_common() if count >= 0.005 * total}


@dataclass(frozen=True)
class Table:
    """The rows of a split.

    Attributes:
        rows: rows that can be read.
        columns: by name, in the order of the file.
        sample: the first rows by column.
        parallel: the rows are lines of parallel text files, or of one text file.
        unreadable: rows that cannot be read.
        problem: the first of them, as a sentence.
        header: false if the first line of a CSV file is a row.
        languages: of parallel text files by role, such as {"src": "de", "trg": "en"}.
    """

    rows: int
    columns: dict[str, Column]
    sample: list[Mapping[str, object]]
    parallel: bool = False
    unreadable: int = 0
    problem: str = ""
    header: bool = True
    languages: Mapping[str, str] | None = None


def profile(shards: Sequence[Shard], reading: Reading, languages: Mapping[str, str] | None = None) -> Table:
    """Read all rows of a split and describe its columns.

    Raises:
        DataError: a file cannot be read, or no row of a file can.
    """
    shards = list(shards)
    reading = replace(reading, wanted=None, lists=frozenset())
    if shards[0].format == "text" and len(shards[0].urls) == 1:
        head_lines = [str(row.values.get("text") or "") for row in islice(Source(shards, reading), HEAD_LINES)]
        if looks_like_conll(head_lines):
            shards = [replace(shard, format="conll", roles=()) for shard in shards]
    head = next(iter(Source(shards, reading)), None)
    if head is None:
        raise DataError(f"{shards[0].name} has no rows. Name a file with rows")
    header = reading.header
    if header and shards[0].format in ("csv", "tsv") and is_no_header([str(name) for name in head.values], {}):
        header, reading = False, replace(reading, header=False)
    if lists := [name for name, value in head.values.items() if value is UNREAD]:
        reading = _with_lists(shards, reading, [*head.values], lists)
    draw, columns, sample = random.Random(0), dict[str, Column](), list[Mapping[str, object]]()
    source, rows, bad, problem = Source(shards, reading), 0, 0, ""
    for row in source:
        if row.error is not None:
            bad, problem = bad + 1, problem or f"{source.name_of(row.id)}: {row.error}"
            continue
        rows += 1
        values = {name: value for name, value in flat(row.values).items() if value is not UNREAD}
        if len(sample) < FIRST:
            sample.append(values)
        for name, value in values.items():
            columns.setdefault(name, Column(name)).add(value, draw)
    if not rows:
        raise DataError(f"no row can be read, such as {problem}")
    if header and shards[0].format in ("csv", "tsv") and _is_value(columns):
        return profile(shards, replace(reading, header=False), languages)
    lines = shards[0].format == "text"
    return Table(rows, columns, sample, lines, bad, problem, header, languages)


def _is_value(columns: Mapping[str, Column]) -> bool:
    """Return whether the name of a column is a label in it, so that the header of a CSV file is a row."""
    usual = {word for words in SYNONYMS.values() for word in words.split()}
    if any(name.strip().lower() in usual for name in columns):
        return False
    few = (c for c in columns.values() if not c.many and 1 < len(c.values) <= 0.2 * c.filled)
    return any(column.values[column.name.strip()] > 1 for column in few)


def _with_lists(shards: Sequence[Shard], reading: Reading, names: Sequence[str], lists: Sequence[str]) -> Reading:
    """Return a reading with the columns of lists that can be read. Those of other types are left out."""
    readable = [name for name in names if name not in lists]
    for name in lists:
        alone = replace(reading, wanted=(name,), lists=frozenset((name,)))
        try:
            next(iter(Source(shards, alone)), None)
        except OUR_MISTAKES:
            raise
        except DataError:  # the type of the column
            continue
        readable.append(name)
    return replace(reading, wanted=tuple(readable), lists=frozenset(lists))


def _kind(raw: object) -> tuple[Kind, list[Any]]:
    """Return the kind of a value, and what is counted of it."""
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        items = list_in(raw)
        if items is None:
            return "text", [raw]
        raw = items
    if isinstance(raw, list):
        return "list", list(_items(raw))
    if isinstance(raw, ClassIndex | bool):
        return "text", [raw]
    try:
        float(str(raw))
    except ValueError:
        return "text", [raw]
    return "number", [raw]


def _items(values: list[Any]) -> Iterator[Any]:
    """Yield the labels in a list: its items, or those of spans."""
    for value in values:
        if isinstance(value, Mapping):
            yield value.get("label")
        elif isinstance(value, list):
            yield value[-1] if value else None
        else:
            yield value


def _named(item: object) -> object:
    if isinstance(item, ClassIndex):
        return item.names[item] if 0 <= item < len(item.names) else int(item)
    if isinstance(item, float) and item.is_integer():
        return int(item)
    return str(item).lower() if isinstance(item, bool) else item


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0].capitalize().replace("Cjk", "CJK")


def word_count(text: str) -> int:
    """Return the words of a text. A character of a script without spaces counts as a word."""
    wide = sum(unicodedata.name(c, "").startswith(_WIDE) for c in text if ord(c) > 0xDFF)
    return len(text.split()) + wide

"""Suggest token classification for rows of tokens with tags, or of texts with spans."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.labels import ClassIndex
from trainer.data.profile import Column, Table
from trainer.data.roles import BadValue, Tokens
from trainer.models.suggested import encoder_for
from trainer.task.suggestion import Suggestion, languages_in, renamed, text_columns
from trainer.tasks.token_classification.roles import Spans, Tags
from trainer.tasks.token_classification.schemes import OUTSIDE, to_bio


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    lists = {column.name: column for column in table.columns.values() if column.kind == "list"}
    tags = _named(lists, columns.get("tags"), Tags.synonyms, _has_tags)
    tokens = _named(lists, columns.get("tokens"), Tokens.synonyms, lambda column: not _has_tags(column))
    if tags is not None and tokens is not None:
        types, roles = _types(tags), {"tokens": tokens.name, "tags": tags.name}
        return _made({"scheme": "iob1"} if _is_iob1(tags, types) else {}, types, roles, table)
    spans = _named(lists, columns.get("spans"), Spans.synonyms, _has_spans)
    texts = text_columns(table)
    if spans is None or not texts:
        return None
    text = columns.get("text", texts[0].name)
    return _made({"rows": "text"}, sorted(spans.labels), {"text": text, "spans": spans.name}, table)


def _made(task: Mapping[str, str], types: list[str], roles: dict[str, str], table: Table) -> Suggestion | None:
    """Return the suggestion for rows of tokens or texts. The first role is the input."""
    if not types:
        return None
    text = next(iter(roles.values()))
    return Suggestion(
        fit=0.95,
        why=f"{' with '.join(f'{role} in column {column!r}' for role, column in roles.items())}; "
        f"{len(types)} entity types ({', '.join(types[:8])})",
        task={"kind": "token_classification", "labels": types, **task},
        columns=renamed(roles),
        inputs=(text,),
        metric="f1",
        pretrained=encoder_for(languages_in(table, [text])),
        markup=False,
        windows=True,
        notes={"task.labels": "entity types, without B- and I-"},
    )


def _named(lists: Mapping[str, Column], name: str | None, synonyms: str, fits: object) -> Column | None:
    if name is not None:
        return lists.get(name)
    assert callable(fits)
    fitting = {column.strip().lower(): lists[column] for column in lists if fits(lists[column])}
    usual = (fitting[word] for word in synonyms.split() if word in fitting)
    return next(usual, next(iter(fitting.values()), None) if len(fitting) == 1 else None)


def _has_tags(column: Column) -> bool:
    values = [value for value in column.values if value]
    return OUTSIDE in values and all(value == OUTSIDE or value[1:2] == "-" for value in values)


def _is_iob1(tags: Column, types: list[str]) -> bool:
    """Return whether the first rows can be read as IOB1 only."""
    labels = {name: name for name in types}
    rows = [value for value in tags.first if isinstance(value, list)]
    return not _fits(rows, labels, iob1=False) and _fits(rows, labels, iob1=True)


def _fits(rows: list[list[object]], labels: Mapping[str, str], iob1: bool) -> bool:
    try:
        for row in rows:
            to_bio(row, labels, iob1)
    except BadValue:
        return False
    return True


def _has_spans(column: Column) -> bool:
    items = [item for value in column.first if isinstance(value, list) for item in value]
    return bool(items) and all(
        (isinstance(item, Mapping) and {"start", "end", "label"} <= item.keys())
        or (isinstance(item, list) and len(item) == 3)
        for item in items
    )


def _types(tags: Column) -> list[str]:
    """Return the types in the tags, of class indices all that their column lists."""
    items = [item for value in tags.first if isinstance(value, list) for item in value]
    index = next((item for item in items if isinstance(item, ClassIndex)), None)
    values = index.names if index is not None else tuple(tags.values)
    return sorted({value[2:] for value in values if value[1:2] == "-"})

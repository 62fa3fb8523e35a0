"""Rows of every reader: what a case is, and what has to be true when its file is read."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from benchmarks.fuzz import references
from benchmarks.fuzz.guard import Broken
from trainer.data.paths import UNREAD
from trainer.data.roles import Label, Roles, Tokens
from trainer.data.roles import Text as TextRole
from trainer.data.sources import Row, Source, open_split
from trainer.data.survey import survey
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig

ROLES: Roles = {"text": TextRole(), "label": Label(("0", "1"))}
TOKEN_ROLES: Roles = {"tokens": Tokens()}
MOST_ROWS = 100_000
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}


class File(NamedTuple):
    """A case: a file, and how it is read.

    Attributes:
        name: without the extension of a compression.
        content: of the file, or of several parallel ones.
        data: keys of the `data` section.
        compression: "", ".gz" or ".zst".
        cut: bytes that are missing at the end of the compressed file.
        at: the row from which the file is read a second time.
    """

    name: str
    content: tuple[bytes, ...]
    data: dict[str, Any]
    compression: str = ""
    cut: int = 0
    at: int = 1


def check(case: Sequence[Any], folder: Path) -> str:
    """Read a file by the reader of its format, and compare with what other readers find.

    Raises:
        Broken: a row is lost, or a message does not name the file.
        DataError: the file is refused.
    """
    file = File(*case)
    data, names = _section(file, folder)
    kind = names[0].partition(".")[2].removesuffix(file.compression)
    try:
        source = open_split(data, "train", None)
        assert source is not None
        rows = list(itertools.islice(source, MOST_ROWS))
    except UsageError:
        return "refused"
    except DataError as error:
        _check_message(str(error), names)
        if not _may_refuse(file, kind, str(error)):
            raise Broken(f"refused, and other readers read it: {error}") from error
        return "refused"
    if len(rows) == MOST_ROWS:
        raise Broken("the file has more rows than bytes")
    _check_resume(source, rows, file.at)
    _check_survey(data, TOKEN_ROLES if kind == "conll" else ROLES)
    if not file.cut:
        _compare(file, kind, source, rows)
    return "refused" if all(row.error for row in rows) else "read"


def _section(file: File, folder: Path) -> tuple[DataConfig, list[str]]:
    """Write the files. Return the section that reads them, and their names."""
    names = [
        f"{n}{file.name}{file.compression}" if n else f"{file.name}{file.compression}" for n in range(len(file.content))
    ]
    for name, content in zip(names, file.content, strict=True):
        compressed = COMPRESS[file.compression](content)
        (folder / name).write_bytes(compressed[: len(compressed) - file.cut] if file.cut else compressed)
    train: Any = names[0] if len(names) == 1 else {"src": names[0], "trg": names[1]}
    values = {
        "root": str(folder),
        "train": train,
        "lanes": 1,
        "on_bad_row": "skip",
        "max_bad_fraction": 0.999,
        **file.data,
    }
    return DataConfig.model_validate(values), names


def _check_message(message: str, names: Sequence[str]) -> None:
    if not any(name in message for name in names):
        raise Broken(f"the error does not name the file: {message[:300]}")


def _check_resume(source: Source, rows: list[Row], at: int) -> None:
    """Read again from a row in the middle, as a run that resumes does."""
    stream = source.stream(0)
    for _ in zip(range(at % (len(rows) + 1)), stream, strict=False):
        pass
    rest = list(source.stream(0, json.loads(json.dumps(stream.state()))))
    if repr(rest) != repr(rows[at % (len(rows) + 1) :]):
        raise Broken(f"other rows from row {at % (len(rows) + 1)} on: {rest!r:.200}")


def _check_survey(data: DataConfig, roles: Roles) -> None:
    """Count used and bad rows with the roles of a task: their sum is what the stream yields."""
    source = open_split(data, "train", roles)
    assert source is not None
    number = sum(1 for _ in source)
    try:
        counts = survey(source, data, roles)
    except DataError as error:
        if "rows are bad" not in str(error):
            _check_message(str(error), [shard.name for shard in source.shards])
        return
    if counts.rows + counts.bad.total() != number or counts.read != number:
        raise Broken(f"{number} rows, of which {counts.rows} are used and {counts.bad.total()} are counted as bad")


def _may_refuse(file: File, kind: str, message: str) -> bool:
    """Return whether an error about the complete file is right: no reference reads it."""
    if file.cut or file.data or kind not in ("parquet", "arrow", "json"):
        return True
    return references.refuses(kind, file.content[0])


def _compare(file: File, kind: str, source: Source, rows: list[Row]) -> None:
    form = source.forms(0)[0]
    ours = [None if row.error else row.values for row in rows]
    if kind in ("parquet", "arrow"):
        expected: Any = references.table(kind, file.content[0])
        ours = [row and {key: value for key, value in row.items() if value is not UNREAD} for row in ours]
        expected = (
            expected
            and [{key: row[key] for key in own or ()} for row, own in zip(expected, ours, strict=False)]
            + (expected[len(ours) :])
        )
    elif form.encoding != "utf-8" or file.data.get("encoding"):
        return
    elif kind in ("jsonl", "ndjson", "json"):
        expected = references.array(file.content[0]) if form.array else references.json_lines(file.content[0], form.cr)
    elif kind == "conll":
        fewest, most = references.sentences(file.content[0], form.cr)
        if not fewest <= len(rows) <= most:
            raise Broken(f"{len(rows)} sentences, and the file has {fewest} to {most}")
        return
    elif kind == "txt":
        expected = references.text(file.content, source.shards[0].roles, [one.cr for one in source.forms(0)])
    else:
        references.check_csv(file.content[0], form, rows, header=file.data.get("header", True))
        return
    if expected is not None and repr(ours) != repr(expected):
        at = next((n for n, (a, b) in enumerate(zip(ours, expected, strict=False)) if repr(a) != repr(b)), len(ours))
        raise Broken(
            f"{len(ours)} rows, another reader has {len(expected)}; row {at}: {ours[at : at + 1]!r:.200} and "
            f"{expected[at : at + 1]!r:.200}"
        )

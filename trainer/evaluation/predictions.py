"""`predictions.jsonl`: one JSON object per evaluated row, in the order of the corpus.

    {"id": "test.jsonl:12", "input": "…", "target": "…", "prediction": "…", "score": -0.41, "loss": 9.7, "tokens": 14}

`loss` is the sum of the row's target token cross-entropies (nats) and `tokens` their number; classification carries
`probabilities` where translation has `score`. The order of the corpus is read from the id alone ("file:row", files by
name, rows by number: 2 before 10), so records that were merged in any order sort back to it. A line ends at "\\n" only:
texts may contain U+0085 and U+2028, at which other readers break lines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from trainer.data.roles import encodable
from trainer.errors import DataError, NumericsError
from trainer.evaluation.order import corpus_order, repeated
from trainer.evaluation.record_store import RecordStore
from trainer.files import make_parents, replacing

Record = dict[str, Any]
REQUIRED = ("id", "input", "target", "prediction", "loss")


def in_corpus_order(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Records sorted into the order of the corpus.

    Raises:
        DataError: a record has no id, or two have the same: a row would count twice.
    """
    ordered: dict[str, Record] = {}
    for number, record in enumerate(records):
        row_id = record.get("id")
        if not isinstance(row_id, str) or not row_id:
            raise DataError(f"prediction {number} has id {row_id!r}: an id is a text such as 'test.jsonl:12'")
        if row_id in ordered:
            raise repeated(row_id)
        ordered[row_id] = dict(record)
    return [ordered[row_id] for row_id in sorted(ordered, key=corpus_order)]


def ordered(records: Iterable[Mapping[str, Any]]) -> Collection[Record]:
    """Return the records in the order of the corpus. Those of a `RecordStore` stay in their file."""
    return records if isinstance(records, RecordStore) else in_corpus_order(records)


def checked_records(records: Iterable[Mapping[str, Any]], check: Callable[[Record], None]) -> Iterator[Record]:
    """Yield the records of a split in the order of the corpus, each checked, for scoring.

    Raises:
        DataError: no records, an id missing or twice, or as `check`.
    """
    found = ordered(records)
    if not found:
        raise DataError("there are no predictions to score: the split is empty")
    for record in found:
        check(record)
        yield record


def write_predictions(path: Path | str, records: Iterable[Mapping[str, Any]]) -> int:
    """Write records in corpus order, atomically. Return their number.

    Raises:
        DataError: an id is missing or occurs twice.
        NumericsError: a record holds NaN or Inf, which JSON cannot.
        CheckpointError: the disk is full or the folder not writable; an older file is left as it was.
    """
    path, found = Path(path), ordered(records)
    make_parents(path)
    with replacing(path) as file:
        for record in found:
            file.write(_line(record).encode())
    return len(found)


def _line(record: Record) -> str:
    try:
        return json_line(record)
    except ValueError:
        broken = {key: value for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
        raise NumericsError(f"prediction {record['id']!r} holds NaN or Inf ({broken or 'in a list'})") from None


def json_line(value: Mapping[str, Any]) -> str:
    """Return one line of JSON. Half a surrogate pair, which UTF-8 cannot hold, is escaped.

    Raises:
        ValueError: it holds NaN or Inf.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return (text if encodable(text) else json.dumps(value)) + "\n"


def read_predictions(path: Path | str) -> Iterator[Record]:
    """Yield the records of a predictions file in the order of the file, one line at a time.

    Raises:
        DataError: naming file and line: not UTF-8, not JSON, no object, a required key missing or of the wrong type,
            a repeated id; or the file cannot be read.
    """
    path = Path(path)
    first_line: dict[str, int] = {}
    try:
        with path.open("rb") as file:  # bytes, because text files also break lines at a lone "\r"
            for number, line in enumerate(file, start=1):
                try:
                    record = _parse(line)
                    before = first_line.setdefault(record["id"], number)
                    if before != number:
                        raise ValueError(f"id {record['id']!r} is already in line {before}: each row must occur once")
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: {error}") from None
                yield record
    except OSError as error:
        raise DataError(f"predictions cannot be read: {error}") from None


def _parse(line: bytes) -> Record:
    """One record, or ValueError with what is wrong."""
    try:
        record = json.loads(line.decode(), parse_constant=_not_json)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON object ({error.msg} at column {error.colno}); was it cut off?") from None
    except RecursionError:
        raise ValueError("not a prediction: its lists or objects are nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is expected, not {type(record).__name__}")
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; a record holds at least {', '.join(REQUIRED)}")
    if not isinstance(record["id"], str) or not record["id"]:
        raise ValueError(f"id is {record['id']!r}: a text such as 'test.jsonl:12' is expected")
    if isinstance(record["loss"], bool) or not isinstance(record["loss"], int | float):
        raise ValueError(f"loss is {record['loss']!r}: a number is expected")
    return record


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")

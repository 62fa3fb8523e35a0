"""The records of an evaluated split in a file, so that the memory for them does not grow with the rows.

Records come in the order in which the files of a split are read. They are read back in the order of the corpus: files
by name, rows by number. A file's rows are consecutive in the store, so only the places of files are kept in memory.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.data.roles import encodable
from trainer.errors import DataError
from trainer.evaluation.order import corpus_order, repeated
from trainer.files import cannot_write

PIECE_BYTES = 1 << 20  # read at once
Record = dict[str, Any]


def stored_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of predictions.jsonl. NaN and Inf, which JSON has not, are written as Python does."""
    text = json.dumps(record, ensure_ascii=False)
    return (text if encodable(text) else json.dumps(record)).encode() + b"\n"


@dataclass
class _Run:
    """Consecutive lines of one file of the corpus, with rising row numbers."""

    begin: int
    end: int
    first: int
    last: int
    last_id: str


class RecordStore(Collection[Record]):
    """Records in a temporary file, which has no name and is deleted when the process ends.

    Args:
        folder: for the file. It is not in memory, as /tmp may be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._runs: dict[str, list[_Run]] = {}
        self._rows = self._size = 0

    def add(self, row_id: str, line: bytes) -> None:
        """Append the line of a row.

        Raises:
            DataError: the row before it in its file has the same id.
            CheckpointError: the disk is full or not writable.
        """
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the last reference
            self._file.write(line)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        name, number, _ = corpus_order(row_id)
        runs, begin = self._runs.setdefault(name, []), self._size
        self._size += len(line)
        self._rows += 1
        if runs and runs[-1].end == begin and runs[-1].last < number:
            runs[-1].end, runs[-1].last, runs[-1].last_id = self._size, number, row_id
            return
        if runs and runs[-1].last_id == row_id:
            raise repeated(row_id)
        runs.append(_Run(begin, self._size, number, number, row_id))

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, record: object) -> bool:
        return any(record == own for own in self)

    def __iter__(self) -> Iterator[Record]:
        for line in self.lines():
            yield json.loads(line)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines in the order of the corpus.

        Raises:
            DataError: two rows have the same id.
        """
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                raise cannot_write(self._folder, error) from error
        for name in sorted(self._runs):
            runs = self._runs[name]
            if all(one.last < other.first for one, other in pairwise(runs)):
                for run in runs:
                    yield from self._read(run)
            else:
                yield from self._merged(runs)

    def _read(self, run: _Run) -> Iterator[bytes]:
        """Yield the lines of a run. Several may be read at once: the position of the file is not used."""
        rest, at = b"", run.begin
        while at < run.end:
            piece = os.pread(self._file.fileno(), min(PIECE_BYTES, run.end - at), at)
            if not piece:
                raise DataError("the temporary file of the predictions was cut short: evaluate again")
            at += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"

    def _merged(self, runs: list[_Run]) -> Iterator[bytes]:
        before = None
        for order, line in heapq.merge(*map(self._keyed, runs)):
            if order == before:
                raise repeated(order[2])
            before = order
            yield line

    def _keyed(self, run: _Run) -> Iterator[tuple[tuple[str, int, str], bytes]]:
        for line in self._read(run):
            yield corpus_order(json.loads(line)["id"]), line

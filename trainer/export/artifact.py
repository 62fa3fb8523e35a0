"""Run an artifact: read lines, answer them in batches of similar length, write JSON lines. Part of every run.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers

from trainer.data.cleaning import CLEANERS
from trainer.export.runtimes import open_graphs

WINDOW = 512  # lines that are read ahead and sorted by length
Array = np.ndarray[Any, Any]


class NoRow(str):
    """A line among rows that is not a JSON object with the columns of the inputs."""


class Artifact:
    """The settings, tokenizer and graphs of a folder. Call it with lines: one record per line, in order."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.tokenizer = self.target_tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.sessions = open_graphs(folder, settings)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        return cls(Path(folder), json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8")))

    def __call__(self, lines: Iterable[str], batch: bool = False) -> Iterator[dict[str, Any]]:
        source, one_by_one = iter(lines), self.settings["one_by_one"] and not batch
        while window := list(islice(source, WINDOW)):
            examples: dict[int, tuple[list[int], ...]] = {}
            answers: dict[int, dict[str, Any]] = {}
            for i, line in enumerate(window):
                try:
                    if isinstance(line, NoRow):
                        raise ValueError(
                            f"a JSON object with texts in the columns {self.settings['columns']} is needed"
                        )
                    examples[i] = self.encode(self.sides(line))
                except Exception as error:  # the other lines are still answered
                    answers[i] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            rows = list(examples)
            for places in self.batches([len(examples[i][0]) for i in rows], one_by_one):
                batch_rows = [rows[place] for place in places]
                answers |= zip(batch_rows, self.predict([examples[i] for i in batch_rows]), strict=True)
            for i, line in enumerate(window):
                cut = i in examples and self.truncated(line, examples[i])
                yield {"text": line, **answers[i], **({"truncated": True} if cut else {})}

    def batches(self, lengths: Sequence[int], one_by_one: bool) -> Iterator[list[int]]:
        """Indices of examples of these lengths, shortest first, in batches of at most tokens_per_batch tokens."""
        rows: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if rows and (one_by_one or lengths[i] * (len(rows) + 1) > self.settings["tokens_per_batch"]):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows

    def sides(self, line: str) -> list[str]:
        """The texts of a line: one, or the two of a pair."""
        return [line]

    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        """Return the model's inputs for a line's texts, cleaned; the first are token ids with special tokens."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """Tokens of a line that are read, special tokens not counted."""
        raise NotImplementedError

    def truncated(self, line: str, example: tuple[list[int], ...]) -> bool:
        """Whether `encode` cut this line."""
        if len(example[0]) < self.settings["max_length"]:
            return False
        return sum(len(self.ids(side)) for side in self.sides(line)) > self.room

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Answer a batch of encoded lines: one record each, in order, without the text."""
        raise NotImplementedError

    def ids(self, text: str) -> list[int]:
        """Token ids of a text after cleaning, with the task's prefix, without special tokens."""
        for step in self.settings["cleaning"]:
            text = CLEANERS[step](text)
        return self.tokenizer.encode(self.settings["prefix"] + text, add_special_tokens=False).ids

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> Array:
        """Pad to an int64 array as wide as the longest sequence, at least 1; on the left if settings say "left"."""
        width, left = max(1, *map(len, sequences)), self.settings.get("left", False)
        rows = [(list(ids), [value] * (width - len(ids))) for ids in sequences]
        return np.array([fill + ids if left else ids + fill for ids, fill in rows], dtype=np.int64)


def read_rows(lines: Iterable[str], columns: Sequence[str]) -> Iterator[str]:
    """Yield lines. If the first is a JSON object with these columns, yield the inputs of each, with tabs between them.

    Among such rows, empty lines are left out, and tokens stay a JSON list.
    """
    source = iter(lines)
    first = next(source, None)
    if first is None:
        return
    if not columns or isinstance(row_of(first, columns), NoRow):
        yield from chain((first,), source)
        return
    yield from (row_of(line, columns) for line in chain((first,), source) if line.strip())


def row_of(line: str, columns: Sequence[str]) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return NoRow(line)
    values = [cell(row, column) for column in columns]
    if not all(isinstance(value, str | list) for value in values):
        return NoRow(line)
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return "\t".join(texts) if len(texts) == 1 else "\t".join(text.replace("\t", " ") for text in texts)


def cell(row: Any, column: str) -> Any:
    """Return the value of a column, or of a nested one by its dotted path; None if there is none."""
    if not isinstance(row, dict):
        return None
    head, _, rest = column.partition(".")
    return row[column] if column in row else cell(row.get(head), rest) if rest else None


def main(artifact: Artifact) -> None:
    """Answer the lines of stdin. Exit with 3 if a line could not be answered; its record has the reason.

    Lines end at a line feed only: texts may contain U+0085 and other characters that Python takes for line ends.
    """

    def lines() -> Iterator[str]:
        for number, line in enumerate(sys.stdin.buffer, 1):
            try:
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                sys.exit(f"line {number} is not UTF-8, at byte {error.start}")

    if unknown := set(sys.argv[1:]) - {"--batch"}:
        print(__doc__, "Unknown arguments:", *sorted(unknown), file=sys.stderr)
        sys.exit(2)
    errors = 0
    rows = read_rows(lines(), artifact.settings.get("columns", ()))
    for record in artifact(rows, batch="--batch" in sys.argv):
        errors += "error" in record
        sys.stdout.buffer.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
        sys.stdout.buffer.flush()
    if errors:
        print(f'{errors} lines have an "error" in place of an answer', file=sys.stderr)
        sys.exit(3)

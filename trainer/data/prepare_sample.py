"""The rows of a corpus that its tokenizer is trained on, copied from the chunks of `rankzero prepare`.

They are those of `TrainingTexts`, which would read and clean all rows of the corpus twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.counter_rng import uniform
from trainer.data.roles import Roles
from trainer.files import replacing


def sample_path(chunk: Path, limit: int) -> Path:
    """Return the path of the sample of a chunk."""
    return chunk.with_suffix(f".{limit}.texts")


def copy_sample(chunk: Path, name: str, file: int, limit: int, rows: int) -> None:
    """Write the sample of a chunk.

    Args:
        chunk: lines that begin with the id of the row, `{"id": "train.jsonl:17"`.
        name: of the file that the rows are from.
        file: its number among those of all corpora.
        limit, rows: of `TrainingTexts`.
    """
    id_of_row = '{"id": ' + json.dumps(f"{name}:", ensure_ascii=False)[:-1]
    begin = len(id_of_row.encode("utf-8", "surrogatepass"))
    with chunk.open("rb") as lines, replacing(sample_path(chunk, limit)) as sample:
        for line in lines:
            if uniform("tokenizer", file, int(line[begin : line.index(b'"', begin)])) * rows < limit:
                sample.write(line)


@dataclass(frozen=True)
class Sampled:
    """The texts of samples, in place of `TrainingTexts`.

    Attributes:
        paths: of the samples, in the order of the corpus.
        roles: of the task.
        target: as for `TrainingTexts`.
    """

    paths: Sequence[Path]
    roles: Roles
    target: bool | None = None

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            with path.open("rb") as lines:
                for line in lines:
                    values = json.loads(line.decode("utf-8", "surrogatepass"))
                    for name, role in self.roles.items():
                        if self.target in (None, role.target):
                            yield from role.texts(values[name])

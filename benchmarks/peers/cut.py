"""A smaller copy of a corpus: evenly spaced rows of each file, so that no class is lost where rows are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq


def spaced(total: int, rows: int) -> list[int]:
    """Return the places of `rows` of `total` rows, or of all of them if `rows` is 0 or there are not so many."""
    return list(range(total)) if not 0 < rows < total else [place * total // rows for place in range(rows)]


def cut(root: Path, out: Path, patterns: Sequence[tuple[str, int]]) -> None:
    """Copy the files below `root` that match the patterns to the folder `out`.

    Args:
        patterns: each with the rows that a file keeps, 0 for all.
    """
    for pattern, rows in patterns:
        files = sorted(root.glob(pattern))
        if not files:
            raise SystemExit(f"{root / pattern} is missing: give the folder of the corpora with --data")
        for file in files:
            copy = out / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".parquet":
                table = pq.read_table(file)
                pq.write_table(table.take(spaced(table.num_rows, rows)), copy)
                continue
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            head, lines = (lines[:1], lines[1:]) if file.suffix in (".tsv", ".csv") else ([], lines)
            copy.write_text("".join([*head, *(lines[place] for place in spaced(len(lines), rows))]), encoding="utf-8")

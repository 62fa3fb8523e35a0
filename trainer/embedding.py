"""`rankzero embed`: texts to vectors, printed as JSON lines or written as .npy or .parquet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from trainer.errors import CheckpointError, UsageError
from trainer.files import replacing
from trainer.rundir import RunDir
from trainer.text_lines import read_texts

if TYPE_CHECKING:
    from trainer.engine.embedder import Embedded, Pooling

ROWS = 512  # of a row group of a parquet file
FORMATS = (".npy", ".parquet")


def embed(
    source: str | Path, texts: Iterable[str], *, pooling: Pooling = "mean", max_length: int | None = None
) -> Iterator[Embedded]:
    """Yield one record per text, in order and in constant memory.

    A record has `text`, `tokens` (pooling tokens), `vector` (fp32), and `truncated` if only a part was read.

    Args:
        source: a run directory, whose trunk, cleaning and length are used; or a Hub id (id@revision), a folder, or
            pkg://package/folder.
        texts: may be endless.
        pooling: cls: the state of the token that represents the text; mean: the mean of the token states; tokens:
            all states, those of special tokens included.
        max_length: the most tokens of a text that are read; by default the limit of the run, or of the model.

    Raises:
        UsageError: no such run or model, or it gives no hidden states.
        CheckpointError: the run has no model yet.
    """
    from trainer.engine.embedder import POOLINGS, Embedder
    from trainer.recipe_loading import Recipe

    if pooling not in POOLINGS:
        raise UsageError(f"--pooling {pooling}: allowed are {', '.join(POOLINGS)}")
    if max_length is not None and max_length < 3:
        raise UsageError(f"--max-length {max_length}: a text and its special tokens need 3 or more")
    run = RunDir(source)
    if run.recipe.exists():
        return Embedder.of_run(run, Recipe, max_length)(texts, pooling)
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise UsageError(f"{source} is neither a run directory (no recipe.yaml) nor a model (no config.json)")
    return Embedder.of_model(str(source), max_length)(texts, pooling)


def embed_command(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="run directory, Hub id, folder, or pkg://…")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="default: lines of stdin")] = None,
    pooling: Annotated[str, typer.Option("--pooling", help="cls, mean, or tokens: all states of a text")] = "mean",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=".npy (cls, mean) or .parquet; default: JSON lines")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", help="most tokens of a text that are read")
    ] = None,
) -> None:
    """Print the last hidden states of texts or stdin lines, from a run or a pretrained model."""
    if out is not None and out.suffix not in FORMATS:
        raise UsageError(f"--out {out}: allowed are files that end in {' or '.join(FORMATS)}")
    if out is not None and out.suffix == ".npy" and pooling == "tokens":
        raise UsageError(
            f"--out {out}: texts have different numbers of tokens, so their states are not an array; give a .parquet "
            "file, or --pooling cls or mean"
        )
    lines = read_texts(texts)
    records = embed(source, lines, pooling=pooling, max_length=max_length)  # type: ignore[arg-type]
    if out is None:
        for record in records:
            sys.stdout.write(json.dumps(_shown(record, pooling), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return
    count = _write(out, records, _write_npy if out.suffix == ".npy" else _write_parquet)
    print(f"{out}: {count:,} texts")


def _shown(record: Embedded, pooling: str) -> dict[str, Any]:
    tokens = {"tokens": record.tokens} if pooling == "tokens" else {}
    mark = {"truncated": True} if record.truncated else {}
    return {"text": record.text, **tokens, "vector": record.vector.tolist(), **mark}


# -- files -------------------------------------------------------------------------------------------------------------


def _write(
    path: Path, records: Iterator[Embedded], write: Callable[[BinaryIO, Embedded, Iterator[Embedded]], int]
) -> int:
    """Write the file atomically. Return the number of texts.

    Raises:
        UsageError: the file cannot be written, or there is no text.
    """
    first = next(records, None)
    if first is None:
        raise UsageError(f"--out {path}: there is no text, neither as an argument nor on stdin")
    try:
        with replacing(path) as file:
            return write(file, first, records)
    except CheckpointError as error:
        raise UsageError(f"--out {error}") from None


def _write_npy(file: BinaryIO, first: Embedded, rest: Iterator[Embedded]) -> int:
    """Write fp32 (texts, M) in the order of the texts. The number of rows is written into the header at the end."""
    from numpy.lib import format as npy

    def header(rows: int) -> None:
        file.seek(0)
        shape = (rows, len(first.vector))
        npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    header(0)
    begin, count = file.tell(), 0
    for record in chain([first], rest):
        file.write(record.vector.astype("<f4").tobytes())
        count += 1
    header(count)
    assert file.tell() == begin, "numpy pads the header so that the number of rows can grow"
    return count


def _write_parquet(file: BinaryIO, first: Embedded, rest: Iterator[Embedded]) -> int:
    """Write columns text and vector (a list of M numbers), or text, tokens and states (a list of vectors)."""
    import pyarrow as pa
    from pyarrow import parquet

    numbers, of_tokens = pa.list_(pa.float32(), first.vector.shape[-1]), first.vector.ndim == 2
    columns = {"text": pa.string()}
    columns |= {"tokens": pa.list_(pa.string()), "states": pa.list_(numbers)} if of_tokens else {"vector": numbers}
    schema, count = pa.schema(list(columns.items())), 0
    records = chain([first], rest)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(records, 64 if of_tokens else ROWS)):
            table: dict[str, Any] = {"text": [record.text for record in group]}
            if of_tokens:
                table["tokens"] = [record.tokens for record in group]
                table["states"] = [list(record.vector) for record in group]
            else:
                table["vector"] = [record.vector for record in group]
            writer.write_table(pa.table(table, schema=schema))
            count += len(group)
    return count

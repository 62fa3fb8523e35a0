"""Start and resume on a corpus of 1,000 files of 1 GB: seconds, requests and bytes on a store that counts them.

    python -m benchmarks.large_corpus [--files 1000] [--bytes 1000000000] [--json benchmarks/results/large_corpus.json]

The store (benchmarks/counting_store.py) generates files of JSON lines, and has one Parquet file of row groups of
100,000 rows under 1,000 names, which is made in the temporary folder. A start is what rank zero does before the model
is built: list, survey, count tokens, fingerprint. A resume compares the files and reads the rest of the current block
of every lane, without the block cache. A plan is what `rankzero plan` reads. A full survey of two files of a hundredth
of the size shows what it would take for all.

Ends with 1 if a start takes `--max-seconds` or reads 0.1% of the bytes, if a plan does the latter, or if a resume of
JSON lines reads more than a block of each lane and what is read ahead. With `--max-seconds 0`, for a busy machine, 10 s
of the processor and of requests are allowed, 32 at once, `--latency` each.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.counting_store import PROTOCOL, CountingStore, Repeated
from benchmarks.harness import machine, write
from launch.tools.plan.corpus import read_corpus
from trainer.data import remote, remote_file
from trainer.data.lane_plan import Bookmark
from trainer.data.loader import load_epoch
from trainer.data.tokenization import train_tokenizer
from trainer.engine import setup
from trainer.engine.corpus import Corpus
from trainer.errors import UsageError
from trainer.files import write_json
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task

SECONDS, SHARE = 10.0, 0.001  # of a start, at most
GROUP = 100_000  # rows of a row group
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "in",
    "red",
    "green",
    "blue",
    "house",
    "tree",
    "river",
    "road",
    "dog",
    "cat",
    "bird",
    "sees",
    "finds",
    "carries",
    "old",
    "young",
    "small",
    "large",
]
CONSOLE = Console(width=140)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of a file")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--block-rows", type=int, default=2048, help="data.block_rows")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of a request")
    parser.add_argument("--max-seconds", type=float, default=SECONDS, help="of a start, at most")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def rows(number: int) -> list[dict[str, str]]:
    """Return pairs of sentences of 10 to 30 words."""
    draw = random.Random(7)
    return [
        {side: " ".join(draw.choices(WORDS, k=draw.randint(10, 30))) for side in ("src", "trg")} for _ in range(number)
    ]


def json_lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(4000)).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(2 * GROUP)), buffer, row_group_size=GROUP)
    return buffer.getvalue()


def large_parquet(path: Path, size: int) -> mmap.mmap:
    """Write a file of about so many bytes, and map it."""
    table = pa.Table.from_pylist(rows(GROUP))
    with path.open("wb") as file, pq.ParquetWriter(file, table.schema) as writer:
        while file.tell() < size:
            writer.write_table(table)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def recipe(lanes: int, block_rows: int, pattern: str, tokenizer: Path, **data: Any) -> Recipe:
    section = {"root": f"{PROTOCOL}://corpus", "train": pattern, "lanes": lanes, "block_rows": block_rows, **data}
    values = {
        "name": "large",
        "task": {"kind": "translation"},
        "data": section,
        "tokenizer": {"pretrained": str(tokenizer)},
        "model": {"kind": "transformer", "d_model": 16, "heads": 2},
        "loop": {"max_steps": 1000},
    }
    return Recipe.parse(values)


@contextmanager
def measured(found: dict[str, Any], stored: int, latency: float, threads: int = 1) -> Iterator[None]:
    """Add the seconds, requests and bytes of the block to `found`."""
    CountingStore.reset()
    wall, cpu = time.monotonic(), time.process_time()
    yield
    counts = CountingStore.reset()
    found |= {
        "seconds": time.monotonic() - wall,
        "processor_seconds": time.process_time() - cpu,
        "requests": dict(sorted(counts.requests.items())),
        "seconds_of_requests": counts.total * latency / threads,
        "bytes": counts.bytes,
        "share": counts.bytes / stored,
    }


def begin(run: RunDir, made: Recipe) -> dict[str, Any]:
    """Do what rank zero does before a model is built."""
    data = setup.survey_data(run, made)
    setup.make_tokenizer(run, made, data["train"])
    data = setup.count_data_tokens(run, made, data)
    write_json(run.manifest, {"data": data})
    return data


def steps_of(found: Corpus, marks: dict[int, Bookmark]) -> Iterator[Any]:
    data, task = found.recipe.data, found.task
    return load_epoch(
        found.lanes(), task.collate, task.tokens, [[lane] for lane in range(data.lanes)], marks,
        inputs=task.inputs, workers=0, prefetch=1, pin_memory=False,
    )  # fmt: skip


def advance(found: Corpus, marks: dict[int, Bookmark], done: Callable[[], bool]) -> None:
    """Make steps until `done`, and move the bookmarks."""
    for batches in steps_of(found, marks):
        for loaded in filter(None, batches):
            marks.update(loaded.lanes)
        if done():
            return


def case(name: str, made: Recipe, folder: Path, latency: float) -> dict[str, Any]:
    """Start a run, train to the middle of the second block of each lane, and resume."""
    run, stored = RunDir(folder / name), sum(file.size for file in CountingStore.files.values())
    run.create()
    result: dict[str, Any] = {"name": name, "files": len(CountingStore.files), "stored": stored}
    with measured(result.setdefault("start", {}), stored, latency, 32):
        data = begin(run, made)
    result |= {"rows": data["train"]["rows"], "checked_rows": data["train"]["checked_rows"]}
    marks = {lane: Bookmark() for lane in range(made.data.lanes)}
    task = make_task(made, setup.read_tokenizer(run), data)
    advance(Corpus(made, task), marks, lambda: all(mark.start > 0 and mark.served > 2 for mark in marks.values()))
    remote.forget()  # as in another process
    time.sleep(2)  # until reads ahead have ended
    with measured(result.setdefault("resume", {}), stored, latency):
        begin(run, made)
        found = Corpus(made, task)
        list(islice(steps_of(found, marks), 1))
    with measured(result.setdefault("plan", {}), stored, latency, 32):
        planned = read_corpus(made)[3]
    result["plan"]["rows"] = planned["rows"]
    ahead = min(remote_file.AHEAD, remote_file.AHEAD_OF_ALL // made.data.lanes) + remote_file.MOST
    length = len(json_lines()) / 4000
    result["resume"]["most_bytes"] = round(made.data.lanes * (made.data.block_rows * length + ahead))
    return result


def ends_well(result: dict[str, Any], most_seconds: float) -> bool:
    start, resume, plan = result["start"], result["resume"], result["plan"]
    seconds = start["seconds"] if most_seconds else start["processor_seconds"] + start["seconds_of_requests"]
    block = result["name"] != "jsonl" or resume["bytes"] <= resume["most_bytes"]
    return block and seconds < (most_seconds or SECONDS) and max(start["share"], plan["share"]) < SHARE


def full_survey(made: Recipe, files: int, each: int) -> dict[str, Any]:
    """Measure what a start read before: all of two files of a hundredth of the size, and the rest by proportion."""
    lines = json_lines()
    size = each // 100 // len(lines) * len(lines)  # whole rows
    CountingStore.fill({f"corpus/train-{i}.jsonl": Repeated(lines, size) for i in range(2)})
    found: dict[str, Any] = {}
    with measured(found, 2 * size, 0.0), tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        run.create()
        setup.survey_data(run, made)
    factor = files * each / (2 * size)
    return {"processor_seconds_of_all": found["processor_seconds"] * factor, "bytes_of_all": files * each * 2}


def main() -> int:
    options = arguments()
    os.environ["RANKZERO_CACHE_GB"] = "0"
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = [text for row in rows(2000) for text in row.values()]
        train_tokenizer(texts, TokenizerTraining(vocab_size=200), 128).save_pretrained(folder / "tokenizer")
        lines, table = json_lines(), large_parquet(folder / "table", options.bytes)
        for kind, content, size in (("jsonl", lines, options.bytes), ("parquet", table, len(table))):
            names = [f"corpus/train-{i:05d}.{kind}" for i in range(options.files)]
            CountingStore.fill({name: Repeated(content, size) for name in names}, options.latency)
            made = recipe(options.lanes, options.block_rows, f"*.{kind}", folder / "tokenizer", check="sample")
            results.append(case(kind, made, folder, options.latency))
            print(json.dumps(results[-1]), flush=True)
        made = recipe(options.lanes, options.block_rows, "*.jsonl", folder / "tokenizer", check="full")
        full = full_survey(made, options.files, options.bytes)
        CountingStore.fill({"corpus/a.jsonl": Repeated(lines, 3 * 10**9)})
        unknown = made.model_copy(
            update={
                "loop": made.loop.model_copy(update={"max_steps": None, "epochs": 1}),
                "data": made.data.model_copy(update={"check": "auto"}),
            }
        )
        try:
            setup.survey_data(RunDir(folder / "unknown"), unknown)
            refused = False
        except UsageError:
            refused = True
    columns = Table("files", "rows", "", "s", "processor s", "requests", "bytes", "share")
    for result in results:
        for part in ("start", "resume", "plan"):
            found, name = result[part], result["name"] if part == "start" else ""
            counted = f"{found.get('rows') or result['rows'] or 'unknown'}" if part != "resume" else ""
            times = f"{found['seconds']:.1f}", f"{found['processor_seconds']:.1f}"
            read = f"{sum(found['requests'].values()):,}", f"{found['bytes']:,}", f"{found['share']:.4%}"
            columns.add_row(name, counted, part, *times, *read)
    CONSOLE.print(columns)
    CONSOLE.print(f"a full survey: {full['processor_seconds_of_all'] / 3600:.1f} processor hours (by proportion)")
    ok = refused and all(ends_well(result, options.max_seconds) for result in results)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        write(options.json, {"settings": settings, "machine": machine(), "cases": results, "full": full, "ok": ok})
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

"""Lanes at 8, 64, 1,024 and more ranks by simulation: rows, work, seconds, memory, bookmarks; and rank zero alone.

    python -m benchmarks.scale [--ranks 1024] [--rows 4194304] [--json benchmarks/results/scale.json]

The lanes are the real ones; rows are an id and a length only (benchmarks/simulated_lanes.py). Work is counted in padded
tokens, time in seconds of one processor (a checkpoint: of the clock). Ends with 1 where a row is lost or repeated,
a resumed lane serves other rows, a rank's memory grows with the corpus, or a rank of the large cases does 5% more than
the mean. docs/explanation/scale.md tells what the numbers mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import machine, write
from benchmarks.simulated_lanes import Corpus, Epoch, World, bookmarks, drawn, epoch_of, one_rank, same_after_resumes
from trainer.data.lane_plan import LanePlan
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.engine import checkpoint, saving
from trainer.recipe.sections import DataConfig

EVEN = 1.05  # work of the busiest rank in an epoch over the mean of all
ROWS_PER_LANE = (256, 512, 1024, 2048)
MORE, EDGES = 1.1, 300_000  # memory with twice the rows: no larger blocks, but more positions of them (bytes)
SHORT_BLOCK = 256  # rows of a block where memory is measured: the corpus must be many blocks
CONSOLE = Console(width=140)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=1024, help="of the largest cases; also with two lanes each")
    parser.add_argument("--rows", type=int, default=2**22, help="of the made-up corpora")
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of a micro-batch, at most")
    parser.add_argument("--most-lanes", type=int, default=10_000, help="of the last case, 512 rows each; 0 = none")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def world(kind: str, rows: int, lanes: int, shards: int, tokens: int, block_rows: int = 16_384) -> World:
    multiple = 4 if kind == "captions" else 8
    return World(Corpus(drawn(kind, rows), shards), LanePlan(1, lanes, block_rows, tokens, None, multiple))


def case(made: World, kind: str, ranks: int) -> tuple[dict[str, Any], Epoch]:
    """An epoch of all lanes, as a row of the table."""
    epoch = epoch_of(made)
    about = {
        "lengths": kind, "rows": len(made.corpus.lengths), "lanes": made.plan.lanes, "ranks": ranks,
        "shards": len(made.corpus.shards), "whole_shards": made.whole_shards, "tokens": made.plan.tokens,
    }  # fmt: skip
    found = {**about, **epoch.evenness(ranks), "lost": epoch.lost, "repeated": epoch.repeated, "seconds": epoch.seconds}
    return found, epoch


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", padding=(0, 0))
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(
            *(f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if type(v) is int else str(v) for v in row.values())
        )
    CONSOLE.print(table)


def proofs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row once and equal work: both corpora, one file and a shard for each lane."""
    plans = [(8, 8), (64, 64), (options.ranks, options.ranks), (2 * options.ranks, options.ranks)]
    rows = []
    for kind in ("log-normal", "periodic"):
        for lanes, ranks in dict.fromkeys(plans):
            count = options.rows if lanes >= options.ranks else options.rows // 16
            for shards in (1, lanes) if lanes == ranks else (lanes,):
                rows.append(case(world(kind, count, lanes, shards, options.tokens), kind, ranks)[0])
    for lanes in (4, 8, 64):
        rows.append(case(world("captions", 29_000, lanes, 1, 1024), "captions", lanes)[0])
    show("an epoch of all lanes", rows)
    return rows


def rows_per_lane(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How many rows a lane needs for its work to be that of the others."""
    sizes = [(options.ranks, per_lane) for per_lane in ROWS_PER_LANE]
    sizes += [(options.most_lanes, 512)] if options.most_lanes else []
    rows = []
    for lanes, per_lane in sizes:
        found, _ = case(world("log-normal", lanes * per_lane, lanes, lanes, options.tokens), "log-normal", lanes)
        rows.append({"rows_per_lane": per_lane, **found})
    show("rows per lane", rows)
    return rows


def ranks_alone(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What one rank of many does: what it reads, seconds to its first step, and memory, also with twice the rows."""
    rows, ranks = [], options.ranks
    for shards in dict.fromkeys((1, 64, ranks)):
        made = world("log-normal", options.rows, ranks, shards, options.tokens, SHORT_BLOCK)
        alone = one_rank(made, ranks - 1, ranks)
        sizes = (options.rows, 2 * options.rows) if made.whole_shards else (options.rows // 8, options.rows // 4)
        peaks = [
            one_rank(world("log-normal", n, ranks, shards, options.tokens, SHORT_BLOCK), ranks - 1, ranks, memory=True)
            for n in sizes
        ]
        rows.append(
            {"shards": shards, "ranks": ranks, "rows": options.rows, "whole_shards": made.whole_shards, **alone}
            | {"peak_bytes": peaks[0]["peak_bytes"], "with_twice_the_rows": peaks[1]["peak_bytes"]}
        )
    show(f"one rank of {ranks}, blocks of {SHORT_BLOCK} rows", rows)
    return rows


def resumes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An epoch in three parts on other numbers of ranks, and what its bookmarks weigh."""
    ranks, rows = (options.ranks, options.ranks // 2, 3 * options.ranks // 32), []
    for shards, sample in ((1, 2), (options.ranks, None)):
        count = options.rows // 8 if sample else options.rows // 2  # a sample, because each rank reads all rows
        made = world("log-normal", count, options.ranks, shards, options.tokens, SHORT_BLOCK)
        assert made.whole_shards or sample, "too few rows: shards of an unlike size would be read whole by every rank"
        found = same_after_resumes(made, epoch_of(made), ranks, sample)
        weights = bookmarks(found.pop("state"), options.ranks)
        rows.append({"rows": count, "shards": shards, "lanes": options.ranks, **found, **weights})
    show("resumed in the middle", rows)
    return rows


# -- what rank zero does while the others wait -------------------------------------------------------------------------


def rank_zero(rows: int, parameters: int) -> dict[str, float]:
    """Rows per second read and surveyed from JSON lines; seconds of a checkpoint with AdamW's moments, per million."""
    words = ("ein", "Mann", "in", "einem", "blauen", "Hemd", "steht", "auf", "einer", "Leiter", "und", "putzt")
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "train.jsonl").open("w", encoding="utf-8") as file:
            for picked in draw.integers(0, len(words), (rows, 25)):
                text = [words[i] for i in picked]
                file.write(json.dumps({"de": " ".join(text[:12]), "en": " ".join(text[12:])}) + "\n")
        size = (Path(folder) / "train.jsonl").stat().st_size
        data = DataConfig(root=folder, train="train.jsonl", columns={"src": "de", "trg": "en"})
        source = open_split(data, "train")
        assert source is not None
        next(source.stream(0))  # `datasets` is imported at the first row
        began = time.process_time()
        read = sum(1 for _ in source.stream(0)) / (time.process_time() - began)
        began = time.process_time()
        surveyed = survey(source, data, ["src", "trg"]).rows / (time.process_time() - began)
        weights = {f"w{i}": torch.zeros(1_000_000) for i in range(parameters // 1_000_000)}
        moments = {f"{n}.{m}": t.clone() for n, t in weights.items() for m in ("exp_avg", "exp_avg_sq")}
        began = time.perf_counter()
        saving.save(Path(folder), 1, {"model.safetensors": weights, "optimizer.safetensors": moments}, {})
        saved = time.perf_counter() - began
        began = time.perf_counter()
        assert checkpoint.newest(Path(folder)) == 1
        checked = time.perf_counter() - began
    return {
        "bytes_a_row": size / rows, "rows_per_second_read": read, "rows_per_second_surveyed": surveyed,
        "checkpoint_parameters": parameters, "seconds_to_write_checkpoint": saved, "seconds_to_check_it": checked,
    }  # fmt: skip


def main() -> None:
    options = arguments()
    gc.disable()  # rows by the million, none of them in a cycle: the collector would be half of the time
    before, began = machine(), time.perf_counter()
    report: dict[str, Any] = {
        "benchmark": "lanes of many ranks, simulated", "machine": before,
        "rows": options.rows, "tokens": options.tokens,
        "one_rank": ranks_alone(options), "resumes": resumes(options), "proofs": proofs(options),
        "rows_per_lane": rows_per_lane(options), "rank_zero": rank_zero(200_000, 20_000_000),
    }  # fmt: skip
    show("rank zero", [report["rank_zero"]])
    report["seconds"] = time.perf_counter() - began
    report["peak_resident_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(options.json, report)
    wrong = [r for r in [*report["proofs"], *report["rows_per_lane"]] if r["lost"] or r["repeated"]]
    wrong += [r for r in report["resumes"] if r["different"]]
    wrong += [r for r in report["one_rank"] if r["with_twice_the_rows"] > MORE * r["peak_bytes"] + EDGES]
    wrong += [r for r in report["proofs"] if r["lengths"] != "captions" and r["most_work_over_mean"] > EVEN]
    for found in wrong:
        CONSOLE.print("not as promised:", found)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""The chunks of a campaign, each in a process that this one watches, and their table."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.fuzz import coverage
from benchmarks.fuzz.chunks import CURRENT, Chunk, Result, replay, run_chunks
from benchmarks.fuzz.guard import WAIT_SECONDS
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.runs import BASE, train_base

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
"RANKZERO_CACHE_GB": "0",
               "MPLBACKEND": "agg"}  # fmt: skip
MOST_OF_PROCESS = 500  # cases
IMPORT_SECONDS = 120.0  # that a process may take longer for its first case


def play(options: argparse.Namespace) -> int:
    """Run all chunks. Print the failures and the table, and return the exit code."""
    chosen = options.only or list(KINDS)
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise SystemExit(f"--only {unknown[0]}: allowed: {', '.join(KINDS)}")
    os.environ.update(ENVIRONMENT)
    if any(KINDS[kind].trained for kind in chosen):
        os.environ[BASE] = str(train_base(options.folder))
    results: dict[str, Result] = {}
    until = time.monotonic() + 60 * (options.minutes or float("inf"))
    chunks = takewhile(lambda _: time.monotonic() < until, _chunks(chosen, options.cases, options.seed))
    for ended in _played(chunks, options.folder):
        kind = ended.kind
        _add(results.setdefault(kind, Result(kind)), ended)
        for what, (case, trace) in ended.failures.items():
            saved = _save(options.folder, kind, what, case)
            print(f"FAILED {kind} (seed {options.seed}): {what}\n  saved as {saved}\n  {case[:600]}")
            print("    " + "\n    ".join(trace.splitlines()[-8:]), flush=True)
    covered = {} if options.no_coverage or options.only else _cover(options)
    return _report(options, results, covered)


def _cover(options: argparse.Namespace) -> dict[str, tuple[int, str]]:
    """Run the parsers under atheris, if it is installed."""
    if not coverage.available():
        print(coverage.MISSING)
        return {}
    covered = {parser: coverage.play(parser, options.seed, options.folder) for parser in coverage.SEEDS}
    for parser, (_, problem) in covered.items():
        if problem:
            print(f"FAILED {parser} under atheris (seed {options.seed}):\n{problem}", flush=True)
    return covered


def play_again(options: argparse.Namespace) -> int:
    """Run a saved input, with its traceback."""
    kind, _, case = options.replay.read_text().partition("\n")
    if KINDS[kind].trained:
        os.environ[BASE] = str(train_base(options.folder))
    with tempfile.TemporaryDirectory() as place:
        _set_up(Path(place))
        problem = replay(kind, case, Path(place))
    print(problem or "held")
    return int(bool(problem))


def _chunks(chosen: list[str], cases: int, seed: int) -> Iterator[Chunk]:
    """Yield kind, number and size of each chunk. The shares of the kinds add up to all cases."""
    total, done, before = sum(KINDS[kind].share for kind in chosen), 0, 0
    for kind in chosen:
        done += KINDS[kind].share
        until = cases * done // total
        for part, at in enumerate(range(before, until, KINDS[kind].chunk)):
            digest = hashlib.blake2b(f"{seed} {kind} {part}".encode(), digest_size=6).digest()
            yield kind, int.from_bytes(digest, "big"), min(KINDS[kind].chunk, until - at)
        before = until


def _played(chunks: Iterator[Chunk], folder: Path) -> Iterator[Result]:
    """Run the chunks in one process after the other. One has several small chunks, because its start takes seconds."""
    group: list[Chunk] = []
    for chunk in chunks:
        if group and (KINDS[chunk[0]].trained or sum(most for *_, most in [*group, chunk]) > MOST_OF_PROCESS):
            yield from _watched(group, folder)
            group = []
        group.append(chunk)
    if group:
        yield from _watched(group, folder)


def _watched(chunks: list[Chunk], folder: Path) -> Iterator[Result]:
    """Run chunks in a process. One that hangs or dies fails at the case that it had begun."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=folder))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(chunks, place, there))
    process.start()
    there.close()
    try:
        for kind, _, _ in chunks:
            while not here.poll(1.0):
                if _silent_for(place) > WAIT_SECONDS:
                    process.kill()
                    break
            try:
                yield here.recv()
            except EOFError:
                process.join()
                yield _ended_early(kind, place, process.exitcode)
                return
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        here.close()
        shutil.rmtree(place, ignore_errors=True)


def _silent_for(place: Path) -> float:
    try:
        return time.time() - (place / CURRENT).stat().st_mtime
    except FileNotFoundError:
        return time.time() - place.stat().st_mtime - IMPORT_SECONDS


def _ended_early(kind: str, place: Path, code: int | None) -> Result:
    path = place / CURRENT
    case = path.read_text().partition("\n")[2].strip() if path.exists() else "None"
    what = f"its process died with code {code}, or took more than {WAIT_SECONDS:g} s for a case"
    return Result(kind, cases=1, failures={what: (case, "")})


def _work(chunks: list[Chunk], place: Path, pipe: Any) -> None:
    _set_up(place)
    for result in run_chunks(chunks, place):
        pipe.send(result)
    pipe.close()


def _set_up(place: Path) -> None:
    """Give this process a home and a temporary folder of its own, in which it may write."""
    for name in ("home", "tmp"):
        (place / name).mkdir()
    os.environ.update(ENVIRONMENT, PATH=str(place / "bin"), HOME=str(place / "home"), TMPDIR=str(place / "tmp"))
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    os.chdir(place)


def _add(total: Result, ended: Result) -> None:
    total.cases += ended.cases
    total.read += ended.read
    total.refused += ended.refused
    total.slowest = max(total.slowest, ended.slowest)
    total.memory = max(total.memory, ended.memory)
    for what, failure in ended.failures.items():
        if what not in total.failures or len(failure[0]) < len(total.failures[what][0]):
            total.failures[what] = failure


def _save(folder: Path, kind: str, what: str, case: str) -> Path:
    path = folder / f"{kind}-{hashlib.blake2b(what.encode(), digest_size=4).hexdigest()}.txt"
    path.write_text(f"{kind}\n{case}\n")
    return path


def _report(options: argparse.Namespace, results: dict[str, Result], covered: dict[str, tuple[int, str]]) -> int:
    print(f"\n{'kind':14s}{'cases':>8s}{'read':>8s}{'refused':>9s}{'failures':>10s}{'slowest':>10s}{'memory':>10s}")
    for kind, one in results.items():
        numbers = f"{one.cases:8,}{one.read:8,}{one.refused:9,}{len(one.failures):10,}"
        print(f"{kind:14s}{numbers}{one.slowest:8.2f} s{one.memory / 1e6:7.0f} MB")
    for parser, (runs, problem) in covered.items():
        print(f"{parser:14s}{runs:8,} by coverage (atheris){'; failed' * bool(problem)}")
    cases = sum(one.cases for one in results.values())
    failures = sum(len(one.failures) for one in results.values()) + sum(
        bool(problem) for _, problem in covered.values()
    )
    if options.json:
        table = {
            kind: {**vars(one), "failures": {what: case for what, (case, _) in one.failures.items()}}
            for kind, one in results.items()
        }
        found = {"seed": options.seed, "cases": cases, "failures": failures, "table": table, "by_coverage": covered}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    more = f", {sum(runs for runs, _ in covered.values()):,} more inputs by coverage" if covered else ""
    result = f"{failures} kinds of failures in {cases:,} cases" if failures else f"all {cases:,} cases held"
    print(f"{result}{more} (seed {options.seed})")
    return int(bool(failures) or cases < options.cases)

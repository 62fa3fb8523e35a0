"""The batches of a campaign, which the same command continues, and their table."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzz import ROOT, coverage
from benchmarks.fuzz.batches import Batch, Result, replay, run_batch
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.runs import BASE, train_base
from benchmarks.harness import machine

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
"RANKZERO_CACHE_GB": "0",
               "MPLBACKEND": "agg"}  # fmt: skip
SIZE = 100  # cases of a batch
SIZE_TRAINED = 25  # the same for kinds whose cases take longer


def play(options: argparse.Namespace) -> int:
    """Play the batches that the folder does not have. Print the failures and the table, and return the exit code."""
    chosen = options.only or list(KINDS)
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise SystemExit(f"--only {unknown[0]}: allowed: {', '.join(KINDS)}")
    os.environ.update(ENVIRONMENT)
    began, commit = time.monotonic(), _commit()
    if any(KINDS[kind].trained for kind in chosen):
        os.environ[BASE] = str(train_base(options.folder))
    records = []
    with _place(options.folder) as place:
        for batch in _batches(chosen, options.cases, options.seed):
            in_time = options.minutes is None or time.monotonic() - began < 60 * options.minutes
            if (record := _played(batch, options)) is None and in_time:
                record = _play(batch, options, place, commit)
            records += [record] if record else []
    wanted = not (options.no_coverage or options.only) and sum(record["cases"] for record in records) == options.cases
    return _report(options, records, coverage.play_all(options.seed, options.folder) if wanted else {})


def _played(batch: Batch, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the folder has of a batch. One that failed is played again."""
    file, key = options.folder / "batches.jsonl", list(batch)
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kept = [record for record in found if record["batch"] == key and not record["failures"]]
    return kept[-1] if kept else None


def _play(batch: Batch, options: argparse.Namespace, place: Path, commit: str) -> dict[str, Any]:
    result = run_batch(batch, place)
    for what, (case, trace) in result.failures.items():
        saved = _save(options.folder, result.kind, what, case)
        print(f"FAILED {result.kind} (seed {options.seed}): {what}\n  saved as {saved}\n  {case[:600]}")
        print("    " + "\n    ".join(trace.splitlines()[-8:]), flush=True)
    record = {"batch": list(batch), "commit": commit, **vars(result)}
    with (options.folder / "batches.jsonl").open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    return record


def _commit() -> str:
    """Return the commit of this code, with a plus sign if files are changed."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno", "--", "trainer", "launch", "benchmarks/fuzz"],
                             capture_output=True, text=True, check=False)  # fmt: skip
    return commit.stdout.strip() + "+" * bool(changed.stdout.strip()) if commit.returncode == 0 else "unknown"


def play_again(options: argparse.Namespace) -> int:
    """Run a saved input, with its traceback."""
    kind, _, case = options.replay.read_text().partition("\n")
    os.environ.update(ENVIRONMENT)
    if KINDS[kind].trained:
        os.environ[BASE] = str(train_base(options.folder))
    with _place(options.folder) as place:
        problem = replay(kind, case, place)
    print(problem or "held")
    return int(bool(problem))


def _batches(chosen: list[str], cases: int, seed: int) -> Iterator[Batch]:
    """Yield kind, number and size of each batch. The shares of the kinds add up to all cases."""
    total, done, before = sum(KINDS[kind].share for kind in chosen), 0, 0
    for kind in chosen:
        done += KINDS[kind].share
        until, size = cases * done // total, SIZE_TRAINED if KINDS[kind].trained else SIZE
        for part, at in enumerate(range(before, until, size)):
            digest = hashlib.blake2b(f"{seed} {kind} {part}".encode(), digest_size=6).digest()
            yield kind, int.from_bytes(digest, "big"), min(size, until - at)
        before = until


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """Give this process a home and a temporary folder of its own, in which cases may write."""
    place, here, before = Path(tempfile.mkdtemp(prefix="fuzz-", dir=folder)), Path.cwd(), dict(os.environ)
    for name in ("home", "tmp"):
        (place / name).mkdir()
    os.environ.update(PATH=str(place / "bin"), HOME=str(place / "home"), TMPDIR=str(place / "tmp"))
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    os.chdir(place)
    try:
        yield place
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = None
        shutil.rmtree(place, ignore_errors=True)


def _save(folder: Path, kind: str, what: str, case: str) -> Path:
    path = folder / f"{kind}-{hashlib.blake2b(what.encode(), digest_size=4).hexdigest()}.txt"
    path.write_text(f"{kind}\n{case}\n")
    return path


def _report(options: argparse.Namespace, records: list[dict[str, Any]], covered: dict[str, tuple[int, str]]) -> int:
    results: dict[str, Result] = {}
    commits: Counter[str] = Counter()
    for record in records:
        one = Result(**{name: value for name, value in record.items() if name not in ("batch", "commit")})
        results.setdefault(one.kind, Result(one.kind)).add(one)
        commits[record["commit"]] += one.cases
    print(f"\n{'kind':14s}{'cases':>8s}{'read':>8s}{'refused':>9s}{'failed':>8s}{'slowest':>10s}{'memory':>10s}")
    for kind, one in results.items():
        numbers = f"{one.cases:8,}{one.read:8,}{one.refused:9,}{one.failed:8,}"
        print(f"{kind:14s}{numbers}{one.slowest:8.2f} s{one.memory / 1e6:7.0f} MB")
    for parser, (runs, problem) in covered.items():
        print(f"{parser:14s}{runs:8,} by coverage (atheris){'; failed' * bool(problem)}")
    cases, failed = sum(one.cases for one in results.values()), sum(one.failed for one in results.values())
    problems = sum(bool(problem) for _, problem in covered.values())
    if options.json:
        table = {
            kind: {**vars(one), "failures": {what: case for what, (case, _) in one.failures.items()}}
            for kind, one in results.items()
        }
        found = {"benchmark": "fuzz", "machine": machine(), "seed": options.seed, "cases": cases, "failed": failed,
                 "commits": dict(commits), "table": table, "by_coverage": covered}  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    more = f", {sum(runs for runs, _ in covered.values()):,} more inputs by coverage" if covered else ""
    result = f"{failed:,} of {cases:,} cases failed" if failed else f"all {cases:,} cases held"
    missing = f", {options.cases - cases:,} not played yet" if cases < options.cases else ""
    print(f"{result}{missing}{more}{'; failed by coverage' * bool(problems)} (seed {options.seed})")
    return int(bool(failed or problems) or cases < options.cases)

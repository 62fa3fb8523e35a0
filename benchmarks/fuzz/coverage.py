"""Inputs that reach new branches of a parser, found by atheris (libFuzzer). Each parser is a process of its own.

python -m benchmarks.fuzz.coverage PARSER -runs=N -seed=S
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz import ROOT

RUNS = 20_000  # for each parser, and fewer for those that read a file several times
RUNS_OF_FILES = 4_000
DONE = re.compile(r"Done (\d+) runs|#(\d+)\s+DONE")
MISSING = "atheris is not installed, so no input was chosen by coverage: pip install 'rankzero[fuzz]'"
SEEDS = {
    "override": [b"optim.lr=3e-4", b"data.columns={text: a}", b"task.labels=[a, b]", b"data.train='*.csv'"],
    "recipe": [
        b"name: a\ntask: {kind: classification}\n",
        b"a: &x [1, 2.5, true, null]\nb: *x\n",
        b"'x': \"\\u00e9\"\n",
    ],
    "csv": [b"text,label\na,1\n", b'text,label\n"a\nb",0\n', b"sep=;\ntext;label\na;1\n", b'"a\\"b",1\n'],
    "json-lines": [b'{"text": "a", "label": 1}\n', b'[{"text": "a"}, {"label": 1}]', b"\n{}\n"],
    "status": [
        b'{"state": "running", "step": 1, "share": 0.5, "left": 1.0, "updated": 1.0}',
        b'{"state": "failed", "error": "x"}',
    ],
    "ledger": [
        b'{"step": 1, "rows": ["a:0"]}\n{"step": 2}\n',
        b'{"id": "a:1", "input": "", "target": "", "prediction": "", "loss": 0}\n',
    ],
}


def available() -> bool:
    return importlib.util.find_spec("atheris") is not None


def play_all(seed: int, folder: Path) -> dict[str, tuple[int, str]]:
    """Fuzz the parsers that the folder has no result of. Return inputs and failure of each, none without atheris."""
    if not available():
        print(MISSING)
        return {}
    file, found = folder / "coverage.jsonl", dict[str, tuple[int, str]]()
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for parser in SEEDS:
        held = [runs for name, of, runs in known if (name, of) == (parser, seed)]
        runs, problem = (held[-1], "") if held else play(parser, seed, folder)
        found[parser] = (runs, problem)
        if problem:
            print(f"FAILED {parser} under atheris (seed {seed}):\n{problem}", flush=True)
        elif not held:
            with file.open("a") as lines:
                lines.write(json.dumps([parser, seed, runs]) + "\n")
    return found


def play(
    parser: str, seed: int, folder: Path, runs: int = 0, program: Sequence[str] = ("-m", __spec__.name)
) -> tuple[int, str]:
    """Fuzz a parser. Return how many inputs it got, and the end of the output if one failed.

    Args:
        runs: inputs; 0: as many as the parser gets in a campaign.
        program: of this module, for Python.
    """
    runs = runs or (RUNS_OF_FILES if parser in ("csv", "json-lines") else RUNS)
    with tempfile.TemporaryDirectory(dir=folder) as corpus:
        for number, content in enumerate(SEEDS[parser]):
            (Path(corpus) / f"seed-{number}").write_bytes(content)
        limits = [
            f"-runs={runs}",
            f"-seed={seed}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=4096",
            "-verbosity=1",
        ]
        command = [sys.executable, *program, parser, *limits, f"-artifact_prefix={folder}/{parser}-", corpus]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    done = [int(next(filter(None, match))) for match in DONE.findall(ended.stderr)]
    return max(done, default=0), "" if ended.returncode == 0 and done else (ended.stdout + ended.stderr)[-3000:]


def _parsers(folder: Path) -> dict[str, Callable[[bytes], object]]:
    from benchmarks.fuzz import files
    from launch.slurm.follow import _text, state_of
    from launch.slurm.queue import Snapshot
    from trainer.errors import UsageError
    from trainer.evaluation.predictions import read_predictions
    from trainer.recipe import apply_overrides, parse_yaml
    from trainer.report.run_files import read_history
    from trainer.rundir import RunDir

    def text_of(content: bytes) -> str:
        return content.decode("utf-8", "replace")

    def status(content: bytes) -> None:
        (folder / "status.json").write_bytes(content)
        _text(state_of(folder, Snapshot()))

    def lines(content: bytes) -> None:
        (folder / "lines.jsonl").write_bytes(content)
        (folder / "restarts.jsonl").write_bytes(content)
        read_history(folder / "lines.jsonl")
        RunDir(folder).read_restarts()
        list(read_predictions(folder / "lines.jsonl"))

    def rows(name: str) -> Callable[[bytes], object]:
        return lambda content: files.check((name, (content,), {}, "", 0, len(content)), folder)

    def override(content: bytes) -> None:
        with contextlib.suppress(UsageError):
            json.dumps(apply_overrides({"a": {"b": 1}, "c": [1]}, [text_of(content)]))

    return {
        "override": override, "recipe": lambda content: parse_yaml(text_of(content), "fuzz"), "csv": rows("rows.csv"),
        "json-lines": rows("rows.jsonl"), "status": status, "ledger": lines,
    }  # fmt: skip


def main() -> None:
    """Run libFuzzer in this process, which it ends."""
    import atheris

    parser = sys.argv.pop(1)
    logging.getLogger("rankzero").addHandler(logging.NullHandler())
    logging.getLogger("rankzero").propagate = False
    include = [
        "trainer.recipe.yaml_text",
        "trainer.recipe.parsing",
        "trainer.data",
        "trainer.rundir",
        "trainer.files",
        "launch.slurm.follow",
        "yaml",
    ]
    with atheris.instrument_imports(include=include):
        from trainer.errors import RankzeroError

        folder = Path(tempfile.mkdtemp(prefix="fuzz-coverage-"))
        parse = _parsers(folder)[parser]

    def one(content: bytes) -> None:
        with contextlib.suppress(RankzeroError):
            parse(content)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

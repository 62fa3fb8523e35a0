"""Check a batch script for what `sbatch --test-only` does not report.

It reports a missing first line, Windows line endings, unknown options, missing values and open quotes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator

DIRECTIVE = re.compile(r"^#SBATCH(\s|$)")
MISSPELLED = re.compile(r"^\s*#\s*SBATCH\s|^\s+#SBATCH|^#sbatch\s", re.IGNORECASE)
PATH_OPTIONS = ("--output", "--error", "--input", "--chdir")

# Options that the script sets or relies on, by what to use instead.
REPLACEMENTS = {
    "--array SEEDS, which makes a run directory for each seed": "array",
    "`rankzero submit` started in that directory": "chdir",
    "launch.cpus_per_task (--cpus-per-task)": "cpus-per-task",
    "launch.gpus_per_node (--gpus-per-node), with a type as a100:4": "gpus gpus-per-node gpus-per-socket gpus-per-task",
    "launch.nodes (--nodes)": "nodes",
    "launch.ranks_per_node (--ranks-per-node)": "ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node "
    "ntasks-per-socket",
    "launch.setup (--setup 'export NAME=VALUE')": "export export-file",
    "launch.signal_lead": "signal",
    "launch.time (--time)": "time",
    "--name": "job-name",
    "omit it: rankzero logs reads RUN/slurm": "error output open-mode",
    "omit it: the job reads no input": "input",
    "omit it: it is an option of the command sbatch": "parsable quiet",
    "rankzero submit --dry-run": "test-only",
    "rankzero logs RUN --follow, which waits for the job": "wait",
}
OWN = {option: use for use, options in REPLACEMENTS.items() for option in options.split()}
LETTERS = {"a": "array", "c": "cpus-per-task", "D": "chdir", "e": "error", "G": "gpus", "i": "input", "J": "job-name",
           "N": "nodes", "n": "ntasks", "o": "output", "Q": "quiet", "t": "time", "W": "wait"}  # fmt: skip


def lint(script: str) -> list[str]:
    """Return the `#SBATCH` lines without effect and the values that sbatch does not expand."""
    problems, commands = [], False
    for number, line in enumerate(script.splitlines(), start=1):
        commands = commands or not (line.strip() == "" or line.lstrip().startswith("#"))
        where = f"line {number}: {line.strip()!r}"
        if DIRECTIVE.match(line) and commands:
            problems.append(f"{where} follows the first command: sbatch ignores it")
        elif DIRECTIVE.match(line):
            parts = [part for part in _split(line) if "$" in part and not part.startswith(PATH_OPTIONS)]
            problems += [f"{where}: sbatch does not expand `$` in {part!r}" for part in parts]
        elif MISSPELLED.match(line) and not commands:
            problems.append(f"{where} is a comment to sbatch: write `#SBATCH` at its beginning")
    return problems


def conflicts(extra: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of `launch.extra` that break the script, and what to use instead. Abbreviations count."""
    for part in (part for line in extra for part in _split(line) if part.startswith("-")):
        name = part[2:].partition("=")[0] if part.startswith("--") else LETTERS.get(part[1:2], "")
        matches = [own for own in OWN if name and own.startswith(name)]
        if matches:
            yield part, OWN[name if name in OWN else matches[0]]


def syntax_error(script: str) -> str | None:
    """Return the first message of `bash -n`, or None for a correct script."""
    try:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[0]


def _split(line: str) -> list[str]:
    """Split a directive as sbatch does. Empty for an open quote, which `sbatch --test-only` reports."""
    try:
        return shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:
        return []

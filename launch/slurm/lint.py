"""What `sbatch --test-only` does not see in a batch script."""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator

# long options of sbatch 20.11 to 24.05; a value is needed where "=" follows
OPTIONS = [
    "account=",
    "acctg-freq=",
    "array=",
    "batch=",
    "bb=",
    "bbf=",
    "begin=",
    "chdir=",
    "cluster-constraint=",
    "clusters=",
    "comment=",
    "constraint=",
    "container=",
    "contiguous",
    "core-spec=",
    "cores-per-socket=",
    "cpu-freq=",
    "cpus-per-gpu=",
    "cpus-per-task=",
    "deadline=",
    "delay-boot=",
    "dependency=",
    "distribution=",
    "error=",
    "exclude=",
    "exclusive",
    "export=",
    "export-file=",
    "extra=",
    "extra-node-info=",
    "get-user-env",
    "gid=",
    "gpu-bind=",
    "gpu-freq=",
    "gpus=",
    "gpus-per-node=",
    "gpus-per-socket=",
    "gpus-per-task=",
    "gres=",
    "gres-flags=",
    "hint=",
    "hold",
    "ignore-pbs",
    "input=",
    "job-name=",
    "kill-on-invalid-dep=",
    "licenses=",
    "mail-type=",
    "mail-user=",
    "mcs-label=",
    "mem=",
    "mem-bind=",
    "mem-per-cpu=",
    "mem-per-gpu=",
    "mincpus=",
    "network=",
    "nice",
    "no-kill",
    "no-requeue",
    "nodefile=",
    "nodelist=",
    "nodes=",
    "ntasks=",
    "ntasks-per-core=",
    "ntasks-per-gpu=",
    "ntasks-per-node=",
    "ntasks-per-socket=",
    "open-mode=",
    "output=",
    "overcommit",
    "oversubscribe",
    "parsable",
    "partition=",
    "power=",
    "prefer=",
    "priority=",
    "profile=",
    "propagate",
    "qos=",
    "quiet",
    "reboot",
    "requeue",
    "reservation=",
    "signal=",
    "sockets-per-node=",
    "spread-job",
    "switches=",
    "test-only",
    "thread-spec=",
    "threads-per-core=",
    "time=",
    "time-min=",
    "tmp=",
    "tres-bind=",
    "tres-per-task=",
    "uid=",
    "use-min-nodes",
    "verbose",
    "wait",
    "wait-all-nodes=",
    "wckey=",
]
KNOWN = {option.rstrip("="): option.endswith("=") for option in OPTIONS}
SHORT = set("AaBbCcDdeFGHhIiJkLMmNnOopQqSstvWwx")
DIRECTIVE = re.compile(r"^#SBATCH(\s|$)")
NEARLY = re.compile(r"^\s*#\s*SBATCH\s|^\s+#SBATCH|^#sbatch\s", re.IGNORECASE)


def lint(script: str) -> list[str]:
    """Problems, each with its line number; none for a script that means what it says."""
    found = []
    if not script.startswith("#!"):
        found.append("line 1: no `#!/bin/bash`: sbatch refuses a script without it")
    if "\r" in script:
        found.append("line ends of Windows (CRLF): sbatch refuses them; dos2unix removes them")
    commands = False
    for number, line in enumerate(script.splitlines(), start=1):
        if not DIRECTIVE.match(line):
            if NEARLY.match(line) and not commands:
                found.append(
                    f"line {number}: {line.strip()!r} is a comment to sbatch: write `#SBATCH` at its beginning"
                )
            commands = commands or not (line.strip() == "" or line.startswith("#"))
            continue
        if commands:
            found.append(f"line {number}: sbatch ignores {line.strip()!r}, which follows the first command")
        else:
            found += [f"line {number}: {problem}" for problem in _directive(line)]
    return found


# options that the script sets itself or relies on, and what to use instead
OWN = {
    "array": "--array SEEDS, which makes a run directory for each seed",
    "chdir": "the script changes to the directory of the submission; start `rankzero submit` there",
    "cpus-per-task": "launch.cpus_per_task (--cpus-per-task)",
    "error": "rankzero logs reads RUN/slurm: leave it out",
    "export": "launch.setup (--setup 'export NAME=VALUE')",
    "export-file": "launch.setup (--setup 'export NAME=VALUE')",
    "gpus": "launch.gpus_per_node (--gpus-per-node)",
    "gpus-per-node": "launch.gpus_per_node (--gpus-per-node), with a type as a100:4",
    "gpus-per-socket": "launch.gpus_per_node (--gpus-per-node)",
    "gpus-per-task": "launch.gpus_per_node (--gpus-per-node)",
    "input": "leave it out",
    "job-name": "--name",
    "nodes": "launch.nodes (--nodes)",
    "ntasks": "launch.ranks_per_node (--ranks-per-node)",
    "ntasks-per-core": "launch.ranks_per_node (--ranks-per-node)",
    "ntasks-per-gpu": "launch.ranks_per_node (--ranks-per-node)",
    "ntasks-per-node": "launch.ranks_per_node (--ranks-per-node)",
    "ntasks-per-socket": "launch.ranks_per_node (--ranks-per-node)",
    "open-mode": "leave it out: a requeued job appends to its log",
    "output": "rankzero logs reads RUN/slurm: leave it out",
    "parsable": "leave it out: it is an option of the command sbatch",
    "quiet": "leave it out: it is an option of the command sbatch",
    "signal": "launch.signal_lead",
    "test-only": "rankzero submit --dry-run",
    "time": "launch.time (--time)",
    "wait": "leave it out: rankzero logs RUN --follow waits for the job",
}
LETTERS = {"a": "array", "c": "cpus-per-task", "D": "chdir", "e": "error", "G": "gpus", "i": "input", "J": "job-name",
           "N": "nodes", "n": "ntasks", "o": "output", "Q": "quiet", "t": "time", "W": "wait"}  # fmt: skip


def conflicts(extra: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Options of `launch.extra` that break the script, each with what to use instead; abbreviations included."""
    for line in extra:
        try:
            parts = shlex.split(line, comments=True)
        except ValueError:
            continue  # lint reports it
        for part in parts:
            name = part[2:].partition("=")[0] if part.startswith("--") else LETTERS.get(part[1:2], "")
            if not part.startswith("-") or not name:
                continue
            full = [name] if name in KNOWN else [known for known in KNOWN if known.startswith(name)]
            if len(full) == 1 and full[0] in OWN:
                yield part, OWN[full[0]]


def syntax_error(script: str) -> str | None:
    """The first complaint of `bash -n`; None for a script that bash can read."""
    try:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[0]


def _directive(line: str) -> list[str]:
    try:
        parts = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError as error:
        return [f"{line.strip()!r}: {str(error).lower()}"]
    found = []
    if not parts:
        return [f"{line.strip()!r} holds no option"]
    if not parts[0].startswith("-"):
        found.append(f"{parts[0]!r} is no option: sbatch takes what follows for the script and its arguments")
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        name, equals, value = part.partition("=")
        if "$" in part and not _is_path(name):
            found.append(f"{part!r}: sbatch does not expand `$`; %j, %x, %a and %u work in file names")
        if name.startswith("--"):
            found += _option(name[2:], value if equals else None, following)
        elif part.startswith("-") and part[1:2] not in SHORT:
            found.append(f"{part!r}: sbatch has no such option")
    return found


def _is_path(option: str) -> bool:
    return option in ("--output", "--error", "--input", "--chdir")


def _option(name: str, value: str | None, following: str) -> list[str]:
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        return [f"--{name}: sbatch has no such option{f'; did you mean --{near[0]}?' if near else ''}"]
    if KNOWN[name] and value in (None, "") and (value == "" or not following or following.startswith("-")):
        return [f"--{name} needs a value"]
    return []

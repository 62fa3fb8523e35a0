"""What `sbatch --test-only` does not see in a batch script."""

from __future__ import annotations

import difflib
import re
import shlex

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

"""Run a rendered batch script in bash without a cluster: `srun` and `scontrol` are scripts that follow a plan.

Real daemons run it in test_slurm_cluster.py. Here every decision of the script is tested within milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.slurm.job import Job
from launch.slurm.render import render

ROOT = Path(__file__).parent.parent

# Each start: what it was called with, and then the next line of `plan`: an exit code, and what status.json is to say.
SRUN = """#!/bin/bash
number=1; while [ -e "$WORLD/call-$number" ]; do number=$((number + 1)); done
printf '%s\\0' "$@" > "$WORLD/call-$number"
env > "$WORLD/environment"
trap 'echo USR1 >> "$WORLD/signals"; told=1' USR1
IFS=$'\\t' read -r code wait status < <(sed -n "${number}p" "$WORLD/plan")
touch "$WORLD/started"
for ((i = 0; i < wait * 50; i++)); do [ -z "$told" ] || break; sleep 0.02; done
[ -z "$status" ] || printf '%s' "$status" > "$WORLD/status.new"
[ -z "$status" ] || python3 -c 'import json, os, sys
said = {"launch": os.environ["RANKZERO_LAUNCH"], **json.load(open(sys.argv[1]))}
print(json.dumps(said, indent=2))' \
  "$WORLD/status.new" > "$RUN_HERE/status.json"
exit "$code"
"""
SCONTROL = """#!/bin/bash
case $1 in
  requeue)  # a line of `refusals` for each call that fails
    reply=$(head -n 1 "$WORLD/refusals" 2>/dev/null)
    [ -z "$reply" ] || { sed -i 1d "$WORLD/refusals"; echo "$reply" >&2; exit 1; }
    echo "$2" >> "$WORLD/requeued" ;;
  update) echo "$*" >> "$WORLD/updated" ;;
  -o) case $3 in job) cat "$WORLD/job" 2>/dev/null; exit ;; esac
    echo "NodeName=node1 NodeAddr=10.1.2.3 NodeHostName=node1" ;;
  show) echo node1.invalid ;;
  *) echo "NodeName=node1 NodeAddr=10.1.2.3 NodeHostName=node1" ;;
esac
"""


SCANCEL = """#!/bin/bash
echo "$*" >> "$WORLD/cancelled"
"""
SINFO = """#!/bin/bash
printf 'node1\nnode2\n'
"""


@dataclass(frozen=True)
class Result:
    """The end of a script. `words` are the arguments of srun at each start."""

    code: int
    log: str
    words: list[list[str]]
    requeued: bool
    signals: int
    environment: dict[str, str]


class Sandbox:
    """The folder in which one script runs."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        (folder / "bin").mkdir(parents=True)
        run.mkdir(parents=True, exist_ok=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sinfo", SINFO), ("scancel", SCANCEL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def go(
        self,
        script: str,
        *starts: tuple[Any, ...],
        restarts: int | None = None,
        send: int | None = None,
        job: int = 7,
        array: bool = False,
        previous: int | None = None,
    ) -> Result:
        """Run it. A start is (exit code of srun, state or fields, step, exit code in status.json, seconds).

        `send` is a signal to the script once srun has been started. `previous` is the job that it follows in a chain.
        """
        for path in (*self.folder.glob("call-*"), *(self.folder / name for name in ("started", "requeued", "signals"))):
            path.unlink(missing_ok=True)
        self.plan(starts)
        env = {
            **os.environ, "WORLD": str(self.folder), "RUN_HERE": str(self.run), "SLURM_JOB_ID": str(job),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1",
            "SLURM_CPUS_ON_NODE": "6", "RANKZERO_PAUSE": "0", "SLURM_JOB_PARTITION": "p",
        }  # fmt: skip
        if array:
            env |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "4"}
        if restarts is not None:
            env["SLURM_RESTART_COUNT"] = str(restarts)
        path = self.folder / "script"
        path.write_text(script)
        words = ["bash", str(path), *([] if previous is None else [str(previous)])]
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if send is not None:
            deadline = time.monotonic() + 30
            while not (self.folder / "started").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.Signals(send))
        log = process.communicate(timeout=60)[0]
        return Result(process.returncode, log, *self._left())

    def plan(self, starts: tuple[tuple[Any, ...], ...]) -> None:
        lines = []
        for number, (code, *rest) in enumerate(starts):
            state, step, told, wait = (*rest, *(None, None, None, 0)[len(rest) :])
            status = {
                "state": state,
                "step": step,
                "exit_code": told,
                "error": 'why, "so"',
                "updated": time.time() + number,
                **(state if isinstance(state, dict) else {}),
            }
            lines.append(f"{code}\t{wait}\t{json.dumps(status) if state else ''}\n")
        (self.folder / "plan").write_text("".join(lines))

    def _left(self) -> tuple[list[list[str]], bool, int, dict[str, str]]:
        def read(path: Path) -> str:
            return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""

        calls = sorted(self.folder.glob("call-*"), key=lambda path: int(path.name[5:]))
        words = [read(path).removesuffix("\0").split("\0") for path in calls]
        lines = read(self.folder / "environment").splitlines()
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        requeued, told = read(self.folder / "requeued"), read(self.folder / "signals")
        return words, bool(requeued), told.count("USR1"), environment


def script(job: Job, **more: Any) -> str:
    return render("train.sbatch", {**job.values(), **more})


def shellchecked(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["shellcheck", "--shell=bash", path], capture_output=True, text=True)


def rankzero(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in another directory."""
    return subprocess.run(
        [sys.executable, "-c", "from launch.cli import main; main()", *map(str, words)],
        cwd=cwd, env=env, capture_output=True, text=True,
    )  # fmt: skip

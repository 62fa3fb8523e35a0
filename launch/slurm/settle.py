"""The last word on a run when nobody else can say it: `python -m launch.slurm.settle RUN CODE WHY`."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.errors import Preempted, RankzeroError
from trainer.rundir import RunDir, read_json, write_json


def settle(run: Path, code: int, why: str) -> None:
    """Writes state, exit code and reason into status.json; what rank zero last said stays part of the reason."""
    folder = RunDir(run)
    if not folder.status.exists():
        return
    with folder.locked():
        status = read_json(folder.status)
        if not isinstance(status, dict):
            return
        state = "preempted" if code == Preempted.exit_code else "failed"
        told = status.get("error")
        word = {"state": state, "exit_code": code, "error": f"{why}; {told}" if told else why}
        write_json(folder.status, {**status, **word})


if __name__ == "__main__":
    try:
        settle(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except RankzeroError as error:  # such as another job that uses the run directory now
        sys.exit(f"rankzero: {error}")

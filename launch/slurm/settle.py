"""Write the final status of a run whose ranks have died: `python -m launch.slurm.settle RUN CODE REASON`."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.errors import Preempted, RankzeroError
from trainer.files import read_json, write_json
from trainer.rundir import RunDir


def write_final_status(run: Path, code: int, reason: str) -> None:
    """Write state, exit code and reason to status.json. The last error of rank zero stays part of the reason."""
    folder = RunDir(run)
    if not folder.status.exists():
        return
    with folder.locked():
        status = read_json(folder.status) or {}
        state = "preempted" if code == Preempted.exit_code else "failed"
        earlier = status.get("error")
        result = {"state": state, "exit_code": code, "error": f"{reason}; {earlier}" if earlier else reason}
        write_json(folder.status, {**status, **result})


if __name__ == "__main__":
    try:
        write_final_status(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except RankzeroError as error:  # for example, another job uses the run directory now
        sys.exit(f"rankzero: {error}")

"""Write the final status of a run whose ranks have died: `python -m launch.slurm.settle RUN CODE REASON`."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.supervise.final_status import write_final_status
from trainer.errors import RankzeroError

if __name__ == "__main__":
    try:
        write_final_status(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except RankzeroError as error:  # for example, another job uses the run directory now
        sys.exit(f"rankzero: {error}")

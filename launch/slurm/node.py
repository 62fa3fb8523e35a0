"""The launcher of one node of a job, as `srun` starts it: `launch.shim` that knows which node of the job it is on.

It is the direct process of its task: where SLURM tracks processes by cgroup, a signal comes to that one only.
"""

from __future__ import annotations

import os
import sys

from launch import shim

if __name__ == "__main__":
    sys.argv[1:1] = ["--machine_rank", os.environ["SLURM_NODEID"]]
    sys.exit(shim.main())

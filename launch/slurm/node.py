"""Run the launcher of one node of a job, as `srun` starts it.

It is the direct process of its task. If SLURM tracks processes by cgroup, only that one receives a signal.
"""

from __future__ import annotations

import os
import sys

from launch.supervise import launcher

if __name__ == "__main__":
    sys.argv[1:1] = ["--machine_rank", os.environ["SLURM_NODEID"]]
    sys.exit(launcher.main())

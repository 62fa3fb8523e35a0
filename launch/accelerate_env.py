"""Find the environment that `accelerate launch` gives the ranks, without starting any."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from unittest.mock import patch

from launch.configs import LaunchPlan
from launch.local import environment
from trainer.errors import RankError
from trainer.rank_env import RANK_VARIABLES


def launcher_environment(plan: LaunchPlan, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the ranks of a config on one machine. Accelerate's own code makes it.

    Args:
        plan: the config, with its number of ranks.
        env: the environment of the launcher. None: that of `rankzero train`.

    Raises:
        RankError: the config starts no ranks.
    """
    env = environment(plan) if env is None else env
    env = {key: value for key, value in env.items() if key not in RANK_VARIABLES}
    if plan.spec.one_process:
        return env
    import torch.distributed.run
    from accelerate.commands.launch import launch_command, launch_command_parser

    ranks: dict[str, str] = {}
    words = ["--config_file", str(plan.path), "--num_processes", str(plan.ranks), "--num_machines", "1"]
    words += ["--main_process_port", "0", "-m", "launch.rank"]
    with (
        patch.dict(os.environ, env, clear=True),
        patch.object(torch.distributed.run, "run", lambda args: ranks.update(os.environ)),
        contextlib.redirect_stdout(sys.stderr),  # DeepSpeed prints when it is imported
    ):
        launch_command(launch_command_parser().parse_args(words))
    if not ranks:
        raise RankError(f"config {plan.config}: accelerate launch would start no ranks; see docs/how-to/launch.md")
    return ranks | {name: env[name] for name in ("OMP_NUM_THREADS",) if name in env}  # the launcher sets it to 1

"""The environment that `accelerate launch` gives the ranks, found out without starting any."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from unittest.mock import patch

from launch.configs import LaunchPlan
from launch.local import environment
from launch.ranks import LAUNCHER
from trainer.errors import RankError


def launcher_environment(plan: LaunchPlan, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the ranks of a config would find on one machine: accelerate's own code makes it, and nothing is started.

    Args:
        plan: the config, and its ranks.
        env: what the launcher itself would find; by default what `rankzero train` gives it.

    Raises:
        RankError: the config starts no ranks.
    """
    env = {key: value for key, value in (environment(plan) if env is None else env).items() if key not in LAUNCHER}
    if plan.spec.one_process:
        return env
    import torch.distributed.run
    from accelerate.commands.launch import launch_command, launch_command_parser

    found: dict[str, str] = {}
    words = ["--config_file", str(plan.path), "--num_processes", str(plan.ranks), "--num_machines", "1"]
    words += ["--main_process_port", "0", "-m", "launch.rank"]
    with (
        patch.dict(os.environ, env, clear=True),
        patch.object(torch.distributed.run, "run", lambda args: found.update(os.environ)),
        contextlib.redirect_stdout(sys.stderr),  # DeepSpeed has things to say when it is imported
    ):
        launch_command(launch_command_parser().parse_args(words))
    if not found:
        raise RankError(f"config {plan.config}: accelerate launch would start no ranks; see docs/how-to/launch.md")
    return found | {name: env[name] for name in ("OMP_NUM_THREADS",) if name in env}  # of which the launcher makes 1

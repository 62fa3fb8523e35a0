"""The ranks' environment where srun starts them and no launcher is there to set it."""

from __future__ import annotations

import contextlib
import io
import os

from launch.configs import LaunchPlan


def of_launcher(plan: LaunchPlan) -> dict[str, str]:
    """What `accelerate launch` would put there for this config. Private functions of accelerate 1.15 do it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(plan.path), "--num_processes", str(max(2, plan.ranks or 0)), "--num_machines", "1"]
    args = launch_command_parser().parse_args([*words, "--main_process_port", "0", "-m", "launch.rank"])
    ours, before = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"), dict(os.environ)
    for key in [key for key in before if key.startswith(ours)]:
        del os.environ[key]  # the submitter's own would be taken over
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            args, config, _ = _validate_launch_command(args)
        args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        env = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    finally:
        os.environ.update(before)
    return {key: value for key, value in env.items() if key.startswith(ours)}

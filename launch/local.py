"""Start a run on this machine: choose a config, start `accelerate launch`, forward signals, return the exit code.

    terminal --Ctrl-C, TERM, USR1--> rankzero train --once--> launch.supervise.launcher (accelerate) --once--> ranks

A config of one process needs no launcher: it runs in this process, or with `--restarts` in one that this one watches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.configs import LaunchPlan, Machines, choose, describe, gpus_of_new_process
from launch.supervise import processes
from launch.supervise.final_status import RUN
from launch.supervise.processes import Ended
from launch.supervise.restart_policy import RestartPolicy, smaller_numbers
from launch.supervise.restarts import Silence, restart_needed, run_with_restarts
from trainer.cpu_info import cores
from trainer.errors import UsageError
from trainer.rank_env import UNSET, check_environment, clean_environment, requested_engine

_ROOT = Path(__file__).parent.parent  # the folder of `launch` and `trainer`, installed or not
MISLEADING = tuple(f"ACCELERATE_USE_{name}" for name in ("CPU", "DEEPSPEED", "FSDP", "PARALLELISM_CONFIG"))


SILENT_SECONDS = 60.0  # beyond launch.hang_seconds, within which the ranks find and name a hanging one themselves


@dataclass(frozen=True)
class RestartOptions:
    """`--restarts` and `--min-ranks`, and what the recipe says about ranks.

    Attributes:
        lanes: `data.lanes`.
        fuse: `loop.fuse_lanes`, or 1 if it is measured.
        hang_seconds: `launch.hang_seconds`; 0 = never.
    """

    restarts: int = 0
    min_ranks: int | None = None
    lanes: int = 1
    fuse: int = 1
    hang_seconds: float = 0.0


def start(
    config: str | None,
    nproc: int | None,
    argv: Sequence[str],
    run_dir: Path,
    in_process: Callable[[], int],
    options: RestartOptions = RestartOptions(),
    machines: Machines | None = None,
) -> int:
    """Run `python -m trainer ARGV` on the ranks of a config. Return the exit code.

    Args:
        config: shipped name or path of an Accelerate config. None: `ddp` if there are two or more GPUs, otherwise
            `debug`.
        nproc: ranks of all machines together. None: as in the config, or one for each GPU.
        argv: arguments for `python -m trainer`, "train" first.
        run_dir: where rank zero writes status.json.
        in_process: called instead of a launcher for one process, and if a launcher has started this process already
            (WORLD_SIZE is set). Its result is returned.
        options: restarts after failures; with them one process runs below this one.
        machines: this machine is one of several, on each of which the command is started.

    Raises:
        UsageError: the config is wrong, does not fit this machine, or contradicts a WORLD_SIZE in the environment.
    """
    clean_environment()
    if "WORLD_SIZE" in os.environ:
        _join(config, nproc, options)
        return in_process()
    plan = choose(config, nproc, machines)
    if plan.note:
        print(f"rankzero: {plan.note}", file=sys.stderr)
    policy = restart_policy(plan, options)
    if plan.spec.one_process and not policy.limit:
        for name in MISLEADING:
            os.environ.pop(name, None)
        os.environ.update(environment(plan))
        code = in_process()
        if restart_needed(run_dir, code):  # in a new program: the memory of this one is fragmented
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line
        return code
    ranks = plan.ranks or 1

    def start_ranks(argv: Sequence[str], number: int) -> Ended:
        fitted = plan if number == ranks else plan.with_ranks(number)
        env = with_module_path(environment(fitted)) | {RUN: str(run_dir.absolute())}
        return processes.run(command(fitted, argv), env, Silence(run_dir, policy.silent_seconds))

    return run_with_restarts(start_ranks, argv, run_dir, ranks, policy)


def restart_policy(plan: LaunchPlan, options: RestartOptions) -> RestartPolicy:
    """Return the policy of a plan.

    Raises:
        UsageError: `--min-ranks` without `--restarts`, on several machines, or a number that the run cannot have.
    """
    if options.min_ranks is None:
        silent = options.hang_seconds and options.hang_seconds + SILENT_SECONDS
        return RestartPolicy(options.restarts, silent_seconds=silent if options.restarts else 0.0)
    ranks, least = plan.ranks or 1, options.min_ranks
    if not options.restarts:
        raise UsageError(f"--min-ranks {least} is for restarts: add --restarts N")
    if plan.machines > 1:
        raise UsageError(
            f"--min-ranks {least}: config {plan.config} is for {plan.machines} machines. Use torchrun --nnodes MIN:MAX "
            "--max-restarts N, or rankzero submit"
        )
    smaller = smaller_numbers(ranks, least, options.lanes, options.fuse, lambda number: can_have(plan, number))
    if not smaller:
        raise UsageError(
            f"--min-ranks {least}: no smaller number than {ranks} ranks can train this recipe with config "
            f"{plan.config} (data.lanes={options.lanes}); omit it, or give one from 1 to {max(1, ranks - 1)}"
        )
    without = restart_policy(plan, replace(options, min_ranks=None))
    return replace(without, smaller=smaller, devices=(lambda: None) if plan.cpu else gpus_of_new_process)


def can_have(plan: LaunchPlan, ranks: int) -> bool:
    """Return whether a plan can have another number of ranks."""
    try:
        plan.with_ranks(ranks)
    except UsageError:
        return False
    return True


def _join(config: str | None, nproc: int | None, options: RestartOptions) -> None:
    """Check --config and --nproc against the launcher that started this process, and apply the config's settings.

    Raises:
        UsageError: they disagree with the variables of that launcher; names both.
    """
    check_environment()
    if options.restarts:
        raise UsageError(
            f"--restarts {options.restarts}: another launcher has started this rank (WORLD_SIZE is set) and would have "
            f"to start it again: use its own option, such as torchrun --max-restarts. To start the ranks here: {UNSET}"
        )
    world = int(os.environ["WORLD_SIZE"])
    plan, running = describe(config) if config else None, requested_engine(world)
    if plan and world == 1:
        plan = replace(plan, engine=plan.spec.on_one_rank.name)
    ranks = nproc or (plan.ranks if plan else None)
    if ranks not in (None, world) or (plan and plan.spec.name != running):
        given = {"--config": config, "--nproc": nproc}
        asked = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        wanted = f"engine {plan.engine}" if plan and ranks in (None, world) else f"{ranks} ranks"
        raise UsageError(
            f"{asked} asks for {wanted}, but the environment says WORLD_SIZE={world} with engine {running} (of another "
            f"launcher, a platform, or left over). To start the ranks of {asked} here: {UNSET}. To run as one rank of "
            f"{world}: omit {asked}, or use `accelerate launch --config_file FILE -m trainer train`"
        )
    if plan:
        os.environ.update(settings(plan))


def command(plan: LaunchPlan, argv: Sequence[str], module: str = "launch.rank") -> list[str]:
    """Return the command line of the launcher for `python -m trainer ARGV`, or for another module.

    A plan of one process starts that process itself.
    """
    if plan.spec.one_process:
        return [sys.executable, "-m", module, *argv]
    return [
        *(sys.executable, "-m", "launch.supervise.launcher"),
        *("--config_file", str(plan.path), "--num_processes", str(plan.ranks)),
        *(word for key, value in plan.replaced.items() if key != "num_processes" for word in (f"--{key}", str(value))),
        *("-m", module, *argv),
    ]


def environment(plan: LaunchPlan) -> dict[str, str]:
    """Return this process's environment with the settings of the ranks, without what would change the engine."""
    env = {key: value for key, value in os.environ.items() if key not in MISLEADING} | settings(plan)
    env["RANKZERO_RANKS"] = str(plan.ranks)
    if plan.note:
        env["RANKZERO_NOTED"] = "1"
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // plan.ranks_here)))
    return env


def settings(plan: LaunchPlan) -> dict[str, str]:
    """Return the variables of a plan that every rank needs, except for the numbers of ranks and threads."""
    env = {
        "RANKZERO_CONFIG": plan.config,  # for the manifest
        "RANKZERO_ENGINE": plan.engine,
        "ACCELERATE_MIXED_PRECISION": plan.precision,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if plan.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if plan.cpu and plan.spec.obeys_use_cpu:
        env["ACCELERATE_USE_CPU"] = "true"
    if plan.copies > 1:
        env["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
        env["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] = str(plan.copies)
        env["PARALLELISM_CONFIG_DP_SHARD_SIZE"] = str(plan.parts)
    return env


def with_module_path(env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which another Python imports the modules of this one."""
    return env | module_path(env.get("PYTHONPATH"))


def module_path(path: str | None = None) -> dict[str, str]:
    """Return variables with which another Python imports these modules, never a `trainer` in its current folder."""
    if _ROOT.name in ("site-packages", "dist-packages"):
        return {"PYTHONSAFEPATH": "1"}
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), path)))}

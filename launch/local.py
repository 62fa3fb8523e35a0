"""Starting a run on this machine: choose a config, start `accelerate launch`, pass signals on, tell the exit code.

    terminal --Ctrl-C, TERM, USR1--> rankzero train --once each--> launch.shim (accelerate launch) --once each--> ranks

The launcher gets a session of its own, so that Ctrl-C, which the terminal sends to a whole process group, reaches the
ranks once and by this way only. A configuration of one process needs none of it and runs right here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from launch.configs import LaunchPlan, choose, describe, find, gpus, shipped
from launch.shim import ERROR_CODES, PARENT, PASSED_ON, PREEMPTED
from trainer.cpu_info import cores
from trainer.errors import UsageError
from trainer.rank_env import UNSET, check_environment, clean_environment, requested_engine

__all__ = ["LaunchPlan", "choose", "describe", "exit_code_of", "find", "gpus", "shipped", "start", "status_of"]

_ROOT = Path(__file__).parent.parent  # where `launch` and `trainer` are, installed or not
MISLEADING = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
_AGAIN_SECONDS = 1.0  # a Ctrl-C this long after the first is a second one, not a duplicate


def start(
    config: str | None, nproc: int | None, argv: Sequence[str], run_dir: Path, in_process: Callable[[], int]
) -> int:
    """Runs `python -m trainer ARGV` as the config says and returns the exit code.

    Args:
        config: shipped name or path of an Accelerate config; None: `ddp` where there are two or more GPUs, else
            `debug`.
        nproc: ranks over all machines; None: what the config or the number of GPUs says.
        argv: arguments for `python -m trainer`, "train" first.
        run_dir: where rank zero writes status.json.
        in_process: called instead of a launcher when one process is all that is asked for, or when a launcher has
            started this process already (WORLD_SIZE is set); its result is returned.

    Raises:
        UsageError: the config is wrong, does not fit this machine, or contradicts a WORLD_SIZE in the environment.
    """
    clean_environment()
    if "WORLD_SIZE" in os.environ:
        _join(config, nproc)
        return in_process()
    plan = choose(config, nproc)
    if plan.note:
        print(f"rankzero: {plan.note}", file=sys.stderr)
    if plan.spec.one_process:
        for name in MISLEADING:
            os.environ.pop(name, None)
        os.environ.update(environment(plan))
        code = in_process()
        if short_of_memory(run_dir, code):  # a new process: this one's memory is in pieces
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line
        return code
    while True:
        before = status_of(run_dir)
        code = exit_code_of(run_dir, before, _launch(command(plan, argv), environment(plan)))
        if not short_of_memory(run_dir, code):
            return code
        argv = [word for word in argv if word != "--fresh"]  # it has been begun afresh


def _join(config: str | None, nproc: int | None) -> None:
    """Check --config and --nproc against the launcher that started this process, and apply the config's settings.

    Raises:
        UsageError: they disagree with the variables of that launcher; names both.
    """
    check_environment()
    world = int(os.environ["WORLD_SIZE"])
    plan = describe(config) if config else None
    ranks = nproc or (plan.ranks if plan else None)
    options = {"--config": config, "--nproc": nproc}
    asked = " ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    remedy = f"To start the ranks of {asked} here: {UNSET}. To run as one rank of {world}: leave {asked} out"
    if ranks not in (None, world):
        raise UsageError(
            f"{asked} asks for {ranks} ranks, but the environment says WORLD_SIZE={world} (of another launcher, a "
            f"platform, or left over). {remedy}"
        )
    if plan is None:
        return
    running = requested_engine(world)
    wanted = plan.spec.on_one_rank.name if world == 1 else plan.engine
    if wanted != running:
        raise UsageError(
            f"{asked} asks for engine {plan.engine}, but the launcher that set WORLD_SIZE={world} asks for {running}. "
            f"{remedy}, or use `accelerate launch --config_file {plan.path} -m trainer train`"
        )
    os.environ.update(settings(replace(plan, engine=wanted)))


def command(plan: LaunchPlan, argv: Sequence[str], module: str = "launch.rank") -> list[str]:
    """The command line of the launcher for `python -m trainer ARGV`, or for another module."""
    return [
        *(sys.executable, "-m", "launch.shim"),
        *("--config_file", str(plan.path), "--num_processes", str(plan.ranks)),
        *("-m", module, *argv),
    ]


def environment(plan: LaunchPlan) -> dict[str, str]:
    """This process's environment with what the ranks need, and without what would silently change the engine."""
    env = {key: value for key, value in os.environ.items() if key not in MISLEADING} | settings(plan)
    env["RANKZERO_RANKS"] = str(plan.ranks)
    if plan.note:
        env["RANKZERO_NOTED"] = "1"
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // plan.ranks_here)))
    return env


def settings(plan: LaunchPlan) -> dict[str, str]:
    """What the ranks must find in their environment, besides their number and their threads."""
    env = {
        "RANKZERO_ENGINE": plan.engine,
        "ACCELERATE_MIXED_PRECISION": plan.precision,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if plan.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if plan.cpu and plan.spec.obeys_use_cpu:
        env["ACCELERATE_USE_CPU"] = "true"
    return env


def for_launcher(env: dict[str, str]) -> dict[str, str]:
    """An environment in which the launcher ends with this process, and finds these modules and no others."""
    return env | modules(env.get("PYTHONPATH")) | {PARENT: str(os.getpid())}


def modules(path: str | None = None) -> dict[str, str]:
    """What lets another Python find these modules and no others: never a `trainer` in its current folder."""
    if _ROOT.name in ("site-packages", "dist-packages"):
        return {"PYTHONSAFEPATH": "1"}
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), path)))}


def _launch(command: Sequence[str], env: dict[str, str]) -> int:
    """Runs the launcher to its end, passing signals on; its exit code, or 75 if such a signal ended the launcher."""
    env = for_launcher(env)
    courier = _Courier()
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)  # ignored below nohup
    old = {number: signal.signal(number, courier.receive) for number in (*PASSED_ON, *hangup)}
    try:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        courier.deliver_to(process)
        code = process.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return PREEMPTED if code < 0 and courier.sent else code


class _Courier:
    """Passes each kind of signal on to the launcher once; a second Ctrl-C kills the launcher and its ranks."""

    def __init__(self) -> None:
        self.sent: dict[int, float] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def deliver_to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self.sent:  # came while the launcher was being started
            process.send_signal(number)

    def receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number not in self.sent:
            self.sent[number] = now
            if self._process:
                self._process.send_signal(number)
            if number == signal.SIGINT:
                print("\nrankzero: stopping: the ranks save and leave; Ctrl-C again kills them", file=sys.stderr)
        elif number == signal.SIGINT and now - self.sent[number] > _AGAIN_SECONDS and self._process:
            _kill(self._process.pid)


def _kill(pid: int) -> None:
    try:
        launcher = psutil.Process(pid)
        family = [*launcher.children(recursive=True), launcher]
    except psutil.Error:
        return
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue


def short_of_memory(run_dir: Path, code: int) -> bool:
    """Whether a rank ran out of memory and left word of how to go on: in smaller parts, from the newest checkpoint."""
    try:
        note = json.loads((run_dir / "failed-rank.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return code in (1, PREEMPTED) and "splits" in note


def status_of(run_dir: Path) -> dict[str, Any] | None:
    """What status.json of a run directory says; None when there is none that can be read."""
    try:
        status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def exit_code_of(run_dir: Path, before: dict[str, Any] | None, launcher_code: int) -> int:
    """The exit code of a launched run: the launcher in between may lose it, so rank zero's last word decides.

    `before` is `status_of(run_dir)` from before the start: what has not changed since is not this attempt's, which may
    have been refused (wrong recipe, directory in use) without leaving a word there: then the ranks' own code counts, as
    far as `launch.shim` could keep it. Whatever ended without any of these: 1, a rank died.
    """
    if launcher_code in ERROR_CODES:
        return launcher_code
    status = status_of(run_dir)
    if status and status != before and status.get("state") in ("finished", "preempted", "failed"):
        return int(status["exit_code"])
    return launcher_code if launcher_code in (0, PREEMPTED) else 1

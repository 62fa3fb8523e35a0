"""Describe a job: its recipe, nodes, ranks, GPUs and environment, and the variables of its templates."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch.accelerate_env import launcher_environment
from launch.configs import LaunchPlan, describe
from launch.local import MISLEADING, can_have, environment, module_path, settings
from launch.slurm.site import SiteFiles, read_site
from launch.supervise.restart_policy import smaller_numbers
from launch.supervise.signals import PARENT
from trainer.errors import UsageError
from trainer.rank_env import RANK_VARIABLES
from trainer.recipe import Recipe
from trainer.recipe.loop_sections import LaunchConfig
from trainer.recipe_loading import load_recipe
from trainer.redaction import redacted
from trainer.run_options import Options, run_path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAIL_ON = "END,FAIL,REQUEUE,TIME_LIMIT"
UNSET = (*MISLEADING, *RANK_VARIABLES, PARENT, "RANKZERO_RANKS", "OMP_NUM_THREADS")  # of the submitter
ACCELERATE_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")  # of what its launcher sets for the ranks


@dataclass(frozen=True)
class Job:
    """A training job.

    Attributes:
        command: RECIPE KEY=VALUE … as typed.
        words: the same for the job: the frozen recipe.
        plan: with the ranks of all nodes. Its path is the config before it is frozen.
        run: the run directory, absolute.
        recipe: with the defaults of the site in `launch`.
        folder: absolute folder where relative paths begin.
        frozen_recipe: text of the recipe that the job trains, without them.
        chain: number of follow-up jobs. With them no job is requeued.
        resume_from: a mirror whose newest checkpoint a run directory without checkpoints begins with.
    """

    recipe: Recipe
    command: tuple[str, ...]
    words: tuple[str, ...]
    plan: LaunchPlan
    run: Path
    folder: Path
    name: str
    frozen_recipe: str
    site: SiteFiles
    chain: int = 0
    resume_from: str | None = None

    @property
    def ranks_per_node(self) -> int:
        return self.plan.ranks_here

    @property
    def mode(self) -> Literal["single", "node", "task"]:
        if self.plan.spec.one_process:
            return "single"
        return "task" if self.recipe.launch.launcher == "task" else "node"

    @property
    def node_counts(self) -> list[int]:
        """The numbers of nodes that the job may shrink to (`launch.min_nodes`), descending.

        Raises:
            UsageError: there is none.
        """
        least, nodes = self.recipe.launch.min_nodes, self.recipe.launch.nodes
        if least is None:
            return []
        lanes, fuse = self.recipe.data.lanes, self.recipe.loop.fused_before_measuring
        ranks = smaller_numbers(self.plan.ranks or 1, 1, lanes, fuse, lambda ranks: can_have(self.plan, ranks))
        several = {number for number in ranks if self.plan.with_ranks(number).spec is self.plan.spec}
        counts = [n for n in range(nodes - 1, least - 1, -1) if n * self.ranks_per_node in several]
        if not counts:
            raise UsageError(
                f"launch.min_nodes={least}: no smaller number than {nodes} nodes with {self.ranks_per_node} ranks each "
                f"can train this recipe with config {self.plan.config} (data.lanes={lanes}): omit it"
            )
        return counts

    @property
    def frozen(self) -> dict[Path, str]:
        """Texts by path of the recipe and the Accelerate config that this job and its requeues read.

        A path holds the hash of its text, so a later submission does not change what an earlier job reads.
        """
        texts = {"recipe": self.frozen_recipe, "accelerate": self.plan.path.read_text(encoding="utf-8")}
        return {frozen_path(self.run, name, text): text for name, text in texts.items()}

    def values(self) -> dict[str, Any]:
        """Return the variables of the templates (described in docs/reference/slurm.md)."""
        launch, tasks = self.recipe.launch, self.ranks_per_node if self.mode == "task" else 1
        return {
            "title": f"rankzero submit {shlex.join(self.command)} --config {self.plan.config} --nodes {launch.nodes}",
            "kind": "train",
            "job_name": self.name,
            "log": (f"{self.run}/slurm/", "train-%j.out"),
            "nodes": launch.nodes,
            "tasks_per_node": tasks,
            "gpus_per_node": launch.gpus_per_node,
            "gpu_request": self.site.site.gpu_request,
            "requeue": True,
            "node_counts": self.node_counts,
            "cpus_per_task": launch.cpus_per_task,
            "ranks_per_node": self.ranks_per_node,
            "ranks_per_task": self.ranks_per_node // tasks,
            "time": launch.time,
            "signal_lead": launch.signal_lead,
            "requeue_limit": launch.requeue_limit,
            "asked": list(_asked(self.recipe).items()),
            "extra": launch.extra,
            "setup": launch.setup,
            "run": self.run,
            "folder": self.folder,
            "words": self.words,
            "options": ("--resume-from", self.resume_from) if self.resume_from is not None else (),
            "python": [sys.executable],
            "module": "launch.rank",
            "mode": self.mode,
            "config": list(self.frozen)[1],
            "labels": launch.nodes * tasks > 1,
            "deepspeed": bool(self.plan.spec.package),
            "unset": UNSET,
            "environment": sorted(self._environment().items()),
        }

    def _environment(self) -> dict[str, str]:
        own = settings(self.plan) | module_path()
        return own | (accelerate_environment(self.plan) if self.mode == "task" else {})

    def finalize_values(self) -> dict[str, Any]:
        """Return the variables of the dependent job on one node: the same command, without a launcher."""
        plan = replace(self.plan, engine="single", ranks=1, machines=1, copies=1)
        one = {"nodes": 1, "min_nodes": None, "gpus_per_node": _one_gpu(self.recipe.launch)}
        launch = self.recipe.launch.model_copy(update=one)
        values = replace(self, plan=plan, recipe=self.recipe.model_copy(update={"launch": launch})).values()
        return values | {
            "kind": "finalize",
            "job_name": _name(f"{self.name[:55]}-finalize"),
            "log": (f"{self.run}/slurm/", "finalize-%j.out"),
            "words": ["train", *self.words, "--run", self.run],
            "options": (),
        }


def make_job(
    recipe: str,
    overrides: Sequence[str],
    resources: Mapping[str, Any],
    config: str | None = None,
    run: Path | None = None,
    name: str | None = None,
    resume_from: str | None = None,
) -> Job:
    """Make a job. `resources` are keys of `launch` that override the recipe's, None if not given.

    Raises:
        UsageError: the recipe, the config or a resource is wrong, or they do not go together, or `resume_from` has
            credentials.
    """
    if resume_from is not None and redacted(resume_from) != resume_from:
        raise UsageError(
            f"--resume-from {redacted(resume_from)}: its credentials would be written to the job script. Leave them "
            "out of the URL, and set them in the environment of the job, as for loop.mirror"
        )
    given = [f"launch.{key}={json.dumps(value)}" for key, value in resources.items() if value not in (None, [])]
    resolved, site = load_recipe(recipe, [*overrides, *given]), read_site()
    frozen = resolved.to_yaml()
    explicit = {word.partition("=")[0].removeprefix("launch.") for word in [*overrides, *given]}
    folder = run_path(resolved, Options(run)).absolute()
    resolved = resolved.model_copy(update={"launch": site.site.fill(resolved.launch, explicit)})
    return Job(
        recipe=resolved,
        command=(recipe, *overrides),
        words=(str(frozen_path(folder, "recipe", frozen)),),
        plan=plan_for_nodes(config, resolved),
        run=folder,
        folder=Path.cwd(),
        name=_name(name or f"rankzero-{resolved.name}"[:64]),
        frozen_recipe=frozen,
        site=site,
        resume_from=resume_from,
    )


def prepare_job(
    recipe: str,
    overrides: Sequence[str],
    resources: Mapping[str, Any],
    run: Path | None,
    name: str | None,
    out: Path | None,
) -> tuple[Job, Path]:
    """Make the job that prepares a corpus, whose scripts and logs are in `run`. Return it and the corpus's folder."""
    resolved = load_recipe(recipe, overrides)
    place = (out or Path("prepared") / resolved.name).absolute()
    home = run or place.with_name(f"{place.name}-jobs")
    one = {**resources, "nodes": 1, "ranks_per_node": 1, "gpus_per_node": 0}
    return make_job(recipe, overrides, one, "debug", home, name or f"prepare-{resolved.name}"[:64]), place


def frozen_path(run: Path, name: str, text: str) -> Path:
    return run / "slurm" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"


def gpu_count(launch: LaunchConfig) -> int:
    """Return the GPUs of each node, by `gpus_per_node` (4 or a100:4) or by `--gres=gpu:…` in `extra`.

    Raises:
        UsageError: `gpus_per_node` is neither a number nor TYPE:NUMBER.
    """
    asked = launch.gpus_per_node
    if asked is not None:
        if not re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+", str(asked)):
            raise UsageError(f"launch.gpus_per_node: {asked!r}; write a number or TYPE:NUMBER, such as 4 or a100:4")
        return int(str(asked).rpartition(":")[2])
    gres = re.findall(r"(?:^|\s)--gres[=\s]\s*(\S+)", " ".join(launch.extra))
    gpus = [part for text in gres for part in text.split(",") if re.match(r"(gres/|gres:)?gpu([:=(]|$)", part)]
    numbers = [re.search(r"[:=](\d+)(\(.*)?$", part) for part in gpus]
    return sum(int(number[1]) if number else 1 for number in numbers)


def _one_gpu(launch: LaunchConfig) -> str | int | None:
    """Return `gpus_per_node` for a job that uses at most one GPU, of the same type."""
    if launch.gpus_per_node is None or not gpu_count(launch):
        return None
    kind, colon, _ = str(launch.gpus_per_node).rpartition(":")
    return f"{kind}:1" if colon else 1


def accelerate_environment(plan: LaunchPlan) -> dict[str, str]:
    """Return what `accelerate launch` would set for the ranks of this config, without the submitter's own settings."""
    env = {key: value for key, value in environment(plan).items() if not key.startswith(ACCELERATE_PREFIXES)}
    with contextlib.redirect_stderr(io.StringIO()):  # advice on options that are set here
        ranks_env = launcher_environment(replace(plan, ranks=max(2, plan.ranks or 0), machines=1), env)
    return {key: value for key, value in ranks_env.items() if key.startswith(ACCELERATE_PREFIXES)}


def plan_for_nodes(config: str | None, recipe: Recipe) -> LaunchPlan:
    """Return the plan of a config with the ranks of all nodes.

    Without a config it is `debug` for one rank, `ddp` on GPUs, and otherwise `cpu_multinode`.

    Raises:
        UsageError: nodes, GPUs and ranks do not fit the config or each other.
    """
    launch = recipe.launch
    gpus = gpu_count(launch)
    several = launch.nodes * (launch.ranks_per_node or max(1, gpus)) > 1
    plan = describe(config or (("ddp" if gpus else "cpu_multinode") if several else "debug"))
    per_node = launch.ranks_per_node
    if plan.spec.one_process:
        if launch.nodes * (per_node or 1) > 1:
            raise UsageError(
                f"config {plan.config} is one process, but the job has {launch.nodes} nodes x {per_node or 1} ranks: "
                "use --config ddp on GPUs, otherwise cpu_multinode"
            )
        return plan
    if not plan.cpu:
        if per_node is None and not gpus:
            raise UsageError(f"config {plan.config} needs GPUs: --gpus-per-node G, or a config for CPUs: cpu_multinode")
        if gpus and (per_node or 0) > gpus:
            raise UsageError(f"launch.ranks_per_node={per_node} is more than {gpus} GPUs per node: at most one each")
    per_node = per_node or (plan.ranks_here if plan.cpu else gpus)
    return replace(plan, machines=launch.nodes).with_ranks(per_node * launch.nodes)


def seconds(time: str) -> int | None:
    """Return the seconds of a time limit: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s. None for UNLIMITED.

    Raises:
        UsageError: it has another form.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    if not re.fullmatch(r"(\d+-\d+(:\d+){0,2})|(\d+(:\d+){0,2})", time):
        raise UsageError(f"launch.time: {time!r}; write minutes, hours:minutes:seconds or days-hours, such as 24:00:00")
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, rest_seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, rest_seconds = (0, *parts, 0)[:3]
    return int(days or 0) * 86_400 + hours * 3_600 + minutes * 60 + rest_seconds


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: use at most 64 letters, digits, `.`, `_`, `-`, with a letter or digit first"
        )
    return name


def _asked(recipe: Recipe) -> dict[str, str]:
    """Return the options of sbatch that not every job sets."""
    launch = recipe.launch
    asked = {
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "mem": launch.memory,
        "constraint": launch.constraint,
        "mail-user": launch.mail,
        "mail-type": MAIL_ON if launch.mail else None,
    }
    return {option: value for option, value in asked.items() if value is not None}

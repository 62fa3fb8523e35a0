"""The sections of a recipe for the course of a training: `loop`, and `launch` for jobs of SLURM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.recipe.patterns import DURATION
from trainer.recipe.section import WrittenText
from trainer.recipe.sections import OwnName, Positive, Section


class EarlyStopping(Section):
    """The validation metric that selects the best checkpoint, and when to stop early."""

    metric: str = Field("loss", description="validation metric that selects the checkpoint")
    patience: Positive | None = Field(
        None, description="evaluations without improvement before the run stops; null = never stop early"
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="smallest change that counts as an improvement")


Duration = Annotated[str, Field(pattern=DURATION)]
SECONDS = {"s": 1, "min": 60, "h": 3600}


def seconds_of(every: int | str) -> int | None:
    """Return the seconds of a time such as "15min". None for a number of steps, and for "epoch"."""
    if isinstance(every, int) or every == "epoch":
        return None
    number = every.rstrip("sminh")
    return int(number) * SECONDS[every[len(number) :]]


EveryLayer = Annotated[dict[Literal["every"], Positive], Field(min_length=1)]


class LoopConfig(Section):
    """When to log, evaluate, save and stop. All counts are optimizer steps."""

    epochs: Positive | None = Field(None, description="passes over the training rows; null: no limit")
    max_steps: Positive | None = Field(
        None, description="optimizer steps; null: no limit. The limit that comes first counts"
    )
    eval_every: Positive | Literal["epoch"] | Duration = Field(
        "epoch", description="steps between evaluations on validation, epoch, or a time such as 15min"
    )
    eval_first: bool = Field(False, description="evaluate before the first step, for the log only")
    save_every: Positive | Literal["epoch"] | Duration = Field(
        500, description="steps between checkpoints, epoch, or a time such as 15min"
    )
    log_every: Positive = Field(50, description="steps between log lines")
    ledger: bool = Field(False, description="write the rows of each step to ledger.jsonl")
    keep: Annotated[int, Field(ge=2)] | Literal["all"] = Field(2, description="newest checkpoints to keep, or all")
    mirror: str | None = Field(
        None,
        description="folder or fsspec URL, such as s3://bucket/runs, to which complete checkpoints are copied in the "
        "background, into a folder named like the run directory; see `rankzero train --resume-from`",
    )
    callbacks: list[OwnName] = Field(
        default_factory=list, description="classes package.module:Class that watch the training (trainer.Callback)"
    )
    early_stopping: EarlyStopping = Field(default_factory=EarlyStopping)
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="on NaN or Inf: end with exit code 5, or skip the step"
    )
    max_nonfinite: Positive = Field(10, description="skipped steps in a row after which the run ends with exit code 5")
    fuse_lanes: Positive | Literal["auto"] = Field(
        1,
        description="lanes of a rank in one forward; changes dropout masks. auto: the most that fit the memory of a "
        "GPU, measured at the first start of a run, and 1 on a CPU",
    )
    compile: bool | Literal["layers"] = Field(
        False, description="torch.compile the model; layers: one graph for the repeated layers, in training only"
    )
    deterministic: bool = Field(
        False,
        description="use deterministic kernels only, so that a run on GPUs repeats bit for bit; slower. An operation "
        "without such a kernel ends the run",
    )
    tf32: bool = Field(False, description="compute fp32 matrix products in TF32 on GPUs that support it")
    activation_checkpointing: bool | Literal["none", "full"] | EveryLayer = Field(
        False,
        description="recompute activations in the backward pass to save memory: none, full (every layer), or "
        "{every: n} for the first of each n layers; false and true mean none and full",
    )
    peak_tflops: Annotated[float, Field(gt=0)] | None = Field(
        None, description="1e12 operations per second of a device, of which mfu is a share; null: of known GPUs"
    )

    @field_validator("activation_checkpointing", mode="after")
    @classmethod
    def _in_one_form(cls, value: Any) -> Any:
        """Return false for none, true for full and for every layer: equal settings are equal in a checkpoint."""
        return {"none": False, "full": True}.get(value, value) if isinstance(value, str) else value

    @property
    def fused_before_measuring(self) -> int:
        """Lanes of a rank in one forward: 1 if `fuse_lanes` is auto, as long as no GPU has measured what fits."""
        return 1 if self.fuse_lanes == "auto" else self.fuse_lanes

    @property
    def checkpointed_layers(self) -> int:
        """1 if activations of every layer are recomputed, n if those of the first of each n layers are, 0 if none."""
        value: Any = self.activation_checkpointing
        return int(value["every"] if isinstance(value, dict) else value)

    @model_validator(mode="after")
    def _ends(self) -> LoopConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs, max_steps or both; without them the run would never end")
        return self


Chain = Literal["auto"] | Annotated[int, Field(ge=0, le=100)]


class LaunchConfig(Section):
    """SLURM resources; null = the site's default."""

    partition: str | None = Field(None, description="SLURM partition")
    account: str | None = Field(None, description="SLURM account")
    qos: str | None = Field(None, description="SLURM quality of service")
    nodes: Positive = Field(1, description="number of nodes")
    gpus_per_node: Annotated[int, Field(ge=0)] | str | None = Field(
        None, description="a number, or with the type of the GPUs as a100:4"
    )
    ranks_per_node: Positive | None = Field(None, description="null = one per GPU, or what a config for CPUs says")
    launcher: Literal["node", "task"] = Field("node", description="one launcher per node, or one SLURM task per rank")
    cpus_per_task: Positive | None = Field(None, description="of a task: a node's launcher with its ranks, or a rank")
    memory: str | None = Field(None, description="of a node, as 64G")
    time: str = Field("24:00:00", description="of one go; a run that takes longer is requeued and goes on")
    constraint: str | None = Field(None, description="features that nodes must have")
    mail: str | None = Field(None, description="address for mails at the end, on failures and requeues")
    setup: list[str] = Field(default_factory=list, description="shell lines before the launch (modules, container)")
    extra: list[str] = Field(default_factory=list, description="further #SBATCH options")
    signal_lead: Positive = Field(120, description="seconds before the time limit at which USR1 is sent")
    requeue_limit: Annotated[int, Field(ge=0)] = Field(
        20, description="requeues and restarts of a job without a new step, at most"
    )
    min_nodes: Positive | None = Field(
        None, description="a job that loses nodes continues with the others, at least so many; null = it starts again"
    )
    chain: Chain = Field(
        "auto",
        description="follow-up jobs that continue a run whose job ends early; auto = if SLURM does not requeue",
    )
    rendezvous_seconds: Annotated[float, Field(gt=0)] = Field(
        600.0, description="ranks wait so long for each other at the start; the run then ends and names who is missing"
    )
    hang_seconds: Annotated[float, Field(ge=0)] = Field(
        600.0, description="a rank without progress for so long is named and ends the run; 0 = wait for it"
    )

    @field_validator(
        "partition", "account", "qos", "memory", "time", "constraint", mode="before", json_schema_input_type=WrittenText
    )
    @classmethod
    def _text(cls, value: object) -> object:
        """YAML reads 90 and 12345 as numbers; sbatch takes both as text."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

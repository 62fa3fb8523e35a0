"""The facts about each engine, in one table that needs no torch: what it shards, what it needs, and its configs.

The classes that train are in trainer/engine/engines. This table answers the questions of `launch/` and of the planner.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
State = Literal["optimizer", "gradients", "parameters"]


FLOAT8 = (8, 9)  # compute capability of the first GPUs that multiply in fp8: Ada, then Hopper and Blackwell


@dataclass(frozen=True)
class EngineSpec:
    """The facts about one engine.

    Attributes:
        name: in manifests, in RANKZERO_ENGINE and on the command line.
        distributed_type: the value of `distributed_type` in its Accelerate configs.
        cpu_config: the shipped config that runs it on a CPU in fp32.
        gpu_config: the shipped config that runs it on GPUs.
        one_process: it has a single rank.
        shards: the states of which each rank holds only a part. Optimizer state includes fp32 weights.
        switch: the variable by which Accelerate's launcher turns the engine on.
        zero_stage: DeepSpeed's stage. None: it is not DeepSpeed.
        package: a package that it needs and that rankzero installs only on request.
    """

    name: EngineName
    distributed_type: str
    cpu_config: str
    gpu_config: str
    one_process: bool = False
    shards: tuple[State, ...] = ()
    switch: str = ""
    zero_stage: int | None = None
    package: str = ""

    @property
    def sharded(self) -> bool:
        """Whether a rank trains a part of the model's state. Otherwise every rank holds all of it in fp32."""
        return bool(self.shards)

    @property
    def never_complete(self) -> bool:
        """Whether no rank has a complete model before a training or in an evaluation (trainer/models/deferred.py)."""
        return "parameters" in self.shards

    @property
    def replicates(self) -> bool:
        """Whether it can train several copies of the model, each sharded over a part of the ranks (HSDP)."""
        return self.never_complete and self.zero_stage is None

    @property
    def on_one_rank(self) -> EngineSpec:
        """The engine that runs instead with a single rank: DDP becomes one process."""
        return self if self.sharded else ENGINES["single"]

    @property
    def obeys_use_cpu(self) -> bool:
        """Whether ACCELERATE_USE_CPU puts it on the CPU. A sharded engine would silently become DDP."""
        return not self.sharded

    @property
    def fp16_on_cpu(self) -> bool:
        """Whether fp16 on a CPU is fp16. torch's autocast would silently compute in fp32."""
        return self.zero_stage is not None

    @property
    def missing_package(self) -> str:
        """The needed package, if it is not installed."""
        return self.package if self.package and importlib.util.find_spec(self.package) is None else ""


def _zero(name: EngineName, stage: int, *shards: State) -> EngineSpec:
    return EngineSpec(
        name, "DEEPSPEED", f"cpu_{name}", name,
        shards=shards, switch="ACCELERATE_USE_DEEPSPEED", zero_stage=stage, package="deepspeed",
    )  # fmt: skip


_SPECS = (  # by the bytes that they send, fewest first
    EngineSpec("single", "NO", "debug", "debug", one_process=True),
    EngineSpec("ddp", "MULTI_GPU", "cpu", "ddp"),
    _zero("zero1", 1, "optimizer"),
    _zero("zero2", 2, "optimizer", "gradients"),
    _zero("zero3", 3, "optimizer", "gradients", "parameters"),
    EngineSpec(
        "fsdp2", "FSDP", "cpu_fsdp2", "fsdp2",
        shards=("optimizer", "gradients", "parameters"), switch="ACCELERATE_USE_FSDP",
    ),
)  # fmt: skip
ENGINES: Mapping[str, EngineSpec] = {spec.name: spec for spec in _SPECS}

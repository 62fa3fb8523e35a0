"""The facts about engines that the planner needs, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launch.tools.plan import engine_memory
from launch.tools.plan.engine_memory import RankMemory, Setting
from launch.tools.plan.layout import ParamLayout


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        memory: returns the memory of a rank.
        configs: shipped Accelerate configs for GPUs in fp32, bf16 and fp16, with options of `rankzero train`.
        cpu_configs: the same for CPUs in fp32 and bf16.
        sharded: whether ranks train parts of the model. They compute with half weights in bf16 and fp16.
        alone: whether it runs on one rank. None: on any number.
        offload: whether parameters and optimizer state are in the machine's memory.
    """

    name: str
    memory: Callable[[ParamLayout, Setting], RankMemory]
    configs: tuple[str | None, str | None, str | None]
    cpu_configs: tuple[str | None, str | None]
    sharded: bool = True
    alone: bool | None = False
    offload: bool = False

    def config(self, precision: str, *, on_cpu: bool) -> str | None:
        """Return the shipped config for a precision, if there is one."""
        names = (*self.cpu_configs, None) if on_cpu else self.configs
        return dict(zip(PRECISIONS, names, strict=True))[precision]


PRECISIONS = ("fp32", "bf16", "fp16")
_ALONE = (("debug", "ddp_bf16 --nproc 1", "ddp_fp16 --nproc 1"), ("debug", "cpu_bf16 --nproc 1"))
ENGINES = (  # by what they send, least first
    Engine("single", engine_memory.single, *_ALONE, sharded=False, alone=True),
    Engine("ddp", engine_memory.ddp, ("ddp", "ddp_bf16", "ddp_fp16"), ("cpu", "cpu_bf16"), sharded=False),
    Engine("zero1", engine_memory.zero1, (None, "zero1", None), ("cpu_zero1", None)),
    Engine("zero2", engine_memory.zero2, (None, "zero2", None), ("cpu_zero2", None)),
    Engine("zero3", engine_memory.zero3, (None, "zero3", None), ("cpu_zero3", None)),
    Engine("zero3", engine_memory.zero3, (None, "zero3_offload", None), (None, None), alone=None, offload=True),
    Engine("fsdp2", engine_memory.fsdp2, (None, "fsdp2", None), ("cpu_fsdp2", None)),
)

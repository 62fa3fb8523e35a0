"""Which configurations fit, and the cheapest of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.planning.configurations import Configuration
from launch.planning.gpus import Gpu
from launch.planning.states import ENGINES
from trainer.cpu_info import bf16_arithmetic

GIB = 2**30
CONTEXT = 1 * GIB  # CUDA's own, its libraries' workspaces and NCCL's buffers: a rule of thumb, not measured here
USABLE = 0.95  # of the rest: an allocator cannot fill its last pages

CONFIGS = {  # shipped Accelerate configs by engine and precision; --nproc 1 makes a single process of the first three
    ("single", "fp32"): "debug",
    ("single", "bf16"): "ddp_bf16 --nproc 1",
    ("single", "fp16"): "ddp_fp16 --nproc 1",
    ("ddp", "fp32"): "ddp",
    ("ddp", "bf16"): "ddp_bf16",
    ("ddp", "fp16"): "ddp_fp16",
    ("zero1", "bf16"): "zero1",
    ("zero2", "bf16"): "zero2",
    ("zero3", "bf16"): "zero3",
    ("zero3 offload", "bf16"): "zero3_offload",
    ("fsdp2", "bf16"): "fsdp2",
}
CPU_CONFIGS = {
    ("single", "fp32"): "debug",
    ("single", "bf16"): "cpu_bf16 --nproc 1",
    ("ddp", "fp32"): "cpu",
    ("ddp", "bf16"): "cpu_bf16",
    **{(engine, "fp32"): f"cpu_{engine}" for engine in ("zero1", "zero2", "zero3", "fsdp2")},
}


@dataclass(frozen=True)
class Limit:
    """Bytes of a device; `gpu` is None where only its memory was given, or on a CPU."""

    memory: int
    gpu: Gpu | None = None
    cpu: bool = False

    @property
    def usable(self) -> int:
        """What tensors may take. On a CPU all ranks share what is given, and it is theirs already."""
        return self.memory if self.cpu else int((self.memory - CONTEXT) * USABLE)

    def holds(self, configuration: Configuration) -> bool:
        """Whether every rank fits: on a GPU its own, on a CPU all together."""
        ranks = configuration.setup.ranks if self.cpu else 1
        return ranks * configuration.peak <= self.usable


def order(configuration: Configuration, bf16: bool) -> tuple[object, ...]:
    """What comes first is cheaper: fewer ranks; weights on the device rather than on the host, to which the way is
    long; nothing computed twice; the precision that the device is fastest in; less to send; the simpler engine.
    """
    setup = configuration.setup
    fastest = ("bf16", "fp16", "fp32") if bf16 else ("fp16", "fp32", "bf16")
    return (
        setup.ranks,
        setup.offload,
        setup.checkpointing,
        fastest.index(setup.precision),
        configuration.sent,
        ENGINES.index(setup.engine),
    )


def cheapest(configurations: Sequence[Configuration], limit: Limit) -> Configuration | None:
    """The first in `order` of those that fit; on a CPU without fp16, and bf16 last where it is emulated."""
    bf16 = limit.gpu.bf16 if limit.gpu else not limit.cpu or bf16_arithmetic()
    fit = [c for c in configurations if limit.holds(c) and config_of(c) is not None]
    return min(fit, key=lambda c: order(c, bf16), default=None)


def config_of(configuration: Configuration) -> str | None:
    """The shipped Accelerate config that runs it, or None."""
    setup = configuration.setup
    table = CPU_CONFIGS if setup.device == "cpu" else CONFIGS
    return table.get((setup.name, setup.precision))


def command(recipe: str | Path, overrides: Sequence[str], configuration: Configuration) -> str:
    """The line that starts a configuration with a shipped config."""
    setup, config = configuration.setup, config_of(configuration)
    assert config is not None, configuration
    words = [word for word in overrides if not word.startswith("loop.activation_checkpointing=")]
    words += ["loop.activation_checkpointing=true"] if setup.checkpointing else []
    words += ["--config", *config.split()]
    words += [] if setup.engine == "single" else ["--nproc", str(setup.ranks)]
    return shlex.join(["rankzero", "train", str(recipe), *words])

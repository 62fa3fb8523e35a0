"""Facts about engines that the tools need without importing torch. No other module of the tools names an engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineFacts:
    """What a tool needs to know about one engine.

    Args:
        cpu_config: the shipped config that runs the engine on a CPU.
        gpu_config: the shipped config that runs it on GPUs.
        one_process: it has a single rank.
        rank_counts: numbers of ranks that `verify` tries besides the one on its command line.
        switch: the variable by which Accelerate's launcher turns the engine on.
        package: a package that it needs, and that rankzero installs only on request.
    """

    cpu_config: str
    gpu_config: str
    one_process: bool = False
    rank_counts: Sequence[int] = ()
    switch: str = ""
    package: str = ""

    @property
    def missing_package(self) -> str:
        """The needed package, if it is not installed."""
        return self.package if self.package and importlib.util.find_spec(self.package) is None else ""


def _zero(stage: int) -> EngineFacts:
    return EngineFacts(f"cpu_zero{stage}", f"zero{stage}", switch="ACCELERATE_USE_DEEPSPEED", package="deepspeed")


ENGINES = {
    "single": EngineFacts("debug", "debug", one_process=True),
    "ddp": EngineFacts("cpu", "ddp", rank_counts=(4,)),
    "zero1": _zero(1),
    "zero2": _zero(2),
    "zero3": _zero(3),
    "fsdp2": EngineFacts("cpu_fsdp2", "fsdp2", switch="ACCELERATE_USE_FSDP"),
}

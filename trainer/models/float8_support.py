"""Whether this rank can train in fp8. Needs no torchao."""

from __future__ import annotations

import importlib.util
import os

import torch

from trainer.engine_specs import FLOAT8, EngineSpec
from trainer.errors import UsageError

GPUS = f"fp8 needs NVIDIA GPUs of compute capability {FLOAT8[0]}.{FLOAT8[1]} or more (Ada, Hopper, Blackwell)"


def check_float8(spec: EngineSpec, *, on_cpu: bool) -> None:
    """Check engine, packages and device. All ranks.

    Raises:
        UsageError: what is missing, and the configs to use instead.
    """
    if spec.sharded:
        raise UsageError(f"mixed_precision fp8 with engine {spec.name}: it runs under single and ddp; use bf16")
    if on_cpu:
        raise UsageError(f"{GPUS}, and this run is on a CPU; use --config cpu_bf16 or cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    name, found = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
    if torch.version.cuda is None or found < FLOAT8:
        other = "ddp_bf16" if found >= (8, 0) else "ddp_fp16"
        raise UsageError(f"{GPUS}, and GPU {number} is {name} ({found[0]}.{found[1]}); use --config {other}")
    if importlib.util.find_spec("torchao") is None:
        raise UsageError("fp8 needs torchao, which is not installed: pip install 'rankzero[torchao]'")

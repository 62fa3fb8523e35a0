"""The engines, one class each. The rest of the training knows only `Engine`."""

from __future__ import annotations

import os

from accelerate import Accelerator

from trainer.engine.engines.base import Engine, EngineOptions
from trainer.engine.engines.ddp import DDPEngine
from trainer.engine.engines.fsdp import FSDPEngine
from trainer.engine.engines.single import SingleEngine
from trainer.engine.engines.zero_config import BUCKET, deepspeed_config, gathered_limit
from trainer.engine_specs import ENGINES, EngineSpec
from trainer.errors import UsageError

__all__ = ["BUCKET", "Engine", "EngineOptions", "deepspeed_config", "gathered_limit", "make_engine", "running_engine"]


def make_engine(name: str, options: EngineOptions) -> Engine:
    """Return the engine of a name, with its accelerator. The caller checks that it is the one that runs.

    Raises:
        UsageError: no engine has this name, DeepSpeed is not installed, its config file cannot be read, or it has no
            fp16 here.
    """
    if name not in ENGINES:
        raise UsageError(f"engine {name} (RANKZERO_ENGINE or the Accelerate config); allowed: {', '.join(ENGINES)}")
    spec = ENGINES[name]
    if spec.missing_package:
        raise UsageError("this config needs DeepSpeed: pip install 'rankzero[deepspeed]'")
    if options.on_cpu:  # transformers and Accelerate import DeepSpeed where it is installed, and it looks for a GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return _engine_class(spec)(spec, options)


def _engine_class(spec: EngineSpec) -> type[Engine]:
    if spec.package:  # it may not be installed
        from trainer.engine.engines.zero import ZeroEngine

        return ZeroEngine
    return {"single": SingleEngine, "ddp": DDPEngine, "fsdp2": FSDPEngine}[spec.name]


def running_engine(accelerator: Accelerator) -> str:
    """Return the name of the engine that Accelerate has set up, which may be another than the one of the config."""
    if plugin := accelerator.state.deepspeed_plugin:
        return f"zero{plugin.zero_stage}"
    if accelerator.is_fsdp2:
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "single"

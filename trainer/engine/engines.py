"""The Accelerator of each engine, and what Accelerate and DeepSpeed would do behind one's back, undone.

An Accelerate config says which engine runs, on what, and in which precision. Everything that belongs to a step comes
from the recipe: accumulation (from its lanes), clipping, rates. See docs/explanation/engines.md.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import nn

from trainer.errors import UsageError

SHARDED = ("zero1", "zero2", "zero3", "fsdp2")  # engines that train something else than the whole model on each rank
PATIENCE = timedelta(hours=1)  # rank zero reads the corpus and trains the tokenizer while the others wait
FIRST_SCALE = 16  # fp16 losses begin at 2**16, as torch's scaler does
BUCKET = 50_000_000  # gradients that are reduced at once, 200 MB; DeepSpeed's own default takes 2 GB for any model


def make_accelerator(engine: str, *, on_cpu: bool, ranks: int, accumulation: int, clip_norm: float) -> Accelerator:
    """The Accelerator for the environment that a launcher has set up.

    Args:
        engine: the one asked for; whether it is the one that runs is for the caller to check.
        on_cpu: no GPU is to be used.
        ranks: the world size.
        accumulation: micro-batches of each rank in a step.
        clip_norm: largest gradient norm, 0 = no clipping. DeepSpeed clips by itself, by 1.0 if it is told nothing.

    Raises:
        UsageError: DeepSpeed is asked for and not installed, its config file cannot be read, or it has no fp16 here.
    """
    if on_cpu:  # transformers and accelerate look at DeepSpeed where it is installed, and it would look for a GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    shared: dict[str, Any] = {
        "gradient_accumulation_plugin": GradientAccumulationPlugin(
            num_steps=accumulation, adjust_scheduler=False, sync_with_dataloader=False
        ),
        "step_scheduler_with_optimizer": False,
    }
    backend = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=PATIENCE)
    if engine.startswith("zero"):
        plugin = _deepspeed(int(engine[-1]), on_cpu, accumulation, clip_norm)
        _check_fp16()
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[backend], **shared)
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # under stage 3 transformers would load empty weights, for DeepSpeed's own init
        return accelerator
    if engine == "fsdp2":
        return _fsdp2(on_cpu, backend, shared)
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True), backend] if ranks > 1 else None
    return Accelerator(cpu=on_cpu, kwargs_handlers=handlers, **shared)


# -- DeepSpeed ---------------------------------------------------------------------------------------------------------


def _check_fp16() -> None:
    """DeepSpeed asks the device, too, but only once the model has been made."""
    from deepspeed.accelerator import get_accelerator

    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16" and not get_accelerator().is_fp16_supported():
        raise UsageError(
            "fp16: DeepSpeed has none on this processor, which lacks AVX-512 FP16 and AMX; mixed_precision: no or bf16"
        )


def _deepspeed(stage: int, on_cpu: bool, accumulation: int, clip_norm: float) -> DeepSpeedPlugin:
    if on_cpu:
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        import deepspeed.ops
    except ImportError:
        raise UsageError("this config needs DeepSpeed: pip install 'rankzero[deepspeed]'") from None
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # DeepSpeed's calls; nobody can help it
    if on_cpu:  # its shared-memory operator would be compiled for a minute, and leave 69 MB per rank in /dev/shm
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # accelerate's launcher leaves word of what its file says; with a config of ours the plugin would call it a conflict
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    config = deepspeed_config(stage, precision, accumulation, clip_norm, _config_file())
    return DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)


def deepspeed_config(
    stage: int, precision: str, accumulation: int, clip_norm: float, file: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """What rankzero says to DeepSpeed, whatever the user's `file` says: the recipe's numbers, fp32 sums.

    The rest is the file's: bucket sizes, overlap and the like.
    """
    zero = {"reduce_bucket_size": BUCKET, **_said(file.get("zero_optimization", {})), "stage": stage}
    for part in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_DEVICE", "none")
        if device != "none" and (part == "optimizer" or stage == 3):
            zero[f"offload_{part}"] = {"device": device, "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        **_said(file),
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # of no effect: lanes make the micro-batches
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": float(clip_norm),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # accelerate would build it without decoupled weight decay
        "steps_per_print": 2**31,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": FIRST_SCALE}
    if precision != "no":
        config["communication_data_type"] = "fp32"
        if stage > 1:  # at stage 1 this would choose another optimizer (BF16_Optimizer) than ZeRO's
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value != "auto"}


def _config_file() -> dict[str, Any]:
    """The DeepSpeed file that an Accelerate config may name."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if name.lower() == "none":
        return {}
    try:
        return dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"deepspeed_config_file {name} cannot be read: {error}; give a JSON object") from None


# -- FSDP2 -------------------------------------------------------------------------------------------------------------


def _fsdp2(on_cpu: bool, backend: InitProcessGroupKwargs, shared: dict[str, Any]) -> Accelerator:
    if on_cpu:
        # Accelerate allows FSDP where a GPU type runs only. Private, and checked: another engine would be an error.
        PartialState(backend="gloo", timeout=PATIENCE)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true",
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,  # would silently untie embeddings
        cpu_offload=offload or None,
    )
    accelerator = Accelerator(fsdp_plugin=plugin, kwargs_handlers=None if on_cpu else [backend], **shared)
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision in halves:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        half = halves[accelerator.mixed_precision]
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    return accelerator


def wrap_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Tells FSDP2 which modules are gathered and freed as one: the layers, in whatever lists the model keeps them.

    Raises:
        UsageError: they run in a backward pass of their own, where FSDP2 has not gathered them.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        if any(hasattr(module, "backward_pass") for module in model.modules()):
            raise UsageError(
                f"engine fsdp2: {type(model).__name__} runs its reversible layers again in a backward pass of its own, "
                "where their weights are in pieces; use a config with ddp, zero1, zero2 or zero3"
            )
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(model)


def layer_classes(model: nn.Module) -> list[str]:
    """Class names of what stands in the model's module lists, those inside of a layer left out."""
    found: set[str] = set()
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(inside)):
            inside.append(f"{name}.")
            found |= {type(layer).__name__ for layer in module}
    return sorted(found)

"""DeepSpeed's configuration: the recipe's numbers and fp32 sums, with the rest from the user's DeepSpeed file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from trainer.errors import UsageError

FIRST_SCALE = 16  # fp16 losses begin at 2**16, as in torch's scaler
BUCKET = 50_000_000  # gradients that are reduced together, 200 MB. DeepSpeed's default takes 2 GB for any model
MOST_GATHERED = 1_000_000_000  # parameters under ZeRO-3: DeepSpeed's default


def deepspeed_config(
    stage: int, precision: str, accumulation: int, clip_norm: float, file: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return DeepSpeed's config. The user's `file` decides on bucket sizes, overlap and the like."""
    zero = {"reduce_bucket_size": BUCKET, **_without_auto(file.get("zero_optimization", {})), "stage": stage}
    if stage == 3 and zero.get("zero_quantized_nontrainable_weights"):  # before they have their values
        raise UsageError("deepspeed_config_file: zero_quantized_nontrainable_weights must be false under ZeRO-3")
    for state in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{state.upper()}_DEVICE", "none")
        if device != "none" and (state == "optimizer" or stage == 3):
            zero[f"offload_{state}"] = {"device": device, "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        **_without_auto(file),
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # has no effect: lanes make the micro-batches
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": float(clip_norm),  # without it DeepSpeed clips by 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # Accelerate would build it without decoupled weight decay
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


def gathered_limit(parameters: int) -> int:
    """Return how many parameters of a model with so many ZeRO-3 keeps gathered: a quarter, within limits.

    DeepSpeed's default is 10^9: a smaller model would be complete on every rank in each step.
    """
    return min(MOST_GATHERED, max(BUCKET, parameters // 4))


def limit_gathered(zero: dict[str, Any], parameters: int) -> None:
    """Set the limits of gathered parameters in the section `zero_optimization` where the user's file sets none."""
    for key in ("stage3_max_live_parameters", "stage3_max_reuse_distance"):
        zero.setdefault(key, gathered_limit(parameters))


def read_config_file() -> dict[str, Any]:
    """Return the DeepSpeed file that the Accelerate config names, or an empty object."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if name.lower() == "none":
        return {}
    try:
        return dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"deepspeed_config_file {name} cannot be read: {error}; give a JSON object") from None


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value != "auto"}

"""Flash attention of the transformers library (`model.attention: flash`), from the package flash-attn or kernels.

Its kernels take half precision on a GPU only. Elsewhere, as in a check of the model before training and in an
evaluation in fp32, SDPA runs on the same model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.models.library_masks import sdpa_mask
from trainer.models.padding_free import current

FLASH = "rankzero_varlen"  # its name in transformers' registry, which loads kernels by names with "flash"
LIBRARY = "flash_attention_2"
CAPABILITY = (8, 0)  # Ampere


def flash_problem() -> str | None:
    """Return why flash attention cannot run here, or None."""
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU (Ampere or newer) and bf16 or fp16, and there is no GPU here"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return f"needs an NVIDIA GPU of Ampere or newer, and this is {torch.cuda.get_device_name()}"
    if not is_flash_attn_2_available() and not is_kernels_available():
        return "needs the package flash-attn or kernels, and none is installed: pip install kernels"
    return None


def check_flash(settings: Any) -> None:
    """Check that `model.attention: flash` can run.

    Raises:
        UsageError: a package or a GPU is missing.
    """
    if getattr(settings, "attention", None) == "flash" and (problem := flash_problem()):
        raise UsageError(f"model.attention=flash {problem}; or set model.attention=auto")


def use_flash(model: nn.Module) -> None:
    """Switch a model of the transformers library to flash attention.

    Raises:
        UsageError: its family does not support it.
    """
    if not getattr(model, "_supports_flash_attn", False):
        raise UsageError(
            f"model.attention=flash: {type(model).__name__} of the transformers library does not support it; set "
            "model.attention=auto"
        )
    _register()
    model.set_attn_implementation(FLASH)  # type: ignore[operator]


def flash_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors are of a type that the kernels take, or will be cast to one."""
    half = dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(device.type)
    return device.type == "cuda" and half


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention: query (B, H, T, D), key and value (B, G, S, D) -> (B, T, H, D).

    Concatenated rows are passed by `cu_seq_lens`. A mask of padded rows is (B, S) for the kernels, which remove the
    padding and wait for the device for it.
    """
    from transformers.integrations import sdpa_attention
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    if not flash_runs(query.device, query.dtype):
        plain: tuple[Tensor, None] = sdpa_attention.sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return plain
    causal, scale = options.pop("is_causal", None), options.pop("scaling", None)
    if (rows := current()) is not None:
        options |= {"cu_seq_lens_q": rows.ends, "cu_seq_lens_k": rows.ends}
        options |= {"max_length_q": rows.width, "max_length_k": rows.width}
    y: Tensor = _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        query_length=query.shape[2],
        is_causal=getattr(module, "is_causal", True) if causal is None else causal,
        softmax_scale=scale,
        target_dtype=torch.get_autocast_dtype("cuda") if query.dtype == torch.float32 else None,
        attn_implementation=LIBRARY,
        **options,
    )
    return y, None


def _mask(*sizes: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return (B, S), or nothing to hide, where flash attention runs, and else the mask of SDPA."""
    if not flash_runs(torch.device(options["device"]), options["dtype"]):
        made: Tensor | None = sdpa_mask(*sizes, attention_mask=attention_mask, **options)
        return made
    return attention_mask


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FLASH, attention)
    AttentionMaskInterface.register(FLASH, _mask)

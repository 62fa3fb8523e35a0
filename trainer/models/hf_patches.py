"""What the library's long-document models do otherwise than a run needs, put right on the instance.

No weight changes its name or shape: what is trained here is loaded anywhere.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

EVALUATION_SEED = 0  # of Reformer's hashing outside of training: an answer does not depend on what was asked before


def mend(model: nn.Module) -> None:
    """Changes the modules of Longformer, BigBird and Reformer in a model; others stay as they are."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "longformer":
        from transformers import LongformerModel

        for module in model.modules():
            if isinstance(module, LongformerModel):
                module.register_forward_pre_hook(_look_from_first_token, with_kwargs=True)
    if kind == "big_bird":
        from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

        for module in model.modules():
            if isinstance(module, BigBirdBlockSparseAttention):
                changed: Any = module
                changed.bigbird_block_sparse_attention = MethodType(_attend_sparsely, module)
    if kind == "reformer":
        _mend_reformer(model)


def _look_from_first_token(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Global attention on the first token where the caller says nothing: only its own classifier does it by itself."""
    if kwargs.get("global_attention_mask") is None:
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1
        kwargs = {**kwargs, "global_attention_mask": mask}
    return args, kwargs


def _autocast_device(tensor: Tensor) -> str:
    return "cpu" if tensor.is_meta else tensor.device.type  # a plan has tensors without a device


# -- BigBird -----------------------------------------------------------------------------------------------------------


class _NoProbabilities(TorchFunctionMode):
    """The one tensor of zeros (B, H, T, T) is made without memory, and what is written into it goes nowhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros:
            return func(*args, **{**kwargs, "device": "meta"})
        if func in (Tensor.__setitem__, Tensor.scatter_) and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def _attend_sparsely(attention: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Context (B, T, H, D) without probabilities.

    The library spreads them over (B, H, T, T) for nobody, so that memory grows with the square of the length after all,
    and fails under autocast, where they are fp32 and the context is not.
    """
    with torch.autocast(_autocast_device(query), enabled=False), _NoProbabilities():
        context, _ = type(attention).bigbird_block_sparse_attention(attention, query, *args, **kwargs)
    return context, None


# -- Reformer ----------------------------------------------------------------------------------------------------------


def _mend_reformer(model: nn.Module) -> None:
    """Randomness from the generator that a step has seeded, the same in the forward and where it is run again.

    The library seeds every layer from the clock, so that no step could be made again; it draws the rotations of the
    hashing before dropout in the forward and not in the backward pass, which so sees other dropout; and outside of
    training the rotations are whatever the generator holds.
    """
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention, ReformerEmbeddings, ReformerLayer

    for module in model.modules():
        changed: Any = module
        if isinstance(module, ReformerLayer):
            changed._init_attention_seed = MethodType(_seed_attention, module)
            changed._init_feed_forward_seed = MethodType(_seed_feed_forward, module)
            changed.backward_pass = MethodType(_backward_pass, module)
        elif isinstance(module, LSHSelfAttention):
            changed._hash_vectors = MethodType(_hash_vectors, module)
        elif isinstance(module, ReformerEmbeddings):
            module.register_forward_hook(_reach_layers)


def _drawn_seed() -> int:
    """From the generator of this step, which then begins anew with it."""
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(seed)
    return seed


def _seed_attention(layer: Any) -> None:
    layer.attention_seed = _drawn_seed()
    device = _autocast_device(next(layer.parameters()))
    layer.precision = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))


def _seed_feed_forward(layer: Any) -> None:
    layer.feed_forward_seed = _drawn_seed()


def _backward_pass(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs the layer again in the precision of its forward: autocast is over when gradients are computed."""
    device, enabled, dtype = layer.precision
    with torch.autocast(device, dtype=dtype, enabled=enabled):
        return type(layer).backward_pass(layer, *args, **kwargs)


def _hash_vectors(attention: Any, vectors: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Buckets (B, H, rounds * T) of vectors (B, H, T, D); what follows draws as if nothing had been drawn here."""
    seed = torch.initial_seed() + 1 if attention.training else EVALUATION_SEED  # the layer's own, just set
    with torch.random.fork_rng([vectors.device] if vectors.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        return type(attention)._hash_vectors(attention, vectors, *args, **kwargs)


def _reach_layers(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """The reversible layers get gradients only where their input wants one: frozen embeddings do not."""
    if module.training and torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_(True)
    return output

"""Attention of transformers models on a CPU: a faster replacement of the eager function.

Each family of the library has its eager attention function. Ours replaces it only where both compute the
same. The library's function runs instead, with the same arguments, where

- it is given an argument that ours does not know (soft-capping, sinks, a position bias), or
- on sample tensors it gives another result than ours, or reads something else from its module (sinks again).

A model that treats the implementation named "eager" in a way of its own keeps that implementation altogether.
No weight changes its name: a model that was trained here loads anywhere.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from trainer.models.attention import eager_attention
from trainer.models.dropout import dropout as byte_dropout
from trainer.models.explain import record
from trainer.models.flash import flash_problem, use_flash
from trainer.models.library_masks import eager_mask, install

FAST = "rankzero_eager"  # its name in transformers' registry of attention functions
SUFFIX = "eager_attention_forward"  # of the names of the library's eager functions
# Arguments that no eager function of the library uses: the mask contains windows and causality already.
UNUSED = frozenset(
    {
        "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache", "return_dict",
        "output_hidden_states", "output_router_logits", "num_items_in_batch", "cu_seq_lens_q", "cu_seq_lens_k",
        "max_length_q", "max_length_k",
    }
)  # fmt: skip
log = logging.getLogger("rankzero")
Function = Callable[..., tuple[Tensor, Tensor | None]]


def use_attention(model: nn.Module, kind: str) -> None:
    """Choose the attention implementation of a transformers model.

    Args:
        model: of the library; one that has a single implementation keeps it.
        kind: sdpa, flash, eager, rankzero (`attention` of this module) or auto. On a CPU, auto is rankzero. On a GPU
            it is the library's choice. flash is auto where it cannot run: `check_flash` refuses to train there.

    Raises:
        UsageError: the family has no flash attention.
    """
    install()
    if kind == "flash":
        if flash_problem() is None:
            use_flash(model)
            return
        kind = "auto"
    if kind == "auto":
        if torch.cuda.is_available():
            return
        kind = "rankzero"
    if kind == "rankzero":
        if not getattr(model, "_supports_attention_backend", False):
            return
        kind = FAST if _replaceable(model) else "eager"
        _register()
    with contextlib.suppress(ValueError):  # an architecture with one way only keeps it
        model.set_attn_implementation(kind)  # type: ignore[operator]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute attention, by the family's own eager function where it gives another result than ours.

    Args:
        module: the attention layer that calls.
        query: (B, H, T, D).
        key: (B, G, S, D), where G divides H.
        value: (B, G, S, E).
        attention_mask: added to the scores (B, H, T, S), broadcast.
        options: what else the family passes, such as `scaling` and `dropout`.

    Returns:
        (B, T, H, E), and the weights where the family's own function has run.
    """
    kind = type(module)
    own = _own(kind)
    if own is None:
        raise RuntimeError(f"{kind.__name__} has no eager attention function; set model.attention=eager")
    if own.same and query.dim() == 4 and _known(options, own.unused):
        scaling, dropout = options.get("scaling"), options.get("dropout", 0.0)
        return _attend(module, query, key, value, attention_mask, scaling, dropout), None
    y, weights = own.function(module, query, key, value, attention_mask, **options)
    if weights is not None:
        record(weights)
    return y, weights


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    heads = query.shape[1]
    if key.shape[1] != heads:  # grouped queries: a key for every few heads
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    drop = partial(byte_dropout, p=dropout, training=module.training)
    return eager_attention(query, key, value, mask, scale, drop).transpose(1, 2).contiguous()


def _known(options: dict[str, Any], unused: frozenset[str]) -> bool:
    """Whether no argument is set that could change the result of a family's eager function in a way unknown to ours."""
    for name, value in options.items():
        if name == "scaling":
            if not isinstance(value, float | int | None):  # a tensor may need a gradient
                return False
        elif name != "dropout" and name not in unused and value is not None and value is not False:
            return False
    return True


class Own(NamedTuple):
    """A family's own eager attention."""

    function: Function
    same: bool  # as ours, where no argument is set that ours does not know
    unused: frozenset[str]  # arguments that it may be given and does not read


_owns: dict[type, Own | None] = {}  # by class of attention layer; a plain dict, which torch.compile can follow


def _own(kind: type) -> Own | None:
    if kind not in _owns:
        function = _eager_function(kind)
        named = frozenset(inspect.signature(function).parameters) if function else frozenset()
        _owns[kind] = Own(function, _same(function), UNUSED - named) if function else None
    return _owns[kind]


def _eager_function(kind: type) -> Function | None:
    """The eager function that a class of the library passes to the registry of attention functions."""
    for base in kind.__mro__:
        for method in vars(base).values():
            function: Any = inspect.unwrap(method) if callable(method) else None
            names = getattr(getattr(function, "__code__", None), "co_names", ())
            if "get_interface" in names:
                return next((function.__globals__[name] for name in names if name.endswith(SUFFIX)), None)
    return None


class _Sample:
    """A substitute for an attention module that records the attributes that a function reads."""

    training = False
    num_key_value_groups = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        raise AttributeError(name)


@torch.no_grad()
def _same(own: Function) -> bool:
    """Whether a family's eager function gives what ours gives, without reading weights or settings of its module."""
    sample: Any = _Sample()
    with _disable_current_modes(), torch.autocast("cpu", enabled=False):  # a plan has tensors without numbers
        random = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 2, 5, 4, generator=random, device="cpu") * 4 for _ in range(3))
        mask = torch.randn(2, 1, 5, 5, generator=random, device="cpu") * 4
        try:
            found = own(sample, q, k, v, mask, scaling=0.7, dropout=0.0)[0]
        except Exception:  # whatever it needs besides, it is not ours
            return False
        ours = _attend(sample, q, k, v, mask, 0.7, 0.0)
        return not sample.asked and found.shape == ours.shape and torch.allclose(found, ours, atol=1e-5)


def _replaceable(model: nn.Module) -> bool:
    """Whether every layer that looks up its attention function has an eager one, and none asks for it by name."""
    for module in model.modules():
        kind: Any = type(module)
        if _looks_up(kind) and _own(kind) is None:
            reason = "has no eager function"
        elif _names_eager(kind) and getattr(module, "reorder_and_upcast_attn", True):  # GPT-2: off mostly
            reason = "differs where the implementation is named eager"
        else:
            continue
        log.info("attention: %s %s; the library's eager attention is used", kind.__name__, reason)
        return False
    return True


@cache
def _looks_up(kind: Any) -> bool:
    return any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in _codes(kind))


@cache
def _names_eager(kind: Any) -> bool:
    constants = [constant for code in _codes(kind) for constant in code.co_consts]
    return any("eager" in constant if isinstance(constant, tuple) else constant == "eager" for constant in constants)


def _codes(kind: type) -> list[Any]:
    """Code of the methods of a class of the library, inherited ones included."""
    own = [base for base in kind.__mro__ if ".models." in base.__module__]
    methods = [inspect.unwrap(method) for base in own for method in vars(base).values() if callable(method)]
    return [method.__code__ for method in methods if hasattr(method, "__code__")]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FAST, attention)
    AttentionMaskInterface.register(FAST, eager_mask)

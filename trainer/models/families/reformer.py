"""Reformer (Kitaev et al. 2020): attention in chunks by hashing, reversible layers, axial positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.models.families.base import Family, Padding

if TYPE_CHECKING:
    from torch import Tensor, nn

EVALUATION_SEED = 0  # of the hashing in evaluation: an answer does not depend on earlier ones


class Reformer(Family):
    """Widths are multiples of the chunks, or exactly the axial positions."""

    model_type = "reformer"
    sizes = {  # noqa: RUF012
        "tiny": {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 32, "lsh_attn_chunk_length": 32},
        "small": {"attn_layers": ["local", "lsh"] * 2, "num_hashes": 2},
    }
    states_per_token = 2  # of the reversible layers

    def padding(self, config: Any, *, training: bool) -> Padding:
        # axial positions are trained at one width only, which uses all rows and columns
        axial = config.axial_pos_embds and training
        return Padding(math.prod(config.axial_pos_shape) if axial else _chunks(config), masked=True)

    def complete(self, config: Any, longest: int, given: Mapping[str, Any], *, own_positions: bool) -> None:
        if (count := config.num_hidden_layers) != len(config.attn_layers):
            if "attn_layers" in given:
                raise UsageError(
                    f"model.config.num_hidden_layers={count} and attn_layers={given['attn_layers']!r} contradict each "
                    "other: leave num_hidden_layers out"
                )
            config.attn_layers = [("local", "lsh")[n % 2] for n in range(count)]
        if own_positions and config.axial_pos_embds:
            if "axial_pos_shape" not in given:
                config.axial_pos_shape = _rectangle(Padding(_chunks(config)).width(longest))
            if "axial_pos_embds_dim" not in given:
                first = config.hidden_size // 4
                config.axial_pos_embds_dim = (first, config.hidden_size - first)
        if config.num_buckets is None:  # the library would set it from the first batch
            width = math.prod(config.axial_pos_shape) if config.axial_pos_embds else longest
            config.num_buckets = _buckets(width, config.lsh_attn_chunk_length)

    def check_length(self, config: Any, name: str, max_length: int, padded: int) -> None:
        positions = self.padding(config, training=True).multiple
        if config.axial_pos_embds and padded > positions:
            raise UsageError(
                f"data.max_length={max_length} is more than the {positions} positions of {name!r} "
                f"(axial_pos_shape {' x '.join(map(str, config.axial_pos_shape))}): set data.max_length to "
                f"{positions} or less, or leave axial_pos_shape out for random weights"
            )

    def patch(self, model: nn.Module) -> None:
        """Draw randomness from the generator that a step has seeded, the same when a layer is run again.

        The library seeds every layer from the clock, so that no step could be repeated. It draws the rotations of the
        hashing before dropout in the forward but not in the backward, which would then see other dropout. In
        evaluation the rotations would depend on the state of the generator.
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
                module.register_forward_hook(_require_grad)

    def export_problem(self, config: Mapping[str, Any]) -> str | None:
        return "torch's exporter fixes its hashed attention to one batch"


def _chunks(config: Any) -> int:
    """Return the smallest length that both attentions divide."""
    lengths = {"local": config.local_attn_chunk_length, "lsh": config.lsh_attn_chunk_length}
    return math.lcm(*(lengths[kind] for kind in set(config.attn_layers)))


def _rectangle(size: int) -> tuple[int, int]:
    """Return rows and columns whose product is `size`, as close to a square as possible."""
    rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return rows, size // rows


def _buckets(width: int, chunk: int) -> int | list[int]:
    """Return the number of buckets that the paper recommends, 2 * width / chunk, as a power of two or two factors."""
    power = max(1, (2 * (width // chunk)).bit_length() - 1)
    if 2**power <= 2 * max(math.isqrt(width // chunk), chunk):
        return 2**power
    return [2 ** (power // 2), 2 ** (power - power // 2)]


def _drawn_seed() -> int:
    """Draw a seed from the generator of this step, and reseed the generator with it."""
    import torch

    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(seed)
    return seed


def _seed_attention(layer: Any) -> None:
    import torch

    from trainer.models.families.torch_modes import autocast_device

    layer.attention_seed = _drawn_seed()
    device = autocast_device(next(layer.parameters()))
    layer.precision = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))


def _seed_feed_forward(layer: Any) -> None:
    layer.feed_forward_seed = _drawn_seed()


def _backward_pass(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the layer again in the precision of its forward. Autocast is off while gradients are computed."""
    import torch

    device, enabled, dtype = layer.precision
    with torch.autocast(device, dtype=dtype, enabled=enabled):
        return type(layer).backward_pass(layer, *args, **kwargs)


def _hash_vectors(attention: Any, vectors: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return buckets (B, H, rounds * T) of vectors (B, H, T, D). The state of the generator is left unchanged."""
    import torch

    seed = torch.initial_seed() + 1 if attention.training else EVALUATION_SEED  # the layer has just set its own seed
    with torch.random.fork_rng([vectors.device] if vectors.is_cuda else []):
        torch.manual_seed(seed % 2**63)
        return type(attention)._hash_vectors(attention, vectors, *args, **kwargs)


def _require_grad(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """Let the reversible layers compute gradients although frozen embeddings need none."""
    import torch

    if module.training and torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_(True)
    return output


FAMILY = Reformer()

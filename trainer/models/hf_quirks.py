"""What some architectures of the transformers library want otherwise than BERT does. No torch here.

Longformer cuts a sequence into windows, BigBird into blocks, Reformer into chunks: widths must be multiples of those.
Left to themselves they pad within the forward, or, where a batch is too short, go over to another attention for good:
what a step computes would depend on the lengths that came before it. Here the width is the micro-batch's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.errors import UsageError

# model_type -> size -> what belongs to a size besides width, layers and heads (trainer.models.sizes)
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "longformer": {"tiny": {"attention_window": 32}, "small": {"attention_window": 128}},
    "big_bird": {
        "tiny": {"block_size": 16, "num_random_blocks": 2},
        "small": {"block_size": 32, "num_random_blocks": 3},
    },
    "reformer": {
        "tiny": {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 32, "lsh_attn_chunk_length": 32},
        "small": {"attn_layers": ["local", "lsh"] * 2, "num_hashes": 2},
    },
}


@dataclass(frozen=True)
class Padding:
    """How wide the micro-batches of a model are.

    Attributes:
        multiple: widths are multiples of this.
        narrowest: the least width, a multiple of `multiple`.
        left: padding stands before the tokens, and the last token stands for the text, as in XLNet.
    """

    multiple: int = 1
    narrowest: int = 1
    left: bool = False

    def width(self, length: int) -> int:
        """Of a micro-batch whose longest row has `length` tokens."""
        return math.ceil(max(length, self.narrowest) / self.multiple) * self.multiple

    def rows(self, sequences: Sequence[Sequence[int]], value: int) -> list[list[int]]:
        """The sequences of a micro-batch, all of its width."""
        width = self.width(max(map(len, sequences)))
        fill = [[value] * (width - len(s)) for s in sequences]
        return [[*f, *s] if self.left else [*s, *f] for s, f in zip(sequences, fill, strict=True)]

    def also(self, multiple: int) -> Padding:
        """The same with widths that are multiples of `multiple`, too."""
        both = math.lcm(self.multiple, multiple)
        return replace(self, multiple=both, narrowest=math.ceil(self.narrowest / both) * both)


def padding_of(config: Any, *, training: bool = True) -> Padding:
    """What the family of a configuration wants; `config` is None for our own models."""
    kind = getattr(config, "model_type", None)
    if kind == "xlnet":
        return Padding(left=True)
    if kind == "longformer":
        window = config.attention_window
        return Padding(window if isinstance(window, int) else math.lcm(*window))
    if kind == "big_bird" and config.attention_type == "block_sparse":
        # at (5 + 2r) blocks and fewer it goes over to full attention, and never comes back
        return Padding(config.block_size, (6 + 2 * config.num_random_blocks) * config.block_size)
    if kind == "reformer":
        # axial positions are trained at one width only: rows and columns of all of them
        return Padding(math.prod(config.axial_pos_shape) if config.axial_pos_embds and training else _chunks(config))
    return Padding()


def settle(config: Any, longest: int, given: dict[str, Any], own_positions: bool) -> None:
    """Sets what depends on the length of the longest row.

    Args:
        config: is changed.
        longest: tokens, padded to a multiple of `data.pad_multiple`.
        given: keys that the recipe has set: they stay.
        own_positions: there are no trained positions that would have to stay as they are.

    Raises:
        UsageError: keys that do not agree.
    """
    if getattr(config, "model_type", None) != "reformer":
        return
    if (count := config.num_hidden_layers) != len(config.attn_layers):
        if "attn_layers" in given:
            raise UsageError(
                f"model.config.num_hidden_layers={count} and attn_layers={given['attn_layers']!r} do not agree: leave "
                "the first out"
            )
        config.attn_layers = [("local", "lsh")[n % 2] for n in range(count)]
    if own_positions and config.axial_pos_embds:
        if "axial_pos_shape" not in given:
            config.axial_pos_shape = _rectangle(Padding(_chunks(config)).width(longest))
        if "axial_pos_embds_dim" not in given:
            first = config.hidden_size // 4
            config.axial_pos_embds_dim = (first, config.hidden_size - first)
    if config.num_buckets is None:  # else it is taken from the first batch that comes
        width = math.prod(config.axial_pos_shape) if config.axial_pos_embds else longest
        config.num_buckets = _buckets(width, config.lsh_attn_chunk_length)


def rows_dimension(config: Any) -> int:
    """Which dimension of what an embedding gives are rows: XLNet's is given (T, B). `config` as for `padding_of`."""
    return int(getattr(config, "model_type", None) == "xlnet")


def padding_id(tokenizer: Any) -> int:
    """What rows are padded with; GPT-2's tokenizer has no token for it, then the end of text is."""
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if found is None:
        raise UsageError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no padding token and no end of text, so that rows cannot "
            "be padded: set pad_token in its tokenizer_config.json"
        )
    return int(found)


def hidden_width(config: Any) -> int:
    """Features of a last hidden state: Reformer's reversible layers give two of them side by side."""
    return int(config.hidden_size) * (2 if config.model_type == "reformer" else 1)


def dropout_keys(config: Any) -> list[str]:
    """The probabilities of dropout in a configuration, under whatever name."""
    values = config.to_dict()
    return [k for k, v in values.items() if ("dropout" in k or k.endswith("pdrop")) and isinstance(v, int | float)]


def without_layer_drop(config: Any, given: dict[str, Any]) -> list[str]:
    """Set LayerDrop to 0 in a configuration and those within it, and return what it was ("encoder_layerdrop 0.1").

    A layer that is left out has no gradient, on one rank and not on another.

    Args:
        config: is changed.
        given: keys that the recipe has set.

    Raises:
        UsageError: the recipe asks for LayerDrop.
    """
    for key, value in given.items():
        if "layerdrop" in key and value:
            raise UsageError(
                f"model.config.{key}={value}: LayerDrop leaves out other layers on each rank; allowed is 0. Leave the "
                "key out"
            )
    inner = [getattr(config, name, None) for name in config.sub_configs]
    was = [text for sub in inner if sub is not None for text in without_layer_drop(sub, {})]
    for key, value in config.to_dict().items():
        if "layerdrop" in key and isinstance(value, int | float) and value:
            was.append(f"{key} {value}")
            setattr(config, key, 0.0)
    return was


def _chunks(config: Any) -> int:
    """The length that both of Reformer's attentions divide."""
    lengths = {"local": config.local_attn_chunk_length, "lsh": config.lsh_attn_chunk_length}
    return math.lcm(*(lengths[kind] for kind in set(config.attn_layers)))


def _rectangle(size: int) -> tuple[int, int]:
    """Rows and columns of that many fields, as square as can be."""
    rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return rows, size // rows


def _buckets(width: int, chunk: int) -> int | list[int]:
    """As many as the paper recommends, 2 * width / chunk, as a power of two; two factors where there are many."""
    power = max(1, (2 * (width // chunk)).bit_length() - 1)
    if 2**power <= 2 * max(math.isqrt(width // chunk), chunk):
        return 2**power
    return [2 ** (power // 2), 2 ** (power - power // 2)]

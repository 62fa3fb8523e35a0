"""Configurations of the transformers library's architectures for random weights: `model.size` and `model.config`.

Architectures have different names for the same size (`num_hidden_layers`, `n_layer`, `encoder_layers`). A size is set
under every name that the architecture has.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.models.families import family_of, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from trainer.models.configs import PretrainedConfig

WIDTHS = {"tiny": (64, 2, 2), "small": (256, 4, 4)}  # hidden size, layers, heads; the feed-forward is 4 times as wide
NAMES = {
    "width": ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "pooler_hidden_size"),
    "layers": (
        "num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "encoder_layers",
        "decoder_layers",
    ),
    "heads": (
        "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
    ),
    "feed_forward": (
        "intermediate_size", "d_ff", "n_inner", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner",
        "feed_forward_size",
    ),
    "head_width": ("d_kv", "d_head", "attention_head_size"),
    "positions": ("max_position_embeddings", "n_positions"),
}  # fmt: skip
TOKENS = ("pad", "bos", "eos", "cls", "sep")


def random_config(
    settings: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, max_length: int, **changes: Any
) -> PreTrainedConfig:
    """Return the configuration of an architecture, with the ids of the tokenizer and `max_length` positions.

    Args:
        settings: architecture, size, and keys that override both.
        tokenizer: gives the vocabulary's size and the ids of its special tokens.
        max_length: tokens of the longest row, padding included.
        changes: keys that the task adds, such as `num_labels`.

    Raises:
        UsageError: an unknown architecture or key, with the nearest known one, or values that contradict each other.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(settings.architecture)
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"model.architecture={kind!r} is unknown to transformers{_nearest(kind, list(CONFIG_MAPPING))}"
        )
    known = AutoConfig.for_model(kind)
    keys = {*known.to_dict(), *known.attribute_map}
    for key in settings.config.keys() - keys:
        raise UsageError(f"model.config.{key}: {kind} has no such key{_nearest(key, sorted(keys))}")
    wanted: dict[str, Any] = {"vocab_size": len(tokenizer)}
    if settings.size is not None:
        width, layers, heads = WIDTHS[settings.size]
        wanted |= _named(
            keys, width=width, layers=layers, heads=heads, feed_forward=4 * width, head_width=width // heads
        )
        wanted |= family_of(kind).sizes.get(settings.size, {})
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in TOKENS}
    wanted |= {name: token for name, token in ids.items() if name in keys and token is not None}
    of_decoders = {
        "decoder_start_token_id": ids["pad_token_id"],
        "forced_eos_token_id": ids["eos_token_id"],
        "decoder_vocab_size": len(tokenizer),
    }
    wanted |= {name: value for name, value in of_decoders.items() if name in keys}
    if known.is_encoder_decoder:  # T5 accepts it although it is not among its keys
        wanted["decoder_start_token_id"] = ids["pad_token_id"]
    own = {known.attribute_map.get(key, key): value for key, value in wanted.items()}
    own |= {known.attribute_map.get(key, key): value for key, value in settings.config.items()}
    try:
        config = AutoConfig.for_model(kind, **own, **changes)
    except (TypeError, ValueError, AssertionError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"model.config: {kind} cannot have these sizes: {reason}") from error
    family_of(config).complete(config, max_length, settings.config, own_positions=True)
    # two positions more: some count from the padding id on, which is 0 or 1
    for key, size in _named(keys, positions=padding_of(config).width(max_length) + 2).items():
        if key not in settings.config:
            setattr(config, key, size)
    return config


def _named(keys: set[str], **sizes: int) -> dict[str, int]:
    """Return sizes by the names that an architecture has for them."""
    return {name: size for concept, size in sizes.items() for name in NAMES[concept] if name in keys}


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

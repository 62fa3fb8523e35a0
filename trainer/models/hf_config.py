"""Read and change configurations of the transformers library and its tokenizers. No torch here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.models.families import family_of
from trainer.redaction import origin

if TYPE_CHECKING:
    from torch import nn


def padding_id(tokenizer: Any) -> int:
    """Return the id that rows are padded with: the padding token, or the end of text for GPT-2, which has none."""
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if found is None:
        raise UsageError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no padding token and no end of text, so that rows cannot "
            "be padded: set pad_token in its tokenizer_config.json"
        )
    return int(found)


def hidden_width(config: Any) -> int:
    """Return the number of features of a last hidden state."""
    return int(config.hidden_size) * family_of(config).states_per_token


def dropout_keys(config: Any) -> list[str]:
    """Return the keys of dropout probabilities in a configuration."""
    values = config.to_dict()
    return [k for k, v in values.items() if ("dropout" in k or k.endswith("pdrop")) and isinstance(v, int | float)]


def without_layer_drop(config: Any, given: dict[str, Any]) -> list[str]:
    """Set LayerDrop to 0 in a configuration and its parts, and return what it was ("encoder_layerdrop 0.1").

    A dropped layer has no gradient, and each rank would drop other layers.

    Args:
        config: is changed.
        given: keys that the recipe has set.

    Raises:
        UsageError: the recipe sets LayerDrop.
    """
    for key, value in given.items():
        if "layerdrop" in key and value:
            raise UsageError(
                f"model.config.{key}={value}: LayerDrop would drop other layers on each rank; allowed is 0. Leave the "
                "key out"
            )
    inner = [getattr(config, name, None) for name in config.sub_configs]
    was = [text for sub in inner if sub is not None for text in without_layer_drop(sub, {})]
    for key, value in config.to_dict().items():
        if "layerdrop" in key and isinstance(value, int | float) and value:
            was.append(f"{key} {value}")
            setattr(config, key, 0.0)
    return was


def label_maps(names: list[str]) -> dict[str, Any]:
    """Return id2label and label2id, as in a configuration of the transformers library."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def config_json(model: nn.Module) -> dict[str, Any] | None:
    """Return config.json as `save_pretrained` writes it, or None for a model of rankzero."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    values = json.loads(config.to_json_string(use_diff=False))
    return {**_without_origin(values), "architectures": [type(model).__name__]}


def _without_origin(values: Any) -> Any:
    """Return the values without the folder of the weights, which describes a machine and not the model."""
    if not isinstance(values, dict):
        return values
    return {k: origin(v) if k == "_name_or_path" else _without_origin(v) for k, v in values.items()}

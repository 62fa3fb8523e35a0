"""Load models of the transformers library safely, check them against the recipe, and make them fast on a CPU.

On a CPU with bf16, attention and the random numbers of dropout take most of a fine-tuning step. So
`trainer.models.fast_attention` and the cheap `trainer.models.dropout` replace them. Neither changes the name of a
weight, so stock transformers loads the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.errors import CheckpointError, RankzeroError, UsageError
from trainer.files import read_json
from trainer.hub_paths import check_model_files, locate, suggestion
from trainer.models.dropout import Dropout
from trainer.models.families import family_of, padding_of
from trainer.models.families.positions import first_position
from trainer.models.fast_attention import use_attention
from trainer.models.hf_config import dropout_keys, without_layer_drop
from trainer.models.label_order import new_head, order_labels, saved_labels
from trainer.models.sizes import random_config
from trainer.models.vocabulary import grow_vocabulary, token_ids
from trainer.models.weights import encoder_of, load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

CODE_KEYS = ("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation")
log = logging.getLogger("rankzero")


def load_model(
    auto: type,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    trained: Path | None = None,
    part: str | None = None,
    *,
    causal: bool = False,
    **config: Any,
) -> nn.Module:
    """Load a model of the transformers library in fp32 and training mode, and check that it fits the recipe.

    Args:
        auto: AutoModel, AutoModelForSequenceClassification, …
        recipe: with a PretrainedConfig as its model.
        tokenizer: of the run.
        trained: folder model/ of a finished run, whose architecture is built without weights; the caller loads them.
        part: key of the run's config.json, if the model is one module of the run's model.
        causal: no token attends to later ones, for architectures that support both.
        config: changes to the model's configuration, such as `num_labels`.

    Raises:
        UsageError: no such model, it cannot be downloaded, `auto` does not know its architecture, or weights,
            tokenizer or lengths do not fit it.
    """
    from transformers import GenerationConfig

    settings: Any = recipe.model
    library: Any = auto
    _silence()
    try:
        if trained is not None:
            model = _untrained(library, trained, part, lambda facts: _as_asked(facts, settings, causal, trained=True))
        elif settings.random:
            facts = _as_asked(configuration(recipe, tokenizer, **config), settings, causal)
            model = library.from_config(facts, trust_remote_code=False)
        else:
            model = _with_weights(auto, recipe, tokenizer, causal, config)
    except RankzeroError:
        raise
    except (OSError, ValueError, AssertionError, ImportError) as error:
        if settings.weights and trained is None:
            check_model_files(settings.weights)
        reason = str(error).strip().splitlines()[0].rstrip(".")
        if "Unrecognized configuration class" in reason:
            reason = f"the library has no {auto.__name__} of this architecture; choose another one, or another task"
        key, hint = ("name", f". {suggestion(settings.weights)}") if settings.weights else ("architecture", "")
        raise UsageError(f"model.{key}={settings.title!r} cannot be loaded: {reason}{hint}") from error
    check_fits(model, settings.title, token_ids(tokenizer), recipe)
    if getattr(model, "generation_config", None) is not None:
        # Generation settings of a model (least lengths, forced tokens, forbidden repetitions) would be applied in the
        # training, and unknown to those who open the run's directory: the recipe alone says how is searched.
        model.generation_config = GenerationConfig()
    use_attention(model, settings.attention)
    replace_dropout(model, settings.dropout)
    family_of(getattr(model, "config", None)).patch(model)
    return model.train()


def configuration(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """Return the configuration of the recipe's model: of an architecture, or of its weights.

    Raises:
        UsageError: keys, sizes or lengths that the architecture cannot have.
        OSError, ValueError: the configuration of the weights cannot be loaded.
    """
    settings: Any = recipe.model
    longest = recipe.data.padded(recipe.data.max_length)
    if settings.random:
        return random_config(settings, tokenizer, longest, **changes)
    facts = _saved_config(settings.name)
    facts.update({**changes, **settings.config})
    family_of(facts).complete(facts, longest, settings.config, own_positions=False)
    return facts


def _saved_config(name: str) -> Any:
    from transformers import AutoConfig

    place, revision = locate(name)
    try:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a value of another type than the library expects
        raise UsageError(f"model.name={name!r}: its config.json has a wrong value: {error}") from error


def _class_names(name: str) -> list[str] | None:
    """Return the class names of a model as in its config.json, since the library replaces some of them."""
    from transformers import PreTrainedConfig

    place, revision = locate(name)
    return saved_labels(PreTrainedConfig.get_config_dict(place, revision=revision)[0])


def _with_weights(
    auto: Any, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, causal: bool, changes: dict[str, Any]
) -> nn.Module:
    """Load the weights of the recipe's model with the recipe's classes, and an embedding for all ids of its tokenizer.

    Raises:
        UsageError: the weights are not those of the model, or its classes are not the recipe's.
    """
    settings: Any = recipe.model
    facts = _as_asked(configuration(recipe, tokenizer, **changes), settings, causal)
    loaded = load_weights(auto, settings.name, facts, asked=settings.config, title=f"model.name={settings.name!r}")
    if "id2label" in changes:
        labels, names = getattr(recipe.task, "labels", None), changes["label2id"]
        if not labels or {*labels.values()} != names.keys():  # tags such as B-PER are made from labels
            labels = {name: name for name in names}
        order_labels(loaded.model, _class_names(settings.name), labels, loaded.new, settings.name)
    _check_sizes(loaded.model, settings.title, loaded.mismatched)
    if grow_vocabulary(loaded.model, tokenizer, settings.name) and settings.adapter is not None:
        raise UsageError(
            f"model.adapter: the tokenizer adds tokens to {settings.name!r}, and an adapter does not train embeddings: "
            "leave model.adapter out, or give a model whose embedding has a row for each token of its tokenizer"
        )
    return loaded.model


def _check_sizes(model: Any, name: str, mismatched: Any) -> None:
    """Raise UsageError for weights of other sizes. The error of the library names neither key nor sizes."""
    for key, there, here in mismatched:
        in_head = model.base_model is not model and not key.startswith(f"{model.base_model_prefix}.")
        if in_head and here[0] == model.config.num_labels:
            raise UsageError(
                f"model.name={name!r} has {there[0]} classes, and task.labels has {here[0]}: {new_head(model)}, or "
                f"give task.labels of {there[0]} classes"
            )
        raise UsageError(
            f"model.name={name!r}: its {key} is {list(there)}, and {list(here)} in this recipe's model: leave sizes "
            "out of model.config, so that they are those of the weights"
        )


def _untrained(library: Any, trained: Path, part: str | None, change: Callable[[Any], Any]) -> nn.Module:
    """Build the model of a run without its weights, from its config.json.

    Raises:
        CheckpointError: the library cannot build a model from the file.
    """
    from transformers import AutoConfig

    found = read_json(trained / "config.json") or {}
    try:
        facts = AutoConfig.for_model(**_without_code(found.get(part, found) if part else found))
        return library.from_config(change(facts), trust_remote_code=False)
    except Exception as error:  # any error of the library with values that it did not write
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{trained / 'config.json'} gives no model ({reason}); restore it") from error


def _without_code(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json without the keys that name Python code or a kernel of the Hub."""
    kept = {key: value for key, value in config.items() if key not in CODE_KEYS}
    return {key: _without_code(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _silence() -> None:
    """ "newly initialized: classifier" is what is wanted here."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


def _as_asked(config: Any, settings: Any, causal: bool, *, trained: bool = False) -> Any:
    """Apply the recipe to a configuration: dropout in all keys, no LayerDrop, and causal attention if required.

    Raises:
        UsageError: its attention cannot be causal, or the recipe sets LayerDrop.
    """
    if settings.dropout is not None:
        config.update(dict.fromkeys(dropout_keys(config), settings.dropout))
    if (was := without_layer_drop(config, {} if trained else settings.config)) and not trained:
        log.info("LayerDrop of %r is set to 0 (it was %s): every layer is trained", settings.title, ", ".join(was))
    if causal and hasattr(config, "is_decoder"):
        config.is_decoder = True
        family_of(config).make_causal(config, settings.config)
    return config


def replace_dropout(model: nn.Module, p: float | None = None) -> None:
    """Replace every dropout of torch by `Dropout`, with the same probability unless `p` is given."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropout(child.p if p is None else p))


def check_fits(model: nn.Module, name: str, tokens: int, recipe: Recipe) -> None:
    """Check that ids and positions of the recipe fit the embeddings, and that its micro-batches fit the widths.

    Raises:
        UsageError: they do not; names both numbers.
    """
    config: Any = model.config
    max_length = recipe.data.max_length
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if tokens > rows:
        raise UsageError(
            f"the tokenizer has {tokens:,} tokens but the embedding of {name!r} has {rows:,} rows, so it belongs to "
            "another model: leave `tokenizer` out of the recipe, so that the model's own is used, and check that the "
            "model's folder has the tokenizer files it was saved with"
        )
    if (limit := position_limit(config)) is not None and max_length > limit:
        raise UsageError(
            f"data.max_length={max_length} is more than the {limit} positions of {name!r}: "
            f"set data.max_length to {limit} or less, or choose a model for longer texts"
        )
    _check_width(config, name, recipe)


def position_limit(config: Any) -> int | None:
    """Return the number of tokens that a model has positions for, or None if there is no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    return int(positions) - first_position(config)


def load_bare(name: str, tokenizer: PreTrainedTokenizerFast | None = None) -> nn.Module:
    """Load a model without a head in fp32 and eval mode. Of an encoder-decoder it is the encoder.

    Args:
        name: see `trainer.hub_paths`.
        tokenizer: of the model. The embedding gets rows for tokens that were added to it.

    Raises:
        UsageError: no such model, it cannot be downloaded, or its weights do not fit it.
    """
    from transformers import AutoModel

    _silence()
    loaded = load_weights(AutoModel, name, encoder=True)
    model: Any = loaded.model
    _check_sizes(model, name, loaded.mismatched)
    if tokenizer is not None:
        grow_vocabulary(model, tokenizer, name)
        if token_ids(tokenizer) > (rows := model.get_input_embeddings().num_embeddings):
            raise UsageError(
                f"the tokenizer of {name!r} has {token_ids(tokenizer):,} tokens but its embedding has {rows:,} rows, "
                "so it belongs to another model; give the folder the tokenizer files that the model was saved with"
            )
    family_of(getattr(model, "config", None)).patch(model)
    return encoder_of(model).eval()


def _check_width(config: Any, name: str, recipe: Recipe) -> None:
    data, padding = recipe.data, padding_of(config)
    family_of(config).check_length(config, name, data.max_length, data.padded(data.max_length))
    width = padding.also(data.pad_multiple).width(data.max_length)
    if padding.multiple > 1 and data.tokens_per_batch is not None and width > data.tokens_per_batch:
        raise UsageError(
            f"data.tokens_per_batch={data.tokens_per_batch} is less than the {width} tokens that every row of "
            f"data.max_length={data.max_length} takes in {name!r} (widths are multiples of {padding.multiple}): raise "
            "the first, or choose a model with smaller windows or blocks"
        )
    if data.max_length < padding.narrowest:
        log.warning(
            "every micro-batch of %r is padded to %d tokens or more, data.max_length is %d: model.config: "
            "{attention_type: original_full} is cheaper for such lengths",
            name, padding.narrowest, data.max_length,
        )  # fmt: skip

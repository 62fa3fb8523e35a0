"""Classifiers of a trunk and a head: our own encoder or CNN, or a pretrained model.

Freezing, unfreezing and layer-wise rates use the depth of a parameter: 0 is the head, 1 the top layer of the trunk, and
the embeddings are deepest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.models.cnn import CNN
from trainer.models.configs import CNNConfig, EncoderConfig, PretrainedConfig
from trainer.models.dropout import Dropout
from trainer.models.encoder import Encoder
from trainer.models.hf_config import hidden_width, label_maps, padding_id
from trainer.models.layers import stacks_of
from trainer.models.pooling import check_head, classify_at_last_end, ends_with_summary, pool, reading_part
from trainer.models.pretrained import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

HEAD_STD = 0.02  # of the weights of a new head, as in BERT


class PooledClassifier(nn.Module):
    """A trunk whose hidden states are pooled and classified by one linear layer."""

    def __init__(self, trunk: nn.Module, width: int, names: list[str], pooling: str, p: float) -> None:
        super().__init__()
        self.trunk, self.pooling, self.names = trunk, pooling, names
        self.last = ends_with_summary(trunk)  # with pooling cls, the last token summarizes the text
        self.dropout = Dropout(p)
        self.head = nn.Linear(width, len(names))
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.get_input_embeddings()  # type: ignore[operator]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(B, T) int64 -> logits (B, classes)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.trunk(input_ids=input_ids, attention_mask=attention_mask, **types)
        hidden = found if isinstance(found, Tensor) else found.last_hidden_state
        return self.head(self.dropout(pool(hidden, attention_mask, self.pooling, self.last)))


def build_classifier(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    names: list[str],
    trained: Path | None = None,
    problem_type: str | None = None,
) -> nn.Module:
    """Build the classifier of a recipe, with random or pretrained weights, or none for a `trained` folder.

    Args:
        problem_type: of a model with the library's own head, in its config.json.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    settings: Any = recipe.model
    if isinstance(settings, EncoderConfig | CNNConfig):
        size, positions = len(tokenizer), recipe.data.padded(recipe.data.max_length)
        trunk = CNN(settings, size) if isinstance(settings, CNNConfig) else Encoder(settings, size, positions)
        return PooledClassifier(trunk, settings.d_model, names, settings.pooling, settings.dropout)
    if isinstance(settings, PretrainedConfig):
        return _pretrained(recipe, tokenizer, names, trained, problem_type)
    raise UsageError(f"model.kind={settings.kind!r} cannot classify; allowed: encoder, cnn, pretrained")


def _pretrained(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    names: list[str],
    trained: Path | None,
    problem_type: str | None,
) -> nn.Module:
    from transformers import AutoModel, AutoModelForSequenceClassification

    settings: Any = recipe.model
    if settings.pooling == "auto":
        auto, labels = AutoModelForSequenceClassification, label_maps(names)
        labels |= {} if problem_type is None else {"problem_type": problem_type}
        model: Any = load_model(auto, recipe, tokenizer, trained, num_labels=len(names), **labels)
        if model.config.pad_token_id is None:  # the head of GPT-2 looks for the last token that is not padding
            model.config.pad_token_id = padding_id(tokenizer)
        if trained is None:
            check_head(model)
        classify_at_last_end(model)
        return model
    trunk = reading_part(load_model(AutoModel, recipe, tokenizer, trained, "trunk"))
    if getattr(trunk, "pooler", None) is not None:
        trunk.pooler = None  # type: ignore[assignment]  # the pooler of BERT would have no gradient
    facts: Any = trunk.config
    p = getattr(facts, "hidden_dropout_prob", None) if settings.dropout is None else settings.dropout
    return PooledClassifier(trunk, hidden_width(facts), names, settings.pooling, 0.1 if p is None else p)


# -- trunk and head ----------------------------------------------------------------------------------------------------


def trunk_prefix(model: nn.Module) -> str | None:
    """Return the prefix of the trunk's parameters ("trunk.", "bert."), or None if the model has no trunk and head."""
    for name in ("trunk", getattr(model, "base_model_prefix", "")):
        if name and isinstance(getattr(model, name, None), nn.Module):
            return f"{name}."
    return None


def reading_embedding(model: nn.Module) -> nn.Module:
    """Return the embedding of the input. Encoder and decoder of T5 and BART have one each, with shared weights."""
    trunk: Any = getattr(model, "trunk", model)
    if getattr(getattr(trunk, "config", None), "is_encoder_decoder", False):
        trunk = trunk.get_encoder()
    return trunk.get_input_embeddings()


def depths(model: nn.Module) -> dict[str, int] | None:
    """Return the depth of every parameter: 0 head, 1 top layer … n bottom layer, n + 1 embeddings.

    None for a model without trunk and head. The layers are the longest outermost ModuleList of the trunk. Parameters
    outside layers and embeddings (a last norm, a pooler, the decoder) belong to the top layer.
    """
    prefix = trunk_prefix(model)
    if prefix is None:
        return None
    stacks = {name: len(stack) for name, stack in stacks_of(model.get_submodule(prefix[:-1])).items()}
    where = max(stacks, key=lambda name: stacks[name], default=None)
    count, embeddings, found = stacks.get(where or "", 0), embedding_names(model, prefix), {}
    for name, _ in model.named_parameters():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            found[name] = 0
        elif where and inner.startswith(where):
            found[name] = count - int(inner.removeprefix(where).partition(".")[0])
        else:
            found[name] = count + 1 if name in embeddings else 1
    return found


def embedding_names(model: nn.Module, prefix: str) -> set[str]:
    """Return the names of the parameters of embeddings: wte and wpe in GPT-2, shared in BART, norms embed…"""
    trunk: Any = model.get_submodule(prefix[:-1])
    lists = tuple(stacks_of(trunk))
    tables = [m for n, m in trunk.named_modules() if isinstance(m, nn.Embedding) and not n.startswith(lists)]
    own = {id(p) for table in [trunk.get_input_embeddings(), *tables] for p in table.parameters()}
    inner = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}

    def called_so(name: str) -> bool:
        return "embed" in name and not name.startswith(lists)

    return {name for name, p in inner.items() if id(p) in own or called_so(name.removeprefix(prefix))}


def has_lm_head(model: nn.Module) -> bool:
    """Return whether the model is a language model of the transformers library, whose head fits any text."""
    found: Any = getattr(model, "get_output_embeddings", None)
    return found is not None and found() is not None

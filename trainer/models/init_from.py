"""Start with the weights of a finished run: `model.init_from`.

All weights that both models have are taken. A classifier takes the trunk of any model, and the head of a classifier if
both have the same classes in the same order.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.models.classifiers import has_lm_head, trunk_prefix
from trainer.models.folder import WEIGHTS, read_folder
from trainer.models.hf_config import config_json
from trainer.models.label_order import saved_labels
from trainer.recipe import read_yaml
from trainer.recipe.sections import Section
from trainer.tensors import constants, exists

log = logging.getLogger("rankzero")

# Keys of configurations that change what the trunk computes, but no shape of its weights.
_NOT_IN_SHAPES = re.compile(r"head|(^|_)act(_|$)|activation|eps|rope|relative|pos_att|position_embedding_type")
_OF_HEADS = re.compile(r"summary_|classifier_|sequence_")
# The same for the `model` section of models of rankzero.
_OWN_KEYS = (
    "layers",
    "encoder_layers",
    "decoder_layers",
    "heads",
    "norm",
    "activation",
    "positions",
    "tied_embeddings",
)


def trunk_file(run: Path) -> Path:
    """Return the weights file of the run that `model.init_from` names.

    Raises:
        UsageError: the run has no weights.
    """
    file = run / "model" / WEIGHTS
    if not exists(file):
        raise UsageError(f"{_title(run)}: there is no {file}; give a run directory that has finished")
    return file


def begin_from(model: nn.Module, settings: Any) -> None:
    """Copy the weights of the run that `model.init_from` names into a new model, if the recipe sets it.

    Raises:
        UsageError: no finished run, or its model has other weights or computes something else with them.
    """
    if (name := getattr(settings, "init_from", None)) is None:
        return
    run = Path(name)
    trunk_file(run)
    if config_json(getattr(model, "trunk", model)) is None:
        _check_section(settings, run)
    else:
        _check_config(model, run)
    _copy(model, read_folder(run / "model"), run)


def _title(run: Path) -> str:
    return f"model.init_from={str(run)!r}"


def _check_config(model: nn.Module, run: Path) -> None:
    """Check keys of the configuration that change no shape of a weight, such as the number of attention heads.

    Raises:
        UsageError: the run's trunk computes something else with the same weights.
    """
    found = _config(run)
    there, here = found.get("trunk", found), config_json(getattr(model, "trunk", model)) or {}
    kinds = there.get("model_type"), here.get("model_type")
    keys = [key for key in there.keys() & here.keys() if _NOT_IN_SHAPES.search(key) and not _OF_HEADS.match(key)]
    differ = ["model_type"] if kinds[0] != kinds[1] else sorted(key for key in keys if there[key] != here[key])
    if differ:
        values = "".join(f"\n  {key}: {there.get(key)!r} there, {here.get(key)!r} in this recipe" for key in differ)
        raise UsageError(f"{_title(run)}: its model has another configuration; give both the same:{values}")


def _config(run: Path) -> dict[str, Any]:
    file = run / "model" / "config.json"
    if not file.exists():
        raise UsageError(f"{_title(run)}: there is no {file}; give a run directory that has finished")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _check_section(settings: Section, run: Path) -> None:
    """Check settings of a model of rankzero that change no shape of a weight.

    Raises:
        UsageError: the run trained another kind of model, or one with other values.
    """
    kind = getattr(settings, "kind", "")
    try:
        there = type(settings).model_validate(read_yaml(run / "recipe.yaml").get("model"))
    except (ValidationError, AttributeError):
        raise UsageError(f"{_title(run)}: its recipe.yaml has no model of kind {kind}") from None
    for key in _OWN_KEYS:
        if (was := getattr(there, key, None)) != (now := getattr(settings, key, None)):
            raise UsageError(f"{_title(run)}: model.{key} is {was} there and {now} in this recipe: give both the same")


@torch.no_grad()
def _copy(model: nn.Module, weights: Mapping[str, Tensor], run: Path) -> None:
    """Copy all weights that both have.

    Raises:
        UsageError: the trunks have other weights; names one of them.
    """
    prefix = trunk_prefix(model) or ""
    fixed = constants(model)
    places = {**dict(model.named_parameters()), **fixed}
    source = _names_there(places, weights, prefix)
    heads = {name for name in places if not name.startswith(prefix) or ".pooler." in name}
    if not _same_head(model, places, heads, source, weights, run):
        source = {name: there for name, there in source.items() if name not in heads}
    for name, p in places.items():
        there = source.get(name)
        if there is None or list(weights[there].shape) != list(p.shape):
            if name in heads or name in fixed:
                continue
            shape = "missing" if there is None else list(weights[there].shape)
            raise UsageError(
                f"{_title(run)}: {name} is {shape} there and {list(p.shape)} in this recipe's model: give both recipes "
                "the same model sizes and tokenizer"
            )
        p.copy_(weights[there])
    _refuse_left_over(source, weights, prefix, run)


def _names_there(places: Mapping[str, Any], weights: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return the name in the run for each weight that it has. Its trunk may have another prefix."""
    inner = [name.removeprefix(prefix) for name in places if name.startswith(prefix)]
    first = {f"{name.partition('.')[0]}." for name in weights}
    there = max([prefix, "", *sorted(first)], key=lambda p: sum(f"{p}{name}" in weights for name in inner))
    names = {name: there + name.removeprefix(prefix) if name.startswith(prefix) else name for name in places}
    return {name: other for name, other in names.items() if other in weights}


def _same_head(
    model: nn.Module,
    places: Mapping[str, Any],
    heads: set[str],
    source: Mapping[str, str],
    weights: Mapping[str, Tensor],
    run: Path,
) -> bool:
    """Return whether the run's head answers the same question: it has the same classes, or writes text. Log it."""
    if not heads:
        return True
    known, here = saved_labels(_config(run)), _classes(model)
    fits = all(name in source and weights[source[name]].shape == places[name].shape for name in heads)
    if fits and (has_lm_head(model) or here == known):
        log.info("%s: all weights are taken", _title(run))
        return True
    why = f": its classes are {known}, those of this recipe are {here}" if known and here and known != here else ""
    log.info("%s: the trunk is taken, and the head is new%s", _title(run), why)
    return False


def _classes(model: Any) -> list[str] | None:
    """Return the names of a classifier's classes in their order."""
    if (names := getattr(model, "names", None)) is not None:
        return list(names)
    config = getattr(model, "config", None)
    return saved_labels(config.to_dict()) if config is not None else None


def _refuse_left_over(source: Mapping[str, str], weights: Mapping[str, Tensor], prefix: str, run: Path) -> None:
    """Raise UsageError if the run's trunk has weights, such as further layers, that this model does not have."""
    taken, layers = set(source.values()), re.compile(r"(^|\.)\d+\.")
    roots = {there.partition(".")[0] for name, there in source.items() if name.startswith(prefix)}
    left = sorted(
        name for name in weights
        if name not in taken and name.partition(".")[0] in roots and layers.search(name) and ".pooler." not in name
    )  # fmt: skip
    if left:
        raise UsageError(
            f"{_title(run)}: its trunk has {len(left)} weights that this recipe's model does not have, "
            f"such as {left[0]}: give both recipes the same model sizes"
        )

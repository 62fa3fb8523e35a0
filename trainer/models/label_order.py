"""Classes of a pretrained head, in the order of the recipe's `task.labels`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainer.errors import UsageError

log = logging.getLogger("rankzero")

_GENERIC = re.compile(r"LABEL_\d+")  # what the library calls classes without a name
NEW_HEAD = "set model.pooling to cls, mean or max, which takes its trunk and a new head"
NO_HEAD = "give the model that it was fine-tuned from, which has no head"  # where nothing is pooled


def saved_labels(config: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes in a config.json in the order of their ids. None if it does not name them.

    Names that are numbers or truth values are compared as the texts that `task.labels` makes of them.
    """
    by_id = {int(i): _text(name) for i, name in (config.get("id2label") or {}).items()}
    if not _named(by_id.values()):  # some files have only the other direction, which the library ignores
        by_id = {int(i): _text(name) for name, i in (config.get("label2id") or {}).items()}
    return [by_id[i] for i in sorted(by_id)] if _named(by_id.values()) else None


def order_labels(
    model: nn.Module, saved: Sequence[str] | None, labels: Mapping[str, str], new: set[str], name: str
) -> None:
    """Reorder the rows of a pretrained head by the names of the classes.

    Args:
        model: a sequence classifier of the transformers library.
        saved: names of its classes in the order of its rows. None keeps the order.
        labels: `task.labels`: value in the files -> name of the class.
        new: names of parameters that are not pretrained. A new head has no order.
        name: of the model, for messages.

    Raises:
        UsageError: the names are not the same set.
    """
    found = last_linear(model)
    if saved is None or found is None or f"{found[0]}.weight" in new:
        return
    names, values = list(dict.fromkeys(labels.values())), list(labels)
    wanted = next((own for own in (names, values) if sorted(own) == sorted(saved)), None)
    if wanted is None or len(wanted) != len(names):
        raise UsageError(
            f"model.name={name!r} was trained on the classes {_shown(saved)}, and task.labels names {_shown(names)}: "
            f"give task.labels the same names (value in the files: name), or {new_head(model)}"
        )
    order = [saved.index(label) for label in wanted]
    if order == sorted(order):
        return
    _, layer = found
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None and len(tensor) == len(order):  # else its size is refused later
                tensor.copy_(tensor[order].clone())
    log.info("model.name=%r: rows of %s reordered by label name: %s", name, found[0], _shown(wanted))


def new_head(model: nn.Module) -> str:
    """Return what to change for a head of other classes."""
    return NO_HEAD if type(model).__name__.endswith("ForTokenClassification") else NEW_HEAD


def last_linear(model: Any) -> tuple[str, nn.Linear] | None:
    """Return the layer of the head that gives the logits, and its name."""
    trunk, found = model.base_model, None
    inside = set(trunk.modules()) if trunk is not model else set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module not in inside and module.out_features == model.config.num_labels:
            found = name, module
    return found


def _named(names: Any) -> bool:
    return bool(names) and not all(_GENERIC.fullmatch(name) for name in names)


def _text(name: Any) -> str:
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (" …" if len(names) > 8 else "")

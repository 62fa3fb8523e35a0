"""Pretrained weights of the transformers library, loaded only if all of the trunk arrives.

The library initializes weights that it does not find at random and reports them. Here the report is read. New heads are
the only weights that may be missing.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from trainer.errors import UsageError
from trainer.hub_paths import check_model_files, locate, suggestion
from trainer.models.sizes import NAMES

log = logging.getLogger("rankzero")

# Modules that wrap others while training and leave their name in saved weights: DDP, torch.compile, FSDP, DeepSpeed.
_WRAPPERS = r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
_UNREADABLE = (
    OSError, ValueError, AssertionError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, SafetensorError,
    UnpicklingError, ImportError,
)  # fmt: skip
SHOWN = 3  # names in a message


class Loaded(NamedTuple):
    """A model with its weights, and what of the library's report concerns heads.

    Attributes:
        model: fp32, in eval mode.
        new: names of parameters that are not in the files and were initialized: heads and poolers.
        mismatched: (name, shape in the files, shape in the model) of weights of another size.
    """

    model: nn.Module
    new: set[str]
    mismatched: list[tuple[str, Any, Any]]


class Gaps(NamedTuple):
    """What keeps weights from being those of a model.

    Attributes:
        missing: names of the trunk's parameters that are not in the files.
        layers: names in the files of layers that the model does not have.
    """

    missing: list[str]
    layers: list[str]


def load_weights(
    auto: Any,
    name: str,
    config: Any = None,
    *,
    title: str | None = None,
    asked: Iterable[str] = (),
    encoder: bool = False,
) -> Loaded:
    """Load a model with pretrained weights, fp32.

    Args:
        auto: AutoModel, AutoModelForSequenceClassification, …
        name: see `trainer.hub_paths`.
        config: of the model. By default that of the weights.
        title: of the model in messages, such as the key and its value.
        asked: keys of the configuration that the recipe sets. With a number of layers, upper layers may be left out.
        encoder: of an encoder-decoder only the encoder is used, so only its weights have to be there.

    Raises:
        UsageError: the files cannot be read, or trunk and files differ. Names counts, examples and a common prefix.
    """
    title = title or f"model {name!r}"
    drawn = torch.get_rng_state()
    model, report = _load(auto, name, title, config)
    gaps = find_gaps(model, report, encoder)
    if gaps.missing and (mapping := _renames(gaps.missing, report["unexpected_keys"], model)) is not None:
        torch.set_rng_state(drawn)  # a new head is then the one that unprefixed weights would get
        model, report = _load(auto, name, title, config, key_mapping=mapping.patterns)
        gaps = find_gaps(model, report, encoder)
        if any(gaps):
            title = f"{title} (read without {mapping.title})"
        else:
            log.info("%s: %s left out of the names of its weights", title, mapping.title)
    shortened = any(key in NAMES["layers"] for key in asked)
    if gaps.missing or (gaps.layers and not shortened):
        raise UsageError(_explain(title, model, report, gaps))
    new = {key for key in report["missing_keys"] if key in dict(model.named_parameters())}
    _log_differences(title, model, report, gaps, set() if encoder else new)
    model.new_weights = frozenset(new)  # an adapter trains them completely
    return Loaded(model, new, sorted(report["mismatched_keys"]))


def find_gaps(model: Any, report: dict[str, Any], encoder: bool = False) -> Gaps:
    """Compare the library's report with the trunk of a model. Poolers and constants may be missing."""
    own = dict(model.named_parameters(remove_duplicate=False))
    trunk, prefix = _trunk(model)
    used = encoder_of(model) if encoder else trunk
    needed = {id(p) for p in used.parameters()}
    head = model.get_output_embeddings() if prefix == "" else None
    if head is not None:
        needed -= {id(p) for p in head.parameters()} - {id(p) for p in model.get_input_embeddings().parameters()}
    missing = [
        key for key in report["missing_keys"]
        if key in own and id(own[key]) in needed and not _may_be_missing(model, key.removeprefix(prefix))
    ]  # fmt: skip
    layers = [key for key in report["unexpected_keys"] if _beyond_layers(trunk, _inner(model, key))]
    return Gaps(sorted(missing), sorted(layers))


def _may_be_missing(model: Any, inner: str) -> bool:
    """Return whether it is a pooler, or a constant: the library names Marian's sinusoids only with a prefix."""
    full = f"{model.base_model_prefix}.{inner}"
    patterns = model._keys_to_ignore_on_load_missing or ()
    return inner.startswith("pooler.") or any(re.search(pattern, full) for pattern in patterns)


def encoder_of(model: Any) -> nn.Module:
    """Return the encoder of an encoder-decoder, else the model. T5's configuration may hide that it is one."""
    halves = (getattr(model, name, None) for name in ("encoder", "decoder"))
    two = model.config.is_encoder_decoder or all(isinstance(half, nn.Module) for half in halves)
    encoder: nn.Module = model.get_encoder() if two else model
    return encoder


def _load(auto: Any, name: str, title: str, config: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    place, revision = locate(name)
    try:
        model, report = auto.from_pretrained(
            place, revision=revision, config=config, trust_remote_code=False, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True, **options,
        )  # fmt: skip
    except _UNREADABLE as error:
        if "allocate" in str(error):  # out of memory is handled by the caller of the run
            raise
        check_model_files(name)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "Unrecognized configuration class" in reason:
            reason = f"the library has no {auto.__name__} of this architecture; choose another one, or another task"
        raise UsageError(f"{title} cannot be loaded: {reason}. {suggestion(name)}") from error
    if report["error_msgs"]:
        raise UsageError(f"{title} cannot be loaded: {report['error_msgs'][0]}")
    return model, report


def _trunk(model: Any) -> tuple[nn.Module, str]:
    """Return the model without its head, and what the names of the trunk's parameters begin with."""
    trunk = model.base_model
    return trunk, "" if trunk is model else f"{model.base_model_prefix}."


def _inner(model: Any, key: str) -> str:
    return key.removeprefix(f"{model.base_model_prefix}.") if model.base_model_prefix else key


def _beyond_layers(trunk: nn.Module, name: str) -> bool:
    """Return whether a name belongs to a layer behind the last one of a list of layers of the trunk."""
    module: Any = trunk
    for part in name.split("."):
        if isinstance(module, nn.ModuleList) and part.isdigit() and int(part) >= len(module):
            return True
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return False
    return False


# -- prefixes ----------------------------------------------------------------------------------------------------------


class _Renames(NamedTuple):
    title: str  # for messages: the prefix 'module.'
    patterns: dict[str, str]  # for the library: regular expression -> what takes its place


def _renames(missing: list[str], unexpected: Iterable[str], model: Any) -> _Renames | None:
    """Return the one change of the files' names that finds most missing ones, if there is exactly one."""
    names = sorted(unexpected)
    clean = {re.sub(rf"(?:^|(?<=\.)){_WRAPPERS}", "", name): name for name in names}
    wrapped = {name for cleaned, name in clean.items() if cleaned != name}
    prefixes = _prefixes(missing, clean, model)
    if not prefixes:
        return None
    (prefix, explained), *others = prefixes.most_common(2)
    foreign = any(_is_other_architecture(part, model) for part in prefix.split("."))
    if foreign or explained * 2 < len(missing) or (others and others[0][1] == explained):
        return None
    patterns = {rf"^(?:{_WRAPPERS})+": "", rf"\.(?:{_WRAPPERS})+": "."} if wrapped else {}
    patterns |= {f"^{re.escape(prefix)}": ""} if prefix else {}
    inside = next((m[0] for name in sorted(wrapped) if (m := re.search(_WRAPPERS, name))), "")
    shown = _shown_prefix(missing, names, model) or inside + prefix
    return _Renames(f"the prefix {shown!r}", patterns) if patterns else None


def _prefixes(missing: list[str], names: Iterable[str], model: Any) -> Counter[str]:
    """Count the prefixes of the missing names in the files, the shortest for each name."""
    heads: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            heads.setdefault(".".join(parts[i:]), set()).add("".join(f"{part}." for part in parts[:i]))
    counts: Counter[str] = Counter()
    for key in missing:
        found = heads.get(key) or heads.get(_inner(model, key), set())
        counts.update(found)
    return counts


def _shown_prefix(missing: list[str], names: Iterable[str], model: Any) -> str:
    """Return the prefix as it is written in the files, wrappers included. Empty if they are inside the names only."""
    found = _prefixes(missing, names, model)
    return found.most_common(1)[0][0] if found else ""


def _is_other_architecture(part: str, model: Any) -> bool:
    """Return whether a part of a name says that the weights are of another architecture than the configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    own = {model.base_model_prefix, model.config.model_type}
    return part.replace("_", "-") in {kind.replace("_", "-") for kind in CONFIG_MAPPING_NAMES} and part not in own


# -- messages ----------------------------------------------------------------------------------------------------------


def _explain(title: str, model: Any, report: dict[str, Any], gaps: Gaps) -> str:
    trunk, prefix = _trunk(model)
    stack = _stack_of(trunk, gaps, prefix, model)
    if stack is not None:
        where, here, there, key = stack
        what = (
            f"{len(gaps.missing)} weights are missing" if gaps.missing else f"{len(gaps.layers)} weights are left over"
        )
        return (
            f"{title}: its files have {there} layers in {where}, and its configuration has {here} ({key}={here}): "
            f"{what}, such as {(gaps.missing or gaps.layers)[0]}. Set {key} to {there} in its config.json, or "
            f"model.config={{{key}: {there}}}"
        )
    if not gaps.missing:
        return (
            f"{title}: its files have {len(gaps.layers)} weights of layers that its configuration does not "
            f"have, such as {_listed(gaps.layers)}. Correct the number of layers in its config.json"
        )
    total = len(list(trunk.parameters()))
    others = sorted(report["unexpected_keys"])
    text = (
        f"{title}: {len(gaps.missing)} of {total} weights of {type(trunk).__name__} are not in its files, "
        f"such as {_listed(gaps.missing)}. "
    )
    if others:
        text += f"The files have {len(others)} other weights, such as {_listed(others)}. "
        if counts := _prefixes(gaps.missing, others, model):
            text += f"Prefixes that would explain some: {', '.join(map(repr, sorted(counts)[:SHOWN]))}. "
    return text + "Save the weights of the model alone with its save_pretrained, or give the config.json they belong to"


def _stack_of(trunk: Any, gaps: Gaps, prefix: str, model: Any) -> tuple[str, int, int, str] | None:
    """Return (list of layers, layers here, layers in the files, key) where the number of layers explains all gaps."""
    keys = [key for key in NAMES["layers"] if isinstance(getattr(trunk.config, key, None), int)]
    for where, module in trunk.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        numbers = re.compile(rf"{re.escape(where)}\.(\d+)\.")
        found = [numbers.match(key.removeprefix(prefix)) for key in gaps.missing]
        found += [numbers.match(_inner(model, key)) for key in gaps.layers]
        if not all(found):
            continue
        here, indices = len(module), {int(m[1]) for m in found if m}
        there = max(indices) + 1 if gaps.layers else min(indices)
        key = next((key for key in keys if getattr(trunk.config, key) == here), None)
        if key is not None and indices == set(range(min(here, there), max(here, there))) and there:
            return where, here, there, key
    return None


def _log_differences(title: str, model: Any, report: dict[str, Any], gaps: Gaps, new: set[str]) -> None:
    if new:
        log.info("%s: new weights, not in its files: %s", title, _listed(sorted(new), 8))
    if gaps.layers:
        log.info("%s: upper layers left out, as model.config asks: %s", title, _listed(gaps.layers))
    trunk, _ = _trunk(model)
    children = {child for child, module in trunk.named_children() if next(module.parameters(), None) is not None}
    left = {key for key in report["unexpected_keys"] if _inner(model, key).partition(".")[0] in children}
    if left := left - set(gaps.layers):
        log.warning(
            "%s: %d weights of its files have no place in %s and are not used, such as %s",
            title, len(left), type(trunk).__name__, _listed(sorted(left)),
        )  # fmt: skip


def _listed(names: list[str], most: int = SHOWN) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")

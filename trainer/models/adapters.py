"""Adapters of the PEFT library: the pretrained weights are frozen, and few new ones in their layers are trained.

PEFT replaces layers in place, so that type, configuration and forward of the model stay. Besides the adapter, new
weights (the head of a classifier) are trained. These two are all that checkpoints store. The base is referenced by
name, revision and hash. At the end the adapter is merged into the base, which then has its own names and layers again.

PEFT is an optional dependency: it is imported only if the recipe has `model.adapter`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import tensors
from trainer.errors import CheckpointError, UsageError
from trainer.hub_paths import PACKAGE, folder_of, locate, weight_files
from trainer.models.classifiers import has_lm_head, trunk_prefix
from trainer.models.configs import AdapterConfig
from trainer.models.pretrained import replace_dropout
from trainer.redaction import origin
from trainer.stages import digest, file_facts

if TYPE_CHECKING:
    from trainer.recipe import Recipe

ADAPTER = "default"  # the name of the adapter inside of PEFT's layers
WEIGHTS = "adapter_model.safetensors"
INSIDE_PEFT = "base_model.model."  # what PEFT puts before the names of the wrapped model's parameters
SHOWN = 8  # names of layers in a message


def adapter_of(recipe: Recipe) -> AdapterConfig | None:
    """Return `model.adapter` of a recipe. None for a model whose own weights are trained.

    Raises:
        UsageError: PEFT is not installed.
    """
    settings: AdapterConfig | None = getattr(recipe.model, "adapter", None)
    if settings is not None and importlib.util.find_spec("peft") is None:
        raise UsageError("model.adapter needs PEFT, which is not installed: pip install 'rankzero[adapters]'")
    return settings


def adapted_part(model: nn.Module) -> nn.Module:
    """Return the model of the transformers library that has the adapter: a trunk, or the model itself."""
    trunk = getattr(model, "trunk", None)
    return trunk if isinstance(trunk, nn.Module) else model


def is_adapted(model: nn.Module) -> bool:
    return hasattr(adapted_part(model), "peft_config")


def stored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a checkpoint stores: all of them, or without the base of an adapter."""
    stored = getattr(model, "stored_names", None) if is_adapted(model) else None
    return {name: p for name, p in model.named_parameters() if stored is None or name in stored}


# -- before the training -----------------------------------------------------------------------------------------------


def inject(model: nn.Module, settings: AdapterConfig) -> nn.Module:
    """Freeze a pretrained model except for its new weights, and add an adapter. The caller has seeded the generator.

    Raises:
        UsageError: no layer has one of the names in `targets`, or the adapter cannot be published.
    """
    from peft import inject_adapter_in_model

    part: Any = adapted_part(model)
    _check_loadable(part)
    whole = _trained_modules(part)
    with _quiet():
        try:
            inject_adapter_in_model(_peft_config(part, settings, whole), part, ADAPTER)
        except ValueError as error:
            layers = sorted({name.rpartition(".")[2] for name, m in part.named_modules() if _is_linear(m)})
            raise UsageError(
                f"model.adapter.targets={settings.targets!r} does not fit {type(part).__name__}: "
                f"{str(error).splitlines()[0]} Its linear layers are named {', '.join(layers[:SHOWN])}"
            ) from error
    if settings.kind == "lora":
        _leave_casts_to_autocast(part)
    for name in whole:
        part.get_submodule(name).requires_grad_(True)
    replace_dropout(part)  # that of the project, as in the rest of the model
    anything: Any = model
    anything.stored_names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return model


def _leave_casts_to_autocast(part: nn.Module) -> None:
    """Turn off PEFT's own casts of inputs of LoRA. In bf16 they cost a tenth of a step, and autocast undoes them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in part.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.cast_input_dtype_enabled = False


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # of GPT-2


def _check_loadable(part: Any) -> None:
    """Raise UsageError if stock PEFT could not put the adapter on the base, which it loads by an Auto class."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = {name for names in MODEL_MAPPING_NAMES.values() for name in ((names,) if isinstance(names, str) else names)}
    if trunk_prefix(part) is None and not has_lm_head(part) and type(part).__name__ not in names:
        raise UsageError(
            f"model.adapter: model.pooling uses {type(part).__name__}, a part of the base that no Auto class "
            "loads; set model.pooling=auto"
        )


def _trained_modules(part: Any) -> list[str]:
    """Return the modules of a model that are trained completely: a new head, and others that the base lacks."""
    prefix, found = trunk_prefix(part), set()
    for name, _ in part.named_parameters():
        in_head = prefix is not None and not name.startswith(prefix) and not has_lm_head(part)
        if in_head or name in getattr(part, "new_weights", ()):
            found.add(name.partition(".")[0] if in_head else name.rpartition(".")[0])
    return sorted(found)


def _peft_config(part: Any, settings: AdapterConfig, whole: list[str]) -> Any:
    """Return PEFT's configuration. With targets None, PEFT chooses the layers that it knows for the architecture."""
    from peft import IA3Config, LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEED_FORWARD
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA

    kind, known = part.config.model_type, IA3 if settings.kind == "ia3" else LORA
    targets: Any = settings.targets
    if targets == "auto":
        targets = None if kind in known else "all-linear"
    common = {"target_modules": targets, "exclude_modules": whole or None, "task_type": _task_type(part)}
    if settings.kind == "ia3":
        inputs = [name for name in FEED_FORWARD.get(kind, ()) if isinstance(targets, list) and name in targets]
        return IA3Config(**common, feedforward_modules=None if targets is None else inputs)
    alpha: Any = settings.alpha  # PEFT declares an integer, and takes any number
    dora = settings.kind == "dora"
    return LoraConfig(**common, r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, use_dora=dora)


def _task_type(part: nn.Module) -> str:
    """Return by which class stock PEFT wraps the base, such as SEQ_CLS."""
    from transformers.models.auto import modeling_auto as auto

    name = type(part).__name__
    for task_type, names in (
        ("SEQ_CLS", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("TOKEN_CLS", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
        ("CAUSAL_LM", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("SEQ_2_SEQ_LM", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    ):
        if name in names.values():
            return task_type
    return "FEATURE_EXTRACTION"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of PEFT about settings that it corrects."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", "You have passed exclude_modules")
        yield


# -- the base ----------------------------------------------------------------------------------------------------------


def base_of(recipe: Recipe) -> dict[str, Any] | None:
    """Return the facts of the base of a recipe's adapter. None without an adapter."""
    settings: Any = recipe.model
    return None if adapter_of(recipe) is None else base_facts(settings.name)


def base_facts(name: str) -> dict[str, Any]:
    """Return name, revision and hash of pretrained weights. The hash is that of the file, or of the hashes of several.

    Raises:
        UsageError: there are no weight files.
    """
    folder = folder_of(name)
    files = [] if folder is None else weight_files(folder)
    if folder is None or not files:
        raise UsageError(f"model.name={name!r} has no weight files, which an adapter refers to")
    hashes = {file.name: file_facts(file)["sha256"] for file in files}
    sha256 = next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes)
    return {"name": _public_name(name), "revision": _revision(name, folder), "sha256": sha256}


def _public_name(name: str) -> str:
    """Return a name without its revision, and of a path only the last component."""
    return str(origin(name if Path(name).exists() else name.partition("@")[0]))


def _revision(name: str, folder: Path) -> str | None:
    """Return the commit of a Hub id, or the version of a package."""
    if name.startswith(PACKAGE):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name.removeprefix(PACKAGE).partition("/")[0])
        return None
    return None if Path(locate(name)[0]).is_dir() else folder.name


def check_base(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Compare the base that an adapter was trained on with the one that was loaded.

    Raises:
        CheckpointError: they have other weights. Names both hashes.
    """
    if saved.get("sha256") != now["sha256"]:
        raise CheckpointError(
            f"{where} was trained on other base weights: {saved.get('name')} had SHA-256 {saved.get('sha256')}, and "
            f"{now['name']} has {now['sha256']}. Restore the weights of revision {saved.get('revision')} (a Hub id can "
            "name it: id@revision), or train again with --fresh (which keeps this run)"
        )


# -- after the training ------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the adapter to the weights of the base, and put the layers of the base back. Nothing is done without one."""
    if not is_adapted(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    part: Any = adapted_part(model)
    for parent in list(part.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BaseTunerLayer):
                merging: Any = layer
                merging.merge(safe_merge=True)
                setattr(parent, name, merging.get_base_layer())
    del part.peft_config
    model.requires_grad_(True)


def write_adapter(model: nn.Module, folder: Path, base: dict[str, Any]) -> None:
    """Write the adapter and the new weights as PEFT reads them, before they are merged.

    Args:
        model: adapted.
        folder: an empty one.
        base: its `base_facts`.
    """
    from peft import get_peft_model_state_dict

    part: Any = adapted_part(model)
    state: dict[str, Tensor] = get_peft_model_state_dict(part, adapter_name=ADAPTER, save_embedding_layers=False)
    whole = _trained_modules(part)
    for module in whole:
        inner = part.get_submodule(module).named_parameters()
        state |= {f"{module}.{name}": p for name, p in inner}
    tensors.write(folder / WEIGHTS, {f"{INSIDE_PEFT}{name}": tensor for name, tensor in state.items()})
    config = part.peft_config[ADAPTER]
    config.modules_to_save = whole or None
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(names := getattr(config, key, None), set):
            setattr(config, key, sorted(names))
    config.base_model_name_or_path, config.revision = base["name"], base["revision"]
    config.inference_mode = True
    config.save_pretrained(folder)


def counts(model: nn.Module) -> tuple[int, int]:
    """Return the trained parameters of an adapted model, and all of them."""
    return sum(p.numel() for p in stored_parameters(model).values()), sum(p.numel() for p in model.parameters())

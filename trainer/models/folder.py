"""A folder with a trained model, in the layout of stock libraries where one of their classes computes the same.

    config.json  model.safetensors       for `AutoModel….from_pretrained`
    modules.json  1_Pooling/  2_Dense/   pooling and head of a classifier, for `SentenceTransformer`
    rankzero.safetensors                 weights that model.safetensors does not hold bit for bit

`read_folder` returns the weights by their names in rankzero. Without a class of a stock library, model.safetensors has
these names itself, and `model_type` begins with "rankzero-".
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import tensors
from trainer.files import write_json
from trainer.models.stock import stock_form, weights_of

WEIGHTS = "model.safetensors"
KEPT = "rankzero.safetensors"
KEPT_KEYS = ("calibration",)  # of the configuration, for rankzero only
HEAD, POOLING, MODULES = "2_Dense", "1_Pooling", "modules.json"
HEAD_NAMES = {"head.weight": ["linear.weight"], "head.bias": ["linear.bias"]}


def write_folder(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    ids: Mapping[str, int | None],
    max_length: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model with its weights to an empty folder.

    Args:
        folder: is there.
        model: is not changed.
        config: of rankzero, see `Task.model_config`.
        ids: the special tokens of its tokenizer.
        max_length: at which sentence-transformers truncates texts.
        dtype: of the written weights; by default that of the model.
    """
    form, weights = stock_form(model, config, ids), weights_of(model)
    kind = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    if isinstance(form, str):
        _write(folder / WEIGHTS, weights, dtype)
        write_json(folder / "config.json", {**config, **kind})
        return
    parts: dict[str, Tensor] = {}
    for name, places in form.names.items():
        parts |= zip(places, weights[name].chunk(len(places)), strict=True)
    same = all(places == [name] for name, places in form.names.items()) and not form.fixed
    _write(folder / WEIGHTS, {**form.fixed, **parts}, dtype, None if same else form.names)
    if form.kept:
        _write(folder / KEPT, {name: weights[name] for name in form.kept}, dtype)
    if form.pooling is not None:
        _write_modules(folder, form.pooling, weights, max_length, dtype)
    own = {key: config[key] for key in KEPT_KEYS if key in config}
    write_json(folder / "config.json", {**form.config, **own, **kind})


def _write(
    path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None, names: Mapping[str, list[str]] | None = None
) -> None:
    cast = {n: t.detach().to(dtype) if dtype and t.is_floating_point() else t for n, t in weights.items()}
    tensors.write(path, cast, names=names)


def _write_modules(
    folder: Path, pooling: str, weights: Mapping[str, Tensor], max_length: int, dtype: torch.dtype | None
) -> None:
    """Write pooling and head of a classifier as modules of sentence-transformers."""
    classes, width = weights["head.weight"].shape
    steps = [("", "Transformer"), (POOLING, "Pooling"), (HEAD, "Dense")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    for part in (POOLING, HEAD):
        (folder / part).mkdir()
    _write(folder / HEAD / WEIGHTS, {place: weights[name] for name, (place,) in HEAD_NAMES.items()}, dtype, HEAD_NAMES)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{key}": name == pooling for name, key in modes.items()}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    dense = {"in_features": width, "out_features": classes, "bias": True, **identity}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width, **flags})
    write_json(folder / HEAD / "config.json", dense)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / MODULES, modules)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold weights: of the model, its head, and those kept for rankzero."""
    return sorted([*folder.glob("model*.safetensors*"), *folder.glob(f"{HEAD}/*.safetensors"), *folder.glob(KEPT)])


def read_folder(folder: Path) -> Mapping[str, Tensor]:
    """Return the weights of a model by their names in rankzero. Tensors are read on access where possible.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    more = [path for path in (folder / HEAD / WEIGHTS, folder / KEPT) if path.exists()]
    return ChainMap(*(dict(tensors.read(path)) for path in more), dict(tensors.read(folder / WEIGHTS)))

"""Read and write tensors by name in safetensors files, sharded above a gigabyte with the index of the Hugging Face Hub.

    model.safetensors                               or
    model-00001-of-00003.safetensors …  model.safetensors.index.json

Callers always give the name model.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import CheckpointError

SHARD_BYTES = 1_000_000_000


def constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers of a model by name, such as the `final_logits_bias` of Marian."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def exists(path: Path) -> bool:
    """Return whether there are tensors under this name, in one file or several."""
    return path.exists() or index_of(path).exists()


def write(path: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int | None = None) -> None:
    """Write tensors, readable for everyone who may read the folder (the library makes files private).

    Args:
        path: NAME.safetensors in a folder that holds none of that name yet.
        tensors: on any device. A tensor larger than a shard gets a separate file.
        shard_bytes: the most bytes of one file; `SHARD_BYTES` by default.
    """
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=pattern, max_shard_size=shard_bytes or SHARD_BYTES
    )
    mode = path.parent.stat().st_mode & 0o666
    for name, keys in plan.filename_to_tensors.items():
        file = path.with_name(name)
        save_file({key: tensors[key].detach().cpu().contiguous() for key in keys}, file)
        file.chmod(mode)
    if not tensors:
        save_file({}, path)
        path.chmod(mode)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        index_of(path).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        index_of(path).chmod(mode)


class TensorFile(Mapping[str, Tensor]):
    """The tensors under a name, each read on access. Close it, or use it in a `with`.

    Raises:
        CheckpointError: no file, an unreadable file, or an index that names files outside the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for file in _parts(path):
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
                self._files |= dict.fromkeys(opened.keys(), opened)
        except (OSError, ValueError, SafetensorError) as error:
            self.close()
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:  # that of `Mapping` would read the tensor
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor without reading it."""
        return list(self._files[name].get_slice(name).get_shape())

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> dict[str, Tensor]:
    """Return all tensors under a name.

    Raises:
        CheckpointError: as `TensorFile`.
    """
    with TensorFile(path) as file:
        return dict(file)


def _parts(path: Path) -> list[Path]:
    if path.exists() or not index_of(path).exists():
        return [path]
    names = sorted(set(json.loads(index_of(path).read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index_of(path)} names {name!r}, which is not in its folder")
    return [path.with_name(name) for name in names]

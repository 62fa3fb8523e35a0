"""Read and write tensors by name in safetensors files, sharded above a gigabyte with the index of the Hugging Face Hub.

    model.safetensors                               or
    model-00001-of-00003.safetensors …  model.safetensors.index.json

Callers always give the name model.safetensors. A file may hold tensors under the names of another library. Its metadata
then maps the names of rankzero to those, so that the tensors are read back bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import CheckpointError

SHARD_BYTES = 1_000_000_000
NAMES = "rankzero"  # key of the metadata: JSON, name -> the names in the file whose tensors are concatenated


def constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers of a model by name, such as the `final_logits_bias` of Marian."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def exists(path: Path) -> bool:
    """Return whether there are tensors under this name, in one file or several."""
    return path.exists() or index_of(path).exists()


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    shard_bytes: int | None = None,
    names: Mapping[str, list[str]] | None = None,
) -> None:
    """Write tensors, readable for everyone who may read the folder (the library makes files private).

    Args:
        path: NAME.safetensors in a folder that holds none of that name yet.
        tensors: on any device. A tensor larger than a shard gets a separate file.
        shard_bytes: the most bytes of one file; `SHARD_BYTES` by default.
        names: of rankzero, each with the names of the tensors that are its parts along the first dimension. Other
            tensors are not read back.
    """
    metadata = {"format": "pt", **({} if names is None else {NAMES: json.dumps(names)})}
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=pattern, max_shard_size=shard_bytes or SHARD_BYTES
    )
    mode = path.parent.stat().st_mode & 0o666
    for name, keys in plan.filename_to_tensors.items():
        file = path.with_name(name)
        save_file({key: tensors[key].detach().cpu().contiguous() for key in keys}, file, metadata)
        if len(metadata) > 1:
            _sort_metadata(file)
        file.chmod(mode)
    if not tensors:
        save_file({}, path, metadata)
        path.chmod(mode)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        index_of(path).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        index_of(path).chmod(mode)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata in a header, whose order the library draws at random, so that equal files are equal bytes."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "only the order has changed"
        opened.seek(8)
        opened.write(text.ljust(size))


class TensorFile(Mapping[str, Tensor]):
    """The tensors under a name, each read on access. Close it, or use it in a `with`.

    Raises:
        CheckpointError: no file, an unreadable file, or an index that names files outside the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._files: dict[str, Any] = {}
        names: str | None = None
        try:
            for file in _files(path):
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
                self._files |= dict.fromkeys(opened.keys(), opened)
                names = (opened.metadata() or {}).get(NAMES, names)
            self._parts = _parts_by_name(names, self._files)
        except (OSError, ValueError, SafetensorError) as error:
            self.close()
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        found = [self._files[part].get_tensor(part) for part in self._parts[name]]
        return torch.cat(found) if len(found) > 1 else found[0]

    def __contains__(self, name: object) -> bool:  # that of `Mapping` would read the tensor
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor without reading it."""
        shapes = [list(self._files[part].get_slice(part).get_shape()) for part in self._parts[name]]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if len(shapes) > 1 else shapes[0]

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


def _parts_by_name(names: str | None, held: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the tensors of the file by name of rankzero, from its metadata if they have other names there.

    Raises:
        ValueError: the metadata names a tensor that the file does not have.
    """
    if names is None:
        return {name: [name] for name in held}
    parts: dict[str, list[str]] = json.loads(names)
    lacking = [part for found in parts.values() for part in found if part not in held]
    if lacking or not all(parts.values()):
        raise ValueError(f"its metadata names {lacking[:3]}, which are not in it")
    return parts


def _files(path: Path) -> list[Path]:
    if path.exists() or not index_of(path).exists():
        return [path]
    names = sorted(set(json.loads(index_of(path).read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index_of(path)} names {name!r}, which is not in its folder")
    return [path.with_name(name) for name in names]

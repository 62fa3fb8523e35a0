"""Read and write tensors by name in safetensors files, sharded above a gigabyte with the index of the Hugging Face Hub.

    model.safetensors                               or
    model-00001-of-00003.safetensors …  model.safetensors.index.json

Callers always give the name model.safetensors. A file may hold tensors under the names of another library. Its metadata
then maps the names of rankzero to those, so that the tensors are read back bit for bit.

A file is written tensor by tensor: the header first, then each tensor in the order of the library, which writes the
same bytes but needs all tensors at once. So a tensor may be computed when its turn comes (`LazyTensor`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from huggingface_hub import get_torch_storage_id, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.errors import CheckpointError

SHARD_BYTES = 1_000_000_000
NAMES = "rankzero"  # key of the metadata: JSON, name -> the names in the file whose tensors are concatenated
DTYPES = {  # in the order of the library's files, last first
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_RANK_OF = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


class LazyTensor:
    """A tensor that is computed when it is written, such as one that all ranks gather.

    Args:
        shape, dtype: of it.
        compute: returns it.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, compute: Callable[[], Tensor]) -> None:
        self.shape, self.dtype, self._function = shape, dtype, compute

    def compute(self) -> Tensor:
        tensor = self._function().detach()
        assert (tensor.shape, tensor.dtype) == (self.shape, self.dtype), (tensor.shape, tensor.dtype)
        return tensor


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor in fp32, of whose flattened numbers each rank has a range. The ranges follow each other as the ranks do.

    Attributes:
        shape: of the whole tensor.
        start, count: the range of this rank. It is empty on a rank whose numbers another one has, too.
        part: returns its numbers, flat, on any device.
    """

    shape: torch.Size
    start: int
    count: int
    part: Callable[[], Tensor]
    dtype = torch.float32


Stored = Tensor | LazyTensor
Distributed = Tensor | ShardedTensor  # a tensor that every rank has, or has a range of
Sized = Tensor | LazyTensor | ShardedTensor


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
    tensors: Mapping[str, Stored],
    *,
    shard_bytes: int | None = None,
    names: Mapping[str, list[str]] | None = None,
) -> dict[str, str]:
    """Write tensors one after another, flushed, and readable for everyone who may read the folder.

    Args:
        path: NAME.safetensors in a folder that holds none of that name yet.
        tensors: on any device. A tensor larger than a shard gets a separate file.
        shard_bytes: the most bytes of one file; `SHARD_BYTES` by default.
        names: of rankzero, each with the names of the tensors that are its parts along the first dimension. Other
            tensors are not read back.

    Returns: the SHA-256 of each file of tensors by its name.
    """
    metadata = {} if names is None else {NAMES: json.dumps(names)}
    files = plan_files(path.name, tensors, shard_bytes)
    content = {file: {key: tensors[key] for key in keys} for file, keys in files.items()}
    hashes = write_files(path.parent, content, metadata)
    if path.name not in files:
        write_index(path, files, sum(map(size_of, tensors.values())))
    return hashes


def plan_files(name: str, tensors: Mapping[str, Sized], shard_bytes: int | None = None) -> dict[str, list[str]]:
    """Return the names of the tensors in each file that `name` is written as. Those that share memory stay together."""
    sizes: Counter[Any] = Counter()
    for tensor in tensors.values():
        sizes[_memory_of(tensor)] += size_of(tensor)
    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_id=_memory_of,
        get_storage_size=lambda tensor: sizes[_memory_of(tensor)],  # its storage may be a mapped file
        filename_pattern=f"{Path(name).stem}{{suffix}}{Path(name).suffix}",
        max_shard_size=shard_bytes or SHARD_BYTES,
    )
    return plan.filename_to_tensors or {name: []}  # there is a file without tensors, too


def write_files(
    folder: Path, files: Mapping[str, Mapping[str, Stored]], metadata: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Write tensors by file, as `write` does. Return the SHA-256 of each file."""
    mode, hashes = folder.stat().st_mode & 0o666, {}
    for name, tensors in files.items():
        hashes[name] = _write_file(folder / name, tensors, {"format": "pt", **metadata})
        (folder / name).chmod(mode)
    return hashes


def write_index(path: Path, files: Mapping[str, list[str]], size: int) -> None:
    """Write the index of `size` bytes of tensors in several files, given the names of the tensors in each file."""
    weight_map = {name: file for file, names in files.items() for name in names}
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2)
    index_of(path).write_text(text + "\n", encoding="utf-8")
    index_of(path).chmod(path.parent.stat().st_mode & 0o666)


def _memory_of(tensor: Sized) -> Any:
    return get_torch_storage_id(tensor) if isinstance(tensor, Tensor) else id(tensor)


def size_of(tensor: Sized) -> int:
    """Return the bytes of a whole tensor."""
    return tensor.shape.numel() * tensor.dtype.itemsize


def in_order(tensors: Mapping[str, Sized]) -> list[str]:
    """Return names in the order of the library's files: by type, so that all numbers are aligned, and by name."""
    return sorted(tensors, key=lambda name: (-_RANK_OF[tensors[name].dtype], name.encode()))


def _write_file(file: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> str:
    """Write one file, and return its SHA-256. Tensors are written while later ones are computed.

    Those that wait and the one that is computed take at most twice the largest. So ranks that compute together are not
    held up by the one that writes a large tensor.
    """
    order, sizes = in_order(tensors), {name: size_of(tensor) for name, tensor in tensors.items()}
    hashed = hashlib.sha256()
    pending: deque[tuple[int, Future[None]]] = deque()
    with file.open("wb") as opened, ThreadPoolExecutor(1, thread_name_prefix="tensors") as thread:

        def put(data: Any) -> None:
            hashed.update(data)
            opened.write(data)

        put(_header({name: tensors[name] for name in order}, metadata))
        for name in order:
            while pending and sum(size for size, _ in pending) + sizes[name] > 2 * max(sizes.values()):
                pending.popleft()[1].result()
            pending.append((sizes[name], thread.submit(put, _bytes_of(tensors[name]))))
        while pending:
            pending.popleft()[1].result()
        _flush(opened)
    return hashed.hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file as the library writes it, with sorted metadata: the library draws their order."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + size_of(tensor)
        header[name] = {"dtype": _NAME_OF[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Stored) -> Any:
    """Return the numbers of a tensor as a buffer. It is not a copy if they are contiguous on the CPU."""
    found = tensor.compute() if isinstance(tensor, LazyTensor) else tensor.detach()
    return found.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class TensorFile(Mapping[str, Tensor]):
    """The tensors under a name. Close it, or use it in a `with`.

    A tensor is a view of the mapped file: only rows that are used are read. It has its own mapping, so that what was
    read of it leaves memory with it.

    Raises:
        CheckpointError: no file, an unreadable file, or an index that names files outside the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        names: str | None = None
        try:
            for file in _files(path):
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
                self._files |= dict.fromkeys(opened.keys(), opened)
                self._paths |= dict.fromkeys(opened.keys(), file)
                names = (opened.metadata() or {}).get(NAMES, names)
            self._parts = _parts_by_name(names, self._files)
        except (OSError, ValueError, SafetensorError) as error:
            self.close()
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        found = [self._mapped(part) for part in self._parts[name]]
        return torch.cat(found) if len(found) > 1 else found[0]

    def _mapped(self, part: str) -> Tensor:
        with safe_open(self._paths[part], framework="pt") as file:
            tensor: Tensor = file.get_tensor(part)
        return tensor

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

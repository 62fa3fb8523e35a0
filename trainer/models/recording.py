"""Record operations on fake tensors: initialization, casts, reads of safetensors files, changes of the generator.

Fake tensors have no memory. `trainer.models.deferred` runs the record on real ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from trainer import tensors

aten = torch.ops.aten
# They give another view of a tensor and do not look at its numbers. Bounds of a freed storage are not checked for them.
ALIASES: set[Callable[..., Any]] = {
    aten.detach.default,
    aten.alias.default,
    aten.view.default,
    aten.t.default,
    aten.lift_fresh.default,
}
# They replace all numbers of their first argument.
OVERWRITES: set[Callable[..., Any]] = {
    aten.uniform_.default, aten.normal_.default, aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor,
    aten.copy_.default, aten.bernoulli_.float, aten.exponential_.default, torch.nn.init._no_grad_trunc_normal_,
}  # fmt: skip
# Draws until all numbers are within bounds, so it is recorded as one operation.
TRUNCATED = torch.nn.init._no_grad_trunc_normal_


class NotRecorded(RuntimeError):
    """A tensor was changed in a way that the record does not have."""


@dataclass
class Call:
    """One operation, with the storages that it uses.

    Attributes:
        run: computes it: an operation of torch, a read, or a change of the random generator.
        args, kwargs: of it.
        out: its result, of fake tensors.
        uses: keys of the storages that it reads, writes or gives another view of.
        replaces: key of the storage of which it replaces all numbers.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    uses: tuple[int, ...] = ()
    replaces: int | None = None

    @property
    def views(self) -> bool:
        """Whether it does not need the numbers of the storage that it uses."""
        return self.run in ALIASES


class Recorder(TorchDispatchMode):
    """Records what happens to fake tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._storages: dict[int, int] = {}  # by fake tensor
        self._kept: list[FakeTensor] = []  # an id may be used again after a tensor is gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = fakes_in((args, kwargs))
        for tensor in before:
            self.check(tensor)
        out = func(*args, **kwargs)
        self.record(func, args, kwargs, out)
        return out

    def record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Append a call."""
        results = fakes_in(out)
        for tensor in results:
            self._storages[id(tensor)] = storage_of(tensor)
            self._kept.append(tensor)
        if any(isinstance(x, Tensor) and not isinstance(x, FakeTensor) for x in tree_flatten((args, kwargs))[0]):
            args, kwargs = tree_map(_copied, (args, kwargs))
        used = [storage_of(t) for t in (*fakes_in((args, kwargs)), *results)]
        replaced = None
        if func in OVERWRITES and isinstance(args[0], FakeTensor) and _covers(args[0]):
            replaced = storage_of(args[0])
            if replaced in [storage_of(t) for t in fakes_in((args[1:], kwargs))]:
                replaced = None
        self.calls.append(Call(func, args, kwargs, out, tuple(dict.fromkeys(used)), replaced))

    def check(self, tensor: FakeTensor) -> None:
        """Raise NotRecorded if a tensor, or the one that its name was given to, has not been recorded."""
        if self._storages.get(id(tensor)) != storage_of(tensor):
            raise NotRecorded(f"a tensor of shape {list(tensor.shape)}")


# -- the record --------------------------------------------------------------------------------------------------------


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def fakes_in(tree: Any) -> list[FakeTensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, FakeTensor)]


def _copied(x: Any) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
        return x
    with no_dispatch():
        return x.clone()


def _covers(tensor: Tensor) -> bool:
    size = tensor.numel() * tensor.element_size()
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size


class _File:
    """A safetensors file whose tensors are read when the record is run."""

    def __init__(self, recorder: Recorder, path: Any, **options: Any) -> None:
        self._recorder, self._path = recorder, path
        self._file: Any = safe_open(path, framework="pt")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing: the library closes its file when it is collected."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self, name, self._file.get_slice(name))

    def get_tensor(self, name: str) -> Tensor:
        found = self._file.get_slice(name)
        dtype = tensors.DTYPES.get(found.get_dtype())
        if dtype is None:
            raise NotRecorded(f"a tensor of type {found.get_dtype()}")
        fake = torch.empty(found.get_shape(), dtype=dtype, device="cpu")
        self._recorder.calls.pop()  # of `empty`
        self._recorder.record(_read, (self._path, name), {}, fake)
        return fake


@dataclass
class _Slice:
    file: _File
    name: str
    found: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.found, name)

    def __getitem__(self, index: Any) -> Tensor:
        tensor = self.file.get_tensor(self.name)
        return tensor if index is Ellipsis else tensor[index]


def _read(path: Any, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


@contextmanager
def recorded_state(recorder: Recorder) -> Iterator[None]:
    """Record changes of the random generator, and reads of safetensors files."""
    import transformers.modeling_utils as library

    seed, get_state, set_state = torch.manual_seed, torch.get_rng_state, torch.set_rng_state
    states: dict[int, Tensor] = {}

    def remember() -> int:
        number = len(recorder.calls)
        recorder.calls.append(Call(lambda: states.__setitem__(number, get_state()), (), {}, None))
        return number

    def restore(number: int) -> None:
        recorder.calls.append(Call(lambda: set_state(states[number]), (), {}, None))

    def opened(path: Any, *_: Any, **options: Any) -> _File:
        return _File(recorder, path)

    def truncated(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        recorder.check(tensor)  # type: ignore[arg-type]
        recorder.record(TRUNCATED, (tensor, *args), kwargs, tensor)
        return tensor

    with ExitStack() as stack:
        for name, function in (
            ("manual_seed", lambda number: recorder.calls.append(Call(seed, (number,), {}, None))),
            ("get_rng_state", remember),
            ("set_rng_state", restore),
        ):
            stack.enter_context(mock.patch.object(torch, name, function))
        stack.enter_context(mock.patch.object(torch.nn.init, "_no_grad_trunc_normal_", truncated))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _check_unchanged))
        stack.enter_context(mock.patch.object(library, "safe_open", opened))
        stack.enter_context(mock.patch.object(tensors, "safe_open", opened))
        # threads have no dispatch mode
        stack.enter_context(mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
        yield


def _check_unchanged(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace `Module._apply`, as of `to`, which swaps fake parameters for new ones even where nothing changes."""
    for tensor in (*module.parameters(recurse), *module.buffers(recurse)):
        if function(tensor) is not tensor:
            raise NotRecorded(f"{type(module).__name__} was moved or cast")
    return module

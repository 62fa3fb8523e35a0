"""Build a model without memory for its parameters, and compute them later, one tensor after another.

A sharded engine keeps a part of each parameter on a rank. A complete model on every rank before that would take more
memory than the training. So the constructor runs on fake tensors, and the operations on them are recorded: random
initialization, reads of safetensors files, casts, copies. `Deferred.fill` runs the record on real tensors in the same
order with the same seeds, so every number is the one that the constructor would have computed. A tensor is freed as
soon as no later operation needs what is in it, and a parameter is handed over when it is complete.

Code that needs the value of a tensor (such as `.item()`) cannot be recorded. The caller then builds the model as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

from trainer.models.recording import Call, Recorder, fakes_in, recorded_state, storage_of

log = logging.getLogger("rankzero")

TRIMMED = 1 << 26  # bytes that are freed before they are given back to the system
ALIGNED = 64  # numbers between the beginnings of two placeholders: 256 bytes


@dataclass
class Deferred:
    """A model whose parameters have no memory of their own, and the record that computes them.

    Attributes:
        model: its parameters are placeholders, its buffers are complete.
        calls: the record.
        places: key of the storage of each parameter, by name. A tied parameter comes once.
    """

    model: nn.Module
    calls: list[Call]
    places: dict[str, tuple[int, FakeTensor]] = field(default_factory=dict)

    def fill(self, keep: Callable[[str, Tensor], None]) -> None:
        """Compute the parameters and call `keep(name, tensor)` for each. The tensor is freed after the call."""
        by_storage: dict[int, list[tuple[str, FakeTensor]]] = {}
        for name, (storage, fake) in self.places.items():
            by_storage.setdefault(storage, []).append((name, fake))

        def done(storage: int, values: dict[int, Any]) -> None:
            for name, fake in by_storage.pop(storage, ()):
                keep(name, values[id(fake)].detach())

        _replay(self.calls, done)
        assert not by_storage, "every parameter has been computed"


def deferred(build: Callable[[], nn.Module], device: torch.device) -> Deferred | None:
    """Return what `build` builds with placeholders as its parameters, or None if it needs the values of tensors.

    The placeholders are on the `device`. They overlap, so that all of them take the memory of the largest one, and
    what is in them has no meaning.
    """
    recorder = Recorder()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), recorded_state(recorder), recorder:
            model = build()
        found = Deferred(model, recorder.calls)
        for name, p in model.named_parameters():
            recorder.check(p)  # type: ignore[arg-type]
            found.places[name] = (storage_of(p), p)  # type: ignore[assignment]
        found.calls = _without_unused_views(found.calls, [*model.parameters(), *model.buffers()])
        buffers = [b for b in model.buffers() if isinstance(b, FakeTensor)]
        for buffer in buffers:
            recorder.check(buffer)
    except Exception as error:  # whatever code does that meets tensors without values; an error of its own comes again
        log.info("each rank begins with a complete model, because its constructor needs values (%s)", error)
        return None
    _fill_buffers(model, found.calls, buffers)
    _use_placeholders(model, device)
    return found


# -- running it --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _replay(calls: list[Call], done: Callable[[int, dict[int, Any]], None]) -> None:
    """Run a record on real tensors, with as few of them at a time as possible.

    Args:
        calls: the record.
        done: called with the key of a storage after its last use, and with the real tensors by id of the fake ones.
    """
    following = _next_uses(calls)
    values: dict[int, Any] = {}
    freed = 0
    memory: dict[int, tuple[torch.UntypedStorage, int]] = {}
    tensors_of: dict[int, set[int]] = {}
    for call, after in zip(calls, following, strict=True):
        for storage in call.uses if not call.views else ():
            if storage in memory and not memory[storage][0].nbytes():
                memory[storage][0].resize_(memory[storage][1])
        args, kwargs = tree_map(partial(_real, values), (call.args, call.kwargs))
        out = call.run(*args, **kwargs)
        for fake, real in zip(tree_flatten(call.out)[0], tree_flatten(out)[0], strict=True):
            if isinstance(fake, FakeTensor):
                values[id(fake)] = real
                storage = real.untyped_storage()
                memory.setdefault(storage_of(fake), (storage, storage.nbytes()))
                tensors_of.setdefault(storage_of(fake), set()).add(id(fake))
        for key in call.uses:
            if after[key] != "used":
                freed += memory[key][0].nbytes()
            if after[key] == "end":
                done(key, values)
                del memory[key]  # all of it, because a file stays mapped as long as a tensor of it
                for tensor in tensors_of.pop(key):
                    del values[tensor]
            elif after[key] == "replaced":
                memory[key][0].resize_(0)  # views made before are those of what follows
        del args, kwargs, out
        if freed > TRIMMED:
            freed = 0
            _return_memory()


def _return_memory() -> None:
    """Give freed memory back to the system. The C library keeps pieces between smaller ones that are still used."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _real(values: Mapping[int, Any], x: Any) -> Any:
    """Return the real tensor for a fake one. Constants are copied, because a record may be run twice."""
    if isinstance(x, FakeTensor):
        return values[id(x)]
    return x.clone() if isinstance(x, Tensor) else x


def _next_uses(calls: list[Call]) -> list[dict[int, str]]:
    """Return for each call and storage that it uses what comes after: "used", "replaced" or "end"."""
    state: dict[int, str] = {}
    found: list[dict[int, str]] = []
    for call in reversed(calls):
        found.append({storage: state.get(storage, "end") for storage in call.uses})
        if call.views:  # it is the last use only if nothing follows
            for storage in call.uses:
                state.setdefault(storage, "used")
        else:
            state |= dict.fromkeys(call.uses, "used")
        if call.replaces is not None:
            state[call.replaces] = "replaced"
    return found[::-1]


def _without_unused_views(calls: list[Call], results: Iterable[Tensor]) -> list[Call]:
    """Leave out views that neither a later call nor a result needs, such as those that `state_dict` makes."""
    needed = {id(tensor) for tensor in results}
    found = []
    for call in reversed(calls):
        if call.views and id(call.out) not in needed:
            continue
        needed |= {id(tensor) for tensor in fakes_in((call.args, call.kwargs))}
        found.append(call)
    return found[::-1]


def _fill_buffers(model: nn.Module, calls: list[Call], buffers: list[FakeTensor]) -> None:
    """Give a model real buffers: the record of all they depend on is run."""
    wanted = {storage_of(buffer): buffer for buffer in buffers}
    real: dict[int, Tensor] = {}
    if not wanted:
        return

    def done(storage: int, values: dict[int, Any]) -> None:
        real.update({id(b): values[id(b)].clone() for b in buffers if storage_of(b) == storage})

    _replay(calls, done)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in real:
                module._buffers[name] = real[id(buffer)]


def _use_placeholders(model: nn.Module, device: torch.device) -> None:
    """Replace the parameters by contiguous views of one piece of memory, each of which begins at an own address."""
    own = {id(p): p for p in model.parameters()}
    starts = {key: number * ALIGNED for number, key in enumerate(own)}
    sizes: dict[torch.dtype, int] = {}
    for key, p in own.items():
        sizes[p.dtype] = max(sizes.get(p.dtype, 0), starts[key] + p.numel())
    scratch = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
    views = {
        key: nn.Parameter(scratch[p.dtype][starts[key] : starts[key] + p.numel()].view(p.shape), p.requires_grad)
        for key, p in own.items()
    }
    for module in model.modules():
        for name, replaced in module._parameters.items():
            if replaced is not None:
                module._parameters[name] = views[id(replaced)]

"""Deal the tensors of a checkpoint to the ranks that write them, and send each rank what it writes.

    model-00001-of-00004.safetensors … model.safetensors.index.json      of four ranks, in the layout of the Hub

Each rank writes whole tensors, in separate files. So readers need not know how many ranks have written, and may be
stock safetensors. A file has a part for each rank, but at most one for every `PART_BYTES`. A file with less than twice
that is not split: rank zero writes it.

Under a sharded engine a rank has a range of each tensor. In a round of exchanges every rank gets the next tensor that
it writes: all ranks send it their ranges, and nothing else is sent. All ranks enter all rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import tensors
from trainer.engine.runtime import Runtime
from trainer.tensors import Distributed, LazyTensor, ShardedTensor, Stored, in_order, size_of

PART_BYTES = 64_000_000  # a part is not made smaller than this

Content = Mapping[str, Mapping[str, Distributed]]  # the tensors of a checkpoint by file and name
Own = dict[str, dict[str, Stored]]  # what a rank writes: tensors by file, which may be a part, and name


@dataclass(frozen=True)
class Layout:
    """The parts of the files of a checkpoint.

    Attributes:
        names: of the tensors in each part, by the file that it belongs to.
        of_rank: for each rank, the file and the part of all that it writes, in this order.
    """

    names: dict[str, dict[str, list[str]]]
    of_rank: list[list[tuple[str, str]]]

    @property
    def alone(self) -> bool:
        """Whether rank zero writes everything."""
        return not any(self.of_rank[1:])

    def indexes(self, content: Content) -> dict[str, tuple[dict[str, list[str]], int]]:
        """Return the parts of each file that is written in parts, and the bytes of its tensors."""
        sizes = {file: sum(map(size_of, found.values())) for file, found in content.items()}
        return {file: (parts, sizes[file]) for file, parts in self.names.items() if file not in parts}

    def own(self, rank: int, content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return what a rank writes of the content, by part and name."""
        return {
            part: {name: content[file][name] for name in self.names[file][part]} for file, part in self.of_rank[rank]
        }


def deal(content: Content, ranks: int) -> Layout:
    """Return which rank writes which tensors: about as many bytes on each. The same on all ranks."""
    loads, of_rank = [0] * ranks, [list[tuple[str, str]]() for _ in range(ranks)]
    names: dict[str, dict[str, list[str]]] = {}
    for file, found in content.items():
        writers = min(ranks, sum(map(size_of, found.values())) // PART_BYTES)
        if writers < 2:
            names[file] = tensors.plan_files(file, found)
            of_rank[0] += [(file, part) for part in names[file]]
            loads[0] += sum(map(size_of, found.values()))
            continue
        chosen = sorted(sorted(range(ranks), key=loads.__getitem__)[:writers])
        own = _balanced(found, chosen, loads)
        parts = [(rank, part) for rank in chosen for part in tensors.plan_files(file, own[rank]).values()]
        names[file] = {}
        for number, (rank, part) in enumerate(parts, 1):
            name = f"{Path(file).stem}-{number:05d}-of-{len(parts):05d}{Path(file).suffix}"
            names[file][name] = part
            of_rank[rank].append((file, name))
    return Layout(names, of_rank)


def _balanced(
    found: Mapping[str, Distributed], chosen: list[int], loads: list[int]
) -> dict[int, dict[str, Distributed]]:
    """Return the tensors of each chosen rank. Large ones are dealt first, each to the rank with the fewest bytes."""
    rank_of = {}
    for name in sorted(found, key=lambda name: (-size_of(found[name]), name)):
        rank_of[name] = min(chosen, key=loads.__getitem__)
        loads[rank_of[name]] += size_of(found[name])
    return {rank: {name: tensor for name, tensor in found.items() if rank_of[name] == rank} for rank in chosen}


class Ring:
    """Memory on the CPU that is used again and again. New memory costs as much as hashing what is in it.

    It holds three of the largest tensor. So the newest two of that size stay as they are, also where the rest of the
    memory is too short for the next tensor and is left out: as many as `tensors.write_files` needs at a time.
    """

    def __init__(self, largest: int) -> None:
        self._memory, self._at = torch.empty(3 * largest, dtype=torch.float32), 0

    def take(self, shape: torch.Size) -> Tensor:
        size = shape.numel()
        if self._at + size > len(self._memory):
            self._at = 0
        self._at += size
        return self._memory[self._at - size : self._at].view(shape)


class Exchange:
    """The rounds in which the ranks send each other what they write. All ranks make one and enter all of its rounds.

    A tensor that was computed is overwritten later, see `Ring`.
    """

    def __init__(self, runtime: Runtime, content: Content, layout: Layout) -> None:
        self._runtime, self._done = runtime, 0
        self._tensors = {
            (file, name): tensor
            for file, found in content.items()
            for name, tensor in found.items()
            if isinstance(tensor, ShardedTensor)
        }
        self._counts = _counts(runtime, self._tensors)
        lists = [
            [
                (file, name)
                for file, part in parts
                for name in in_order({name: content[file][name] for name in layout.names[file][part]})
                if (file, name) in self._tensors
            ]
            for parts in layout.of_rank
        ]
        self._rounds = list(zip_longest(*lists))
        self._ring = Ring(max((self._tensors[key].shape.numel() for key in lists[runtime.rank]), default=0))
        whole = {
            file: {
                name: tensor if isinstance(tensor, Tensor) else LazyTensor(tensor.shape, tensor.dtype, self._next)
                for name, tensor in found.items()
            }
            for file, found in content.items()
        }
        self.own: Own = layout.own(runtime.rank, whole)

    def finish(self) -> None:
        """Enter the rounds that are left, in which other ranks get tensors, or after an error."""
        while self._done < len(self._rounds):
            self._round()

    def _next(self) -> Tensor:
        whole = self._round()
        assert whole is not None
        return whole

    @torch.no_grad()
    def _round(self) -> Tensor | None:
        """Send this rank's ranges of the tensors that the ranks get in the next round. Return the one of this rank."""
        keys, me, device = self._rounds[self._done], self._runtime.rank, self._runtime.device
        self._done += 1
        self._runtime.heartbeat("a save")
        operations = []
        whole, received, ranges = None, None, ()
        if (key := keys[me]) is not None:
            whole = self._ring.take(self._tensors[key].shape)
            received = whole if device.type == "cpu" else torch.empty_like(whole, device=device)
            ranges = received.view(-1).split(self._counts[key])
            operations += [dist.P2POp(dist.irecv, r, rank) for rank, r in enumerate(ranges) if rank != me and len(r)]
        for rank, key in enumerate(keys):
            if key is None or not self._tensors[key].count:
                continue
            part = self._tensors[key].part().to(device, torch.float32).contiguous()
            if rank == me:
                ranges[me].copy_(part)
            else:
                operations.append(dist.P2POp(dist.isend, part, rank))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return whole if received is None or received is whole or whole is None else whole.copy_(received)


def _counts(runtime: Runtime, found: Mapping[tuple[str, str], ShardedTensor]) -> dict[tuple[str, str], list[int]]:
    """Return how many numbers of each tensor each rank has. All ranks."""
    world, me = runtime.world, runtime.rank
    own = [tensor.count if rank == me else 0 for tensor in found.values() for rank in range(world)]
    flat = runtime.sum(own) if own else []
    counts = {key: flat[i * world : (i + 1) * world] for i, key in enumerate(found)}
    for key, tensor in found.items():
        starts = list(accumulate(counts[key], initial=0))
        if starts[-1] != tensor.shape.numel() or (tensor.count and tensor.start != starts[me]):
            raise AssertionError(f"the ranks have the ranges {counts[key]} of {key[1]}, with {tensor.start} on {me}")
    return counts

"""Communication of host values between the ranks, in a separate process group on the CPU (gloo).

Such a collective does not wait for the device, and does not take a place in the queue of the engine's collectives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.distributed as dist

from trainer.engine import rendezvous
from trainer.errors import RankError

NAME = "host"  # of the group, in the recorded collectives of a rank that hangs
PIECE_BYTES = 1 << 24  # of a message between two ranks
INTERFACE = "GLOO_SOCKET_IFNAME"

# Process groups, referenced to the end of the process. If DDP's reducer had the last reference, it would join gloo's
# threads without releasing the GIL, for which one of them may wait to free a tensor: the rank would hang.
_GROUPS: list[Any] = []


class HostGroup:
    """The group of all ranks for host values. All ranks enter all methods, in the same order.

    Raises:
        RankError: the ranks cannot connect.
    """

    def __init__(self) -> None:
        if name := _interface():
            os.environ[INTERFACE] = name
        try:
            self._group = dist.new_group(backend="gloo", timeout=rendezvous.GROUP_TIMEOUT, group_desc=NAME)
        except RuntimeError as error:
            raise RankError(
                f"the ranks cannot connect by gloo: {str(error).splitlines()[0]}; set {INTERFACE} to the network "
                "interface that connects the machines (`ip address` lists them)"
            ) from error
        _GROUPS.extend([dist.group.WORLD, self._group])

    def start_sum(self, values: list[Any], dtype: torch.dtype) -> Callable[[], list[Any]]:
        """Start the sum of numbers over all ranks. Return a function that waits for it and returns it.

        The sum is made in the background, so a rank may begin it early.
        """
        tensor = torch.tensor(values, dtype=dtype)
        work: Any = dist.all_reduce(tensor, group=self._group, async_op=True)

        def finish() -> list[Any]:
            work.wait()
            return list(tensor.tolist())

        return finish

    def send(self, content: bytes) -> None:
        """Send bytes to rank zero, in pieces. Wait until they are received."""
        dist.send(torch.tensor([len(content)]), dst=0, group=self._group)
        for begin in range(0, len(content), PIECE_BYTES):
            piece = bytearray(content[begin : begin + PIECE_BYTES])  # torch wants memory that can be written
            dist.send(torch.frombuffer(piece, dtype=torch.uint8), dst=0, group=self._group)

    def receive(self, rank: int) -> bytes:
        """Return the bytes that a rank sends. Only rank zero."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, src=rank, group=self._group)
        content = torch.empty(int(size), dtype=torch.uint8)
        for begin in range(0, len(content), PIECE_BYTES):
            dist.recv(content[begin : begin + PIECE_BYTES], src=rank, group=self._group)
        return content.numpy().tobytes()

    def gather(self, value: Any, ranks: int, main: bool) -> list[Any] | None:
        """Return the value of each rank on rank zero, None elsewhere."""
        values: list[Any] | None = [None] * ranks if main else None
        dist.gather_object(value, values, group=self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank zero's value."""
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]

    def wait(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group)


def _interface() -> str | None:
    """Return the network interface towards rank zero, for a run on several machines that sets none.

    Gloo takes the address of the host's own name, which on many machines is one that others cannot reach (127.0.1.1).
    """
    local, ranks = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if INTERFACE in os.environ or local in (None, ranks):
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith("127."):
        return None
    return next((n for n, found in psutil.net_if_addrs().items() if own in [a.address for a in found]), None)

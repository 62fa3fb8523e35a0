"""GPUs by name: memory, and bf16 throughput of dense matrix products as their makers give it.

Sources, read from the makers' data sheets: NVIDIA T4, V100, A10, A30, A40, A100, L4, L40S, H100, H200, B200, RTX 3090,
RTX 4090, RTX 5090, RTX A6000, RTX 6000 Ada; AMD MI250X (one of its two dies is a device), MI300X. `GiB` is the nominal
size: a part of it is never to be had (see `USABLE` in launch.planning.advice). 0 TFLOP/s: no bf16 in hardware.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from trainer.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    memory: float  # GiB
    bf16: float  # TFLOP/s, dense


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 16, 0), Gpu("V100-16", 16, 0), Gpu("V100", 32, 0), Gpu("A10", 24, 125), Gpu("L4", 24, 121),
        Gpu("A30", 24, 165), Gpu("RTX3090", 24, 71), Gpu("RTX4090", 24, 165), Gpu("RTX5090", 32, 210),
        Gpu("A100-40", 40, 312), Gpu("A40", 48, 150), Gpu("RTXA6000", 48, 155), Gpu("L40S", 48, 362),
        Gpu("RTX6000Ada", 48, 364), Gpu("MI250X", 64, 192), Gpu("A100", 80, 312), Gpu("H100", 80, 989),
        Gpu("H200", 140, 989), Gpu("B200", 180, 2250), Gpu("MI300X", 192, 1307),
    )
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """By name; capitals, spaces and dashes do not matter.

    Raises:
        UsageError: not known; names the nearest one.
    """
    plain = {_plain(known): gpu for known, gpu in GPUS.items()}
    if _plain(name) in plain:
        return plain[_plain(name)]
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.4)
    hint = f"did you mean {plain[near[0]].name}? " if near else ""
    raise UsageError(
        f"--gpu {name}: not known; {hint}known: {', '.join(GPUS)}. For another one give its memory: --memory GIB"
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia").removesuffix("gb")

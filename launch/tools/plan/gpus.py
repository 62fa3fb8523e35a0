"""GPUs by name: memory in GiB as their drivers report it, and whether they multiply matrices in bf16.

With ECC in GDDR6 the driver reports a sixteenth less than the maker (T4, A10, A40, L4, L40S). Sources: totals of
nvidia-smi (github.com/modal-labs/modal-client, pull request 2797, and quoted in public repositories) and of rocm-smi
(github.com/ROCm/legacy-rocm-build, issue 4750). MI250X: half of its 128 GB, because each of its two dies is a device.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trainer.errors import UsageError


class Gpu(NamedTuple):
    """A kind of GPU."""

    name: str
    memory: float  # GiB
    bf16: bool = True

    def matches(self, device: str) -> bool:
        """Return whether a driver's name of a device, such as "NVIDIA A100-SXM4-80GB", is of this kind."""
        kind, _, memory = self.name.lower().partition("-")
        return bool(re.search(rf"{kind}(?!\d)", _plain(device))) and memory in device


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 15, bf16=False), Gpu("V100-16", 16, bf16=False), Gpu("V100", 32, bf16=False), Gpu("A10", 22.5),
        Gpu("L4", 22.5), Gpu("A30", 24), Gpu("RTX3090", 24), Gpu("RTX4090", 24), Gpu("RTX5090", 32), Gpu("A100-40", 40),
        Gpu("A40", 45), Gpu("RTXA6000", 48), Gpu("L40S", 45), Gpu("RTX6000Ada", 48), Gpu("MI250X", 64), Gpu("A100", 80),
        Gpu("H100", 80), Gpu("H200", 140), Gpu("B200", 179), Gpu("MI300X", 192),
    )
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """Return a GPU by its name. Capitals, spaces and dashes do not matter."""
    for gpu in GPUS.values():
        if _plain(gpu.name) == _plain(name):
            return gpu
    raise UsageError(
        f"--gpu {name}: not known; allowed: {', '.join(GPUS)}. For another GPU give its memory: --memory GIB"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removesuffix("gb")

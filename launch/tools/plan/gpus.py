"""GPUs by name: memory in GiB as their drivers report it, and whether they multiply matrices in bf16.

With ECC in GDDR6 the driver reports a sixteenth less than the maker (T4, A10, A40, L4, L40S). Sources: totals of
nvidia-smi (github.com/modal-labs/modal-client, pull request 2797, and quoted in public repositories) and of rocm-smi
(github.com/ROCm/legacy-rocm-build, issue 4750). MI250X: half of its 128 GB, because each of its two dies is a device.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from trainer.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    memory: float  # GiB
    bf16: bool = True

    def matches(self, device: str) -> bool:
        """Return whether a driver's name of a device, such as "NVIDIA A100-SXM4-80GB", is of this kind."""
        words = re.findall(r"[a-z0-9]+", device.lower())
        joined = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        kind, _, memory = self.name.lower().partition("-")
        return kind in joined and (not memory or f"{memory}gb" in words)


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
    """Return a GPU by its name. Capitals, spaces and dashes do not matter.

    Raises:
        UsageError: not known.
    """
    by_plain_name = {_plain(known): gpu for known, gpu in GPUS.items()}
    if (plain := _plain(name)) in by_plain_name:
        return by_plain_name[plain]
    near = difflib.get_close_matches(plain, by_plain_name, n=1, cutoff=0.4)
    hint = f"did you mean {by_plain_name[near[0]].name}? " if near else ""
    raise UsageError(
        f"--gpu {name}: not known; {hint}known: {', '.join(GPUS)}. For another GPU give its memory: --memory GIB"
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia").removesuffix("gb")

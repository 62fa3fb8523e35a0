"""GPUs by name: memory as their drivers tell it, in GiB, and whether they multiply matrices in bf16.

With ECC in GDDR6 the driver tells a sixteenth less than the maker does (T4, A10, A40, L4, L40S). Sources:

- nvidia-smi's totals in MiB: H100 81,559, A100 81,920 and 40,960, A10 23,028, L40S 46,068, L4 23,034, T4 15,360
  (github.com/modal-labs/modal-client, pull request 2797); as found in its output quoted in several public repositories:
  A40 46,068, A30 24,576, V100 32,768 and 16,384, RTX 3090 24,576, RTX 4090 24,564, RTX 5090 32,607, RTX A6000 and
  RTX 6000 Ada 49,140, H200 143,771, B200 183,359.
- MI300X: rocm-smi tells 206,141,652,992 bytes (github.com/ROCm/legacy-rocm-build, issue 4750). MI250X: half of its
  128 GB, as each of its two dies is a device; no output of its own was found.
- bf16: of NVIDIA's from Ampere on, compute capability 8.0 (github.com/pytorch/pytorch, pull request 50442).
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
        """Whether a driver's name of a device, such as "NVIDIA A100-SXM4-80GB", is of this kind."""
        words = re.findall(r"[a-z0-9]+", device.lower())
        runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        kind, _, memory = self.name.lower().partition("-")
        return kind in runs and (not memory or f"{memory}gb" in words)


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

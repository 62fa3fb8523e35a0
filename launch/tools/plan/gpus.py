"""GPUs by name, with their memory in GiB as their drivers report it.

With ECC in GDDR6 the driver reports a sixteenth less (T4, A10, A40, L4, L40S). Each die of an MI250X is a device.
Sources: nvidia-smi and rocm-smi in public issues (modal-labs/modal-client 2797, ROCm/legacy-rocm-build 4750).
"""

from __future__ import annotations

import re

from trainer.errors import UsageError

GPUS = {
    "T4": 15, "V100-16": 16, "V100": 32, "A10": 22.5, "L4": 22.5, "A30": 24, "RTX3090": 24, "RTX4090": 24,
    "RTX5090": 32, "A100-40": 40, "A40": 45, "RTXA6000": 48, "L40S": 45, "RTX6000Ada": 48, "MI250X": 64, "A100": 80,
    "H100": 80, "H200": 140, "B200": 179, "MI300X": 192,
}  # fmt: skip
WITHOUT_BF16 = ("T4", "V100-16", "V100")  # they do not multiply matrices in bf16


def find_gpu(name: str) -> str:
    """Return the known name of a GPU. Capitals, spaces and dashes do not matter."""
    for known in GPUS:
        if _plain(known) == _plain(name):
            return known
    raise UsageError(
        f"--gpu {name}: not known; allowed: {', '.join(GPUS)}. For another GPU give its memory: --memory GIB"
    )


def is_gpu(name: str, device: str) -> bool:
    """Return whether a driver's name of a device, such as "NVIDIA A100-SXM4-80GB", is of this kind."""
    kind, _, memory = name.lower().partition("-")
    return bool(re.search(rf"{kind}(?!\d)", _plain(device))) and memory in device


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removesuffix("gb")

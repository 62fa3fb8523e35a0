"""The GPUs, asked in a process of their own: a driver that hangs or crashes must not take the doctor along.

`python -m launch.doctoring.devices` prints one JSON object: what torch sees.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from launch.doctoring.check import Check, Findings, ask, size
from launch.local import for_launcher

PATIENCE = 60.0  # seconds for torch to be read from a slow disk and to look for GPUs
NO_GPU = "no GPU: configs debug, cpu and cpu_… run here"


def checks() -> list[Check]:
    """One check, "devices". On a machine without a GPU's device file nothing is started."""
    if not device_files():
        return [Check("devices", "ok", NO_GPU)]
    answer = ask([sys.executable, "-m", "launch.doctoring.devices"], PATIENCE, for_launcher(dict(os.environ)))
    if answer.code != 0:
        found = f"torch cannot look at the GPUs: {answer.last}"
        return [Check("devices", "failed", found, "nvidia-smi; dmesg | grep -i xid")]
    return [judge(json.loads(answer.last))]


def device_files(folder: Path = Path("/dev")) -> bool:
    """Whether there is a device file of a GPU, the same as `launch.configs.gpus` looks for."""
    return any(folder.glob("nvidia[0-9]*")) or (folder / "dxg").exists() or (folder / "kfd").exists()


def judge(seen: dict[str, Any]) -> Check:
    """What `look` saw, in words."""
    findings = Findings("devices")
    build = seen["build"] or "CPU"
    driver = seen["driver"]
    if not seen["gpus"]:
        _say_why_none(findings, seen)
        return findings.check()
    newest = f", driver for CUDA up to {driver[0]}.{driver[1]}" if driver else ""
    findings.fact(f"torch for CUDA {build}{newest}, NCCL {seen['nccl'] or 'missing'}")
    for number, gpu in enumerate(seen["gpus"]):
        major, minor = gpu["capability"]
        bf16 = "bf16" if major >= 8 else "no bf16"
        findings.fact(f"GPU {number}: {gpu['name']}, {size(gpu['memory'])}, compute capability {major}.{minor}, {bf16}")
        if not _has_code(seen["architectures"], major, minor):
            text = f"this torch has no code for GPU {number} (sm_{major}{minor}; it has {seen['architectures']})"
            findings.fail(text, "install the torch build for this GPU: https://pytorch.org/get-started/locally/")
    if len(seen["gpus"]) > 1 and not seen["nccl"]:
        findings.fail("this torch comes without NCCL", "install a CUDA build of torch from pytorch.org")
    if len(seen["gpus"]) > 1 and not seen["peers"]:
        findings.fact("GPUs do not reach each other directly: NCCL goes through the machine's memory")
    return findings.check()


def _say_why_none(findings: Findings, seen: dict[str, Any]) -> None:
    build, driver, visible = seen["build"], seen["driver"], seen["visible"]
    if visible is not None and visible.strip() in ("", "-1"):
        findings.fact(f"the GPUs are hidden by CUDA_VISIBLE_DEVICES={visible!r}; {NO_GPU}")
    elif build is None:
        text = "there is a GPU, but this torch is built for CPU only"
        findings.warn(text, "install a CUDA build of torch: https://pytorch.org/get-started/locally/")
    elif driver and driver[0] < int(build.split(".")[0]):
        text = f"the driver is too old: it can do CUDA {driver[0]}.{driver[1]}, torch is built for {build}"
        findings.fail(text, f"update the NVIDIA driver, or install a torch built for CUDA {driver[0]}")
    else:
        text = f"there is a GPU's device file, torch for CUDA {build} sees no GPU {seen['error']}".strip()
        findings.fail(text, "nvidia-smi; in a container: docker run --gpus all, and the same driver version inside")


def _has_code(architectures: list[str], major: int, minor: int) -> bool:
    """Compiled code runs on GPUs of the same major and the same or a later minor; PTX (compute_…) on all later ones.

    CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility".
    """
    for word in architectures:
        kind, _, digits = word.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            return True  # ROCm: gfx90a and the like
        built = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
        if kind == "compute" and built <= (major, minor):
            return True
    return not architectures


def look() -> dict[str, Any]:
    """What torch sees of the GPUs. Imports torch and wakes the driver."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(number) for number in range(count)]
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "build": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl and count else None,
        "architectures": torch.cuda.get_arch_list() if count else [],
        "gpus": [{"name": p.name, "memory": p.total_memory, "capability": [p.major, p.minor]} for p in properties],
        "peers": all(torch.cuda.can_device_access_peer(a, b) for a, b in pairs),
        "error": "; ".join(str(warning.message).splitlines()[0] for warning in caught),
    }


def _driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver can do (cuDriverGetVersion); None without NVIDIA's driver."""
    import ctypes

    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


if __name__ == "__main__":
    print(json.dumps(look()))

"""Check the GPUs. `python -m launch.tools.doctor.devices` prints what torch finds as JSON.

Torch looks for GPUs in a separate process, because a broken driver may hang or crash it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from launch.configs import gpu_device_files
from launch.findings import Findings, size
from launch.local import with_module_path
from trainer.engine_specs import FLOAT8

SECONDS = 60.0  # to load torch from a slow disk and find the GPUs
LOG_OF_DRIVER = "nvidia-smi; dmesg | grep -i xid"
TORCH_BUILDS = "https://pytorch.org/get-started/locally/"


def check_devices(findings: Findings) -> None:
    """Start the separate process, unless there is no GPU or all are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip()
    if not gpu_device_files():
        findings.fact("no GPU: configs debug, cpu and cpu_… run here")
    elif hidden in ("", "-1"):
        findings.fact(f"the GPUs are hidden by CUDA_VISIBLE_DEVICES={hidden!r}")
    else:
        words, env = [sys.executable, "-m", "launch.tools.doctor.devices"], with_module_path(dict(os.environ))
        try:
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            findings.fail(f"torch did not find the GPUs within {SECONDS:g} s", LOG_OF_DRIVER)
            return
        if done.returncode:
            last = (done.stderr.splitlines() or ["no message"])[-1]
            findings.fail(f"torch failed to find GPUs: exit code {done.returncode}, {last}", LOG_OF_DRIVER)
        else:
            report(findings, json.loads(done.stdout.splitlines()[-1]))


def report(findings: Findings, seen: dict[str, Any]) -> None:
    """Check what `look` found."""
    if seen["build"] is None:
        findings.warn("there is a GPU, but this torch is built for CPUs only", f"install a CUDA build: {TORCH_BUILDS}")
        return
    findings.fact(f"torch for CUDA {seen['build']}")
    for number, (name, memory, major, minor) in enumerate(seen["gpus"]):
        bf16 = "bf16 and fp8" if (major, minor) >= FLOAT8 else "bf16" if major >= 8 else "no bf16"
        findings.fact(f"GPU {number}: {name}, {size(memory)}, compute capability {major}.{minor}, {bf16}")
    if seen["error"]:
        fix = f"nvidia-smi; update the driver, or install the torch build for this GPU and driver: {TORCH_BUILDS}"
        text = f"torch cannot use GPU {len(seen['gpus'])}: {seen['error']}"
        findings.fail(text, f"{fix}; in a container: docker run --gpus all, with the same driver version inside")


def look() -> dict[str, Any]:
    """Compute on each GPU and return what torch knows about it. Stop at the first one that fails.

    Torch itself explains an old driver, missing kernels for a GPU and a faulty device.
    """
    import torch

    seen: dict[str, Any] = {"build": torch.version.cuda or torch.version.hip, "gpus": [], "error": ""}
    try:
        torch.cuda.init()
        for number in range(torch.cuda.device_count()):
            torch.ones(8, device=f"cuda:{number}").sum().item()
            gpu = torch.cuda.get_device_properties(number)
            seen["gpus"].append((gpu.name, gpu.total_memory, gpu.major, gpu.minor))
    except Exception as error:
        seen["error"] = str(error).splitlines()[0]
    return seen


if __name__ == "__main__":
    print(json.dumps(look()))

"""Compute the outputs of an adapter on its base with stock PEFT. Reads a job as JSON from stdin.

This file runs in a separate process, in which rankzero cannot be imported. See trainer.export.adapter for the job.
"""

import json
import sys
from typing import Any


def run(job: dict[str, Any]) -> None:
    """Write the outputs of each file of inputs, named by its number, to the file that the job names."""
    import torch
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    auto = getattr(transformers, job["class"])
    base = auto.from_pretrained(
        job["base"], revision=job["revision"], dtype=torch.float32, trust_remote_code=False, **job["arguments"]
    )
    model = PeftModel.from_pretrained(base, job["adapter"], trust_remote_code=False).eval()
    outputs = {}
    for number, file in enumerate(job["inputs"]):
        with torch.no_grad():
            output = model(**load_file(file), **job["options"])
        outputs[str(number)] = (output.logits if "logits" in output else output.last_hidden_state).contiguous()
    save_file(outputs, job["outputs"])


if __name__ == "__main__":
    run(json.load(sys.stdin))
    json.dump({}, sys.stdout)

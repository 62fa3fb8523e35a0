"""The trained weights in bf16, for PyTorch: half as large, and on recent processors the fastest for large batches.

    export/bf16/    model.safetensors, config.json, the tokenizer's files, gate.json

A pretrained model's folder is one of the transformers library, for `AutoModel….from_pretrained`; `rankzero predict RUN
--backend bf16` runs those of all models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trainer import tensors
from trainer.engine.finished import build_model
from trainer.engine.state import copy_weights
from trainer.export.gates import Check, Gate
from trainer.rundir import write_json
from trainer.tasks.base import Record, Task

WEIGHTS = "model.safetensors"


def write_weights(task: Task, model: nn.Module, folder: Path) -> None:
    """`model`, which is left as it is, as bf16 in `folder`, which exists and is empty."""
    tensors.write(folder / WEIGHTS, {name: p.detach().to(torch.bfloat16) for name, p in model.named_parameters()})
    write_json(folder / "config.json", {**task.model_config(model), "dtype": "bfloat16"})
    task.tokenizer.save_pretrained(folder)


@torch.no_grad()
def read_weights(task: Task, folder: Path) -> nn.Module:
    """The model of such a folder, in bf16 and in eval mode, on the CPU.

    Raises:
        CheckpointError: the weights are not those of this task's model.
    """
    model = build_model(task, folder)
    copy_weights(model, tensors.read(folder / WEIGHTS), str(folder / WEIGHTS))
    return model.to(torch.bfloat16).eval()


class WeightsGate(Gate):
    """The same limits as int8's: what the lower precision costs on the whole split."""

    def steps(self) -> dict[str, Callable[[], Check]]:
        return {"loads": self.loads}

    def loads(self) -> Check:
        self.model = read_weights(self.task, self.folder)
        return {"passed": True, "bytes": {path.name: path.stat().st_size for path in self.folder.glob("*.safetensors")}}

    def _answers(self) -> list[Record]:
        found = self.rows.answers(self.say, self.model)
        return [found[row.id] for row in self.answered]

"""The trained weights for PyTorch, with all that is needed to use them: of every model, whether it has graphs or not.

    export/bf16/           half as large, and on recent processors the fastest for large batches
    export/safetensors/    fp32; where there can be no ONNX graph, or where it is asked for
    each                   model.safetensors, config.json, the tokenizer's files, gate.json

A pretrained model's folder is one of the transformers library, for `AutoModel….from_pretrained`; `rankzero predict RUN
--backend NAME` runs those of all models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import tensors
from trainer.engine.state import copy_weights
from trainer.engine.trained_run import build_model
from trainer.export.answers import torch_logits
from trainer.export.gates import Gate
from trainer.export.parity_checks import SHOWN, Check
from trainer.rundir import write_json
from trainer.task.base import Record, Task

WEIGHTS = "model.safetensors"
TYPES = {"bf16": torch.bfloat16, "safetensors": torch.float32}


def write_weights(task: Task, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """`model`, which is left as it is, in `folder`, which exists and is empty."""
    held = {**dict(model.named_parameters()), **tensors.constants(model)}
    made = {name: t.detach().to(dtype if t.is_floating_point() else t.dtype) for name, t in held.items()}
    tensors.write(folder / WEIGHTS, made)
    write_json(folder / "config.json", {**task.model_config(model), "dtype": str(dtype).removeprefix("torch.")})
    task.save_tokenizer(folder)


@torch.no_grad()
def read_weights(task: Task, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of such a folder, in eval mode, on the CPU.

    Raises:
        CheckpointError: the weights are not those of this task's model.
    """
    model = build_model(task, folder)
    copy_weights(model, tensors.read(folder / WEIGHTS), str(folder / WEIGHTS))
    return model.to(dtype).eval()


class WeightsGate(Gate):
    """bf16 has the same limits as int8: what the lower precision costs on the whole split. fp32 must hold the same
    numbers, and give the same logits; the split would add nothing.
    """

    def steps(self) -> dict[str, Callable[[], Check]]:
        return {"loads": self.loads, **({"weights": self.weights, "logits": self.logits} if self.exact else {})}

    def whole_split(self) -> dict[str, Check]:
        return {} if self.exact else super().whole_split()

    def weights(self) -> Check:
        ours, theirs = self.rows.model.state_dict(), self.model.state_dict()
        differ = [name for name, weight in theirs.items() if not torch.equal(weight, ours[name])]
        return {"passed": not differ, "differ": differ[:SHOWN], "weights": len(ours), "limit": 0}

    def loads(self) -> Check:
        self.model = read_weights(self.task, self.folder, TYPES[self.name])
        return {"passed": True, "bytes": {path.name: path.stat().st_size for path in self.folder.glob("*.safetensors")}}

    def _logits(self, examples: Sequence[Any]) -> list[Any]:
        return torch_logits(self.task, self.model, examples)

    def _answers(self) -> list[Record]:
        found = self.rows.answers(self.say, self.model)
        return [found[row.id] for row in self.answered]

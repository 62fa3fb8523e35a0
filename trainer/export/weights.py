"""Export the trained weights for PyTorch, with all that is needed to use them. Every model can be exported so.

    export/bf16/           half as large; on recent processors the fastest for large batches
    export/safetensors/    fp32; if the model has no ONNX graph, or if the recipe sets export.safetensors
    each                   model.safetensors, config.json, the tokenizer's files, gate.json

The folders have the layout of `model/` (see trainer.models.folder). `rankzero predict RUN --backend NAME` works for all
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from trainer.engine.state import copy_weights
from trainer.engine.trained_run import build_model
from trainer.export.artifact import Array
from trainer.export.gates import Gate, Step
from trainer.export.parity_checks import SHOWN, Check
from trainer.models.folder import read_folder
from trainer.task.base import Example, Record, Task

WEIGHTS = "model.safetensors"
TYPES = {"bf16": torch.bfloat16, "safetensors": torch.float32}


@torch.no_grad()
def read_weights(task: Task, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the model of such a folder, in eval mode, on the CPU.

    Raises:
        CheckpointError: the weights are not those of this task's model.
    """
    model = build_model(task, folder)
    copy_weights(model, read_folder(folder), str(folder / WEIGHTS))
    return model.to(dtype).eval()


class WeightsGate(Gate):
    """The gate of exported weights.

    bf16 is compared on the whole split, with the limits of int8. fp32 must hold the same numbers and give the same
    logits, after which the split would add nothing.
    """

    def quick_checks(self) -> Iterator[Step]:
        yield "loads", self.loads
        if self.exact:
            yield "weights", self.weights
            yield "logits", self.logits

    def split_checks(self) -> dict[str, Check]:
        return {} if self.exact else super().split_checks()

    def weights(self) -> Check:
        ours, theirs = self.rows.model.state_dict(), self.model.state_dict()
        differ = [name for name, weight in theirs.items() if not torch.equal(weight, ours[name])]
        return {"passed": not differ, "differ": differ[:SHOWN], "weights": len(ours), "limit": 0}

    def loads(self) -> Check:
        self.model = read_weights(self.task, self.folder, TYPES[self.name])
        return {"passed": True, "bytes": {path.name: path.stat().st_size for path in self.folder.glob("*.safetensors")}}

    def artifact_logits(self, examples: Sequence[Example]) -> list[Array]:
        return self.export.torch_logits(self.model, examples)

    def answers(self) -> list[Record]:
        answers = self.rows.answers(self.progress, self.model)
        return [answers[row.id] for row in self.answered]

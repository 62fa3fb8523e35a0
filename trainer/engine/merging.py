"""Merge an adapter into its base at the end of a training, and publish it as adapter/ of the run.

    adapter/adapter_model.safetensors  adapter_config.json     for stock PEFT
    adapter/gate.json                                          its checks, as for other artifacts

The merged weights are those of model/, which everything else of a run uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.engine.corpus import batches_by_length
from trainer.errors import GateError
from trainer.files import write_json
from trainer.models.adapters import merge, write_adapter
from trainer.rundir import RunDir
from trainer.stages import file_facts, published

if TYPE_CHECKING:
    from trainer.engine.corpus import Corpus
    from trainer.task.base import Batch, Task

LIMIT = 1e-5  # of a difference, relative to the largest logit if that is above 1
HUGE = 1e30  # replaces NaN and Inf, which JSON cannot hold
GATE = "gate.json"


def merge_checked(run: RunDir, task: Task, corpus: Corpus, model: nn.Module, base: dict[str, Any]) -> None:
    """Publish the adapter of a trained model, and merge it. Only rank zero calls this.

    Raises:
        GateError: the merged model gives other logits than the adapted one.
    """
    batches = list(real_batches(task, corpus))
    before = _logits(task, model, batches)
    with published(run.adapter) as folder:
        write_adapter(model, folder, base)
        merge(model)
        check = compare(before, _logits(task, model, batches))
        if not check["passed"]:
            for file in folder.iterdir():
                file.unlink()
        write_gate(folder, {"merged": check}, {"base": base["name"]})
    if not check["passed"]:
        raise GateError(
            f"the merged model differs from the adapter model by {check['difference']:.2g} in {check['rows']} rows "
            f"(limit {LIMIT} of the largest logit, {check['largest']:.3g}): model/ is not written. The checkpoints are "
            f"complete, and all numbers are in {run.adapter / GATE}"
        )


def real_batches(task: Task, corpus: Corpus) -> Iterator[Batch]:
    """Yield the first rows of validation, or else of train, as sequences of a training in evaluation batches."""
    recipe = corpus.recipe
    split = "train" if recipe.data.validation is None else "validation"
    texts = [row for _, row in islice(corpus.texts(split), recipe.export.gates.rows)]
    examples = [example for example, _ in task.pack(task.encode(texts))]
    lengths = list(map(task.length, examples))
    for indices in batches_by_length(lengths, task.padding.width, recipe.evaluation.tokens_per_batch):
        yield task.collate(task.corrupt([examples[i] for i in indices]))


@torch.no_grad()
def _logits(task: Task, model: nn.Module, batches: list[Batch]) -> list[Tensor]:
    device, matmul = next(model.parameters()).device, torch.backends.cuda.matmul
    precision, matmul.fp32_precision = matmul.fp32_precision, "ieee"  # TF32 would differ by more than the limit
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            on_device = ({name: t.to(device) for name, t in batch.items()} for batch in batches)
            return [task.logits(model, batch).float().cpu() for batch in on_device]
    finally:
        matmul.fp32_precision = precision


def compare(expected: list[Tensor], actual: list[Tensor]) -> dict[str, Any]:
    """Return the check of outputs that must be equal: the largest difference, and the largest expected value."""
    pairs = zip(expected, actual, strict=True)
    difference = max(float((a.double() - b).abs().nan_to_num(HUGE, HUGE).amax()) for a, b in pairs)
    largest = max(float(a.nan_to_num(0.0, 0.0, 0.0).abs().amax()) for a in expected)
    return {
        "passed": difference <= LIMIT * max(1.0, largest),
        "difference": difference,
        "largest": largest,
        "limit": LIMIT,
        "rows": sum(map(len, expected)),
    }


def write_gate(folder: Path, checks: dict[str, dict[str, Any]], inputs: dict[str, Any]) -> None:
    """Write gate.json of an adapter, with the files that it is about."""
    failed = [name for name, check in checks.items() if not check["passed"]]
    files = {path.name: file_facts(path) for path in sorted(folder.iterdir()) if path.name != GATE}
    gate = {"artifact": "adapter", "passed": not failed, "failed": failed, "checks": checks, "files": files}
    write_json(folder / GATE, {"format": 1, **gate, "inputs": inputs})

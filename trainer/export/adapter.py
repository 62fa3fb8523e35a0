"""Check adapter/ of a run in a new process: stock PEFT puts it on the base, and gives the outputs of model/.

The process can import neither rankzero nor its launcher. Inputs are those of the last forwards on real rows.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from trainer import tensors
from trainer.engine.corpus import Corpus
from trainer.engine.merging import GATE, compare, real_batches, write_gate
from trainer.errors import GateError
from trainer.export.subprocess_check import with_stock_libraries
from trainer.files import read_json
from trainer.hub_paths import locate
from trainer.models.adapters import adapted_part
from trainer.rundir import RunDir
from trainer.stages import file_facts
from trainer.task.base import Task

BATCHES = 2  # of real rows
CHECK = "stock_peft"
Forward = tuple[dict[str, Tensor], dict[str, bool], Tensor]  # tensors and switches that a module gets, and its output


def check_adapter(run: RunDir, task: Task, model: nn.Module, corpus: Corpus) -> None:
    """Check adapter/ with stock PEFT, unless that has been done or there is no adapter. A refused one is removed.

    Args:
        model: the merged one.

    Raises:
        GateError: the outputs differ, or PEFT cannot load it.
    """
    gate = read_json(run.adapter / GATE)
    if gate is None:
        return
    checks = gate["checks"]
    complete = all(file_facts(run.adapter / name) == facts for name, facts in gate["files"].items())
    if CHECK not in checks or (gate["passed"] and not complete):
        part = adapted_part(model.cpu().float().eval())
        inputs = {**gate["inputs"], "class": type(part).__name__, "arguments": arguments_of(task, part)}
        checks = {**checks, CHECK: _check(run, task, model, corpus, inputs)}
        for file in run.adapter.iterdir() if not checks[CHECK]["passed"] else ():
            file.unlink()
        write_gate(run.adapter, checks, inputs)
    if failed := [name for name, check in checks.items() if not check["passed"]]:
        found = "; ".join(f"{name}: {json.dumps(checks[name])}" for name in failed)
        raise GateError(f"{run.adapter} failed its gate and holds only {GATE}: {found}. model/ is not affected")


def _check(run: RunDir, task: Task, model: nn.Module, corpus: Corpus, how: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rankzero-adapter-") as name:
        folder, forwards = Path(name), dict[Path, Forward]()
        for number, batch in enumerate(islice(real_batches(task, corpus), BATCHES)):
            file = folder / f"inputs-{number}.safetensors"
            forwards[file] = forward_of(task, model, batch)
            tensors.write(file, forwards[file][0])
        place, revision = locate(task.recipe.model.name)  # type: ignore[attr-defined]
        job = {
            **how,
            "base": place,
            "revision": revision,
            "adapter": str(run.adapter.absolute()),
            "inputs": [str(file) for file in forwards],
            "options": next(options for _, options, _ in forwards.values()),
            "outputs": str(folder / "outputs.safetensors"),
        }
        try:
            with_stock_libraries(job)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return {"passed": False, "error": str(error)}
        outputs = tensors.read(folder / "outputs.safetensors")
        pairs = [(output, outputs[str(i)], inputs) for i, (inputs, _, output) in enumerate(forwards.values())]
        return compare([_without_padding(a, c) for a, _, c in pairs], [_without_padding(b, c) for _, b, c in pairs])


@torch.no_grad()
def forward_of(task: Task, model: nn.Module, batch: dict[str, Tensor]) -> Forward:
    """Return the tensors and switches that the adapted part of a model gets in a forward, and what it returns."""
    found: list[Forward] = []

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        inputs = {name: value.contiguous() for name, value in kwargs.items() if isinstance(value, Tensor)}
        options = {name: value for name, value in kwargs.items() if isinstance(value, bool)}
        found.append((inputs, options, output.logits if "logits" in output else output.last_hidden_state))

    hook = adapted_part(model).register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled model may leave hooks out
            task.logits(model, batch)
    finally:
        hook.remove()
    return found[-1]


def _without_padding(output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Return the outputs of tokens. What is at the positions of padding has no meaning, and no use."""
    mask = inputs.get("attention_mask")
    if mask is None or output.shape[:2] != mask.shape or "decoder_input_ids" in inputs:
        return output
    return output[mask.bool()]


def arguments_of(task: Task, part: Any) -> dict[str, Any]:
    """Return what `from_pretrained` of the base needs, besides its name, to be the model that the adapter is for."""
    settings: Any = task.recipe.model
    place, revision = locate(settings.name)
    saved = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    keys = ("num_labels", "pad_token_id", "is_decoder", *settings.config)
    return {key: value for key in keys if (value := getattr(part.config, key, None)) != getattr(saved, key, None)}

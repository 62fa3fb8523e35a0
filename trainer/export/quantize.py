"""Dynamic int8: weights per channel, activations measured on the fly; the matrices that suffer most may stay fp32.

Weights take 7 of the 8 bits: with all 8, processors without VNNI saturate the sums of two products, and logits of a
tiny translation model were off by 3.3 there instead of 0.14.

Dynamic quantization takes one scale for a whole tensor of activations, so a row's result depends on what it is batched
with: the artifact's settings say `one_by_one`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from trainer.export.answers import artifact_logits, fitting, numbers
from trainer.export.exporter import data_file, is_large
from trainer.export.program import NAME, generated, load
from trainer.export.rows import Say
from trainer.rundir import write_json
from trainer.task.base import Example, Record, Task

KINDS = ("MatMul", "Gemm", "Gather")  # with the default kinds a graph of opset 23 does not load
TUNING_ROWS = 32
JUDGED = {"accuracy", "bleu", "perplexity"}  # checks that fp32 matrices can mend


def write_quantized(source: Path, folder: Path, kept: Collection[str] = ()) -> None:
    """The artifact in `source` as int8 in `folder`, which exists and is empty; `kept`: matrices that stay fp32."""
    for path in sorted(source.glob("*.onnx")):
        stay = [name.partition(":")[2] for name in kept if name.partition(":")[0] == path.stem]
        _quantize(path, folder / path.name, stay)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    (folder / NAME).write_text(generated(source), encoding="utf-8")
    settings = json.loads((source / "settings.json").read_text(encoding="utf-8"))
    write_json(folder / "settings.json", settings | {"one_by_one": True})


def quantized(
    task: Task,
    source: Path,
    folder: Path,
    examples: Callable[[], Sequence[Example]],
    gate: Callable[[], Record],
    say: Say,
) -> Record:
    """Writes the artifact with as few fp32 matrices as its gate allows, and returns the verdict on it.

    Args:
        task: as the artifact was made for.
        source: the fp32 artifact.
        folder: where it is written; exists and is empty.
        examples: rows on which matrices are compared; asked for only if the first attempt fails.
        gate: the verdict on what stands in `folder`.
        say: told how far it is.
    """
    kept: list[str] = []
    attempts: list[Record] = []
    order: list[str] | None = None
    while True:
        write_quantized(source, folder, kept)
        verdict = gate() | {"kept_fp32": kept}
        judged = {name: verdict["checks"][name]["difference"] for name in JUDGED & verdict["checks"].keys()}
        attempts.append({"kept_fp32": len(kept), "passed": verdict["passed"], **judged})
        if verdict["passed"] or not set(verdict["failed"]) <= JUDGED:
            break
        if order is None:
            order = sensitivity(task, source, examples(), say)
        if 2 * len(kept) >= len(order):
            break
        kept = order[: max(1, 2 * len(kept))]
        say(f"int8 failed its gate; again with {len(kept)} of {len(order)} matrices in fp32: {', '.join(kept[:4])} …")
    return verdict | {"attempts": attempts}


def sensitivity(task: Task, source: Path, examples: Sequence[Example], say: Say) -> list[str]:
    """All matrices, "graph:node", the one first whose quantization alone changes the logits most (mean absolute)."""
    fp32, examples = load(source), examples[: fitting(examples, lambda example: numbers(task, example))]
    before = artifact_logits(task, fp32, examples)
    damage: dict[str, float] = {}
    names = matrices(source)
    with tempfile.TemporaryDirectory(prefix="rankzero-int8-") as scratch:
        for number, name in enumerate(names):
            graph, _, node = name.partition(":")
            folder = Path(scratch) / str(number)
            folder.mkdir()
            for path in source.iterdir():
                (folder / path.name).symlink_to(path.resolve())
            target = folder / f"{graph}.onnx"
            target.unlink()
            data_file(target).unlink(missing_ok=True)
            _quantize(source / target.name, target, only=node)
            after = artifact_logits(task, load(folder), examples)
            damage[name] = float(np.mean([np.abs(a - b).mean() for a, b in zip(after, before, strict=True)]))
            shutil.rmtree(folder)
            say(f"int8: measured {number + 1} of {len(names)} matrices")
    return sorted(names, key=lambda name: -damage[name])


def matrices(source: Path) -> list[str]:
    """What can be quantized: the nodes of the right kind that multiply by, or look up in, a matrix of weights."""
    found = []
    for path in sorted(source.glob("*.onnx")):
        graph = onnx.load(path).graph
        weights = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 2}
        for node in graph.node:
            if node.op_type in KINDS and node.input[0 if node.op_type == "Gather" else 1] in weights:
                found.append(f"{path.stem}:{node.name}")
    return found


def _quantize(source: Path, target: Path, stay: Sequence[str] = (), only: str | None = None) -> None:
    # onnxruntime makes a MatMul of every Gemm before it looks at names
    chosen: dict[str, Any] = {} if only is None else {"nodes_to_quantize": [only, f"{only}_MatMul"]}
    model = onnx.load(source)  # of a path onnxruntime would write a file beside it
    data_file(target).unlink(missing_ok=True)
    with _quiet():
        quantize_dynamic(
            model,
            target,
            use_external_data_format=is_large(model),
            op_types_to_quantize=list(KINDS),
            per_channel=True,
            reduce_range=True,  # or an artifact proven on one processor saturates 16-bit sums on one without VNNI
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[name for node in stay for name in (node, f"{node}_MatMul")],
            **chosen,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises through the root logger, which it would set up by that."""
    root, silent, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)

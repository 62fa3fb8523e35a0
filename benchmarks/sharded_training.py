"""Memory of a rank in a training whose state is sharded: start, steps, an evaluation, a save, and a resume.

    python -m benchmarks.sharded_training [--ranks 4] [--engine fsdp2] [--json benchmarks/results/sharded_training.json]

A BERT of 299M parameters with AdamW in fp32, from a folder of pretrained weights. Each phase has its own peak: the
largest resident set of a rank (VmHWM, reset before the phase), less what was resident before the model was built. It is
compared with `bound`: the rank's part of parameters, gradients and moments, and the largest layer. The parameters
outside of layers count as a layer. malloc returns freed blocks of 64 KiB and more at once (MALLOC_MMAP_THRESHOLD_), as
the allocator of a GPU uses them again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, write
from benchmarks.sharded_memory import LARGE

ROOT = Path(__file__).parent.parent
MB = 1 << 20
LATE = ("torch._dynamo", "torch._inductor.config", "torch.distributed.fsdp", "deepspeed", "transformers.models.auto")
STATES = 4  # parameters, gradients and two moments
STEPS = 2  # of each start
RECIPE = "demo-sentiment"
OVERRIDES = (
    *("data.train=train?rows=400&shards=4", "data.validation=validation?rows=16", "data.test=null", "data.lanes=4"),
    *("data.tokens_per_batch=128", "data.max_length=32", "evaluation.splits=[]", "evaluation.tokens_per_batch=128"),
    *("loop.eval_every=1000", "loop.save_every=1000", "loop.log_every=1", "loop.early_stopping.metric=loss"),
    *("optim.freeze_embeddings=false", "optim.clip_norm=1.0"),
)


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """Write a BERT with random weights and a tokenizer, as the Hub has them."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(chr(97 + i) for i in range(26)), *(f"##{chr(97 + i)}" for i in range(26))]
    words += [f"unused{i}" for i in range(sizes["vocab_size"] - len(words))]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )  # type: ignore[assignment]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
    torch.manual_seed(1)
    BertModel(BertConfig(num_attention_heads=16, pad_token_id=0, **sizes)).save_pretrained(folder)  # type: ignore[arg-type]


def resident() -> dict[str, float]:
    """Return MB of this process's memory: now, the most since `reset_peak`, and the parts of now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("Vm", "Rss"))}
    return {"now": found["VmRSS"], "peak": found["VmHWM"], "file": found["RssFile"]}


def reset_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def as_rank(out: Path, run: Path, model: Path, start: int) -> None:
    """Train as a rank, and write the memory of each phase."""
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from trainer.api import train
    from trainer.engine.loop import Loop
    from trainer.engine.session import Session
    from trainer.engine.step import Stepper

    phases: dict[str, Any] = {}

    def phase(owner: Any, method: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def measured(*arguments: Any, **more: Any) -> Any:
            reset_peak()
            phases.setdefault("before", resident()["now"])
            result = original(*arguments, **more)
            phases.setdefault(name, []).append(resident())
            return result

        setattr(owner, method, measured)

    phase(Session, "__init__", "start" if start == 1 else "resume")
    phase(Stepper, "__call__", "step")
    phase(Loop, "_evaluate", "evaluation")
    phase(Loop, "_save", "save")
    if start == 2:
        phase(Session, "select_checkpoint", "model")
    original = Session.select_checkpoint

    def ended(self: Session) -> None:
        if start == 2:
            original(self)
        (out / f"start-{start}-rank-{self.runtime.rank}.json").write_text(json.dumps(phases))
        self.runtime.wait()
        sys.stdout.flush()
        os._exit(0)

    Session.select_checkpoint = ended  # type: ignore[method-assign]
    words = [*OVERRIDES, f"model.name={model}", f"loop.max_steps={STEPS * start}"]
    train(RECIPE, words, run=run, allow_change=("loop.max_steps",))


def measure(engine: str, ranks: int, folder: Path, model: Path) -> dict[str, Any]:
    """Return the largest memory of any rank in each phase of two starts, in MB above the baseline."""
    from launch.configs import choose
    from launch.local import environment

    config = choose({"ddp": "cpu"}.get(engine, f"cpu_{engine}"), ranks)
    env = environment(config) | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "launch.supervise.launcher", "--config_file", str(config.path)]
    phases: dict[str, list[dict[str, float]]] = {}
    for start in (1, 2):
        script = ["-m", "benchmarks.sharded_training", "--as-rank", str(folder), "--run", str(folder / "run")]
        words = ["--num_processes", str(ranks), *script, "--model", str(model), "--start", str(start)]
        found = subprocess.run([*launcher, *words], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        files = sorted(folder.glob(f"start-{start}-rank-*.json"))
        if found.returncode or len(files) != ranks:
            raise SystemExit(f"{engine} ended with {found.returncode}:\n{found.stderr[-4000:]}")
        for file in files:
            values = json.loads(file.read_text())
            before = values.pop("before")
            for name, entries in values.items():
                most = {key: max(entry[key] for entry in entries) for key in entries[0]}
                phases.setdefault(name, []).append(
                    {"peak": most["peak"] - before, "after": most["now"] - before, "file": most["file"]}
                )
    return {name: {key: round(max(r[key] for r in rows), 1) for key in rows[0]} for name, rows in phases.items()}


def bound(ranks: int, engine: str) -> dict[str, float]:
    """Return the sizes that the peaks are compared with, in MB."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(num_attention_heads=16, **LARGE))  # type: ignore[arg-type]
    size = {name: p.nbytes / MB for name, p in model.named_parameters()}
    layers = [sum(p.nbytes for p in layer.parameters()) / MB for layer in model.encoder.layer]
    outside = sum(size.values()) - sum(layers)
    shard, layer = sum(size.values()) * STATES / ranks, max(outside, *layers)
    return {
        "engine": engine,  # type: ignore[dict-item]
        "parameters": sum(p.numel() for p in model.parameters()),
        "own_part": round(shard, 1),
        "largest_layer": round(layer, 1),
        "bound": round(shard + layer, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--engine", default="fsdp2")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a folder with the model, to write it only once")
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        as_rank(options.as_rank, options.run, options.model, options.start)
        return
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "bert"
        if not model.exists():
            write_model(model, LARGE)
        (Path(name) / "out").mkdir()
        phases = measure(options.engine, options.ranks, Path(name) / "out", model)
    facts = bound(options.ranks, options.engine)
    print(facts)
    for phase, values in phases.items():
        values["share"] = round(values["peak"] / facts["bound"], 3)
        print(f"{phase:12s} {values}", flush=True)
    if options.json:
        write(options.json, {"machine": machine(), "ranks": options.ranks, **facts, "phases": phases})


if __name__ == "__main__":
    main()

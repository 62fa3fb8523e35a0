"""Train both demo recipes for 20 fp32 steps under four engines and write the SHA-256 of the weights as JSON.

The optimizer's moments and the loss of each step are recorded, too, to show where two checkouts differ.

    python tests/golden/weights.py OUT.json                        # the checkout that this file is in
    python tests/golden/weights.py OUT.json --checkout FOLDER      # another one, with its own .venv
    python tests/golden/weights.py OUT.json --expect BASE.json     # compare, too: 1 and a list of what differs

Only the command line is used (`rankzero train`), so that a checkout may be measured whose modules have other names.
Digests are comparable on one machine only. This file needs no packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 20
ENGINES = {"single": "debug", "ddp": "cpu", "zero2": "cpu_zero2", "fsdp2": "cpu_fsdp2"}
ROWS = {"demo-translation": 2000, "demo-sentiment": 600}
# Values that the recipes had when the first digests were made.
VALUES = {"demo-translation": [], "demo-sentiment": ["data.rows_per_batch=24", "optim.lr=1e-4", "model.pooling=mean"]}
# 20 steps, each logged, one checkpoint, and as little evaluation as there is.
SETTINGS = [
    *("loop.epochs=null", f"loop.max_steps={STEPS}", "loop.log_every=1", f"loop.save_every={STEPS}"),
    *(f"loop.eval_every={STEPS}", "loop.early_stopping.metric=loss", "optim.warmup_steps=5"),
    *("data.validation=validation?rows=4", "data.test=test?rows=4", "evaluation.splits=[]", "evaluation.beam_size=1"),
    *("export.onnx=false", "export.int8=false"),
]
FILES = (
    f"checkpoints/step-{STEPS:08d}/model.safetensors",
    f"checkpoints/step-{STEPS:08d}/optimizer.safetensors",
    "model/model.safetensors",
)
CHECKOUT = Path(__file__).resolve().parents[2]


def digest(path: Path) -> str:
    """Return the SHA-256 of the tensors of a safetensors file: sorted names, dtypes, shapes and bytes.

    A model/ in the layout of a stock library has the digest of the same weights in one file: its tensors are taken by
    their names in rankzero, also from the other files of the folder.
    """
    paths = sorted(path.parent.rglob("*.safetensors")) if path.parent.name == "model" else [path]
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for file in sorted(paths, key=lambda file: file.name != "model.safetensors"):  # the exact ones last
        tensors |= read(file)
    sha = hashlib.sha256()
    for name, (dtype, shape, content) in sorted(tensors.items()):
        sha.update(json.dumps([name, dtype, shape]).encode())
        sha.update(content)
    return sha.hexdigest()


def read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return dtype, shape and bytes of the tensors of a file by their names in rankzero."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = json.loads(header.pop("__metadata__", {}).get("rankzero", "null")) or {name: [name] for name in header}
    data, found = memoryview(content)[8 + size :], {}
    for name, parts in names.items():
        pieces = [header[part] for part in parts]
        first = pieces[0]["shape"]
        shape = [sum(piece["shape"][0] for piece in pieces), *first[1:]] if len(pieces) > 1 else first
        joined = b"".join(data[slice(*piece["data_offsets"])] for piece in pieces)
        found[name] = (pieces[0]["dtype"], shape, joined)
    return found


def losses(run: Path) -> list[float]:
    """Return the training loss of each step: a comparison then names the first step that differs."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def environment() -> dict[str, str]:
    """Return an environment without another launcher's variables: one thread, no network, no GPU."""
    foreign = ("ACCELERATE_", "FSDP_", "RANKZERO_", "SLURM_", "MASTER_", "PYTHONPATH")
    others = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in others}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def measure(rankzero: Path, recipe: str, engine: str, folder: Path) -> dict[str, Any]:
    """Train one recipe under one engine and return its digests.

    Raises:
        SystemExit: the training failed; with the end of its output.
    """
    run = folder / f"{recipe}-{engine}"
    shards = 2 if recipe == "demo-translation" else 4
    train = f"data.train=train?rows={ROWS[recipe]}&shards={shards}"
    command = [rankzero, "train", recipe, *SETTINGS, *VALUES[recipe], train, "--config", ENGINES[engine], "--run", run]
    words = [str(word) for word in command]
    ended = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}\nexit code {ended.returncode}\n{ended.stderr[-3000:]}")
    found = {**{name: digest(run / name) for name in FILES}, "losses": losses(run)}
    shutil.rmtree(run)
    return found


def differences(expected: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Return one line for each digest that differs or is only in one of the two."""
    lines = []
    for key in sorted(expected.keys() | measured.keys()):
        before, after = expected.get(key, {}), measured.get(key, {})
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if old == new:
                continue
            if isinstance(old, list) and isinstance(new, list):
                at = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(new))
                lines.append(f"{key}: {name} differ from step {at + 1}: {old[at : at + 1]} became {new[at : at + 1]}")
            else:
                lines.append(f"{key}: {name}: {old} became {new}")
    return lines


def main() -> int:
    """Measure, write and, if asked, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="whose .venv/bin/rankzero is run")
    parser.add_argument("--rankzero", type=Path, help="another command in place of CHECKOUT/.venv/bin/rankzero")
    parser.add_argument("--expect", type=Path, metavar="BASE.json", help="digests to compare with")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose RECIPE-ENGINE has this text")
    options = parser.parse_args()
    rankzero = (options.rankzero or options.checkout / ".venv/bin/rankzero").absolute()
    measured: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="rankzero-golden-"))
    try:
        for key in (f"{recipe}-{engine}" for recipe in ROWS for engine in ENGINES):
            if options.only not in key:
                continue
            began = time.monotonic()
            recipe, engine = key.rsplit("-", 1)
            measured[key] = measure(rankzero, recipe, engine, folder)
            print(f"{key}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if not options.expect:
        return 0
    expected = json.loads(options.expect.read_text(encoding="utf-8"))
    found = differences({key: value for key, value in expected.items() if options.only in key}, measured)
    print("\n".join(found) or f"{len(measured)} trainings: every digest as in {options.expect}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

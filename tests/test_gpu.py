"""What only a GPU can show. Run by benchmarks/gpu.py, or `pytest -m gpu -n 6 tests/test_gpu.py`.

RANKZERO_TEST_DEVICE=cpu rehearses the tests without one: then what a kernel is called and how much memory it takes is
not compared.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import write_recipe
from deploy_helpers import convert_to
from export_helpers import load
from processes import read_lines
from review_helpers import recipe as review_recipe
from review_helpers import task_of
from torch.profiler import ProfilerActivity, profile

from launch.tools.plan.planner import PlanOptions, make_plan
from trainer.engine.fused_lanes import memory_of
from trainer.engine.objective import Objective
from trainer.engine.prefetch import Prefetcher, streams_of
from trainer.engine.runtime import seed_for
from trainer.engine.trained_run import build_model
from trainer.engine_specs import FLOAT8
from trainer.errors import ran_out_of_memory
from trainer.files import read_json
from trainer.rank_env import RANK_VARIABLES
from trainer.tensors import read

DEVICE = os.environ.get("RANKZERO_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
QUIET = ("data.validation=null", "data.test=null", "evaluation.splits=[]")
NO_DROPOUT = ("model.dropout=0.0",)
FUSED = ("flash_attention", "efficient_attention", "cudnn_attention")

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def device() -> None:
    """Fail where there is no GPU: these tests run only where one is named."""
    assert not ON_GPU or torch.cuda.is_available(), "no GPU"


def train(recipe: Path, run: Path, *words: str, precision: str = "no", device: str = DEVICE, code: int = 0) -> str:
    """Train in one process on the device. Returns what it printed."""
    foreign = {*RANK_VARIABLES, "ACCELERATE_MIXED_PRECISION"}
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {"ACCELERATE_MIXED_PRECISION": precision, "ACCELERATE_USE_CPU": str(device == "cpu").lower()}
    env |= {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    argv = [sys.executable, "-m", "trainer", "train", str(recipe), *words, "--run", str(run)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("gpu") / "tiny.yaml", corpus)


@pytest.fixture(scope="module")
def of_cpu(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[float]:
    """Return the losses of the run in fp32 on a CPU, without dropout, whose masks differ between devices."""
    run = tmp_path_factory.mktemp("cpu") / "run"
    train(tiny, run, *QUIET, *NO_DROPOUT, device="cpu")
    return losses(run)


# -- kernels -----------------------------------------------------------------------------------------------------------


def attention_operations(task: Any) -> list[str]:
    """Return the attention operations in a forward and backward of a micro-batch under bf16 autocast."""
    model = build_model(task).to(DEVICE).train()
    objective = Objective(task, model)
    rows = [{"text": "good film " * n, "label": "1"} for n in (3, 9, 12)]
    batch = {name: tensor.to(DEVICE) for name, tensor in task.collate(task.encode(rows)).items()}
    seed_for(1, 1, 0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=activities) as recorded, torch.autocast(DEVICE, torch.bfloat16):
        Objective.parts(objective(**batch))[0].backward()
    return [event.name for event in recorded.events() if "attention" in event.name and event.name.startswith("aten::")]


@pytest.mark.parametrize("kind", ["encoder", "bert"])
def test_attention_is_fused(kind: str, reviews: Path, bert: Path) -> None:
    model = {"kind": "pretrained", "name": str(bert)} if kind == "bert" else None
    names = attention_operations(task_of(review_recipe(reviews, model)))
    if ON_GPU:
        assert any(part in name for name in names for part in FUSED), names
        assert not [name for name in names if name.endswith("attention_math")], names


def needs_float8() -> None:
    pytest.importorskip("torchao")
    if ON_GPU and torch.cuda.get_device_capability() < FLOAT8:
        pytest.skip(f"no fp8: compute capability {torch.cuda.get_device_capability()}")


def test_layers_multiply_in_fp8_in_training_only(reviews: Path) -> None:
    """The device runs its fp8 kernel. On a CPU the emulation converts the same layers."""
    needs_float8()
    from trainer.models.float8 import convert_layers  # needs torchao

    task = task_of(review_recipe(reviews))
    model = build_model(task).to(DEVICE)
    objective = Objective(task, model)
    batch = {name: tensor.to(DEVICE) for name, tensor in task.filler().items()}
    assert convert_layers(model, emulate=not ON_GPU) > 0
    kernels = []
    for training in (True, False):
        objective.train(training)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
        with profile(activities=activities) as recorded, torch.autocast(DEVICE, torch.bfloat16):
            Objective.parts(objective(**batch))[0].backward()
        kernels.append([event.name for event in recorded.events() if event.name == "aten::_scaled_mm"])
    assert not kernels[1]
    assert len(kernels[0]) > 0 if ON_GPU else not kernels[0]


def test_an_older_gpu_is_refused(tiny: Path, tmp_path: Path) -> None:
    if ON_GPU and torch.cuda.get_device_capability() >= FLOAT8:
        pytest.skip("this GPU has fp8")
    text = train(tiny, tmp_path / "run", *QUIET, precision="fp8", code=2)
    assert "compute capability 8.9" in text
    assert (torch.cuda.get_device_name() if ON_GPU else "is on a CPU") in text


# -- precision, compilation and determinism ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "words", "tolerance"),
    [
        ("no", (), 1e-4),
        ("no", ("loop.tf32=true",), 2e-2),
        ("bf16", (), 5e-2),
        ("fp16", (), 5e-2),
        ("fp8", (), 1e-1),
        ("fp8", ("loop.compile=layers",), 1e-1),
        ("no", ("loop.compile=true",), 1e-3),
        ("no", ("loop.compile=layers",), 1e-3),
        ("no", ("data.padding=none",), 1e-4),
        ("no", ("loop.fuse_lanes=4",), 1e-4),
        ("bf16", ("loop.activation_checkpointing=full",), 5e-2),
    ],
    ids=[
        "fp32",
        "tf32",
        "bf16",
        "fp16",
        "fp8",
        "fp8-compile",
        "compile",
        "compile-layers",
        "unpadded",
        "fused",
        "checkpointing",
    ],
)
def test_losses_are_those_of_a_cpu(
    precision: str, words: tuple[str, ...], tolerance: float, tiny: Path, of_cpu: list[float], tmp_path: Path
) -> None:
    if precision in ("fp16", "fp8") and not ON_GPU:
        pytest.skip(f"{precision} needs a GPU")
    if precision == "fp8":
        needs_float8()
    train(tiny, tmp_path / "run", *QUIET, *NO_DROPOUT, *words, precision=precision)
    found = losses(tmp_path / "run")
    assert found == pytest.approx(of_cpu, rel=tolerance)
    assert found[-1] < found[0]


def test_a_stopped_run_resumes_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    fixed = (*QUIET, "loop.deterministic=true")
    train(tiny, tmp_path / "whole", *fixed, precision="bf16")
    train(tiny, tmp_path / "parts", *fixed, "loop.max_steps=6", precision="bf16")
    words = (*fixed, "--allow-change", "loop.max_steps")
    train(tiny, tmp_path / "parts", *words, precision="bf16")
    one, other = (weights(tmp_path / name, 12) for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_moves_between_devices(tiny: Path, of_cpu: list[float], tmp_path: Path) -> None:
    """Four steps on the device, four on a CPU, four on the device: losses as on a CPU alone."""
    for steps, where in ((4, DEVICE), (8, "cpu"), (12, DEVICE)):
        words = (*NO_DROPOUT, f"loop.max_steps={steps}", "loop.save_every=4", "--allow-change", "loop.max_steps")
        train(tiny, tmp_path / "run", *QUIET, *words, device=where)
    assert losses(tmp_path / "run") == pytest.approx(of_cpu, rel=1e-3)


# -- memory ------------------------------------------------------------------------------------------------------------

LARGE = (
    *("data.train=train?rows=700&shards=2", *QUIET, "data.lanes=4", "data.tokens_per_batch=1024"),
    *("data.pad_multiple=8", "loop.epochs=1", "loop.save_every=1000", "loop.eval_every=1000", "loop.log_every=1"),
    *("tokenizer.train.vocab_size=2000", "model.d_model=512", "model.encoder_layers=4", "model.decoder_layers=4"),
    *("model.heads=8", "model.feed_forward=2048"),
)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_memory_is_that_of_the_plan(precision: str, tmp_path: Path) -> None:
    train(Path("demo-translation"), tmp_path / "run", *LARGE, "export.model=false", precision=precision)
    found = max(line["memory"] for line in read_lines(tmp_path / "run" / "metrics.jsonl"))
    options = PlanOptions(gpu="H100", ranks=(1,)) if ON_GPU else PlanOptions(cpu=True, ranks=(1,))
    plan = make_plan("demo-translation", LARGE, options)
    name = "fp32" if precision == "no" else precision
    planned = next(
        c
        for c in plan.configurations
        if (c.engine, c.precision, c.activation_checkpointing, c.offload) == ("single", name, False, False)
    )
    assert planned.step > 0
    if ON_GPU:
        assert found == pytest.approx(planned.step, rel=0.15)


def test_lanes_that_fit_are_fused(tiny: Path, of_cpu: list[float], tmp_path: Path) -> None:
    """All four of the tiny recipe. What was measured is what the training takes, with the moments."""
    train(tiny, tmp_path / "run", *QUIET, *NO_DROPOUT, "loop.fuse_lanes=auto")
    assert losses(tmp_path / "run") == pytest.approx(of_cpu, rel=1e-4)
    choice = (read_json(tmp_path / "run" / "manifest.json") or {})["fuse_lanes"]
    assert choice["lanes"] == (4 if ON_GPU else 1)
    if ON_GPU:
        moments = 8 * sum(tensor.numel() for tensor in weights(tmp_path / "run", 12).values())
        found = max(line["memory"] for line in read_lines(tmp_path / "run" / "metrics.jsonl"))
        assert 0 < found <= 1.1 * (choice["peak_bytes"] + moments)
        assert choice["peak_bytes"] <= choice["usable_bytes"]


def test_memory_that_ran_out_is_free_again() -> None:
    """As the measuring of fused lanes needs it: the peak, what is available, and an error that leaves nothing."""
    memory = memory_of(torch.device(DEVICE))
    assert (memory is None) != ON_GPU
    if memory is None:
        return
    before, available = memory.start(), memory.available()
    size = (available - before) // 4
    with pytest.raises(torch.OutOfMemoryError) as ended:
        _ = [torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in range(5)]
    assert ran_out_of_memory(ended.value)
    assert memory.peak() >= before + 3 * size
    del ended
    assert memory.start() == before
    assert memory.peak() == before
    assert memory.available() >= 0.95 * available


def test_copies_overlap_kernels_and_keep_their_memory() -> None:
    """A copy ends while a kernel runs that was queued before it. Its memory is not reused before its own kernel ran."""
    streams = streams_of(torch.device(DEVICE)) or hooks.SlowCopies()
    prefetcher = Prefetcher(streams)
    rows = torch.arange(1 << 22)
    batches = [{"x": (rows + n).pin_memory() if ON_GPU else rows + n} for n in range(6)]
    busy = torch.cuda.Event() if ON_GPU else None
    if busy is not None:
        prefetcher.take(batches[0])
        torch.cuda.synchronize()
        torch.cuda._sleep(3_000_000_000)  # type: ignore[no-untyped-call] # more than a second
        busy.record()
    copied, event = streams.copy(batches[0])
    if busy is not None:
        event.synchronize()
        assert not busy.query(), "the copy waited for the kernel"
    streams.wait(event)
    assert busy is None or not busy.query(), "the host waited for the kernel"
    found = []
    for batch in batches:
        prefetcher.start(batch)
        found.append(prefetcher.take(batch)["x"] * 2)
    assert busy is None or not busy.query(), "nothing has waited"
    for number, doubled in enumerate(found):
        assert torch.equal(doubled.cpu(), 2 * (rows + number))
    assert torch.equal(copied["x"].cpu(), rows)


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_onnx_answers_on_the_device_as_on_a_cpu(reviews: Path, tmp_path: Path) -> None:
    made = review_recipe(reviews, export={"model": True, "onnx": True})
    path = tmp_path / "reviews.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    train(path, tmp_path / "run")
    gate = read_json(tmp_path / "run" / "export" / "onnx" / "gate.json")
    assert gate
    assert gate["passed"]
    wanted = "CUDAExecutionProvider" if ON_GPU else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {wanted}")
    model = str(tmp_path / "run" / "export" / "onnx" / "model.onnx")
    feeds, answers = {}, []
    for provider in (wanted, "CPUExecutionProvider"):
        session = onnxruntime.InferenceSession(model, providers=[provider])
        feeds = feeds or {one.name: torch.ones(2, 8, dtype=torch.int64).numpy() for one in session.get_inputs()}
        answers.append(session.run(None, feeds)[0])
    assert math.isclose(float(abs(answers[0] - answers[1]).max()), 0.0, abs_tol=1e-3)


def test_onnx_in_fp16_answers_as_the_weights_do(encoder: Any, tmp_path: Path) -> None:
    """By the kernels of the GPU, whose sums the gate of export/fp16 cannot run."""
    if ON_GPU and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA: pip install onnxruntime-gpu")
    convert_to("fp16", encoder, tmp_path / "fp16")
    rows, answered = encoder.rows()
    artifact, examples = load(tmp_path / "fp16"), [row.example for row in answered]
    used = artifact.sessions["model"].get_providers()
    assert ("CUDAExecutionProvider" in used) == ON_GPU
    ours = encoder.export.torch_logits(rows.model, examples)
    theirs = encoder.export.artifact_logits(artifact, examples)
    gaps = [np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(theirs, ours, strict=True)]
    assert 0 < max(gaps) < 0.02

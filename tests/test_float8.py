"""Training in fp8: which layers multiply in it, what stays, what is refused, and runs with emulated kernels."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
from processes import next_logs, read_lines, run_ranks
from review_helpers import recipe as review_recipe
from review_helpers import write_reviews, written
from safetensors.torch import load_file
from slow import slow_except
from torch import nn

from trainer.engine_specs import ENGINES
from trainer.errors import UsageError
from trainer.files import read_json
from trainer.models import float8_support
from trainer.models.float8_support import check_float8

pytest.importorskip("torchao")

from trainer.models.float8 import TrainedInFloat8, convert_layers

FP8, BF16 = ({"ACCELERATE_MIXED_PRECISION": precision} for precision in ("fp8", "bf16"))


class Layer(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, inner), nn.Linear(inner, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Two repeated layers, one of them with a dimension that is not a multiple of 16, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList([Layer(64), Layer(40)])
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.head(x)
        return out


def converted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, TrainedInFloat8)]


# -- the layers --------------------------------------------------------------------------------------------------------


def test_trained_layers_of_module_lists_are_converted_and_parameters_stay() -> None:
    model = Net()
    model.layers[0].up.weight.requires_grad_(False)
    before = {name: id(p) for name, p in model.named_parameters()}
    values = copy.deepcopy(model.state_dict())
    assert convert_layers(model, emulate=True) == 1
    assert converted(model) == ["layers.0.down"], "up is frozen, 40 is not a multiple of 16, the head is no layer"
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_training_rounds_to_fp8_and_evaluation_does_not() -> None:
    plain, model = Net(), Net()
    convert_layers(model, emulate=True)
    x = torch.randn(3, 7, 32)  # 21 rows: no multiple of 16
    expected, found = plain(x), model(x)
    error = float(((found - expected).norm() / expected.norm()).detach())
    assert 1e-4 < error < 0.1
    for net, out in ((plain, expected), (model, found)):
        out.square().mean().backward()
        assert net.layers[0].up.weight.grad.dtype == torch.float32
    one, other = (net.layers[0].up.weight.grad for net in (plain, model))
    assert 1e-4 < float((one - other).norm() / one.norm()) < 0.3
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert torch.equal(copy.deepcopy(model)(x), plain(x)), "what is exported is a copy"


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no linear layer of Linear .* multiples of 16; use --config ddp_bf16"):
        convert_layers(nn.Linear(32, 32), emulate=True)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability", "cuda", "words"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), "13.0", r"GPU 0 is NVIDIA A100-SXM4-80GB \(8\.0\); use --config ddp_bf16"),
        ("Tesla T4", (7, 5), "13.0", r"8\.9 or more .* GPU 0 is Tesla T4 \(7\.5\); use --config ddp_fp16"),
        ("AMD Instinct MI300X", (9, 4), None, "NVIDIA GPUs .* MI300X .* ddp_bf16"),
        ("NVIDIA L4", (8, 9), "13.0", ""),
        ("NVIDIA H100 80GB HBM3", (9, 0), "13.0", ""),
    ],
)
def test_older_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], cuda: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if not words:
        check_float8(ENGINES["ddp"], on_cpu=False)
        monkeypatch.setattr(float8_support.importlib.util, "find_spec", lambda package: None)
        words = r"torchao, which is not installed: pip install 'rankzero\[torchao\]'"
    with pytest.raises(UsageError, match=words):
        check_float8(ENGINES["ddp"], on_cpu=False)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "fsdp2"])
def test_engines_that_shard_are_refused(engine: str) -> None:
    with pytest.raises(UsageError, match=f"engine {engine}: it runs under single and ddp; use bf16"):
        check_float8(ENGINES[engine], on_cpu=False)


@pytest.mark.ranks
def test_a_cpu_is_refused_before_data_is_read(tmp_path: Path) -> None:
    recipe = written(tmp_path, review_recipe(write_reviews(tmp_path)))
    words = ["train", recipe, "data.train=missing.jsonl", "--run", tmp_path / "run"]
    ended = run_ranks(words, next_logs(tmp_path / "run"), env=FP8)
    assert ended.codes == [2]
    assert "this run is on a CPU; use --config cpu_bf16 or cpu" in ended.err[0]
    assert "missing.jsonl" not in ended.err[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.ranks
def test_an_adapter_is_refused_before_data_is_read(tmp_path: Path, bert: Path) -> None:
    pytest.importorskip("peft")
    model = {"kind": "pretrained", "name": str(bert), "adapter": {"kind": "lora", "rank": 4}}
    recipe = written(tmp_path, review_recipe(write_reviews(tmp_path), model))
    words = ["train", recipe, "data.train=missing.jsonl", "--run", tmp_path / "run"]
    ended = run_ranks(words, next_logs(tmp_path / "run"), env=FP8, hook=hooks.allow_float8)
    assert ended.codes == [2]
    assert "fp8 with model.adapter" in ended.err[0]


# -- runs --------------------------------------------------------------------------------------------------------------


def train(recipe: Path, run: Path, *words: str, world: int = 1, env: Any = FP8, hook: Any = hooks.allow_float8) -> Any:
    argv = ["train", recipe, "loop.log_every=1", *words, "--run", run]
    return run_ranks(argv, next_logs(run), world, env=env, hook=hook)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]


@pytest.mark.ranks
@pytest.mark.parametrize("kind", slow_except(["translation", "bert", "encoder"], "translation"))
def test_a_run_learns_as_in_bf16_and_writes_the_same_files(kind: str, tmp_path: Path, bert: Path, recipe: Path) -> None:
    """The gate of model/ compares a plain process with the trained weights, in which no layer multiplies in fp8."""
    if kind != "translation":
        model = {"kind": "pretrained", "name": str(bert)} if kind == "bert" else None
        recipe = written(tmp_path, review_recipe(write_reviews(tmp_path), model))
    words = ("export.model=true",) if kind == "bert" else ("evaluation.splits=[]",)
    ended = train(recipe, tmp_path / "fp8", *words).check()
    assert "linear layers in the repeated layers multiply in fp8" in ended.err[0] + ended.out[0]
    assert kind != "bert" or (tmp_path / "fp8" / "model" / "gate.json").exists()
    train(recipe, tmp_path / "bf16", "evaluation.splits=[]", env=BF16, hook=None).check()
    one, other = losses(tmp_path / "fp8"), losses(tmp_path / "bf16")
    assert one != other
    assert one == pytest.approx(other, rel=0.05)
    assert kind != "translation" or one[-1] < 0.95 * one[0], "reviews need more than 8 steps"
    manifest = read_json(tmp_path / "fp8" / "manifest.json")
    assert manifest is not None
    assert manifest["precision"] == "fp8"
    files = [sorted((tmp_path / name / "checkpoints").glob("*/*.safetensors")) for name in ("fp8", "bf16")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]] != []
    for a, b in zip(*files, strict=True):
        described = [{name: (t.shape, t.dtype) for name, t in load_file(path).items()} for path in (a, b)]
        assert described[0] == described[1], a


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("loop.activation_checkpointing=full",)], ids=["plain", "checkpointing"])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, words: tuple[str, ...]) -> None:
    recipe = written(tmp_path, review_recipe(write_reviews(tmp_path)))
    more = ("evaluation.splits=[]", "loop.peak_tflops=1", "loop.max_steps=12", "loop.save_every=4", *words)
    train(recipe, tmp_path / "whole", *more, world=2).check()
    rates = [line.get("flops_per_second") for line in read_lines(tmp_path / "whole" / "metrics.jsonl")]
    assert any(rate and rate > 0 for rate in rates), "the meter counts the model as it was before the conversion"
    hook = partial(hooks.killed_in_float8, 10, 1)
    assert any(train(recipe, tmp_path / "run", *more, world=2, hook=hook).codes)
    resumed = train(recipe, tmp_path / "run", *more, world=2).check()
    # step 4 is complete when 8 is begun, which may not be written yet
    assert "resumed from step 4" in resumed.err[0] or "resumed from step 8" in resumed.err[0]
    last = "checkpoints/step-00000012"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "run" / last / file).read_bytes() == (tmp_path / "whole" / last / file).read_bytes(), file

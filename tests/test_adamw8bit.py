"""AdamW with moments of 8 bits: what it computes, its checkpoints, engines that refuse it, and its plan."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
from processes import engine_environment, next_logs, run_ranks, train
from review_helpers import recipe as review_recipe
from review_helpers import write_reviews, written
from safetensors.torch import load_file
from torch import nn

from launch.tools.plan.planner import PlanOptions, make_plan
from trainer.errors import UsageError
from trainer.optim.choices import moments_per_weight
from trainer.optim.optimizers import build_optimizer
from trainer.recipe.sections import OptimConfig

pytest.importorskip("torchao")

NAME = "optim.name=adamw8bit"
BLOCK = 256
STEPS = 8


class Net(nn.Module):
    """A matrix large enough for 8 bits, and a bias that stays in fp32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(64, 128)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.linear(rows) * rows.repeat(1, 2)).mean()  # gradients do not depend on the weights


def optimizer_of(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimConfig.model_validate({"lr": 1e-3, "weight_decay": 0.1, **settings}))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 10) -> None:
    rows = torch.Generator().manual_seed(2)
    for _ in range(count):
        model.zero_grad()
        model(torch.randn(4, 64, generator=rows)).backward()
        optimizer.step()


def test_it_is_adamw_with_rounded_moments() -> None:
    """A bias moves exactly as AdamW moves it, and a matrix nearly so. Rates stay numbers that a schedule can set."""
    model, twin = Net(), Net()
    before = model.linear.weight.detach().clone()
    optimizer, adamw = optimizer_of(model, name="adamw8bit"), optimizer_of(twin)
    steps(model, optimizer)
    steps(twin, adamw)
    torch.testing.assert_close(model.linear.bias, twin.linear.bias, rtol=1e-5, atol=1e-6)
    moved, expected = (net.linear.weight.detach() - before for net in (model, twin))
    assert 0 < float((moved - expected).norm() / expected.norm()) < 0.1
    assert [type(group["lr"]) for group in optimizer.param_groups] == [float, float]
    state: Any = optimizer.state[model.linear.weight]
    assert (state["exp_avg"].codes.dtype, optimizer.state[model.linear.bias]["exp_avg"].dtype) == (
        torch.uint8,
        torch.float32,
    )


def test_moments_become_plain_tensors_and_come_back_bit_for_bit() -> None:
    model = Net()
    optimizer: Any = optimizer_of(model, name="adamw8bit")
    steps(model, optimizer)
    for p in model.parameters():
        moments = {name: moment for name, moment in optimizer.state[p].items() if name != "step"}
        plain = optimizer.pack_moments(moments)
        assert all(type(tensor) is torch.Tensor for tensor in plain.values())
        assert len(plain) == (4 if p.ndim == 2 else 2)
        back = optimizer.unpack_moments(p, plain)
        for name, moment in moments.items():
            assert type(back[name]) is type(moment)
            assert getattr(back[name], "signed", None) == getattr(moment, "signed", None) or p.ndim == 1
            assert torch.equal(_values(back[name]), _values(moment))


def _values(moment: Any) -> torch.Tensor:
    return moment.dequantize() if hasattr(moment, "codes") else moment


def test_bytes_of_the_moments_are_those_of_its_tensors() -> None:
    model = Net()
    optimizer: Any = optimizer_of(model, name="adamw8bit")
    weights = 64 * 128
    expected = 2 * (weights + 4 * weights // BLOCK) + 2 * 4 * 128
    assert optimizer.moment_bytes() == expected
    assert moments_per_weight(optimizer) == pytest.approx(expected / 4 / (weights + 128))
    steps(model, optimizer, 1)
    stored = [t for p in model.parameters() for t in optimizer.pack_moments(optimizer.state[p]).values() if t.ndim]
    assert sum(tensor.nbytes for tensor in stored) == expected


# -- runs --------------------------------------------------------------------------------------------------------------


def large_recipe(tmp_path: Path) -> Path:
    """A recipe whose matrices are large enough for 8 bits."""
    made = review_recipe(write_reviews(tmp_path), model=None)
    model = {"kind": "encoder", "d_model": 64, "layers": 1, "heads": 2, "feed_forward": 128}
    values = {**made.model_dump(mode="json"), "model": model}
    return written(tmp_path, type(made).parse(values))


@pytest.mark.ranks
@pytest.mark.parametrize(("engine", "ranks"), [pytest.param("single", 1, marks=pytest.mark.slow), ("ddp", 2)])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, engine: str, ranks: int) -> None:
    recipe = large_recipe(tmp_path)
    words = [NAME, "evaluation.splits=[]", "loop.max_steps=12", "loop.save_every=4"]
    train(recipe, tmp_path / "whole", *words, world=ranks, engine=engine).check()
    hook = partial(hooks.at_micro_batch, 10, ranks - 1)
    killed = train(recipe, tmp_path / "run", *words, world=ranks, engine=engine, hook=hook)
    assert any(code for code in killed.codes)
    resumed = train(recipe, tmp_path / "run", *words, world=ranks, engine=engine).check()
    # step 4 is complete when 8 is begun, which may not be written yet
    assert "resumed from step 4" in resumed.err[0] or "resumed from step 8" in resumed.err[0]
    last = "checkpoints/step-00000012"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "run" / last / file).read_bytes() == (tmp_path / "whole" / last / file).read_bytes(), file
    moments = load_file(tmp_path / "run" / last / "optimizer.safetensors")
    coded = [name for name, tensor in moments.items() if tensor.dtype == torch.uint8]
    assert coded
    assert all(name.endswith((".exp_avg_codes", ".exp_avg_sq_codes")) for name in coded)
    assert "torchao" not in resumed.err[0] and "KernelPreference" not in resumed.err[0]


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_continues_from_the_moments_of_adamw(tmp_path: Path) -> None:
    """They are rounded to 8 bits, where --allow-change permits another optimizer."""
    recipe, words = large_recipe(tmp_path), ["evaluation.splits=[]"]
    train(recipe, tmp_path / "run", *words, "loop.max_steps=4").check()
    allowed = ["--allow-change", "optim.name", "--allow-change", "loop.max_steps"]
    train(recipe, tmp_path / "run", *words, NAME, *allowed).check()
    moments = load_file(tmp_path / f"run/checkpoints/step-{STEPS:08d}/optimizer.safetensors")
    assert any(name.endswith("_codes") for name in moments)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "engine", ["zero2", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("zero1", "zero3", "fsdp2"))]
)
def test_engines_that_would_shard_its_moments_refuse_it(tmp_path: Path, engine: str) -> None:
    """Before the first step: blocks of a part of a tensor are not those of the whole tensor."""
    words = ["train", large_recipe(tmp_path), NAME, "--run", tmp_path / "run"]
    ended = run_ranks(words, next_logs(tmp_path / "run"), 2, env=engine_environment(engine)).check(2)
    assert f"engine {engine} shards the state of the optimizer, and AdamW8bit updates" in ended.err[0]
    assert not any((tmp_path / "run/checkpoints").iterdir())


def test_a_plan_counts_its_bytes_and_leaves_out_engines_that_refuse_it(tmp_path: Path) -> None:
    recipe, options = large_recipe(tmp_path), PlanOptions(ranks=(1, 2), precisions=("fp32",))
    full, plan = make_plan(recipe, (), options), make_plan(recipe, [NAME], options)
    assert {c.engine for c in plan.configurations} == {"single", "ddp"}
    assert {c.engine for c in full.configurations} > {"single", "ddp"}
    assert plan.configurations[0].optimizer < 0.5 * full.configurations[0].optimizer
    assert plan.checkpoint["size"] < full.checkpoint["size"]
    assert [note for note in plan.notes if "optim.name=adamw8bit" in note and "ZeRO and FSDP2 refuse it" in note]
    assert not [note for note in full.notes if "optim.name" in note]
    json.dumps(plan.document())


# -- torchao itself ----------------------------------------------------------------------------------------------------


def test_without_torchao_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"optim\.name=adamw8bit needs torchao.*pip install 'rankzero\[torchao\]'"):
        optimizer_of(Net(), name="adamw8bit")


def test_a_wrong_name_and_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="adamw8bit"):
        OptimConfig(name="adamw8bits")
    for options, message in (({"amsgrad": True}, "amsgrad needs moments in fp32"), ({"blocks": 1}, "blocks")):
        with pytest.raises(UsageError, match=rf"optim\.options=.*AdamW8bit refuses them: .*{message}"):
            optimizer_of(Net(), name="adamw8bit", options=options)


def test_its_import_logs_nothing() -> None:
    """torchao warns of kernels for other devices, and torch of an enumeration of torchao."""
    code = "import trainer, torch, torchao"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("", "")

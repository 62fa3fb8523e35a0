"""A step in the steady state waits for nothing on the device, and what is read late leads to the same bits."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
from device_waits import DeviceWaits
from processes import read_lines, status, train
from safetensors.torch import load_file
from slow import slow_except

WORLDS = {"single": 1, "ddp": 2, "fsdp2": 2}
FIRST, LAST = 4, 6  # steps that are looked at
QUIET = (
    "loop.max_steps=8", "loop.eval_every=100", "loop.save_every=100", "loop.log_every=100", "loop.epochs=null",
    "evaluation.splits=[]", "data.validation=null", "optim.name=adamw", "optim.clip_norm=0.5", "export.model=false",
    "export.onnx=false", "export.int8=false",
)  # fmt: skip


# -- the finder itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: bool((x > 0).all()), lambda x: x.tolist(),
        lambda x: x.cpu(), lambda x: x.to("cpu"), lambda x: x.numpy(), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: torch.equal(x, x), lambda x: torch.where(x > 0),
    ],
)  # fmt: skip
def test_each_way_to_wait_is_found(work: Any) -> None:
    with DeviceWaits() as waits:
        work(torch.arange(3.0))
    assert sum(waits.sites.values()) >= 1
    assert all("test_device_waits.py" in place for place in waits.sites)


def test_work_that_stays_on_the_device_is_none() -> None:
    with DeviceWaits() as waits:
        x = torch.randn(4, 4, requires_grad=True)
        torch.where(x > 0, x, 0.0).softmax(-1).sum().backward()
        x.detach().mul_(torch.ones(()).double().sqrt().clamp(max=1).float())
    assert not waits.sites


# -- steps -------------------------------------------------------------------------------------------------------------


def recipe_of(model: str, request: pytest.FixtureRequest, folder: Path) -> Path:
    """A tiny recipe that trains a model."""
    import test_causal
    import test_text_to_text
    from conftest import write_corpus
    from language_helpers import write_documents
    from review_helpers import recipe as review_recipe
    from review_helpers import written

    if model == "transformer":
        return Path(request.getfixturevalue("recipe"))
    if model == "bert":
        bert = {"kind": "pretrained", "name": str(request.getfixturevalue("bert")), "pooling": "mean"}
        return written(folder, review_recipe(request.getfixturevalue("reviews"), bert))
    if model == "gpt2":
        return written(folder, test_causal.recipe(write_documents(folder, test_causal.document, train=120, test=20)))
    return written(folder, test_text_to_text.recipe(write_corpus(folder / "corpus")))


CASES = [(model, engine) for model in ("transformer", "bert", "gpt2", "t5") for engine in WORLDS]


@pytest.mark.ranks
@pytest.mark.parametrize(("model", "engine"), slow_except(CASES, ("transformer", "ddp"), ("bert", "fsdp2")))
def test_a_steady_step_does_not_wait_for_the_device(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, engine: str
) -> None:
    hook = partial(hooks.count_device_waits, tmp_path / "waits.json", FIRST, LAST)
    recipe = recipe_of(model, request, tmp_path)
    train(recipe, tmp_path / "run", *QUIET, world=WORLDS[engine], engine=engine, hook=hook).check()
    for rank in range(WORLDS[engine]):
        found = json.loads((tmp_path / f"waits.json.{rank}").read_text())
        assert not found["waits"], found["waits"]
        assert found["late"] == LAST - FIRST + 1, "the norm of each step is read once, later"
        # Moments are made in the first step, which waits. The norm of a step is read between backward and update of
        # the next one.
        steps = range(FIRST, LAST + 1)
        expected = [event for t in steps for event in (f"backward {t}", f"read {t - 1}", f"update {t}")]
        assert found["events"][-len(expected) :] == expected


@pytest.mark.ranks
@pytest.mark.slow
def test_under_zero_only_deepspeed_and_its_norm_wait(recipe: Path, tmp_path: Path) -> None:
    hook = partial(hooks.count_device_waits, tmp_path / "waits.json", FIRST, LAST)
    train(recipe, tmp_path / "run", *QUIET, world=2, engine="zero2", hook=hook).check()
    for rank in (0, 1):
        found = json.loads((tmp_path / f"waits.json.{rank}").read_text())
        assert found["waits"]
        assert all("/deepspeed/" in place or "/engines/zero.py" in place for place in found["waits"]), found["waits"]


# -- the same bits -----------------------------------------------------------------------------------------------------


def states(asynchronous: bool, clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Weights, moments and counts after each of six steps of AdamW, of which the first, third and fourth have a NaN."""
    from accelerate.state import AcceleratorState

    from trainer.engine.engines import EngineOptions, make_engine
    from trainer.engine.engines.base import Engine

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Engine, "asynchronous", asynchronous)
    engine = make_engine("single", EngineOptions(on_cpu=True, clip_norm=clip_norm))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3))
    groups = [{"params": layer.parameters(), "weight_decay": 0.1} for layer in model if list(layer.parameters())]
    engine.prepare(model, model, torch.optim.AdamW(groups, lr=0.1, fused=True))
    found = []
    for step in range(1, 7):
        engine.optimizer.param_groups[0]["lr"] = 0.0 if step == 6 else 0.1  # not unfrozen yet
        x = 30 * torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        if step in (1, 3, 4):
            x[2, 1] = math.nan
        engine.objective(x).square().sum().backward()
        update = engine.step()
        finite = math.isfinite(float(update.grad_norm))
        assert finite == (step not in (1, 3, 4))
        deferred = asynchronous and step > 2  # before, there are no moments
        assert update.finite == (None if deferred else finite)
        names = dict(model.named_parameters())
        moments = {f"{n}.{m}": t for n, p in names.items() for m, t in engine.optimizer.state.get(p, {}).items()}
        found.append({name: t.detach().clone() for name, t in {**names, **moments}.items()})
        found[-1]["norm"] = torch.tensor(float(update.grad_norm), dtype=torch.float64)
    return found


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e9])
def test_an_update_that_the_device_decides_on_is_the_same(clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    read, later = (states(asynchronous, clip_norm, monkeypatch) for asynchronous in (False, True))
    for step, (a, b) in enumerate(zip(read, later, strict=True), 1):
        assert a.keys() == b.keys(), step
        assert all(torch.equal(a[name], b[name]) or (name == "norm" and step in (1, 3, 4)) for name in a), step
    for name in read[1]:
        if name != "norm":
            assert torch.equal(later[1][name], later[3][name]), "the third and fourth step change nothing"
    assert any(not torch.equal(later[4][name], later[3][name]) for name in later[4])


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(WORLDS, "ddp"))
def test_a_run_that_reads_later_is_the_same(poisoned: Path, tmp_path: Path, engine: str) -> None:
    """With steps that are skipped, a moving average, a save right after a skipped step, and the log."""
    words = (
        "loop.max_steps=8", "loop.eval_every=100", "loop.save_every=1", "loop.keep=all", "loop.log_every=1",
        "evaluation.splits=[]", "data.validation=null", "optim.name=adamw", "loop.on_nonfinite=skip",
        "optim.averaging={kind: ema, decay: 0.9}",
    )  # fmt: skip
    ended = {
        name: train(poisoned, tmp_path / name, *words, world=WORLDS[engine], engine=engine, hook=hook).check()
        for name, hook in (("read", hooks.poison), ("later", partial(hooks.read_later, hooks.poison)))
    }
    folders = [sorted((tmp_path / name / "checkpoints").glob("step-*")) for name in ended]
    assert [len(found) for found in folders] == [8, 8]
    for a, b in zip(*folders, strict=True):
        for file in ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"):
            assert (a / file).read_bytes() == (b / file).read_bytes(), (a.name, file)
        weights, average = (load_file(a / f"{name}.safetensors") for name in ("model", "ema"))
        assert {name: t.shape for name, t in average.items()} == {name: t.shape for name, t in weights.items()}
    assert max(json.loads((folder / "state.json").read_text())["skipped"] for folder in folders[1]) == 1
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ended]
    kept = [[(line["step"], line["loss"], line["grad_norm"]) for line in run] for run in lines]
    assert kept[0] == kept[1]
    warned = [[line for line in one.err[0].splitlines() if "is skipped" in line] for one in ended.values()]
    assert warned[0] == warned[1]
    assert warned[0]


@pytest.mark.ranks
def test_a_nan_that_is_read_later_is_reported_the_same(poisoned: Path, tmp_path: Path) -> None:
    """Without saves or lines of the log that would read the norm at once."""
    for name, hook in (("read", hooks.poison), ("later", partial(hooks.read_later, hooks.poison))):
        train(poisoned, tmp_path / name, *QUIET, "loop.max_steps=30", world=2, hook=hook).check(5)
    errors = [status(tmp_path / name)["error"] for name in ("read", "later")]
    assert errors[0] == errors[1]
    assert "NaN or Inf at step" in errors[0]

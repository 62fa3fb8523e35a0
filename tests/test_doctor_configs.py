"""`rankzero doctor`: versions of packages and configs, each with a planted fault."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from doctor_helpers import check

from launch import configs
from launch.configs import shipped
from launch.tools.doctor import launching, machine
from trainer import engine_specs
from trainer.errors import UsageError

# -- versions --------------------------------------------------------------------------------------------------------


def test_this_environment_has_no_problem() -> None:
    result = check(machine.check_packages)
    assert result.status == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in result.found


@pytest.mark.parametrize(
    ("name", "version", "status", "words"),
    [
        ("torch", None, "failed", ["torch is missing", "pip install 'torch>=2.13'"]),
        ("torch", "2.12.1", "failed", ["torch 2.12.1 is not >=2.13"]),
        ("datasets", "4.0.0", "failed", ["datasets 4.0.0 is not >=5.2"]),
        ("deepspeed", None, "ok", []),
        ("deepspeed", "0.15.0", "failed", ["deepspeed 0.15.0 is not >="]),
        ("pytest", "1.0", "ok", []),  # only the tests need it
        ("torch", "2.13.0+cu130", "ok", ["torch 2.13.0+cu130"]),
        ("torch", "2.14.0.dev20261101", "ok", ["torch 2.14.0.dev20261101"]),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, status: str, words: list[str]
) -> None:
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda package: version if package == name else real(package))
    result = check(machine.check_packages)
    assert result.status == status, result
    assert all(word in result.found + result.fix for word in words), result


# -- configs ---------------------------------------------------------------------------------------------------------


def _pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, *, deepspeed: bool) -> None:
    for module in (launching, configs):
        monkeypatch.setattr(module, "gpus", lambda: gpus)
    monkeypatch.setattr(engine_specs.importlib.util, "find_spec", lambda name: object() if deepspeed else None)


def test_the_ranks_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend(monkeypatch, 0, deepspeed=True)
    plan, result = launching.choose_plan(None, 3)
    assert plan
    assert (plan.config, plan.ranks, result.status) == ("cpu", 3, "ok")
    assert "cpu: engine ddp, 3 ranks, fp32; rankzero train uses config debug" in result.found
    plan, result = launching.choose_plan("ddp", None)
    assert plan is None
    assert (result.status, "needs GPUs" in result.found) == ("failed", True)
    alone = tmp_path / "alone.yaml"
    alone.write_text(shipped()["cpu"].read_text().replace("MULTI_GPU", "MULTI_CPU"))
    assert "MULTI_CPU" in launching.choose_plan(str(alone), None)[1].found
    _pretend(monkeypatch, 0, deepspeed=False)
    assert "rankzero[deepspeed]" in launching.choose_plan("cpu_zero2", None)[1].fix
    for config, nproc in (("nosuch", None), ("debug", 2)):
        with pytest.raises(UsageError):
            launching.choose_plan(config, nproc)


def test_copies_of_a_model_are_shown_and_belong_on_one_machine_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, result = launching.choose_plan("cpu_fsdp2_hybrid", None)
    assert plan is not None
    assert (plan.copies, plan.parts, result.status) == (2, 2, "ok")
    assert "4 ranks (2 copies of the model, each in 2 parts), fp32" in result.found
    across = tmp_path / "across.yaml"
    text = shipped()["fsdp2_hybrid"].read_text().replace("replicate_size: 2", "replicate_size: 1")
    text = text.replace("shard_size: 8", "shard_size: 16")
    across.write_text(text)
    monkeypatch.setattr(configs, "gpus", lambda: 8)
    plan, result = launching.choose_plan(str(across), None)
    assert plan is not None
    assert (plan.copies, result.status) == (1, "ok"), "one copy has to be on all machines"
    across.write_text(text.replace("replicate_size: 1", "replicate_size: 4").replace("shard_size: 16", "shard_size: 4"))
    assert launching.choose_plan(str(across), None)[1].status == "ok"
    three = text.replace("num_machines: 2", "num_machines: 4").replace("replicate_size: 1", "replicate_size: 2")
    across.write_text(three.replace("shard_size: 16", "shard_size: 8"))
    plan, result = launching.choose_plan(str(across), None)
    assert (result.status, "8 parts of a copy are on several machines" in result.found) == ("warning", True), result
    assert "parallelism_config_dp_shard_size to a number that divides 4" in result.fix

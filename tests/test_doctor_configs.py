"""`rankzero doctor`: versions of packages, configs and the port, each with a planted fault."""

from __future__ import annotations

import importlib.metadata
import socket
from pathlib import Path

import pytest
import yaml
from doctor_world import check

from launch import configs
from launch.configs import shipped
from launch.tools.doctor import launching, packages
from trainer import engine_specs
from trainer.errors import UsageError

# -- versions --------------------------------------------------------------------------------------------------------


def test_this_environment_has_no_problem() -> None:
    for function in ("python", "packages", "known_bad", "combination"):
        assert check(getattr(packages, f"check_{function}")).status == "ok", function
    assert f"torch {importlib.metadata.version('torch')}" in check(packages.check_packages).found


@pytest.mark.parametrize(
    ("name", "version", "where", "status", "words"),
    [
        ("torch", None, "packages", "failed", ["torch is missing", "pip install 'torch>=2.13'"]),
        ("torch", "2.12.1", "packages", "failed", ["torch 2.12.1 is not >=2.13"]),
        ("datasets", "4.0.0", "packages", "failed", ["datasets 4.0.0 is not >=5.2"]),
        ("deepspeed", None, "packages", "ok", ["deepspeed not installed", "zero1"]),
        ("deepspeed", "0.15.0", "packages", "failed", ["deepspeed 0.15.0 is not >="]),
        ("torch", "2.13.0+cu130", "packages", "ok", ["torch 2.13.0+cu130"]),
        ("torch", "2.14.0.dev20261101", "packages", "ok", ["torch 2.14.0.dev20261101"]),
        ("optimum-onnx", "0.1.0", "known_bad", "warning", ["transformers < 4.58", "uninstall"]),
        ("tokenizers", "0.99.0", "combination", "failed", ["transformers", "requires tokenizers", "0.99.0"]),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, where: str, status: str, words: list[str]
) -> None:
    real = packages.installed
    monkeypatch.setattr(packages, "installed", lambda package: version if package == name else real(package))
    result = check(getattr(packages, f"check_{where}"))
    assert result.status == status, result
    assert all(word in result.found + result.fix for word in words), result


def test_requirements_of_an_extra_are_separate(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.13", "deepspeed>=0.19; extra == 'deepspeed'", "pytest>=8; extra == 'test'", "x; os_name == 'nt'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert [requirement.name for requirement in packages.requirements("rankzero")] == ["torch"]
    assert [requirement.name for requirement in packages.requirements("rankzero", "deepspeed")] == ["deepspeed"]


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "OLDEST_PYTHON", (9, 0))
    assert check(packages.check_python).status == "failed"


# -- configs and port ------------------------------------------------------------------------------------------------


def _pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, *, deepspeed: bool) -> None:
    for module in (launching, configs):
        monkeypatch.setattr(module, "gpus", lambda: gpus)
    monkeypatch.setattr(engine_specs.importlib.util, "find_spec", lambda name: object() if deepspeed else None)


def test_shipped_configs_and_why_others_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, 0, deepspeed=False)
    assert {name for name in shipped() if not launching.why_not(name)} == {"debug", "cpu", "cpu_bf16", "cpu_fsdp2"}
    assert launching.why_not("cpu_zero1") == "deepspeed is not installed"
    assert launching.why_not("ddp") == "no GPU"
    _pretend(monkeypatch, 1, deepspeed=True)
    assert "one process" in launching.why_not("ddp")
    assert launching.why_not("zero1") == ""
    _pretend(monkeypatch, 2, deepspeed=True)
    result = check(launching.check_shipped)
    assert "run here: cpu, cpu_bf16, cpu_fsdp2, cpu_zero1, cpu_zero2, cpu_zero3, ddp" in result.found
    several = "cpu_multinode, ddp_multinode, fsdp2_multinode, zero2_multinode, zero3_multinode"
    assert f"not {several}: for 2 machines, needs the address" in result.found


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


def test_a_default_file_of_accelerate_that_would_train_in_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launching.constants, "HF_HOME", str(tmp_path))
    assert check(launching.check_default_file).status == "ok"
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("{distributed_type: MULTI_CPU, num_processes: 2}")
    result = check(launching.check_default_file)
    assert (result.status, "MULTI_CPU" in result.found) == ("warning", True)


def _with_port(folder: Path, port: object, name: str = "cpu", **more: object) -> configs.LaunchPlan:
    values = yaml.safe_load(shipped()[name].read_text()) | {"main_process_port": port} | more
    path = folder / "port.yaml"
    path.write_text(yaml.safe_dump(values))
    return configs.describe(path)


def test_the_port_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = check(launching.check_port, _with_port(tmp_path, port))
        assert (result.status, f"{port} cannot be opened" in result.found) == ("failed", True), result
    monkeypatch.setattr(launching, "EPHEMERAL", tmp_path / "range")
    assert check(launching.check_port, _with_port(tmp_path, port)).status == "ok"
    (tmp_path / "range").write_text(f"{port}\t65000\n")
    assert "the system gives to any program" in check(launching.check_port, _with_port(tmp_path, port)).problem
    assert check(launching.check_port, _with_port(tmp_path, 0)).found.startswith("any free one")
    for wrong in (70_000, "a name"):
        assert check(launching.check_port, _with_port(tmp_path, wrong)).status == "failed"
    several_machines = _with_port(tmp_path, 29500, "ddp_multinode", machine_rank=1)
    for plan in (several_machines, configs.describe("debug"), None):
        assert check(launching.check_port, plan).status == "skipped"

"""`rankzero doctor`: versions of packages, configs and the port, each with a planted fault."""

from __future__ import annotations

import importlib.metadata
import re
import socket
from pathlib import Path

import pytest
import yaml
from doctor_world import only

from launch import configs
from launch.configs import shipped
from launch.doctoring import plans, versions
from trainer.errors import UsageError

# -- versions --------------------------------------------------------------------------------------------------------


def _pretend(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    real = versions.installed
    names = {name.replace("_", "-"): version for name, version in found.items()}
    monkeypatch.setattr(versions, "installed", lambda name: names[name] if name in names else real(name))


def test_this_environment_is_sound() -> None:
    found = versions.checks()
    assert [one.status for one in found] == ["ok"] * 4, found
    assert f"torch {importlib.metadata.version('torch')}" in only(found, "packages").found


@pytest.mark.parametrize(
    ("name", "version", "where", "status", "words"),
    [
        ("torch", None, "packages", "failed", ["torch is missing", "pip install 'torch>=2.13'"]),
        ("datasets", "4.0.0", "packages", "failed", ["datasets 4.0.0 is not >=5.2"]),
        ("deepspeed", None, "packages", "ok", ["deepspeed not installed", "zero1"]),
        ("torch", "2.12.1", "known bad versions", "failed", ["torch 2.12.1", "weights_only"]),
        ("torch", "2.13.0+cu130", "packages", "ok", ["torch 2.13.0+cu130"]),
        ("torch", "2.14.0.dev20261101", "packages", "ok", ["torch 2.14.0.dev20261101"]),
        ("onnx", "1.20.1", "known bad versions", "failed", ["onnx 1.20.1", "external data"]),
        ("transformers", "5.10.0", "known bad versions", "failed", ["transformers 5.10.0"]),
        ("deepspeed", "0.15.0", "known bad versions", "failed", ["deepspeed 0.15.0"]),
        ("optimum_onnx", "0.1.0", "known bad versions", "warning", ["transformers < 4.58", "uninstall"]),
        ("tokenizers", "0.99.0", "package combination", "failed", ["transformers", "wants tokenizers", "0.99.0"]),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, where: str, status: str, words: list[str]
) -> None:
    _pretend(monkeypatch, **{name: version})
    found = only(versions.checks(), where)
    assert found.status == status, found
    assert all(word in found.found + found.fix for word in words), found


def test_without_a_checkout_the_installed_requirements_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.13", "deepspeed>=0.19; extra == 'deepspeed'", "pytest>=8; extra == 'test'", "x; os_name == 'nt'"]
    monkeypatch.setattr(versions, "PROJECT", Path("/nonexistent"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    found = [(requirement.name, optional) for requirement, optional in versions.requirements()]
    assert found == [("torch", False), ("deepspeed", True), ("x", True)]


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "OLDEST_PYTHON", (9, 0))
    assert only(versions.checks(), "python").status == "failed"


# -- configs and port ------------------------------------------------------------------------------------------------


def test_shipped_configs_and_why_others_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "gpus", lambda: 0)
    monkeypatch.setattr(plans, "installed", lambda name: None)
    runs = {name for name in shipped() if not plans.why_not(name)}
    assert runs == {"debug", "cpu", "cpu_bf16", "cpu_fsdp2"}
    assert plans.why_not("cpu_zero1") == "DeepSpeed is not installed"
    assert plans.why_not("ddp") == "no GPU"
    monkeypatch.setattr(plans, "gpus", lambda: 1)
    assert "one process" in plans.why_not("ddp")
    monkeypatch.setattr(plans, "installed", lambda name: "0.19.8")
    monkeypatch.setattr(plans, "gpus", lambda: 2)
    found = plans.checks(None)[0]
    assert set(re.findall(r"\w+_multinode", found.found)) == {
        f"{name}_multinode" for name in ("cpu", "ddp", "fsdp2", "zero2", "zero3")
    }
    assert "needs GPUs and the address" in plans.why_not("zero2_multinode")
    assert "2 machines, needs the address" in plans.why_not("cpu_multinode")


def test_the_config_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plans, "gpus", lambda: 0)
    plan, found = plans.chosen(None, 3)
    assert plan
    assert (plan.config, plan.ranks, found.status) == ("cpu", 3, "ok")
    assert "debug" in found.found
    plan, found = plans.chosen("ddp", None)
    assert plan is None
    assert (found.status, "needs GPUs" in found.found) == ("failed", True)
    alone = tmp_path / "alone.yaml"
    alone.write_text(shipped()["cpu"].read_text().replace("MULTI_GPU", "MULTI_CPU"))
    assert "MULTI_CPU" in plans.chosen(str(alone), None)[1].found
    monkeypatch.setattr(plans, "installed", lambda name: None)
    assert "rankzero[deepspeed]" in plans.chosen("cpu_zero2", None)[1].fix
    for config, nproc in (("nosuch", None), ("debug", 2)):
        with pytest.raises(UsageError):
            plans.chosen(config, nproc)


def test_accelerates_default_file_that_trains_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert only(plans.checks(None), "accelerate's default").status == "ok"
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("{distributed_type: MULTI_CPU, num_processes: 2}")
    found = only(plans.checks(None), "accelerate's default")
    assert found.status == "warning"
    assert "MULTI_CPU" in found.found


def _with_port(folder: Path, port: object, name: str = "cpu", **more: object) -> configs.LaunchPlan:
    values = yaml.safe_load(shipped()[name].read_text()) | {"main_process_port": port} | more
    path = folder / "port.yaml"
    path.write_text(yaml.safe_dump(values))
    return configs.describe(path)


def test_the_port_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        found = plans._port(_with_port(tmp_path, taken))
        assert (found.status, f"{taken} is taken" in found.found) == ("failed", True), found
    monkeypatch.setattr(plans, "EPHEMERAL", tmp_path / "range")
    assert plans._port(_with_port(tmp_path, taken)).status == "ok"
    (tmp_path / "range").write_text(f"{taken}\t65000\n")
    assert "hands out" in plans._port(_with_port(tmp_path, taken)).problem
    assert plans._port(_with_port(tmp_path, 0)).found.startswith("any free one")
    assert plans._port(_with_port(tmp_path, 70_000)).status == "failed"
    assert plans._port(configs.describe("debug")).status == "skipped"
    many = _with_port(tmp_path, 29500, "ddp_multinode", machine_rank=1)
    assert plans._port(many).status == "skipped"

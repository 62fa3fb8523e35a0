"""Several machines: the options of `rankzero train`, and the launchers in examples/launchers and the Dockerfile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import status, wait_until
from safetensors.numpy import load_file

from launch import configs
from launch.cli import OF_LAUNCHER, _machines
from launch.configs import Machines, choose
from launch.local import command
from trainer.errors import UsageError
from trainer.rank_env import RANK_VARIABLES

ROOT = Path(__file__).parent.parent
LAUNCHERS = ROOT / "examples" / "launchers"
SMALL = ("loop.max_steps=24", "loop.save_every=4", "loop.eval_every=24", "evaluation.bootstrap=10", "export.onnx=false")


# -- rankzero train --machines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "ranks"), [("cpu", 6), ("cpu_zero2", 6), ("cpu_multinode", 3)])
def test_the_options_replace_the_machines_of_a_config(config: str, ranks: int) -> None:
    plan = choose(config, None, Machines(3, 2, "node0:1234"))
    assert (plan.machines, plan.ranks, plan.ranks_here) == (3, ranks, ranks // 3)
    words = " ".join(command(plan, ["train"]))
    for expected in (
        f"--num_processes {ranks}",
        "--num_machines 3 --machine_rank 2 --main_process_ip node0 --main_process_port 1234 --rdzv_backend static",
    ):
        assert expected in words
    assert words.count("--num_processes") == 1
    assert ("--deepspeed_multinode_launcher standard" in words) == (plan.spec.zero_stage is not None)
    assert choose(config, 12, Machines(3, 0, "node0")).ranks_here == 4
    assert "--main_process_port 29500" in " ".join(command(choose(config, None, Machines(3, 0, "node0")), ["train"]))


def test_a_config_for_gpus_has_a_rank_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "gpus", lambda: 8)
    assert choose("zero2", None, Machines(4, 1, "node0")).ranks == 32
    assert choose("ddp_multinode", None, Machines(4, 1, "node0")).ranks == 32
    monkeypatch.setattr(configs, "gpus", lambda: 1)
    assert choose(None, None, Machines(4, 1, "node0")).engine == "ddp"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((2, None, None), "missing: --machine-rank, --main-address"),
        ((None, 0, "node0"), "missing: --machines"),
        ((2, 2, "node0"), "--machine-rank 2: allowed: 0 to 1"),
    ],
)
def test_incomplete_options_are_refused(options: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _machines(*options)
    assert _machines(None, None, None) is None
    assert _machines(1, 0, "here") is None, "one machine is no special case for a script"


@pytest.mark.parametrize(
    ("config", "machines", "words"),
    [
        ("debug", Machines(2, 0, "node0"), "--machines 2: config debug is one process; take --config cpu or ddp"),
        ("cpu", Machines(2, 0, ":29500"), "--main-address :29500: allowed: HOST"),
        ("cpu", Machines(2, 0, "node0:x"), "--main-address node0:x: allowed: HOST"),
        ("cpu", Machines(2, 0, "node0:70000"), "--main-address node0:70000"),
        ("cpu_fsdp2_hybrid", Machines(2, 0, "node0"), "num_processes, which is 8"),
    ],
)
def test_machines_that_do_not_fit_are_refused(config: str, machines: Machines, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(config, None, machines)


@pytest.mark.ranks
@pytest.mark.slow
def test_two_machines_make_the_steps_of_one(recipe: Path, tmp_path: Path) -> None:
    port = _free_port()
    train = [str(Path(sys.executable).with_name("rankzero")), "train", str(recipe), *SMALL, "--config", "cpu"]
    _end(subprocess.Popen([*train, "--run", str(tmp_path / "one")], env=_environment(), cwd=tmp_path))
    several = [*train, "--nproc", "2", "--machines", "2", "--main-address", f"127.0.0.1:{port}"]
    several += ["--run", str(tmp_path / "two"), "--machine-rank"]
    started = [subprocess.Popen([*several, rank], env=_environment(), cwd=tmp_path) for rank in ("1", "0")]
    for machine in started:
        _end(machine)
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["ranks"] == 2
    assert _weights(tmp_path / "two") == _weights(tmp_path / "one")


# -- torchrun over ssh -----------------------------------------------------------------------------------------------


def test_words_reach_the_hosts_as_they_were_typed(tmp_path: Path) -> None:
    """A fake ssh runs the command of each host in a separate shell, as sshd does."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\nhost=${*: -2:1}\nbash -c "${*: -1}" | sed "s/^/$host /"\n')
    python = tmp_path / "a python"
    python.write_text('#!/bin/bash\nprintf "%s|" "$PWD" "$NCCL_DEBUG" "$@"; echo\n')
    for path in (ssh, python):
        path.chmod(0o755)
    typed = ["a recipe.yaml", "task.name=it's $HOME `x`", "--run", "runs/ü"]
    env = os.environ | {"SSH": str(ssh), "PYTHON": str(python), "NCCL_DEBUG": "a; b"}
    script = [LAUNCHERS / "hosts.sh", "n0,n1", "8", *typed]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = sorted(done.stdout.splitlines())
    assert [line.partition(" ")[0] for line in lines] == ["n0", "n1"]
    for host, line in zip(("n0", "n1"), lines, strict=True):
        words = line.partition(" ")[2].split("|")[:-1]
        assert words[:2] == [str(tmp_path), "a; b"]
        assert words[-len(typed) :] == typed
        agent = " ".join(words)
        assert "--nnodes 2 --nproc_per_node 8 --max-restarts 3 --rdzv_backend c10d --rdzv_endpoint n0:29500" in agent
        first = str(host == "n0").lower()
        assert f"--local_addr {host} --rdzv_conf is_host={first} -m -- trainer train" in agent


def test_the_script_ends_with_the_code_of_a_host_that_failed(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\n[ "${*: -2:1}" = n0 ] || exit 7\n')
    ssh.chmod(0o755)
    env = os.environ | {"SSH": str(ssh)}
    assert subprocess.run([LAUNCHERS / "hosts.sh", "n0,n1", "1", "x"], env=env, check=False).returncode == 7
    usage = subprocess.run([LAUNCHERS / "hosts.sh", "n0"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "examples/launchers/hosts.sh node0,node1 8 mt.yaml" in usage.stderr


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Two network namespaces, joined by a cable, each with its own sshd. Gives the variables and addresses."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if os.geteuid() or not shutil.which("ip") or not Path(sshd).exists():
        pytest.skip("two hosts need root, iproute2 and openssh-server")
    tag = secrets.token_hex(2)
    names, addresses = [f"rz{tag}a", f"rz{tag}b"], ["10.213.7.1", "10.213.7.2"]
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    daemons = []
    with contextlib.ExitStack() as stack:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        first, second = names
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second],
            check=True,
        )
        for name, address in zip(names, addresses, strict=True):
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", "eth0"], check=True)
            for link in ("lo", "eth0"):
                subprocess.run([*inside, "link", "set", link, "up"], check=True)
            options = {
                "ListenAddress": address, "HostKey": key, "AuthorizedKeysFile": f"{key}.pub", "StrictModes": "no",
                "PermitRootLogin": "prohibit-password", "UsePAM": "no", "PidFile": "none",
            }  # fmt: skip
            words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
            daemons.append(subprocess.Popen(["ip", "netns", "exec", name, sshd, "-D", "-f", "/dev/null", *words]))
            stack.callback(daemons[-1].wait, 10)
            stack.callback(daemons[-1].terminate)
        client = f"ip netns exec {first} ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        for address in addresses:
            wait_until(lambda to=address: not subprocess.run([*client.split(), to, "true"]).returncode, 30)
        yield {"SSH": client, "GLOO_SOCKET_IFNAME": "eth0", "PYTHON": sys.executable}, addresses


@pytest.mark.ranks
@pytest.mark.slow
def test_two_hosts_over_ssh_survive_the_loss_of_a_rank(
    recipe: Path, tmp_path: Path, hosts: tuple[dict[str, str], list[str]]
) -> None:
    variables, addresses = hosts
    train = [str(recipe), *SMALL, "--run"]
    alone = [str(Path(sys.executable).with_name("rankzero")), "train", *train, str(tmp_path / "one"), "--config", "cpu"]
    _end(subprocess.Popen(alone, env=_environment(), cwd=tmp_path))
    run, env = tmp_path / "two", _environment(RUN_ID=secrets.token_hex(4)) | variables
    script = [str(LAUNCHERS / "hosts.sh"), ",".join(addresses), "1", *train, str(run)]
    started = subprocess.Popen(script, env=env, cwd=tmp_path)
    try:
        wait_until(lambda: started.poll() is not None or status(run)["step"] >= 8, 240)
        assert started.poll() is None
        _rank(run, "1").send_signal(signal.SIGKILL)
        _end(started)
    finally:
        started.terminate()
    assert (status(run)["state"], status(run)["attempt"]) == ("finished", 2)
    assert _weights(run) == _weights(tmp_path / "one")


def _rank(run: Path, rank: str) -> Any:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == rank and str(run) in process.cmdline():
                return process
    raise AssertionError(f"no rank {rank} of {run}")


# -- Kubernetes, SkyPilot, images ------------------------------------------------------------------------------------


def _jobset() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((LAUNCHERS / "jobset.yaml").read_text())
    return loaded


def _is_valid(jobset: dict[str, Any]) -> bool:
    """Whether the schema of JobSet and Kubernetes knows every key, with a value of its type."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
    from pydantic import ValidationError

    try:
        read = JobsetV1alpha2JobSet.from_dict(jobset)
    except ValidationError:
        return False
    assert read is not None
    return bool(read.to_dict() == jobset)  # a key that is unknown is missing


def test_the_jobset_is_valid() -> None:
    assert _is_valid(_jobset())
    for path, value in (
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "replicatedJobs", 0, "template", "spec", "backoffLimits"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "completions"), "two"),
    ):
        wrong = _jobset()
        place: Any = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert not _is_valid(wrong), path


def test_the_jobset_starts_a_run_that_rankzero_understands() -> None:
    jobset = _jobset()
    job = jobset["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]
    container = pods["template"]["spec"]["containers"][0]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"] if word.startswith("--"))
    assert {f"--{name}" for name in options} <= {*OF_LAUNCHER, "--run"}
    assert int(options["machines"]) == pods["completions"] == pods["parallelism"]
    name = jobset["metadata"]["name"]
    assert options["main-address"] == f"{name}-{job['name']}-0-0.{name}"
    codes = pods["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (codes["containerName"], codes["values"]) == (container["name"], [2, 3, 4, 5, 6])
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pods["template"]["spec"]["volumes"]
    }


@pytest.mark.slow
def test_skypilot_accepts_its_task() -> None:
    python = os.environ.get("RANKZERO_SKYPILOT_PYTHON")
    if not python:
        pytest.skip("RANKZERO_SKYPILOT_PYTHON is not set: a Python with skypilot (.ci/run makes one)")
    code = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); [resources] = task.resources; "
        "print(task.num_nodes, resources.use_spot, resources.accelerators, resources.job_recovery)"
    )
    done = subprocess.run([python, "-c", code, LAUNCHERS / "sky.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 True {'A100-80GB': 8}" in done.stdout
    assert "75" in done.stdout
    wrong = subprocess.run([python, "-c", code, "/dev/stdin"], input="nodes: 2", capture_output=True, text=True)
    assert wrong.returncode != 0


def test_the_task_of_skypilot_has_our_options() -> None:
    task = yaml.safe_load((LAUNCHERS / "sky.yaml").read_text())
    used = set(re.findall(r"(?<= )--[a-z-]+", task["run"]))
    assert used == {"--config", "--run", "--machines", "--machine-rank", "--main-address"}
    assert not subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode


@pytest.mark.parametrize("file", ["Dockerfile", "examples/launchers/rankzero.def"])
def test_an_image_has_all_files_and_extras_of_the_package(file: str, tmp_path: Path) -> None:
    """What the image copies is enough to build the wheel, and the wheel is the same as from the repository."""
    text = (ROOT / file).read_text()
    copied = re.findall(r"^(?:COPY|   ) ?(.+) /src/\S*$", text, re.MULTILINE)
    sources = [name for line in copied for name in line.split()]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in sources:
        assert f"!{name}" in ignored
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"pyproject.toml", "constraints.txt", project["project"]["readme"]} <= set(sources)
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]) <= set(sources)
    [extras] = re.findall(r"'/src\[(.+)]'", text)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    build = "from hatchling.build import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- helpers ---------------------------------------------------------------------------------------------------------


def _environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)} | changes


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()


def _weights(run: Path) -> dict[str, bytes]:
    files = sorted(run.glob("checkpoints/step-*24/*.safetensors"))
    assert files
    return {f"{file.name} {name}": value.tobytes() for file in files for name, value in load_file(file).items()}

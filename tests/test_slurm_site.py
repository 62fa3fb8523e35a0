"""Site files: defaults of a cluster for all of its users."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_helpers import Sandbox, script

from launch.slurm import site
from launch.slurm.checks import _options
from launch.slurm.job import Job
from launch.slurm.site import read_site
from trainer.errors import UsageError

FULL = """\
partition: gpu
account: 12345
time: 12:00:00
chain: 3
gpu_request: gres
gpu_type: a100
modules: [cuda/12.8, "a module; touch canary"]
environment: {NCCL_SOCKET_IFNAME: ib0, NCCL_IB_HCA: "mlx5 $(touch canary)", NCCL_NTHREADS: 256}
scratch: /scratch/{user}/it's {job}
setup: [export FROM_SITE=1]
extra: [--exclusive]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three places of site files, none of which exists."""
    paths = {
        "system": tmp_path / "etc" / "site.yaml",
        "named": tmp_path / "lab.yaml",
        "user": tmp_path / "home" / "rankzero" / "site.yaml",
    }
    for path in paths.values():
        path.parent.mkdir(exist_ok=True, parents=True)
    monkeypatch.setattr(site, "SYSTEM", paths["system"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RANKZERO_SITE", raising=False)
    return paths


def directives(job: Job) -> list[str]:
    return [line.partition("  ")[0][8:] for line in script(job).splitlines() if line.startswith("#SBATCH")]


def test_without_files_nothing_changes(files: dict[str, Path], tiny_job: Callable[..., Job]) -> None:
    job = tiny_job()
    assert job.recipe.launch.setup == []
    assert not [line for line in directives(job) if line.startswith("--partition")]
    assert job.site.describe().startswith(f"no site file ({files['system']}")


def test_a_script_has_the_defaults_of_the_site(files: dict[str, Path], tiny_job: Callable[..., Job]) -> None:
    files["system"].write_text(FULL)
    job = tiny_job(config="ddp", gpus_per_node=4, setup=["export FROM_RECIPE=1"], extra=["--comment=x"])
    lines = directives(job)
    expected = ["--partition=gpu", "--account=12345", "--time=12:00:00", "--gres=gpu:a100:4", "--exclusive"]
    assert all(line in lines for line in expected), lines
    assert not [line for line in lines if line.startswith("--gpus-per-node")]
    assert lines.index("--exclusive") < lines.index("--comment=x")
    assert job.recipe.launch.chain == 3
    assert job.plan.ranks == 4
    assert job.recipe.launch.setup[-2:] == ["export FROM_SITE=1", "export FROM_RECIPE=1"]
    assert _options(job).status == "ok"
    keys = "partition, account, time, chain, gpu_request, gpu_type, modules, environment, scratch, setup, extra"
    assert job.site.describe() == f"{files['system']}: {keys}"


def test_the_dependent_job_asks_for_one_gpu_in_the_form_of_the_site(
    files: dict[str, Path], tiny_job: Callable[..., Job]
) -> None:
    files["system"].write_text("gpu_request: gres\ngpu_type: a100\n")
    values = tiny_job(config="ddp", gpus_per_node=4).finalize_values()
    assert (values["gpus_per_node"], values["gpu_request"]) == ("a100:1", "gres")


def test_values_are_quoted(files: dict[str, Path], tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    files["system"].write_text(FULL)
    job = tiny_job(setup=['module() { printf "%s\\n" "$*" >>"$WORLD/modules"; }'])
    own = job.recipe.launch.setup
    launch = job.recipe.launch.model_copy(update={"setup": [own[-1], *own[:-1]]})
    world = Sandbox(tmp_path / "world", job.run)
    values = job.values() | {"setup": launch.setup}
    went = world.go(script(job, **values), (0,), (0,))  # mkdir, ranks
    assert went.code == 0, went.log
    assert went.environment["NCCL_IB_HCA"] == "mlx5 $(touch canary)"
    assert (went.environment["NCCL_NTHREADS"], went.environment["FROM_SITE"]) == ("256", "1")
    assert went.environment["TMPDIR"] == f"/scratch/{getpass.getuser()}/it's 7"
    assert (world.folder / "modules").read_text() == "load cuda/12.8\nload a module; touch canary\n"
    assert went.words[0][-4:] == ["mkdir", "-p", "--", went.environment["TMPDIR"]]
    assert not list(tmp_path.rglob("canary"))


def test_options_and_the_recipe_go_before_the_site(files: dict[str, Path], tiny_job: Callable[..., Job]) -> None:
    files["system"].write_text(FULL)
    launch = tiny_job("launch.account=mine", "launch.chain=auto", partition="debug", time="24:00:00").recipe.launch
    assert (launch.account, launch.partition, launch.time, launch.chain) == ("mine", "debug", "24:00:00", "auto")
    assert tiny_job(config="ddp", gpus_per_node="h100:2").recipe.launch.gpus_per_node == "h100:2"


def test_the_frozen_recipe_is_the_user_s(files: dict[str, Path], tiny_job: Callable[..., Job]) -> None:
    """What a run trains does not depend on the machine, and a site's lines are not added twice."""
    without = tiny_job().words
    files["system"].write_text(FULL)
    job = tiny_job()
    assert job.words == without
    assert all("ib0" not in text for text in job.frozen.values())


def test_later_files_go_before_earlier_ones(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files["system"].write_text("partition: a\naccount: a\nqos: a\nmodules: [a, b]\nenvironment: {A: 1, B: 1}\n")
    files["named"].write_text("account: b\nqos: b\nmodules: [c]\nenvironment: {B: 2}\n")
    monkeypatch.setenv("RANKZERO_SITE", str(files["named"]))
    files["user"].write_text("qos: c\nenvironment: {C: 3}\n")
    found = read_site()
    assert (found.site.partition, found.site.account, found.site.qos, found.site.modules) == ("a", "b", "c", ["c"])
    assert found.site.environment == {"A": "1", "B": "2", "C": "3"}
    assert list(found.keys) == [files["system"], files["named"], files["user"]]


@pytest.mark.parametrize(
    ("container", "lines"),
    [
        ("{pyxis: /i x.sqsh, mounts: ['/a:/b', '/c:/d']}",
         ["SRUN+=('--container-image=/i x.sqsh' --container-mounts=/a:/b,/c:/d)"]),
        ("{pyxis: i, python: /opt/python}", ["SRUN+=(--container-image=i)", "PYTHON=(/opt/python)"]),
        ("{apptainer: /i.sif, mounts: ['/a:/b']}", ["PYTHON=(apptainer exec --nv --bind /a:/b /i.sif python3)"]),
        ("{apptainer: /i.sif, options: [], python: p}", ["PYTHON=(apptainer exec /i.sif p)"]),
    ],
)  # fmt: skip
def test_containers(files: dict[str, Path], container: str, lines: list[str]) -> None:
    files["system"].write_text(f"container: {container}\n")
    assert read_site().site.setup_lines() == lines
    assert subprocess.run(["bash", "-n", "-c", "\n".join(["SRUN=()", *lines])]).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partiton: gpu", "partiton: unknown key; did you mean partition?"),
        ("container: {pyxis: a, mount: [b]}", "container.mount: unknown key; did you mean mounts?"),
        ("container: {pyxis: a, apptainer: b}", "container: give one of pyxis and apptainer"),
        ("scratch: ~/tmp", "scratch: must begin with /"),
        ("scratch: $SLURM_TMPDIR/{job}", "scratch: must begin with /"),
        ("container: {}", "container: give one of pyxis and apptainer"),
        ("gpu_request: gpus", "gpu_request: Input should be 'gpus-per-node' or 'gres', not 'gpus'"),
        ("environment: {A B: 1}", "'A B' is not the name of a variable"),
        ("environment: {RANKZERO_RANKS: 1}", "RANKZERO_RANKS is set by the job script"),
        ("environment: {A: true}", "A must be a text or a number, not True"),
        ('modules: ["a\\nb"]', "must be one line of text"),
        ("chain: -1", "chain"),
        ("- a list", "a site file is a mapping of keys, not list"),
        ("a: [", "not valid YAML"),
        ("partition: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_wrong_files_are_refused(files: dict[str, Path], text: str, words: str) -> None:
    files["user"].write_text(text)
    with pytest.raises(UsageError) as caught:
        read_site()
    assert words in str(caught.value)
    assert str(files["user"]) in str(caught.value)


def test_all_problems_of_a_file_are_named_at_once(files: dict[str, Path]) -> None:
    files["system"].write_text("partiton: gpu\ngpu_request: x\n")
    with pytest.raises(UsageError, match=r"(?s)partiton.*gpu_request|gpu_request.*partiton"):
        read_site()


def test_a_variable_that_names_no_file_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKZERO_SITE", "/nowhere/site.yaml")
    with pytest.raises(UsageError, match=r"\$RANKZERO_SITE=/nowhere/site.yaml: there is no such file"):
        read_site()


def test_an_empty_file_sets_nothing(files: dict[str, Path]) -> None:
    files["system"].write_text("# nothing yet\n")
    assert read_site().site == site.Site()

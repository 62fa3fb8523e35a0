"""Start runs: read configs, forward signals, keep exit codes, and leave no process behind.

The processes are real (`accelerate launch`, two ranks); only `trainer` is a stub without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from slow import slow_except

from launch import configs, local
from launch.accelerate_env import launcher_environment
from launch.configs import choose, describe, shipped
from launch.supervise import exit_codes, processes, restarts
from trainer import cpu_info
from trainer.engine_specs import ENGINES
from trainer.errors import UsageError

ROOT = Path(__file__).parent.parent

TABLE = {  # engine, ranks over all machines (None: one for each GPU), precision, on CPU, machines
    "debug": ("single", 1, "no", False, 1),
    "cpu": ("ddp", 2, "no", True, 1),
    "cpu_bf16": ("ddp", 2, "bf16", True, 1),
    "ddp": ("ddp", None, "no", False, 1),
    "ddp_bf16": ("ddp", None, "bf16", False, 1),
    "ddp_fp16": ("ddp", None, "fp16", False, 1),
    "ddp_fp8": ("ddp", None, "fp8", False, 1),
    "ddp_multinode": ("ddp", 16, "no", False, 2),
    "cpu_zero1": ("zero1", 2, "no", True, 1),
    "cpu_zero2": ("zero2", 2, "no", True, 1),
    "cpu_zero3": ("zero3", 2, "no", True, 1),
    "cpu_fsdp2": ("fsdp2", 2, "no", True, 1),
    "cpu_fsdp2_hybrid": ("fsdp2", 4, "no", True, 1),
    "zero1": ("zero1", None, "bf16", False, 1),
    "zero2": ("zero2", None, "bf16", False, 1),
    "zero3": ("zero3", None, "bf16", False, 1),
    "zero3_offload": ("zero3", None, "bf16", False, 1),
    "zero2_multinode": ("zero2", 16, "bf16", False, 2),
    "zero3_multinode": ("zero3", 16, "bf16", False, 2),
    "fsdp2": ("fsdp2", None, "bf16", False, 1),
    "fsdp2_multinode": ("fsdp2", 16, "bf16", False, 2),
    "fsdp2_hybrid": ("fsdp2", 16, "bf16", False, 2),
}

COPIES = "parallelism_config_dp_replicate_size"


# -- configs ---------------------------------------------------------------------------------------------------------


def test_shipped_configs_agree_with_the_table() -> None:
    assert set(TABLE) <= set(shipped())
    for name, expected in TABLE.items():
        plan = describe(name)
        assert (plan.engine, plan.ranks, plan.precision, plan.cpu, plan.machines) == expected, name


def test_the_table_of_engines_agrees_with_the_shipped_configs() -> None:
    for name, spec in ENGINES.items():
        for config, on_cpu in ((spec.cpu_config, True), (spec.gpu_config, False)):
            plan, values = describe(config), yaml.safe_load(shipped()[config].read_text(encoding="utf-8"))
            assert (plan.spec, values["distributed_type"]) == (spec, spec.distributed_type), name
            assert spec.one_process or plan.cpu == on_cpu, name
    assert [name for name, spec in ENGINES.items() if not spec.sharded] == ["single", "ddp"]
    assert choose("cpu", 1).spec.one_process, "DDP with one rank"
    assert not choose("cpu_zero2", 1).spec.one_process


@pytest.mark.parametrize("name", sorted(TABLE))
def test_accelerate_itself_accepts_each_shipped_config(name: str) -> None:
    """Accelerate refuses unknown keys and badly quoted values. No process is started."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(shipped()[name]))
    assert (config.mixed_precision, config.num_machines) == (TABLE[name][2], TABLE[name][4])


def test_accelerate_starts_one_rank_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`num_processes: gpu` is a value of torchrun, which accelerate only forwards."""
    import torch
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env
    from torch.distributed.run import determine_local_world_size

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for extra, ranks in (([], 3), (["--num_processes", "2"], 2)):
        words = ["--config_file", str(shipped()["ddp"]), *extra, "-m", "trainer", "train", "multi30k"]
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        prepare_multi_gpu_env(args)
        assert determine_local_world_size(args.nproc_per_node) == ranks


def _config(folder: Path, name: str = "cpu", **changes: object) -> Path:
    values = yaml.safe_load(shipped()[name].read_text(encoding="utf-8")) | changes
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value != "absent"}))
    return path


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("cpu", {"distributed_type": "MULTI_CPU"}, ["distributed_type", "MULTI_CPU", "MULTI_GPU"]),
        ("debug", {"distributed_type": False}, ["distributed_type", "False", "quoted"]),
        ("debug", {"num_processes": 2}, ["num_processes", "2"]),
        ("cpu", {"mixed_precision": False}, ["mixed_precision", "quoted"]),
        ("cpu", {"mixed_precision": "fp4"}, ["mixed_precision", "fp4", "fp16 or fp8"]),
        ("cpu", {"mixed_precision": "fp8"}, ["mixed_precision", "fp8", "no or bf16", "GPUs"]),
        ("fsdp2", {"mixed_precision": "fp8"}, ["mixed_precision", "fp8", "MULTI_GPU"]),
        ("cpu", {"mixed_precision": "fp16"}, ["mixed_precision", "fp16", "silently"]),
        ("cpu", {"num_processes": "absent"}, ["num_processes", "a number"]),
        ("cpu", {"num_processes": 0}, ["num_processes", "0"]),
        ("cpu", {"num_processes": True}, ["num_processes", "True"]),
        ("cpu", {"use_cpu": "yes, please"}, ["use_cpu"]),
        ("cpu", {"distributed_type": "DEEPSPEED"}, ["deepspeed_config.zero_stage", "None"]),
        ("cpu", {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, ["fsdp_config.fsdp_version", "2"]),
        ("ddp_multinode", {"num_processes": 3}, ["num_processes", "3", "multiple of the 2"]),
        ("ddp_multinode", {"machine_rank": 2}, ["machine_rank", "2", "0 to 1"]),
        ("ddp_multinode", {"main_process_ip": None}, ["main_process_ip"]),
        ("ddp_multinode", {"main_process_port": 0}, ["main_process_port"]),
        ("cpu_fsdp2_hybrid", {"num_processes": 6}, ["dp_replicate_size", "2 x 2", "num_processes, which is 6"]),
        ("cpu_fsdp2_hybrid", {"parallelism_config": {COPIES: 4}}, ["4 x 1", "2 parts or more"]),
        ("cpu_fsdp2_hybrid", {"parallelism_config": {COPIES: "two"}}, [COPIES, "two", "a whole number"]),
    ],
)
def test_a_config_that_would_not_run_as_written_is_refused(
    tmp_path: Path, name: str, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        describe(_config(tmp_path, name, **changes))
    assert all(word in str(caught.value) for word in ["changed.yaml", *words]), caught.value


def test_engines_of_configs_for_later_engines(tmp_path: Path) -> None:
    for stage in (1, 2, 3):
        path = _config(tmp_path, distributed_type="DEEPSPEED", deepspeed_config={"zero_stage": stage})
        assert describe(path).engine == f"zero{stage}"
    assert describe(_config(tmp_path, distributed_type="FSDP", fsdp_config={"fsdp_version": 2})).engine == "fsdp2"


def test_unknown_config_names_the_nearest_and_all() -> None:
    with pytest.raises(UsageError, match=r"cpu_bf61.*did you mean cpu_bf16.*debug"):
        describe("cpu_bf61")


@pytest.mark.parametrize("text", ["- a list", "{not: [yaml", "\x00"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"x\.yaml"):
        describe(path)


@pytest.mark.parametrize(("found", "config", "ranks"), [(0, "debug", 1), (1, "debug", 1), (2, "ddp", 2), (8, "ddp", 8)])
def test_without_a_config_the_gpus_decide(monkeypatch: pytest.MonkeyPatch, found: int, config: str, ranks: int) -> None:
    monkeypatch.setattr(configs, "gpus", lambda: found)
    plan = choose(None, None)
    assert (plan.config, plan.ranks) == (config, ranks)


def test_nproc_overrides_the_file_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "gpus", lambda: 4)
    assert choose("cpu", 4).ranks == 4
    assert choose("ddp", None).ranks == 4
    assert choose("ddp", 3).ranks == 3
    for config, nproc, words in (
        ("debug", 2, "one process"),
        ("cpu", 0, "at least 1"),
        ("ddp", 5, "--nproc 4 at most"),
        ("ddp_multinode", None, "--nproc 8 at most"),
        ("ddp_multinode", 5, "2 machines"),
    ):
        with pytest.raises(UsageError, match=words):
            choose(config, nproc)
    monkeypatch.setattr(configs, "gpus", lambda: 0)
    with pytest.raises(UsageError, match="needs GPUs"):
        choose("ddp", None)


def test_ddp_with_one_rank_is_one_process_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choose("cpu_bf16", 1)
    assert (plan.engine, plan.ranks, plan.precision, plan.cpu) == ("single", 1, "bf16", True)
    assert "engine single instead of ddp" in plan.note
    monkeypatch.setattr(configs, "gpus", lambda: 1)
    assert choose("ddp", None).engine == "single"


def test_emulated_bf16_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "bf16_arithmetic", lambda: False)
    assert "--config cpu" in choose("cpu_bf16", None).note
    assert not choose("cpu", None).note
    alone = choose("cpu_bf16", 1)
    assert alone.engine == "single"
    assert "engine single instead of ddp" in alone.note
    assert "emulates bf16" in alone.note
    assert local.environment(alone)["RANKZERO_NOTED"] == "1", "the ranks do not warn a second time"
    monkeypatch.setattr(configs, "bf16_arithmetic", lambda: True)
    assert not choose("cpu_bf16", None).note
    assert "RANKZERO_NOTED" not in local.environment(choose("cpu_bf16", None))


def test_ranks_that_another_launcher_started_warn_of_emulated_bf16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.engine import runtime

    monkeypatch.delenv("RANKZERO_NOTED", raising=False)
    for emulated, precision, noted in (
        (True, "bf16", False),
        (True, "bf16", True),
        (True, "no", False),
        (False, "bf16", False),
    ):
        monkeypatch.setattr(runtime, "bf16_arithmetic", lambda known=not emulated: known)
        if noted:
            monkeypatch.setenv("RANKZERO_NOTED", "1")
        else:
            monkeypatch.delenv("RANKZERO_NOTED", raising=False)
        caplog.clear()
        runtime._warn_of_emulation(precision)
        warned = [message for message in caplog.messages if "emulates bf16" in message and "--config cpu" in message]
        assert len(warned) == (emulated and precision == "bf16" and not noted)


# -- the environment of a run ----------------------------------------------------------------------------------------


def test_environment_of_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "cores", lambda: 7)
    env = local.environment(choose("cpu_bf16", 3))
    assert (env["RANKZERO_ENGINE"], env["RANKZERO_RANKS"], env["RANKZERO_CONFIG"]) == ("ddp", "3", "cpu_bf16")
    assert (env["OMP_NUM_THREADS"], env["TOKENIZERS_PARALLELISM"]) == ("2", "false")
    assert (env["ACCELERATE_USE_CPU"], env["CUDA_VISIBLE_DEVICES"]) == ("true", "")
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert local.environment(choose("cpu", 16))["OMP_NUM_THREADS"] == "1"


def test_copies_of_a_model_reach_the_ranks_of_any_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choose("cpu_fsdp2_hybrid", None)
    assert (plan.copies, plan.parts) == (2, 2)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")  # left over
    for env in (local.settings(plan), launcher_environment(plan)):
        assert env["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
        sizes = [env[f"PARALLELISM_CONFIG_DP_{name}_SIZE"] for name in ("REPLICATE", "SHARD")]
        assert sizes == ["2", "2"]
    assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in local.environment(choose("cpu_fsdp2", None))
    with pytest.raises(UsageError, match=r"8 ranks: parallelism_config of .* 2 copies of the model in 2 parts each"):
        choose("cpu_fsdp2_hybrid", 8)


def test_environment_keeps_thread_settings_and_drops_variables_that_change_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = choose(str(_config(tmp_path, distributed_type="DEEPSPEED", deepspeed_config={"zero_stage": 2})), 2)
    env = local.environment(plan)
    assert "ACCELERATE_USE_CPU" not in env, "with it ZeRO silently is DDP"
    assert (env["RANKZERO_ENGINE"], env["OMP_NUM_THREADS"], env["HF_HUB_OFFLINE"]) == ("zero2", "5", "1")


def test_cores_respect_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from trainer.cpu_info import cores; print(cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_quota_counts_in_whole_cores(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    for text, expected in (("150000 100000\n", 1.5), ("max 100000\n", float("inf"))):
        limit.write_text(text)
        assert cpu_info._quota(tmp_path) == expected
    assert cpu_info._quota(tmp_path / "missing") == float("inf")


def test_one_process_runs_here_without_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    seen: list[str | None] = []

    def here() -> int:
        seen.append(os.environ.get("RANKZERO_ENGINE"))
        return 3

    assert local.start("debug", None, ["train", "x"], tmp_path, here) == 3
    assert seen[0] == "single"
    os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="localhost", MASTER_PORT="29500")
    assert local.start(None, None, ["train", "x"], tmp_path, here) == 3  # another launcher has started it
    with pytest.raises(UsageError, match=r"--config debug asks for 1 ranks, but the environment says WORLD_SIZE=2"):
        local.start("debug", None, ["train", "x"], tmp_path, here)


# -- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "launcher", "expected"),
    [
        ({"state": "finished", "exit_code": 0}, 0, 0),
        ({"state": "finished", "exit_code": 0}, 1, 0),  # aborted after it had finished
        ({"state": "preempted", "exit_code": 75}, 0, 75),
        ({"state": "failed", "exit_code": 5}, 1, 5),
        ({"state": "failed", "exit_code": 3}, 0, 3),
        ({"state": "running", "exit_code": None}, 1, 1),
        ({"state": "running", "exit_code": None}, -9, 1),
        ({"state": "running", "exit_code": None}, 75, 75),  # stopped before the ranks handled signals
        ({"state": "running", "exit_code": None}, 2, 2),
        (None, 1, 1),
        (None, 3, 3),
    ],
)
def test_the_exit_code_is_that_of_status_json(
    tmp_path: Path, state: dict[str, object] | None, launcher: int, expected: int
) -> None:
    if state:
        (tmp_path / "status.json").write_text(json.dumps(state))
    assert restarts.exit_code_of_run(tmp_path, None, launcher) == expected


@pytest.mark.parametrize(("launcher", "expected"), [(1, 1), (2, 2), (-9, 1)])
def test_the_status_of_an_earlier_attempt_does_not_count(tmp_path: Path, launcher: int, expected: int) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "exit_code": 0, "attempt": 1}))
    before = restarts.read_status(tmp_path)
    assert restarts.exit_code_of_run(tmp_path, before, launcher) == expected


@pytest.mark.parametrize(
    ("forwarded", "codes", "expected", "words"),
    [
        ([], [3, -15], 3, ""),  # a rank's own code; the agent terminated the other
        ([], [1, 4], 4, ""),
        ([], [1], 1, "rank 0 (process 100) died with exit code 1"),
        ([], [1, 75], 1, "rank 0 (process 100) died with exit code 1"),  # the other was terminated and exited with 75
        ([], [-15, -9], 1, "rank 1 (process 101) was killed by SIGKILL"),
        ([], [1, -11], 1, "rank 1 (process 101) was killed by SIGSEGV"),  # rank 0 lost its connection
        ([], [-15, -15], 1, "rank 0 (process 100) was killed by SIGTERM"),
        ([signal.SIGUSR1], [75, 75], 75, ""),
        ([], [75, 75], 75, ""),  # the run directory was taken over by another process
        ([], [75, -15], 75, ""),
        ([signal.SIGUSR1], [1, -10], 75, ""),  # before it handled the signal
        ([signal.SIGTERM], [4, 4], 4, ""),
        ([signal.SIGTERM], [1, 1], 1, "exit code 1"),
    ],
)
def test_the_launcher_keeps_the_code_of_the_ranks_or_names_the_dead_one(
    capfd: pytest.CaptureFixture[str], forwarded: list[int], codes: list[int], expected: int, words: str
) -> None:
    failures = {r: SimpleNamespace(exitcode=code, timestamp=7, pid=100 + r) for r, code in enumerate(codes)}
    assert exit_codes.exit_code_of_ranks(failures, forwarded) == expected
    errors = capfd.readouterr().err
    assert words in errors
    assert errors.count("\n") == (1 if words else 0)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_command_ends_with_the_code_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    from launch import cli

    monkeypatch.setattr(cli, "start", lambda *_: code)
    monkeypatch.setattr(
        sys, "argv", ["rankzero", "train", "demo-translation", "--config", "cpu", "--run", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code


def test_an_incomplete_status_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "fin')
    assert restarts.read_status(tmp_path) is None


# -- real processes --------------------------------------------------------------------------------------------------

STUB = """
import json, os, signal, sys, time
from pathlib import Path

what, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])

def write_status(state, code):
    if rank == 0:
        (folder / "status.json").write_text(json.dumps({"state": state, "exit_code": code, "step": 7}))

if what == "finish":
    (folder / f"environment-{rank}").write_text(json.dumps(dict(os.environ)))
    write_status("finished", 0)
elif what == "killed":
    os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)
elif what == "killed-0":
    write_status("running", None)
    os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else time.sleep(60)
elif what == "work":
    seen = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: seen.append(signal.Signals(number).name))
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    while not seen:
        time.sleep(0.02)
    time.sleep(1.0)  # saving; a signal forwarded twice would be recorded
    (folder / f"signals-{rank}").write_text(" ".join(seen))
    write_status("preempted", 75)
elif what == "ignore":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(120)
"""

DRIVER = """
import sys
from pathlib import Path
from launch import local

local._ROOT = Path(sys.argv[2])  # where the stub replaces trainer
sys.exit(local.start("cpu", None, sys.argv[1:3], Path(sys.argv[2]), in_process=lambda: 99))
"""

Begin = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start `rankzero train` with a stub that does what its argument names. Kill what is left afterwards."""
    (tmp_path / "trainer").mkdir()
    others = f"__path__.append({str(ROOT / 'trainer')!r})\n"  # other modules are the real ones
    (tmp_path / "trainer" / "__init__.py").write_text(others)  # without the file, the real package goes before it
    (tmp_path / "trainer" / "__main__.py").write_text(STUB)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    started: list[subprocess.Popen[str]] = []

    def go(what: str) -> subprocess.Popen[str]:
        env = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "OMP_NUM_THREADS")}
        words = [sys.executable, "-c", DRIVER, what, str(tmp_path)]
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield go
    for process in [*started, *_of_this_run(tmp_path)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _of_this_run(folder: Path) -> list[psutil.Process]:
    """Return the running launchers and ranks of this test, anywhere in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time limit"
        time.sleep(0.05)


def _working(folder: Path) -> None:
    _until(lambda: all((folder / f"pid-{rank}").exists() and (folder / f"pid-{rank}").read_text() for rank in (0, 1)))


def _signals(folder: Path) -> list[str]:
    return [(folder / f"signals-{rank}").read_text() for rank in (0, 1)]


@pytest.mark.ranks
def test_ranks_get_the_environment_of_the_plan(begin: Begin, tmp_path: Path) -> None:
    _, errors = (process := begin("finish")).communicate(timeout=300)
    assert process.returncode == 0, errors
    for rank in (0, 1):
        env = json.loads((tmp_path / f"environment-{rank}").read_text())
        assert (env["WORLD_SIZE"], env["RANK"]) == ("2", str(rank))
        assert (env["RANKZERO_ENGINE"], env["RANKZERO_RANKS"], env["ACCELERATE_USE_CPU"]) == ("ddp", "2", "true")
        assert env["OMP_NUM_THREADS"] == str(max(1, cpu_info.cores() // 2))
    assert "Traceback" not in errors


@pytest.mark.ranks
def test_a_rank_that_was_killed_is_named_and_ends_the_run(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "exit_code": 0}))  # of an earlier attempt
    _, errors = (process := begin("killed")).communicate(timeout=300)
    assert process.returncode == 1, errors
    assert re.search(r"rank 1 \(process \d+\) was killed by SIGKILL .*memory", errors), errors
    assert "Traceback" not in errors
    assert _of_this_run(tmp_path) == []


@pytest.mark.ranks
def test_the_status_of_a_killed_rank_zero_is_written_by_its_launcher(begin: Begin, tmp_path: Path) -> None:
    _, errors = (process := begin("killed-0")).communicate(timeout=300)
    assert process.returncode == 1, errors
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 1, 7)
    assert re.match(r"rank 0 \(process \d+\) was killed by SIGKILL .*; the same command resumes", status["error"])
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("before", "after", "code", "state"),
    [
        ({}, {"state": "running", "exit_code": None}, 1, "failed"),
        ({}, {"state": "running", "exit_code": None}, 75, "preempted"),
        ({}, {"state": "running", "exit_code": 0}, 1, "running"),  # trained; a job for the report is to begin
        ({}, {"state": "finished", "exit_code": 0}, 1, "finished"),
        ({"state": "running", "exit_code": None}, {"state": "running", "exit_code": None}, 1, "running"),  # not begun
    ],
)
def test_a_status_that_ranks_left_unfinished_is_settled(
    tmp_path: Path, before: dict[str, object], after: dict[str, object], code: int, state: str
) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps(before))
    restarts.run_with_restarts(
        lambda *_: path.write_text(json.dumps(after)) and processes.Ended(code), ["train", "x"], tmp_path
    )
    assert json.loads(path.read_text())["state"] == state


@pytest.mark.ranks
@pytest.mark.parametrize("number", slow_except([signal.SIGINT, signal.SIGUSR1], signal.SIGINT))
def test_each_rank_is_signalled_once_and_may_save(begin: Begin, tmp_path: Path, number: signal.Signals) -> None:
    process = begin("work")
    _working(tmp_path)
    os.killpg(process.pid, number)  # as the terminal does; and once more
    time.sleep(0.3)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert _signals(tmp_path) == [number.name] * 2
    assert "Traceback" not in errors
    assert _of_this_run(tmp_path) == []


@pytest.mark.ranks
@pytest.mark.slow
def test_stopped_before_the_ranks_run(begin: Begin, tmp_path: Path) -> None:
    process = begin("work")
    _until(lambda: any("launch.supervise.launcher" in found.cmdline() for found in _of_this_run(tmp_path)))
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert _of_this_run(tmp_path) == []


@pytest.mark.ranks
def test_nothing_is_left_when_the_command_is_killed(begin: Begin, tmp_path: Path) -> None:
    process = begin("work")
    _working(tmp_path)
    process.kill()
    process.wait()
    _until(lambda: not _of_this_run(tmp_path))
    assert _signals(tmp_path) == ["SIGTERM"] * 2  # they could save


@pytest.mark.ranks
@pytest.mark.slow
def test_nothing_is_left_when_the_launcher_is_killed(begin: Begin, tmp_path: Path) -> None:
    process = begin("work")
    _working(tmp_path)
    psutil.Process(process.pid).children()[0].kill()
    process.communicate(timeout=300)
    assert process.returncode == 75  # they saved before the command ended
    _until(lambda: not _of_this_run(tmp_path))
    for signals in _signals(tmp_path):  # the kernel signals them as each thread of the launcher dies: maybe twice
        assert set(signals.split()) == {"SIGTERM"}


@pytest.mark.ranks
@pytest.mark.slow
def test_a_second_ctrl_c_kills_ranks_that_ignore_signals(begin: Begin, tmp_path: Path) -> None:
    process = begin("ignore")
    _working(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(processes.SECOND_CTRL_C_SECONDS + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    _until(lambda: not _of_this_run(tmp_path))


def test_a_started_process_tree_is_killed_at_the_end_of_the_block(tmp_path: Path) -> None:
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID > {tmp_path}/child; sleep 60) & wait"
    with (tmp_path / "log").open("wb") as log, processes.started(["bash", "-c", script], os.environ, log) as process:
        _until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
        child = psutil.Process(int((tmp_path / "child").read_text()))
        assert os.getsid(process.pid) == process.pid
    assert process.returncode == -signal.SIGKILL
    assert not processes.is_alive(child)

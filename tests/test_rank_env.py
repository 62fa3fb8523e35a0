"""Variables of a launcher that are empty, left over or contradict the command line, and the rendezvous."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from processes import status, wait_until
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launch import local
from trainer.errors import UsageError
from trainer.rank_env import RANK_VARIABLES, check_environment, clean_environment, ranks_text, requested_engine

ROOT = Path(__file__).parent.parent
SMALL = ("loop.max_steps=4", "loop.eval_every=4", "loop.save_every=2", "evaluation.bootstrap=10", "export.onnx=false")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*RANK_VARIABLES, "RANKZERO_ENGINE", "RANKZERO_RANKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "MASTER_PORT"])
def test_an_empty_variable_is_unset(environ: pytest.MonkeyPatch, name: str, value: str) -> None:
    environ.setenv(name, value)
    clean_environment()
    check_environment()
    assert name not in os.environ


@pytest.mark.parametrize(
    ("value", "kept"), [("auto", False), ("0", False), ("-1", False), ("", False), ("2", True), ("2,1", True)]
)
def test_a_number_of_threads_that_is_not_a_number_is_unset(environ: pytest.MonkeyPatch, value: str, kept: bool) -> None:
    environ.setenv("OMP_NUM_THREADS", value)
    clean_environment()
    assert ("OMP_NUM_THREADS" in os.environ) == kept


PLACE = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK=1: .* WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0: .* WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "8", "RANK": "0"}, "sets 8 ranks and lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**PLACE, "RANK": "8"}, "RANK must be below WORLD_SIZE"),
        ({**PLACE, "WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a whole number"),
        ({**PLACE, "MASTER_PORT": "http"}, "MASTER_PORT=http is not a whole number"),
    ],
)
def test_contradictions_are_refused_on_every_process(
    environ: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        environ.setenv(name, value)
    with pytest.raises(UsageError, match=words) as caught:
        check_environment()
    assert not caught.value.everywhere, "with RANK=1 no process is rank zero: each has to report it"


def test_a_complete_place_is_accepted(environ: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        environ.setenv(name, value)
    check_environment()


@pytest.mark.parametrize(
    ("world", "config", "nproc", "words"),
    [
        (1, "cpu", 2, "--config cpu --nproc 2 asks for 2 ranks, .*WORLD_SIZE=1"),
        (1, "cpu", None, "--config cpu asks for 2 ranks, .*WORLD_SIZE=1"),
        (8, "debug", None, "--config debug asks for 1 ranks, .*WORLD_SIZE=8"),
        (8, None, 2, "--nproc 2 asks for 2 ranks, .*WORLD_SIZE=8"),
        (1, "zero2", None, "--config zero2 asks for engine zero2, .*WORLD_SIZE=1 with engine single"),
        (2, "fsdp2", None, "--config fsdp2 asks for engine fsdp2, .*WORLD_SIZE=2 with engine ddp"),
    ],
)
def test_a_stale_world_size_never_overrides_the_command_line(
    environ: pytest.MonkeyPatch, tmp_path: Path, world: int, config: str | None, nproc: int | None, words: str
) -> None:
    for name, value in {**PLACE, "WORLD_SIZE": str(world)}.items():
        environ.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        local.start(config, nproc, ["train", "x"], tmp_path, lambda: 0)


def test_a_config_that_agrees_with_the_launcher_applies(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ.setattr(os, "environ", {**os.environ, **PLACE, "WORLD_SIZE": "2"})
    seen: list[tuple[str, str]] = []

    def here() -> int:
        seen.append((requested_engine(2), os.environ["ACCELERATE_MIXED_PRECISION"]))
        return 0

    assert local.start("cpu_bf16", None, ["train", "x"], tmp_path, here) == 0
    assert seen == [("ddp", "bf16")]


def test_ranks_are_written_as_spans() -> None:
    assert ranks_text([1]) == "rank 1"
    assert ranks_text([1, 2]) == "ranks 1, 2"
    assert ranks_text([7, 1, 2, 3, 5]) == "ranks 1 to 3, 5, 7"
    assert ranks_text(list(range(0, 40, 2))).endswith("14 and others")


# -- real processes --


def _trainer(recipe: Path, run: Path, *words: str) -> list[str]:
    return ["trainer", "train", str(recipe), *SMALL, *words, "--run", str(run)]


def _environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)} | changes


@pytest.mark.ranks
def test_a_missing_rank_is_named_and_ends_the_start(recipe: Path, tmp_path: Path) -> None:
    env = _environment(RANK="0", WORLD_SIZE="3", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29563")
    command = [sys.executable, "-m", *_trainer(recipe, tmp_path / "run", "data.lanes=3", "launch.rendezvous_seconds=3")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "rank 0 of 3 connects to the others at 127.0.0.1:29563" in done.stderr
    assert "rank 0 of 3 at 127.0.0.1:29563 waited 3 s for ranks 1, 2 (launch.rendezvous_seconds)" in done.stderr
    assert not (tmp_path / "run").exists(), "nothing was started"


BLOCKED = "was blocked for 3 s while the ranks connect (launch.rendezvous_seconds): another rank has ended"


@pytest.mark.ranks
def test_a_rank_that_ends_while_the_others_connect_to_it(recipe: Path, tmp_path: Path) -> None:
    """Torch's own limit is an hour. This test is rank one as far as the rendezvous, and then makes no process group."""
    env = _environment(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29567")
    command = [sys.executable, "-m", *_trainer(recipe, tmp_path / "run", "launch.rendezvous_seconds=3")]
    started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        store = TCPStore("127.0.0.1", 29567, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
        wait_until(lambda: store.add("rankzero-attempts", 0) == 1, 60)
        store.set("rankzero-1-hello-1", "word")
        _, printed = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 1, printed
    assert f"rankzero: rank 0 of 2 at 127.0.0.1:29567 {BLOCKED}" in printed
    assert not (tmp_path / "run").exists(), "nothing was started"


@pytest.mark.ranks
def test_a_store_that_does_not_answer(recipe: Path, tmp_path: Path) -> None:
    """As after a cut connection, which nothing closes."""
    code = (
        "import time; from torch.distributed import TCPStore; "
        "store = TCPStore('127.0.0.1', 29569, is_master=True, wait_for_workers=False); "
        "print('ready', flush=True); time.sleep(300)"
    )
    env = _environment(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29569")
    command = [sys.executable, "-m", *_trainer(recipe, tmp_path / "run", "launch.rendezvous_seconds=3")]
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: psutil.Process(started.pid).net_connections(), 60)
        time.sleep(0.5)  # until it asks
        server.send_signal(signal.SIGSTOP)
        _, printed = started.communicate(timeout=60)
    finally:
        started.kill()
        server.kill()
    assert started.returncode == 1, printed
    assert f"rankzero: rank 1 of 2 at 127.0.0.1:29569 {BLOCKED}" in printed


@pytest.mark.ranks
@pytest.mark.slow
def test_torchrun_restarts_after_rank_zero_was_killed(recipe: Path, tmp_path: Path) -> None:
    """Two agents (nodes) with c10d: its store outlives the ranks, and their restart counts differ."""
    run = tmp_path / "run"
    log = (tmp_path / "log").open("w+")
    common = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:29561"]
    command = [sys.executable, "-m", "torch.distributed.run", *common, "--rdzv_id", "x", "--max-restarts", "3"]
    command += ["-m", "--", *_trainer(recipe, run, "loop.max_steps=60", "loop.save_every=10", "loop.eval_every=60")]
    agents = [subprocess.Popen(command, env=_environment(), stdout=log, stderr=subprocess.STDOUT) for _ in range(2)]
    try:
        wait_until(lambda: any(agent.poll() is not None for agent in agents) or status(run)["step"] >= 20, 240)
        [victim] = [child for agent in agents for child in psutil.Process(agent.pid).children() if _rank(child) == "0"]
        victim.send_signal(signal.SIGKILL)
        codes = [agent.wait(timeout=240) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert codes == [0, 0], (tmp_path / "log").read_text()
    assert status(run)["state"] == "finished"
    assert status(run)["attempt"] == 2


def _rank(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None

"""Long tests on a real SLURM cluster: `make test-slurm-full`, about twenty minutes. The events of each job are printed.

All jobs train the same recipe on two ranks, most of them far longer than they need to. Each is compared with an
uninterrupted run: in the rows of each step, and in every weight of the newest checkpoint that both have.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from batch_helpers import rankzero
from processes import status, wait_until
from safetensors.numpy import load_file
from slurm_helpers import PATIENCE, Submitter, same, site_of, slurm

pytestmark = [pytest.mark.slurm_full, pytest.mark.timeout(2400)]

GRID = 50  # steps between two checkpoints
NODES = ("--config", "cpu_multinode", "--nodes", 2)
SAVES = (f"loop.save_every={GRID}", f"loop.eval_every={GRID}", "loop.keep=100000")
ENDLESS = (*SAVES, "loop.max_steps=1000000")
SEED = 6  # of the twenty signals and kills


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A cluster that signals only the direct process of a task."""
    if not slurm.can_track_by_cgroup():
        pytest.skip(f"proctrack/cgroup of Slurm 22.05 needs {slurm.FREEZER} (cgroup v1), writable")
    with site_of(tmp_path_factory.mktemp("a site"), proctrack="cgroup", gpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def partitioned_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A cluster that signals all processes of a task. Each node has its own address and no name in the DNS."""
    network = slurm.Network(66)
    if why := network.missing():
        pytest.skip(f"no network of namespaces: {why}")
    with site_of(tmp_path_factory.mktemp("islands"), proctrack="linuxproc", network=network) as made:
        yield made


@pytest.fixture(scope="module")
def cancelling_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A cluster that cancels pre-empted jobs and requeues none."""
    with site_of(tmp_path_factory.mktemp("cancelling"), proctrack="linuxproc", requeues=False) as made:
        yield made


@pytest.fixture(scope="module")
def chained(site: Submitter) -> int:
    """Cancel a job some time after its time limit. Return the step at the limit."""
    (number,) = site.submit("chained", *NODES, *ENDLESS, "launch.signal_lead=60", "--time", 3)
    at = resumed_step(site, "chained", number)
    site.until_step("chained", max(600, at + 2 * GRID))
    cancel(site, "chained", number)
    return at


@pytest.fixture(scope="module")
def uninterrupted(site: Submitter, chained: int) -> Path:
    """An uninterrupted run with the steps of the longest other one. Read only."""
    (number,) = site.submit("whole", *NODES, *SAVES, f"loop.max_steps={status(site.run('chained'))['step']}")
    assert site.wait_for(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(number)
    assert site.job(number)["Restarts"] == "0"
    seen = Counter(row for line in ledger(site.run("whole")) for rows in line["rows"].values() for row in rows)
    assert len(seen) == 200
    assert max(seen.values()) - min(seen.values()) <= 1  # each row once in each epoch; the last may not be over
    return site.run("whole")


# -- what they come to -------------------------------------------------------------------------------------------------


def ledger(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def agrees(run: Path, uninterrupted: Path, after: int) -> int:
    """Compare the newest checkpoint that both have: weights and moments, and all steps up to it. Return its step."""
    saved = [{path.parent.name for path in one.glob("checkpoints/*/manifest.json")} for one in (run, uninterrupted)]
    name = max(saved[0] & saved[1])
    step = int(name.removeprefix("step-"))
    assert step > after
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert same(*(load_file(one / "checkpoints" / name / file) for one in (run, uninterrupted))), f"{name}/{file}"
    assert ledger(run)[:step] == ledger(uninterrupted)[:step]
    return step


def resumed_step(site: Submitter, name: str, number: int) -> int:
    """Wait until the job has been requeued and has saved again. Return the step from which it resumed."""
    wait_until(lambda: site.hurry() or "resumed from step" in site.log(number), PATIENCE)
    at = int(re.findall(r"resumed from step (\d+)", site.log(number))[-1])
    assert at >= 5
    site.until_step(name, (at // GRID + 1) * GRID + 1)
    return at


def cancel(site: Submitter, name: str, number: int) -> None:
    assert "asked to save" in rankzero("cancel", site.run(name), cwd=site.folder, env=site.env).stdout
    assert site.wait_for(number, "FAILED", "CANCELLED", "COMPLETED", "PENDING")["ExitCode"] == "75:0"
    assert status(site.run(name))["state"] == "preempted"


def log_time(text: str) -> None:
    print(f"[{time.strftime('%X')}] {text}", flush=True)


# -- what they meet ----------------------------------------------------------------------------------------------------


def test_a_time_limit_of_minutes_with_work_of_hours(site: Submitter, chained: int, uninterrupted: Path) -> None:
    run = site.run("chained")
    step = agrees(run, uninterrupted, after=chained)
    starts = json.loads((run / "manifest.json").read_text())["slurm_restart"]
    log_time(f"time limit of 3 minutes: requeued {starts} times, first at step {chained}; the same at step {step}")


@pytest.mark.parametrize("where", ["site", "partitioned_site"])
def test_preempted_by_a_partition_of_higher_priority(
    where: str, uninterrupted: Path, request: pytest.FixtureRequest
) -> None:
    site = request.getfixturevalue(where)
    setup = ("--setup", "export GLOO_SOCKET_IFNAME=eth0") if where == "partitioned_site" else ()
    (number,) = site.submit("preempted", *NODES, *ENDLESS, *setup)
    site.until_step("preempted", 5)
    words = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    urgent = int(site.cluster.ask(*words, "--wrap=sleep 3"))
    began = time.monotonic()
    wait_until(lambda: site.job(urgent)["JobState"] in ("RUNNING", "COMPLETED"), PATIENCE)
    waited = time.monotonic() - began
    at = resumed_step(site, "preempted", number)
    cancel(site, "preempted", number)
    assert site.job(number)["Restarts"] == "1"
    step = agrees(site.run("preempted"), uninterrupted, after=at)
    head = re.findall(r"ranks meet at (\S+):", site.log(number))[0]
    assert head == (site.cluster.network.address(1) if where == "partitioned_site" else "node1")
    log_time(
        f"pre-emption, proctrack/{site.cluster.proctrack}, ranks meet at {head}: the urgent job began after "
        f"{waited:.0f} s, ours went on from step {at}; the same at step {step}"
    )


def test_three_pre_emptions_where_slurm_requeues_no_job(cancelling_site: Submitter) -> None:
    site, steps = cancelling_site, ("loop.max_steps=500", *SAVES)
    site.submit("chain", *NODES, *steps)
    chain = [int(line) for line in (site.run("chain") / "slurm" / "chain").read_text().split()]
    stops = [0]
    for number in chain[:3]:
        wait_until(lambda number=number: status(site.run("chain"))["launch"].startswith(f"{number}."), PATIENCE)
        site.until_step("chain", stops[-1] + 20)
        words = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
        urgent = int(site.cluster.ask(*words, "--wrap=sleep 1"))
        assert site.wait_for(urgent, "COMPLETED")
        site.wait_for(number, "PREEMPTED", "FAILED")
        stops.append(status(site.run("chain"))["step"])
    assert site.wait_for(chain[3], "COMPLETED", "FAILED", "PREEMPTED")["JobState"] == "COMPLETED", site.log(chain[3])
    wait_until(lambda: not site.cluster.ask("squeue", "-h").strip(), 120)
    assert [site.job(number)["JobState"] for number in chain[4:]] == ["CANCELLED"] * 2
    (whole,) = site.submit("whole", *NODES, *steps, "--chain", 0)
    assert site.wait_for(whole, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(whole)
    assert status(site.run("chain"))["step"] == status(site.run("whole"))["step"] == 500
    assert same(site.weights("chain"), site.weights("whole"))
    assert ledger(site.run("chain")) == ledger(site.run("whole"))
    log_time(f"PreemptMode=CANCEL: stopped at steps {stops[1:]}, continued by {chain[1:4]}; finished bitwise the same")


def test_one_task_per_gpu_and_a_node_that_fails(site: Submitter, uninterrupted: Path) -> None:
    task = ("--config", "cpu_zero2", "--nodes", 2, "--launcher", "task", "--gpus-per-node", 1, "--ranks-per-node", 1)
    (number,) = site.submit("tasks", *ENDLESS, *task)
    site.until_step("tasks", GRID + 5)
    site.cluster.ask("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    wait_until(lambda: site.job(number)["JobState"] == "PENDING", PATIENCE)
    site.cluster.ask("scontrol", "update", "NodeName=node2", "State=RESUME")
    at = resumed_step(site, "tasks", number)
    cancel(site, "tasks", number)
    run = site.run("tasks")
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["engine"], manifest["ranks"], manifest["slurm_restart"]) == ("zero2", 2, "1")
    assert site.job(number)["TresPerNode"] == "gres:gpu:1"
    both = min(len(ledger(run)), len(ledger(uninterrupted)))
    assert both > at
    assert ledger(run)[:both] == ledger(uninterrupted)[:both]  # another engine: the same steps, other roundings
    weights = [
        load_file(one / "checkpoints" / f"step-{GRID:08d}" / "model.safetensors") for one in (run, uninterrupted)
    ]
    largest = max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[0])
    assert largest < 1e-3
    log_time(
        f"ZeRO-2, one task per GPU, node2 down: went on from step {at}; the same rows in {both} steps, "
        f"weights at step {GRID} within {largest:.0e}"
    )


def test_twenty_random_signals_and_kills(site: Submitter, uninterrupted: Path) -> None:
    draw = random.Random(SEED)
    events = ["USR1 to the batch shell", "TERM to the ranks", "KILL of a rank", "KILL of a launcher"] * 5
    draw.shuffle(events)
    steps = status(uninterrupted)["step"]
    (number,) = site.submit("signaled", *NODES, *SAVES, f"loop.max_steps={steps}", "launch.requeue_limit=60")
    began = time.monotonic()
    for count, event in enumerate(events, start=1):
        fail_job(site, number, event, draw)
        log_time(f"{count:2d} {event}, step {step_of(site)}, restart {site.job(number).get('Restarts')}")
    job = site.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert job["JobState"] == "COMPLETED", site.log(number)[-3000:]
    run = site.run("signaled")
    assert (status(run)["state"], status(run)["step"]) == ("finished", steps)
    assert agrees(run, uninterrupted, after=0) == steps
    assert same(site.weights("signaled"), site.weights("whole"))
    assert (run / "ledger.jsonl").read_bytes() == (uninterrupted / "ledger.jsonl").read_bytes()
    scores = [(one / "evaluation" / "test" / "metrics.json").read_text() for one in (run, uninterrupted)]
    assert scores[0] == scores[1]
    log_time(
        f"20 signals and kills in {time.monotonic() - began:.0f} s: {job['Restarts']} requeues, "
        f"{site.log(number).count('ranks meet at')} starts; finished at step {steps}, bitwise the same"
    )


def fail_job(site: Submitter, number: int, event: str, draw: random.Random) -> None:
    """Send a third within some seconds of the start of the ranks, and the others during training and saving."""
    early, step = draw.random() < 1 / 3, step_of(site)
    while True:
        wait_until(lambda: site.hurry() or (ranks(number) and (early or step_of(site) > step)), PATIENCE)
        time.sleep(draw.uniform(0, 6 if early else 3))
        assert site.job(number)["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED"), site.log(number)[-3000:]
        if event.startswith("KILL"):
            wait_before_third_failure(site, number)
            try:
                draw.choice(ranks(number) if event.endswith("rank") else launchers(number)).kill()
                return
            except (IndexError, psutil.Error):
                continue  # it has just ended
        if ranks(number):
            site.cluster.ask("scancel", *(["--batch"] if "USR1" in event else []), f"--signal={event[:4]}", str(number))
            return


def wait_before_third_failure(site: Submitter, number: int) -> None:
    """Wait for a step after two failures, because three in a row at one step end a run."""
    path = site.run("signaled") / "slurm" / f"failed-{number}"
    failed = path.read_text().split() if path.exists() else []
    if len(failed) > 1 and failed[-1] == failed[-2]:
        wait_until(lambda: site.hurry() or step_of(site) > int(failed[-1]), PATIENCE)


def step_of(site: Submitter) -> int:
    path = site.run("signaled") / "status.json"
    return status(site.run("signaled"))["step"] if path.exists() else 0


def launchers(number: int) -> list[psutil.Process]:
    """Return the launchers of a job, one on each node."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has gone
            words = process.cmdline()
            if "launch.slurm.node" in words and process.name() != "srun":
                found += [process] if process.environ().get("SLURM_JOB_ID") == str(number) else []
    return found


def ranks(number: int) -> list[psutil.Process]:
    found = []
    for launcher in launchers(number):
        with contextlib.suppress(psutil.Error):
            found += [child for child in launcher.children() if "launch.rank" in child.cmdline()]
    return found

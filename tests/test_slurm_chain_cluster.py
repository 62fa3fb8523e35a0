"""Chains of jobs on a real SLURM cluster that cancels pre-empted jobs and requeues none.

The ranks are a shell script that counts steps, so only the daemons and the job script are tested, within seconds. Real
ranks run in test_slurm_full.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from batch_helpers import rankzero
from processes import status, wait_until
from slurm_helpers import PATIENCE, Submitter, site_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RANKS = """#!/bin/bash
# Count steps in status.json until `finish` exists, or a signal comes.
[[ $2 == launch.rank || $2 == launch.slurm.node ]] || exit 0
[ "$SLURM_PROCID" = 0 ] || { while [ ! -e "$RUN_DIRECTORY/finish" ]; do sleep 0.1; done; exit 0; }
echo "$RANKZERO_RANKS ranks on $SLURM_STEP_NODELIST"
run=$RUN_DIRECTORY
step=$(sed -n 's/^  "step": \\([0-9]*\\).*/\\1/p' "$run/status.json" 2>/dev/null)
write() {
  printf '{\\n  "state": "%s",\\n  "step": %s,\\n  "exit_code": %s,\\n  "launch": "%s"\\n}\\n' \\
    "$1" "$step" "$2" "$RANKZERO_LAUNCH" >"$run/status.new" && mv "$run/status.new" "$run/status.json"
}
stop() { write preempted 75; exit 75; }
trap stop USR1 TERM
step=${step:-0}
while [ ! -e "$run/finish" ]; do
  step=$((step + 1))
  write running null
  sleep 0.1
done
write finished 0
"""


@pytest.fixture(scope="module", params=[60, 0], ids=["grace", "no grace"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A cluster that sends a signal before it cancels a pre-empted job, and one that does not."""
    folder = tmp_path_factory.mktemp("cancelling")
    (folder / "ranks").write_text(RANKS)
    (folder / "ranks").chmod(0o755)
    with site_of(folder, requeues=False, grace=request.param) as made:
        yield made


def submit(site: Submitter, name: str, *words: object) -> list[int]:
    """Submit a chain. Return its jobs."""
    return submit_all(site, name, *words)[0]


def submit_all(site: Submitter, name: str, *words: object) -> tuple[list[int], list[int]]:
    """Submit a chain. Return its jobs, and those that `rankzero submit` prints besides follow-up jobs."""
    ranks = ("--setup", f"PYTHON=({site.folder}/ranks)", "--setup", 'export RUN_DIRECTORY="$RUN"')
    printed = site.submit(name, *ranks, *words)
    return [int(line) for line in (site.run(name) / "slurm" / "chain").read_text().split()], printed


def until_runs(site: Submitter, name: str, number: int) -> None:
    wait_until(lambda: str(json.loads((site.run(name) / "status.json").read_text())["launch"]).startswith(f"{number}."),
               PATIENCE)  # fmt: skip
    step = status(site.run(name))["step"]
    wait_until(lambda: status(site.run(name))["step"] > step, PATIENCE)


def no_job_left(site: Submitter) -> None:
    wait_until(lambda: not site.cluster.ask("squeue", "-h").strip(), 120)


def seconds(job: dict[str, str]) -> float:
    return (datetime.fromisoformat(job["EndTime"]) - datetime.fromisoformat(job["StartTime"])).total_seconds()


def test_pre_empted_three_times_and_finished_by_the_fourth_job(site: Submitter) -> None:
    jobs = submit(site, "chain")
    assert len(jobs) == 6, "JobRequeue=0: five follow-up jobs"
    steps = []
    for number in jobs[:3]:
        until_runs(site, "chain", number)
        words = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
        urgent = int(site.cluster.ask(*words, "--wrap=sleep 1"))
        assert site.wait_for(urgent, "COMPLETED")
        assert site.wait_for(number, "PREEMPTED", "FAILED", "CANCELLED")["JobState"] in ("PREEMPTED", "FAILED")
        steps.append(status(site.run("chain"))["step"])
    until_runs(site, "chain", jobs[3])
    shown = rankzero("status", site.run("chain"), cwd=site.folder, env=site.env).stdout
    assert f"chain: {jobs[4]}, {jobs[5]} continue in turn" in shown
    assert f"job {jobs[3]} (follow-up-train): RUNNING" in shown
    (site.run("chain") / "finish").touch()
    assert site.wait_for(jobs[3], "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(jobs[3])
    no_job_left(site)
    assert [site.job(number)["JobState"] for number in jobs[4:]] == ["CANCELLED"] * 2
    assert [site.job(number)["StartTime"] for number in jobs[4:]] == ["Unknown"] * 2 or all(
        seconds(site.job(number)) == 0 for number in jobs[4:]
    )
    assert all(site.job(number)["Restarts"] == "0" for number in jobs)
    assert steps == sorted(steps)
    assert status(site.run("chain"))["state"] == "finished"
    assert f"the run is finished: the follow-up jobs are cancelled: {jobs[4]} {jobs[5]}" in site.log(jobs[3])

    script = str(site.run("chain") / "slurm" / "train.sbatch")  # had the cancellation failed, a job would start
    late = int(site.cluster.ask("sbatch", "--parsable", script, str(jobs[3])))
    job = site.wait_for(late, "COMPLETED", "FAILED")
    assert job["JobState"] == "COMPLETED", site.log(late)
    assert seconds(job) < 10
    assert "ranks meet" not in site.log(late)


@pytest.mark.parametrize("how", ["scancel", "rankzero cancel"])
def test_a_cancelled_job_takes_its_chain_along(site: Submitter, how: str) -> None:
    name = how.replace(" ", "-")
    jobs = submit(site, name, "--chain", 2)
    until_runs(site, name, jobs[0])
    if how == "scancel":
        site.cluster.ask("scancel", str(jobs[0]))
    else:
        assert rankzero("cancel", site.run(name), cwd=site.folder, env=site.env).returncode == 0
    no_job_left(site)
    states = [site.job(number)["JobState"] for number in jobs]
    assert (states[0] in ("CANCELLED", "FAILED"), states[1:]) == (True, ["CANCELLED"] * 2), site.log(jobs[0])
    assert not [number for number in jobs[1:] if "ranks meet" in site.log(number)]
    assert status(site.run(name))["state"] == "preempted"


def test_the_last_stages_follow_the_job_that_finishes_the_training(site: Submitter) -> None:
    jobs, (_, finalizing) = submit_all(site, "stages", "--chain", 2, "--finalize")
    until_runs(site, "stages", jobs[0])
    site.cluster.ask("scancel", "--batch", "--signal=USR1", str(jobs[0]))
    until_runs(site, "stages", jobs[1])
    assert site.job(finalizing)["JobState"] == "PENDING"
    (site.run("stages") / "finish").touch()
    assert site.wait_for(finalizing, "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED", site.log(jobs[1])
    no_job_left(site)
    assert [site.job(number)["JobState"] for number in jobs] == ["FAILED", "COMPLETED", "CANCELLED"]


def test_a_job_that_loses_a_node_continues_on_the_other(site: Submitter) -> None:
    words = ("--config", "cpu_multinode", "--nodes", 2, "--ranks-per-node", 2, "--min-nodes", 1, "--chain", 1)
    jobs = submit(site, "shrunk", "data.lanes=4", *words)
    until_runs(site, "shrunk", jobs[0])
    head = site.job(jobs[0])["BatchHost"]
    lost = "node2" if head == "node1" else "node1"
    site.cluster.ask("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=test")
    try:
        wait_until(lambda: f"2 ranks on {head}" in site.log(jobs[0]), PATIENCE)
        until_runs(site, "shrunk", jobs[0])
    finally:
        site.cluster.ask("scontrol", "update", f"NodeName={lost}", "State=RESUME")
    assert "4 ranks on node[1-2]" in site.log(jobs[0])
    assert f"SLURM has lost nodes of this job, {head} is left: continuing on {head}" in site.log(jobs[0])
    (site.run("shrunk") / "finish").touch()
    assert site.wait_for(jobs[0], "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(jobs[0])
    no_job_left(site)


def test_a_dry_run_shows_the_site_file_and_the_missing_chain(site: Submitter, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("partition: debug\nchain: 0\nenvironment: {NCCL_SOCKET_IFNAME: lo}\n")
    site.env["RANKZERO_SITE"] = str(file)
    try:
        done = rankzero("submit", site.recipe, "--run", site.run("dry"), "--dry-run", cwd=site.folder, env=site.env)
    finally:
        del site.env["RANKZERO_SITE"]
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=debug\n" in done.stdout
    assert "export NCCL_SOCKET_IFNAME=lo\n" in done.stdout
    assert f"{file}: partition, chain, environment" in done.stderr
    assert "JobRequeue=0: SLURM does not requeue" in done.stderr

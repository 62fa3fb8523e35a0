"""Jobs on a real SLURM cluster: slurmctld and two slurmd on this machine (tests/slurm/cluster.py)."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from batch_world import rankzero
from conftest import write_corpus, write_recipe
from processes import status, wait_until
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent / "slurm"))
import cluster as slurm

pytestmark = pytest.mark.slurm
PATIENCE = 400.0  # seconds for a job; imports alone take half a minute on a busy machine
SMALL = ("evaluation.max_rows=4", "evaluation.splits=[test]", "loop.eval_every=60", "loop.save_every=30")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    """With proctrack/cgroup where it can run, as it is stricter: a signal reaches the direct process of a task only."""
    why = slurm.missing()
    if why:
        pytest.skip(f"no SLURM cluster can be started: {why}")
    proctrack = "cgroup" if slurm.can_track_by_cgroup() else "linuxproc"
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:  # sockets: a short name
        made = slurm.Cluster(Path(folder), proctrack=proctrack, kill_wait=60, port=26700)
        made.start()
        try:
            yield made
        finally:
            made.stop()


class Submitter:
    """Submits from a directory with a space in its name, and looks at what comes of it."""

    def __init__(self, cluster: slurm.Cluster, folder: Path, recipe: Path) -> None:
        self.cluster, self.folder, self.recipe = cluster, folder, recipe
        self.env = {**cluster.environment, "OMP_NUM_THREADS": "1"}

    def run(self, name: str) -> Path:
        return self.folder / "runs of mine" / name

    def submit(self, name: str, *words: object) -> list[int]:
        """The numbers of its jobs, the training first."""
        words = ("submit", self.recipe, *SMALL, "--cpus-per-task", 1, "--time", 30, "--run", self.run(name), *words)
        done = rankzero(*words, cwd=self.folder, env=self.env)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("Submitted batch job ")
        return [int(lines[0].split()[-1]), *(int(line.split()[2].strip(",")) for line in lines if ": job " in line)]

    def job(self, number: int) -> dict[str, str]:
        told = self.cluster.ask("scontrol", "-o", "show", "job", str(number))
        return dict(part.split("=", 1) for part in told.split() if "=" in part)

    def wait_for(self, number: int, *states: str) -> dict[str, str]:
        """Until the job is in one of these states; a requeued one need not wait two minutes, as SLURM would have it."""
        requeued = 0.0
        deadline = time.monotonic() + PATIENCE
        while (job := self.job(number)).get("JobState") not in states:
            assert time.monotonic() < deadline, f"{job}\n{self.log(number)}"
            if job.get("JobState") == "PENDING" and job.get("Reason") == "BeginTime":
                requeued = requeued or time.monotonic()
                if time.monotonic() - requeued > 2:  # at once would be within the second of its revoked credential
                    self.cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
            time.sleep(0.2)
        return job

    def until_step(self, name: str, step: int) -> None:
        wait_until(lambda: status(self.run(name))["step"] >= step, PATIENCE)

    def log(self, number: int) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.rglob(f"*-{number}.out"))

    def weights(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.run(name) / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def site(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    folder = tmp_path_factory.mktemp("a site")
    corpus = write_corpus(folder / "corpus", test=40)
    recipe = write_recipe(folder / "my recipe.yaml", corpus, loop={"max_steps": 120, "log_every": 1})
    return Submitter(cluster, folder, recipe)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_preempted_and_requeued_it_ends_with_the_weights_of_an_uninterrupted_job(site: Submitter) -> None:
    nodes = ("--config", "cpu_multinode", "--nodes", 2)
    (stopped,) = site.submit("stopped", *nodes)
    (whole,) = site.submit("whole", *nodes)
    site.until_step("stopped", 5)
    site.cluster.ask("scancel", "--batch", "--signal=USR1", str(stopped))
    assert site.wait_for(whole, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(whole)
    job = site.wait_for(stopped, "COMPLETED", "FAILED")
    log = site.log(stopped)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert "2 ranks meet at node1" in log
    assert "resumed from step" in log  # the same log goes on
    manifest = json.loads((site.run("stopped") / "manifest.json").read_text())
    assert (manifest["slurm_restart"], manifest["ranks"], manifest["engine"]) == ("1", 2, "ddp")
    assert len(manifest["starts"]) == 1
    for name in ("stopped", "whole"):
        assert (status(site.run(name))["state"], status(site.run(name))["step"]) == ("finished", 120)
        assert (site.run(name) / "evaluation" / "test" / "metrics.json").exists()
    assert same(site.weights("stopped"), site.weights("whole"))
    ledgers = [(site.run(name) / "ledger.jsonl").read_text() for name in ("stopped", "whole")]
    assert ledgers[0] == ledgers[1]  # every row once, in the same step
    told = json.loads(rankzero("status", site.run("stopped"), "--json", cwd=site.folder, env=site.env).stdout)
    assert (told["state"], told["jobs"][0]["state"]) == ("finished", "COMPLETED")
    assert "resumed from" in rankzero("logs", site.run("stopped"), cwd=site.folder, env=site.env).stdout


def test_scancel_ends_it_for_good_with_a_checkpoint(site: Submitter) -> None:
    """One task per rank here, so that this way of starting is seen on the daemons, too."""
    nodes = ("--config", "cpu_multinode", "--nodes", 2, "--launcher", "task")
    (number,) = site.submit("cancelled", "loop.max_steps=100000", *nodes)
    site.until_step("cancelled", 5)
    site.cluster.ask("scancel", str(number))
    job = site.wait_for(number, "CANCELLED", "COMPLETED", "FAILED", "PENDING")
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), site.log(number)
    wait_until(lambda: not site.cluster.ask("squeue", "-h", "-j", str(number)).strip(), 60)
    ended = status(site.run("cancelled"))
    assert (ended["state"], ended["exit_code"]) == ("preempted", 75)
    assert (site.run("cancelled") / "checkpoints" / f"step-{ended['step']:08d}" / "manifest.json").exists()
    assert "start 2" not in site.log(number)


def test_a_chain_whose_evaluation_fails_cancels_what_depends_on_it(site: Submitter, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", test=8)
    training, finalizing = site.submit("chain", f"data.root={corpus}", "loop.max_steps=4", "--finalize")
    (after,) = site.submit("after", "--after", finalizing)
    assert site.job(after)["Dependency"].startswith(f"afterok:{finalizing}")
    wait_until(lambda: (site.run("chain") / "manifest.json").exists(), PATIENCE)  # the training has read every row
    (corpus / "test.jsonl").write_text("")
    assert site.wait_for(training, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(training)
    assert not (site.run("chain") / "evaluation").exists()
    job = site.wait_for(finalizing, "COMPLETED", "FAILED")
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "3:0"), site.log(finalizing)
    assert site.wait_for(after, "CANCELLED", "RUNNING", "COMPLETED")["JobState"] == "CANCELLED"
    assert status(site.run("chain"))["state"] == "failed"


def test_hostile_names_paths_and_overrides(site: Submitter, tmp_path: Path) -> None:
    """Submitted as typed, run by a real cluster: nothing of it runs as a command."""
    evil = "a b'c\"d $(touch canary) `touch canary` ; touch canary & > canary # %j {{ 7 }} *"
    here = tmp_path / f"{evil} here"
    here.mkdir()
    (here / f"{evil}.yaml").write_bytes(site.recipe.read_bytes())
    words = [
        *("submit", f"./{evil}.yaml", *SMALL, "loop.max_steps=2", "evaluation.splits=[]", "--run", here / evil),
        f"task.src_language={json.dumps(evil)}",
        f"task.trg_language={json.dumps('two' + chr(10) + '#SBATCH --nodes=9' + chr(10) + 'touch canary')}",
        *("--setup", f"export HELLO={len(evil)}", "--sbatch", "--comment='$(touch canary)'"),
    ]
    done = rankzero(*words, cwd=here, env=site.env)
    assert done.returncode == 0, done.stderr
    number = int(done.stdout.splitlines()[0].split()[-1])
    job = site.wait_for(number, "COMPLETED", "FAILED")
    logs = list((here / evil / "slurm").glob("*.out"))
    assert [path.name for path in logs] == [f"train-{number}.out"]
    assert job["JobState"] == "COMPLETED", logs[0].read_text()
    assert status(here / evil)["state"] == "finished"
    assert yaml.safe_load((here / evil / "recipe.yaml").read_text())["task"]["src_language"] == evil
    assert not list(tmp_path.rglob("canary"))
    assert not (site.cluster.folder / "canary").exists()


def test_a_waiting_job_is_seen_and_cancelled(site: Submitter) -> None:
    (number,) = site.submit("held", "--sbatch=--hold")
    words = ("submit", site.recipe, "--run", site.run("held"))
    again = rankzero(*words, cwd=site.folder, env=site.env)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"has job {number} (PENDING) already" in again.stderr
    by_hand = site.cluster.ask("sbatch", "--parsable", "--hold", str(site.run("held") / "slurm" / "train.sbatch"))
    assert int(by_hand) > number  # plain sbatch takes the same file
    site.cluster.ask("scancel", by_hand.strip())
    assert f"job {number}: PENDING" in rankzero("status", site.run("held"), cwd=site.folder, env=site.env).stdout
    done = rankzero("cancel", site.run("held"), cwd=site.folder, env=site.env)
    assert done.stdout == f"job {number} (PENDING): cancelled\n"
    assert site.wait_for(number, "CANCELLED")


def test_wrong_resources_are_refused_before_anything_is_submitted(site: Submitter) -> None:
    for words, reason in (
        (("--nodes", 3, "--config", "cpu_multinode"), "sbatch"),
        (("--partition", "no"), "partition"),
    ):
        done = rankzero("submit", site.recipe, *words, "--run", site.run("no"), cwd=site.folder, env=site.env)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
        assert not site.run("no").exists()

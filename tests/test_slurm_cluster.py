"""Jobs on a real SLURM cluster: slurmctld and two slurmd on this machine (tests/slurm/cluster.py)."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sweep_stub
import yaml
from batch_helpers import rankzero
from conftest import write_corpus
from processes import status, wait_until
from review_helpers import recipe as review_recipe
from slurm_helpers import PATIENCE, SMALL, Submitter, same, site_of, slurm
from sweep_helpers import problems

from launch.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """Use proctrack/cgroup if possible. It is stricter: a signal reaches only the direct process of a task."""
    proctrack = "cgroup" if slurm.can_track_by_cgroup() else "linuxproc"
    with site_of(tmp_path_factory.mktemp("a site"), proctrack=proctrack, gpus=2) as made:
        yield made


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


def test_the_shipped_demo_from_submit_to_finished(site: Submitter) -> None:
    short = ("data.train=train?rows=2000&shards=2", "loop.max_steps=8", "evaluation.max_rows=8", "export.onnx=false")
    words = (*short, "export.int8=false", "--config", "cpu_multinode", "--nodes", 2, "--finalize")
    training, finalizing = site.submit("demo", *words, recipe="demo-translation")
    site.cluster.ask("scontrol", "hold", str(finalizing))
    assert site.wait_for(training, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(training)
    run = site.run("demo")
    assert (status(run)["state"], status(run)["step"]) == ("running", 8)
    assert not (run / "evaluation").exists()
    told = rankzero("status", run, cwd=site.folder, env=site.env).stdout
    assert "trained, waits for" in told
    assert f"job {finalizing} (finalize): PENDING" in told
    site.cluster.ask("scontrol", "release", str(finalizing))
    assert site.wait_for(finalizing, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(finalizing)
    assert (status(run)["state"], status(run)["exit_code"], status(run)["waits_for"]) == ("finished", 0, None)
    assert json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["rows"] == 8
    manifest = json.loads((run / "manifest.json").read_text())
    assert ([start["ranks"] for start in manifest["starts"]], manifest["ranks"]) == ([2], 1)


def test_an_array_trains_its_seeds_and_compares_them(site: Submitter, reviews: Path) -> None:
    """Pre-empt the task that has the number of the array. It resumes, and the others are not affected."""
    recipe = site.folder / "reviews.yaml"
    recipe.write_text(review_recipe(reviews, export={"onnx": False, "int8": False}).to_yaml())
    number, comparing = site.submit("seeds", "--array", "1-3", recipe=recipe)
    runs = [site.run(f"seeds-seed-{seed}") for seed in (1, 2, 3)]
    last = next(line.split() for line in jobs_of(site, number) if line.split()[1] == str(number))[0]
    wait_until(lambda: "start 1" in site.log(last), PATIENCE)  # its script listens
    site.cluster.ask("scancel", "--batch", "--signal=USR1", last)
    assert site.wait_for(comparing, "COMPLETED", "CANCELLED", "FAILED")["JobState"] == "COMPLETED", site.log(comparing)
    starts = {run.name[-1]: len(json.loads((run / "manifest.json").read_text())["starts"]) for run in runs}
    assert all(status(run)["state"] == "finished" for run in runs)
    restarts = {line.split()[0]: line.split()[2] for line in jobs_of(site, number)}
    assert restarts == {f"{number}_{seed}": "1" if last.endswith(f"_{seed}") else "0" for seed in (1, 2, 3)}
    assert all(count == 0 for seed, count in starts.items() if not last.endswith(seed))
    told = json.loads((site.run("seeds") / "comparison.json").read_text())
    scores = [json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["accuracy"] for run in runs]
    accuracy = told["splits"]["test"]["accuracy"]
    assert accuracy["values"] == scores
    assert accuracy["mean"] == pytest.approx(np.mean(scores))
    assert accuracy["deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert told["best"]["run"] in map(str, runs)
    assert 0 <= told["ensemble"]["test"]["accuracy"] <= 1
    assert len((site.run("seeds") / "ensemble" / "test" / "predictions.jsonl").read_text().splitlines()) == 40
    assert status(site.run("seeds"))["state"] == "finished"
    assert f"job {number}_1 (array): COMPLETED" in rankzero("status", runs[0], cwd=site.folder, env=site.env).stdout


def jobs_of(site: Submitter, array: int) -> list[str]:
    """Return name, number and restarts of each task after all have begun."""

    def begun() -> list[str]:
        told = site.cluster.ask("scontrol", "-o", "show", "job", str(array))
        jobs = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in told.splitlines()]
        waiting = any(job["JobState"] == "PENDING" for job in jobs)
        found = [f"{job['ArrayJobId']}_{job['ArrayTaskId']} {job['JobId']} {job['Restarts']}" for job in jobs]
        return [] if waiting else found

    wait_until(begun, PATIENCE)
    return begun()


def test_scancel_saves_a_checkpoint_and_never_requeues(site: Submitter) -> None:
    """Use one task per (fake) GPU, so that this launcher is tested with the daemons."""
    nodes = ("--config", "cpu_multinode", "--nodes", 2, "--launcher", "task", "--gpus-per-node", 1)
    seen = ("--setup", "srun --ntasks-per-node=1 bash -c 'echo sees GPU $CUDA_VISIBLE_DEVICES'")
    (number,) = site.submit("cancelled", "loop.max_steps=100000", *nodes, *seen)
    site.until_step("cancelled", 5)
    assert site.log(number).count("sees GPU 0\n") == 2
    assert site.job(number)["TresPerNode"] == "gres:gpu:1"
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


def test_special_characters_in_names_paths_and_overrides(site: Submitter, tmp_path: Path) -> None:
    """Submit hostile text to a real cluster. No part of it runs as a command."""
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
    assert (
        f"job {number} (train): PENDING" in rankzero("status", site.run("held"), cwd=site.folder, env=site.env).stdout
    )
    trained = {"state": "running", "step": 4, "exit_code": 0, "waits_for": "a job for evaluation"}
    (site.run("held") / "status.json").write_text(json.dumps(trained))
    done = rankzero("cancel", site.run("held"), cwd=site.folder, env=site.env)
    assert done.stdout == f"job {number} (PENDING): cancelled\n"
    assert (status(site.run("held"))["state"], status(site.run("held"))["exit_code"]) == ("preempted", 75)
    assert site.wait_for(number, "CANCELLED")


def test_wrong_resources_are_refused_before_anything_is_submitted(site: Submitter) -> None:
    for words, reason in (
        (("--nodes", 3, "--config", "cpu_multinode"), "sbatch"),
        (("--partition", "no"), "partition"),
        (("--gpus-per-node", 3, "--config", "ddp"), "sbatch"),
    ):
        done = rankzero("submit", site.recipe, *words, "--run", site.run("no"), cwd=site.folder, env=site.env)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
        assert not site.run("no").exists()


def test_gpus_are_requested(site: Submitter) -> None:
    words = ("submit", "demo-translation", "--config", "zero2", "--nodes", 2, "--gpus-per-node", 2, "--dry-run")
    done = rankzero(*words, "data.lanes=4", cwd=site.folder, env=site.env)
    assert done.returncode == 0, done.stderr
    assert "accepted by sbatch --test-only" in done.stderr
    assert "#SBATCH --gpus-per-node=2\n" in done.stdout
    assert "RANKS_PER_NODE=2\n" in done.stdout
    assert "export ACCELERATE_USE_CPU" not in done.stdout


def test_a_waiting_job_trains_the_recipe_that_was_submitted(site: Submitter, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(site.recipe.read_bytes())
    words = ("loop.max_steps=2", "evaluation.splits=[]", "--sbatch=--hold")
    (number,) = site.submit("frozen", *words, recipe=mine)
    before = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump(before | {"optim": before["optim"] | {"lr": 0.5}, "seed": 77}))
    site.cluster.ask("scontrol", "release", str(number))
    assert site.wait_for(number, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", site.log(number)
    trained = yaml.safe_load((site.run("frozen") / "recipe.yaml").read_text())
    assert (trained["optim"]["lr"], trained["loop"]["max_steps"]) == (before["optim"]["lr"], 2)
    assert trained["seed"] != 77


def test_two_fast_failures_on_a_node_move_the_job_to_another(site: Submitter) -> None:
    bad = ("--setup", '[ "$(hostname)" != node1 ] || PYTHON=(/bin/false)', "--setup", "PAUSE=1")
    words = ("loop.max_steps=2", "evaluation.splits=[]", *bad)
    (number,) = site.submit("moved", *words)
    job = site.wait_for(number, "COMPLETED", "FAILED")
    assert job["JobState"] == "COMPLETED", site.log(number)
    assert "two fast failures on node1" in site.log(number)  # SLURM fills an idle cluster from its first node
    assert (job["BatchHost"], job["ExcNodeList"]) == ("node2", "node1")


def test_the_reason_of_a_failed_setup_line_is_shown(site: Submitter) -> None:
    (number,) = site.submit("modules", "--setup", "module load cuda/99")
    assert site.wait_for(number, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    text = rankzero("status", site.run("modules"), cwd=site.folder, env=site.env).stdout
    assert f"job {number} (train): FAILED (exit code 2:0" in text
    assert "launch.setup failed with 127: module load cuda/99" in text


def test_a_sweep_as_an_array_prunes_a_trial_and_retrains_the_best(site: Submitter) -> None:
    """The tasks share the journal. The last job submits the runs of --top. The stub trains in place of launch.rank."""
    python, search = site.folder / "python", site.folder / "search.yaml"
    stub = f'if [ "$2" = launch.rank ]; then exec {sys.executable} {sweep_stub.__file__} "${{@:3}}"; fi'
    python.write_text(f'#!/bin/bash\n{stub}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    rates = {"kind": "choice", "values": [2e-3, 1e-3, 1e-1]}
    prune = {"kind": "median", "startup_trials": 1, "warmup": 0}
    search.write_text(yaml.safe_dump({"method": "grid", "space": {"optim.lr": rates}, "prune": prune}))
    folder = SweepFolder(site.folder / "a sweep")
    launch = (
        "launch.cpus_per_task=1",
        "launch.time=30",
        f"launch.setup=[{json.dumps(f'PYTHON=({shlex.quote(str(python))})')}]",
    )
    words = ("sweep", site.recipe, search, *launch, "--slurm", "--top", 1, "--seeds", "1-2", "--out", folder.path)
    done = rankzero(*words, cwd=site.folder, env={**site.env, "STUB_SECONDS": "0.2", "STUB_STOPPED": "0.1"})
    assert done.returncode == 0, done.stderr
    array = int(done.stdout.splitlines()[0].split()[-1])
    assert "has job" in rankzero(*words, cwd=site.folder, env=site.env).stderr
    told = rankzero("status", folder.path, cwd=site.folder, env=site.env).stdout
    assert f"job {array}_2 (trials): " in told
    wait_until(lambda: site.hurry() or status(folder.path)["state"] in ("finished", "failed"), PATIENCE)
    logs = "\n".join(path.read_text() for path in (folder.path / "slurm").glob("*.out"))
    assert status(folder.path)["state"] == "finished", logs
    assert problems(folder, 3, states=("complete", "pruned")) == [], logs
    table = json.loads(folder.trials.read_text())
    assert [row["state"] for row in table["trials"]] == ["complete", "complete", "pruned"], logs
    assert status(folder.run(2).path)["exit_code"] == 75
    assert "pruned by its sweep after evaluation" in status(folder.run(2).path)["error"]
    assert site.wait_for(array, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", logs
    assert [(row["number"], row["seed"], row["state"]) for row in table["top"]] == [
        (1, 1, "finished"),
        (1, 2, "finished"),
    ]
    assert json.loads((folder.top / "comparison.json").read_text())["missing"] == []

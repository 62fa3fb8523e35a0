"""Submit jobs to a cluster of tests/slurm as a user does, and read the results."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_helpers import rankzero
from conftest import write_corpus, write_recipe
from processes import status, wait_until
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent / "slurm"))
import cluster as slurm

PATIENCE = 400.0  # seconds for a job; imports alone take half a minute on a busy machine
SMALL = ("evaluation.max_rows=4", "evaluation.splits=[test]", "loop.eval_every=60", "loop.save_every=30")


class Submitter:
    """Submit from a directory with a space in its name, and read the results."""

    def __init__(self, cluster: slurm.Cluster, folder: Path, recipe: Path) -> None:
        self.cluster, self.folder, self.recipe = cluster, folder, recipe
        self.requeued: dict[str, float] = {}
        self.env = {**cluster.environment, "OMP_NUM_THREADS": "1"}

    def run(self, name: str) -> Path:
        return self.folder / "runs of mine" / name

    def submit(self, name: str, *words: object, recipe: object = None) -> list[int]:
        """Submit a run. Return the numbers of its jobs, the training first."""
        what = (self.recipe, *SMALL) if recipe is None else (recipe,)
        words = ("submit", *what, "--cpus-per-task", 1, "--time", 30, "--run", self.run(name), *words)
        done = rankzero(*words, cwd=self.folder, env=self.env)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("Submitted batch job ")
        return [int(lines[0].split()[-1]), *(int(line.split()[2].strip(",")) for line in lines if ": job " in line)]

    def job(self, number: int) -> dict[str, str]:
        told = self.cluster.ask("scontrol", "-o", "show", "job", str(number))
        return dict(part.split("=", 1) for part in told.split() if "=" in part)

    def wait_for(self, number: int, *states: str) -> dict[str, str]:
        """Wait until the job is in one of these states. Requeued jobs skip the two minutes that SLURM delays them."""
        deadline = time.monotonic() + PATIENCE
        while (job := self.job(number)).get("JobState") not in states:
            assert time.monotonic() < deadline, f"{job}\n{self.log(number)}"
            self.hurry()
            time.sleep(0.2)
        return job

    def hurry(self) -> None:
        """Start requeued jobs after two seconds. Earlier, their revoked credential has the same second."""
        for line in self.cluster.ask("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
            job, _, reason = line.partition(" ")
            if reason == "BeginTime" and time.monotonic() - self.requeued.setdefault(job, time.monotonic()) > 2:
                self.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
                del self.requeued[job]

    def until_step(self, name: str, step: int) -> None:
        wait_until(lambda: status(self.run(name))["step"] >= step, PATIENCE)

    def log(self, number: int | str) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.rglob(f"*-{number}.out"))

    def weights(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.run(name) / "model" / "model.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def site_of(folder: Path, **cluster: Any) -> Iterator[Submitter]:
    """Start a cluster for the block, with a recipe of 120 steps to submit there."""
    why = slurm.missing()
    if why:
        pytest.skip(f"no SLURM cluster can be started: {why}")
    corpus = write_corpus(folder / "corpus", test=40)
    recipe = write_recipe(folder / "my recipe.yaml", corpus, loop={"max_steps": 120, "log_every": 1})
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as state:  # sockets: a short name
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        port = slurm.free_port(26000 + 1000 * (worker % 4))  # two workers that look at once would find the same ports
        made = slurm.Cluster(Path(state), kill_wait=60, port=port, **cluster)
        made.start()
        try:
            yield Submitter(made, folder, recipe)
        finally:
            made.stop()

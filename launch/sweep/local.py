"""Run the trials of a sweep on this machine, some at a time, and then the best ones with several seeds.

The journal and the run directories are all that a start needs. Killed at any instant, the same command finds trials
that are trained, resumes those that were running, and draws the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launch.local import with_module_path
from launch.supervise.processes import start
from launch.supervise.signals import SignalForwarder
from launch.sweep.trials import Trials, describe
from launch.sweep_folder import SweepFolder, is_finished, wait_until_free
from trainer.cpu_info import cores
from trainer.errors import Preempted, RankzeroError
from trainer.files import make_folder
from trainer.rundir import RunDir

POLL_SECONDS = 0.2
Command = Callable[[Path, RunDir, bool], list[str]]  # from recipe, run directory and whether to train only


@dataclass(frozen=True)
class Places:
    """Where the jobs of this machine run.

    Attributes:
        jobs: trainings at a time.
        devices: for each job the value of CUDA_VISIBLE_DEVICES. Empty: as in the environment.
        ranks: of each job, between which its cores are divided.
    """

    jobs: int = 1
    devices: Sequence[str] = ()
    ranks: int = 1

    def environment(self, slot: int) -> dict[str, str]:
        env = with_module_path(dict(os.environ))
        if self.jobs > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (self.jobs * self.ranks))))
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        return env


def train_command(options: Sequence[str]) -> Command:
    """Return the command of a trial: `rankzero train` with options such as --config."""

    def command(recipe: Path, run: RunDir, only_train: bool) -> list[str]:
        words = [sys.executable, "-m", "launch.sweep_child", "train", str(recipe), "--run", str(run.path)]
        return [*words, *options, *(["--defer"] if only_train else [])]

    return command


@dataclass
class Job:
    """A training that runs."""

    run: RunDir
    slot: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    stopped: bool = False
    seen: float = 0.0  # time of metrics.jsonl when it was last read


@dataclass
class Jobs:
    """Trainings of this machine by name, at most as many as there are places."""

    folder: SweepFolder
    command: Command
    places: Places
    running: dict[str, Job] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.running) >= self.places.jobs

    def start(self, name: str, recipe: Path, run: RunDir, *, only_train: bool) -> None:
        """Start a training, or resume it, once an earlier process has left its run directory."""
        wait_until_free(run)
        slot = min({*range(self.places.jobs)} - {job.slot for job in self.running.values()})
        log = self.folder.log(name)
        make_folder(log.parent)
        output = log.open("ab")
        process = start(self.command(recipe, run, only_train), self.places.environment(slot), output)
        self.running[name] = Job(run, slot, process, output)

    def ended(self) -> list[tuple[str, int]]:
        """Return the names and exit codes of the trainings that have ended since the last call."""
        found = [(name, code) for name, job in self.running.items() if (code := job.process.poll()) is not None]
        for name, _ in found:
            self.running.pop(name).output.close()
        return found

    def stop(self, name: str) -> None:
        """Ask a training to save and end."""
        job = self.running[name]
        if not job.stopped:
            job.stopped = True
            job.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ask all trainings to save and end, and wait for them."""
        for name in self.running:
            self.stop(name)
        for job in self.running.values():
            job.process.wait()
            job.output.close()
        self.running.clear()


class LocalSweep:
    """A sweep on this machine. A stop signal lets all trainings save."""

    def __init__(self, trials: Trials, jobs: Jobs) -> None:
        self.trials, self.jobs = trials, jobs
        self._stop = SignalForwarder(lambda number: None)

    def run_trials(self) -> None:
        """Run all trials to their end.

        Raises:
            Preempted: stopped by a signal, with everything saved.
            RankzeroError: no trial can succeed.
        """
        self.trials.catch_up()
        if ended := self.trials.ended():
            print(f"resumed: {ended} of {self.trials.sweep.planned} trials", flush=True)
        self._work(self._next_trial, self._record_end, self._watch)

    def run_top(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Train (trial, seed) with all artifacts. Return those that could not be finished."""
        folder = self.trials.folder
        left = [pair for pair in runs if not is_finished(folder.top_run(*pair))]
        failed: list[tuple[int, int]] = []

        def following() -> bool:
            if not left:
                return False
            number, seed = left.pop(0)
            recipe = folder.top_recipe(number, seed)
            self.jobs.start(f"{number}-seed-{seed}", recipe, folder.top_run(number, seed), only_train=False)
            print(f"trial {number} with seed {seed}: started", flush=True)
            return True

        def record_end(name: str, code: int) -> None:
            number, _, seed = name.partition("-seed-")
            if code != 0:
                failed.append((int(number), int(seed)))
            print(f"trial {number} with seed {seed}: {'finished' if code == 0 else f'ended with {code}'}", flush=True)

        self._work(following, record_end, lambda name, job: None)
        return failed

    def _work(
        self, following: Callable[[], bool], record_end: Callable[[str, int], None], watch: Callable[[str, Job], None]
    ) -> None:
        """Keep all places busy until `following` starts nothing and nothing runs. Nothing is left running."""
        try:
            with self._stop.installed():
                while True:
                    for name, code in self.jobs.ended():
                        try:
                            record_end(name, code)
                        finally:
                            self.trials.publish()
                    if self._stop.received:
                        raise Preempted("the sweep was stopped; its trials have saved. The same command resumes")
                    for name, job in self.jobs.running.items():
                        watch(name, job)
                    while not self.jobs.full and following():
                        self.trials.publish()
                    if not self.jobs.running:
                        return
                    time.sleep(POLL_SECONDS)
        finally:
            self.jobs.kill()

    def _next_trial(self) -> bool:
        """Start the next trial: one that was begun earlier, or a new one."""
        study = self.trials.study
        waiting = [number for number in study.open_trials() if str(number) not in self.jobs.running]
        number = waiting[0] if waiting else study.create()
        if number is None:
            return False
        run = self.trials.folder.run(number)
        verb = "resumed" if run.recipe.exists() else "started"
        self.jobs.start(str(number), self.trials.ready(number), run, only_train=True)
        print(f"trial {number}: {verb} with {describe(study.values(study.trials[number]))}", flush=True)
        return True

    def _record_end(self, name: str, code: int) -> None:
        number = int(name)
        if not self.trials.record_end(number) and not self._stop.received:
            self.trials.died(number, code)
        trial = self.trials.study.trials[number]
        if trial.state.is_finished():
            best = self.trials.study.best()
            more = f", best: trial {best[0]}" if best else ""
            value = f" {self.trials.sweep.metric} {trial.value:.4f}" if trial.value is not None else ""
            error = f": {trial.user_attrs['error']}" if "error" in trial.user_attrs else ""
            print(f"trial {number}: {trial.state.name.lower()}{value}{error}{more}", flush=True)

    def _watch(self, name: str, job: Job) -> None:
        """Report new evaluations of a running trial, and stop it if it is to be pruned."""
        try:
            changed = job.run.metrics.stat().st_mtime
        except OSError:
            return
        if job.stopped or changed == job.seen:
            return
        job.seen = changed
        if self.trials.watch(int(name)):
            self.jobs.stop(name)
            print(f"trial {name}: pruned", flush=True)


def failure(failed: Sequence[tuple[int, int]], folder: SweepFolder) -> RankzeroError:
    """Return the error about retrained runs that could not be finished."""
    names = ", ".join(f"trial {number} with seed {seed}" for number, seed in failed)
    return RankzeroError(f"{names}: not finished; see {folder.path / 'logs'}. The same command tries again")

"""Run the checks of `rankzero verify` and print their results.

Every engine that runs here trains the recipe on a few of its rows, in fp32 with dropout: one step, twenty steps, killed
and resumed, and resumed from the checkpoint of another engine. Each run is compared with one uninterrupted process, and
every row must be used where the recipe says. These are runs of `python -m trainer train` in the environment that
`accelerate launch` makes for the shipped configs.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from launch.accelerate_env import launcher_environment
from launch.configs import choose, gpus
from launch.tools.verify.compare import difference, largest_difference, misplaced_rows, read_ledger
from launch.tools.verify.testbed import LAST_STEP, RESUME_STEP, RunFailed, Testbed, make_testbed, read_checkpoint
from trainer.engine_specs import ENGINES
from trainer.errors import NumericsError, RankError, UsageError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe, load_recipe

ONE_STEP, SGD, ADAMW, BITWISE = 1e-6, 1e-6, 5e-4, 0.0  # tolerances; Adam divides by the root of gradients near zero
MORE = 4  # ranks on which some engines are verified besides those on the command line
LEAST_CHANGE = 1e-4  # of some weight in the second half of a run

log = logging.getLogger("rankzero")


class Setup(NamedTuple):
    """Where the checks of an engine run. `copies`: of the model, each sharded over its part of the ranks (HSDP)."""

    engine: str
    ranks: int
    copies: int = 1

    def __str__(self) -> str:
        return f"{self.engine} x {self.shape}"

    @property
    def shape(self) -> str:
        """The number of ranks, or copies and the ranks of each."""
        return str(self.ranks) if self.copies == 1 else f"{self.copies}x{self.ranks // self.copies}"


@dataclass(frozen=True)
class Check:
    """Result of one check. `difference` is the largest of any number, or the number of misplaced rows and steps."""

    name: str
    engine: str
    ranks: int
    difference: float | None
    tolerance: float
    status: str  # passed, failed or skipped
    explanation: str = ""
    copies: int = 1


def verify(
    recipe: BaseRecipe | str | Path, engines: Sequence[str] | None = None, ranks: int = 2, overrides: Sequence[str] = ()
) -> list[Check]:
    """Check that every engine makes the recipe's steps and neither loses nor repeats a row.

    Args:
        recipe: any recipe, or its name or path; its micro-batches are made smaller.
        engines: names as in the manifest; None: all.
        ranks: of the engines with several; DDP also runs on 4, and FSDP2 in two copies on 2 ranks each.
        overrides: `key=value`.

    Raises:
        DataError: too few rows.
        NumericsError: the runs hardly change the weights, so that equal weights would show nothing.
        RankError: the recipe does not train in one process.
        UsageError: an unknown engine, or more ranks than lanes.
    """
    recipe = load_recipe(recipe, overrides)
    names = list(ENGINES) if engines is None else list(engines)
    if unknown := [name for name in names if name not in ENGINES]:
        raise UsageError(f"--engines {','.join(unknown)}: unknown; allowed: {', '.join(ENGINES)}")
    on_gpus = gpus() >= 2
    with tempfile.TemporaryDirectory(prefix="rankzero-verify-", ignore_cleanup_errors=True) as folder:
        testbed = make_testbed(recipe, Path(folder))
        log.info("verifying with %s", testbed.changes)
        small = Recipe.load(testbed.recipe)
        lanes, fuse = small.data.lanes, small.loop.fuse_lanes
        if ranks > lanes:
            raise UsageError(f"--nproc {ranks}: the check has {lanes} lanes, and each rank needs one")
        if fuse > 1 and lanes % (ranks * fuse):
            raise UsageError(f"--nproc {ranks}: with loop.fuse_lanes the check has {lanes} lanes for 2 or 4 ranks")
        setups = [Setup(name, 1 if ENGINES[name].one_process else ranks) for name in names]
        if (min(lanes, gpus()) if on_gpus else lanes) >= MORE:
            setups += [Setup("ddp", MORE)] if "ddp" in names and ranks != MORE else []
            setups += [Setup(name, MORE, 2) for name in names if ENGINES[name].replicates]
        return check_engines(testbed, setups, on_gpus)


def check_engines(testbed: Testbed, setups: Sequence[Setup], on_gpus: bool) -> list[Check]:
    """Train the runs of one process, and check each engine on its number of ranks against them."""
    log.info("one process, uninterrupted")
    env, checks = environment(Setup("single", 1), on_gpus), []
    try:
        for name in ("sgd", "adamw"):
            testbed.train(testbed.reference(name), env, 1, name)
            _require_change(testbed.reference(name), name)
        testbed.train(testbed.reference("first"), env, 1, "sgd", 1)
    except RunFailed as error:
        raise RankError(f"verify: the recipe does not train in one process: {error}") from None
    previous = ("single", testbed.reference("sgd"))
    for setup in setups:
        if missing := ENGINES[setup.engine].missing_package:
            explanation = f"{missing} is not installed: pip install 'rankzero[{missing}]'"
            checks.append(Check("all", setup.engine, setup.ranks, None, 0.0, "skipped", explanation))
        else:
            previous = _EngineChecks(testbed, setup, environment(setup, on_gpus), checks).run(previous)
    return checks


def environment(setup: Setup, on_gpus: bool) -> dict[str, str]:
    """Return the environment of the ranks as the shipped config gives it, but in fp32, where engines are comparable."""
    spec = ENGINES[setup.engine]
    plan = choose(spec.gpu_config if on_gpus else spec.cpu_config, setup.ranks)
    env = launcher_environment(replace(plan, copies=setup.copies))
    if spec.one_process and not on_gpus:  # its config would use the only GPU
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return env | {"ACCELERATE_MIXED_PRECISION": "no"}


def _require_change(run: Path, optimizer: str) -> None:
    last, middle = (read_checkpoint(run, step)[0] for step in (LAST_STEP, RESUME_STEP))
    change, _ = difference(last, middle, "weight")
    if not change > LEAST_CHANGE:
        raise NumericsError(
            f"verify: {LAST_STEP - RESUME_STEP} steps of {optimizer} change no weight by more than {change:.1e}, so "
            "equal weights would show nothing: look at what the recipe freezes or unfreezes late (optim)"
        )


def compare(run: Path, other: Path, step: int = LAST_STEP) -> tuple[float, str]:
    """Return the largest difference between two runs after a step. The momentum after the first is the gradient."""
    actual, expected = (read_checkpoint(path, step) for path in (run, other))
    return difference(actual[1], expected[1], "gradient") if step == 1 else largest_difference(actual, expected)


@dataclass
class _EngineChecks:
    """The checks of one engine on one number of ranks, whose results are added to `checks`."""

    testbed: Testbed
    setup: Setup
    env: dict[str, str]
    checks: list[Check]
    runs: list[Path] = field(default_factory=list)

    def run(self, previous: tuple[str, Path]) -> tuple[str, Path]:
        """Run all checks. This engine resumes the run of the `previous` one. Return its own for the next one."""
        engine = self.setup.engine
        sgd, adamw, killed, resumed = (
            self.testbed.folder / f"{engine}-{self.setup.shape}-{name}"
            for name in ("sgd", "adamw", "killed", "resumed")
        )
        reference, train = self.testbed.reference, self._train
        if not ENGINES[engine].one_process:
            self._check("one step", ONE_STEP, lambda: compare(train(sgd, "sgd", 1), reference("first"), 1))
        self._check("20 steps of SGD", SGD, lambda: compare(train(sgd, "sgd"), reference("sgd")))
        kill = partial(self.testbed.kill, sgd, killed, self.env, self.setup.ranks)
        self._check("killed and resumed", BITWISE, lambda: compare(train(kill(), "sgd"), sgd))
        half = partial(self.testbed.copy_half, previous[1], resumed)
        self._check(f"resumed from {previous[0]}", SGD, lambda: compare(train(half(), "sgd"), reference("sgd")))
        self._check("20 steps of AdamW", ADAMW, lambda: compare(train(adamw, "adamw"), reference("adamw")))
        self._check("rows", 0, self._misplaced_rows)
        if previous[1] != reference("sgd"):
            shutil.rmtree(previous[1], ignore_errors=True)  # no longer needed
        return (engine, sgd) if self.runs else previous

    def _check(self, name: str, tolerance: float, work: Callable[[], tuple[float, str]]) -> None:
        log.info("%s: %s", self.setup, name)
        difference: float | None = None
        try:
            difference, explanation = work()
        except RunFailed as error:
            explanation = str(error)
        passed = difference is not None and difference <= tolerance
        result = ("passed", "") if passed else ("failed", explanation)
        engine, ranks, copies = self.setup
        self.checks.append(Check(name, engine, ranks, difference, tolerance, *result, copies))

    def _train(self, run: Path, optimizer: str, steps: int = LAST_STEP) -> Path:
        self.testbed.train(run, self.env, self.setup.ranks, optimizer, steps)
        self.runs += [] if run in self.runs else [run]
        return run

    def _misplaced_rows(self) -> tuple[float, str]:
        if not self.runs:
            raise RunFailed("no run has finished: see the lines above")
        expected = read_ledger(self.testbed.reference("sgd"))
        results = [(run.name, *misplaced_rows(read_ledger(run), expected, self.testbed.rows)) for run in self.runs]
        return sum(count for _, count, _ in results), "; ".join(f"{n}: {text}" for n, count, text in results if count)


def show(checks: Sequence[Check]) -> None:
    """Print a line for each check, and how many have passed."""
    print("status  engine  ranks  check                   difference   allowed")
    for check in checks:
        number = "-" if check.difference is None else f"{check.difference:.3g}"
        shape = Setup(check.engine, check.ranks, check.copies).shape
        start = f"{check.status:8s}{check.engine:8s}{shape:>5s}  {check.name:24s}"
        print(f"{start}{number:>10s}{check.tolerance:10g}  {check.explanation}".rstrip())
    counts = Counter(check.status for check in checks)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))

"""Run the checks of `rankzero verify` and print their results.

Every engine that runs here trains the recipe on a few of its rows, in fp32 with dropout: one step, twenty steps, killed
and resumed, and resumed from the checkpoint of another engine. Each run is compared with one uninterrupted process, and
every row must be used where the recipe says. These are runs of `python -m trainer train` in the environment that
`accelerate launch` makes for the shipped configs.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.accelerate_env import launcher_environment
from launch.configs import gpus
from launch.tools.verify.compare import Tensors, difference, largest_difference, misplaced_rows, read_ledger
from launch.tools.verify.testbed import (
    LAST_STEP,
    RESUME_STEP,
    RunFailed,
    Testbed,
    checkpoint_folder,
    fp32_plan,
    make_testbed,
    read_checkpoint,
)
from trainer.engine_specs import ENGINES
from trainer.errors import NumericsError, RankError, UsageError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

ONE_STEP, SGD, ADAMW, BITWISE = 1e-6, 1e-6, 5e-4, 0.0  # tolerances; Adam divides by the root of gradients near zero
MORE_RANKS = {"ddp": (4,)}  # numbers of ranks that are verified besides the one on the command line
LEAST_CHANGE = 1e-4  # of some weight in the second half of a run
COLORS = {"passed": "green", "failed": "bold red", "skipped": "yellow"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """Result of one check. `difference` is the largest of any number, or the number of misplaced rows."""

    name: str
    engine: str
    ranks: int
    difference: float | None
    tolerance: float
    status: str  # passed, failed or skipped
    explanation: str = ""


def verify(
    recipe: BaseRecipe,
    engines: Sequence[str] | None = None,
    ranks: int = 2,
    *,
    report: Report = lambda text: None,
) -> list[Check]:
    """Check that every engine makes the recipe's steps and neither loses nor repeats a row.

    Args:
        recipe: any recipe; its micro-batches are made smaller.
        engines: names as in the manifest; None: all.
        ranks: of the engines with several; DDP also runs on 4.
        report: called with what is being done.

    Raises:
        DataError: too few rows.
        UsageError: an unknown engine, or more ranks than lanes.
    """
    names = list(ENGINES) if engines is None else list(engines)
    if unknown := [name for name in names if name not in ENGINES]:
        raise UsageError(f"--engines {','.join(unknown)}: unknown; allowed: {', '.join(ENGINES)}")
    on_gpus = gpus() >= 2
    with tempfile.TemporaryDirectory(prefix="rankzero-verify-", ignore_cleanup_errors=True) as folder:
        testbed = make_testbed(recipe, Path(folder))
        report(f"verifying with {'; '.join(testbed.changes)}")
        lanes = Recipe.load(testbed.recipe).data.lanes
        if ranks > lanes:
            raise UsageError(f"--nproc {ranks}: the check has {lanes} lanes, and each rank needs one")
        most = min(lanes, gpus()) if on_gpus else lanes
        counts = {name: {ranks, *(n for n in MORE_RANKS.get(name, ()) if n <= most)} for name in names}
        counts |= {name: {1} for name in names if ENGINES[name].one_process}
        pairs = [(name, count) for name in names for count in sorted(counts[name])]
        return Verification(testbed, pairs, on_gpus, report).run()


@dataclass
class Verification:
    """All checks of a list of (engine, ranks). `checks` grows while they run."""

    testbed: Testbed
    engines: Sequence[tuple[str, int]]
    on_gpus: bool
    report: Report
    checks: list[Check] = field(default_factory=list)

    def run(self) -> list[Check]:
        self.report("one process, uninterrupted")
        self._make_reference()
        self._require_change()
        previous = ("single", self.reference("sgd"))
        for engine, ranks in self.engines:
            if missing := ENGINES[engine].missing_package:
                explanation = f"{missing} is not installed: pip install 'rankzero[{missing}]'"
                self.checks.append(Check("all", engine, ranks, None, 0.0, "skipped", explanation))
            else:
                previous = _EngineChecks(self, engine, ranks).run(previous)
        return self.checks

    def environment(self, engine: str, ranks: int) -> dict[str, str]:
        """Return the environment of the ranks, as the shipped config for this machine gives it, but in fp32."""
        facts = ENGINES[engine]
        config = facts.gpu_config if self.on_gpus else facts.cpu_config
        env = launcher_environment(fp32_plan(config, ranks, self.testbed.folder))
        if facts.one_process and not self.on_gpus:  # its config would use the only GPU
            env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        return env

    def reference(self, name: str) -> Path:
        """The run of one process with an optimizer ("sgd" or "adamw"), or of one step ("first")."""
        return self.testbed.folder / f"reference-{name}"

    def expected(self, optimizer: str, step: int) -> tuple[Tensors, Tensors]:
        return read_checkpoint(self.reference("first" if step == 1 else optimizer), step)

    def _make_reference(self) -> None:
        """Train the runs of one process with which all others are compared.

        Raises:
            RankError: one of them fails.
        """
        testbed, env = self.testbed, self.environment("single", 1)
        try:
            for name in ("sgd", "adamw"):
                testbed.train(self.reference(name), env, 1, name)
            testbed.train(self.reference("first"), env, 1, "sgd", steps=1)
        except RunFailed as error:
            raise RankError(f"verify: the recipe does not train in one process: {error}") from None

    def _require_change(self) -> None:
        """Raise NumericsError if the weights hardly change: equal weights would show nothing."""
        for name in ("sgd", "adamw"):
            last, middle = (read_checkpoint(self.reference(name), step)[0] for step in (LAST_STEP, RESUME_STEP))
            change, _ = difference(last, middle, "weight")
            if not change > LEAST_CHANGE:
                raise NumericsError(
                    f"verify: {LAST_STEP - RESUME_STEP} steps of {name} change no weight by more than {change:.1e}, so "
                    "equal weights would show nothing: look at what the recipe freezes or unfreezes late (optim)"
                )


class _EngineChecks:
    """The checks of one engine on one number of ranks."""

    def __init__(self, verification: Verification, engine: str, ranks: int) -> None:
        self.verification, self.testbed = verification, verification.testbed
        self.engine, self.ranks = engine, ranks
        self.env = verification.environment(engine, ranks)
        self.runs: list[Path] = []

    def run(self, previous: tuple[str, Path]) -> tuple[str, Path]:
        """Run all checks.

        Args:
            previous: the engine that was checked before, and its run, which this engine resumes.

        Returns:
            The same of this engine, for the next one.
        """
        sgd = self._folder("sgd")
        if not ENGINES[self.engine].one_process:
            self._check("one step", ONE_STEP, lambda: self._compare(self._train(sgd, "sgd", 1), "sgd", 1))
        self._check("20 steps of SGD", SGD, lambda: self._compare(self._train(sgd, "sgd"), "sgd"))
        self._check("killed and resumed", BITWISE, lambda: self._kill_and_resume(sgd))
        name = f"resumed from {previous[0]}"
        self._check(name, SGD, lambda: self._compare(self._train(self._copy_half(previous[1], "from"), "sgd"), "sgd"))
        adamw = self._folder("adamw")
        self._check("20 steps of AdamW", ADAMW, lambda: self._compare(self._train(adamw, "adamw"), "adamw"))
        self._check("rows", 0, self._misplaced_rows)
        if previous[1].name.startswith(previous[0]):  # of the engine before, not of the reference: no longer needed
            shutil.rmtree(previous[1], ignore_errors=True)
        return (self.engine, sgd) if self.runs else previous

    def _folder(self, name: str) -> Path:
        return self.testbed.folder / f"{self.engine}-{self.ranks}-{name}"

    def _check(self, name: str, tolerance: float, work: Callable[[], tuple[float, str]]) -> None:
        self.verification.report(f"{self.engine} x {self.ranks}: {name}")
        difference: float | None = None
        try:
            difference, explanation = work()
        except RunFailed as error:
            explanation = str(error)
        passed = difference is not None and difference <= tolerance
        result = ("passed", "") if passed else ("failed", explanation)
        self.verification.checks.append(Check(name, self.engine, self.ranks, difference, tolerance, *result))

    def _train(self, run: Path, optimizer: str, steps: int = LAST_STEP) -> Path:
        self.testbed.train(run, self.env, self.ranks, optimizer, steps=steps)
        if run not in self.runs:
            self.runs.append(run)
        return run

    def _compare(self, run: Path, optimizer: str, step: int = LAST_STEP) -> tuple[float, str]:
        actual, expected = read_checkpoint(run, step), self.verification.expected(optimizer, step)
        if step == 1:  # the momentum after the first step is the gradient
            return difference(actual[1], expected[1], "gradient")
        return largest_difference(actual, expected)

    def _kill_and_resume(self, uninterrupted: Path) -> tuple[float, str]:
        """Compare with the same engine's run that was not killed."""
        if not checkpoint_folder(uninterrupted, LAST_STEP).exists():
            raise RunFailed("there is no uninterrupted run to compare with: see the line above")
        run = self._copy_half(uninterrupted, "killed")
        self.testbed.kill(run, self.env, self.ranks, "sgd")
        self._train(run, "sgd")
        return largest_difference(read_checkpoint(run, LAST_STEP), read_checkpoint(uninterrupted, LAST_STEP))

    def _copy_half(self, run: Path, name: str) -> Path:
        """Copy a run as it was after the step from which others resume."""
        if not checkpoint_folder(run, RESUME_STEP).exists():
            raise RunFailed(f"{run.name} has no checkpoint of step {RESUME_STEP} to resume from: see the lines above")
        copy = self._folder(name)
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(checkpoint_folder(run, LAST_STEP).name))
        RunDir(copy).cut_after(RunDir(copy).ledger, RESUME_STEP)
        return copy

    def _misplaced_rows(self) -> tuple[float, str]:
        if not self.runs:
            raise RunFailed("no run has finished: see the lines above")
        expected, total, explanations = read_ledger(self.verification.reference("sgd")), 0, []
        for run in self.runs:
            count, reason = misplaced_rows(read_ledger(run), expected, self.testbed.rows)
            total += count
            explanations += [f"{run.name}: {reason}"] if count else []
        return total, "; ".join(explanations)


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Report]:
    """Yield a function that prints what is being done: one line that changes on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda text: console.print(text, highlight=False, markup=False)
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


def show(checks: Sequence[Check], console: Console) -> None:
    """Print a table of the checks, and below it why checks failed."""
    table = Table()
    for name in ("engine", "ranks", "check", "largest difference", "allowed", ""):
        table.add_column(name, justify="right" if name in ("ranks", "largest difference", "allowed") else "left")
    for check in checks:
        number = "-" if check.difference is None else f"{check.difference:.3g}"
        status = f"[{COLORS[check.status]}]{check.status}[/]"
        table.add_row(check.engine, str(check.ranks), check.name, number, f"{check.tolerance:g}", status)
    console.print(table)
    for check in checks:
        if check.status != "passed":
            line = f"{check.engine} x {check.ranks}, {check.name}: {check.status}: {check.explanation}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    counts = Counter(check.status for check in checks)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    sys.stdout.flush()

"""`rankzero verify`: the first two promises, proven on the user's own machine with the user's own recipe.

Every engine that runs here trains the recipe on a few of its rows, in fp32 with dropout: one step, twenty steps, killed
and resumed, and on from another engine's checkpoint. Each is compared with one uninterrupted process, and every row
has to be where the recipe says. Nothing is imitated: these are runs of `python -m trainer train` in the environment
that `accelerate launch` makes for the shipped configs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.comparing import Tensors, difference, misplaced, read_ledger, worst
from launch.configs import Engine, gpus
from launch.launched import launcher_environment
from launch.proving import (
    HALF,
    WHOLE,
    Ground,
    RunFailed,
    checkpoint_of,
    fp32,
    make_ground,
    place_of,
)
from launch.ranks import Hook
from trainer.errors import NumericsError, RankError, UsageError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

ONE_STEP, SGD, ADAMW, BITWISE = 1e-6, 1e-6, 5e-4, 0.0  # tolerances; Adam divides by the root of gradients near zero
MOVED = 1e-4  # at least, by some weight, in the second half of a run
ENGINES: tuple[str, ...] = get_args(Engine)


@dataclass(frozen=True)
class Check:
    """One line of the proof. `difference`: the largest of any number, or rows that are not where they belong."""

    name: str
    engine: str
    ranks: int
    difference: float | None
    tolerance: float
    status: str  # passed, failed or skipped
    explanation: str = ""


@dataclass
class Proof:
    """Runs all checks of a list of (engine, ranks); `checks` grows while it goes."""

    ground: Ground
    engines: Sequence[tuple[str, int]]
    on_gpus: bool
    say: Callable[[str], None]
    checks: list[Check] = field(default_factory=list)

    def run(self) -> list[Check]:
        self.say("one process, uninterrupted")
        self._make_reference(self.environment("single", 1))
        before = ("single", self._reference["sgd"])
        for engine, ranks in self.engines:
            why = _missing(engine)
            if why is not None:
                self.checks += [Check("all", engine, ranks, None, 0.0, "skipped", why)]
                continue
            folder = self.ground.folder / f"{engine}-{ranks}"
            before = _OneEngine(self, engine, ranks, folder).run(before)
        return self.checks

    def environment(self, engine: str, ranks: int) -> dict[str, str]:
        """Of the ranks, as the shipped config for this machine gives it, in fp32."""
        if engine == "single":
            alone = {} if self.on_gpus else {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
            return launcher_environment(fp32("debug", 1, self.ground.folder)) | alone
        config = engine if self.on_gpus else "cpu" if engine == "ddp" else f"cpu_{engine}"
        return launcher_environment(fp32(config, ranks, self.ground.folder))

    def _make_reference(self, env: dict[str, str]) -> None:
        """The runs of one process with which all others are compared.

        Raises:
            RankError: one of them fails, so that there is nothing to prove anything with.
        """
        ground = self.ground
        try:
            self._reference = {
                name: ground.train(ground.folder / f"reference-{name}", env, 1, *ground.optimizer(name))
                for name in ("sgd", "adamw")
            }
            ground.train(self._first, env, 1, *ground.optimizer("sgd"), steps=1)
        except RunFailed as error:
            raise RankError(f"verify: the recipe does not train in one process: {error}") from None
        self._ask_for_movement()

    def _ask_for_movement(self) -> None:
        """Weights that stand still are the same everywhere: they would prove nothing."""
        for name, run in self._reference.items():
            moved, _ = difference(checkpoint_of(run, WHOLE)[0], checkpoint_of(run, HALF)[0], "weight")
            if not moved > MOVED:
                raise NumericsError(
                    f"verify: {WHOLE - HALF} steps of {name} move no weight by more than {moved:.1e}, so that equal "
                    "weights would prove nothing: look at what the recipe freezes or unfreezes late (optim)"
                )

    @property
    def _first(self) -> Path:
        return self.ground.folder / "reference-first"

    def expected(self, name: str, step: int) -> tuple[Tensors, Tensors]:
        return checkpoint_of(self._first if step == 1 else self._reference[name], step)

    def ledger(self) -> list[dict[str, Any]]:
        return read_ledger(self._reference["sgd"])


class _OneEngine:
    """The checks of one engine on one number of ranks."""

    def __init__(self, proof: Proof, engine: str, ranks: int, folder: Path) -> None:
        self.proof, self.engine, self.ranks, self.folder = proof, engine, ranks, folder
        self.env = proof.environment(engine, ranks)
        self.runs: list[Path] = []

    def run(self, before: tuple[str, Path]) -> tuple[str, Path]:
        """Makes all checks. `before`: the engine in front of this one and its run, which this one goes on with.

        Returns the same of this engine, for the next.
        """
        sgd = self.folder.with_name(f"{self.folder.name}-sgd")
        if self.engine != "single":
            self._check("one step", ONE_STEP, lambda: self._apart(self._train(sgd, "sgd", 1), "sgd", 1))
        self._check("20 steps of SGD", SGD, lambda: self._apart(self._train(sgd, "sgd"), "sgd"))
        self._check("killed and resumed", BITWISE, lambda: self._killed(sgd))
        name = f"resumed from {before[0]}"
        self._check(name, SGD, lambda: self._apart(self._train(self._half(before[1], "from"), "sgd"), "sgd"))
        adamw = self.folder.with_name(f"{self.folder.name}-adamw")
        self._check("20 steps of AdamW", ADAMW, lambda: self._apart(self._train(adamw, "adamw"), "adamw"))
        self._check("rows", 0, self._rows)
        if before[1].name.startswith(before[0]):  # made by the engine before: read for the last time
            shutil.rmtree(before[1], ignore_errors=True)
        return (self.engine, sgd) if self.runs else before

    def _check(self, name: str, tolerance: float, work: Callable[[], tuple[float, str]]) -> None:
        self.proof.say(f"{self.engine} x {self.ranks}: {name}")
        difference, explanation = None, ""
        try:
            difference, explanation = work()
        except RunFailed as error:
            explanation = str(error)
        passed = difference is not None and difference <= tolerance
        status, explanation = ("passed", "") if passed else ("failed", explanation)
        check = Check(name, self.engine, self.ranks, difference, tolerance, status, explanation)
        self.proof.checks.append(check)

    def _train(self, run: Path, optimizer: str, steps: int = WHOLE) -> Path:
        ground = self.proof.ground
        made = ground.train(run, self.env, self.ranks, *ground.optimizer(optimizer), steps=steps)
        if made not in self.runs:
            self.runs.append(made)
        return made

    def _apart(self, run: Path, optimizer: str, step: int = WHOLE) -> tuple[float, str]:
        found, expected = checkpoint_of(run, step), self.proof.expected(optimizer, step)
        if step == 1:  # the momentum after the first step is the gradient
            return difference(found[1], expected[1], "gradient")
        return worst(found, expected)

    def _killed(self, uninterrupted: Path) -> tuple[float, str]:
        """Bit for bit what the same engine makes without the kill."""
        if not place_of(uninterrupted, WHOLE).exists():
            raise RunFailed("there is no uninterrupted run to compare with: see the line above")
        run, ground = self._half(uninterrupted, "killed"), self.proof.ground
        ground.train_killed(run, self.env, self.ranks, *ground.optimizer("sgd"))
        self.runs.append(run)
        return worst(checkpoint_of(run, WHOLE), checkpoint_of(uninterrupted, WHOLE))

    def _half(self, run: Path, name: str) -> Path:
        """A copy of a run as it stood after step 10."""
        if not place_of(run, HALF).exists():
            raise RunFailed(f"{run.name} has no checkpoint of step {HALF} to go on from: see the lines above")
        copy = self.folder.with_name(f"{self.folder.name}-{name}")
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(place_of(run, WHOLE).name))
        RunDir(copy).cut_after(RunDir(copy).ledger, HALF)
        return copy

    def _rows(self) -> tuple[float, str]:
        if not self.runs:
            raise RunFailed("no run has come to its end: see the lines above")
        wrong, explanations = 0, []
        for run in self.runs:
            count, why = misplaced(read_ledger(run), self.proof.ledger(), self.proof.ground.rows)
            wrong += count
            explanations += [f"{run.name}: {why}"] if count else []
        return wrong, "; ".join(explanations)


def _missing(engine: str) -> str | None:
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return "DeepSpeed is not installed: pip install 'rankzero[deepspeed]'"
    return None


def verify(
    recipe: BaseRecipe,
    engines: Sequence[str] = ENGINES,
    ranks: int = 2,
    *,
    hook: Hook | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Proves that every engine makes the recipe's steps, loses nothing and repeats nothing.

    Args:
        recipe: any recipe; its micro-batches are cut down.
        engines: names as in the manifest.
        ranks: of the engines with several; DDP is tried on 4 as well.
        hook: called in each rank first (for planted faults).
        say: told what is being done.

    Raises:
        DataError: too few rows.
        UsageError: an unknown engine, or more ranks than lanes.
    """
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise UsageError(f"--engines {','.join(unknown)}: unknown; allowed: {', '.join(ENGINES)}")
    on_gpus = gpus() >= 2
    with tempfile.TemporaryDirectory(prefix="rankzero-verify-", ignore_cleanup_errors=True) as name:
        ground = make_ground(recipe, Path(name), hook)
        say(f"proving with {'; '.join(ground.cuts)}")
        lanes = Recipe.load(ground.recipe).data.lanes
        if ranks > lanes:
            raise UsageError(f"--nproc {ranks}: the proof has {lanes} lanes, and each rank needs one")
        most = min(lanes, gpus()) if on_gpus else lanes
        asked: list[tuple[str, int]] = []
        for engine in engines:
            counts = {"single": [1], "ddp": sorted({n for n in (ranks, 4) if n <= most})}.get(engine, [ranks])
            asked += [(engine, count) for count in counts]
        return Proof(ground, asked, on_gpus, say).run()


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Callable[[str], None]]:
    """On a terminal one line that changes; else plain lines."""
    if not console.is_terminal:
        yield lambda text: console.print(text, highlight=False, markup=False)
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


def show(checks: Sequence[Check], console: Console) -> None:
    """The table of a proof, and below it what failed and why."""
    table = Table()
    for name in ("engine", "ranks", "check", "largest difference", "allowed", ""):
        table.add_column(name, justify="right" if name in ("ranks", "largest difference", "allowed") else "left")
    for check in checks:
        found = "-" if check.difference is None else f"{check.difference:.3g}"
        colour = {"passed": "green", "failed": "bold red", "skipped": "yellow"}[check.status]
        table.add_row(
            check.engine, str(check.ranks), check.name, found, f"{check.tolerance:g}", f"[{colour}]{check.status}[/]"
        )
    console.print(table)
    for check in checks:
        if check.status != "passed":
            line = f"{check.engine} x {check.ranks}, {check.name}: {check.status}: {check.explanation}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    counts = Counter(check.status for check in checks)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    sys.stdout.flush()

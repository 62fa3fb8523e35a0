"""Compare the recipe of a start with the run directory of earlier starts.

The recipe of a run describes its weights: recipe.yaml gets a changed key only if steps are trained with it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trainer import tensors
from trainer.engine import checkpoint
from trainer.engine.progress import Progress
from trainer.engine.rendezvous import ATTEMPT, LAUNCH
from trainer.errors import CheckpointError, RankzeroError, UsageError
from trainer.files import read_json, write_atomically
from trainer.recipe import Recipe, changed_keys, read_yaml
from trainer.redaction import redacted
from trainer.rundir import RunDir

log = logging.getLogger("rankzero")

NOT_RESTARTED = (2, 3, 4, 5, 6)  # exit codes of errors that a restart does not fix
# Keys by which rows are dealt to lanes and cut into micro-batches, which bookmarks count.
CUT_BY = (
    *("seed", "data.block_rows", "data.order", "data.tokens_per_batch", "data.rows_per_batch", "data.pad_multiple"),
    *("data.max_length", "data.cleaning", "data.columns", "data.validation", "tokenizer"),
)
ALTERNATIVE = "use another --run, or --fresh (which keeps this run)"


def restarted_by_launcher(run: RunDir) -> bool:
    """Return whether torchrun has started all ranks again, after an attempt that rank zero had begun.

    A program may train the same run twice. Then both attempts are of one process.
    """
    if int(os.environ.get(ATTEMPT, "1")) < 2:
        return False
    status = read_json(run.status) or {}
    return status.get("launch") == os.environ.get(LAUNCH) and status.get("pid") != os.getpid()


def check_launcher_restart(run: RunDir) -> None:
    """Record a restart by torchrun (`--max-restarts`). Rank zero calls this before it changes the run directory.

    Raises:
        RankzeroError: the attempt before ended with a code that a restart does not fix; the same code again.
    """
    status = read_json(run.status) or {}
    code, error = status.get("exit_code"), status.get("error")
    if code in NOT_RESTARTED:
        repeated = RankzeroError(f"not started again after exit code {code}: {error}")
        repeated.exit_code, repeated.everywhere = code, True
        raise repeated
    ranks, reason = int(os.environ.get("WORLD_SIZE", "1")), str(error or "a rank died").partition("\n")[0]
    run.record_restart("torchrun --max-restarts", ranks=ranks, reason=reason, exit_code=code or 1)


def agree_with_earlier(run: RunDir, recipe: Recipe, allowed: Sequence[str]) -> None:
    """Compare the recipe with the one that the run directory was made with.

    The first recipe is written here. `write_recipe` writes a changed one, once its data are compared. A start that
    failed before its first checkpoint (by a wrong file pattern, say) has trained nothing: its recipe is replaced.

    Raises:
        UsageError: a key that changes a step differs and is not allowed, or it is allowed but no step would be
            trained with it. All such keys are named with their old and new value.
        CheckpointError: a changed key needs a checkpoint to train from, and there is none.
    """
    if run.recipe.exists():
        old = read_yaml(run.recipe)
        with suppress(UsageError):  # keys that a newer version has added get their defaults
            old = type(recipe).parse(old, (), str(run.recipe)).model_dump(mode="json")
        changed = changed_keys(redacted(old), redacted(recipe.model_dump(mode="json")))
        if changed and not any(run.checkpoints.iterdir()) and not _finished_parts(run):
            shutil.rmtree(run.tokenizer, ignore_errors=True)
            for file in (run.manifest, run.metrics, run.ledger):
                file.unlink(missing_ok=True)
            changed = {}
        refused = {key: values for key, values in changed.items() if not _is_allowed(key, allowed)}
        if refused:
            lines = "".join(f"\n  {key}: {before!r} -> {after!r}" for key, (before, after) in refused.items())
            raise UsageError(
                f"run directory {run.path} belongs to another recipe; these keys differ:{lines}\n{ALTERNATIVE}, or "
                "--allow-change KEY"
            )
        if changed:
            _check_effect(run, recipe, changed)
        for key, (before, after) in changed.items():
            log.warning("--allow-change %s: %r -> %r", key, before, after)
        if changed or any(run.checkpoints.iterdir()) or _finished_parts(run):
            return
    write_recipe(run, recipe)


def write_recipe(run: RunDir, recipe: Recipe) -> None:
    """Write recipe.yaml, without credentials."""
    write_atomically(run.recipe, redacted(recipe.to_yaml()))


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    """Whether --allow-change names a key, or a section or mapping that it is in: data.train covers data.train.src."""
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in allowed)


def trained_step(run: RunDir) -> int | None:
    """Return the last step of a finished run that has no checkpoints any more; None for a run that has not begun.

    Raises:
        CheckpointError: it was finished, but its model/ is missing, too.
    """
    if not (parts := _finished_parts(run)):
        return None
    stage = _stages(run).get("model")
    if stage is None or not tensors.exists(run.model / "model.safetensors"):
        raise CheckpointError(
            f"run directory {run.path} holds {', '.join(parts)} of a finished run, but neither checkpoints nor a "
            f"model/ that manifest.json lists: nothing can be resumed. Restore them from a backup, {ALTERNATIVE}"
        )
    return int(stage["step"])


def _stages(run: RunDir) -> dict[str, Any]:
    return dict((read_json(run.manifest) or {}).get("stages", {}))


def _finished_parts(run: RunDir) -> list[str]:
    """Return the results in the run directory that a start from step 0 would overwrite."""
    folders = [folder.name for folder in (run.model, run.path / "evaluation", run.export) if folder.is_dir()]
    return list(dict.fromkeys([*folders, *_stages(run)]))


def _check_effect(run: RunDir, recipe: Recipe, changed: Mapping[str, Any]) -> None:
    """Check that steps will be trained with the changed keys, and warn if bookmarks do not fit them exactly."""
    if "data.lanes" in changed:
        raise UsageError(
            f"data.lanes={recipe.data.lanes}: run directory {run.path} has {changed['data.lanes'][0]} lanes, and each "
            f"checkpoint a bookmark for each of them, so that the number cannot be changed: {ALTERNATIVE}"
        )
    step = checkpoint.newest(run.checkpoints, set_aside=False)  # this start may be refused
    if step is None:
        raise CheckpointError(
            f"run directory {run.path} is finished and has no checkpoints to train on from, so that "
            f"{', '.join(changed)} cannot be changed: {ALTERNATIVE}"
        )
    progress = Progress.from_json(checkpoint.read_state(run.checkpoints, step))
    for key, end, trained in (
        ("loop.max_steps", recipe.loop.max_steps, progress.step),
        ("loop.epochs", recipe.loop.epochs, progress.epochs_begun()),
    ):
        if key in changed and end is not None and end < trained:
            raise UsageError(
                f"{key}={end} is less than run directory {run.path} has trained ({key.partition('.')[2]} {trained}), "
                f"and the recipe of a run describes its weights: give {trained} or more, {ALTERNATIVE}"
            )
    progress.reopen(recipe.loop.early_stopping.patience)
    if progress.finished(recipe.loop):
        more = "loop.early_stopping.patience" if progress.ended else "loop.max_steps or loop.epochs"
        raise UsageError(
            f"run directory {run.path} is trained to its end (step {step}): no step would be trained with the changed "
            f"{', '.join(changed)}, and the recipe of a run describes its weights. Raise {more} as well, {ALTERNATIVE}"
        )
    cut = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in CUT_BY)]
    if cut and progress.epochs_begun() > progress.epoch:
        log.warning(
            "%s changed in the middle of epoch %d: rows of a block are cut into other micro-batches than its bookmark "
            "counts, so some rows of this epoch may be left out or used twice. Later epochs are exact",
            *(", ".join(cut), progress.epoch),
        )

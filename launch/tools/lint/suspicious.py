"""Values that are allowed and rarely meant: the warnings of `rankzero lint`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.init_recipe.render import scalar
from trainer.models.suggested import is_here, is_offline, longest_input, rate_of
from trainer.recipe import Recipe
from trainer.redaction import redacted

Warnings = Iterator[tuple[str, str]]
ADAPTIVE = ("adamw", "adamw8bit", "lion")
MOST_RATE, LEAST_RATE = 1e-2, 1e-7
TIMES = 15  # the usual rate of a pretrained model, above which a rate is high
# Key -> (largest usual value, what happens above it).
LARGEST: dict[str, tuple[float, str]] = {
    "optim.label_smoothing": (0.3, "usual is 0.1"),
    "optim.r_drop": (10, "usual is 0.5 to 5"),
    "optim.weight_decay": (0.3, "usual is 0.01 to 0.1"),
    "optim.warmup_ratio": (0.5, "the rate rises for more than half of the training; usual is 0.06 to 0.1"),
    "model.dropout": (0.5, "usual is 0.1 to 0.3"),
    "data.max_bad_fraction": (0.2, "more than a fifth of the rows may be left out"),
    "data.validation": (0.5, "more than half of the training rows are held out"),
    "evaluation.beam_size": (20, "decoding takes time in proportion; usual is 4 or 5"),
}


def suspicious(recipe: Recipe) -> Warnings:
    """Yield key and message of each suspicious value."""
    yield from _rates(recipe)
    yield from _schedule(recipe)
    yield from _batches(recipe)
    yield from _splits(recipe)
    for key, (most, why) in LARGEST.items():
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name, None)
        if isinstance(value, int | float) and value > most:
            yield key, f"{value:g} is large: {why}"
    weights = getattr(recipe.model, "weights", None)
    if weights and is_offline() and not weights.startswith(("/", ".", "~", "pkg://")) and not is_here(weights):
        yield "model.name", f"{weights} is not on this machine, and HF_HUB_OFFLINE is set"
    dropouts = [getattr(recipe.model, key, 0.0) for key in ("dropout", "attention_dropout", "word_dropout")]
    if recipe.optim.r_drop and not any(value is None or value > 0 for value in dropouts):
        yield "optim.r_drop", "has no effect but to double the time of a step: the model has no dropout"
    if redacted(recipe.data.root) != recipe.data.root:
        yield "data.root", "holds a password or a token: keep it in the environment or in the store's own settings"


def _rates(recipe: Recipe) -> Warnings:
    model: Any = recipe.model
    optim, name = recipe.optim, recipe.optim.name
    if name not in ADAPTIVE or optim.relative_rates:
        return
    weights = getattr(model, "weights", None)
    if weights is None or optim.freeze_trunk or getattr(model, "adapter", None) is not None:
        most, usual = MOST_RATE, "usual is 1e-4 to 2e-3"
    else:
        rate, why = rate_of(weights)
        most, usual = TIMES * rate, f"{weights} is usually fine-tuned with about {scalar(rate)} ({why})"
    if optim.lr > most:
        yield "optim.lr", f"{scalar(optim.lr)} is high for {name}: {usual}"
    elif optim.lr < LEAST_RATE:
        yield "optim.lr", f"{scalar(optim.lr)} is so low that the weights hardly change"


def _schedule(recipe: Recipe) -> Warnings:
    loop, optim, steps = recipe.loop, recipe.optim, recipe.loop.max_steps
    if steps is None:
        return
    if optim.warmup_steps >= steps:
        yield (
            "optim.warmup_steps",
            f"{optim.warmup_steps:,} of loop.max_steps={steps:,} steps: lr is never reached",
        )
    if isinstance(loop.eval_every, int) and loop.eval_every > steps and recipe.data.validation is not None:
        yield (
            "loop.eval_every",
            f"{loop.eval_every:,} exceeds loop.max_steps={steps:,}: one evaluation, at the end",
        )
    if isinstance(loop.save_every, int) and loop.save_every > steps and "save_every" in loop.model_fields_set:
        yield "loop.save_every", f"{loop.save_every:,} is more than loop.max_steps={steps:,}: a killed run starts again"


def _batches(recipe: Recipe) -> Warnings:
    data = recipe.data
    rows, tokens, length = data.rows_per_batch, data.tokens_per_batch, data.max_length
    if rows and tokens and rows * data.padded(length) < tokens and "tokens_per_batch" in data.model_fields_set:
        yield (
            "data.tokens_per_batch",
            f"no effect: {rows} rows of {length} tokens are {rows * data.padded(length):,}",
        )
    name = getattr(recipe.model, "weights", None)
    longest = longest_input(name) if name else None
    if longest and length > longest:
        yield "data.max_length", f"{length} is more than {name} reads: {longest} tokens"


def _splits(recipe: Recipe) -> Warnings:
    data, stopping = recipe.data, recipe.loop.early_stopping
    files = {split: getattr(data, split) for split in ("train", "validation", "test")}
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if files[split] is not None and files[split] == files[other] and not isinstance(files[split], float):
            yield f"data.{split}", f"has the files of data.{other}: its scores say nothing about new rows"
    if data.validation is None and "metric" in stopping.model_fields_set:
        yield "loop.early_stopping.metric", "has no effect: data.validation is null, so the last checkpoint is used"
    explicit = "splits" in recipe.evaluation.model_fields_set and "splits" not in _defaults(recipe)
    if data.test is None and "test" in recipe.evaluation.splits and not explicit:
        meant = "evaluation.splits: [validation] if that is meant"
        yield "data.test", f"is null: the final scores are of the rows that select the checkpoint; {meant}"
    for split in recipe.evaluation.splits if explicit else ():
        if getattr(data, split) is None:
            yield "evaluation.splits", f"has {split}, but data.{split} is null"


def _defaults(recipe: Recipe) -> set[str]:
    """Return the keys of evaluation that have their default; a resolved recipe sets them all."""
    default = type(recipe.evaluation)()
    return {name for name in type(default).model_fields if getattr(default, name) == getattr(recipe.evaluation, name)}

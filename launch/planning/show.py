"""The plan for people: the answer first, then what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from launch.planning.advice import CONTEXT, GIB, config_of
from launch.planning.configurations import Configuration

if TYPE_CHECKING:
    from launch.plan import Plan

WIDTH = 120
MIB = 2**20
HEADS = ("ranks", "engine", "precision", "ckpt", "params", "grads", "optim", "activ.", "logits", "peak", "host", "sent")


def show(plan: Plan, console: Console) -> None:
    """Prints a plan."""
    for line in answer(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table(plan))
    for line in notes(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def answer(plan: Plan) -> list[str]:
    """What fits, how long it is, what it writes."""
    whole, data, saved, sketch = plan.training, plan.data, plan.checkpoint, plan.sketch
    trained = (
        "all trained" if sketch.trained_elements == sketch.all_elements else f"{count(sketch.trained_elements)} trained"
    )
    sampled = "" if data.whole else f" (from {data.sampled:,} rows)"
    writing = "beside the training" if saved.background else "while the training waits: no room for a copy"
    return [
        f"{plan.recipe.name}: {count(sketch.all_elements)} parameters, {trained}",
        f"Words     {data.vocabulary:,} tokens: {data.vocabulary_from}",
        *fitting(plan),
        f"Training  {whole.steps:,} steps ({whole.ends}) = {whole.epochs:.3g} x {whole.steps_per_epoch:,} an epoch",
        f"          {data.rows:,} rows an epoch, {data.rows_from}",
        f"          {whole.tokens / 1e6:,.1f}M tokens, padding {1 - whole.tokens / max(1, whole.padded):.1%}{sampled}",
        *timing(plan),
        f"Saving    {show_bytes(saved.size)} a checkpoint, {show_bytes(saved.on_disk)} for {saved.kept} and one more",
        f"          written {writing} ({show_bytes(saved.free)} of this machine's memory are free)",
        "",
    ]


def fitting(plan: Plan) -> list[str]:
    """The verdict, and the line to start with."""
    if plan.limit is None:
        return ["Memory    give --gpu NAME or --memory GIB to be told what fits"]
    what = plan.limit.gpu.name if plan.limit.gpu else "the memory given" if not plan.cpu else "this machine"
    of = f"{plan.limit.memory / GIB:.4g} GiB, {plan.limit.usable / GIB:.4g} of them for tensors"
    if plan.best is None:
        least = min(plan.configurations, key=lambda c: c.peak)
        return [
            f"Memory    nothing fits {what} ({of})",
            f"          the least is {show_bytes(least.peak)} with {describe(least)}",
            "          smaller micro-batches (data.tokens_per_batch: other steps), more lanes and ranks, another GPU",
        ]
    fit = sum(plan.limit.holds(c) for c in plan.configurations)
    return [
        f"Memory    {fit} of {len(plan.configurations)} ways fit {what} ({of})",
        f"Cheapest  {describe(plan.best)}: {show_bytes(plan.best.peak)} at its peak",
        f"          {plan.command}",
    ]


def timing(plan: Plan) -> list[str]:
    """Hours, if a speed is known."""
    if plan.speed is None:
        return ["Time      not known: give --throughput TOKENS_PER_SECOND_PER_RANK, or train a few steps and ask again"]
    if plan.speed.elsewhere:
        device = "this processor" if plan.cpu else plan.limit.gpu.name if plan.limit and plan.limit.gpu else "a GPU"
        return [
            f"Time      not known for {device}: {plan.speed.tokens:,.0f} tokens/s of a rank, {plan.speed.origin},",
            "          says nothing about it; give --throughput TOKENS_PER_SECOND_PER_RANK",
        ]
    by_ranks = ", ".join(
        f"{hours:.3g} h on {ranks}" + (f" ({plan.price * hours * ranks:,.2f})" if plan.price else "")
        for ranks, hours in plan.hours.items()
    )
    return [f"Time      {by_ranks} (ranks); {plan.speed.tokens:,.0f} tokens/s of each, {plan.speed.origin}"]


def table(plan: Plan) -> Table:
    """A row for every configuration; bf16 and fp16 need the same."""
    found = Table(
        title=f"One rank, in {'GiB' if big(plan) else 'MiB'} (host: of the machine's memory; sent: in each step)",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for head in HEADS:
        left = head in ("engine", "precision", "ckpt")
        found.add_column(head, justify="left" if left else "right", no_wrap=True)
    if plan.limit is not None:
        found.add_column("fits", no_wrap=True)
    before = None
    for configuration in merged(plan.configurations):
        ranks = configuration.setup.ranks
        if before not in (None, ranks):
            found.add_section()
        before = ranks
        found.add_row(*_row(plan, configuration), style="bold" if _same(plan.best, configuration) else None)
    return found


def merged(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Without those in fp16 whose bf16 twin is there."""
    there = {_way(c) for c in configurations if c.setup.precision == "bf16"}
    return [c for c in configurations if c.setup.precision != "fp16" or _way(c) not in there]


def _row(plan: Plan, c: Configuration) -> list[str]:
    setup, kept = c.setup, c.states
    unit = partial(number, big=big(plan))
    both = setup.precision != "fp32" and any(
        other.setup.precision not in ("fp32", setup.precision) for other in plan.configurations
    )
    cells = [
        str(setup.ranks),
        setup.name,
        "bf16, fp16" if both else setup.precision,
        "yes" if setup.checkpointing else "no",
        *(unit(n) for n in (kept.parameters, kept.gradients, kept.optimizer)),
        unit(c.activations),
        unit(c.logits),
        unit(c.peak) + {"step": " ", "start": "ˢ", "evaluation": "ᵉ"}[c.when],
        unit(kept.host),
        unit(c.sent),
    ]
    return [*cells, "yes" if plan.limit.holds(c) else "no"] if plan.limit else cells


def _same(best: Configuration | None, c: Configuration) -> bool:
    if best is None:
        return False
    return _way(best) == _way(c) and (best.setup.precision == "fp32") == (c.setup.precision == "fp32")


def _way(c: Configuration) -> tuple[str, int, bool]:
    return c.setup.name, c.setup.ranks, c.setup.checkpointing


def notes(plan: Plan) -> list[str]:
    """How the numbers are to be read."""
    shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in plan.shapes.items())
    lines = [
        f"Largest micro-batch{'' if plan.data.whole else ' of the sample'}: {shapes}.",
        "The peak is less than the sum, as gradients come while activations go, and holds what the engine works with.",
    ]
    if any(c.when == "start" for c in plan.configurations):
        lines.append("ˢ reached while the engine is set up, from two whole fp32 copies of the model.")
    if any(c.when == "evaluation" for c in plan.configurations):
        lines.append(
            "ᵉ reached in an evaluation (a beam search keeps more): evaluation.tokens_per_batch is the key to it."
        )
    if plan.limit is not None and not plan.limit.cpu:
        lines.append(
            f"Of a GPU's memory {CONTEXT / GIB:.0f} GiB and 5% of the rest are left to CUDA and its allocator."
        )
    if plan.cpu:
        lines.append("Ranks on a CPU share its memory. Libraries take 50 to 150 MB of each besides, in bf16 more.")
    if any(config_of(c) is None for c in plan.configurations):
        lines.append("Ways without a shipped config run from a copy of one with another mixed_precision.")
    lines += [f"Note: {note}" for note in plan.notes]
    return lines


def describe(c: Configuration) -> str:
    """In words."""
    setup = c.setup
    ranks = "1 rank" if setup.ranks == 1 else f"{setup.ranks} ranks"
    checkpointing = ", activation checkpointing" if setup.checkpointing else ""
    return f"{setup.name} on {ranks}, {setup.precision}{checkpointing}"


def big(plan: Plan) -> bool:
    """Whether the table is in GiB rather than in MiB."""
    return max(c.peak for c in plan.configurations) >= 10 * GIB


def number(size: int, *, big: bool) -> str:
    """In GiB or MiB; a dash for nothing."""
    if size == 0:
        return "-"
    value = size / (GIB if big else MIB)
    return f"{value:.2f}" if big else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def show_bytes(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def count(elements: int) -> str:
    return f"{elements / 1e6:.2f}M" if elements >= 1e5 else f"{elements:,}"

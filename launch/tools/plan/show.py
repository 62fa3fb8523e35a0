"""The plan as text: what fits and how long it takes, a table of all configurations, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from launch.tools.plan.configurations import Configuration
from launch.tools.plan.planner import CONTEXT, GIB, Plan

WIDTH = 120
MIB = 2**20
LEFT = ("engine", "precision", "ckpt", "fits")
RIGHT = ("params", "grads", "optim", "activ.", "logits", "peak", "host", "sent")
OPTION = "--throughput TOKENS_PER_SECOND_PER_RANK"


def print_plan(plan: Plan, price: float | None) -> None:
    """Print a plan. `price` is that of a rank for an hour."""
    console = Console()
    if not console.is_terminal or console.width < WIDTH:
        console = Console(width=WIDTH)
    for line in (*summary(plan, price), _table(plan), *_legend(plan)):
        console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))


def summary(plan: Plan, price: float | None = None) -> Iterator[str]:
    """Yield what fits, the length of the run, its time and its checkpoints."""
    model, data, training, saved = plan.model, plan.data, plan.training, plan.checkpoint
    sampled = "" if data["sampled_rows"] == data["rows"] else f" (from {data['sampled_rows']:,} rows)"
    padding = 1 - training.tokens / max(1, training.padded)
    writing = "in the background" if saved.background else "while the training waits: no room for a copy"
    yield f"{plan.recipe}: {model['parameters']:,} parameters, {model['trained']:,} of them trained"
    yield f"Words     {model['vocabulary']:,} tokens: {model['vocabulary_from']}"
    yield from _fitting(plan)
    yield (
        f"Training  {training.steps:,} steps ({training.ends}) = "
        f"{training.epochs:.3g} x {training.steps_per_epoch:,} an epoch"
    )
    yield f"          {data['rows']:,} rows an epoch, {data['rows_from']}"
    yield f"          {training.tokens / 1e6:,.1f}M tokens, padding {padding:.1%}{sampled}"
    yield from _time(plan, price)
    yield f"Saving    {_size(saved.size)} a checkpoint, {_size(saved.on_disk)} for {saved.kept} and one more"
    yield f"          written {writing} ({_size(saved.free)} of this machine's memory are free)\n"


def _fitting(plan: Plan) -> Iterator[str]:
    if plan.memory is None:
        yield "Memory    give --gpu NAME or --memory GIB to see what fits"
        return
    device = plan.memory["gpu"] or ("this machine" if plan.device == "cpu" else "the memory given")
    of = f"{device} ({_size(plan.memory['total'])}, {_size(plan.memory['usable'])} of them for tensors)"
    if plan.answer is None:
        least = min(plan.configurations, key=lambda c: c.peak)
        yield f"Memory    no configuration with a shipped config fits {of}"
        yield f"          the least is {_size(least.peak)} with {_describe(least)}"
        yield "          smaller micro-batches (data.tokens_per_batch: other steps), more lanes and ranks, another GPU"
        return
    fitting = sum(bool(c.fits) for c in plan.configurations)
    yield f"Memory    {fitting} of {len(plan.configurations)} configurations fit {of}"
    yield f"Cheapest  {_describe(plan.answer)}: {_size(plan.answer.peak)} at its peak"
    yield f"          {plan.answer.command}"


def _time(plan: Plan, price: float | None) -> Iterator[str]:
    if plan.throughput is None:
        yield f"Time      not known: give {OPTION}, or train a few steps and plan again"
        return
    figure = f"{plan.throughput.tokens:,.0f} tokens/s of a rank, {plan.throughput.origin}"
    if plan.throughput.elsewhere:
        gpu = plan.memory["gpu"] if plan.memory else None
        device = "this processor" if plan.device == "cpu" else gpu or "a GPU"
        yield f"Time      not known for {device}: {figure},"
        yield f"          is of another device; give {OPTION}"
        return
    hours = {c.ranks: c.hours or 0 for c in plan.configurations}
    costs = {ranks: f" ({price * value * ranks:,.2f})" if price else "" for ranks, value in hours.items()}
    by_ranks = ", ".join(f"{value:.3g} h on {ranks}{costs[ranks]}" for ranks, value in hours.items())
    yield f"Time      {by_ranks} (ranks); {figure}"


def _table(plan: Plan) -> Table:
    """Return a table with a row for every configuration. Those in bf16 and fp16, which need the same, share a row."""
    unit = GIB if max(c.peak for c in plan.configurations) >= 10 * GIB else MIB
    title = f"One rank, in {'GiB' if unit == GIB else 'MiB'} (host: of the machine's memory; sent: in each step)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in ("ranks", *LEFT[:3], *RIGHT, *(LEFT[3:] if plan.memory else ())):
        table.add_column(head, justify="left" if head in LEFT else "right", no_wrap=True)
    rows: dict[tuple[object, ...], list[Configuration]] = {}
    for c in plan.configurations:
        rows.setdefault((c.ranks, c.title, c.activation_checkpointing, c.precision == "fp32"), []).append(c)
    for c, *others in rows.values():
        sizes = [c.parameters, c.gradients, c.optimizer, c.activations, c.logits, c.peak, c.host, c.sent]
        cells = [f"{size / unit:,.{2 if unit == GIB else 1}f}" if size else "-" for size in sizes]
        cells[5] += {c.step: " ", c.start: "ˢ", c.evaluation: "ᵉ"}[c.peak]
        precisions = ", ".join(each.precision for each in (c, *others))
        checkpointing = "yes" if c.activation_checkpointing else "no"
        fits = [] if c.fits is None else ["yes" if c.fits else "no"]
        table.add_row(str(c.ranks), c.title, precisions, checkpointing, *cells, *fits)
    return table


def _legend(plan: Plan) -> Iterator[str]:
    sizes = plan.data["largest_micro_batch"].items()
    shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in sizes)
    yield f"Largest micro-batch of {plan.data['sampled_rows']:,} rows: {shapes}."
    yield "The peak includes an engine's buffers. It may be less than the sum: gradients come while activations go."
    yield "ˢ: reached while the engine is set up. ᵉ: in an evaluation (evaluation.tokens_per_batch; no beam search)."
    if plan.memory is not None and plan.device == "gpu":
        yield f"Of a GPU's memory {CONTEXT / GIB:.0f} GiB and 5% of the rest are left to CUDA and its allocator."
    if plan.device == "cpu":
        yield "Ranks on a CPU share its memory. Libraries take 50 to 150 MB of each besides, in bf16 more."
    if any(c.config is None for c in plan.configurations):
        yield "A configuration without a shipped config runs from a copy of one with another mixed_precision."
    yield from (f"Note: {note}" for note in plan.notes)


def _describe(c: Configuration) -> str:
    ranks = "1 rank" if c.ranks == 1 else f"{c.ranks} ranks"
    return f"{c.title} on {ranks}, {c.precision}{', activation checkpointing' if c.activation_checkpointing else ''}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"

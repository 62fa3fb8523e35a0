"""The plan as text: what fits and how long it takes, a table of all configurations, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from launch.tools.plan.memory import Configuration
from launch.tools.plan.planner import CONTEXT, GIB, Plan

WIDTH = 120
MIB = 2**20
LEFT = ("engine", "precision", "ckpt", "fits")
SIZES = ("parameters", "gradients", "optimizer", "activations", "logits", "peak", "host", "sent")
HEADS = ("params", "grads", "optim", "activ.", "logits", "peak", "host", "sent")


def print_plan(plan: Plan, price: float | None) -> None:
    """Print a plan. `price` is that of a rank for an hour."""
    console = Console(width=WIDTH)
    for line in (*summary(plan, price), _table(plan), *_legend(plan)):
        console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))


def summary(plan: Plan, price: float | None = None) -> Iterator[str]:
    """Yield what fits, the length of the run, its time and its checkpoints."""
    model, data, training, saved = plan.model, plan.data, plan.training, plan.checkpoint
    padding = 1 - training["tokens"] / max(1, training["padded"])
    yield f"{plan.recipe}: {model['parameters']:,} parameters, {model['trained']:,} of them trained"
    yield f"Words     {model['vocabulary']:,} tokens: {model['vocabulary_from']}"
    yield from _fitting(plan)
    yield f"Training  {training['steps']:,} steps ({training['ends']}), {training['steps_per_epoch']:,} an epoch"
    yield f"          {data['rows']:,} rows an epoch, {data['rows_from']} ({data['sampled_rows']:,} sampled)"
    yield f"          {training['tokens'] / 1e6:,.1f}M tokens, padding {padding:.1%}"
    yield f"Time      {_time(plan, price)}"
    yield f"Saving    {_size(saved['size'])} a checkpoint, {_size(saved['on_disk'])} for {saved['kept']} and one more"
    waiting = "in the background" if saved["background"] else "while the training waits: no room for a copy"
    yield f"          written {waiting} ({_size(saved['free'])} of this machine's memory are free)\n"


def _fitting(plan: Plan) -> Iterator[str]:
    if plan.memory is None:
        yield "Memory    give --gpu NAME or --memory GIB to see what fits"
        return
    fitting = sum(bool(c.fits) for c in plan.configurations)
    usable = f"{_size(plan.memory['usable'])} of {_size(plan.memory['total'])}"
    yield f"Memory    {fitting} of {len(plan.configurations)} configurations fit {usable}"
    if plan.answer is not None:
        yield f"Cheapest  {_describe(plan.answer)}: {_size(plan.answer.peak)} at its peak"
        yield f"          {plan.command}"
        return
    least = min(plan.configurations, key=lambda c: c.peak)
    yield f"          none with a shipped config; the least is {_size(least.peak)} with {_describe(least)}"


def _time(plan: Plan, price: float | None) -> str:
    if plan.throughput is None:
        return "not known: give --throughput TOKENS (per second and rank), or train a few steps and plan again"
    speed = f"{plan.throughput['tokens']:,.0f} tokens/s of a rank, {plan.throughput['origin']}"
    if plan.throughput["elsewhere"]:
        return f"not known for this device: {speed}; give --throughput"
    hours = {c.ranks: c.hours or 0 for c in plan.configurations}
    costs = {ranks: f" ({price * value * ranks:,.2f})" if price else "" for ranks, value in hours.items()}
    return ", ".join(f"{value:.3g} h on {ranks}{costs[ranks]}" for ranks, value in hours.items()) + f" (ranks); {speed}"


def _table(plan: Plan) -> Table:
    unit, name, digits = (GIB, "GiB", 2) if max(c.peak for c in plan.configurations) >= 10 * GIB else (MIB, "MiB", 1)
    title = f"One rank, in {name} (host: of the machine's memory; sent: in each step)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in ("ranks", *LEFT[:3], *HEADS, "fits"):
        table.add_column(head, justify="left" if head in LEFT else "right", no_wrap=True)
    halves = {c.precision for c in plan.configurations} >= {"bf16", "fp16"}  # which need the same and share a row
    for c in plan.configurations:
        if halves and c.precision == "fp16":
            continue
        cells = [f"{getattr(c, size) / unit:,.{digits}f}" if getattr(c, size) else "-" for size in SIZES]
        cells[SIZES.index("peak")] += {c.step: " ", c.start: "ˢ", c.evaluation: "ᵉ"}[c.peak]
        precision = "bf16, fp16" if halves and c.precision == "bf16" else c.precision
        checkpointing, fits = (
            "yes" if c.activation_checkpointing else "no",
            {None: "", True: "yes", False: "no"}[c.fits],
        )
        table.add_row(str(c.ranks), c.title, precision, checkpointing, *cells, fits)
    return table


def _legend(plan: Plan) -> Iterator[str]:
    shapes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in plan.data["largest_micro_batch"].items()]
    yield f"Largest micro-batch: {', '.join(shapes)}."
    yield "The peak includes an engine's buffers. ˢ: reached while the engine is set up. ᵉ: in an evaluation."
    if plan.device == "cpu":
        yield "Ranks on a CPU share its memory."
    elif plan.memory is not None:
        yield f"Of a GPU's memory {CONTEXT / GIB:.0f} GiB and 5% of the rest are left to CUDA and its allocator."
    yield from (f"Note: {note}" for note in plan.notes)


def _describe(c: Configuration) -> str:
    checkpointing = ", activation checkpointing" if c.activation_checkpointing else ""
    return f"{c.title} on {c.ranks} rank{'s' * (c.ranks > 1)}, {c.precision}{checkpointing}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"

"""The plan as text: what fits and how long it takes, a table of all configurations, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from launch.tools.plan.memory import Configuration
from launch.tools.plan.planner import CONTEXT, GIB, Plan
from trainer.engine_specs import ENGINES
from trainer.text_lines import table_console

MIB = 2**20
SIZES = ("parameters", "gradients", "optimizer", "activations", "logits", "peak", "host", "sent")
HEADS = ("params", "grads", "optim", "activ.", "logits", "peak", "host", "sent")


def print_plan(plan: Plan, price: float | None) -> None:
    """Print a plan. `price` is that of a rank for an hour."""
    console = table_console()
    for line in (*summary(plan, price), _table(plan), *_legend(plan)):
        console.print(line, markup=False, highlight=False, soft_wrap=isinstance(line, str))


def summary(plan: Plan, price: float | None = None) -> Iterator[str]:
    """Yield what fits, the length of the run, its time and its checkpoints."""
    model, data, training, saved = plan.model, plan.data, plan.training, plan.checkpoint
    padding = 1 - training["tokens"] / max(1, training["padded"])
    yield f"{plan.recipe}: {model['parameters']:,} parameters, {model['trained']:,} of them trained"
    target = f" and {model['target_vocabulary']:,} target" if "target_vocabulary" in model else ""
    yield f"Words     {model['vocabulary']:,}{' source' if target else ''}{target} tokens: {model['vocabulary_from']}"
    yield from _fitting(plan)
    yield f"Training  {training['steps']:,} steps ({training['ends']}), {training['steps_per_epoch']:,} an epoch"
    yield f"          {data['rows']:,} rows an epoch, {data['rows_from']} ({data['sampled_rows']:,} sampled)"
    yield f"          {training['tokens'] / 1e6:,.1f}M tokens, padding {padding:.1%}"
    yield f"Time      {_time(plan, price)}"
    yield f"Saving    {_size(saved['size'])} a checkpoint, {_size(saved['on_disk'])} for {saved['kept']} and one more"
    waiting = "in the background" if saved["background"] else "while the training waits: no room for a copy"
    if plan.answer and ENGINES[plan.answer.engine].sharded:
        waiting = "while the training waits and all ranks gather"
    yield f"          written {waiting} ({_size(saved['free'])} of this machine's memory are free)\n"


def _fitting(plan: Plan) -> Iterator[str]:
    if plan.memory is None:
        yield "Memory    give --gpu NAME or --memory GIB to see what fits"
        return
    fitting = sum(bool(c.fits) for c in plan.configurations)
    usable = f"{_size(plan.memory['usable'])} of {_size(plan.memory['total'])}"
    yield f"Memory    {fitting} of {len(plan.configurations)} configurations fit {usable}"
    best = plan.answer or min(plan.configurations, key=lambda c: c.peak)
    yield f"{'Cheapest' if plan.answer else 'Smallest':10}{_describe(best)}: {_size(best.peak)} at its peak"
    yield f"          {plan.command or 'no configuration with a shipped config fits'}"


def _time(plan: Plan, price: float | None) -> str:
    if plan.throughput is None:
        return "not known: give --throughput TOKENS (per second and rank), or train a few steps and plan again"
    speed = f"{plan.throughput['tokens']:,.0f} tokens/s of a rank, {plan.throughput['origin']}"
    if plan.throughput["elsewhere"]:
        return f"not known for this device: {speed}; give --throughput"
    hours = {c.ranks: c.hours or 0 for c in plan.configurations}
    costs = {ranks: f" ({price * value * ranks:,.2f})" if price else "" for ranks, value in hours.items()}
    return ", ".join(f"{hours[n]:.3g} h on {n}{costs[n]}" for n in hours) + f" (ranks); {speed}"


def _table(plan: Plan) -> Table:
    unit, name = (GIB, "GiB") if max(c.peak for c in plan.configurations) >= 10 * GIB else (MIB, "MiB")
    title = f"One rank, in {name} (ˢ: while the engine is set up, ᵉ: in an evaluation; sent: in a step)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for head in ("ranks", "engine", "precision", "ckpt", *HEADS, "fits"):
        table.add_column(head, justify="right" if head in HEADS else "left", no_wrap=True)
    words = {None: "", True: "yes", False: "no"}
    both = {"bf16", "fp16"} <= {c.precision for c in plan.configurations}  # they need the same
    for c in [c for c in plan.configurations if not (both and c.precision == "fp16")]:
        precision = "bf16, fp16" if both and c.precision == "bf16" else c.precision
        cells = [f"{size / unit:,.2f}" if (size := getattr(c, name)) else "-" for name in SIZES]
        cells[SIZES.index("peak")] += {c.step: " ", c.start: "ˢ", c.evaluation: "ᵉ"}[c.peak]
        some = c.checkpointed not in (0, 1)
        checkpointed = f"1 of {round(1 / c.checkpointed)}" if some else words[c.checkpointed == 1]
        table.add_row(str(c.ranks), c.title, precision, checkpointed, *cells, words[c.fits])
    return table


def _legend(plan: Plan) -> Iterator[str]:
    shapes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in plan.data["largest_micro_batch"].items()]
    yield f"Largest micro-batch: {', '.join(shapes)}."
    if plan.memory is not None and plan.device == "gpu":
        yield f"Of a GPU's memory {CONTEXT / GIB:.0f} GiB and 5% of the rest are left to CUDA and its allocator."
    yield from (f"Note: {note}" for note in plan.notes)


def _describe(c: Configuration) -> str:
    some = "" if c.checkpointed in (0, 1) else f" of one in {round(1 / c.checkpointed)} layers"
    checkpointing = f", activation checkpointing{some}" if c.activation_checkpointing else ""
    return f"{c.title} on {c.ranks} rank{'s' * (c.ranks > 1)}, {c.precision}{checkpointing}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"

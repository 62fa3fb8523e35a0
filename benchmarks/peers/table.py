"""From blocks to ratios with intervals, and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Blocks, spread

COVERAGE = 0.95  # wanted


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the median and an exact interval for it, which assumes no distribution.

    The interval is between order statistics (sign test): the narrowest one that covers the median with 95%. Below six
    values none does: then it is the whole range, and `coverage` is 1 - 2 ** (1 - n).
    """
    ordered, size = sorted(values), len(values)
    tail, cut = 0.5**size, 0
    while 2 * (more := tail + math.comb(size, cut + 1) * 0.5**size) <= 1 - COVERAGE and cut + 1 < size / 2:
        tail, cut = more, cut + 1
    low, high = ordered[cut], ordered[size - 1 - cut]
    return {"median": statistics.median(ordered), "low": low, "high": high, "coverage": 1 - 2 * tail}


def paired(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return how many times `own` is `other`, round by round."""
    return interval([a / b for a, b in zip(own, other, strict=True)])


def results(blocks: Blocks, ours: str, unit: str) -> dict[str, dict[str, Any]]:
    """Return each candidate's rate of `unit`, and how many times faster `ours` was in the same round.

    By the clock, and by processor time, which other programs on the machine disturb less.
    """

    def rates(name: str, clock: str) -> list[float]:
        return [block[unit] / block[clock] for block in blocks[name]]

    found: dict[str, dict[str, Any]] = {}
    for name, own in blocks.items():
        found[name] = {f"{unit}_per_second": spread(rates(name, "seconds")), "blocks": own}
        if all("positions" in block for block in own):
            found[name]["padding"] = 1 - sum(b["tokens"] for b in own) / sum(b["positions"] for b in own)
        if name != ours:
            found[name]["ours_is_times_faster"] = paired(rates(ours, "seconds"), rates(name, "seconds"))
            found[name]["by_processor_time"] = paired(rates(ours, "cpu_seconds"), rates(name, "cpu_seconds"))
    return found


def _ratio(one: Mapping[str, float] | None) -> str:
    return f"{one['median']:.2f} ({one['low']:.2f} - {one['high']:.2f})" if one else "-"


def _score(metric: str, one: Mapping[str, Any]) -> str:
    metric = "bleu" if "bleu" in one else metric
    return f"{metric} {one[metric]:.4g}" if metric in one else "-"


def show(jobs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row for each measured rate of each candidate, and its score after the training."""
    table = Table(title="rankzero alongside its peers, ratios of the same round", title_justify="left")
    for name in ("job", "candidate"):
        table.add_column(name)
    for name in ("rate", "padding", "rankzero is × faster", "by processor time", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for job, report in jobs.items():
        scored = report.get("scored", {"metric": "", "scores": {}})
        for part, unit in (("training", "tokens"), ("decoding", "rows")):
            for name, one in report.get(part, {}).items():
                table.add_row(
                    f"{job}, {part}",
                    name,
                    f"{one[f'{unit}_per_second']['median']:,.1f} {unit}/s",
                    f"{one['padding']:.1%}" if "padding" in one else "-",
                    _ratio(one.get("ours_is_times_faster")),
                    _ratio(one.get("by_processor_time")),
                    _score(scored["metric"], {**scored["scores"].get(name, {}), **one}),
                )
        for name, reason in report.get("left_out", {}).items():
            table.add_row(job, name, "left out", "", reason.splitlines()[-1][:60], "", "")
        table.add_section()
    Console(width=150).print(table)

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
OURS_FP32 = "rankzero, fp32"
RATIOS = ("by_processor_time", "ours_is_times_faster")


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

    By the clock, and by processor time, which other programs on the machine disturb less. `in_total`: processor time of
    all blocks together, because a sampler that sorts by length gives one block long rows and another one short rows.
    A peer in fp32 is also compared with `ours` in fp32, if that was measured.
    """

    def rates(name: str, clock: str) -> list[float]:
        return [block[unit] / block[clock] for block in blocks[name]]

    def in_total(name: str) -> float:
        return sum(block[unit] for block in blocks[name]) / sum(block["cpu_seconds"] for block in blocks[name])

    def compared(first: str, other: str) -> dict[str, Any]:
        return {
            "ours_is_times_faster": paired(rates(first, "seconds"), rates(other, "seconds")),
            "by_processor_time": paired(rates(first, "cpu_seconds"), rates(other, "cpu_seconds")),
            "in_total": in_total(first) / in_total(other),
        }

    found: dict[str, dict[str, Any]] = {}
    for name, own in blocks.items():
        found[name] = {f"{unit}_per_second": spread(rates(name, "seconds")), "blocks": own}
        if all("positions" in block for block in own):
            found[name]["padding"] = 1 - sum(b["tokens"] for b in own) / sum(b["positions"] for b in own)
        if name != ours:
            found[name] |= compared(ours, name)
        if name not in (ours, OURS_FP32) and name.endswith(", fp32") and OURS_FP32 in blocks.keys() - {ours}:
            found[name]["in_fp32"] = compared(OURS_FP32, name)
    return found


def _ratios(one: Mapping[str, Any]) -> list[str]:
    """Return the cells of both ratios."""
    found = [one.get(name) for name in reversed(RATIOS)]
    return [f"{r['median']:.2f} ({r['low']:.2f} - {r['high']:.2f})" if r else "-" for r in found]


def _score(metric: str, one: Mapping[str, Any]) -> str:
    metric = "bleu" if "bleu" in one else metric
    if one.get("bleu", 1.0) < 1:
        return "bleu below 1"
    return f"{metric} {one[metric]:{',.0f' if one[metric] >= 1000 else '.4g'}}" if metric in one else "-"


def rows(jobs: Mapping[str, Mapping[str, Any]], link: str) -> list[str]:
    """Return the rows of docs/results.md: job, candidate, ratios, the scores of rankzero and of the candidate."""

    def row(job: str, name: str, one: Mapping[str, Any], *scores: str) -> str:
        ratios = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in map(one.__getitem__, RATIOS)]
        return "| " + " | ".join([job, name, f"{one['in_total']:.2f}", *ratios, *scores, link]) + " |"

    found = []
    for job, report in jobs.items():
        for part in ("training", "decoding"):
            candidates = report.get(part, {})
            ours = next(iter(candidates), "")
            for name, one in candidates.items():
                scores = [_scored(report, part, each) for each in (ours, name)]
                if name != ours:
                    found.append(row(f"`{job}`, {part}", name, one, *scores))
                if "in_fp32" in one:
                    scores[0] = _scored(report, part, OURS_FP32)
                    found.append(row(f"`{job}`, {part}", f"{name}, against rankzero in fp32", one["in_fp32"], *scores))
    return found


def _scored(report: Mapping[str, Any], part: str, name: str) -> str:
    """Return the score of a candidate with the name of the measure; nothing if it has none in this part."""
    scored = report.get("scored", {"metric": "", "scores": {}})
    return _score(scored["metric"], {**scored["scores"].get(name, {}), **report[part][name]}).strip("-")


def show(jobs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row for each measured rate of each candidate, and its score after the training."""
    table = Table(title="rankzero alongside its peers, ratios of the same round", title_justify="left")
    for name in ("job", "candidate"):
        table.add_column(name)
    for name in ("rate", "padding", "rankzero is × faster", "by processor time", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for job, report in jobs.items():
        for part in ("training", "decoding"):
            for name, one in report.get(part, {}).items():
                table.add_row(
                    f"{job}, {part}",
                    name,
                    f"{one['tokens_per_second']['median']:,.1f} tokens/s",
                    f"{one['padding']:.1%}" if "padding" in one else "-",
                    *_ratios(one),
                    _scored(report, part, name) or "-",
                )
                if "in_fp32" in one:
                    table.add_row(f"{job}, {part}", "  against rankzero in fp32", "", "", *_ratios(one["in_fp32"]), "")
        for name, reason in report.get("left_out", {}).items():
            table.add_row(job, name, "left out", "", reason.splitlines()[-1][:60], "", "")
        table.add_section()
    Console(width=150).print(table)

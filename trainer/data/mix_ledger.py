"""Check by the ledger of a run that each block of each lane has had the proportions of `data.mix`.

It reads only what the run has recorded: ledger.jsonl, recipe.yaml and the rows in manifest.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.lane_plan import LanePlan
from trainer.data.mixing import Mixture
from trainer.data.quotas import Quotas
from trainer.errors import UsageError
from trainer.files import read_json
from trainer.recipe import read_yaml
from trainer.recipe.sections import DataConfig


def check_run(run: str | Path) -> list[str]:
    """Return every block of a run whose rows are not in the proportions of its recipe. Empty if all are.

    Args:
        run: a run directory, trained with `data.mix` and `loop.ledger`.

    Raises:
        UsageError: the run has no ledger, or its recipe mixes no corpora.
    """
    folder = Path(run)
    values = read_yaml(folder / "recipe.yaml")
    data = DataConfig.model_validate(values["data"])
    ledger = folder / "ledger.jsonl"
    if not data.mix or not ledger.is_file():
        raise UsageError(f"{folder}: there is no mixture to check: train with data.mix and loop.ledger=true")
    counted = (read_json(folder / "manifest.json") or {})["data"]["train"]["corpora"]
    quotas = Quotas.of(data, [counted[entry.name]["rows"] for entry in data.mix])
    plan = LanePlan(
        values["seed"], data.lanes, data.block_rows, data.tokens_per_batch, data.rows_per_batch,
        shuffled=data.order == "shuffled",
    )  # fmt: skip
    with ledger.open(encoding="utf-8") as lines:
        return list(problems(map(json.loads, lines), quotas, plan))


def problems(lines: Iterable[Mapping[str, Any]], quotas: Quotas, plan: LanePlan) -> Iterator[str]:
    """Yield what is wrong in the lines of a ledger. A block that was not served to its end is not checked."""
    served: dict[tuple[int, int], list[int]] = defaultdict(list)  # epoch, lane -> corpora of the rows
    numbers = {name: number for number, name in enumerate(quotas.names)}
    for line in lines:
        for lane, rows in line["rows"].items():
            served[line["epoch"], int(lane)] += [numbers[row.partition("/")[0]] for row in rows]
    last = max((epoch for epoch, _ in served), default=0)
    mixture = Mixture((), quotas, lambda *_: None, ())
    for lane in range(plan.lanes):
        taken = [0] * len(numbers)
        for epoch in range(last + 1):
            corpora = served[epoch, lane]
            taken = [0] * len(numbers) if quotas.per_epoch else taken
            at = 0
            for edge in _edges(quotas, plan, epoch, len(corpora), ended=epoch < last):
                for corpus in corpora[at:edge]:
                    taken[corpus] += 1
                for name, text in _off(taken, mixture.lane_weights(lane, plan, epoch), quotas.names):
                    yield f"epoch {epoch}, lane {lane}, rows {at} to {edge}: {name} {text}"
                at = edge
    if quotas.per_epoch and all(quotas.repeat):
        for epoch in range(last):
            rows = [corpus for lane in range(plan.lanes) for corpus in served[epoch, lane]]
            for corpus, name in enumerate(quotas.names):
                if (found := rows.count(corpus)) != quotas.weights[corpus]:
                    yield f"epoch {epoch}: {name} has {found} rows, not {quotas.weights[corpus]}"


def _edges(quotas: Quotas, plan: LanePlan, epoch: int, rows: int, *, ended: bool) -> Iterator[int]:
    """Yield the ends of the complete blocks of a lane that has served so many rows of an epoch."""
    at = 0
    while at < rows:
        at = (
            plan.block_rows if at == 0 and quotas.one_block(plan.lanes, plan.block_rows) else plan.edge_after(at, epoch)
        )
        if at <= rows or ended:
            yield min(at, rows)


def _off(taken: Sequence[int], weights: Sequence[int], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the corpora whose rows differ from their share by a row or more."""
    rows, total = sum(taken), sum(weights)
    for name, count, weight in zip(names, taken, weights, strict=True):
        if abs(count * total - rows * weight) >= total:
            yield name, f"has {count} of {rows} rows up to here, and its share is {rows * weight / total:.2f}"

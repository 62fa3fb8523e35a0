"""The plan for programs: plain values, all sizes in bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launch.planning.advice import config_of
from launch.planning.configurations import Configuration

if TYPE_CHECKING:
    from launch.plan import Plan


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object; all sizes in bytes."""
    sketch, best = plan.sketch, plan.best
    return {
        "recipe": plan.recipe.name,
        "model": {
            "parameters": sketch.all_elements,
            "trained": sketch.trained_elements,
            "vocabulary": plan.data.vocabulary,
            "vocabulary_from": plan.data.vocabulary_from,
        },
        "data": {
            "rows": plan.data.rows,
            "rows_from": plan.data.rows_from,
            "sampled_rows": plan.data.sampled,
            "largest_micro_batch": {name: list(shape) for name, shape in plan.shapes.items()},
        },
        "training": asdict(plan.training),
        "checkpoint": {**asdict(plan.checkpoint), "background": plan.checkpoint.background},
        "device": "cpu" if plan.cpu else "gpu",
        "memory": None
        if plan.limit is None
        else {
            "gpu": plan.limit.gpu.name if plan.limit.gpu else None,
            "total": plan.limit.memory,
            "usable": plan.limit.usable,
        },
        "throughput": None if plan.speed is None else asdict(plan.speed),
        "answer": None
        if best is None
        else {**_configuration(best), "config": config_of(best), "command": plan.command, **_cost(plan, best)},
        "notes": plan.notes,
        "configurations": [
            {
                **_configuration(c),
                "config": config_of(c),
                "fits": plan.limit.holds(c) if plan.limit else None,
                "hours": plan.hours.get(c.setup.ranks),
            }
            for c in plan.configurations
        ],
    }


def _configuration(c: Configuration) -> dict[str, Any]:
    setup = c.setup
    return {
        "engine": setup.engine,
        "offload": setup.offload,
        "ranks": setup.ranks,
        "precision": setup.precision,
        "activation_checkpointing": setup.checkpointing,
        **asdict(c.states),
        "activations": c.activations,
        "logits": c.logits,
        "step_parts": c.step.parts,
        "step": c.step.total,
        "start": c.start,
        "evaluation": c.evaluation,
        "peak": c.peak,
        "sent": c.sent,
    }


def _cost(plan: Plan, best: Configuration) -> dict[str, Any]:
    hours = plan.hours.get(best.setup.ranks)
    cost = hours * plan.price * best.setup.ranks if hours is not None and plan.price else None
    return {"hours": hours, "cost": cost}

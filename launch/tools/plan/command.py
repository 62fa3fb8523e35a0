"""The command `rankzero plan`. The planner is imported when the command runs, so that `--help` needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Annotated

import typer

from trainer.cli_arguments import Overrides, RecipeArgument, RunOption
from trainer.errors import UsageError


def plan_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="such as A100, H100, L4, RTX4090")] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", help="of a GPU (with --cpu of the machine)")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option("--ranks", metavar="N,N,…", help="default: those that divide data.lanes")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="P,P,…", help="fp32 (or tf32), bf16 (or fp8), fp16; all"),
    ] = None,
    throughput: Annotated[
        float | None,
        typer.Option("--throughput", metavar="TOKENS", help="per second and rank; default: as runs/NAME measured"),
    ] = None,
    price: Annotated[float | None, typer.Option("--price", metavar="P", help="of a rank for an hour")] = None,
    copies: Annotated[
        int, typer.Option("--copies", metavar="N", help="of the model under fsdp2, also planned: fsdp2_hybrid (HSDP)")
    ] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="plan for the cpu_* configs instead of GPUs")] = False,
    run: RunOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Report what a run will need: memory per rank under every engine, steps, time, disk. Loads no weights."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, would look for a GPU
    with contextlib.redirect_stdout(sys.stderr):  # messages of libraries are no part of the output
        from launch.tools.plan.planner import PlanOptions, make_plan
        from launch.tools.plan.show import print_plan

        options = PlanOptions(gpu, memory, _integers(ranks), _words(precision), throughput, price, cpu, run, copies)
        plan = make_plan(recipe, overrides or (), options)
    if as_json:
        print(json.dumps(plan.document(), indent=2, ensure_ascii=False))
        return
    print_plan(plan, price)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _integers(text: str | None) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"--ranks {text}: write whole numbers with commas between them, such as 1,2,8") from None

"""The questions of `rankzero init` in a terminal. Enter takes the guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trainer.data.columns import as_yaml
from trainer.init_recipe.render import scalar

if TYPE_CHECKING:
    from trainer.init_recipe.build import Draft


def ask(found: Draft, target: Path, redraft: Callable[[str | None, Sequence[str]], Draft]) -> tuple[Draft, Path]:
    """Ask for task, columns, model, length and epochs, and return the recipe for the answers and its file.

    Args:
        found: the recipe by the guesses.
        target: its file by the guesses.
        redraft: returns a recipe for a kind of task (None: the guess) and for overrides.
    """
    kind = found.suggestion.task["kind"]
    if found.others:
        chosen = _one_of("Task", [kind, *found.others], kind)
        found = found if chosen == kind else redraft(chosen, ())
        kind = chosen
    words = _columns(found)
    found = redraft(kind, words) if words else found
    for key, question in (
        ("model.name", "Pretrained model (folder or Hub id)"),
        ("data.max_length", f"Most tokens of a text ({found.facts['data.max_length']})"),
        ("loop.epochs", f"Epochs ({found.facts['loop.epochs']})"),
    ):
        section, name = key.split(".")
        guess = found.values[section].get(name)
        if guess is None:  # random weights have no name
            continue
        answer = typer.prompt(question, default=guess, type=type(guess), err=True)
        words += [f"{key}={scalar(answer)}"] if answer != guess else []
    found = redraft(kind, words) if words else found
    target = typer.prompt("Recipe", default=str(target), err=True)
    return found, Path(target)


def _columns(found: Draft) -> list[str]:
    """Ask which column has each role. Return an override if an answer is another one than the guess."""
    names = list(found.table.columns)
    chosen = {role: _one_of(f"Column of {role}", names, column) for role, column in found.roles.items()}
    return [f"data.columns={as_yaml(chosen)}"] if chosen != found.roles else []


def _one_of(question: str, allowed: Sequence[str], guess: str) -> str:
    def checked(answer: Any) -> str:
        if answer not in allowed:
            raise typer.BadParameter(f"{answer!r} is none of them: {', '.join(allowed)}")
        return str(answer)

    answer: str = typer.prompt(f"{question} ({', '.join(allowed)})", default=guess, value_proc=checked, err=True)
    return answer

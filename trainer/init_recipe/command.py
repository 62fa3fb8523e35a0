"""The command `rankzero init`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.data.columns import as_yaml
from trainer.data.language import in_words
from trainer.errors import UsageError
from trainer.init_recipe.questions import ask
from trainer.init_recipe.render import render, scalar
from trainer.recipe_editor import write_with_schema
from trainer.redaction import redacted

if TYPE_CHECKING:
    from trainer.data.profile import Column
    from trainer.init_recipe.build import Draft

COLUMNS, LABELS, EXAMPLES = 12, 8, 3  # lines and values that are shown
FEW = 30  # different values that may be labels


def init_command(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="training rows, or a folder with the files of all splits: a path, a URL such as s3://…, or owner/name "
            "of a data set of the Hub",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. data.encoding=cp1252 model.name=FOLDER")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="the recipe (default NAME.yaml)")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--task", metavar="KIND", help="kind of task (default: by the columns)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the recipe")] = False,
    questions: Annotated[
        bool | None, typer.Option("--ask/--no-ask", help="ask for what was guessed (default: in a terminal)")
    ] = None,
) -> None:
    """Look at the rows of a file, a folder or a data set of the Hub, and write a commented recipe for them."""
    from trainer.init_recipe.build import check, draft

    found = draft(path, kind, overrides or [])
    target = output or Path(f"{found.values['name']}.yaml")
    shown = None
    if questions if questions is not None else sys.stdin.isatty() and sys.stdout.isatty():
        shown = found
        for line in summary(found, path, output):
            print(line)
        found, target = ask(found, target, lambda chosen, words: draft(path, chosen, [*(overrides or []), *words]))
    if target.exists() and not force:
        raise UsageError(f"init: {target} exists; --force overwrites it, or -o names another file")
    head = [f"Written by `rankzero init {redacted(path)}`, which found: {found.suggestion.why}."]
    head += ["", f"  rankzero train {target}", "", "Every key: `rankzero recipes --schema`."]
    text = render(found.values, found.notes, head)
    check(found, f"init: {target}")
    if found is not shown:
        for line in summary(found, path, output):
            print(line)
    schema = write_with_schema(target, text)
    print(f"\nwritten: {target}, and {schema} for editors")
    print(f"next:    rankzero train {target} --debug   (20 steps, to see that all fits)")
    print(f"         rankzero train {target}")


def summary(found: Draft, path: str, output: Path | None = None) -> Iterator[str]:
    """Yield lines about what was found and guessed, and how to change it."""
    table, surveys = found.table, found.surveys
    for name, column in [*table.columns.items()][:COLUMNS]:
        yield f"  {name[:30]:30s} {_about(column)}"
    if len(table.columns) > COLUMNS:
        yield f"  and {len(table.columns) - COLUMNS} more columns"
    data = found.values["data"]
    for split, one in surveys.items():
        source = data[split]
        where = f"{source:.1%} of train" if isinstance(source, float) else source
        where = " + ".join(where.values()) if isinstance(where, dict) else where
        yield f"{split + ':':12s}{one.rows:,} rows, {where}" + (f"; {one.bad.total():,} bad" if one.bad else "")
        if split == "train" or not isinstance(source, float):
            yield from (f"    {example}" for example in one.examples[:EXAMPLES])
    yield f"task:       {found.suggestion.task['kind']}: {found.suggestion.why}"
    if found.others:
        yield f"            possible as well: --task {', --task '.join(found.others)}"
    model, loop, optim = found.values["model"], found.values["loop"], found.values["optim"]
    yield f"model:      {model.get('name') or 'random weights'}, learning rate {scalar(optim['lr'])}"
    yield f"steps:      {loop['epochs']} epochs, {found.facts['loop.epochs']}"
    yield f"length:     {data['max_length']} tokens; {found.facts['data.max_length']}"
    yield from (f"note:       {remark}" for remark in found.remarks)
    place = f"-o {output} " if output else ""
    yield f"to change:  rankzero init {redacted(path)} {place}--force {_changes(found)}"


def _changes(found: Draft) -> str:
    """Return words for the command line that set what was guessed."""
    words = [f"data.columns='{as_yaml(found.roles)}'"] if found.roles else []
    name = found.values["model"].get("name")
    return " ".join([*words, *([f"model.name={name}"] if name else [])])


def _about(column: Column) -> str:
    """Return kind, size, values and languages of a column."""
    text = f"{column.kind:7s} {column.filled:,} values"
    if column.many or len(column.values) > FEW:
        text += f", {column.different} different{' items' if column.kind == 'list' else ''}"
    elif column.values:
        shown = [*column.labels.items()][:LABELS]
        more = " …" if len(column.labels) > LABELS else ""
        text += f": {', '.join(f'{value[:30]} {count:,}' for value, count in shown)}{more}"
    if column.kind == "text" and (column.many or len(column.values) > FEW):
        sizes = sorted(map(len, column.texts))
        scripts = ", ".join(f"{name} {share:.0%}" for name, share in column.scripts().items())
        written = in_words(column.languages) or scripts
        text += f"; characters: median {sizes[len(sizes) // 2]}, longest {sizes[-1]}; {written}"
    return text

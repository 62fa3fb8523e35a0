"""`rankzero prepare`: the public function, and what its processes make from a recipe. No torch here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import user_code
from trainer.data.hub_datasets import pinned
from trainer.data.prepare import prepare as write_corpus
from trainer.data.sources import Split
from trainer.engine.corpus import Corpus
from trainer.engine.token_counts import count_tokens
from trainer.engine.verify_data import verify_prepared, verify_run
from trainer.errors import UsageError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe, load_recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task, roles_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare(
    recipe: str | Path | BaseRecipe,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    processes: int = 1,
    part: tuple[str, int, int] | None = None,
    verify: bool = False,
    run: str | Path | None = None,
) -> str:
    """Train the tokenizer, check every row and write the tokenized corpus. Return a message about it.

    Args:
        recipe: a path, the name of a shipped recipe, or a recipe.
        overrides: `key=value`.
        out: the folder of the prepared corpus.
        processes: start as many, for a corpus of at least some megabytes. They import the calling script again, so it
            needs `if __name__ == "__main__":` around its calls.
        part: (stage, number from 0, count): do a part of stage "read", "deal" or "write" only.
        verify: write no corpus. Hash the content of all original files and compare with what was recorded, in the
            prepared corpus or in `run`.
        run: a run directory, with `verify`.

    Raises:
        RankzeroError: bad data, a folder with other content, or files that are not those that were recorded.
    """
    resolved = load_recipe(recipe, overrides)
    if run is not None and not verify:
        raise UsageError("--run names a run directory for --verify; the folder of a prepared corpus is --out")
    if verify and run is not None:
        return verify_run(resolved, RunDir(run))
    folder = Path(out) if out else Path("prepared") / resolved.name
    if verify:
        return verify_prepared(resolved, folder)
    resolved = resolved.model_copy(update={"data": pinned(resolved.data)})
    remake = functools.partial(_parts, resolved.model_dump(mode="json"))
    _, roles, encoder, check = _parts_of(resolved)
    about = write_corpus(resolved, roles, encoder, folder, processes=processes, remake=remake, part=part, check=check)
    if part is not None:
        return f"prepared part {part[1] + 1} of {part[2]} of stage {part[0]}"
    counts = ", ".join(f"{split} {facts['rows']:,} rows" for split, facts in about["splits"].items())
    return f"prepared {counts} in {folder}; use it with data.root={folder}"


def _parts(values: dict[str, Any]) -> Any:
    """Return the parts of a workspace in a process of `prepare`, whose recipe a user has started."""
    user_code.trust(values)
    return _parts_of(Recipe.parse(values))


def _parts_of(recipe: BaseRecipe) -> Any:
    """Return recipe, roles, encoder and check, see `trainer.data.prepare`."""

    def encoder(tokenizer: PreTrainedTokenizerFast) -> Any:
        return make_task(recipe, tokenizer).encode

    def check(alone: BaseRecipe, tokenizer: PreTrainedTokenizerFast, split: Split) -> None:
        count_tokens(Corpus(alone, make_task(alone, tokenizer)), split, None)

    return recipe, roles_of(recipe), encoder, check

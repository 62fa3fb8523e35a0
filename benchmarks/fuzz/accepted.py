"""Recipes that are valid, with values at the edges of what is allowed: what they load, and what comes of their rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import recipes, valid, words
from benchmarks.fuzz.guard import Broken
from trainer.data.lane_plan import Bookmark
from trainer.data.sources import open_splits
from trainer.data.tokenization import load_tokenizer
from trainer.engine.corpus import Corpus
from trainer.preparation import prepare
from trainer.recipe_loading import load_recipe
from trainer.run_options import Options, run_path
from trainer.task.registry import make_task, roles_of

MOST_ROWS, MOST_LANES = 50, 1000
BASES = recipes.BASES[:2]  # the third one has a model that is nowhere
PLACES = ("data", "data", "data", "tokenizer", "task", "evaluation", "")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """Draw the number of a recipe, overrides, and lines of its file of rows."""
    number = draw(st.integers(0, len(BASES) - 1))
    place = draw(st.sampled_from(PLACES))
    words_of = valid.overrides(BASES[number], place)
    more = draw(st.lists(st.one_of(words_of, valid.overrides(BASES[number], "")), min_size=1, max_size=3))
    row = st.builds(lambda text, label: json.dumps({"text": text, "label": label}), words.text(), st.integers(0, 1))
    other = st.one_of(words.json_text(), words.value().map(lambda value: json.dumps({"text": value, "label": value})))
    lines = draw(st.lists(st.one_of(row, row, row, other), max_size=6))
    return number, more, lines


def check(case: Sequence[Any], folder: Path) -> str:
    """Load a recipe with overrides, read its rows, and prepare its corpus.

    Raises:
        Broken: rows are lost, or the recipe is another one after it was written.
        RankzeroError: the recipe or its data is refused.
    """
    number, overrides, lines = case
    path, rows = folder / "recipe.yaml", folder / "rows.jsonl"
    path.write_text(json.dumps({**BASES[number], "name": "accepted"}), encoding="utf-8")
    content = [*recipes.ROWS.splitlines(), *(line.replace("\n", " ") for line in lines)]
    rows.write_bytes("\n".join(content).encode("utf-8", "surrogatepass"))
    recipe = load_recipe(path, overrides)
    run_path(recipe, Options(None, False, (), False, False, False))
    recipes.check_written(recipe)
    for source in open_splits(recipe.data, roles_of(recipe)).values():
        list(islice(source, MOST_ROWS))
    prepare(recipe, out=folder / "prepared")
    _check_prepared(recipe, folder / "prepared")
    _check_lanes(recipe, folder / "prepared")
    return "read"


def _check_prepared(recipe: Any, folder: Path) -> None:
    """Every row of a split that has been read is in the corpus or counted: as bad, or held out for validation."""
    splits = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["splits"]
    data = recipe.data.model_copy(update={"root": str(folder)})
    written = {split: sum(1 for _ in source) for split, source in open_splits(data, roles_of(recipe)).items()}
    counted = {split: about["rows"] for split, about in splits.items()}
    if written != counted:
        raise Broken(f"rows of the corpus {written}, and {counted} are counted")
    if recipe.data.mix:
        return
    roles = roles_of(recipe)
    read = {split: sum(1 for _ in source) for split, source in open_splits(recipe.data, roles).items()}
    used = {split: about["rows"] + sum(about["bad_rows"].values()) for split, about in splits.items()}
    if isinstance(recipe.data.validation, float):
        used = {"train": used["train"] + splits["validation"]["rows"], **{k: v for k, v in used.items() if k == "test"}}
    if {split: read[split] for split in used} != used:
        raise Broken(f"rows of the files {read}, and {used} are used or counted as bad")


def _check_lanes(recipe: Any, folder: Path) -> None:
    """The micro-batches of an epoch have each row of the corpus once."""
    if recipe.data.mix or recipe.data.lanes > MOST_LANES:
        return
    splits = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))["splits"]
    own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": str(folder)})})
    task = make_task(own, load_tokenizer(str(folder / "tokenizer")), splits)
    lanes = range(own.data.lanes)
    streams = Corpus(own, task).lanes().epoch(lanes, [Bookmark() for _ in lanes])
    served = [batch for lane in lanes for batch in streams[lane]]
    rows = Counter(row for batch in served for row in batch.ids)
    if len(rows) != splits["train"]["rows"] or rows.most_common(1)[0][1] > 1:
        raise Broken(f"{len(rows)} rows are served, of {splits['train']['rows']}; most often {rows.most_common(1)}")
    if own.data.rows_per_batch and any(len(batch.examples) > own.data.rows_per_batch for batch in served):
        raise Broken("a micro-batch has more rows than data.rows_per_batch")

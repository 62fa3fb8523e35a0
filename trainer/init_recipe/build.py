"""Make the values of a recipe, and the comments on them, from the files of a user."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.data.columns import as_yaml
from trainer.data.discovery import split_shards
from trainer.data.profile import Table, profile
from trainer.data.roles import Roles
from trainer.data.sniffing import Reading
from trainer.data.sources import Split, open_split
from trainer.data.split_files import SplitFiles, find_splits
from trainer.data.survey import survey
from trainer.data.survey_counts import Survey
from trainer.errors import DataError, UsageError
from trainer.init_recipe import steps
from trainer.init_recipe.choice import choose
from trainer.init_recipe.encoding import guess_encoding
from trainer.init_recipe.lengths import Lengths, measure
from trainer.init_recipe.remarks import model_note, reading_notes, source_remarks
from trainer.init_recipe.render import scalar
from trainer.models.suggested import longest_input, rate_for
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe import apply_overrides
from trainer.recipe.sections import DataConfig
from trainer.recipe_loading import Recipe, check_recipe
from trainer.task.registry import roles_of
from trainer.task.suggestion import Suggestion

MOST_LENGTH = 512
MANY_CUT = 0.05  # share of rows longer than the model reads, from which `Suggestion.long_rows` is used
MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|&(?:[a-z]{2,8}|#\d{2,5});")
MARKED = 0.01  # share of texts with markup from which it is removed
HTML = ["unescape_html", "strip_tags", "normalize_unicode", "fold_whitespace"]
MOST_BAD = 0.5  # share of bad rows above which the columns must be wrong
READING = ("delimiter", "quote", "header", "encoding", "columns")  # keys of data that the user may set for reading
LENIENT: dict[str, Any] = {"lanes": 1, "on_bad_row": "skip", "max_bad_fraction": 0.999}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Values = dict[str, Any]
SCRATCH: dict[str, Values] = {  # by model.kind
    "encoder": {"kind": "encoder", "d_model": 256, "layers": 4, "heads": 4, "feed_forward": 1024},
    "cnn": {"kind": "cnn"},
}
TRAINED = {"train": {"kind": "wordpiece", "vocab_size": 16_000}}


@dataclass
class Draft:
    """A recipe in the making.

    Attributes:
        files: of the splits.
        table: the training rows.
        suggestion: of the task.
        others: tasks that fit as well.
        lengths: of the inputs in tokens.
        surveys: by split.
        share: of the training rows that is held out for validation; None if there are files.
        values: sections of the recipe.
        notes: comments by dotted key. They stay true when the value is changed: what init found is in the past tense.
        facts: what was found and follows for these rows, by dotted key, for the summary.
        remarks: sentences for the user.
        roles: role -> column; empty for parallel text files.
    """

    files: SplitFiles
    table: Table
    suggestion: Suggestion
    others: list[str]
    lengths: Lengths
    surveys: dict[str, Survey] = field(default_factory=dict)
    share: float | None = None
    values: Values = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)


def check(found: Draft, where: str) -> None:
    """Check the recipe of a draft as every command does.

    Raises:
        UsageError: a value is wrong; the message begins with `where`.
    """
    check_recipe(Recipe.parse(copy.deepcopy(found.values), where=where))


def draft(path: str, kind: str | None, overrides: Sequence[str]) -> Draft:
    """Return a recipe for the rows of a file or folder.

    Args:
        path: of the file or folder.
        kind: of the task; None to take the one that fits best.
        overrides: `key=value` of the recipe, which come before all guesses.

    Raises:
        UsageError: no such file, several corpora, or no task fits the columns.
        DataError: a file or most of its rows cannot be read.
    """
    files = find_splits(path)
    given: Values = apply_overrides({}, overrides)
    read = {key: value for key, value in (given.get("data") or {}).items() if key in READING}
    data = _data_config(files, read)
    shards = split_shards(data, files.train, "train")
    if "encoding" not in read and (encoding := guess_encoding(shards)) is not None:
        read["encoding"] = encoding
        data = _data_config(files, read)
    table = profile(shards, Reading.of(data, None), files.languages)
    suggestion, others = choose(path, table, kind, data.columns)
    if suggestion.pretrained and (scratch := SCRATCH.get((given.get("model") or {}).get("kind", ""))):
        suggestion = replace(suggestion, pretrained=None, model=scratch, tokenizer=TRAINED)
    name = (given.get("model") or {}).get("name", suggestion.pretrained)
    inputs = [table.columns[column] for column in suggestion.inputs if column in table.columns]
    joined = len(inputs) > 1 and suggestion.pretrained is not None and bool(suggestion.task.get("pair"))
    lengths = measure(inputs, name, joined)
    found = Draft(files, table, suggestion, others, lengths)
    if not table.header:
        read["header"] = False
    found.notes |= reading_notes(found, data, given)
    if suggestion.columns:
        read["columns"] = suggestion.columns
    texts = [text for column in inputs for text in column.texts]
    if suggestion.markup and (share := sum(bool(MARKUP.search(text)) for text in texts) / max(1, len(texts))) > MARKED:
        read["cleaning"] = HTML
        found.notes["data.cleaning"] = f"init found HTML tags or entities in {share:.0%} of the texts"
    _survey(found, read)
    _fill(found, path, read, name, given)
    apply_overrides(found.values, overrides)
    return found


def _data_config(files: SplitFiles, read: Mapping[str, Any], **more: Any) -> DataConfig:
    splits = {"train": files.train, "validation": files.validation, "test": files.test}
    try:
        return DataConfig(**{**files.place, **splits, **read, **more})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"data.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _survey(found: Draft, read: Mapping[str, Any]) -> None:
    """Read every row as the training does. A test split without labels is left out."""
    roles = roles_of(_provisional(found.suggestion, found.files))
    found.roles = (
        {} if isinstance(found.files.train, dict) else {role: read.get("columns", {}).get(role, role) for role in roles}
    )
    shares: list[Any] = (
        [found.files.validation] if found.files.validation else steps.validation_shares(found.table.rows)
    )
    for share in shares if len(shares) == 1 else [*shares, shares[0]]:
        found.share = share if isinstance(share, float) else None
        found.surveys = {}
        _read_splits(found, _data_config(found.files, read, validation=share, **LENIENT), roles)
        if found.surveys["train"].labels.keys() <= found.surveys.get("validation", Survey("validation")).labels.keys():
            break  # no class is missing in validation
    _refuse_bad(found)


def _provisional(suggestion: Suggestion, files: SplitFiles) -> BaseRecipe:
    """Return a recipe of the suggested task, from which its roles follow."""
    model = {"kind": "pretrained", "name": suggestion.pretrained} if suggestion.pretrained else suggestion.model
    data = {**files.place, "train": files.train}
    values = {"name": "init", "task": suggestion.task, "data": data, "model": model, "loop": {"epochs": 1}}
    recipe: BaseRecipe = Recipe.parse(copy.deepcopy(values), where="init")
    return recipe


def _read_splits(found: Draft, data: DataConfig, roles: Roles) -> None:
    found.remarks.clear()
    for split in SPLITS:
        try:
            source = open_split(data, split, roles)
            if source is not None:
                found.surveys[split] = survey(source, data, roles, split)
        except DataError as error:
            if split == "train" and isinstance(data.validation, float):  # few or equal rows, all of them held out
                _read_splits(found, data.model_copy(update={"validation": None}), roles)
                return
            if split == "train":
                raise
            found.remarks.append(f"data.{split} is left out: {error}")


def bad_share(one: Survey) -> float:
    """Return the share of bad rows of a split, as `data.max_bad_fraction` counts it."""
    bad = one.bad.total() + one.lost
    return bad / max(1, one.rows + bad)


def _refuse_bad(found: Draft) -> None:
    for split, one in found.surveys.items():
        if bad_share(one) > MOST_BAD:
            reasons = ", ".join(f"{count:,} x {reason}" for reason, count in one.bad.most_common(5))
            raise DataError(
                f"data.{split}: {one.bad.total():,} of {one.rows + one.bad.total():,} rows are bad: {reasons}. First: "
                f"{one.examples[0]}. Fix the rows, or name other columns: data.columns={as_yaml({'text': 'COLUMN'})}"
            )


def _fill(found: Draft, path: str, read: Values, model: str | None, given: Values) -> None:
    """Write the sections of the recipe."""
    suggestion, lengths = found.suggestion, found.lengths
    most = min(MOST_LENGTH, (longest_input(model) if model else None) or MOST_LENGTH)
    length = int(
        (given.get("data") or {}).get("max_length") or (256 if suggestion.packed else lengths.max_length(most))
    )
    rows = found.surveys["train"].rows
    if suggestion.packed:
        plan = steps.packed(rows, lengths.mean, length)
    elif suggestion.pretrained is None:
        plan = steps.from_scratch(rows, lengths.mean, length)
    else:
        plan = steps.fine_tuning(rows, length)
    found.notes |= {key: note for key, note in suggestion.notes.items() if note}
    long_rows = suggestion.long_rows if lengths.cut(length) > MANY_CUT else {}
    found.values = {
        "version": 1,
        "name": re.sub(r"[^\w.-]+", "-", _name(path), flags=re.ASCII).strip("-._") or "run",
        "seed": 1,
        "task": suggestion.task | long_rows,
        "data": _data(found, read, plan, length),
    }
    if suggestion.tokenizer:
        found.values["tokenizer"] = suggestion.tokenizer
    name = {"kind": "pretrained", "name": suggestion.pretrained} if suggestion.pretrained else {}
    found.values |= {"model": {**name, **suggestion.model}, "optim": _optim(found, plan, model)}
    found.values["loop"] = _loop(found, plan)
    if suggestion.evaluation:
        found.values["evaluation"] = suggestion.evaluation
    _note_lengths(found, length, plan)
    if note := model_note(found, model):
        found.notes["model.name"] = note
        found.remarks.append(f"model.name: {note}")
    found.remarks += [f"{key}: {found.notes[key]}" for key in ("data.encoding", "data.header") if key in found.notes]
    found.remarks += [*suggestion.remarks, *source_remarks(found, model)]


def _name(path: str) -> str:
    name = Path(path).expanduser().absolute().name
    stem = name.split(".")[0]
    of_train = re.fullmatch(r"(train|training)\W*[-\d]*(of)?[-\d]*", stem.lower())
    return Path(path).expanduser().absolute().parent.name if of_train else stem


def _data(found: Draft, read: Values, plan: steps.Steps, length: int) -> Values:
    files, surveys, notes = found.files, found.surveys, found.notes
    splits: Values = {"train": files.train}
    if "validation" in surveys:
        splits["validation"] = files.validation or found.share
        if found.share:
            notes["data.validation"] = "share of train that is held out; a file is possible, too"
    if "test" in surveys:
        splits["test"] = files.test
    bad = max(map(bad_share, surveys.values()))
    if bad:
        splits["on_bad_row"] = "skip"
        found_bad = sum(one.bad.total() for one in surveys.values())
        notes["data.on_bad_row"] = f"skip: leaves bad rows out; fail: stops at the first. init found {found_bad:,}"
    if bad > 0.01:
        splits["max_bad_fraction"] = math.ceil(bad * 110) / 100
    notes["data.root"] = "folder of the files"
    notes["data.dataset"] = "of the Hub; train, validation and test are names of its splits"
    notes["data.lanes"] = "a step takes a micro-batch from each lane; at most as many GPUs"
    notes["data.rows_per_batch"] = "most rows of a micro-batch; times the lanes: rows of a step"
    notes["data.tokens_per_batch"] = "most padded tokens of a micro-batch"
    pad = {} if found.lengths.quantile(0.5) >= 64 else {"pad_multiple": 4}
    return {**files.place, **splits, **read, **plan.data, "max_length": length, **pad}


def _optim(found: Draft, plan: steps.Steps, model: str | None) -> Values:
    suggestion = found.suggestion
    if model:
        rate, why = rate_for(model, plan.total)
        found.notes["optim.lr"] = f"init chose {scalar(rate)} ({why}); try half and twice"
    else:
        rate = 1e-3 if suggestion.packed or suggestion.model.get("d_model", 0) > 256 else 2e-3
        found.notes["optim.lr"] = f"init chose {scalar(rate)} for random weights"
    found.notes["optim.warmup_ratio"] = "share of the steps in which lr rises, before the schedule"
    own = {"name": "adamw", "lr": rate, "schedule": "linear", "warmup_ratio": plan.warmup_ratio}
    decay = {"weight_decay": 0.01} if model else {}
    return {**own, **decay, **suggestion.optim}


def _loop(found: Draft, plan: steps.Steps) -> Values:
    found.facts["loop.epochs"] = f"about {plan.total:,} steps, {plan.per_epoch:,} an epoch"
    found.notes["loop.epochs"] = "passes over the training rows"
    found.notes.setdefault("loop.early_stopping", "selects the checkpoint; patience: 3 would stop the training early")
    every = plan.eval_every
    loop: Values = {"epochs": plan.epochs, "eval_every": every, "save_every": every, "log_every": plan.log_every}
    if plan.data["lanes"] > 1:
        loop["fuse_lanes"] = "auto"
        found.notes["loop.fuse_lanes"] = "auto: as many lanes in a forward as a GPU has memory for; 1 on a CPU"
    if "validation" in found.surveys:
        loop["early_stopping"] = {"metric": found.suggestion.metric}
    return loop


def _note_lengths(found: Draft, length: int, plan: steps.Steps) -> None:
    lengths = found.lengths
    if found.suggestion.packed:
        found.facts["data.max_length"] = found.notes["data.max_length"] = "texts are packed into sequences of it"
        return
    about = "" if lengths.measured else "about "
    sizes = f"median {about}{lengths.quantile(0.5)}, 98% {lengths.quantile(0.98)}"
    cut, longest = lengths.cut(length), f", longest {lengths.sorted[-1]}"
    longer = "read in windows" if found.suggestion.windows else "cut"
    which = "are longer, and" if found.suggestion.windows else "are"
    end = f"; {cut:.1%} {which} {longer}" if cut else longest
    found.facts["data.max_length"] = f"tokens of a row: {sizes}{end}"
    above = f", {cut:.1%} above {length}" if cut else longest
    found.notes["data.max_length"] = f"longer rows are {longer}; init found tokens: {sizes}{above}"

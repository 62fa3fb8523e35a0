"""`rankzero prepare`: check and tokenize a corpus, and write it as shuffled shards, which `data.root` then points at.

The folder has `prepared.json`, `tokenizer/` and Parquet shards. A row has its original id, the clean values by role
and the token ids. Train is dealt to `data.lanes` shards: of each group of that many rows one goes to each shard, in
keyed order, so that every shard is an even sample of the corpus. The order within a shard is random. The other splits
keep their order. At most one bucket of a shard is in memory of a process.

With `data.mix` the folder has validation and test, and each corpus has its own folder of this form in `corpora/`. They
have one tokenizer.

The corpus is made in a hidden folder next to its place, in the stages read, deal and write (`prepare_work.py`). What is
done there is kept when the command ends early, and the next start resumes. The bytes do not depend on the processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.discovery import PREPARED_KEYS, corpora, mixture, own_root, refuse_changed
from trainer.data.fingerprints import fingerprint
from trainer.data.prepare_pool import Parts, Pool
from trainer.data.prepare_spans import CHUNK_ROWS, INDEXED_BYTES
from trainer.data.prepare_stages import COUNTS, Preparation
from trainer.data.prepare_work import BUCKET_ROWS, ROWS, TOKENIZER, Check, Encoder, Workspace, workspaces
from trainer.data.roles import Roles
from trainer.data.root import PREPARED, Root
from trainer.data.sources import Source, Split, open_splits
from trainer.data.survey import survey
from trainer.data.target_tokenizer import target_of
from trainer.data.token_ids import Layout
from trainer.data.tokenization import load_tokenizer
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.files import publish, read_json, write_json
from trainer.lock_file import flock
from trainer.stages import unchanged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

log = logging.getLogger("rankzero")

VERSION = 2  # of prepared.json; 1 had no layout, and not how the tokenizer of an architecture is trained
IDENTITY = "identity.json"  # a file of the workspace: what its other files depend on


def prepare(
    recipe: Recipe,
    roles: Roles,
    encoder: Encoder,
    out: Path,
    *,
    processes: int = 1,
    remake: Callable[[], Parts] | None = None,
    part: tuple[str, int, int] | None = None,
    check: Check | None = None,
) -> dict[str, Any]:
    """Write the prepared corpus of a recipe into the folder `out`.

    Args:
        recipe: data, tokenizer, task and seed are read.
        roles: of the task.
        encoder: makes the task's `encode` from a tokenizer.
        out: a new or empty folder. If it was prepared with the same recipe from the same files, it is not changed.
        processes: of one thread each.
        remake: makes recipe, roles, encoder and check in another process, to which it is sent. Needed for several
            processes.
        part: (stage, number from 0, count): do one of `count` equal parts of a stage only, for an array of jobs. The
            stages follow one another. A call without `part` does what is missing and publishes the corpus.
        check: refuses a split with too many unknown tokens.

    Returns:
        The content of `prepared.json`, without the shards if only a part was done.

    Raises:
        DataError: bad, missing or empty data, as for training.
        UsageError: `out` has other content, or `data.root` is itself a prepared corpus; another process prepares `out`.
        CheckpointError: the disk is full or not writable.
        RankError: a process was killed.
    """
    for name, root in _roots(recipe):
        if root.prepared() is not None:
            key = f"data.mix.{name}.root" if name else "data.root"
            raise UsageError(f"{key}={root.url!r} is a prepared corpus already; set it to the original files")
    sources = open_splits(recipe.data, roles)
    marks = {split: fingerprint(source) for split, source in sources.items()}
    if out.exists() and any(out.iterdir()):
        return _earlier(recipe, roles, out, sources, marks)
    folder = out.with_name(f".{out.name}.preparing")
    works = workspaces(folder, recipe, roles, encoder, check)
    with _claimed(works, _identity(recipe, marks), shared=part is not None):
        bytes_ = sum(shard.size or 0 for source in sources.values() for shard in source.shards)
        try:
            with Pool(folder, works, processes if bytes_ >= INDEXED_BYTES else 1, remake) as pool:
                about = read_json(folder / PREPARED) or _about(works, pool, marks, part)
        except (DataError, UsageError):  # of no use for a corrected corpus or recipe
            if part is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if part is None:
            _publish(works, out, about)
    return about


def _about(
    works: Mapping[str, Workspace], pool: Pool, marks: dict[Split, str], part: tuple[str, int, int] | None
) -> dict[str, Any]:
    """Do what is missing of the corpus. Return the content of `prepared.json`. Those of `data.mix` are written."""
    own = {
        name: {split: fingerprint(source) for split, source in work.sources.items()} if name else marks
        for name, work in works.items()
    }
    preparation = Preparation(works, pool, own, part)
    splits = preparation.run()
    found = {
        name: {"version": VERSION, "keys": _keys(work.recipe), "splits": splits.get(name, {})}
        for name, work in works.items()
    }
    if preparation.shards:
        layout = _layout(load_tokenizer(str(works[""].tokenizer)))
        for name, about in found.items():
            about |= {"layout": layout, "shards": preparation.shards.get(name, {})}
    about = found.pop("")
    if found:
        about["corpora"] = list(found)
    if part is None:
        for name, of in found.items():
            shutil.copytree(works[""].tokenizer, works[name].folder / TOKENIZER, dirs_exist_ok=True)
            write_json(works[name].folder / PREPARED, of)
    return about


def _earlier(
    recipe: Recipe, roles: Roles, out: Path, sources: dict[Split, Source], marks: dict[Split, str]
) -> dict[str, Any]:
    """Return the content of `prepared.json` of a corpus that was prepared with the same recipe from the same files.

    Raises:
        UsageError: the folder has other content.
    """
    earlier = json.loads((out / PREPARED).read_text(encoding="utf-8")) if (out / PREPARED).is_file() else {}
    found = earlier.get("splits", {})
    same = unchanged({"version": VERSION, "keys": _keys(recipe)}, earlier)
    if not same or {split: of.get("fingerprint") for split, of in found.items()} != marks:
        raise UsageError(f"{out} has other content: remove it or name another folder")
    for split, source in sources.items():
        if found[split]["bad_rows"]:
            survey(source, recipe.data, roles, split)  # the recipe may allow fewer than it did
    return dict(earlier)


def _identity(recipe: Recipe, marks: dict[Split, str]) -> dict[str, Any]:
    """Return what the files of a workspace depend on."""
    data = recipe.data
    return {
        "version": [VERSION, version("rankzero")],
        "keys": _keys(recipe),
        "seed": recipe.seed,
        "data": [data.lanes, data.order, data.block_rows, data.on_bad_row, data.max_bad_fraction],
        "rows": [CHUNK_ROWS, BUCKET_ROWS],
        "fingerprints": marks,
    }


@contextlib.contextmanager
def _claimed(works: Mapping[str, Workspace], identity: dict[str, Any], shared: bool) -> Iterator[None]:
    """Make the workspaces, or use those of an earlier start. Those of another recipe or of other files are emptied.

    Args:
        shared: jobs of an array use it together.

    Raises:
        UsageError: another process uses it, or with `shared` it is of another recipe or other files.
        CheckpointError: it cannot be written.
    """
    folder = works[""].folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("ab")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}; choose --out") from None
    with file:
        if not shared and not flock(file):
            raise UsageError(f"another process prepares {folder}: wait for it, or choose another --out")
        earlier = read_json(folder / IDENTITY)
        if earlier is not None and earlier != identity:
            if shared:
                raise UsageError(f"{folder} is of another recipe or of other files: remove it")
            log.info("prepare: the recipe or the files have changed: begun again")
            for path in folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for work in works.values():
            (work.folder / ROWS).mkdir(parents=True, exist_ok=True)
        if earlier != identity:
            write_json(folder / IDENTITY, identity)
        yield


def _publish(works: Mapping[str, Workspace], out: Path, about: dict[str, Any]) -> None:
    """Turn the complete workspaces into the corpus. After the manifest is written, a start only completes this."""
    folder = works[""].folder
    write_json(folder / PREPARED, about)
    for work in works.values():
        shutil.rmtree(work.folder / ROWS)
        for path in [work.folder / COUNTS, *work.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
    publish(folder, out)
    for name in ("lock", IDENTITY):
        (out / name).unlink()


def _roots(recipe: Recipe) -> list[tuple[str, Root]]:
    """Return the folders of a recipe, each once: that of `data.root` by the name "", those of `data.mix` by theirs."""
    sections = {"": recipe.data, **corpora(recipe.data)}
    found: dict[str, tuple[str, Root]] = {}
    for name, data in sections.items():
        if (root := own_root(data)) is not None:
            found.setdefault(root.url, (name, root))
    return list(found.values())


def prepared_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of the prepared corpora that a recipe names, None if it names none.

    Raises:
        UsageError: a corpus was prepared with another task or tokenizer, or for an architecture whose tokenizer is
            trained in another way, or two corpora of `data.mix` with different ones.
    """
    found = [(name, root, prepared) for name, root in _roots(recipe) if (prepared := root.prepared()) is not None]
    if not found:
        return None
    files = {}
    for name, root, prepared in found:
        if prepared.get("version") != VERSION:
            raise UsageError(
                f"{root.url} was prepared by another version of rankzero ({PREPARED}: version "
                f"{prepared.get('version')}, needed: {VERSION}). Run `rankzero prepare` again"
            )
        refuse_changed(root.url, {k: prepared["keys"][k] for k in ("task", "tokenizer")}, _keys(recipe))
        files[name or "data.root"] = _tokenizer_files(root)
    (first, kept), *others = files.items()
    for name, of in others:
        if any(kept.get(path) != of.get(path) for path in {*kept, *of} if path.endswith("tokenizer.json")):
            raise UsageError(
                f"data.mix: {first} and {name} were prepared with different tokenizers, so their token ids differ. Run "
                "`rankzero prepare` on this recipe with the original files as roots: it prepares all corpora with one "
                "tokenizer. Or set tokenizer.pretrained to one tokenizer, and prepare each corpus with it"
            )
    with tempfile.TemporaryDirectory() as folder:
        for path, content in kept.items():
            copy = Path(folder, path)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(content)
        tokenizer = load_tokenizer(folder)
    for _, root, prepared in found:
        _check_layout(recipe, root.url, prepared["layout"], tokenizer)
    return tokenizer


def _tokenizer_files(root: Root) -> dict[str, bytes]:
    """Return the content of the files of a prepared corpus's tokenizer, by their paths in its folder."""
    paths = root.system.find(f"{root.path}/{TOKENIZER}")
    return {path.rpartition(f"/{TOKENIZER}/")[2]: root.system.cat_file(path) for path in paths}


def _check_layout(recipe: Recipe, where: str, layout: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare the tokenizer of a prepared corpus with the recorded layout, and with the recipe's own tokenizer.

    Raises:
        UsageError: special tokens or vocabulary differ, so that the rows' ids mean something else to the model.
    """
    if layout != _layout(tokenizer):
        raise UsageError(
            f"{where}: its tokenizer/ is not the one that it was prepared with. Run `rankzero prepare` again"
        )
    if recipe.tokenizer_name is None:
        return
    try:
        own = load_tokenizer(recipe.tokenizer_name)
    except UsageError:  # not available here, and not needed
        return
    if _layout(own) != layout or _vocabularies(own) != _vocabularies(tokenizer):
        raise UsageError(
            f"{where} was prepared with another tokenizer than {recipe.tokenizer_name!r} has now: vocabulary or "
            "special tokens differ. Run `rankzero prepare` again"
        )


def _layout(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return where a tokenizer puts its special tokens: [token id, side, type id] of one text and of a pair."""
    return {
        name: [list(part) for part in Layout.of(tokenizer, pair=pair).parts]
        for name, pair in (("text", False), ("pair", True))
    }


def _vocabularies(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of tokens of source and target texts."""
    return tokenizer.get_vocab(), target_of(tokenizer).get_vocab()


def _keys(recipe: Recipe) -> dict[str, Any]:
    """Return what the rows and their token ids depend on. The training of a tokenizer may depend on the model."""
    values = recipe.model_dump(mode="json")
    training = recipe.tokenizer_training
    # a shared vocabulary is recorded as before there were separate ones
    separate = {"shared", "target_vocab_size"} if training is not None and training.shared else set()
    resolved = None if training is None else training.model_dump(mode="json", exclude=separate)
    return {
        "task": values["task"],
        "tokenizer": values["tokenizer"] | {"train": resolved, "pretrained": recipe.tokenizer_name},
        "data": {name: values["data"][name] for name in PREPARED_KEYS},
        **({"mix": mixture(recipe.data)} if recipe.data.mix else {}),
    }

"""Prepare a run before its training: check files, survey the data, make the tokenizer, write the manifest."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from trainer import user_code
from trainer.cpu_info import cpuinfo
from trainer.data.fingerprints import fingerprint, is_large
from trainer.data.prepare import prepared_tokenizer
from trainer.data.quotas import Quotas
from trainer.data.sources import Source, Split, open_split, open_splits
from trainer.data.survey import survey, survey_part
from trainer.data.survey_counts import Survey
from trainer.data.target_tokenizer import save_tokenizer, target_of
from trainer.data.tokenization import load_tokenizer, train_tokenizers, training_texts
from trainer.engine.corpus import Corpus
from trainer.engine.evaluate import no_score
from trainer.engine.runtime import Runtime
from trainer.engine.token_counts import count_tokens
from trainer.errors import DataError, UsageError
from trainer.files import read_json, write_json
from trainer.hub_paths import check_model_files, check_weights
from trainer.models.adapters import adapter_of, counts
from trainer.models.flash import check_flash
from trainer.models.init_from import trunk_file
from trainer.models.padding_free import check_family
from trainer.recipe import Recipe
from trainer.recipe.trackers import check_installed, options_of
from trainer.redaction import shareable
from trainer.rundir import RunDir, commit_of, git_commit
from trainer.stages import digest, file_facts, published
from trainer.task.registry import make_task, roles_of, task_class

log = logging.getLogger("rankzero")

PACKAGES = ("torch", "accelerate", "transformers", "datasets", "tokenizers", "safetensors", "sacrebleu", "deepspeed")
VERIFY = "`rankzero prepare RECIPE --verify --run RUN`"
OTHER_IDS = 0.1  # share of tokens that may have another id than in the training of pretrained weights


def check_beginning(run: RunDir, recipe: Recipe, precision: str = "no") -> None:
    """Check the files that a run begins with, and packages that it needs. Fetch the tokenizer unless it is trained.

    This comes before all rows are read, which may take long. A start that resumes a checkpoint checks nothing again.

    Raises:
        UsageError: fp8 with an adapter, a tracker is not installed, `model.init_from` names no run with a model, a file
            of the model or the tokenizer is missing, cut or corrupt, `model.attention` or `data.padding` is not
            supported, or a package for an artifact is not installed.
    """
    if adapter_of(recipe) is not None and precision == "fp8":
        raise UsageError(
            "fp8 with model.adapter: the layers of the base are frozen, so none multiplies in fp8; use bf16"
        )
    check_installed(list(options_of(recipe.track)))
    check_flash(recipe.model)
    recipe.export.check_packages()
    if any(run.checkpoints.iterdir()) or run.model.exists():
        return
    begun, weights = getattr(recipe.model, "init_from", None), getattr(recipe.model, "weights", None)
    if begun is not None:
        check_weights(trunk_file(Path(begun)).parent)
    if weights is not None:
        check_model_files(weights)
        if recipe.data.padding == "none":
            check_family(weights)
    if (tokenizer := ready_tokenizer(recipe)) is not None:
        if begun is not None:
            _check_same_vocabulary(tokenizer, begun)
        elif weights is not None and recipe.tokenizer.pretrained not in (None, weights):
            _check_same_ids(tokenizer, recipe.tokenizer.pretrained, weights)
        _save_tokenizer(run, tokenizer)


def _check_same_ids(tokenizer: PreTrainedTokenizerFast, name: str, weights: str) -> None:
    """Compare a tokenizer that the recipe names with the one that the model's weights were trained with.

    Raises:
        UsageError: many tokens have other ids, so that their embeddings are those of other tokens.
    """
    try:
        own = load_tokenizer(weights).get_vocab()
    except UsageError:  # the weights come without a tokenizer
        return
    ids = tokenizer.get_vocab()
    differ = sorted(token for token, i in own.items() if ids.get(token) != i)
    text = (
        f"tokenizer.pretrained={name!r} is not the tokenizer of model.name={weights!r}: {len(differ):,} of the model's "
        f"{len(own):,} tokens have another id or none, such as {differ[:3]}"
    )
    if len(differ) > OTHER_IDS * len(own):
        raise UsageError(f"{text}. Leave `tokenizer` out of the recipe, so that the model's own is used")
    if differ:
        log.warning("%s", text)


def _check_same_vocabulary(tokenizer: PreTrainedTokenizerFast, begun: str) -> None:
    """Compare the tokenizer of a run with the one of the run that `model.init_from` names.

    Raises:
        UsageError: they differ, so that the embeddings are those of other tokens.
    """
    theirs = load_tokenizer(f"{begun}/tokenizer")
    sides = {"vocabulary": (theirs, tokenizer), "target vocabulary": (target_of(theirs), target_of(tokenizer))}
    for side, (there, here) in sides.items():
        own, ids = there.get_vocab(), here.get_vocab()
        if own == ids:
            continue
        differ = sorted(token for token, i in own.items() if ids.get(token) != i)
        raise UsageError(
            f"model.init_from={begun!r}: its {side} has {len(own):,} tokens and that of this recipe {len(ids):,}, and "
            f"{len(differ):,} of the first have another id or none in the second, such as {differ[:3]}. Leave "
            "`tokenizer` out of the recipe, so that the run's own is used"
        )


def survey_data(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Check the rows of every split, or a part of a large one. A later start checks that files have not changed.

    Returns:
        "data" of the manifest: for each split its rows, bad rows and fingerprint, and how both were found.

    Raises:
        DataError: a missing, empty or bad split, more lanes than rows, or other content than at the first start. Or
            the metric of `loop.early_stopping` has no value on the rows.
        UsageError: the recipe has no `loop.max_steps`, and the number of training rows is not known.
    """
    earlier = (read_json(run.manifest) or {}).get("data", {})
    roles = roles_of(recipe)
    data: dict[str, Any] = {}
    train: tuple[Survey, Source] | None = None
    for split, source in open_splits(recipe.data, roles).items():
        if split in earlier:
            _check_same(recipe, split, source, earlier[split])
            data[split] = earlier[split]
            continue
        surveyed, data[split] = _surveyed(recipe, split, source)
        if split == "train":
            train = surveyed, source
            _check_length(recipe, data[split])
        elif train is not None:
            if train[0].complete and surveyed.complete:
                data[split]["in_train"] = surveyed.shared_with(train[0])
            if not isinstance(getattr(recipe.data, split), float):
                urls = {shard.urls for shard in train[1].shards}
                data[split]["files_in_train"] = [shard.name for shard in source.shards if shard.urls in urls][:10]
    known = {split: facts for split, facts in data.items() if facts.get("check", "full") == "full"}
    if reason := task_class(recipe).lacking(recipe, known):
        raise no_score(recipe.loop.early_stopping.metric, reason)
    return data


def _surveyed(recipe: Recipe, split: Split, source: Source) -> tuple[Survey, dict[str, Any]]:
    """Return the survey of a split, and its entry in the manifest."""
    large, check = is_large(source), recipe.data.check
    if check == "auto":
        check = "sample" if large else "full"
    of = "listing" if large else "content"
    if check == "full":
        log.info("reading every row of data.%s …", split)
        surveyed = survey(source, recipe.data, roles_of(recipe), split, of)
        return surveyed, {**surveyed.report(), "check": check, "fingerprint_of": of}
    log.info("reading the first rows of %d files of data.%s …", len(source.shards), split)
    data = recipe.data.model_copy(update={"check": check})
    surveyed, _ = survey_part(source, data, roles_of(recipe), split, of)
    facts = {**surveyed.report(), "check": "full" if surveyed.complete else check, "fingerprint_of": of}
    return surveyed, facts


def _check_same(recipe: Recipe, split: str, source: Source, earlier: dict[str, Any]) -> None:
    """Compare the files of a split with those of the first start, in the way that it recorded.

    Raises:
        DataError: they have changed.
    """
    of = earlier.get("fingerprint_of")
    now = fingerprint(source, of)
    if now == earlier["fingerprint"]:
        return
    listed = "names, sizes, and etags or times of modification" if of == "listing" else "content"
    copied = f"if they are a copy, {VERIFY} accepts it where their content is the same; " if of == "listing" else ""
    raise DataError(
        f"data.{split} below data.root={recipe.data.root!r} has changed since this run began (fingerprint of {listed} "
        f"{earlier['fingerprint'][:12]} -> {now[:12]}): {copied}restore the files, or start with --fresh. "
        "--allow-change does not cover other rows: the positions of the lanes belong to these files"
    )


def _check_length(recipe: Recipe, train: dict[str, Any]) -> None:
    """Refuse a training whose end in steps is not known: the learning rate depends on it.

    Raises:
        UsageError: there is no `loop.max_steps`.
    """
    mixed = recipe.data.mix
    rows = Quotas.surveyed(recipe.data, train).expected_rows if mixed else train["rows"]
    if rows is None and recipe.loop.max_steps is None:
        quota = ", or rows_per_epoch of all entries of data.mix" if mixed else ""
        raise UsageError(
            f"loop.max_steps is required: the number of training rows is not known with data.check={train['check']}, "
            f"because the files do not say it (Parquet, Arrow and prepared files do). Set loop.max_steps{quota}, or "
            "set data.check=full to read and count all rows at the first start"
        )


def count_data_tokens(run: RunDir, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    """Add the number of cut rows and the share of unknown tokens to each split of `data`.

    Counts of an earlier start are kept, unless the tokenizer or a length has changed.

    Raises:
        DataError: too many unknown tokens.
    """
    task = make_task(recipe, read_tokenizer(run), data)
    corpus = Corpus(recipe, task)
    of = {
        "tokenizer": " ".join(_tokenizer_fingerprint(run).values()),
        "max_length": recipe.data.max_length,
        "task": recipe.task.model_dump(mode="json"),
    }
    counted = digest(of)
    for split, facts in data.items():
        check = facts.get("check", "full")
        if facts.get("tokens", {}).get("of") != counted and check != "off":
            log.info("counting the tokens of data.%s …", split)
            found = count_tokens(corpus, split, facts["rows"] if check == "full" else None, spread=check == "sample")
            rows = {"rows": found.rows} if check == "sample" else {}
            facts["tokens"] = {"of": counted, **found.report(), **rows}
    return data


def make_tokenizer(run: RunDir, recipe: Recipe, train: Mapping[str, Any]) -> None:
    """Train the tokenizer on a streamed sample of the training rows, unless the run has one.

    Args:
        train: the survey of the training rows. If not all were read, the sample is the first ones of every file.
    """
    if (run.tokenizer / "tokenizer.json").exists():
        return
    if (tokenizer := ready_tokenizer(recipe)) is not None:
        _save_tokenizer(run, tokenizer)
        return
    source, settings = open_split(recipe.data, "train", roles_of(recipe)), recipe.tokenizer_training
    assert source is not None
    assert settings is not None
    log.info("training the tokenizer …")
    texts = training_texts(source, recipe.data, roles_of(recipe), settings.sample_rows, train)
    _save_tokenizer(run, train_tokenizers(texts, settings, recipe.data.max_length))


def ready_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a prepared corpus or a pretrained one. None if the recipe trains one."""
    tokenizer = prepared_tokenizer(recipe)
    if tokenizer is None and recipe.tokenizer_name is not None:
        tokenizer = load_tokenizer(recipe.tokenizer_name, recipe.tokenizer_key)
    return tokenizer


def _save_tokenizer(run: RunDir, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer of a run. One of an earlier start that has trained nothing is replaced."""
    with published(run.tokenizer) as folder:
        save_tokenizer(tokenizer, folder)


def read_tokenizer(run: RunDir) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(run.tokenizer))


def write_manifest(run: RunDir, runtime: Runtime, recipe: Recipe, data: dict[str, Any]) -> None:
    """Versions, command, engine and ranks of this start; earlier starts go under "starts"."""
    dataset = {"name": recipe.data.dataset, "revision": recipe.data.revision} if recipe.data.dataset else None
    start = {
        "versions": _versions(),
        "git_commit": git_commit(),
        "project_commit": commit_of(Path.cwd()),
        "command": shareable(sys.argv),
        "engine": runtime.engine.spec.name,
        "ranks": runtime.world,
        "precision": runtime.engine.precision,
        "devices": _devices(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT"),
    }
    if config := os.environ.get("RANKZERO_CONFIG"):
        start["config"] = shareable(config)
    if own := user_code.facts(recipe.model_dump(mode="json")):
        start["user_code"] = own
    old = read_json(run.manifest) or {}
    earlier = [{key: old.get(key) for key in start}] if old else []
    rest = {
        "data": data,
        **({"dataset": dataset} if dataset else {}),
        "tokenizer": _tokenizer_fingerprint(run),
        "micro_batch_splits": old.get("micro_batch_splits", 1),
        "stages": old.get("stages", {}),
        "starts": [*old.get("starts", []), *earlier],
    }
    write_json(run.manifest, {**old, "format": 1, **start, **rest})


def record_adapter(run: RunDir, model: nn.Module, base: dict[str, Any]) -> None:
    """Write the size of an adapter and what its base is into the manifest."""
    trained, parameters = counts(model)
    facts = {"trained": trained, "parameters": parameters, "base": base}
    write_json(run.manifest, {**(read_json(run.manifest) or {}), "adapter": facts})


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("rankzero", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _devices() -> dict[str, Any]:
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu": cpuinfo("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }


def _tokenizer_fingerprint(run: RunDir) -> dict[str, str]:
    hashes = (file_facts(path)["sha256"] for path in run.tokenizer_files)
    return dict(zip(("sha256", "target_sha256"), hashes, strict=False))

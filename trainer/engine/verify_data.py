"""`rankzero prepare --verify`: compare the content of all files with what a run or a prepared corpus recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.fingerprints import fingerprint
from trainer.data.hub_datasets import pin_dataset, pinned
from trainer.data.root import PREPARED
from trainer.data.sources import Source, open_splits
from trainer.errors import DataError, UsageError
from trainer.files import read_json, write_json
from trainer.recipe import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import roles_of


def verify_run(recipe: Recipe, run: RunDir) -> str:
    """Hash all files of a run's data and compare with its manifest. Return what was found, a line for each split.

    Where the manifest has no hash of the content yet, it is recorded. Where the content agrees and times of
    modification do not, as in a copy, those of the files here are recorded, so that the run can be resumed.

    Raises:
        UsageError: there is no such run, or another process uses it.
        DataError: the content differs, or cannot be compared.
    """
    run.check()
    recorded = (read_json(run.manifest) or {}).get("data", {})
    found = _verify(pin_dataset(run, recipe), recorded, str(run.path))
    with run.locked():
        manifest = read_json(run.manifest) or {}
        for split, facts in found.facts.items():
            manifest["data"][split] |= facts
        write_json(run.manifest, manifest)
    return found.message()


def verify_prepared(recipe: Recipe, folder: Path) -> str:
    """Compare as `verify_run` with what `prepare` recorded about the original files. Nothing is written.

    Raises:
        UsageError: the folder has no prepared corpus.
        DataError: the content differs, or cannot be compared.
    """
    about = read_json(folder / PREPARED)
    if about is None:
        raise UsageError(f"{folder} has no {PREPARED}: give --out DIR of a prepared corpus, or --run DIR of a run")
    recipe = recipe.model_copy(update={"data": pinned(recipe.data)})
    return _verify(recipe, about["splits"], str(folder)).message()


class _Findings:
    """Sentences about the splits, and what is to be recorded about them."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lines: list[str] = []
        self._problems: list[str] = []
        self.facts: dict[str, dict[str, str]] = {}

    def compare(self, split: str, source: Source, earlier: Mapping[str, Any]) -> None:
        """Compare one split with its entry in a manifest."""
        of = earlier.get("fingerprint_of")
        now, content = fingerprint(source, of), fingerprint(source, "content")
        same, files = now == earlier["fingerprint"], f"{len(source.shards):,} files"
        known = earlier.get("content_fingerprint")
        if known is None and (of == "content" or now == content):
            known = earlier["fingerprint"]
        if known is None and same:
            self._lines.append(f"data.{split}: {files} are listed as recorded; SHA-256 of content {content[:16]}")
            self.facts[split] = {"content_fingerprint": content}
        elif known is None:
            self._problems.append(
                f"data.{split}: the listing of {files} differs ({earlier['fingerprint'][:12]} -> {now[:12]}), and no "
                "hash of the content was recorded to compare with"
            )
        elif known != content:
            self._problems.append(f"data.{split}: the content of {files} differs ({known[:12]} -> {content[:12]})")
        else:
            self._lines.append(f"data.{split}: the content of {files} agrees, SHA-256 {content[:16]}")
            if not same:
                self._lines[-1] += "; etags or times of modification differ, as in a copy"
                self.facts[split] = {"fingerprint": now}

    def message(self) -> str:
        """Return the sentences.

        Raises:
            DataError: the files are not those that were recorded.
        """
        if self._problems:
            lines = "\n".join([*self._problems, *self._lines])
            raise DataError(f"the files are not those that {self._where} recorded:\n{lines}\nRestore them")
        return "\n".join([f"the files are those that {self._where} recorded:", *self._lines])


def _verify(recipe: Recipe, recorded: Mapping[str, Any], where: str) -> _Findings:
    findings = _Findings(where)
    sources = open_splits(recipe.data, roles_of(recipe))
    if missing := sorted(recorded.keys() ^ sources.keys()):
        raise UsageError(f"data.{missing[0]}: the recipe and {where} have different splits; give the recipe of {where}")
    for split, source in sources.items():
        findings.compare(split, source, recorded[split])
    findings.message()
    return findings

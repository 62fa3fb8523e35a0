"""Rows of train that were not checked before the training: `data.on_bad_row` is applied when they are read.

The ranks sum up the counts of a step before they make it. So all of them end at the same step with the same message, on
any number of ranks. Rows are counted in the first epoch, or in the first pass over each corpus of a mixture: after it
the counts are those of a complete survey.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from trainer.data.cleaning import BadRow
from trainer.data.left_out import LeftOut
from trainer.data.loader import Loaded
from trainer.data.survey import LISTED, too_many
from trainer.data.survey_counts import EXAMPLES
from trainer.engine.corpus import Corpus
from trainer.engine.progress import Progress
from trainer.engine.runtime import Runtime
from trainer.engine.step import Totals
from trainer.files import read_json, write_json
from trainer.rundir import RunDir

log = logging.getLogger("rankzero")


class UncheckedRows:
    """The counts of one start, on top of those of the checkpoint it resumes. All ranks enter all methods.

    `Progress.unchecked` has used rows, bad rows and their lines, which are the same on all ranks. Reasons and examples
    are added to it when they are gathered for a checkpoint.
    """

    def __init__(self, runtime: Runtime, corpus: Corpus, progress: Progress) -> None:
        self.enabled = "train" in corpus.unchecked
        self._runtime, self._corpus, self._progress = runtime, corpus, progress
        self._before = dict(progress.unchecked)
        self._own = LeftOut()  # of this rank's steps since the start

    @property
    def _counting(self) -> bool:
        """Whether rows of this epoch count. `Corpus` selects those of a mixture."""
        return bool(self._corpus.recipe.data.mix) or not self._progress.epoch

    def problem(self, batches: Sequence[Loaded | None], totals: Totals) -> str | None:
        """Return why the run ends before a step with these rows, or at the end of an epoch. None if it does not."""
        if not self.enabled:
            return None
        data = self._corpus.recipe.data
        if totals.bad and data.on_bad_row == "fail":
            return self._first_bad(batches)
        counts = self._after(totals)
        complete = not totals.lanes  # the epoch is over
        if not self._counting or not too_many(counts["lines"], counts["rows"], data, complete=complete):
            return None
        found = self._runtime.broadcast(self._gathered(self._own + _left(batches)))
        read = counts["rows"] + counts["lines"]
        reasons = "".join(f"\n  {n:,} x {reason}" for reason, n in Counter(found["reasons"]).most_common(LISTED))
        examples = "".join(f"\n  {example}" for example in found["examples"])
        return (
            f"data.train: {counts['lines']:,} of the first {read:,} lines that were read are of bad rows, more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g}:{reasons}\nThe first ones:{examples}"
        )

    def add(self, batches: Sequence[Loaded | None], totals: Totals) -> None:
        """Count the rows of a step, or those that are left at the end of an epoch."""
        if not self.enabled:
            return
        self._progress.left_out += totals.left_out
        if self._counting:
            self._own += _left(batches)
            self._progress.unchecked |= self._after(totals)

    def collect(self) -> dict[str, Any]:
        """Return the counts for a checkpoint, on rank zero."""
        if not self.enabled:
            return {}
        return self._progress.unchecked | self._gathered(self._own)

    def record(self, run: RunDir, counts: dict[str, Any]) -> None:
        """Write the counts into the manifest. Only rank zero calls this."""
        manifest = read_json(run.manifest) or {}
        if counts and manifest.get("data", {}).get("train", {}).get("while_training") != counts:
            manifest["data"]["train"]["while_training"] = counts
            write_json(run.manifest, manifest)

    def _after(self, totals: Totals) -> dict[str, int]:
        old, new = self._progress.unchecked, {"rows": totals.used, "bad": totals.bad, "lines": totals.lines}
        return {name: old.get(name, 0) + count for name, count in new.items()}

    def _first_bad(self, batches: Sequence[Loaded | None]) -> str:
        gathered = self._runtime.gather(_left(batches).first)
        first: BadRow = self._runtime.broadcast(
            min((bad for rank in gathered or [] for bad in rank), key=_place, default=None)
        )
        fraction = self._corpus.recipe.data.max_bad_fraction
        return (
            f"data.train: {self._describe(first)}. Fix the row and start a new run with --fresh, or leave out up to "
            f"data.max_bad_fraction={fraction:g} of all rows: resume with data.on_bad_row=skip "
            "--allow-change data.on_bad_row"
        )

    def _gathered(self, own: LeftOut) -> dict[str, Any]:
        """Return the reasons and first bad rows of all ranks and of the starts before, on rank zero."""
        gathered = self._runtime.gather(own)
        if gathered is None:
            return {}
        everywhere = reduce(add, gathered)
        reasons = Counter(self._before.get("reasons", {})) + everywhere.reasons
        found = dict(zip(map(tuple, self._before.get("places", [])), self._before.get("examples", []), strict=True))
        found |= {bad.id: self._describe(bad) for bad in everywhere.first}
        places = sorted(found)[:EXAMPLES]
        examples = [found[place] for place in places]
        return {"reasons": dict(sorted(reasons.items())), "examples": examples, "places": list(map(list, places))}

    def _describe(self, bad: BadRow) -> str:
        return bad.describe(self._corpus.train.shards[bad.id[0]].name)


def _place(bad: BadRow) -> tuple[int, int]:
    return bad.id


def _left(batches: Sequence[Loaded | None]) -> LeftOut:
    parts = [loaded.left for loaded in batches if loaded is not None and loaded.left is not None]
    return reduce(add, parts) if parts else LeftOut()

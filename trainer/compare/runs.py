"""The evaluated rows of several runs, side by side. Runs that cannot be compared are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import Record, in_corpus_order
from trainer.evaluation.resampling import Resampled
from trainer.report.run_files import read_records
from trainer.report.task_report import TaskReport, open_report
from trainer.rundir import RunDir

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Compared:
    """A run, its report, and its records in the order of the corpus."""

    name: str
    report: TaskReport
    scores: Resampled
    inputs: list[str]
    row_scores: list[float]
    tokens: int

    @property
    def records(self) -> list[Record]:
        return self.report.records


def open_runs(paths: Sequence[Path], split: str, *, common: bool = False) -> list[Compared]:
    """Open runs that were evaluated on the same rows.

    Args:
        common: compare on the rows that all runs have, and leave out others.

    Raises:
        UsageError: fewer than two runs, a path that is not a run, or runs of different tasks; names what differs.
        DataError: a split that was not evaluated, or other rows or targets; names the first.
    """
    if len(paths) < 2:
        raise UsageError(f"compare needs two runs or more, not {len(paths)}")
    for path in paths:
        RunDir(path).check()
    _check_evaluated(paths, split)
    reports = [open_report(RunDir(path), split, with_records=False) for path in paths]
    _check_task(reports)
    ids = [{record["id"] for record in read_records(report.run, split)} for report in reports]
    shared = set.intersection(*ids)
    if any(len(own) > len(shared) for own in ids) and not common:
        raise _other_rows(reports, ids, shared)
    if not shared:
        raise DataError(f"no row of {split} was evaluated in all of {', '.join(map(str, paths))}")
    return _opened(reports, _names(paths), shared)


def _opened(reports: Sequence[TaskReport], names: Sequence[str], shared: set[str]) -> list[Compared]:
    found: list[Compared] = []
    for name, report in zip(names, reports, strict=True):
        raw = in_corpus_order(row for row in read_records(report.run, report.split) if row["id"] in shared)
        if found:
            _check_targets(found[0], name, [report.read_record(row) for row in raw])
        report.records.extend(map(report.read_record, raw))
        tokens = sum(row.get("tokens", 1) for row in raw)
        inputs = [str(row["input"]) for row in raw]
        row_scores = list(map(report.row_score, report.records))
        found.append(Compared(name, report, report.resampled(raw), inputs, row_scores, tokens))
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or the paths where two have the same name. Trials of a sweep have numbers."""
    names = [
        f"{path.parent.parent.name}/{path.name}" if path.name.isdigit() else path.name
        for path in (path.resolve() for path in paths)
    ]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _check_evaluated(paths: Sequence[Path], split: str) -> None:
    """Raise DataError if a run was not evaluated on the split: which, the commands, and a split that all have."""
    lacking = [path for path in paths if not _evaluated(path, split)]
    if not lacking:
        return
    other = next((one for one in SPLITS if all(_evaluated(path, one) for path in paths)), None)
    instead = f"\nAll were evaluated on {other}: compare with --split {other}" if other else ""
    commands = "".join(f"\n  rankzero evaluate {path} --split {split}" for path in dict.fromkeys(lacking))
    raise DataError(
        f"not evaluated on {split}, so there are no rows to compare: {', '.join(map(str, lacking))}. Evaluate first:"
        f"{commands}{instead}"
    )


def _evaluated(path: Path, split: str) -> bool:
    return (RunDir(path).evaluation(split) / "predictions.jsonl").is_file()


def _check_task(reports: Sequence[TaskReport]) -> None:
    first = reports[0].compared()
    for report in reports[1:]:
        own = report.compared()
        for key in {**first, **own}:
            if first.get(key) != own.get(key):
                raise UsageError(
                    f"{reports[0].run.path} and {report.run.path} cannot be compared: {key} is "
                    f"{_shown(first.get(key))} in the first and {_shown(own.get(key))} in the second"
                )


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else repr(value)


def _other_rows(reports: Sequence[TaskReport], ids: Sequence[set[str]], shared: set[str]) -> DataError:
    lines = []
    for report, own in zip(reports, ids, strict=True):
        if more := sorted(own - shared):
            lines.append(f"\n  {report.run.path}: {len(more):,} rows that not all have, such as {more[0]}")
    return DataError(
        f"the runs were evaluated on different rows of {reports[0].split}:{''.join(lines)}\nEvaluate them on the same "
        f"rows (data.{reports[0].split} and evaluation.max_rows decide), or compare the {len(shared):,} rows that all "
        "have with --common"
    )


def _check_targets(first: Compared, name: str, records: Sequence[Record]) -> None:
    for one, other in zip(first.records, records, strict=True):
        if one["target"] != other["target"]:
            raise DataError(
                f"row {one['id']!r} has the target {str(one['target'])[:80]!r} in {first.name} and "
                f"{str(other['target'])[:80]!r} in {name}: the runs were evaluated on different data"
            )


def _trained_on(run: Compared) -> Any:
    return run.report.manifest.get("data", {}).get("train", {}).get("fingerprint")


def notes(runs: Sequence[Compared]) -> Iterator[str]:
    """Yield sentences about what differs between the runs besides their predictions."""
    first = runs[0]
    for run in runs[1:]:
        if _trained_on(first) != _trained_on(run):
            yield f"{run.name} and {first.name} were trained on different rows."
        other = sum(a != b for a, b in zip_longest(first.inputs, run.inputs))
        if other:
            yield (
                f"The inputs of {other:,} rows differ between {first.name} and {run.name}: their cleaning "
                "(data.cleaning) differs."
            )
        if run.tokens != first.tokens:
            yield (
                f"{run.name} has {run.tokens:,} target tokens and {first.name} {first.tokens:,}, so their losses and "
                "perplexities of a token cannot be compared."
            )

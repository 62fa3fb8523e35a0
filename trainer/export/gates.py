"""The gates: an artifact is published only after it has been run against the trained weights and agrees with them.

gate.json: {"artifact", "passed", "failed": [names], "checks": {name: {"passed", …numbers}}, "worst_rows": […], …}. A
check that only reports has no limit and is always passed. What is cheap comes first; the whole split is run only when
that has passed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import Preempted
from trainer.export.fresh import in_fresh_process
from trainer.export.rows import FEW, ODD, Row, Rows, Say, artifact_logits, as_artifact, spread, torch_logits
from trainer.export.run import Artifact, load
from trainer.sections import GatesConfig
from trainer.tasks.base import Record

Check = dict[str, Any]
BATCHES = (1, 2, 5, 8, 16)  # rows that are run together, in turn
CONFIDENCE = 1e-3  # a probability from another process, or from the weights where they are not asked for logits
HUGE = 1e30
SHOWN = 10  # rows that differ most
CUT = 100  # characters of a row that are shown


class Gate:
    """One artifact's proof."""

    def __init__(self, name: str, folder: Path, rows: Rows, answered: Sequence[Row], say: Say) -> None:
        """
        Args:
            name: onnx, int8 or bf16: which limits hold.
            folder: the artifact, complete.
            rows: with the task and the trained model.
            answered: every row of the split, with what the weights answer.
            say: told how far it is.
        """
        self.name, self.folder, self.rows, self.answered, self.say = name, folder, rows, answered, say
        self.task = rows.task
        self.limits: GatesConfig = rows.task.recipe.export.gates
        self.exact = name == "onnx"
        self.worst: list[Record] = []

    def verdict(self) -> Record:
        """Runs the checks; never raises because of the artifact, but where the run is told to stop."""
        checks: dict[str, Check] = {}
        for name, check in self.steps().items():
            checks[name] = _guarded(check)
            if not checks[name]["passed"]:
                break
        else:
            checks |= self.whole_split()
        failed = [name for name, check in checks.items() if not check["passed"]]
        return {
            "artifact": self.name,
            "passed": not failed,
            "failed": failed,
            "split": self.rows.split,
            "rows": len(self.answered),
            "checks": checks,
            "worst_rows": self.worst[:SHOWN],
        }

    # -- what is cheap -------------------------------------------------------------------------------------------------

    def steps(self) -> dict[str, Callable[[], Check]]:
        return {"loads": self.loads, "dynamic": self.dynamic, "inputs": self.inputs, "logits": self.logits,
                "fresh_process": self.fresh_process}  # fmt: skip

    def loads(self) -> Check:
        self.artifact: Artifact = load(self.folder)
        sizes = {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.onnx"))}
        return {"passed": True, "bytes": sizes}

    def dynamic(self) -> Check:
        """Batch and lengths are free, and ids and masks int64."""
        wrong, found = [], {}
        for graph, session in self.artifact.sessions.items():
            for put in session.get_inputs():
                found[f"{graph}.{put.name}"] = [put.type, *put.shape]
                free = [*put.shape[:2]] if len(put.shape) == 2 else [*put.shape[::2]][:2]
                kind = "tensor(int64)" if len(put.shape) < 3 else "tensor(float)"
                if put.type != kind or (len(put.shape) > 1 and not all(isinstance(n, str) for n in free)):
                    wrong.append(f"{graph}.{put.name}")
        return {"passed": not wrong, "wrong": wrong, "inputs": found}

    def inputs(self) -> Check:
        """run.py makes the same token ids of every row as the task does."""
        reader = load(self.folder)
        if self.rows.prepared:  # cleaned already
            reader.settings["cleaning"] = []
        wrong = [row for row in self.answered if tuple(reader.encode(row.sides)) != as_artifact(row.example)]
        odd = [line for line in self._odd() if not self._reads_alike(line)]
        self.worst = [*({"input": line[:CUT]} for line in odd), *({"id": r.id, "input": r.input[:CUT]} for r in wrong)]
        return {"passed": not self.worst, "differ": len(wrong), "limit": 0, "rows": len(self.answered),
                "odd_lines_differ": len(odd), "odd_lines": len(self._odd())}  # fmt: skip

    def _odd(self) -> list[str]:
        """Odd lines, as pairs where the task has them; without those that have no token for the model to read."""
        pair = self.artifact.settings["pair"]
        lines = [f"{a}\t{b}" for a, b in zip(ODD, reversed(ODD), strict=True)] if pair else list(ODD)
        return [line for line in lines if self.artifact.encode(self.artifact.sides(line))[0]]

    def _reads_alike(self, line: str) -> bool:
        return tuple(self.artifact.encode(self.artifact.sides(line))) == as_artifact(self.task.encode_lines([line])[0])

    def logits(self) -> Check:
        """Rows of all lengths in batches of several sizes; and each of them alone."""
        chosen: list[Row] = spread(self.answered, lambda row: self.task.length(row.example), self.limits.rows)
        differences, neighbours = [], []
        for batch in _batches(chosen):
            examples = [row.example for row in batch]
            found = artifact_logits(self.artifact, examples)
            ours = torch_logits(self.task, self.rows.model, examples)
            differences += [_gap(a, b) for a, b in zip(found, ours, strict=True)]
            alone = [artifact_logits(self.artifact, [example])[0] for example in examples]
            neighbours += [_gap(a, b) for a, b in zip(found, alone, strict=True)]
        order = np.argsort([-d for d in differences], kind="stable")
        self.worst = [{"id": chosen[i].id, "input": chosen[i].input[:CUT], "difference": differences[i]} for i in order]
        limit = self.limits.logits if self.exact else None
        lengths = [self.task.length(row.example) for row in chosen]
        return {
            "passed": limit is None or max(differences) <= limit,
            "largest_difference": max(differences),
            "mean_of_largest": float(np.mean(differences)),
            "limit": limit,
            "batch_neighbours": max(neighbours),  # the same row alone and in a batch
            "rows": len(chosen),
            "batch_sizes": sorted({len(batch) for batch in _batches(chosen)}),
            "lengths": [min(lengths), max(lengths)],
        }

    def fresh_process(self) -> Check:
        """run.py where nothing but onnxruntime, tokenizers and numpy can be imported, on odd lines and real ones."""
        lines = [*self._odd(), *(row.line for row in spread(self.answered, lambda row: len(row.line), len(BATCHES)))]
        found, seconds = in_fresh_process(self.folder, lines)
        here = list(self.artifact(lines))
        wrong = [line for line, a, b in zip(lines, found, here, strict=True) if not _same(a, b)]
        self.worst = [{"input": line[:CUT]} for line in wrong]
        return {"passed": not wrong, "differ": len(wrong), "lines": len(lines), "seconds": round(seconds, 2)}

    # -- the whole split -----------------------------------------------------------------------------------------------

    def whole_split(self) -> dict[str, Check]:
        try:
            found = self._answers()
        except Preempted:
            raise
        except Exception as error:  # whatever onnxruntime meets in a graph
            return {"whole_split": {"passed": False, "error": _reason(error)}}
        if self.task.kind == "classification":
            return self._classes(found)
        return self._translations(found)

    def _answers(self) -> list[Record]:
        """In the order of `answered`."""
        examples: list[Any] = [as_artifact(row.example) for row in self.answered]
        found: dict[int, Record] = {}
        alone = self.artifact.settings["one_by_one"]
        for batch in self.artifact.batches([len(example[0]) for example in examples], alone):
            found |= zip(batch, self.artifact.predict([examples[i] for i in batch]), strict=True)
            self.say(f"{self.name} on {self.rows.split}: {len(found):,} of {len(examples):,} rows")
        return [found[i] for i in range(len(examples))]

    def _classes(self, found: Sequence[Record]) -> dict[str, Check]:
        gaps, sure, other = [], 0, 0
        for row, made in zip(self.answered, found, strict=True):
            first, second = sorted(row.answer["probabilities"].values(), reverse=True)[:2]
            certain, differs = first - second > self.limits.margin, made["label"] != row.answer["label"]
            sure, other = sure + certain, other + (certain and differs)
            gaps.append(_gap(made["probabilities"][row.answer["label"]], row.answer["confidence"]))
        self._show(found, gaps, "label")
        differ = [made["label"] != row.answer["label"] for row, made in zip(self.answered, found, strict=True)]
        classes = {"passed": not (self.exact and other), "differ": sum(differ), "differ_beyond_margin": other,
                   "rows_beyond_margin": sure, "margin": self.limits.margin, "limit": 0 if self.exact else None,
                   "largest_probability_difference": max(gaps)}  # fmt: skip
        hits = [
            [float(made["label"] == row.target), float(row.answer["label"] == row.target)]
            for row, made in zip(self.answered, found, strict=True)
        ]
        score = lambda sums: (sums[0] - sums[1]) / sums[2]  # noqa: E731
        totals = np.sum(hits, axis=0) / len(hits)
        limit = None if self.exact else self.limits.int8_accuracy
        return {
            "classes": classes,
            "accuracy": self._paired(totals, [[*pair, 1.0] for pair in hits], score, limit),
        }

    def _translations(self, found: Sequence[Record]) -> dict[str, Check]:
        from sacrebleu.metrics import BLEU

        made = [record["prediction"] for record in found]
        ours = [row.answer["prediction"] for row in self.answered]
        gaps = [
            1 - difflib.SequenceMatcher(None, a.split(), b.split()).ratio() if a != b else 0.0
            for a, b in zip(made, ours, strict=True)
        ]
        self._show(found, gaps, "prediction")
        same = sum(a == b for a, b in zip(made, ours, strict=True)) / len(made)
        scorer, targets = BLEU(), [row.target for row in self.answered]
        # sacreBLEU's inner methods, as in trainer.evaluation.metrics: both systems' statistics of the same rows
        tables = [np.array(scorer._extract_corpus_statistics(texts, [targets]), float) for texts in (made, ours)]
        half = tables[0].shape[1]

        def bleu(sums: Sequence[float]) -> float:
            return float(scorer._compute_score_from_stats(list(sums)).score)

        totals = [bleu(table.sum(0).tolist()) for table in tables]
        limit = self.limits.bleu if self.exact else self.limits.int8_bleu
        paired = self._paired(totals, np.concatenate(tables, 1), lambda s: bleu(s[:half]) - bleu(s[half:]), limit)
        least = self.limits.identical if self.exact else None
        scores = [_gap(a["score"], row.answer["score"]) for a, row in zip(found, self.answered, strict=True)]
        return {
            "identical": {"passed": least is None or same >= least, "share": same, "limit": least,
                          "largest_score_difference": max(scores)},
            "bleu": paired,
        }  # fmt: skip

    def _paired(self, totals: Any, table: Any, score: Callable[[Sequence[float]], float], limit: float | None) -> Check:
        """Artifact against weights on the same rows; the point estimate decides."""
        from trainer.evaluation.metrics import bootstrap_interval

        artifact, reference = map(float, totals)
        fallen = abs(artifact - reference) if self.exact else reference - artifact
        check = {
            "passed": limit is None or fallen <= limit + 1e-9,  # 0.905 - 0.9 is a little more than 0.005
            "artifact": artifact,
            "reference": reference,
            "difference": artifact - reference,
            "difference_ci95": bootstrap_interval(table, score, self.task.recipe.evaluation.bootstrap),
            "limit": limit,
        }
        few = len(self.answered)
        return check | ({"note": f"only {few:,} rows (under {FEW:,}): the interval is wide"} if few < FEW else {})

    def _show(self, found: Sequence[Record], gaps: Sequence[float], key: str) -> None:
        order = [i for i in np.argsort([-gap for gap in gaps], kind="stable")[:SHOWN].tolist() if gaps[i] > 0]
        self.worst = [
            {"id": self.answered[i].id, "input": self.answered[i].input[:CUT], "difference": gaps[i],
             "reference": self.answered[i].answer[key], "artifact": found[i][key]}
            for i in order
        ]  # fmt: skip


def _gap(a: Any, b: Any) -> float:
    """The largest difference; a number that JSON can hold even if there are NaN and Inf."""
    return float(np.nan_to_num(np.abs(np.asarray(a) - b), nan=HUGE, posinf=HUGE).max())


def _batches(rows: Sequence[Any]) -> Iterator[list[Any]]:
    start = turn = 0
    while start < len(rows):
        size = BATCHES[turn % len(BATCHES)]
        yield list(rows[start : start + size])
        start, turn = start + size, turn + 1


def _same(a: Record, b: Record) -> bool:
    """Whether two records of the same line agree: words exactly, numbers to 1e-3."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b if isinstance(a, str) else abs(a - b) <= CONFIDENCE


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Preempted:  # is no verdict
        raise
    except Exception as error:  # whatever onnxruntime meets in a graph
        return {"passed": False, "error": _reason(error)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:500]

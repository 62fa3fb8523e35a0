"""Report and model card of translators: rows by sentence-level chrF (Popović 2015) and by length ratio."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.target_tokenizer import TARGET
from trainer.evaluation.metrics import resampled_translation
from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.report.rows import length_buckets, shared_rows, words
from trainer.report.task_report import Measure, Section, TaskReport, write_errors

GENERATE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}"){more}
inputs = tokenizer([{text}], padding=True, truncation=True, return_tensors="pt")
print({target}.batch_decode(model.generate(**inputs), skip_special_tokens=True))"""
# With separate vocabularies. A pipeline has one tokenizer and would decode with the wrong one.
TARGET_TOKENIZER = """
target_tokenizer = AutoTokenizer.from_pretrained("{path}", subfolder="target")  # pipeline() would use the first one"""
SENTENCE_EDGES = (5, 8, 11, 14, 18, 25, 40)  # words of a sentence; a bucket ends with its edge
WORST, BEST, OUTLIERS, LISTED = 8, 6, 5, 10  # rows in the page, and in errors.json


class TranslationReport(TaskReport):
    """Also of other tasks whose rows are a source and a target text."""

    folders = (Path(__file__).parent,)
    auto_class = "AutoModelForSeq2SeqLM"
    pipeline = "translation"
    beam_search = True
    units = "source sentences"

    rows = cached_property(lambda self: scored_rows(self.records))
    _summary = cached_property(lambda self: summarize(self.records, self.rows))

    def usage(self, path: str, pooling: str | None) -> str:
        prefix = str(self.recipe["task"].get("prefix") or "")
        target, more = "tokenizer", ""
        if (self.run.model / TARGET).is_dir():
            target, more = "target_tokenizer", TARGET_TOKENIZER.format(path=path)
        text = json.dumps(f"{prefix}A text.", ensure_ascii=False)
        return GENERATE.format(path=path, text=text, target=target, more=more)

    def files(self) -> list[Callable[[], list[Path]]]:
        return [self._write_errors]

    def _write_errors(self) -> list[Path]:
        different = [row for row in self.rows if row["prediction"] != row["target"]]
        return write_errors(self.folder, different, self._summary)

    def sections(self, with_rows: bool) -> list[Section]:
        worst = self.rows[:WORST]
        others = [row for row in length_outliers(self.rows, OUTLIERS + WORST) if row not in worst]
        shown = (worst, others[:OUTLIERS], best_rows(self.rows, BEST)) if with_rows else ((), (), ())
        groups = [[*map(_sample, rows)] for rows in shown]
        data = {**self._summary, "groups": groups, "shared": shared_rows(self)}
        return [Section("samples", "Translations worth reading", "translations.html.jinja", data)]

    def measure(self) -> Measure:
        return mean_chrf(self.rows)

    def resampled(self, records: Iterable[Record]) -> Resampled:
        tokenizer = self.recipe.get("evaluation", {}).get("bleu_tokenizer", "auto")  # not in earlier runs
        return resampled_translation(records, self.recipe["task"].get("trg_language"), tokenizer)

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "task.trg_language": self.recipe["task"].get("trg_language")}

    def goal(self) -> tuple[str, str]:
        task = self.recipe["task"]
        languages = task.get("src_language", "one language"), task.get("trg_language", "another")
        return f"translate {languages[0]} to {languages[1]}", "sentence pairs"


def scored_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every row, the worst translation first: id, text, target, prediction, score, loss, words, chrf, length_ratio.

    chrf is sacreBLEU's chrF2 of the one sentence, 0 to 100; length_ratio is words of the translation over words of the
    reference, null where the reference is empty. Ties keep the order of the corpus.
    """
    from sacrebleu.metrics import CHRF

    metric, rows = CHRF(), []
    for record in records:
        target, prediction = record["target"], record["prediction"]
        reference = len(target.split())
        rows.append(
            {
                "id": record["id"],
                "text": record["input"],
                "target": target,
                "prediction": prediction,
                "score": record.get("score"),
                "loss": record["loss"],
                "words": words(record),
                "chrf": float(metric.sentence_score(prediction, [target]).score),
                "length_ratio": len(prediction.split()) / reference if reference else None,
            }
        )
    return sorted(rows, key=lambda row: row["chrf"])


def best_rows(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The best translations, of equally good ones the longest: a short sentence is easily right."""
    return sorted(rows, key=lambda row: (-row["chrf"], -row["words"]))[:count]


def length_outliers(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows whose length ratio is farthest from 1 (half is as far as double)."""
    known = [row for row in rows if row["length_ratio"] is not None]
    return sorted(known, key=lambda row: -abs(np.log(max(row["length_ratio"], 1e-3))))[:count]


def mean_chrf(rows: Sequence[dict[str, Any]]) -> Measure:
    """The mean sentence chrF of some of these rows."""
    chrf = {row["id"]: row["chrf"] for row in rows}
    score: Callable[[Sequence[Record]], float] = lambda some: float(np.mean([chrf[row["id"]] for row in some]))  # noqa: E731
    return Measure("mean_chrf", "Mean chrF of the sentences", "{:.1f}", score)


def summarize(records: Sequence[Record], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many translations equal the reference or are empty, chrF by length, and the spread of length ratios."""
    ratios, score = [row["length_ratio"] for row in rows if row["length_ratio"] is not None], mean_chrf(rows).score
    spread = np.quantile(ratios, [0.05, 0.5, 0.95]).tolist() if ratios else [None] * 3
    return {
        "rows": len(rows),
        "identical": sum(row["prediction"] == row["target"] for row in rows),
        "empty": sum(not row["prediction"].strip() for row in rows),
        "mean_chrf": score(rows),
        "length_ratio": dict(zip(("p5", "median", "p95"), spread, strict=True)),
        "by_length": [
            {**bucket, "rows": len(found), "chrf": score(found)}
            for bucket, found in length_buckets(records, SENTENCE_EDGES)
        ],
        "best": [row["id"] for row in best_rows(rows, LISTED)],
        "worst": [row["id"] for row in rows[:LISTED]],
        "length_outliers": [row["id"] for row in length_outliers(rows, LISTED)],
    }


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    reference, translation = word_diff(row["target"], row["prediction"])
    ratio = f" · length ratio {row['length_ratio']:.2f}" if row["length_ratio"] is not None else ""
    lines = [("Source", [(row["text"], "")]), ("Reference", reference), ("Translation", translation)]
    return {"lines": lines, "note": f"{row['id']} · chrF {row['chrf']:.1f}{ratio}"}


def word_diff(target: str, prediction: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Both texts as runs of words; "del" marks those that the prediction lacks, "ins" those that it adds."""
    left, right = target.split(), prediction.split()
    sides: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for tag, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, part, mark in zip(sides, (left[a:b], right[c:d]), ("del", "ins"), strict=True):
            if part:
                side.append((" ".join(part), "" if tag == "equal" else mark))
    return sides

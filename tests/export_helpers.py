"""TrainedRun runs of tiny untrained models, and their ONNX artifacts: what the export is tested on."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import review_helpers
import torch
from conftest import ENDS, NOUNS, VERBS, WORDS, tiny_recipe

from trainer.data.target_tokenizer import save_tokenizer
from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.engine.corpus import Corpus
from trainer.engine.trained_run import TrainedRun, build_model, write_evaluation
from trainer.export import bench_runner, program
from trainer.export.artifact import Artifact
from trainer.export.benchmark import bench_run
from trainer.export.onnx import write_artifact
from trainer.export.rows import Row, Rows
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task
from trainer.tasks.classification.export import ClassificationExport
from trainer.tasks.classification.multi_label.export import MultiLabelExport
from trainer.tasks.classification.regression.export import RegressionExport
from trainer.tasks.language_modeling.export import CausalExport
from trainer.tasks.text_to_text.export import TextToTextExport
from trainer.tasks.translation.export import TranslationExport

STEPS = 60
EXPORT = {"model": False, "onnx": True, "int8": True, "bf16": True}  # bf16 whatever the processor
# As people write: the gate's own odd lines, and some that only a test needs.
LINES = [
    "",
    "x",
    " ",
    "word " * 600,
    "😀 nice",
    "<b>good</b><br />&amp; bad",
    f"was{chr(0x85)}good",
    "\u2028",
    "good film",
]


EXPORTERS: dict[str, Any] = {
    exporter.program_name: exporter
    for exporter in (
        ClassificationExport,
        MultiLabelExport,
        RegressionExport,
        CausalExport,
        TextToTextExport,
        TranslationExport,
    )
}


def load(folder: Path) -> Artifact:
    """The artifact in a folder, whatever its task."""
    name = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["program"]
    return program.load(EXPORTERS[name], folder)


@dataclass(frozen=True)
class Exported:
    """A finished run and its fp32 artifact, without a gate.json. Read only."""

    run: RunDir
    finished: TrainedRun
    folder: Path

    @property
    def artifact(self) -> Artifact:
        return load(self.folder)

    @property
    def export(self) -> Any:
        return self.finished.task.exporter()(self.finished.task)

    def rows(self) -> tuple[Rows, list[Row]]:
        """The rows that decide, with what the weights say."""
        rows = Rows(self.finished.task, self.finished.model)
        return rows, rows.all(rows.answers(lambda text: None))


def finished_run(path: Path, recipe: Any, tokenizer: Any, change: Any) -> RunDir:
    """A run directory as a training leaves it, of the weights that `change(task, model)` makes of the first ones."""
    run = RunDir(path)
    run.create()
    run.recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    save_tokenizer(tokenizer, run.tokenizer)
    task = make_task(recipe, tokenizer)
    model = build_model(task)
    change(task, model)
    run.model.mkdir()
    task.save_model(model, run.model)
    return run


def decided(task: Any, model: Any) -> None:
    """Logits far enough apart for a class to be one."""
    (model.head if hasattr(model, "head") else model.classifier).weight.data.mul_(40)


def spread(task: Any, model: Any) -> None:
    """Make weights so large that outputs depend on every part of the model."""
    torch.manual_seed(1)
    if isinstance(getattr(model, "head", getattr(model, "classifier", None)), torch.nn.Linear):
        decided(task, model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)


def write_answers(run: RunDir, made: Exported) -> None:
    """evaluation/test/ as an evaluation leaves it: of each row what the weights say."""
    rows = made.rows()[1]
    records = [
        {"id": row.id, "input": row.input, "target": row.target, "loss": 1.0, "tokens": 1, **row.answer,
         "prediction": row.answer.get("label", row.answer.get("prediction", ""))}
        for row in rows
    ]  # fmt: skip
    write_evaluation(run, "test", {"rows": len(rows)}, records)


def benchmark_of(run: RunDir, made: Exported, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `rankzero bench` measures of a published run, in two rounds, on the inputs of its rows."""
    write_answers(run, made)
    for name in ("ROUNDS", "REQUESTS"):
        patch.setattr(bench_runner, name, 2)
    return bench_run(run, seconds=180.0, threads=1)


def trained(task: Any, model: Any) -> None:
    """A few dozen steps, so that sentences differ and end."""
    examples = [
        example for window in Corpus(task.recipe, task).batches("train") for b in window for example in b.examples
    ]
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=5e-3), random.Random(2)
    for _ in range(STEPS):
        batch = task.collate(draw.sample(examples, 16))
        (task.loss(model, batch) / task.targets(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


def exported(run: RunDir, *overrides: str) -> Exported:
    finished = TrainedRun.open(run, Recipe, overrides)
    folder = run.path / "artifact"
    folder.mkdir()
    made = Exported(run, finished, folder)
    write_artifact(made.export, finished.model, folder)
    return made


def encoder_run(root: Path, reviews: Path, model: dict[str, Any] | None = None, **task: Any) -> RunDir:
    """An own encoder that pools by the mean, on reviews."""
    recipe = review_helpers.recipe(
        reviews, model, export=EXPORT, task={"truncation": "head_tail", **task}, evaluation={"bootstrap": 50},
        data={"cleaning": ["unescape_html", "strip_tags", "replace_urls", "normalize_unicode", "fold_whitespace"]},
    )  # fmt: skip
    if model is None:  # half as long to export
        recipe = Recipe.parse(recipe.model_dump(mode="json"), ["model.layers=1"])
    config = recipe.tokenizer.train
    words = [" ".join(review_helpers.GOOD + review_helpers.BAD + review_helpers.OTHER)]
    tokenizer = train_tokenizer(words, config, 32) if config else load_tokenizer(recipe.tokenizer_name)
    return finished_run(root / "run", recipe, tokenizer, decided)


def pair_run(root: Path, bert: Path) -> RunDir:
    """A pretrained BERT with its own head, on pairs of texts."""
    draw = random.Random(5)
    root.mkdir(exist_ok=True)
    for name, count in (("train", 20), ("test", 30)):
        seconds = ("good\tfilm", "a dull <i>plot</i>\n")
        rows = [{**review_helpers.review(draw), "text_pair": draw.choice(seconds)} for _ in range(count)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return encoder_run(root, root, {"kind": "pretrained", "name": str(bert)}, pair=True)


def translation_run(root: Path, corpus: Path) -> RunDir:
    """An encoder-decoder on German sentences."""
    values = tiny_recipe(corpus, export=EXPORT, evaluation={"beam_size": 3, "max_rows": 30, "tokens_per_batch": 200})
    recipe = Recipe.parse(values)
    words = [" ".join(part.replace(":", " ") for part in NOUNS + VERBS + WORDS + ENDS)]
    return finished_run(root / "run", recipe, train_tokenizer(words * 2, recipe.tokenizer.train, 40), trained)

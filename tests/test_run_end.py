"""The end of a training: early stopping and its record, the numbers of the last line, warnings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
from conftest import tiny_recipe
from processes import read_lines, status
from review_helpers import recipe as review_recipe
from review_helpers import written
from slow import slow_except

from trainer.data.lane_plan import Bookmark
from trainer.engine import reporter as reporter_module
from trainer.engine.evaluate import _meaning, constant
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.run_checks import _entropy, _few_steps, _guessing, _warm_up
from trainer.engine.utilization import Utilization, Work
from trainer.recipe.loop_sections import EarlyStopping
from trainer.recipe.sections import OptimConfig
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.base import IGNORED, Task

MODEL = {"kind": "encoder", "d_model": 16, "layers": 1, "heads": 2, "feed_forward": 32}
WORDS = {"train": {"kind": "wordpiece", "vocab_size": 90}}


# -- numbers of a line -------------------------------------------------------------------------------------------------


def test_the_epoch_of_the_last_step_is_counted_from_0() -> None:
    progress = Progress.start(2)
    assert progress.last_epoch == 0, "before the first step"
    for epoch in range(3):
        progress.marks[0] = Bookmark(epoch, start=16)
        assert progress.last_epoch == epoch
        progress.next_epoch()
        assert progress.last_epoch == epoch, "an evaluation after the epoch's last step belongs to it"
    restored = Progress.from_json(json.loads(json.dumps(progress.to_json(progress.marks))))
    assert restored.last_epoch == 2


def test_an_evaluation_takes_nothing_from_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and padding since the line before; the seconds of the evaluation are left out."""
    now = 100.0
    monkeypatch.setattr(reporter_module, "time", SimpleNamespace(monotonic=lambda: now))
    run = RunDir(tmp_path)
    made, lines = Reporter(run, None, True, Utilization(4)), []
    made._bar = None
    monkeypatch.setattr(made, "print", lines.append)
    progress = Progress.start(1)
    totals: Any = SimpleNamespace(tokens=80, padded=100)
    for step in (1, 2, 3):
        now += 1
        progress.step = step
        progress.marks[0] = Bookmark(0, start=step)
        made.step(progress, step / 10, totals, 1e-3, 1.0, Work(data_wait=0.25, rank_wait=0.5))
        if step == 1:
            made._interval.began = now
    progress.next_epoch()
    for best, tied in ((True, False), (True, True), (False, False)):
        made.evaluating()
        now += 50
        made.evaluated(progress, {"loss": 1.0}, best, tied)
    progress.ended = True
    made.logged(progress, 0.5)
    made.stopped_early(progress.stopped_early(EarlyStopping(metric="f1", patience=1)) or {})
    *_, train = read_lines(run.metrics)
    assert (train["padding"], train["epoch"]) == (pytest.approx(0.2), 0)
    assert train["tokens_per_second"] == pytest.approx(160 / 2), "the first step pays for what libraries do once"
    assert [line.endswith("*best") for line in lines] == [True, False, False, False, False]
    assert "equal to the best: the later step is kept" in lines[1]
    assert train["tokens_per_second_per_device"] == pytest.approx(20)
    assert (train["data_wait"], train["rank_wait"]) == (0.25, 0.5)
    assert "80 tokens/s  waiting for rows 25%  padding 20.0%" in lines[3]
    assert "left" not in lines[3], "nothing is left of a run that has ended"
    assert lines[4] == "stopped early at step 3 (epoch 0): validation f1 has not improved in 1 evaluation"


@pytest.mark.ranks
def test_an_early_stop_is_reported_in_all_files(reviews: Path, tmp_path: Path) -> None:
    """A rate so small that all evaluations are equal; on two ranks, in the middle of an epoch and at its end."""
    for every, epochs, steps in (("epoch", [0, 1, 2], None), (3, [0, 0, 0], 9)):
        loop = {"max_steps": None, "epochs": 6, "eval_every": every, "save_every": every, "log_every": 1000,
                "early_stopping": {"metric": "f1", "patience": 2}}  # fmt: skip
        made = review_recipe(reviews, MODEL, tokenizer=WORDS, loop=loop, optim={"lr": 1e-12})
        run = tmp_path / f"run-{every}"
        ended = processes.train(written(tmp_path, made), run, world=2).check()
        lines = read_lines(run / "metrics.jsonl")
        assert [line["epoch"] for line in lines if line["split"] == "validation"] == epochs
        (train,) = (line for line in lines if line["split"] == "train")
        step = max(line["step"] for line in lines)
        assert steps in (None, step)
        assert (train["step"], train["epoch"]) == (step, epochs[-1])
        assert 0 < train["padding"] < 0.9
        assert train["tokens_per_second"] > 0
        assert ended.text.count("*best") == 1
        assert (
            ended.text.count(f"stopped early at step {step} (epoch {epochs[-1]}): validation f1 has not improved") == 1
        )
        facts = {"step": step, "epoch": epochs[-1], "metric": "f1", "patience": 2, "min_delta": 0.0}
        assert status(run)["stopped_early"] == facts
        stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
        assert stages["model"]["stopped_early"] == facts
        number = "1 epoch" if epochs[-1] == 0 else f"{epochs[-1] + 1} epochs"
        for page in (run / "README.md", run / "evaluation/test/report.html"):
            text = page.read_text(encoding="utf-8")
            assert f"{step} in {number}, " in text
            assert "; stopped early: validation f1 had not improved in 2 evaluations" in text
    again = processes.train(tmp_path / "recipe.yaml", run).check()
    assert status(run)["stopped_early"] == facts, "of a start that found everything done, too"
    assert "fewer than 50" not in again.text, "a warning is for the start that trained"


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_a_short_run_and_a_long_warm_up() -> None:
    assert _few_steps(50) is None
    assert "only 49 optimizer steps" in (_few_steps(49) or "")
    assert "only 1 optimizer step " in (_few_steps(1) or "")
    assert _warm_up(OptimConfig(warmup_steps=99), 100) is None
    found = _warm_up(OptimConfig(warmup_steps=100), 100) or ""
    assert "the warm-up of 100 steps (optim.warmup_steps) is not shorter than the run of 100" in found
    assert _warm_up(OptimConfig(schedule="slanted_triangular", warmup_steps=100), 10) is None, "which has its own"
    assert _warm_up(OptimConfig(warmup_steps=0), 0) is None


def test_a_loss_above_guessing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    optim = OptimConfig(lr=3.0)
    for labels, smoothing, validation, loss, warned in (
        (2, 0.0, 0.1, 0.70, True),
        (2, 0.0, 0.1, 0.69, False),
        (5, 0.0, 0.1, 1.60, False),
        (5, 0.0, 0.1, 3.50, True),
        (5, 0.0, None, 3.50, True),
        (5, 0.1, None, 3.50, False),  # a smoothed loss is no cross-entropy
        (5, 0.1, 0.1, math.nan, False),
    ):
        split = "train" if validation is None else "validation"
        lines = [{"step": 1, "split": split, "loss": 9.0}, {"step": 2, "split": split, "loss": loss},
                 {"step": 2, "split": "other", "loss": 0.0}]  # fmt: skip
        run.metrics.unlink(missing_ok=True)
        for line in lines:
            run.append(run.metrics, line)
        recipe = SimpleNamespace(
            optim=optim.model_copy(update={"label_smoothing": smoothing}),
            task=SimpleNamespace(names=list(range(labels))),
            data=SimpleNamespace(validation=validation),
        )
        task: Any = SimpleNamespace(recipe=recipe)
        task.guess = lambda task=task: Task.guess(task)
        found: Any = _guessing(run, task, None)  # type: ignore[arg-type]
        assert (found is not None) == warned, (labels, smoothing, validation, loss)
        if warned:
            assert f"the {split} loss ended at {loss:.4f}, above {math.log(labels):.4f}" in found
            assert f"guessing among {labels} classes" in found
            assert "optim.lr (now 3)" in found


def test_the_entropy_of_tokens_by_hand() -> None:
    """Eight, four and four of three tokens: 1.5 bits, and the correction for sixteen of them."""
    labels = torch.tensor([[3] * 8 + [IGNORED], [5] * 4 + [9] * 4 + [IGNORED]])
    halves = [[SimpleNamespace(examples=labels[:1])], [SimpleNamespace(examples=labels[1:])]]
    task: Any = SimpleNamespace(corrupt=lambda rows: rows, collate=lambda rows: {"labels": rows})
    corpus: Any = SimpleNamespace(batches=lambda split: halves)
    assert _entropy(task, corpus, "validation") == pytest.approx(1.5 * math.log(2) + 2 / 32)


@pytest.mark.parametrize(
    ("prediction", "targets", "more", "found"),
    [
        ("good", ["good", "bad"], {}, '"good"'),
        ([], [[], ["a"]], {}, "[]"),
        ("good", ["good", "good"], {}, None),  # right
        ("", ["a", "b"], {"score": -1.0}, '""'),
        ("", ["a", "b"], {}, None),  # a causal language model, which is evaluated without new text
    ],
)
def test_one_prediction_for_all_rows_is_found(
    prediction: Any, targets: list[Any], more: dict[str, Any], found: Any
) -> None:
    records = [{"prediction": prediction, "target": targets[i % 2], **more} for i in range(10)]
    assert constant(records) == found
    assert constant(records[:9]) is None
    assert constant([*records[:9], {**records[0], "prediction": "other"}]) is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (20, "which is usual after 20 steps (loop.max_steps, 20 with --debug). Such a run shows that everything works"),
        (200, "the model ignores its input. Another optim.lr (now 0.001)"),
        (None, "the model ignores its input"),
    ],
)
def test_equal_predictions_after_a_few_steps_are_usual(steps: int | None, words: str) -> None:
    overrides = [f"loop.max_steps={json.dumps(steps)}", "loop.epochs=2", "optim.lr=1e-3"]
    task: Any = SimpleNamespace(recipe=Recipe.parse(tiny_recipe(Path("corpus")), overrides))
    assert words in _meaning(task)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", slow_except(["classification", "translation"], "classification"))
def test_a_run_that_learned_nothing_is_warned_of_in_log_report_and_card(
    reviews: Path, recipe: Path, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    words = ["loop.max_steps=6", "optim.warmup_steps=6", "optim.lr=30", "optim.clip_norm=0"]
    if kind == "classification":
        recipe = written(tmp_path, review_recipe(reviews, MODEL, tokenizer=WORDS))
    ended = processes.train(recipe, run, *words).check()
    for warning in ("only 6 optimizer steps", "warm-up of 6 steps", "the loss of guessing"):
        assert ended.text.count(warning) == 1, warning
        for page in (run / "README.md", run / "evaluation/test/report.html"):
            assert warning in page.read_text(encoding="utf-8").replace("\\_", "_"), warning

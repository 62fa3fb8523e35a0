"""`rankzero lint`: findings with their lines, and the exit code for each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from launch.cli import app
from launch.tools.lint.checks import Finding, deprecated, lint
from launch.tools.lint.command import lint_command
from trainer.errors import UsageError
from trainer.recipe_loading import SHIPPED

GOOD = """version: 1
name: good
task: {kind: classification, labels: [a, b]}
data:
  root: .
  train: train.csv
  validation: 0.2
tokenizer:
  train: {kind: wordpiece, vocab_size: 100}
model: {kind: encoder, d_model: 16, layers: 1, heads: 2, feed_forward: 16}
optim:
  lr: 1e-3
loop: {max_steps: 100}
evaluation: {splits: []}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text("text,label\nx,a\n", encoding="utf-8")
    return tmp_path


def check(text: str, *settings: str) -> list[Finding]:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return lint("r.yaml", settings)


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["lint", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def test_a_good_recipe_has_no_findings() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_recipes_lack_nothing_but_their_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert {finding.key for finding in lint(name)} <= {"data.root"}


@pytest.mark.parametrize(
    ("old", "new", "place", "code", "words"),
    [
        ("  train: train.csv", "  train: train.csv\n  trian: a", (7, 3), 2, "data.trian: unknown key; did you mean"),
        ("lr: 1e-3", "learning_rate: 1e-3", (12, 3), 2, "optim.learning_rate: unknown key; use optim.lr"),
        ("lr: 1e-3", "lr: -1", (12, 3), 2, "optim.lr: Input should be greater than 0 (got -1)"),
        ("labels: [a, b]", "labels: [a, a]", (3, 30), 2, "task.labels"),
        ("{max_steps: 100}", "{max_steps: 1, early_stopping: {metric: bleu}}", (13, 39), 2, "'bleu' is unknown"),
        ("train: train.csv", "train: trian.csv", (6, 3), 3, "data.train: 'trian.csv': no file matches"),
        ("root: .", "root: nowhere", (5, 3), 3, "data.root: '"),
        ("validation: 0.2", "validation: val.csv", (7, 3), 3, "nearest: train.csv"),
        ("labels: [a, b]}", "labels: [a, b]", (4, 1), 2, "not valid YAML"),
        ("  lr: 1e-3", "  lr: 1e-3\n  lr: 2e-3", (13, 3), 2, "duplicate key 'lr'"),
    ],
)  # fmt: skip
def test_errors_name_the_line(old: str, new: str, place: tuple[int, int], code: int, words: str) -> None:
    assert old in GOOD
    found = check(GOOD.replace(old, new))
    assert len(found) == 1, found
    assert words in str(found[0])
    assert (found[0].line, found[0].column, found[0].level, found[0].code) == (*place, "error", code), found


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("lr: 1e-3", "lr: 0.1", "optim.lr", "high for adamw: usual is 1e-4 to 2e-3"),
        ("lr: 1e-3", "lr: 1e-9", "optim.lr", "hardly change"),
        ("lr: 1e-3", "momentum: 0.9", "optim.momentum", "belongs to optim.name: sgd"),
        ("lr: 1e-3", "warmup_steps: 100", "optim.warmup_steps", "lr is never reached"),
        ("lr: 1e-3", "label_smoothing: 0.6", "optim.label_smoothing", "0.6 is large"),
        ("{max_steps: 100}", "{max_steps: 100, eval_every: 500}", "loop.eval_every", "one evaluation"),
        ("{max_steps: 100}", "{max_steps: 100, max_nonfinite: 3}", "loop.max_nonfinite", "on_nonfinite: skip"),
        ("validation: 0.2", "validation: train.csv", "data.validation", "files of data.train"),
        ("validation: 0.2", "rows_per_batch: 2\n  tokens_per_batch: 9999", "data.tokens_per_batch", "no effect: 2"),
        ("{max_steps: 100}", "{max_steps: 9, early_stopping: {metric: accuracy}}", "", ""),
        ("root: .", "root: https://me:secret@example.org/d", "data.root", "password"),
    ],
)  # fmt: skip
def test_suspicious_values_are_warnings(old: str, new: str, key: str, words: str) -> None:
    found = check(GOOD.replace(old, new))
    assert [finding.key for finding in found] == ([key] if key else []), found
    for finding in found:
        assert words in finding.message and finding.level == "warning" and finding.code == 0
        assert "secret" not in finding.message
    if key:
        assert [*Path("r.yaml").read_text().splitlines()][found[0].line - 1].find(key.split(".")[1]) >= 0


def test_metric_without_validation() -> None:
    early = "{max_steps: 100, early_stopping: {metric: accuracy}}"
    found = check(GOOD.replace("  validation: 0.2\n", "").replace("{max_steps: 100}", early))
    assert [finding.key for finding in found] == ["loop.early_stopping.metric"]


def test_several_problems_of_one_recipe_come_in_the_order_of_its_lines() -> None:
    text = GOOD.replace("lr: 1e-3", "lr: 0.5\n  nesterov: true").replace("train.csv", "gone.csv")
    found = check(text)
    assert [finding.line for finding in found] == sorted(finding.line for finding in found)
    assert [finding.key for finding in found] == ["data.train", "optim.lr", "optim.nesterov"]


def test_a_wrong_key_hides_no_other_problem() -> None:
    """And nothing is reported that only follows from its removal."""
    text = GOOD.replace("lr: 1e-3", "lr: -1\n  momentun: 0.9\n  warmup_steps: 100\n  nesterov: true")
    text = text.replace("  validation: 0.2", "  validaton: 0.2\n  test: gone.csv")
    text = text.replace("{max_steps: 100}", "{max_steps: 100, early_stopping: {metric: bleu, patience: 2}}")
    found = check(text.replace("evaluation: {splits: []}", "evaluation: {beam_size: 50}"))
    assert {finding.key: finding.level for finding in found} == {
        "data.validaton": "error",
        "data.test": "error",
        "optim.lr": "error",
        "optim.momentun": "error",
        "optim.warmup_steps": "warning",
        "optim.nesterov": "warning",
        "loop.early_stopping.metric": "error",
        "evaluation.beam_size": "warning",
    }, found
    assert len(found) == 8
    assert [finding.line for finding in found] == sorted(finding.line for finding in found)


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("train: train.csv", "train: other.csv", "data.train", "no row of other.csv has a column 'text' (1 rows read)"),
        ("train: train.csv", "train: train.csv\n  columns: {label: x}", "data.columns.label", "has a column 'x'"),
        ("validation: 0.2", "validation: other.csv", "data.validation", "columns there: 'Message', 'topic'"),
        ("  train: train.csv", "  mix: [{name: x, weight: 1, train: other.csv}]", "data.mix.0.train", "data.mix.0.col"),
        ("train: train.csv", "train: bad.parquet", "data.train", "bad.parquet"),
    ],
)  # fmt: skip
def test_columns_that_the_files_lack(old: str, new: str, key: str, words: str) -> None:
    Path("other.csv").write_text("Message,topic\nx,a\n", encoding="utf-8")
    Path("bad.parquet").write_text("text,label", encoding="utf-8")
    assert old in GOOD
    found = [finding for finding in check(GOOD.replace(old, new)) if finding.key == key]
    assert found and found[0].code == 3, check(GOOD.replace(old, new))
    assert any(words in finding.message for finding in found), found


def test_a_missing_test_split_is_a_warning() -> None:
    found = check(GOOD.replace("evaluation: {splits: []}\n", ""))
    assert [(finding.key, finding.level) for finding in found] == [("data.test", "warning")]
    assert "rows that select the checkpoint" in found[0].message
    assert check(GOOD.replace("splits: []", "splits: [validation]")) == []


def test_overrides() -> None:
    assert check(GOOD, "optim.lr=0.1")[0].key == "optim.lr"
    assert check(GOOD, "data.lanes=0")[0].code == 2
    assert check(GOOD.replace("train.csv", "gone.csv"), "data.train=train.csv") == []


def test_deprecated_keys_are_warnings() -> None:
    class Inner(BaseModel):
        old: int = Field(1, deprecated="use inner.new")
        new: int = 1

    class Outer(BaseModel):
        inner: Inner = Field(default_factory=Inner)
        several: list[Inner] = Field(default_factory=list)

    assert [*deprecated(Outer.model_validate({"inner": {"new": 2}}))] == []
    found = [*deprecated(Outer.model_validate({"inner": {"old": 2}, "several": [{}, {"old": 3}]}))]
    assert found == [("inner.old", "deprecated: use inner.new"), ("several.1.old", "deprecated: use inner.new")]


def test_exit_codes_and_json() -> None:
    texts = {
        "good": GOOD,
        "odd": GOOD.replace("1e-3", "0.1"),
        "usage": GOOD.replace("lr:", "rl:"),
        "data": GOOD.replace("train.csv", "gone.csv"),
    }
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    assert command("good.yaml") == (0, "1 recipe, 0 errors, 0 warnings\n")
    assert command("odd.yaml")[0] == 0
    assert command("odd.yaml", "--strict")[0] == 2
    assert command("data.yaml")[0] == 3
    assert command("good.yaml", "optim.lr=0.1")[1].splitlines()[-1] == "1 recipe, 0 errors, 1 warning"
    assert command("data.yaml", "--set", "data.train=train.csv") == (0, "1 recipe, 0 errors, 0 warnings\n")
    with pytest.raises(UsageError, match="no recipe is named"):
        lint_command(["optim.lr=0.1"])
    code, printed = command("good.yaml", "data.yaml", "usage.yaml", "odd.yaml")
    assert code == 2 and printed.splitlines()[-1] == "4 recipes, 2 errors, 1 warning"
    code, printed = command("odd.yaml", "nope", "--json")
    document: dict[str, Any] = json.loads(printed)
    assert code == 2 and document["passed"] is False
    assert [(one["file"], one["line"], one["level"]) for one in document["findings"]] == [
        ("odd.yaml", 12, "warning"),
        ("nope", 1, "error"),
    ]
    assert json.loads(command("odd.yaml", "--json")[1])["passed"] is True
    assert json.loads(command("odd.yaml", "--strict", "--json")[1])["passed"] is False

"""Run directories from elsewhere: a finished run in which files are damaged, and the commands that read it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 - it starts fc-list when it is first imported, before cases are watched
from hypothesis import strategies as st

from benchmarks.fuzz import ROOT, words
from launch.slurm.follow import logs_command, status_command
from launch.tools.lint.checks import lint
from trainer.compare.page import write_outputs
from trainer.errors import RankzeroError
from trainer.push.upload import push_run
from trainer.rundir import RunDir

BASE = "FUZZ_RUN"  # the variable that names the finished run
TEXTS = ["a good film", "", "x" * 200, "\ufffd"]
EXTRA = {
    "slurm/jobs": "12 train\n13 train\n", "slurm/chain": "12\n13\n", "slurm/ended": "12 0\n13 75\n",
    "slurm/states.json": '{"12": ["COMPLETED", "None"], "13": ["FAILED", "exit code 75"]}',
    "slurm/train-13.out": "a line\n" * 9,
    "restarts.jsonl": '{"time": 1.0, "by": "launcher", "step": 2, "ranks": 2, "reason": "x", "exit_code": 1, '
    '"pause": 1.0}\n',
    "lock": '{"pid": 1, "host": "x", "token": "y", "boot": null, "born": null, "pid_namespace": null, "since": "z"}',
    "failed-rank.json": '{"splits": 2, "exit_code": 1, "error": "x", "rank": 1}',
    "profile.json": "{}", "evaluation/test/comet.jsonl": '{"id": "rows.jsonl:0", "score": 0.5}\n',
}  # fmt: skip
SWEEP = {
    "sweep.json": '{"trials": 3}',
    "trials.json": '{"planned": 3, "metric": "accuracy", "best": 1, "trials": [{"number": 1, "state": "complete", '
    '"value": 0.5, "params": {"optim.lr": 0.1}}, {"number": 2, "state": "running", "value": null, "params": {}}], '
    '"top": [{"number": 1, "seed": 1, "state": "x"}]}',
}  # fmt: skip
RECIPE = {
    "name": "fuzz-run", "task": {"kind": "classification", "labels": ["0", "1"]},
    "data": {"root": "embedded://reviews", "train": "train?rows=64", "validation": "validation?rows=16",
    "test": "test?rows=16", "lanes": 2,
             "tokens_per_batch": 512, "max_length": 32},
    "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 120}},
    "model": {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 32, "norm": "pre",
    "positions": "sinusoidal"},
    "optim": {"lr": 0.002, "schedule": "constant"},
    "loop": {"max_steps": 4, "eval_every": 2, "save_every": 2, "log_every": 1, "ledger": True},
    "evaluation": {"bootstrap": 20, "splits": ["test"], "baseline": False}, "export": {"model": True, "onnx": False,
    "int8": False},
}  # fmt: skip


def train_base(folder: Path) -> Path:
    """Train the run that cases damage, once for a folder."""
    run, recipe = folder / "base", folder / "base.json"
    if not (run / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        recipe.write_text(
            json.dumps({**RECIPE, "task": {"kind": "classification", "labels": ["negative", "positive"]}})
        )
        recipe = recipe.rename(folder / "base.yaml")
        command = [sys.executable, "-m", "trainer", "train", str(recipe), "--run", str(run)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"the run that cases damage was not trained:\n{ended.stderr[-2000:]}")
        for name, content in EXTRA.items():
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text(content)
        (run / "done").touch()
    return run


def write_small(folder: Path) -> Path:
    """Write a run directory without training, for `status` and `logs`."""
    files = {**EXTRA, "recipe.yaml": json.dumps(RECIPE), "manifest.json": '{"data": {}, "stages": {}}',
             "metrics.jsonl": '{"step": 1, "loss": 1.0}\n',
             "status.json": '{"state": "running", "step": 2, "exit_code": null, "error": null, "waits_for": null, '
             '"attempt": 1, "pid": 1, '
             '"launch": null, "loss": 0.5, "share": 0.5, "left": 9.0, "updated": 1.0}'}  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


STATUS_FILES = ("status.json", "lock", "restarts.jsonl", "slurm/jobs", "slurm/states.json", "slurm/chain",
"slurm/ended", "slurm/train-13.out",
                "manifest.json", "recipe.yaml", "trials.json", "failed-rank.json")  # fmt: skip
RUN_FILES = ("status.json", "manifest.json", "recipe.yaml", "metrics.jsonl", "evaluation/test/metrics.json",
"evaluation/test/predictions.jsonl",
             "evaluation/test/errors.json", "evaluation/test/calibration.json",
             "evaluation/test/confusion_matrix.json", "model/gate.json",
             "model/config.json", "README.md", "tokenizer/tokenizer.json", "ledger.jsonl", "lock",
             "export/left_out.json",
             "evaluation/test/classification_report.json", "evaluation/test/attention.json",
             "evaluation/test/shared_texts.json",
             "checkpoints/step-00000004/manifest.json", "checkpoints/step-00000004/state.json",
             "export/benchmark.json")  # fmt: skip
MODEL_FILES = ("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "tokenizer/tokenizer.json",
               "tokenizer/tokenizer_config.json", "model/model.safetensors", "model/1_Pooling/config.json",
               "model/modules.json",
               "model/2_Dense/config.json", "model/2_Dense/model.safetensors", "model/model.safetensors.index.json",
               "model/rankzero.safetensors", "recipe.yaml")  # fmt: skip


def changes(names: Sequence[str]) -> st.SearchStrategy[Any]:
    """Draw what happens to files: (name, action, where in the JSON, value)."""
    action = st.sampled_from(
        ["set"] * 8 + ["delete", "add", "whole", "bytes", "bytes", "cut", "folder", "fifo", "zero", "loop", "gone"]
    )
    where = st.lists(st.integers(0, 1 << 16), min_size=1, max_size=5)
    text = st.one_of(
        words.json_text(),
        st.sampled_from(["null", "-1", "1e999", "0", '"x"', "[]", "{}", "true", "NaN", "9" * 400, "1e300", "[0]"]),
    )
    change = st.tuples(st.sampled_from(names), action, where, text)
    return st.lists(change, min_size=1, max_size=2)


def damage(run: Path, cases: Sequence[Any]) -> None:
    """Change the files of a run directory."""
    for name, action, where, text in cases:
        path = run / name
        content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 24 else b"{}"
        if path.is_symlink() or path.is_file() or path.is_fifo():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        special: dict[str, Callable[[], Any]] = {
            "folder": path.mkdir, "fifo": lambda at=path: os.mkfifo(at),
            "zero": lambda at=path: at.symlink_to("/dev/zero"),
            "loop": lambda at=path: at.symlink_to(at.name), "gone": lambda: None,
        }  # fmt: skip
        if action in special:
            special[action]()
        else:
            path.write_bytes(_changed(content, name, action, where, text))


def _changed(content: bytes, name: str, action: str, where: Sequence[int], text: str) -> bytes:
    put = text.encode("utf-8", "surrogatepass")
    at = where[0] % (len(content) + 1)
    if action == "whole":
        return put
    if action == "cut":
        return content[:at]
    header = name.endswith(".safetensors") and len(content) > 8
    lines = name.endswith(".jsonl")
    if action == "bytes" or not (header or lines or name.endswith(".json")):
        at %= 300 if header else len(content) + 1
        return content[:at] + put[:20] + content[at + where[-1] % 9 :]
    try:
        if action == "merge":
            return json.dumps({**json.loads(content), **json.loads(text)}).encode()
        if header:
            size = int.from_bytes(content[:8], "little")
            new = _edited(json.loads(content[8 : 8 + size]), action, where, text)
            return len(new).to_bytes(8, "little") + new + content[8 + size :]
        if lines:
            each = content.splitlines() or [b"{}"]
            each[at % len(each)] = _edited(json.loads(each[at % len(each)]), action, where, text)
            return b"\n".join(each) + b"\n"
        return _edited(json.loads(content), action, where, text)
    except (ValueError, RecursionError):  # a second change of a file
        return put


def _edited(values: Any, action: str, where: Sequence[int], text: str) -> bytes:
    """Put the text in place of a value in JSON."""
    mark, at, parent, key = "@@put@@", values, None, None
    for step in where:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        if not keys:
            break
        parent, key = at, keys[step % len(keys)]
        at = at[key]
    if parent is None or key is None:
        values = mark
    elif action == "delete":
        del parent[key]
    elif action == "add" and isinstance(parent, dict):
        parent[text[:50]] = mark
    else:
        parent[key] = mark
    return json.dumps(values).replace(json.dumps(mark), text).encode("utf-8", "surrogatepass")


def copy_run(base: Path, run: Path) -> None:
    """Copy a run: hard links, because commands replace files, and a copy of what they append to."""
    shutil.copytree(base, run, copy_function=os.link)
    for path in run.rglob("*.jsonl"):
        text = path.read_bytes()
        path.unlink()
        path.write_bytes(text)


def _each(*commands: Callable[[], Any]) -> str:
    """Call commands one after the other. Raise the last error if none of them can read the run."""
    refused: RankzeroError | None = None
    read = False
    for command in commands:
        try:
            command()
            read = True
        except RankzeroError as error:
            refused = error
        except SystemExit:
            raise AssertionError("a function ended the process") from None
    if refused is not None and not read:
        raise refused
    return "read"


def _exits(command: Callable[[], Any]) -> Callable[[], Any]:
    """Return a command whose `typer.Exit` is an answer."""

    def call() -> None:
        try:
            command()
        except RuntimeError as error:  # typer.Exit
            if type(error).__name__ != "Exit":
                raise

    return call


def check_status(case: Any, folder: Path) -> str:
    run = write_small(folder / "runs" / "a")
    if any(name == "trials.json" for name, *_ in case):
        for name, content in SWEEP.items():
            (run / name).write_text(content)
    damage(run, case)
    return _each(
        *(
            _exits(call)
            for call in (
                lambda: status_command(run, False),
                lambda: status_command(run, True),
                lambda: status_command(None, False),
            )
        ),
        lambda: logs_command(run, False, 5),
        lambda: lint(str(run / "recipe.yaml")) if (run / "recipe.yaml").is_file() else None,
    )


def run_cases() -> st.SearchStrategy[Any]:
    """Draw the damage of a run, and which command reads it."""
    return st.tuples(changes(RUN_FILES), st.integers(0, 4))


def check_run(case: Any, folder: Path) -> str:
    base, run = Path(os.environ[BASE]), folder / "run"
    copy_run(base, run)
    damage(run, case[0])
    commands: tuple[Callable[[], Any], ...] = (
        _exits(lambda: status_command(run, True)),
        lambda: lint(str(run / "recipe.yaml")) if (run / "recipe.yaml").is_file() else None,
        lambda: write_outputs(
            [run, base], "test", as_json=False, html=folder / "page.html", common=True, with_rows=True
        ),
        lambda: write_outputs([base, run], "test", as_json=True, html=None, common=False, with_rows=False),
        lambda: list(push_run(RunDir(run), "a/b", public=False, dry_run=True, with_rows=False, message=None)),
    )
    return _each(commands[case[1]])


def check_report(case: Any, folder: Path) -> str:
    from trainer.api import check_export, report

    run = folder / "run"
    copy_run(Path(os.environ[BASE]), run)
    damage(run, case)
    return _each(lambda: report(run), lambda: check_export(run))


def check_model(case: Any, folder: Path) -> str:
    from trainer.api import predict

    run = folder / "run"
    copy_run(Path(os.environ[BASE]), run)
    damage(run, case)
    return _each(lambda: list(predict(run, TEXTS)))


@functools.cache
def load_torch(place: Path) -> None:
    """Import what these commands import, so that a case does not pay for it."""
    import trainer.api

    folder = place / "warm"
    folder.mkdir()
    for check in (check_report, check_model):
        check([], folder)
        shutil.rmtree(folder / "run")
    del trainer

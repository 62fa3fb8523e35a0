"""Render job scripts, refuse unsafe values, and lint the result."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import ROOT, Sandbox, script, shellchecked
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launch.slurm import render
from launch.slurm.job import Job, make_job
from launch.slurm.lint import lint
from launch.slurm.submission import render_all
from trainer.errors import UsageError

HOSTILE = "a b'c\"d $(touch canary) `touch canary` ; touch canary & | > canary # %j {{ 7 }} \\ *"


VARIANTS: dict[str, dict[str, Any]] = {
    "single": {},
    "node": {"config": "cpu_multinode", "nodes": 2},
    "task": {"config": "cpu_multinode", "nodes": 2, "launcher": "task"},
    "zero task": {"config": "cpu_zero3", "nodes": 2, "launcher": "task"},
    "gpus": {"config": "zero2", "nodes": 2, "gpus_per_node": 2, "cpus_per_task": 8},
    "all": {
        "partition": "p1,p2", "account": "a", "qos": "q", "memory": "64G", "constraint": "[a|b]&c", "mail": "m@x.org",
        "setup": ["module load cuda", "export NCCL_DEBUG=INFO"], "extra": ["--exclusive", "--gres=scratch:10"],
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["train", "finalize", "array"])
def test_every_script_passes_bash_lint_and_shellcheck(
    tiny_job: Callable[..., Job], tmp_path: Path, variant: str, kind: str
) -> None:
    job = tiny_job("loop.max_steps=3", **VARIANTS[variant])
    for rendered in render_all(job, "1-3%2" if kind == "array" else None, kind == "finalize", None):
        path = tmp_path / rendered.path.name
        path.write_text(rendered.text)
        assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
        assert lint(rendered.text) == []
        if shutil.which("shellcheck"):
            checked = shellchecked(path)
            assert checked.returncode == 0, checked.stdout


def test_resources_become_directives(tiny_job: Callable[..., Job]) -> None:
    text = script(tiny_job(**VARIANTS["all"], **VARIANTS["gpus"]))
    options = [line[8:].split("   ")[0].strip() for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--gpus-per-node=2", "--cpus-per-task=8", "--ntasks-per-node=1", "--requeue"} <= {*options}
    assert {"--partition=p1,p2", "--mem=64G", "--constraint=[a|b]&c", "--exclusive", "--time=24:00:00"} <= {*options}
    assert "--signal=B:USR1@120" in options
    assert text.index("module load cuda") < text.index("launch() {")


def test_every_variable_is_documented(tiny_job: Callable[..., Job]) -> None:
    page = (ROOT / "docs" / "reference" / "slurm.md").read_text(encoding="utf-8")
    table = page[page.index("## Template variables") : page.index("## Tested on")]
    assert [name for name in {**tiny_job().values(), "seeds": ""} if f"`{name}`" not in table] == []


# -- quoting -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60), st.data())
@example(HOSTILE, None)
@example("two\nlines\n#SBATCH --nodes=9", None)
@example("-x", None)
def test_special_characters_reach_the_ranks_unchanged(tiny_job: Callable[..., Job], text: str, data: object) -> None:
    job = tiny_job()
    words = (text, f"seed={text}", f"--{text}")
    folder = job.run.parent / "hostile"
    shutil.rmtree(folder, ignore_errors=True)
    went = Sandbox(folder, job.run).go(script(dataclasses.replace(job, words=words)), (0,))
    assert went.words[0][-6:-2] == ["train", *words], went.log
    assert went.code == 0
    assert not list(job.run.parent.rglob("canary"))


@pytest.mark.parametrize("name", [HOSTILE.replace("\\", "").replace("/", ""), "sp ace", "'", "-x", "%j"])
def test_paths_with_special_characters(tiny_job: Callable[..., Job], tmp_path: Path, name: str) -> None:
    run, here = tmp_path / name / "run", tmp_path / f"{name} here"
    here.mkdir()
    text = script(dataclasses.replace(tiny_job(), run=run, folder=here))
    went = Sandbox(tmp_path / "world", run).go(text, (0,))
    assert went.code == 0
    assert went.words[0][-1] == str(run)
    assert went.environment["PWD"] == str(here)
    line = next(line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    assert line.removeprefix("#SBATCH --output=").strip('"').replace('\\"', '"').replace("%%", "%") == (
        f"{run}/slurm/train-%j.out"
    )
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize(
    "bad", ["a\n#SBATCH --nodes=9", "a b", "$(touch canary)", "`id`", "a;b", "a'b", 'a"b', "#", ""]
)
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "mail", "memory", "time"])
def test_unsafe_values_in_a_directive_are_refused(tiny_job: Callable[..., Job], key: str, bad: str) -> None:
    with pytest.raises(UsageError):
        script(tiny_job(f"launch.{key}={json.dumps(bad)}"))


def test_lines_cannot_be_broken(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    for run in ("two\nlines", "back\\slash"):
        with pytest.raises(UsageError, match="--run"):
            script(tiny_job(run=tmp_path / run))
    for line in ("--exclusive\n#SBATCH --nodes=9", "exclusive", "--a\x85--b"):
        with pytest.raises(UsageError, match="extra"):
            script(tiny_job(extra=[line]))
    for name in ("two\nlines", "$(id)", "a b", "", "x" * 65, "-x"):
        with pytest.raises(UsageError, match="--name"):
            make_job(tiny_job().command[0], [], {}, "debug", None, name or "\t")
    title = dataclasses.replace(tiny_job(), command=("a\nrm -rf /",)).values()["title"]
    assert "\n" not in render.comment(title)


def test_an_edited_template_cannot_forget_to_quote(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "train.sbatch").write_text("#!/bin/bash\nRUN={{ run }}\n")
    with pytest.raises(UsageError, match="without a filter"):
        render.render("train.sbatch", tiny_job().values(), tmp_path)
    (tmp_path / "train.sbatch").write_text("#!/bin/bash\nRUN={{ run | sh }} {{ nods }}\n")
    with pytest.raises(UsageError, match=r"train\.sbatch.*nods"):
        render.render("train.sbatch", tiny_job().values(), tmp_path)
    (tmp_path / "train.sbatch").write_text("#!/bin/bash\necho {{ nodes }}\n")
    assert render.render("array.sbatch", tiny_job().values() | {"seeds": "1"}, tmp_path) == "#!/bin/bash\necho 1\n"


# -- lint --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#!/bin/bash\n#SBATCH --nodes=2 --time 1:00 # why\necho\n", None),
        ("#!/bin/bash\n#SBATCH --comment='open\n", None),
        ("#!/bin/bash\n#SBATCH --output=$HOME/x\n", None),
        ("#!/bin/bash\ncd /x\n#SBATCH --nodes=2\n", "line 3: '#SBATCH --nodes=2' follows the first command"),
        ("#!/bin/bash\n#SBATCH --output=$HOME/x --comment=$USER\n", "does not expand `$` in '--comment=$USER'"),
        ("#!/bin/bash\n# SBATCH --nodes=2\n", "is a comment to sbatch"),
    ],
)
def test_lint(text: str, found: str | None) -> None:
    problems = lint(text)
    assert problems == [] if found is None else any(found in problem for problem in problems), problems

"""Real trackers: what they have of a run that was killed and resumed, that they could not reach, or that came later."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hooks
import pytest
from processes import read_lines, train

from launch.supervise.processes import kill_tree
from trainer.tracking.leveldb_log import BLOCK, records_in

Steps = dict[str, list[int]]  # by split, in the order in which the tracker has them
SERVER = os.environ.get("RANKZERO_MLFLOW_PYTHON")


def missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


needs_mlflow = pytest.mark.skipif(missing("mlflow"), reason="mlflow-skinny is not installed")


# -- what a tracker has ------------------------------------------------------------------------------------------------


def in_tensorboard(run: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return {tag.rpartition("/")[0]: [event.step for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"] if tag.endswith("/loss") and tag.count("/") < 3}  # fmt: skip


def in_mlflow(run: Path) -> Steps:
    from mlflow import MlflowClient

    client = MlflowClient()
    made = client.get_run(json.loads((run / "tracking/mlflow.json").read_text())["own_id"])
    return {
        key.rpartition("/")[0]: [metric.step for metric in client.get_metric_history(made.info.run_id, key)]
        for key in made.data.metrics
        if key.endswith("/loss")
    }


def in_wandb(run: Path) -> Steps:
    from wandb.proto.wandb_internal_pb2 import Record

    found: Steps = {}
    for file in sorted(run.glob("tracking/wandb/offline-run-*/run-*.wandb")):
        for message in map(Record.FromString, records_in(file)):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in message.history.item}
            for key in row:
                if key.endswith("/loss"):
                    found.setdefault(key.rpartition("/")[0], []).append(int(row["step"]))
    return found


def in_dvclive(run: Path) -> Steps:
    folder, found = run / "tracking/dvclive/plots/metrics", {}
    for path in folder.rglob("loss.tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            found[str(path.parent.relative_to(folder))] = [int(row["step"]) for row in rows]
    return found


def in_trackio(run: Path) -> Steps:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{run.name}-{json.loads((run / 'tracking/trackio.json').read_text())['id'][:8]}"
    found: Steps = {}
    for row in SQLiteStorage.get_logs("rankzero", name):
        for key in row:
            if key.endswith("/loss"):
                found.setdefault(key.rpartition("/")[0], []).append(int(row["step"]))
    return found


READERS: dict[str, Callable[[Path], Steps]] = {
    "tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb, "dvclive": in_dvclive,
    "trackio": in_trackio,
}  # fmt: skip


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trackers that are installed, writing files in a folder of the test."""
    values = {
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false", "WANDB_MODE": "offline", "WANDB_API_KEY": "0123456789" * 4,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return [name for name in READERS if not missing(name)]


def expected(run: Path) -> Steps:
    lines = read_lines(run / "metrics.jsonl")
    return {split: [line["step"] for line in lines if line["split"] == split] for split in ("train", "validation")}


@pytest.mark.slow
@pytest.mark.ranks
def test_a_killed_run_has_each_step_once_in_every_tracker(recipe: Path, tmp_path: Path, local: list[str]) -> None:
    """Killed with the trackers' process at step 5, the last checkpoint of which is step 3: 4 and 5 are repeated."""
    run, words = tmp_path / "run", [f"track=[{', '.join(local)}]", "evaluation.splits=[test]"]
    hook = partial(hooks.killed_once_tracked, 5, 4, local)
    killed = train(recipe, run, *words, hook=hook)
    assert killed.codes == [-9], killed.text
    ids = {name: json.loads((run / f"tracking/{name}.json").read_text())["id"] for name in local}
    train(recipe, run, *words).check()
    lines = expected(run)
    assert lines == {"train": list(range(1, 13)), "validation": [4, 8, 12]}
    for name in local:
        found = READERS[name](run)
        assert {split: sorted(found.get(split, [])) for split in lines} == lines, name
        assert found["evaluation/test"] == [12], name
        position = json.loads((run / f"tracking/{name}.json").read_text())
        assert position["id"] == ids[name], name
        assert {"recipe", "recipe.yaml", "evaluation/test", "evaluation/test/report.html"} <= position["logged"].keys()
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".wandb"]
    assert not any(b"0123456789" * 4 in text for text in texts), "a credential is in the run directory"


@pytest.mark.slow
@needs_mlflow
def test_a_tracker_that_cannot_be_reached_is_one_warning_and_is_caught_up(
    recipe: Path, tmp_path: Path, local: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import track

    run, uri = tmp_path / "run", os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    began = time.monotonic()
    ended = train(recipe, run, "track=[mlflow]", "evaluation.splits=[]").check()
    assert time.monotonic() - began < 60
    text = ended.err[0]
    assert text.count("the tracker mlflow failed") == 1, text
    assert "not everything was uploaded to mlflow" in text
    assert "hunter2" not in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert track(run) == {"mlflow": 15}
    assert track(run) == {"mlflow": 0}
    found = in_mlflow(run)
    assert {split: found[split] for split in ("train", "validation")} == expected(run)


@pytest.mark.slow
@needs_mlflow
@pytest.mark.parametrize("commit", ["a" * 40, None])
def test_the_source_in_mlflow_is_the_recipe_and_the_commit_of_the_project(
    tmp_path: Path, local: list[str], commit: str | None
) -> None:
    """MLflow itself would name the program that uploads, and the commit of its checkout."""
    from mlflow import MlflowClient

    from trainer import track

    run = small_run(tmp_path / "mt", project_commit=commit, git_commit="b" * 40)
    track(run, to=["mlflow"], options=["tags={team: a}"])
    own_id = json.loads((run / "tracking/mlflow.json").read_text())["own_id"]
    tags = MlflowClient().get_run(own_id).data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.runName"], tags["team"]) == ("mt/recipe.yaml", "mt", "a")
    assert tags.get("mlflow.source.git.commit") == commit
    assert not any(key.startswith("mlflow.source.git") and key != "mlflow.source.git.commit" for key in tags)


@pytest.mark.slow
@pytest.mark.skipif(missing("wandb"), reason="wandb is not installed")
def test_wandb_prints_nothing(tmp_path: Path, local: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    from trainer import track

    assert track(small_run(tmp_path / "mt"), to=["wandb"]) == {"wandb": 1}
    assert list(tmp_path.glob("mt/tracking/wandb/offline-run-*/files/recipe.yaml"))  # was linked
    assert capfd.readouterr() == ("", "")


def small_run(folder: Path, **facts: str | None) -> Path:
    """A run directory of one step."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: mt\n")
    (folder / "manifest.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 0, "split": "train", "loss": 1.0}\n')
    (folder / "README.md").write_text("# mt\n")
    return folder


# -- a server ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    command = [
        *(str(SERVER), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")),
    ]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=env)
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        kill_tree(process.pid)
        process.wait()


@pytest.mark.slow
@needs_mlflow
@pytest.mark.skipif(not SERVER, reason="RANKZERO_MLFLOW_PYTHON names no environment with an MLflow server")
def test_mlflow_with_a_server_that_comes_late(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from trainer import track

    run, folder = tmp_path / "run", tmp_path / "server"
    folder.mkdir()
    port = 5_000 + os.getpid() % 1_000
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    train(recipe, run, "track=[{mlflow: {project: mt, tags: {team: a}}}]", "evaluation.splits=[test]").check()
    with mlflow_server(folder, port):
        track(run)
        client = MlflowClient()
        made = client.get_run(json.loads((run / "tracking/mlflow.json").read_text())["own_id"])
        found = in_mlflow(run)
        assert {split: found[split] for split in ("train", "validation")} == expected(run)
        assert made.data.params["optim.name"] == "adamw"
        assert made.data.tags["team"] == "a"
        assert made.info.status == "FINISHED"
        files = {file.path for file in client.list_artifacts(made.info.run_id, "evaluation/test")}
        assert "evaluation/test/report.html" in files
        assert track(run) == {"mlflow": 0}
        (run / "tracking/mlflow.json").unlink()  # the same run directory, which has lost its position: another run
        track(run)
        assert len(client.search_runs([made.info.experiment_id])) == 2


# -- W&B offline -------------------------------------------------------------------------------------------------------


def test_records_of_a_wandb_file_across_blocks(tmp_path: Path) -> None:
    """By the description of LevelDB's log format: parts of records, padding of less than a header, a cut end."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    given = [b"a" * 10, b"b" * (BLOCK - 7 - 17 - 7 - 3), b"c" * (3 * BLOCK), b"d"]
    for record in given:
        left, first = record, True
        while True:
            room = BLOCK - len(content) % BLOCK
            if room < 7:
                content += b"\0" * room
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = (1 if first else 4) if not left else (2 if first else 3)
            content += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not left:
                break
    path = tmp_path / "run.wandb"
    path.write_bytes(content)
    assert list(records_in(path)) == given
    path.write_bytes(content[:-1])
    assert list(records_in(path)) == given[:-1]
    path.write_bytes(content[: 2 * BLOCK])
    assert list(records_in(path)) == given[:2]

"""Trackers get each line of metrics.jsonl once, whatever fails or is killed in between."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from trainer.errors import CheckpointError, UsageError
from trainer.rundir import RunDir, commit_of
from trainer.tracking import background, worker
from trainer.tracking.background import Tracking
from trainer.tracking.position import BUSY, Position, exclusive, path_of
from trainer.tracking.records import Lines, config_of, documents_of, record_of, scores_of
from trainer.tracking.service import Place, Service
from trainer.tracking.upload import track
from trainer.tracking.uploader import Uploader
from trainer.tracking.worker import failure

RECIPE = {
    "name": "mt",
    "data": {"root": "/home/me/corpora/mt", "lanes": 4, "columns": {"src": "de"}, "test": None},
    "track": ["wandb"],
    "optim": {"lr": 1e-3, "betas": [0.9, 0.99]},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "mt")
    made.create()
    made.recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return made


def write(run: RunDir, *steps: int, split: str = "train", loss: float = 1.0) -> None:
    for step in steps:
        run.append(run.metrics, {"step": step, "epoch": 0, "split": split, "loss": loss / step})


class Store:
    """What a tracker has: rows in the order in which they came, and files by name."""

    def __init__(self, *, asked: bool = True, rewinds: bool = False) -> None:
        self.asked, self.rewinds = asked, rewinds
        self.rows: list[tuple[str, int, float]] = []
        self.files: list[str] = []
        self.settings: list[dict[str, Any]] = []
        self.fails: Callable[[str, int], str | None] = lambda split, step: None
        self.ids: list[str] = []
        self.ends: list[str | None] = []
        self.lost = 0  # rows at the end that a killed process had not sent yet

    @property
    def steps(self) -> list[int]:
        return [step for split, step, _ in self.rows if split == "train"]

    def __call__(self, place: Place) -> Service:
        store = self

        class Fake(Service):
            def __init__(self, place: Place) -> None:
                self.place = place

            def open(self) -> None:
                store.ids.append(place.position.id)
                if store.lost:
                    store.rows, store.lost = store.rows[: -store.lost], 0

            def held(self) -> dict[str, int] | None:
                return {split: step for split, step, _ in sorted(store.rows)} if store.asked else None

            def rewind(self, step: int) -> bool:
                if store.rewinds:
                    store.rows = [row for row in store.rows if row[1] <= step]
                return store.rewinds

            def configure(self, values: dict[str, Any]) -> None:
                store.settings.append(values)

            def log(self, record: Any) -> None:
                when = store.fails(record.split, record.step)
                if when == "before":
                    raise ConnectionError("no route to host, password=hunter2")
                store.rows.append((record.split, record.step, record.values[f"{record.split}/loss"]))
                if when == "after":
                    raise ConnectionError("the answer is lost")

            def document(self, document: Any) -> None:
                store.files.append(document.name)

            def close(self, state: str | None) -> None:
                store.ends.append(state)

        return Fake(place)


def uploader(run: RunDir, store: Store, **options: Any) -> Uploader:
    return Uploader(run, "wandb", options, store)


# -- each line once ----------------------------------------------------------------------------------------------------


def test_lines_are_logged_in_order_and_once(run: RunDir) -> None:
    store = Store()
    made = uploader(run, store)
    made.catch_up()
    assert store.ids == [], "a run without lines is not opened"
    write(run, 1, 2)
    write(run, 2, split="validation")
    made.catch_up()
    write(run, 3)
    made.catch_up()
    made.catch_up()
    assert [row[:2] for row in store.rows] == [("train", 1), ("train", 2), ("validation", 2), ("train", 3)]
    assert store.rows[1][2] == 0.5
    assert len(store.ids) == 1
    again = uploader(run, store)
    again.catch_up()
    assert (len(store.rows), again.logged) == (4, 0)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_is_caught_up_without_a_gap_or_a_double(run: RunDir, when: str, asked: bool) -> None:
    """Without an answer about what it has, a tracker may get the line in doubt twice; see the guide."""
    store, failures = Store(asked=asked), [when]
    store.fails = lambda split, step: failures.pop() if step == 2 and failures else None
    write(run, 1, 2, 3)
    made = uploader(run, store)
    with pytest.raises(ConnectionError):
        made.catch_up()
    assert store.ends == [None], "the connection was not closed"
    write(run, 4)
    made.catch_up()
    doubled = when == "after" and not asked
    assert store.steps == ([1, 2, 2, 3, 4] if doubled else [1, 2, 3, 4])
    assert len(set(store.ids)) == 1


def test_a_kill_between_a_log_and_its_record(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    write(run, 1, 2, 3)
    saves = 0

    def killed(self: Position) -> None:
        nonlocal saves
        saves += 1
        if self.last.get("train") == 2:
            raise KeyboardInterrupt
        kept(self)

    kept = Position.save
    monkeypatch.setattr(Position, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        uploader(run, store).catch_up()
    monkeypatch.undo()
    assert Position.read(run, "wandb").last == {"train": 1}
    assert store.steps == [1, 2]
    uploader(run, store).catch_up()
    assert store.steps == [1, 2, 3]


def test_what_a_tracker_had_not_sent_when_it_was_killed_is_sent_again(run: RunDir) -> None:
    store = Store()
    write(run, 1, 2, 3)
    uploader(run, store).catch_up()
    store.lost = 2
    write(run, 4)
    uploader(run, store).catch_up()
    assert store.steps == [1, 2, 3, 4]


# -- a resume from an earlier step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewinds", [True, False])
def test_a_resume_from_an_earlier_step(run: RunDir, rewinds: bool) -> None:
    store = Store(rewinds=rewinds)
    write(run, 1, 2, 3, 4, 5)
    write(run, 4, split="validation")
    uploader(run, store).catch_up()
    run.cut_after(run.metrics, 2)
    write(run, 3, 4, 5, 6, loss=100.0)
    write(run, 4, split="validation", loss=100.0)
    made = uploader(run, store)
    made.position.mark_resumed(2)
    made.catch_up()
    assert store.steps == [1, 2, 3, 4, 5, 6]
    losses = [loss for split, step, loss in store.rows if split == "train"]
    assert losses[-1] == 100 / 6
    assert losses[2] == (100 / 3 if rewinds else 1 / 3)
    assert sum(split == "validation" for split, *_ in store.rows) == 1
    assert Position.read(run, "wandb").rewind is None


def test_a_rewind_waits_until_the_tracker_works(run: RunDir) -> None:
    store = Store(rewinds=True)
    write(run, 1, 2, 3)
    uploader(run, store).catch_up()
    run.cut_after(run.metrics, 1)
    uploader(run, store).position.mark_resumed(1)  # the process that notes it ends before the tracker is reached
    write(run, 2, 3, 4, loss=100.0)
    uploader(run, store).catch_up()
    assert [row[2] for row in store.rows] == [1, 50, 100 / 3, 25]


def test_a_resume_after_the_last_line_changes_nothing(run: RunDir) -> None:
    write(run, 1, 2)
    made = uploader(run, Store())
    made.catch_up()
    made.position.mark_resumed(2)
    made.position.mark_resumed(7)
    assert made.position.rewind is None


# -- recipe, evaluations, files ----------------------------------------------------------------------------------------


def evaluated(run: RunDir, accuracy: float) -> None:
    folder = run.evaluation("test")
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"loss": 0.5, "accuracy": accuracy, "per_class": {"a b": {"f1": 0.25}}, "interval": [0.1, 0.2]}
    (folder / "metrics.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "report.html").write_text(f"<p>{accuracy}</p>", encoding="utf-8")
    (folder / "confusion_matrix.png").write_bytes(b"png")
    (folder / "predictions.jsonl").write_text("{}\n", encoding="utf-8")
    run.manifest.write_text(json.dumps({"stages": {"evaluation/test": {"step": 3}, "model": {"step": 3}}}))


def test_evaluations_and_files_are_uploaded_at_the_end_and_again_only_if_they_change(run: RunDir) -> None:
    store = Store()
    write(run, 3)
    evaluated(run, 0.75)
    made = uploader(run, store)
    made.catch_up()
    assert [row[0] for row in store.rows] == ["train"]
    made.catch_up(scores=True)
    made.finish("finished")
    assert store.rows[1:] == [("evaluation/test", 3, 0.5)]
    ours = ["evaluation/test/confusion_matrix.png", "evaluation/test/metrics.json", "evaluation/test/report.html"]
    assert sorted(store.files) == [*ours, "recipe.yaml"], "no rows besides the report"
    assert store.ends == ["finished"]
    uploader(run, store).catch_up(scores=True)
    assert (len(store.rows), len(store.files)) == (2, 4)
    evaluated(run, 0.8)
    uploader(run, store).catch_up(scores=True)
    assert (len(store.rows), sorted(store.files[4:])) == (3, ours[1:])
    record, _ = next(scores_of(run))
    assert record.values["evaluation/test/per_class/a b/f1"] == 0.25
    assert "evaluation/test/interval" not in record.values


def test_a_run_that_is_tracked_keeps_its_project(run: RunDir) -> None:
    """Another project or server is a second upload, for which the file of the first one has to be moved away."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    run.recipe.write_text("name: x\n", encoding="utf-8")
    Position.read(run, "wandb").save()
    with pytest.raises(UsageError, match=r"--set project: wandb has this run.*wandb\.json names the run"):
        track(run.path, to=["wandb"], options=["project=other"])


def test_files_can_be_left_out(run: RunDir) -> None:
    store = Store()
    evaluated(run, 0.75)
    uploader(run, store, files=False).catch_up(scores=True)
    assert (len(store.rows), store.files) == (1, [])


def test_the_recipe_is_logged_once_without_credentials_and_folders(run: RunDir) -> None:
    secret = {**RECIPE, "data": {**RECIPE["data"], "dataset": "https://me:hunter2@host/data?sig=abc"}}  # type: ignore[dict-item]
    run.recipe.write_text(yaml.safe_dump(secret), encoding="utf-8")
    settings = config_of(run)
    assert settings["data.root"] == "…/mt"
    assert settings["data.dataset"] == "https://host/data"
    assert (settings["data.lanes"], settings["optim.betas"], settings["data.test"]) == (4, "[0.9, 0.99]", "null")
    assert not any(key.startswith("track") for key in settings)
    store = Store()
    for step in (1, 2):
        write(run, step)
        uploader(run, store).catch_up()
    assert store.settings == [settings]
    assert "hunter2" not in path_of(run, "wandb").read_text(encoding="utf-8")


def test_a_document_is_not_read_through_a_link(run: RunDir, tmp_path: Path) -> None:
    evaluated(run, 0.5)
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    report = run.evaluation("test") / "report.html"
    report.unlink()
    report.symlink_to(tmp_path / "key")
    assert "evaluation/test/report.html" not in {document.name for document in documents_of(run)}


# -- what is read from a run directory ---------------------------------------------------------------------------------


def test_an_incomplete_line_waits_and_a_rewritten_file_is_read_again(run: RunDir) -> None:
    lines = Lines(run)
    assert list(lines.new()) == []
    write(run, 1, 2)
    text = run.metrics.read_text(encoding="utf-8")
    run.metrics.write_text(text[:-9], encoding="utf-8")
    assert [record.step for record in lines.new()] == [1]
    run.metrics.write_text(text, encoding="utf-8")
    assert [record.step for record in lines.new()] == [2]
    run.cut_after(run.metrics, 1)
    write(run, 2)
    assert [record.step for record in lines.new()] == [1, 2]


def test_numbers_of_a_line() -> None:
    line = {"step": 4, "epoch": 1, "split": "train", "loss": None, "lr": 0.1, "best": True, "note": "x"}
    corpora = {"news": {"rows": 3, "loss": 0.5}, "web": {"rows": 0, "loss": None}}
    record = record_of(json.dumps({**line, "corpora": corpora}).encode())
    assert record is not None
    assert record.values == {
        "train/epoch": 1, "train/lr": 0.1, "train/rows/news": 3, "train/loss/news": 0.5, "train/rows/web": 0,
    }  # fmt: skip


@pytest.mark.parametrize("line", [b"", b"{", b"3", b"[1]", b'{"step": 1}', b'{"step": "1", "split": "train"}',
                                  b'{"step": 1, "split": "../x"}', b'{"step": true, "split": "train"}'])  # fmt: skip
def test_other_lines_are_left_out(line: bytes) -> None:
    assert record_of(line) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("id", "../../x"), ("own_id", 3), ("last", {"train": "2"}), ("last", [1]), ("rewind", "1"), ("logged", {"a": 1})],
)
def test_a_damaged_position_is_reported(run: RunDir, key: str, value: object) -> None:
    made = Position.read(run, "mlflow")
    made.save()
    values = json.loads(made.path.read_text(encoding="utf-8"))
    made.path.write_text(json.dumps({**values, key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"mlflow.json: {key} has another form"):
        Position.read(run, "mlflow")


def test_comet_is_asked_for_a_new_experiment_until_it_has_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode "get" refuses an experiment that does not exist, so that a start without a network would be the last."""
    modes: list[str] = []

    class Tracker:
        def __init__(self, project: str, mode: str, **options: Any) -> None:
            modes.append(mode)

        def start(self) -> None:
            if len(modes) == 1:
                raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "comet_ml", SimpleNamespace(ExperimentConfig=lambda **options: options))
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "comet_ml", Tracker)
    service = importlib.import_module("trainer.tracking.services.comet_ml").Service
    place = Place(run, Position.read(run, "comet_ml"), {})
    with pytest.raises(ConnectionError):
        service(place).open()
    for _ in range(2):
        service(place).open()
    assert modes == ["get_or_create", "get_or_create", "get"]


def test_a_damaged_position_stops_one_tracker(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    write(run, 1, 2)
    Position.read(run, "mlflow").save()
    path_of(run, "mlflow").write_text("{", encoding="utf-8")
    monkeypatch.setattr(worker, "make_service", store)
    monkeypatch.setattr(worker, "_end_of_run", lambda parent: "finished")
    worker.follow(run, {"mlflow": {}, "wandb": {}}, None)
    assert store.steps == [1, 2]
    assert "mlflow.json is not JSON" in caplog.text and "without the tracker mlflow" in caplog.text


def test_two_processes_do_not_upload_the_same_run(run: RunDir) -> None:
    with exclusive(run), pytest.raises(UsageError, match="another process uploads"), exclusive(run):
        pass
    with exclusive(run):
        pass


@pytest.mark.parametrize(("code", "second"), [(BUSY, "100"), (1, "-")])
def test_the_step_of_a_resume_waits_for_a_process_that_gets_the_trackers(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, code: int, second: str
) -> None:
    """Else the lines after that step would be left out of a tracker that could be rewound."""
    steps: list[str] = []
    start = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        steps.append(command[5])
        end = f"sys.exit({code})" if len(steps) == 1 else "sys.stdin.read()"
        return start([sys.executable, "-c", f"import sys; {end}"], **options)

    monkeypatch.setattr(background, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(background, "check_installed", lambda names: None)
    monkeypatch.setattr(background.subprocess, "Popen", started)
    tracking = Tracking(run, ["wandb"], 100)
    for _ in range(1000):
        if len(steps) == 2:
            break
        time.sleep(0.01)
    tracking.finish("stopped")
    assert steps == ["100", second]


def test_a_process_that_does_not_get_the_trackers_says_so(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    def left(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr(worker, "LOCK_SECONDS", -1.0)
    monkeypatch.setattr(worker, "silence", lambda: os.open(os.devnull, os.O_WRONLY))
    monkeypatch.setattr(worker, "without_ranks", lambda: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker.os, "_exit", left)
    monkeypatch.setattr(sys, "argv", ["worker", str(run.path), "100", "{}"])
    logger = logging.getLogger("rankzero")
    for key in ("handlers", "propagate", "level"):  # put back after the test
        monkeypatch.setattr(logger, key, getattr(logger, key))
    with exclusive(run), pytest.raises(SystemExit):
        worker.main()
    assert codes == [BUSY]


# -- before the training -----------------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_refused(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.recipe import trackers

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb is not installed.*pip install 'rankzero\[wandb\]'"):
        Tracking(run, ["wandb"], -1)


def test_the_table_has_all_trackers_of_accelerate() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from trainer.recipe.trackers import TRACKERS

    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)
    services = Path(__file__).parent.parent / "trainer/tracking/services"
    assert {path.stem for path in services.glob("[!_]*.py")} == set(TRACKERS)


@pytest.mark.parametrize("length", [700, 50_000])
def test_the_message_about_a_failed_tracker_has_the_cause_and_the_fix(length: int) -> None:
    """The fix is often at the end: MLflow names MLFLOW_ALLOW_FILE_STORE after 600 characters."""
    error = OSError(f"the store is old {'x' * length} set `MLFLOW_ALLOW_FILE_STORE=true`")
    text = failure("mlflow", error)
    assert text.startswith("the tracker mlflow failed (OSError: the store is old xxx")
    assert "xxx set `MLFLOW_ALLOW_FILE_STORE=true`);" in text
    assert ("[…]" in text) == (length > 1000)
    assert len(text) < 1500


def test_the_commit_is_that_of_the_folder_in_which_a_run_starts(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "inner").mkdir(parents=True)
    assert commit_of(checkout) is None
    git = ["git", "-C", str(checkout), "-c", "user.name=me", "-c", "user.email=me@host"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(checkout / "inner") is None, "no commit yet"
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = (checkout / ".git" / (checkout / ".git/HEAD").read_text().split()[1]).read_text().strip()
    assert commit_of(checkout / "inner") == head

"""One mechanism decides whether an output is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import stages
from trainer.files import read_json, write_json
from trainer.rundir import RunDir
from trainer.stages import Stage, digest, file_facts, published, unchanged


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    found.create()
    return found


def stage(run: RunDir, **inputs: object) -> Stage:
    return Stage("page", inputs, [run.path / "page.html"])


def write(run: RunDir, calls: list[str]) -> None:
    calls.append("made")
    (run.path / "page.html").write_text("page")


def test_an_output_is_made_once_and_again_when_an_input_changes_or_it_is_gone(run: RunDir) -> None:
    calls: list[str] = []
    assert stage(run, step=3).make(run, lambda: write(run, calls))
    assert not stage(run, step=3).make(run, lambda: write(run, calls))
    assert calls == ["made"]
    assert stage(run, step=4).make(run, lambda: write(run, calls))
    assert not stage(run, step=3).is_done(run), "the record is that of step 4"
    (run.path / "page.html").unlink()
    assert stage(run, step=4).make(run, lambda: write(run, calls))
    assert len(calls) == 3


def test_a_failed_stage_leaves_no_record(run: RunDir) -> None:
    def fail() -> None:
        (run.path / "page.html").write_text("part")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        stage(run, step=3).make(run, fail)
    assert not stage(run, step=3).is_done(run)


def test_a_record_keeps_other_stages_and_facts(run: RunDir) -> None:
    write_json(run.manifest, {"format": 1, "stages": {"model": {"step": 3, "value": 0.5}}})
    stage(run, step=3).record(run, seconds=2)
    assert read_json(run.manifest) == {
        "format": 1,
        "stages": {"model": {"step": 3, "value": 0.5}, "page": {"step": 3, "seconds": 2}},
    }


def test_a_folder_is_published_complete_or_not_at_all(run: RunDir) -> None:
    with published(run.model) as folder:
        (folder / "config.json").write_text("old")
        assert not run.model.exists()

    def fail() -> None:
        with published(run.model) as folder:
            (folder / "config.json").write_text("new")
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        fail()
    assert (run.model / "config.json").read_text() == "old"
    assert [path.name for path in run.path.iterdir() if "making" in path.name] == []


def test_a_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
    assert file_facts(tmp_path / "missing") == {"bytes": None, "sha256": None}
    (tmp_path / "file").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_facts(tmp_path / "file") == {"bytes": 3, "sha256": sha256}


def test_times_of_the_parts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 10.0, 13.6, 20.0, 21.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(now))
    times = stages.Times()
    with times.of("evaluation"):
        pass
    with pytest.raises(KeyError), times.of("artifacts"):
        raise KeyError
    with times.of("evaluation"):
        pass
    assert str(times) == "evaluation 3 s, artifacts 4 s"


def test_inputs_that_were_never_recorded_are_a_change() -> None:
    assert not unchanged({"step": 1}, None)
    assert not unchanged({"step": 1, "settings": {}}, {"step": 1})
    assert unchanged({"step": 1}, {"step": 1, "more": 2})

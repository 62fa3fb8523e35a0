"""Training on a remote corpus: the same weights as on local files, whatever the store does; and no credentials."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import random
import sys
import traceback
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import hooks
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_corpus, write_recipe
from fault_store import FaultStore, StatusError, cut, raising

from trainer import cli
from trainer import train as train_api
from trainer.data import remote, remote_file
from trainer.engine import multipart
from trainer.engine.remote_folder import RemoteFolder
from trainer.rundir import RunDir

STEPS = 6
SECRET = "S3CR3T" + "plantedvalue"
MORE = ["loop.eval_every=3", "evaluation.max_rows=4", "evaluation.bootstrap=1", "data.test=null", "loop.ledger=false"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The same rows as JSON Lines and as Parquet, and the weights that a local run ends with."""
    folder = write_corpus(tmp_path_factory.mktemp("remote"), train=120, validation=6)
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=40)
    return folder


@pytest.fixture(scope="module")
def recipe(corpus, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", corpus)


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("local") / "run"
    assert train(recipe, run) == 0
    return weights(run)


def train(recipe: Path, run: Path, *overrides: str, steps: int = STEPS, **options: object) -> int:
    arguments = [*MORE, f"loop.max_steps={steps}", *overrides]
    return cli.run_app(lambda: cli.train(str(recipe), arguments, run=run, **options))


def weights(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.fixture
def store(corpus, monkeypatch):
    for module, name, value in (
        *((remote, "FIRST_WAIT", 0.001), (remote, "LONGEST_WAIT", 0.01), (remote, "_answered", set())),
        (remote_file, "BLOCK", 4096),
    ):
        monkeypatch.setattr(module, name, value)
    return FaultStore.reset(corpus)


def test_faults_of_the_store_do_not_change_the_weights(store, recipe, expected, tmp_path, monkeypatch):
    draw = random.Random(3)
    kinds = [cut, raising(ConnectionResetError()), raising(StatusError(503)), raising(StatusError(429))]
    happened = []

    def plan(number):
        if draw.random() < 0.4:
            happened.append(number)
            return draw.choice(kinds)
        return None

    store.plan = staticmethod(plan)
    assert train(recipe, tmp_path / "run", "data.root=fault://host/") == 0
    assert len(happened) > 10
    assert weights(tmp_path / "run") == expected


def test_a_corpus_that_changes_ends_the_run_with_3(store, recipe, corpus, tmp_path, monkeypatch):
    rows = (corpus / "train.jsonl").read_bytes()
    monkeypatch.setattr(remote, "RECHECK_SECONDS", 0.0)

    def plan(number):
        if number == 40:
            (corpus / "train.jsonl").write_bytes(rows.replace(b"dog", b"cat"))
        return

    store.plan = staticmethod(plan)
    try:
        assert train(recipe, tmp_path / "run", "data.root=fault://host/", steps=100) == 3
    finally:
        (corpus / "train.jsonl").write_bytes(rows)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 3
    assert "train.jsonl has changed since this run began" in status["error"]


# -- credentials -------------------------------------------------------------------------------------------------------

ROOT = f"fault://user:{SECRET}@host/"


def written(folder: Path) -> str:
    return "".join(path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file())


class Unexpected(Exception):
    pass


LEAK = f"for https://user:{SECRET}@host/train.jsonl?X-Amz-Signature={SECRET}"
FAILURES = {
    "none": (lambda number: None, [], 0),
    "no file matches": (lambda number: None, ["data.train=nothing-*.jsonl"], 3),
    "forbidden": (lambda number: raising(PermissionError(f"403 {LEAK}")), [], 3),
    "outage": (lambda number: raising(ConnectionError(LEAK)), [], 1),
    "a defect in the middle": (lambda number: raising(AssertionError(LEAK)) if number > 12 else None, [], 1),
    "a worker": (lambda number: raising(PermissionError(LEAK)) if in_worker() else None, ["data.workers=1"], 3),
}


def in_worker() -> bool:
    return multiprocessing.parent_process() is not None


@pytest.mark.parametrize("failure", FAILURES)
def test_no_credential_is_written_or_printed(failure, store, recipe, tmp_path, monkeypatch, capfd):
    plan, overrides, code = FAILURES[failure]
    monkeypatch.setenv("RANKZERO_STORE_SECONDS", "0.05")
    monkeypatch.setattr(sys, "argv", ["rankzero", "train", str(recipe), f"data.root={ROOT}"])
    store.plan, store.expected = staticmethod(plan), f"user:{SECRET}@host"
    mirror = f"loop.mirror=fault://user:{SECRET}@host/{tmp_path.name}"
    assert train(recipe, tmp_path / "run", f"data.root={ROOT}", mirror, *overrides, steps=3) == code
    out = "".join(capfd.readouterr())
    assert code == 0 or "rankzero: " in out or "Traceback" in out
    assert SECRET not in out
    assert SECRET not in written(tmp_path / "run")
    assert (store.folder / tmp_path.name / "run" / "recipe.yaml").exists() == (code == 0)
    assert SECRET not in written(store.folder / tmp_path.name)


def test_the_traceback_of_a_program_holds_no_credential(store, recipe, tmp_path, monkeypatch):
    store.plan, store.expected = staticmethod(lambda number: raising(PermissionError(LEAK))), f"user:{SECRET}@host"
    with pytest.raises(Exception, match="cannot be read") as failed:
        train_api(str(recipe), [*MORE, f"data.root={ROOT}"], run=tmp_path / "run")
    assert SECRET not in "".join(traceback.format_exception(failed.value))


# -- S3 ----------------------------------------------------------------------------------------------------------------


class Refusing:
    """A server in front of another one, which answers some requests with 503."""

    parts: ClassVar[dict[str, int]] = {}  # number of a part of an upload -> how often it is refused
    sent: ClassVar[list[str]] = []  # numbers of the parts that were received

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        number = dict(parse_qsl(environ["QUERY_STRING"])).get("partNumber", "")
        if number and environ["REQUEST_METHOD"] == "PUT":
            self.sent.append(number)
        if self.parts.get(number):
            self.parts[number] -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>"]
        return self.app(environ, start)


@pytest.fixture(scope="module")
def bucket(corpus):
    """A bucket on a server of this machine, with the corpus."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    server._server.app = Refusing(server._server.app)
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": address,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("corpus")
        for file in corpus.glob("*.*"):
            system.put_file(str(file), f"corpus/data/{file.name}")
        yield "s3://corpus"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


PARQUET = ["data.train=train.parquet", "data.validation=validation.parquet"]


def test_training_from_a_bucket_is_the_same_as_from_a_folder(bucket, recipe, expected, tmp_path):
    assert train(recipe, tmp_path / "run", f"data.root={bucket}/data", steps=3) == 0
    assert train(recipe, tmp_path / "run", f"data.root={bucket}/data", allow_change=["loop.max_steps"]) == 0
    assert weights(tmp_path / "run") == expected
    assert SECRET not in written(tmp_path / "run")


@pytest.mark.slow
def test_parquet_in_a_bucket_is_the_same_as_in_a_folder(bucket, recipe, tmp_path):
    assert train(recipe, tmp_path / "local", *PARQUET) == 0
    assert train(recipe, tmp_path / "run", f"data.root={bucket}/data", "data.workers=2", *PARQUET) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "local")


def test_a_run_moves_to_another_machine_through_a_bucket(bucket, recipe, expected, tmp_path, capsys):
    root = f"data.root={bucket}/data"
    more = {"allow_change": ["loop.max_steps"]}
    assert train(recipe, tmp_path / "first" / "run", root, f"loop.mirror={bucket}/mirror", steps=3) == 0
    url = f"{bucket}/mirror/run"
    assert train(recipe, tmp_path / "second" / "run", root, resume_from=url, **more) == 0
    assert weights(tmp_path / "second" / "run") == expected
    assert "fetched the checkpoint of step 3 from s3://corpus/mirror/run" in capsys.readouterr().err
    first, second = (RunDir(tmp_path / name / "run") for name in ("first", "second"))
    assert second.metrics.read_text().startswith(first.metrics.read_text().splitlines()[0])
    assert len(json.loads(second.manifest.read_text())["starts"]) == 1


def test_a_part_that_the_server_refuses_is_sent_again_alone(bucket, tmp_path, monkeypatch):
    """With as many answers of 503 as s3fs and botocore make of it an error of the upload."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(multipart, "PART", 5 << 20)  # S3 accepts no smaller part but the last
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    content = random.Random(5).randbytes((16 << 20) + 7)
    (tmp_path / "large").write_bytes(content)
    for place, failures in (("direct", 1), ("in-parts", 3)):
        Refusing.parts, Refusing.sent = {"2": failures}, []
        folder = RemoteFolder(f"{bucket}/large", "loop.mirror")
        folder.system.clear_instance_cache()
        folder = RemoteFolder(f"{bucket}/large", "loop.mirror")
        if place == "direct":  # what s3fs does alone
            with pytest.raises(OSError, match="later"):
                folder.system.put_file(str(tmp_path / "large"), f"corpus/{place}", chunksize=5 << 20)
            continue
        folder.put(tmp_path / "large", place)
        assert folder.read(place) == content
        assert sorted(Refusing.sent) == ["1", "2", "2", "2", "2", "3", "4"]


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_share_a_cache_and_a_killed_run_moves_through_a_bucket(bucket, recipe, tmp_path, monkeypatch):
    """Two ranks on local files, and two on a bucket: killed, and resumed on another machine from its mirror."""
    monkeypatch.setenv("RANKZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RANKZERO_CACHE_GB", "1")
    more = [*MORE, f"loop.max_steps={STEPS}", "loop.save_every=1"]
    local, first, second = tmp_path / "local", tmp_path / "first" / "run", tmp_path / "second" / "run"
    processes.train(recipe, local, *more, world=2).check()
    remote_words = [*more, f"data.root={bucket}/data", f"loop.mirror={tmp_path / 'mirror'}", "data.workers=1"]
    copied = tmp_path / "mirror" / "run" / "step-00000004" / "manifest.json"
    hook = functools.partial(hooks.killed_once_written, 5, 1, str(copied))
    assert processes.train(recipe, first, *remote_words, world=2, hook=hook).code != 0
    assert list((tmp_path / "cache").glob("??/*"))
    moved = processes.train(recipe, second, *remote_words, "--resume-from", copied.parent.parent, world=2).check()
    assert "fetched the checkpoint of step 4" in moved.text
    assert weights(second) == weights(local)
    assert SECRET not in moved.text
    assert SECRET not in written(tmp_path)
    monkeypatch.undo()

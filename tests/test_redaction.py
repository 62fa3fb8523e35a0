"""No credential and no local folder in what a run records, prints or publishes."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import processes
import pytest
import review_helpers
from test_analysis import CLASSIFICATION, binary, write_run
from test_report import SCORES

from trainer.cli import run_app, set_up_logging
from trainer.engine.resume_checks import agree_with_earlier
from trainer.engine.trained_run import build_model
from trainer.errors import DataError
from trainer.files import read_json
from trainer.recipe_loading import load_recipe
from trainer.redaction import origin, redacted, shareable
from trainer.report.card import write_card
from trainer.report.report import write_report
from trainer.rundir import RunDir, Status

ROOT = "https://ci:TOPSECRET@files.example.org/d?sig=SASTOKEN&se=2026"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (ROOT, "https://files.example.org/d"),
        (f"'{ROOT}' (OSError)", "'https://files.example.org/d' (OSError)"),
        ("s3://KEY:sec/ret+x@bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("https://h:8080/d/x@v1.jsonl", "https://h:8080/d/x@v1.jsonl"),
        ("https://u:p@ss#w?d@h/d", "https://h/d"),
        ("zip://*.csv::https://u:p@h/x.zip?sig=1", "zip://*.csv::https://h/x.zip"),
        (
            "https://a.s3.amazonaws.com/k?X-Amz-Credential=AKIA&X-Amz-Signature=f00 and",
            "https://a.s3.amazonaws.com/k and",
        ),
        ("abfs://container@account.dfs.core.windows.net/d", "abfs://container@account.dfs.core.windows.net/d"),
        ("401 for token hf_AbCdEfGhIjKlMnOpQrSt", "401 for token ***"),
        ("--set hf_token=abc AWS_SECRET_ACCESS_KEY=abc", "--set hf_token=*** AWS_SECRET_ACCESS_KEY=***"),
        ("MY_KEY=abc 'SITE_TOKEN=x y' DB_PWD=\"p\"", "MY_KEY=*** 'SITE_TOKEN=*** y' DB_PWD=\"***\""),
        ('MASK_TOKEN = "[MASK]", sort_key=size', 'MASK_TOKEN = "[MASK]", sort_key=size'),
        ("{'Authorization': 'Bearer abcdefgh12345678'}", "{'Authorization': 'Bearer ***'}"),
        ("embedded://reviews train?rows=10", "embedded://reviews train?rows=10"),
        (
            "data.tokens_per_batch=512 eos_token: '</s>' kept: a/b",
            "data.tokens_per_batch=512 eos_token: '</s>' kept: a/b",
        ),
    ],
)
def test_credentials_are_taken_out(text, clean):
    assert redacted(text) == clean
    assert redacted(clean) == clean
    assert redacted({"a": [text, 1, None]}) == {"a": [clean, 1, None]}


def test_messages_have_no_control_characters(capsys):
    set_up_logging()
    logging.getLogger("rankzero").warning("a row\twith \x1b[31mred\x07 and \r\x9b2J\nand a line")
    assert capsys.readouterr().err == "a row\twith \ufffd[31mred\ufffd and \ufffd\ufffd2J\nand a line\n"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("root: /home/me/data\ntrain: a/b.jsonl", "root: …/data\ntrain: a/b.jsonl"),
        ("train /home/me/r.yaml --run /x/y data.root=/data", "train …/r.yaml --run …/y data.root=…/data"),
        ("file:///home/me/data/a.csv and 'pip/npm'", "file://…/a.csv and 'pip/npm'"),
        ("https://h/a/b, org/model, pkg://a/b, </s>, 3/4", "https://h/a/b, org/model, pkg://a/b, </s>, 3/4"),
    ],
)
def test_local_folders_are_removed_from_published_files(text, clean):
    assert shareable(text) == clean
    assert shareable(clean) == clean
    assert redacted(text) == text


def test_card_and_report_of_an_older_run_hold_neither(tmp_path):
    run = write_run(tmp_path / "run", [binary(n, "negative", 0.9) for n in range(30)], CLASSIFICATION, SCORES)
    data = f"data:\n  root: {ROOT}\n  train: t.jsonl\n"
    run.recipe.write_text(run.recipe.read_text().replace("tiny-bert", "/home/me/weights/bert") + data)
    manifest = read_json(run.manifest)
    manifest["config"] = "/home/me/my configs/zero2.yaml"
    manifest["command"] = ["/home/me/bin/rankzero", "train", "/home/me/r.yaml", f"data.root={ROOT}"]
    run.manifest.write_text(json.dumps(manifest))
    for page in (write_card(run), write_report(run, "test")):
        text = page.read_text()
        assert "files.example.org/d" in text
        assert "…/bert" in text
        assert page.suffix != ".md" or "rankzero train recipe.yaml --config '…/my configs/zero2.yaml' --run NEW" in text
        for secret in ("TOPSECRET", "SASTOKEN", "ci:", "/home/me"):
            assert secret not in text, (page.name, secret)


def test_a_stored_recipe_has_no_credentials_and_agrees_with_its_own(tmp_path):
    recipe = load_recipe("sst2", [f"data.root={ROOT}"])
    run = RunDir(tmp_path / "run")
    run.create()
    (run.checkpoints / "step-00000001").mkdir()
    for root in (ROOT, ROOT, ROOT.replace("TOPSECRET", "NEWSECRET")):
        agree_with_earlier(run, load_recipe("sst2", [f"data.root={root}"]), [])
        assert "root: https://files.example.org/d\n" in run.recipe.read_text()
        assert "SECRET" not in run.recipe.read_text()
    assert ROOT in recipe.to_yaml()  # the recipe that is used keeps them


def test_messages_logs_tracebacks_and_status_hold_none(tmp_path, capsys, monkeypatch):
    run = RunDir(tmp_path)
    error = DataError(f"data.root={ROOT!r} cannot be read")
    Status(run, 1).finish("failed", 3, f"OSError: {ROOT}")

    def fail() -> int:
        logging.getLogger("rankzero").warning("reading %s", ROOT)
        raise OSError(f"401 for {ROOT}")

    def refuse() -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["rankzero"])
    set_up_logging()
    assert run_app(fail) == 1
    assert run_app(refuse) == 3
    said = capsys.readouterr().err + run.status.read_text() + str(error)
    assert said.count("https://files.example.org/d") == 5
    for secret in ("TOPSECRET", "SASTOKEN"):
        assert secret not in said


@pytest.mark.ranks
@pytest.mark.slow
def test_no_file_of_a_run_over_http_holds_the_password(tmp_path):
    """Trained, stopped, resumed with the same recipe, evaluated with the root given again."""
    pytest.importorskip("aiohttp")
    (data := tmp_path / "data").mkdir()
    review_helpers.write_reviews(data)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(data))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://ci:TOPSECRET@127.0.0.1:{server.server_port}"
    try:
        recipe = review_helpers.written(tmp_path, review_helpers.recipe(root))
        run = tmp_path / "run"
        said = [processes.train(recipe, run, "loop.max_steps=4").check().text]
        more = ("loop.max_steps=8", "--allow-change", "loop.max_steps", f"data.root={root}")
        said.append(processes.train(recipe, run, *more).check().text)
        ended = processes.run_ranks(["evaluate", run, f"data.root={root}"], processes.next_logs(run))
        said.append(ended.check().text)
        shutil.copy(recipe, tmp_path / "broken.yaml")
        broken = processes.train(tmp_path / "broken.yaml", tmp_path / "no", "data.train=no.jsonl").check(3).text
        assert f"http://127.0.0.1:{server.server_port}" in broken
        said.append(broken)
    finally:
        server.shutdown()
    assert "TOPSECRET" not in "".join(said)
    files = [path for path in [*run.rglob("*"), *(tmp_path / "no").rglob("*")] if path.is_file()]
    assert len(files) > 20
    assert [str(path) for path in files if b"TOPSECRET" in path.read_bytes()] == []
    manifest = (run / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert f"http://127.0.0.1:{server.server_port}" in manifest


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_config_json_does_not_name_the_folder_of_the_weights(tmp_path, bert, reviews, pooling):
    """The library's key, and our own model section beside the configuration of a trunk."""
    made = review_helpers.recipe(reviews, {"kind": "pretrained", "name": str(bert), "pooling": pooling})
    task = review_helpers.task_of(made)
    config = task.model_config(build_model(task))
    assert str(bert.parent) not in json.dumps(config)
    assert config.get("name", bert.name) == bert.name
    assert (origin("org/model@main"), origin(None), origin("pkg://a/b")) == ("org/model@main", None, "pkg://a/b")

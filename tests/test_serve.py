"""serve.py of an artifact under load: the answers of run.py, in batches, and no bad request harms."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from export_helpers import Exported
from test_export import agree

LACKING = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)}: pip install 'rankzero[serve]'")
CLIENTS, REQUESTS = 8, 80


@pytest.fixture(scope="module")
def server(encoder: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server of an artifact, and the artifact's folder."""
    folder = tmp_path_factory.mktemp("served") / "onnx"
    shutil.copytree(encoder.folder, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", str(folder / "serve.py"), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(f"the server ended: {process.stdout.read().decode() if process.stdout else ''}")
            try:
                assert get(f"{address}/health")[0] == 200
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield address, folder
        assert process.poll() is None, "the server has crashed"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def get(url: str, body: Any = None) -> tuple[int, str]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(address: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", get(f"{address}/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_answers_are_those_of_run_py_in_batches(server: tuple[str, Path]) -> None:
    address, folder = server
    words = ["good", "bad", "film", "plot", "dull", "fine", "a", "the", "<b>ok</b>", "😀"]
    requests = [
        [" ".join(words[(i * 7 + j * k) % 10] for j in range(3 + i % 20)) for k in range(1 + i % 3)]
        for i in range(REQUESTS)
    ]
    lines = [text for texts in requests for text in texts]
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda texts: get(f"{address}/predict", {"texts": texts}), requests))
    assert {status for status, _ in answers} == {200}
    records = [record for _, answer in answers for record in json.loads(answer)["records"]]
    ended = subprocess.run(
        [sys.executable, str(folder / "run.py")],
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
    )
    agree(records, [json.loads(line) for line in ended.stdout.splitlines()])
    assert metric(address, "rankzero_texts_total") == len(lines)
    assert metric(address, "rankzero_batch_texts_sum") == len(lines)
    batches = metric(address, "rankzero_batch_texts_count")
    assert batches < 0.8 * REQUESTS, "requests were not answered together"
    assert metric(address, 'rankzero_requests_total{status="200"}') == REQUESTS
    assert metric(address, "rankzero_request_seconds_count") == REQUESTS


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON",
        b"\xff\xfe",
        {},
        {"texts": []},
        {"texts": "a text"},
        {"texts": [1]},
        {"texts": ["a"] * 257},
        {"texts": ["a" * 100_001]},
        {"texts": ["a"], "rows": [{"text": "a"}]},
        {"texts": ["a"], "more": 1},
        {"rows": [{"other": "a"}]},
        {"rows": [{"text": 5}]},
        [1, 2],
        {"texts": [1] * 256},
        {"a" * 100_000: 1},
    ],
)
def test_a_bad_request_is_answered_with_422(body: Any, server: tuple[str, Path]) -> None:
    address, _ = server
    status, text = get(f"{address}/predict", body)
    assert status == 422, text
    assert json.loads(text)["detail"]
    assert len(text) < 1000, "texts are not repeated"
    assert get(f"{address}/predict", {"texts": ["a good film"]})[0] == 200


@pytest.mark.parametrize("body", [{"text": "a"}, {"inputs": ["a"]}, {}, "a", b"no JSON"])
def test_a_request_of_another_form_is_answered_with_the_expected_one(body: Any, server: tuple[str, Path]) -> None:
    address, _ = server
    status, text = get(f"{address}/predict", body)
    (detail,) = json.loads(text)["detail"]
    assert status == 422
    assert detail["msg"].endswith('; write {"texts": ["…", …]} or {"rows": [{"text": "…"}, …]}')
    if isinstance(body, dict) and body:
        assert (detail["loc"], detail["msg"].partition(";")[0]) == (["body", *body], "unknown key")


@pytest.mark.parametrize(("port", "end"), [("99999", "--port 99999: a port is a number from 0 to 65535"),
                                           ("-1", "--port -1: a port is a number from 0 to 65535"),
                                           ("http", "argument --port: invalid int value: 'http'")])  # fmt: skip
def test_a_wrong_port_is_refused(port: str, end: str, server: tuple[str, Path]) -> None:
    command = [sys.executable, str(server[1] / "serve.py"), f"--port={port}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.rstrip().endswith(end)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_too_large_is_refused_with_413(chunked: bool, server: tuple[str, Path]) -> None:
    """Also where its length is not announced."""
    address, _ = server
    host, port = address.removeprefix("http://").split(":")
    length, piece = 33 << 20, b" " * (1 << 20)
    with socket.create_connection((host, int(port)), timeout=60) as client:
        form = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"
        lines = ("POST /predict HTTP/1.1", "Host: x", "Content-Type: application/json", form)
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        with contextlib.suppress(OSError):  # the server need not read all of it
            for _ in range(33 if chunked else 1):
                client.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
        assert b" 413 " in client.recv(4096).partition(b"\r\n")[0]
    assert get(f"{address}/predict", {"texts": ["a good film"]})[0] == 200


def test_rows_are_answered_as_texts(server: tuple[str, Path]) -> None:
    address, _ = server
    rows, texts = ({"rows": [{"text": "a\tgood film"}]}, {"texts": ["a good film"]})
    found = [json.loads(get(f"{address}/predict", body)[1])["records"][0] for body in (rows, texts)]
    assert found[0]["label"] == found[1]["label"]
    assert found[0]["probabilities"] == pytest.approx(found[1]["probabilities"], abs=1e-5)


def test_clients_that_leave_do_no_harm(server: tuple[str, Path]) -> None:
    address, _ = server
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"texts": ["a film " * 50] * 50}).encode()
    for _ in range(20):
        with socket.create_connection((host, int(port))) as client:
            lines = (
                "POST /predict HTTP/1.1",
                "Host: x",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
            )
            client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    assert get(f"{address}/predict", {"texts": ["a good film"]})[0] == 200


def test_the_api_is_described(server: tuple[str, Path]) -> None:
    address, _ = server
    paths = json.loads(get(f"{address}/openapi.json")[1])["paths"]
    assert {"/predict", "/health"} == paths.keys()
    assert {"200", "413", "422", "503"} <= paths["/predict"]["post"]["responses"].keys()
    health = json.loads(get(f"{address}/health")[1])
    assert (health["status"], health["task"]) == ("ok", "classification")

"""Serve the artifact in this folder over HTTP: an example to start from. It needs what run.py needs, and:

    pip install fastapi uvicorn prometheus-client
    python serve.py --port 8000

    POST /predict   {"texts": ["…", …]} or {"rows": [{"column": "…"}, …]} -> {"records": [{"text": …, …}, …]}
    GET  /health    200 once the model is loaded
    GET  /metrics   Prometheus
    GET  /docs      the API; its OpenAPI document is /openapi.json

Requests that arrive while the model computes are answered together, in one batch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Self

import run  # type: ignore[import-not-found]  # run.py in this folder
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MOST_TEXTS = 256  # of a request
MOST_CHARACTERS = 100_000  # of a text
MOST_BYTES = 32 << 20  # of a request; larger ones are answered with 413
MOST_ERRORS, MOST_KEY = 5, 40  # mistakes in an answer with 422, and characters of a key
MOST_WAITING = 2048  # texts; further requests are answered with 503
BATCH = 64  # texts that are answered together
WAIT = 0.002  # seconds to wait for more texts after the first

Text = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]
SIZES = (1, 2, 4, 8, 16, 32, 64)
REQUESTS = Counter("rankzero_requests", "Requests to /predict by status", ["status"])
TEXTS = Counter("rankzero_texts", "Texts that were answered")
WAITING = Gauge("rankzero_waiting_texts", "Texts that wait for the model")
BATCHES = Histogram("rankzero_batch_texts", "Texts of a batch", buckets=SIZES)
SECONDS = Histogram("rankzero_request_seconds", "Time from a request to its answer")


class Question(BaseModel):
    """Texts, or rows with the columns of the recipe."""

    model_config = ConfigDict(extra="forbid")
    texts: Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)] | None = None
    rows: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_TEXTS)] | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.texts is None) == (self.rows is None):
            raise ValueError('one of "texts" and "rows" is needed')
        return self


class Answer(BaseModel):
    """One record per text, in order: those of run.py."""

    records: list[dict[str, Any]]


class Batcher:
    """Collects texts of requests, and answers them together in one thread."""

    def __init__(self, artifact: Any) -> None:
        self.artifact, self.columns = artifact, artifact.settings.get("columns", ())
        self.waiting: asyncio.Queue[tuple[str, asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)

    async def answer(self, lines: list[str]) -> list[dict[str, Any]]:
        futures = [asyncio.get_running_loop().create_future() for _ in lines]
        for pair in zip(lines, futures, strict=True):
            self.waiting.put_nowait(pair)
        return await asyncio.gather(*futures)

    async def work(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            if self.waiting.qsize() < BATCH - 1:
                await asyncio.sleep(WAIT)
            while len(batch) < BATCH and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [pair for pair in batch if not pair[1].done()]  # clients that have left
            if batch:
                BATCHES.observe(len(batch))
                await self.compute(batch)

    async def compute(self, batch: list[tuple[str, asyncio.Future[dict[str, Any]]]]) -> None:
        lines, futures = zip(*batch, strict=True)
        try:
            work = asyncio.get_running_loop().run_in_executor(self.thread, lambda: list(self.artifact(lines)))
            for future, record in zip(futures, await work, strict=True):
                if not future.done():
                    future.set_result(record)
        except Exception as error:  # of the runtime: these requests fail, later ones are answered
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def line(self, row: dict[str, Any]) -> str:
        """A row as a line of run.py. One without the columns is refused by the artifact."""
        return run.row_of(json.dumps(row), self.columns)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.batcher = Batcher(run.load(Path(__file__).parent))
    worker = asyncio.create_task(app.state.batcher.work())
    yield
    worker.cancel()


class Limit:
    """Refuses a body of more than MOST_BYTES, as soon as its length is known."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        if length.isdigit() and int(length) > MOST_BYTES:
            await JSONResponse({"detail": TOO_LARGE}, 413)(scope, receive, send)
        else:
            await self.app(scope, counted, send)


TOO_LARGE = f"a request has at most {MOST_BYTES:,} bytes"
app = FastAPI(title="rankzero artifact", lifespan=lifespan)
app.add_middleware(Limit)


@app.exception_handler(RequestValidationError)
async def refuse(request: Any, error: RequestValidationError) -> JSONResponse:
    """Say what is wrong with a request and what is expected, without repeating its texts."""
    row = ", ".join(f'{json.dumps(column)}: "…"' for column in app.state.batcher.columns) or '"column": "…"'
    form = f'; write {{"texts": ["…", …]}} or {{"rows": [{{{row}}}, …]}}'
    found = []
    for e in error.errors()[:MOST_ERRORS]:
        place = [part if isinstance(part, int) else part[:MOST_KEY] for part in e["loc"]]
        what = "unknown key" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, ")
        found.append({"loc": place, "msg": what + form * (len(place) <= 2)})
    return JSONResponse({"detail": found}, 422)


@app.post("/predict", responses={413: {"description": TOO_LARGE}, 503: {"description": "too many texts are waiting"}})
async def predict(question: Question) -> Answer:
    """Answer texts. 422: a text that the model cannot read. 503: too many texts are waiting."""
    batcher: Batcher = app.state.batcher
    lines = question.texts if question.texts is not None else [batcher.line(row) for row in question.rows or ()]
    if batcher.waiting.qsize() + len(lines) > MOST_WAITING:
        raise HTTPException(503, "too many texts are waiting", headers={"Retry-After": "1"})
    with SECONDS.time():
        records = await batcher.answer(lines)
    if errors := [{"number": i, "error": r["error"]} for i, r in enumerate(records) if "error" in r]:
        raise HTTPException(422, errors)
    TEXTS.inc(len(records))
    return Answer(records=records)


@app.middleware("http")
async def count(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    if request.url.path == "/predict":
        REQUESTS.labels(response.status_code).inc()
    return response


@app.get("/health")
def health() -> dict[str, Any]:
    settings = app.state.batcher.artifact.settings
    return {"status": "ok", "name": settings["name"], "task": settings["task"]}


@app.get("/metrics", include_in_schema=False)
def metrics() -> Response:
    WAITING.set(app.state.batcher.waiting.qsize())
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 to 65535; 0: a free one")
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port {arguments.port}: a port is a number from 0 to 65535")
    uvicorn.run(app, host=arguments.host, port=arguments.port)

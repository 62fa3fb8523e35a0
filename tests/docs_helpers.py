"""Commands of documentation pages, and a workspace in which they run.

A comment before a bash block says how a test treats it. Without a comment the block runs as it is.

    <!-- test: run TINY_MT loop.max_steps=2 -->   run it; `rankzero` gets these words in addition (presets: WORDS)
    <!-- test: parse, needs GPUs -->              check only options, recipe and config; the reason is required

`rankzero` in a block is forked from a server that has imported everything once, so that a command takes a second.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
WORDS = {
    "FAST": ["evaluation.bootstrap=10", "evaluation.max_rows=8", "evaluation.splits=[test]"],
    "FAST_VALIDATION": [
        "evaluation.bootstrap=10",
        "evaluation.max_rows=8",
        "export.model=false",
        "export.onnx=false",
        "export.int8=false",
    ],
    "NO_EXPORT": ["export.model=false", "export.onnx=false", "export.int8=false"],
    "TINY_CORPUS": ["data.train=train?rows=200", "data.validation=validation?rows=8", "data.test=test?rows=8"],
    "TINY_MODEL": [
        "model={kind: transformer, d_model: 16, heads: 2, feed_forward: 16, encoder_layers: 1, decoder_layers: 1}",
        "tokenizer.train.vocab_size=200",
        "evaluation.beam_size=1",
    ],
    "TINY_ENCODER": ["model={kind: encoder, d_model: 16, layers: 1, heads: 2, feed_forward: 16}"],
    "TINY_TOKENIZER": ["tokenizer={train: {kind: wordpiece, vocab_size: 200}}"],
    "TINY_T5": [
        "model={kind: pretrained, architecture: t5, size: tiny}",
        "tokenizer={train: {kind: unigram, vocab_size: 100}}",
        "evaluation.beam_size=1",
    ],
}
WORDS["TINY_MIX"] = ["data.validation=validation?rows=8", "data.test=test?rows=8", *WORDS["TINY_MODEL"]]
WORDS["TINY_MT"] = WORDS["TINY_CORPUS"] + WORDS["TINY_MODEL"]
WORDS["TINY_TICKETS"] = WORDS["TINY_ENCODER"] + WORDS["TINY_TOKENIZER"]
TAKING_WORDS = ("train", "prepare", "plan", "export", "bench", "evaluate")
BLOCK = re.compile(r'^(?:<!-- test: (.+?) -->\n)?```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, file name and text, and what its test comment says."""

    comment: str
    language: str
    title: str
    text: str

    @property
    def parsed_only(self) -> bool:
        return self.comment.startswith("parse")

    @property
    def words(self) -> list[str]:
        """The words that a command gets in addition."""
        found = shlex.split(self.comment.removeprefix("run"))
        return [word for name in found for word in WORDS.get(name, [name])]


def pages() -> list[str]:
    """All pages whose commands are tested, tutorials first."""
    return [
        str(path.relative_to(DOCS)) for part in ("tutorials", "how-to") for path in sorted((DOCS / part).glob("*.md"))
    ]


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [Block(*(group or "" for group in match.groups())) for match in BLOCK.finditer(text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `rankzero` or `-m trainer` command, from the name of its subcommand on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        start = next((at for at, word in enumerate(words) if word in ("rankzero", "trainer")), None)
        if start is not None:
            stop = (at for at, word in enumerate(words) if at > start and word in ("|", "||", "&&", ";", "<", ">"))
            yield words[start + 1 : next(stop, len(words))]


class Workspace:
    """A folder in which pages run, one after another; each page runs once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        self._socket = folder / "server"
        binary = folder / "bin/rankzero"
        binary.parent.mkdir()
        binary.write_text(f"#!{sys.executable} -IS\n{CLIENT}", encoding="utf-8")
        binary.chmod(0o755)
        self._env = {
            **os.environ,
            "PATH": os.pathsep.join((str(binary.parent), str(Path(sys.executable).parent), os.environ["PATH"])),
            "RANKZERO_TEST_SOCKET": str(self._socket),
        }
        self._server = subprocess.Popen([sys.executable, __file__, str(self._socket)])
        while not self._socket.exists():
            assert self._server.poll() is None, "the server has ended"
            time.sleep(0.05)

    def run(self, page: str) -> None:
        """Write the files of a page and run its commands, unless that is done."""
        if page in self.done:
            return
        self.done.add(page)
        for block in blocks(page):
            if block.title:
                (self.folder / block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "bash" and not block.parsed_only:
                self.bash(block, page)

    def bash(self, block: Block, page: str) -> None:
        env = self._env | {"RANKZERO_TEST_WORDS": json.dumps(block.words)}
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        started = time.monotonic()
        ended = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)
        print(f"{time.monotonic() - started:5.1f} s  {page}: {block.text.splitlines()[0]}")
        assert ended.returncode == 0, (
            f"{page}:\n{block.text}\nended with {ended.returncode}\n{ended.stdout}{ended.stderr}"
        )

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


CLIENT = f"""import json, os, socket, sys

words = sys.argv[1:]
if words[:1] and words[0] in {TAKING_WORDS!r}:
    words += json.loads(os.environ["RANKZERO_TEST_WORDS"])
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ["RANKZERO_TEST_SOCKET"])
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\\n"
sent = socket.send_fds(server, [request], [0, 1, 2])
server.sendall(request[sent:])
sys.exit(int(server.recv(8) or 1))
"""


def serve(path: str) -> None:
    """Import everything, then run each command in a forked process and send its exit code."""
    for name in (
        "launch.cli",
        "torch._dynamo",
        "torch.onnx",
        "transformers.pipelines",
        "datasets",
        "sacrebleu",
        "onnx",
    ):
        importlib.import_module(name)
    import trainer

    _ = trainer.train  # imported when it is used

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen()
    Path(path + ".new").rename(path)
    while True:
        client, _ = listening.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # commands that have ended
                pass
        if os.fork() == 0:
            _answer(client)
        client.close()


def _answer(client: socket.socket) -> None:
    request, descriptors, _, _ = socket.recv_fds(client, 65536, 3)
    while not request.endswith(b"\n"):
        request += client.recv(65536)
    words, folder, env = json.loads(request)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - for the whole process
    os.chdir(folder)
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["rankzero", *words]
    from launch.cli import main

    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(code).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])

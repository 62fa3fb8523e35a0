"""rankzero and other trainers at the same work, each peer in its own environment and by its own documented settings.

    python -m benchmarks.peers --setup FOLDER [--peer NAME …]
    python -m benchmarks.peers --peers FOLDER --data FOLDER [--job NAME …] [--peer NAME …] [--rounds N] [--json FILE]

A job is a shipped recipe. All candidates get the same rows, model, tokens of a step, precision (where the peer offers
it on a CPU) and threads, in one process each. Blocks are interleaved. A ratio is formed within a round. After the same
number of tokens the weights of each are scored on the same rows. For a translation they are decoded: tokens per
second, and BLEU. FILE is written after each job.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sacrebleu

from benchmarks.harness import Contestant, interleave, label, machine, precision_argument, protocol, write
from benchmarks.peers.environments import PEERS, python_of, set_up
from benchmarks.peers.jobs import JOBS, Work, make
from benchmarks.peers.quality import Scorer
from benchmarks.peers.table import OURS_FP32, results, show


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--setup", type=Path, metavar="FOLDER", help="only build the environments, below this folder")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="folder of the environments")
    parser.add_argument("--data", type=Path, default=given, help="folder of the corpora; RANKZERO_DATA by default")
    parser.add_argument("--job", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens of a block, without padding")
    parser.add_argument("--train-tokens", type=int, default=0, help="tokens before decoding or scoring, at least")
    parser.add_argument("--rows", type=int, default=8000, help="training rows, evenly spaced in the corpus; 0 for all")
    parser.add_argument("--sentences", type=int, default=1000, help="test rows that are translated or scored")
    parser.add_argument("--decodings", type=int, default=3, help="rounds in which the test rows are translated")
    precision_argument(parser)
    protocol(parser, repeats=7)
    options = parser.parse_args(argv)
    if options.setup is None and options.data is None:
        parser.error("--data: give the folder of the corpora, or set RANKZERO_DATA")
    return options


def candidates(job: str, options: argparse.Namespace) -> tuple[list[tuple[str, str, dict[str, Any]]], dict[str, str]]:
    """Return title, name and settings of each candidate (ours first), and why peers are left out."""
    found: list[tuple[str, str, dict[str, Any]]] = [
        (", ".join(filter(None, ("rankzero", variant, label(options.precision)))), "", {"variant": words})
        for variant, words in {"": (), **JOBS[job].variants}.items()
    ]
    missing = {}
    for name in options.peer:
        peer = PEERS[name]
        if job not in peer.jobs:
            continue
        if not python_of(name, options.peers).exists():
            missing[peer.title] = f"no environment: python -m benchmarks.peers --setup {options.peers} --peer {name}"
            continue
        precision = options.precision if options.precision in peer.precisions else "no"
        for variant, settings in peer.variants.items():
            title = ", ".join(filter(None, (peer.title, variant, label(precision))))
            found.append((title, name, {**settings, "precision": precision}))
    if options.precision == "bf16" and any(own.get("precision") == "no" for *_, own in found):
        found.insert(1, (OURS_FP32, "", {"precision": "no"}))  # for the peers that compute in fp32 only
    return found, missing


def start(job: str, work: Work, options: argparse.Namespace, folder: Path) -> tuple[list[Contestant], dict[str, str]]:
    """Start the candidates of a job. A peer that fails to start is left out."""
    wanted, left_out = candidates(job, options)
    common = {"threads": options.threads, "precision": options.precision}
    started = []
    for number, (title, name, own) in enumerate(wanted):
        place = folder / str(number)
        place.mkdir()
        base = work.peers if name else work.ours
        module, python = ("rankzero_train", sys.executable)
        if name:
            module, python = PEERS[name].jobs[job], str(python_of(name, options.peers))
        settings = {**common, **base, **own, "folder": str(place)}
        try:
            started.append(Contestant(title, f"benchmarks.{module}", settings, python))
        except RuntimeError as error:
            if not name:
                raise
            left_out[title] = str(error)
            print(error, file=sys.stderr)
    return started, left_out


def decode(
    started: Sequence[Contestant], work: Work, options: argparse.Namespace, left_out: dict[str, str]
) -> dict[str, Any]:
    """Translate the test rows in turns. Every candidate has been trained on about as many tokens.

    Counted are the tokens of the translations, because those of a model after a short training differ in length.
    A candidate whose translations are not half as long as the references is left out: it mostly reads the sources.
    """
    tokenizer = work.prepared.task().tokenizer

    def length(texts: Sequence[str]) -> int:
        return sum(len(ids) + 1 for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])  # [EOS]

    blocks: dict[str, list[dict[str, Any]]] = {one.name: [] for one in started}
    texts: dict[str, list[str]] = {}
    for turn in range(options.decodings):
        for one in started if turn % 2 == 0 else reversed(started):
            counts = one.ask("translate")
            texts[one.name] = [
                text if isinstance(text, str) else tokenizer.decode(text, skip_special_tokens=True)
                for text in counts.pop("texts")
            ]
            blocks[one.name].append({**counts, "tokens": length(texts[one.name])})
    wanted = length(work.references)
    for name, written in [(name, own[-1]["tokens"]) for name, own in blocks.items() if own]:
        if 2 * written < wanted:
            left_out[f"{name}, decoding"] = f"its translations have {written} tokens and the references {wanted}"
            del blocks[name], texts[name]
    found = results(blocks, started[0].name, "tokens") if started[0].name in blocks else {}
    for name, own in texts.items() if found else ():
        found[name]["bleu"] = sacrebleu.corpus_bleu(own, [work.references]).score
    return found


def measure(
    job: str, options: argparse.Namespace, folder: Path, report: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Measure a job below `folder` and fill its report. `keep` is called after the blocks and at the end."""
    rows_of = {"train": options.rows, "validation": options.sentences, "test": options.sentences}
    work = make(JOBS[job], options.data.resolve(), folder, rows_of)
    started, left_out = start(job, work, options, folder)
    report |= {
        "batches": {key: work.peers[key] for key in ("batch", "accumulate")},
        "overrides": JOBS[job].overrides,
        "left_out": left_out,
        "versions": {one.name: one.versions for one in started},
    }
    try:
        blocks = interleave(started, options.tokens, options.warmup, options.repeats)
        report["training"] = results(blocks, started[0].name, "tokens")
        keep()
        done = options.tokens * (options.warmup + options.repeats)
        # the tutorial's loop for translation cannot decode
        scored = [one for one in started if not (work.references and one.name.startswith("tutorial"))]
        trained = report["trained_tokens"] = {one.name: done for one in scored}
        for one in scored if options.train_tokens > done else ():
            trained[one.name] += int(one.block(options.train_tokens - done)["tokens"])
        if work.references:
            report["decoding"] = decode(scored, work, options, left_out)
        elif (split := JOBS[job].scored) is not None:
            found = report["scored"] = {"split": split, "metric": JOBS[job].metric, "scores": {}}
            scorer = Scorer(work.prepared, split, predict=JOBS[job].metric != "perplexity")
            for number, one in enumerate(scored):
                one.ask(f"save {folder / f'trained-{number}'}")
                found["scores"][one.name] = scorer.score(folder / f"trained-{number}")
    finally:
        for one in started:
            one.close()
    keep()


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.setup is not None:
        return 1 if set_up(options.setup.resolve(), options.peer) else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` ends the candidates, too
    options.peers = options.peers.resolve()
    kept = ("tokens", "warmup", "repeats", "threads", "precision", "train_tokens", "rows", "sentences", "decodings")
    jobs: dict[str, dict[str, Any]] = {}
    report = {"benchmark": "peers", "machine": machine(), **{key: getattr(options, key) for key in kept}, "jobs": jobs}
    for job in options.job:
        with tempfile.TemporaryDirectory() as folder:
            measure(job, options, Path(folder), jobs.setdefault(job, {}), lambda: write(options.json, report))
    show(jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

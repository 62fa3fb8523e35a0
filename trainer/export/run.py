"""Lines of stdin to JSON lines, with the ONNX graphs in this folder; needs onnxruntime, tokenizers and numpy alone.

    python run.py < texts.txt            (a pair of texts: one line, a tab between them)
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its neighbours

Shapes: R rows still searched, K hypotheses of each, C candidates of a hypothesis.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

WINDOW = 512  # lines that are sorted by length together
Array = np.ndarray[Any, Any]

TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]+\.[^\s<>\"]+", re.IGNORECASE)
EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
CLEANING: dict[str, Callable[[str], str]] = {
    "unescape_html": html.unescape,
    "strip_tags": lambda text: TAG.sub(" ", text),
    "replace_urls": lambda text: URL.sub(lambda found: "URL" + found[0][len(found[0].rstrip(".,;:!?)]}'")) :], text),
    "replace_emails": lambda text: EMAIL.sub("EMAIL", text),
    "normalize_unicode": lambda text: unicodedata.normalize("NFC", text),
    "normalize_compatibility": lambda text: unicodedata.normalize("NFKC", text),
    "fold_whitespace": lambda text: " ".join(text.translate({0x200B: " ", 0xFEFF: " "}).split()),
    "lowercase": str.lower,
}


class Artifact:
    """Settings, tokenizer and graphs of a folder. `__call__` makes one record per line, in order."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: one per core
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in sorted(folder.glob("*.onnx"))
        }

    def __call__(self, lines: Iterable[str], batch: bool = False) -> Iterator[dict[str, Any]]:
        source, one_by_one = iter(lines), self.settings["one_by_one"] and not batch
        while window := list(islice(source, WINDOW)):
            examples = [self.encode(self.sides(line)) for line in window]
            found: dict[int, dict[str, Any]] = {}
            for rows in self.batches([len(example[0]) for example in examples], one_by_one):
                found |= zip(rows, self.predict([examples[i] for i in rows]), strict=True)
            yield from ({"text": line, **found[i]} for i, line in enumerate(window))

    def batches(self, lengths: Sequence[int], one_by_one: bool) -> Iterator[list[int]]:
        rows: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if rows and (one_by_one or lengths[i] * (len(rows) + 1) > self.settings["tokens_per_batch"]):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows

    def sides(self, line: str) -> list[str]:
        return list(line.partition("\t")[::2]) if self.settings["pair"] else [line]

    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        """The token ids that a model is given, first; cleaned, with special tokens, and cut to what it can read."""
        raise NotImplementedError

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Of a batch of encoded lines, in its order, what is printed beside the text."""
        raise NotImplementedError

    def ids(self, text: str) -> list[int]:
        """Token ids of a text as it was written, without special tokens."""
        for step in self.settings["cleaning"]:
            text = CLEANING[step](text)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> Array:
        width = max(map(len, sequences))
        return np.array([[*ids, *[value] * (width - len(ids))] for ids in sequences], dtype=np.int64)


class Classifier(Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        """Ids and type ids; of a pair the longer text loses more."""
        s, texts = self.settings, [self.ids(side) for side in sides]
        room = s["max_length"] - sum(side < 0 for _, side, _ in s["layout"])
        if len(texts) == 2 and len(texts[0]) + len(texts[1]) > room:
            first = min(len(texts[0]), max(room // 2, room - len(texts[1])))
            texts = [self.cut(texts[0], first), self.cut(texts[1], room - first)]
        texts = [self.cut(ids, room) for ids in texts]
        parts = [([token] if side < 0 else texts[side], kind) for token, side, kind in s["layout"]]
        return [i for ids, _ in parts for i in ids], [kind for ids, kind in parts for _ in ids]

    def cut(self, ids: list[int], room: int) -> list[int]:
        head = round(room * self.settings["head_share"])
        return ids if len(ids) <= room else ids[:head] + ids[len(ids) - (room - head) :]

    def logits(self, examples: Sequence[Any]) -> Array:
        feeds = {
            "input_ids": self.pad([ids for ids, _ in examples], self.settings["pad_id"]),
            "attention_mask": self.pad([[1] * len(ids) for ids, _ in examples], 0),
            "token_type_ids": self.pad([types for _, types in examples], 0),
        }
        return self.sessions["model"].run(["logits"], {name: feeds[name] for name in self.settings["inputs"]})[0]

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        names, logits = self.settings["labels"], self.logits(examples).astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        for row in (shares / shares.sum(1, keepdims=True)).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            yield {"label": names[best], "confidence": row[best], "probabilities": dict(zip(names, row, strict=True))}


class Translator(Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        return ([*self.ids(sides[0])[: self.settings["max_length"] - 1], self.settings["eos_id"]],)

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for ids, score in self.search([src for (src,) in examples]):
            yield {"prediction": self.tokenizer.decode(ids, skip_special_tokens=True), "score": score}

    def start(self, sources: Sequence[Sequence[int]]) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the decoder is fed besides tokens: of the sources, and the cache of R hypotheses without a token."""
        src = self.pad(sources, self.settings["pad_id"])
        names = [output.name for output in self.sessions["encoder"].get_outputs()]
        source = dict(zip(names, self.sessions["encoder"].run(names, {"src": src}), strict=True))
        shapes = {i.name: i.shape for i in self.sessions["decoder"].get_inputs() if i.name.startswith("target_")}
        cache = {name: np.zeros((len(src), s[1], 0, s[3]), np.float32) for name, s in shapes.items()}
        return {"source_mask": (src != self.settings["pad_id"]).astype(np.int64), **source}, cache

    def step(
        self, outputs: Sequence[str], tokens: Array, parents: Array, fixed: dict[str, Array], cache: dict[str, Array]
    ) -> tuple[list[Array], dict[str, Array]]:
        """tokens and parents (R, K): hypothesis k of row r continues what was number parents[r, k] of all."""
        names = [*outputs, *(f"new_{name}" for name in cache)]
        found = self.sessions["decoder"].run(names, {"tokens": tokens, "parents": parents, **fixed, **cache})
        return found[: len(outputs)], dict(zip(cache, found[len(outputs) :], strict=True))

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """Ids and score of the best hypothesis of each row; a beam of 1 is greedy search.

        A score is a sum of log probabilities over length ** length_penalty, <eos> counted. Of a row's 2K candidates
        those that are <eos> finish a hypothesis when they are among the best K; the best K others are searched further.
        """
        s, beam, eos, length = self.settings, self.settings["beam_size"], self.settings["eos_id"], 0
        fixed, cache = self.start(sources)
        rows: Array = np.arange(len(sources))
        limits: Array = fixed["source_mask"].sum(1).astype(np.float32) * np.float32(s["max_length_factor"]) + 10
        limits = np.minimum(limits.astype(np.int64), s["max_length"] - 1)
        best: list[tuple[list[int], float]] = [([], -np.inf)] * len(rows)
        kept: Array = np.full((len(rows), beam), -np.inf, np.float32)  # the K best finished scores, best first
        scores: Array = np.zeros((len(rows), 1), np.float32)
        history: Array = np.zeros((len(rows), 1, 0), np.int64)
        tokens, parents = np.full((len(rows), 1), s["bos_id"]), rows[:, None]
        while len(rows):
            length += 1
            found, cache = self.candidates(tokens, parents, fixed, cache, limits == length)
            gains, ids = (x.reshape(len(rows), -1) for x in (found[0] + scores[..., None], found[1]))
            order = np.argsort(-gains, 1, kind="stable")[:, : 2 * beam]  # of equals the first parent, the smaller id
            gains, ids, parent = take(gains, order), take(ids, order), order // found[0].shape[2]
            penalty = np.float32(length ** s["length_penalty"])

            closed = np.where(ids == eos, gains / penalty, -np.inf)[:, :beam]
            for r in np.flatnonzero(closed.max(1) > kept[:, 0]):
                best[rows[r]] = (history[r, parent[r, closed[r].argmax()]].tolist(), float(closed[r].max()))
            kept = -np.sort(-np.concatenate([kept, closed], 1), 1)[:, :beam]

            gains = np.where(ids == eos, -np.inf, gains)
            order = np.argsort(-gains, 1, kind="stable")[:, :beam]
            scores, ids, parent = take(gains, order), take(ids, order), take(parent, order)
            width, every = history.shape[1], np.arange(len(rows))[:, None]
            history = np.concatenate([history[every, parent], ids[..., None]], 2)
            stay = scores[:, 0] / penalty > kept[:, -1]
            tokens, parents = ids[stay], (parent + every * width)[stay]
            rows, limits, kept, scores, history = (x[stay] for x in (rows, limits, kept, scores, history))
            fixed = fixed if stay.all() else {name: x[stay] for name, x in fixed.items()}
        return best

    def candidates(
        self, tokens: Array, parents: Array, fixed: dict[str, Array], cache: dict[str, Array], last: Array
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        """Log probabilities and ids (R, K, C) of what may follow each hypothesis; <eos> alone in rows with last (R)."""
        banned = [self.settings["bos_id"], self.settings["pad_id"]]
        count = np.array([min(2 * self.settings["beam_size"] + len(banned), self.settings["vocab_size"])])
        outputs, feeds = ("log_probs", "ids", "closing"), {**fixed, "count": count}
        (gains, ids, closing), cache = self.step(outputs, tokens, parents, feeds, cache)
        gains[np.isin(ids, banned)] = -np.inf
        gains[last], ids[last, :, 0], gains[last, :, 0] = -np.inf, self.settings["eos_id"], closing[last]
        return (gains, ids), cache


def take(values: Array, order: Array) -> Array:
    return np.take_along_axis(values, order, 1)


def load(folder: Path | str) -> Classifier | Translator:
    settings = json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))
    return (Translator if settings["task"] == "translation" else Classifier)(Path(folder), settings)


def main() -> None:
    """A line ends at a line feed only: texts may contain U+0085 and others that Python takes for line ends."""
    lines = (line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8") for line in sys.stdin.buffer)
    for record in load(Path(__file__).parent)(lines, batch="--batch" in sys.argv):
        sys.stdout.buffer.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

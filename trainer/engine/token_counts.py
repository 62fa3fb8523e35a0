"""Count the tokens of a split: rows that `data.max_length` cuts, and the share of unknown tokens."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from trainer.data.counter_rng import uniform
from trainer.data.token_ids import encode_batch
from trainer.engine.corpus import Corpus
from trainer.errors import DataError
from trainer.recipe import Recipe
from trainer.task.base import Row, Task

WINDOW = 1000  # rows that are tokenized together
SAMPLE = 20_000  # rows whose unknown tokens are counted, about
WARNED = 0.02  # share of unknown tokens
REFUSED = {"train": 0.2, "validation": 0.5, "test": 0.5}  # an evaluation of rare texts is still of use
EXAMPLES = 8  # unknown characters that are shown


@dataclass
class TokenCounts:
    """Counts of one split.

    Attributes:
        rows: usable rows, all of them looked at for `cut`.
        cut: role -> rows whose text is cut in training.
        cut_rows: rows that are cut in any role.
        sampled: rows in which unknown tokens were counted: all, or a keyed sample of about SAMPLE.
        tokens: role -> their tokens, without special ones.
        unknown: role -> those that are the unknown token.
        examples: role -> unknown characters, the most frequent first.
        doubts: what `Task.doubts` returns -> sampled rows.
    """

    rows: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    cut_rows: int = 0
    sampled: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    doubts: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Return the entry for manifest.json."""
        return {
            "cut": dict(sorted(self.cut.items())),
            "cut_rows": self.cut_rows,
            "unknown": {role: self.unknown[role] / n for role, n in sorted(self.tokens.items()) if n},
            "unknown_examples": {role: found for role, found in sorted(self.examples.items()) if found},
            "unknown_from_rows": self.sampled,
            **({"doubts": dict(sorted(self.doubts.items()))} if self.doubts else {}),
        }


def count_tokens(corpus: Corpus, split: str, rows: int | None, *, spread: bool = False) -> TokenCounts:
    """Tokenize a split. Texts too short to be cut are tokenized only where they are in the sample.

    Args:
        corpus: of the run.
        split: one that the recipe has.
        rows: usable rows of the split, as surveyed; None = look at the first SAMPLE rows only.
        spread: take these from all files, equally many of each.

    Raises:
        DataError: more tokens of a role are unknown than REFUSED allows.
    """
    task, found = corpus.task, TokenCounts()
    spans = {role: Counter[str]() for role in corpus.roles}
    texts = corpus.texts(split, SAMPLE if spread else None)
    texts = texts if rows is not None or spread else islice(texts, SAMPLE)
    while window := list(islice(texts, WINDOW)):
        found.rows += len(window)
        chosen = [rows is None or uniform("unknown", row_id) * rows < SAMPLE for row_id, _ in window]
        pairs = zip(chosen, window, strict=True)
        measured = [(sampled, row) for sampled, (_, row) in pairs if sampled or _may_be_cut(task, row)]
        for sampled, row, sizes, unknowns in _sizes(task, measured):
            cut = task.cut_roles(sizes)
            found.cut.update(cut)
            found.cut_rows += bool(cut)
            if sampled:
                found.sampled += 1
                found.doubts.update(task.doubts(row))
                found.tokens.update(sizes)
                found.unknown.update(unknowns)
                for role in (role for role, n in unknowns.items() if n):
                    spans[role].update(row[role])
    found.examples = {role: _unknown_characters(task, role, counts) for role, counts in spans.items()}
    _check(corpus.recipe, split, found)
    return found


def _sizes(task: Task, rows: list[tuple[bool, Row]]) -> Iterator[tuple[bool, Row, dict[str, int], dict[str, int]]]:
    """Yield each row with the number of its tokens and of its unknown tokens, by role."""
    unknown = unknown_id(task)
    ids = task.token_ids([row for _, row in rows])
    for i, (sampled, row) in enumerate(rows):
        sizes = {role: len(texts[i]) for role, texts in ids.items()}
        unknowns = {role: 0 if unknown is None else texts[i].count(unknown) for role, texts in ids.items()}
        yield sampled, row, sizes, unknowns


def unknown_id(task: Task) -> int | None:
    """Return the id of unknown tokens, which is the same for all texts, or None for a byte-level tokenizer."""
    unknown = getattr(task.tokenizer, "unk_token_id", None)
    return unknown if unknown is not None and unknown not in task.wordless else None


def _may_be_cut(task: Task, row: Row) -> bool:
    """Whether a row could be cut, by the most tokens that its texts can have: one for each byte, however normalized."""
    texts = task.tokenized(row)
    return bool(task.cut_roles({role: _bytes(text) + 2 for role, text in texts.items()}))


def _bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    return len(unicodedata.normalize("NFKD", text).lower().encode("utf-8", "surrogatepass"))


def _unknown_characters(task: Task, role: str, counts: Counter[str]) -> list[str]:
    """Return the most frequent characters of a role that are unknown when encoded alone."""
    unknown, tokenizer = unknown_id(task), task.tokenizer_of(role)
    characters = (char for char, _ in counts.most_common() if not char.isspace())
    return list(islice((c for c in characters if unknown in encode_batch(tokenizer, [c])[0]), EXAMPLES))


def _check(recipe: Recipe, split: str, counts: TokenCounts) -> None:
    for role, share in counts.report()["unknown"].items():
        if share > REFUSED[split]:
            raise DataError(
                f"data.{split}: {describe_unknown(role, share, counts.report())}, more than {REFUSED[split]:.0%}. "
                f"{unknown_fix(recipe)}"
            )


def describe_unknown(role: str, share: float, report: Mapping[str, Any]) -> str:
    """Return a text such as '18.7% of the tokens of "trg" are unknown (such as '葡', '萄')'."""
    examples = ", ".join(map(repr, report["unknown_examples"].get(role, ())))
    return f'{share:.1%} of the tokens of "{role}" are unknown' + (f" (such as {examples})" if examples else "")


def unknown_fix(recipe: Recipe) -> str:
    """Return what to change so that fewer tokens are unknown."""
    training = recipe.tokenizer_training
    if training is None:
        return (
            f"The tokenizer {recipe.tokenizer_name!r} was not made for these texts: choose one that was, or check that "
            "its folder has the right tokenizer files"
        )
    return (
        f"tokenizer.train keeps the {training.limit_alphabet} (limit_alphabet) most frequent characters of data.train, "
        f"and {training.vocab_size} tokens (vocab_size): raise both, or set tokenizer.train.kind=byte_bpe, which knows "
        "every text"
    )

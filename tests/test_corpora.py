"""The generated corpora: their rows never change, and each data file is readable."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

import trainer.corpora
from trainer.corpora import CORPORA, SPLITS, embedded_rows

# SHA-256 of 3,000 rows of the seeds 0 and 1. A change makes scores incomparable and old runs impossible to resume.
GOLDEN = {
    ("translation", "train"): "a3e03263a9df44926f66aa3b6cfe856bf0ff223206430c5c4cb01c3b92366727",
    ("translation", "validation"): "af748643b394be2263dac2dc6930bdb41b290c3351e34871ad9b075d0ded1e25",
    ("translation", "test"): "d63f056959323460cfbf58048ece93656faae7c4c77b1072431ef78632780945",
    ("reviews", "train"): "df1595e52746170cfa0a8296316d3aa6f6291ca1124df4f10938421f4a5723bc",
    ("reviews", "validation"): "4c6171788ca4ad01be979b7c86ebd8ffe3201554df09f4b19002d8cd46722ce2",
    ("reviews", "test"): "cc817e0ea287ebf22dbdf3e317e47107e4dffea4c41ffeef758cbf8f67b35add",
}


def test_every_split_has_its_digest() -> None:
    assert set(GOLDEN) == {(corpus, split) for corpus in CORPORA for split in SPLITS}


@pytest.mark.parametrize(("corpus", "split"), GOLDEN)
def test_rows_stay_the_same(corpus: str, split: str) -> None:
    rows = [
        json.dumps(row, ensure_ascii=False) for seed in (0, 1) for row in embedded_rows(corpus, split, 3000, seed, 0, 1)
    ]
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest() == GOLDEN[corpus, split]


def test_data_files_have_unique_keys_and_short_lines() -> None:
    """PyYAML keeps the last of two equal keys, which would drop a word without a message."""
    files = sorted(Path(trainer.corpora.__file__).parent.glob("*.yaml"))
    assert [path.name for path in files] == ["reviews.yaml", "translation_grammar.yaml", "translation_words.yaml"]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("#")
        assert max(map(len, text.splitlines())) <= 120, path.name
        nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value]
                assert len(set(keys)) == len(keys), f"{path.name}, line {node.start_mark.line + 1}: a key occurs twice"
                nodes += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value

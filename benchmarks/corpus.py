"""Multi30k for all contestants: one tokenizer, and the training rows as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]


def pairs(file: Path) -> Iterator[tuple[str, str]]:
    """German and English of each line of a JSON-lines file.

    Raises:
        FileNotFoundError: the corpus is not there; the message names the option.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: --data is the folder that holds multi30k/train.jsonl")
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["de"], row["en"]


def train_tokenizer(file: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A joint BPE tokenizer of the corpus that ends every sequence with [EOS]."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator((text for pair in pairs(file) for text in pair), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


def write_encoded(file: Path, tokenizer: PreTrainedTokenizerFast, max_length: int, out: Path) -> None:
    """Every row as {"src": ids, "trg": ids}, both ending with [EOS] and without [BOS], longer ones cut."""
    src, trg = zip(*pairs(file), strict=True)
    src_ids, trg_ids = (
        tokenizer(list(side), truncation=True, max_length=max_length)["input_ids"] for side in (src, trg)
    )
    with out.open("w", encoding="utf-8") as lines:
        for one, other in zip(src_ids, trg_ids, strict=True):
            lines.write(json.dumps({"src": one, "trg": other}) + "\n")

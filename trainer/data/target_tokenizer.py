"""The tokenizer of target texts, where source and target have separate vocabularies: `tokenizer.train.shared: false`.

It is an attribute of the source tokenizer, since a model needs both, and in a folder it is the folder target/. Special
tokens have the same ids on both sides, since the configuration of a model names each only once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import UsageError
from trainer.hub_paths import TOKENIZER_SETTINGS, folder_of, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TARGET = "target"  # the folder in that of the source tokenizer
FILE = "tokenizer.json"
_SPECIAL = ("pad_token", "bos_token", "eos_token", "unk_token")


def target_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the tokenizer of target texts: the same one unless `with_target` has added another."""
    return getattr(tokenizer, "target_tokenizer", tokenizer)


def with_target(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add the tokenizer of target texts to that of source texts, which is returned.

    Raises:
        UsageError: a special token has another id in the target vocabulary.
    """
    for name in _SPECIAL:
        ids = getattr(source, f"{name}_id"), getattr(target, f"{name}_id")
        if ids[0] != ids[1]:
            raise UsageError(
                f"tokenizer {source.name_or_path!r}: {name} has id {ids[0]} for source texts and {ids[1]} for target "
                f"texts (folder {TARGET}/): both vocabularies need the same special tokens with the same ids"
            )
    source.target_tokenizer = target
    return source


def fetch_target(name: str) -> Path | None:
    """Return the folder target/ of a tokenizer, None if it has none. That of a Hub id is downloaded.

    Raises:
        UsageError: as `locate`, or a download fails.
    """
    place, revision = locate(name)
    if not Path(place).is_dir():
        _download(name, place, revision)
    folder = folder_of(name)
    return folder / TARGET if folder is not None and (folder / TARGET / FILE).is_file() else None


def _download(name: str, place: str, revision: str) -> None:
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    if try_to_load_from_cache(place, f"{TARGET}/{FILE}", revision=revision) is not None:
        return  # it is in the cache, or the cache knows that there is none
    for file in (FILE, *TOKENIZER_SETTINGS):
        try:
            hf_hub_download(place, f"{TARGET}/{file}", revision=revision)
        except errors.EntryNotFoundError:  # also without a connection, if it is not in the cache
            if file == FILE:
                return
        except Exception as error:  # of the connection or the file system
            raise UsageError(f"{name!r}: {TARGET}/{file} cannot be downloaded: {error}") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer, and into the folder target/ that of target texts if there is one."""
    tokenizer.save_pretrained(folder)
    if (target := target_of(tokenizer)) is not tokenizer:
        target.save_pretrained(folder / TARGET)

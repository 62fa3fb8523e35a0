"""Names of pretrained models, and checks of the files behind them.

A name is a folder, `pkg://package/folder` in an installed package, or a Hub id `id@revision`.
"""

from __future__ import annotations

import base64
import difflib
import importlib.resources
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import UsageError
from trainer.files import is_special

PACKAGE = "pkg://"
CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([A-Za-z0-9+/]{6,})')
# In the order in which the library looks for them.
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
OTHER_WEIGHTS = {  # what a folder without usable weights may hold instead
    "adapter_config.json": "a PEFT adapter; merge it into its base model (merge_and_unload) and save that model",
    "recipe.yaml": "a run; give its folder model/, or set model.init_from to the run",
    "modules.json": "a sentence-transformers model; give the folder of its Transformer module, such as 0_Transformer",
    "*.h5": "TensorFlow weights; save the model as safetensors with a release of transformers before 5",
    "*.ckpt*": "a TensorFlow or Lightning checkpoint; save the model with save_pretrained",
    "*.msgpack": "Flax weights; save the model as safetensors with a release of transformers before 5",
    "*.gguf": "GGUF weights; use the safetensors of the same model",
}
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model",
    "tokenizer.model",
)  # fmt: skip
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LFS_POINTERS = (b"version https://git-lfs.github.com/spec", b"version https://hawser.github.com/spec")
PAGE = re.compile(
    rb"\s*<(!doctype html|html|head>|\?xml|!--.*?-->\s*<(!doctype|html)|Error>)", re.IGNORECASE | re.DOTALL
)  # what a store or a proxy answers in the place of a file
OWN_MODELS = "rankzero-"  # how the model_type of a model that only this package has begins
SHIPPED = Path(__file__).parent / "recipe" / "shipped"
FORMS = f"a folder, {PACKAGE}package/folder, or a Hub id (id@revision) that this machine can reach"


def locate(name: str) -> tuple[str, str]:
    """What `from_pretrained` takes: a folder or Hub id, and a revision ("main" where it has no meaning).

    Raises:
        UsageError: the package of a `pkg://` name is not installed or has no such folder.
    """
    if name.startswith(PACKAGE):
        return str(package_folder(name)), "main"
    if Path(name).exists():
        return name, "main"
    identifier, _, revision = name.partition("@")
    return identifier, revision or "main"


def package_folder(name: str) -> Path:
    """The folder behind `pkg://package/folder`.

    Raises:
        UsageError: the package is not installed or has no such folder.
    """
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    try:
        found = Path(str(importlib.resources.files(package))) / folder
    except (ImportError, ValueError):
        raise UsageError(
            f"{name!r}: the package {package!r} is not installed here. Check its name; install it only if you know "
            f"it{_near(name)}"
        ) from None
    if not found.is_dir():
        raise UsageError(f"{name!r}: the package {package!r} has no folder {folder!r}{_near(name)}")
    return found


def suggestion(name: str) -> str:
    """Return what a name may be that cannot be loaded, and the nearest one of the shipped recipes."""
    return f"Allowed: {FORMS}{_near(name)}"


def _near(name: str) -> str:
    named = re.findall(r"name: \"?([\w.:/-]+/[\w.-]+)", "\n".join(map(Path.read_text, sorted(SHIPPED.glob("*.yaml")))))
    bare = {known: re.sub(r"[^a-z0-9]", "", known.lower()) for known in dict.fromkeys(named)}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    near = [known for known, letters in bare.items() if len(wanted) > 2 and wanted in letters]
    near = near or difflib.get_close_matches(name, bare, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# -- files -------------------------------------------------------------------------------------------------------------


def folder_of(name: str) -> Path | None:
    """Return the local folder of a name. None for a Hub id that is not in the cache.

    Raises:
        UsageError: as `locate`.
    """
    place, revision = locate(name)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        try:
            cached = try_to_load_from_cache(place, file, revision=revision)
        except ValueError:  # not of the form of a Hub id
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def check_model_files(name: str) -> None:
    """Check the configuration and the weight files of a model without reading its weights.

    A Hub id is checked as far as its files are in the cache.

    Raises:
        UsageError: no configuration, no weights, or a file that is cut, corrupt, an LFS pointer or an HTML page.
    """
    folder = folder_of(name)
    if folder is None:
        return
    _refuse_pipes(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} has no config.json, so it is no model of the transformers library{_instead(folder)}"
        )
    config = folder / "config.json"
    check_file(config)
    check_file(folder / "generation_config.json")
    kind = json.loads(config.read_bytes()).get("model_type")
    if kind is None:
        raise UsageError(f'{config} has no model_type: add the name of the architecture, such as "model_type": "bert"')
    if str(kind).startswith(OWN_MODELS):
        raise UsageError(
            f"{folder} holds a model that only rankzero can build (model_type {kind}): set model.init_from to its run "
            "directory, which takes the trunk and a new head"
        )
    if not check_weights(folder) and Path(locate(name)[0]).is_dir():  # else they will be fetched
        raise UsageError(f"{folder} has no weights ({WEIGHT_FILES[0]} or {WEIGHT_FILES[2]}){_instead(folder)}")


def check_weights(folder: Path) -> bool:
    """Check the weight files of a folder that the library would read. Return whether there are any.

    Raises:
        UsageError: one of them is missing, cut, corrupt, an LFS pointer or an HTML page.
    """
    _refuse_pipes(folder)
    parts = weight_files(folder)
    for part in parts:
        check_file(part)
    return bool(parts)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder that the library would read, with their index. Empty if there are none.

    Raises:
        UsageError: the index names a file that does not exist.
    """
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    return [] if weights is None else list(_weight_parts(weights))


def check_tokenizer_files(name: str, *, deep: bool = False) -> None:
    """Check the files of a tokenizer that exist: their first bytes, with `deep` also that JSON is complete.

    Raises:
        UsageError: a file is cut, corrupt, an LFS pointer or an HTML page.
    """
    folder = folder_of(name)
    if folder is not None:
        _refuse_pipes(folder)
        for file in (*VOCABULARIES, *TOKENIZER_SETTINGS, "config.json"):
            check_file(folder / file, deep=deep)
        _check_charsmap(folder / "tokenizer.json")


def _check_charsmap(path: Path) -> None:
    """Check the size that the character table of a SentencePiece normalizer states.

    The tokenizers library takes as much memory, up to 4 GiB, and its process is aborted if there is not as much.

    Raises:
        UsageError: the table is shorter.
    """
    for match in CHARSMAP.finditer(path.read_bytes() if path.exists() else b""):
        stated = int.from_bytes(base64.b64decode(match[1][:6] + b"AA")[:4], "little")
        held = len(match[1]) * 3 // 4
        if stated > held:
            raise UsageError(
                f"{path} is cut or corrupt: its precompiled_charsmap states {stated:,} bytes and has {held:,}. "
                "Download it again."
            )


def _refuse_pipes(folder: Path) -> None:
    """Refuse a folder with a file whose reading may not end.

    Raises:
        UsageError: there is a pipe, a device or a socket.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_special(path):
            raise UsageError(f"{path} is a pipe, a device or a socket. Remove it, or put a file in its place.")


def check_file(path: Path, *, deep: bool = True) -> None:
    """Check one file of a model, if it exists.

    Raises:
        UsageError: it is cut, corrupt, a Git LFS pointer or an HTML page. Names the file and the fix.
    """
    if path.exists() and (problem := problem_of(path, deep=deep)) is not None:
        raise UsageError(f"{path} {problem}")


def page_in(head: bytes) -> str | None:
    """Return which page the first bytes of a file are, "an HTML page" or "an XML document". None for other content."""
    page = PAGE.match(head)
    if page is None:
        return None
    return "an XML document" if page[1].lower() in (b"?xml", b"error>") else "an HTML page"


def problem_of(path: Path, *, deep: bool = True) -> str | None:
    """Return what is wrong with a file of a model and how to fix it. None if nothing is.

    Args:
        path: a safetensors, PyTorch (.bin), JSON or vocabulary file.
        deep: also check that the file is complete, not only its first bytes.
    """
    again = "Download it again."
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(LFS_POINTERS):
            return "is a Git LFS pointer, not the file itself. Run `git lfs pull` in its clone, or download the file."
        if page := page_in(head):
            return f"is {page}, such as an error or login page that was saved under this name. {again}"
        if not head and path.name != "merges.txt":
            return f"is empty. {again}"
        if reason := _incomplete(path, head) if deep else None:
            return f"{reason}. {again}"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _incomplete(path: Path, head: bytes) -> str | None:
    """Return why the content of a file is not what its name says."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):  # compares the size of the file with its header
                return None
        except SafetensorError as error:
            return f"is cut or corrupt ({path.stat().st_size:,} bytes: {error})"
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            return f"is cut or corrupt: not valid JSON ({error})"
        return None if isinstance(content, dict) else f"holds a JSON {type(content).__name__} instead of an object"
    return _incomplete_archive(path, head) if path.suffix == ".bin" else None


def _incomplete_archive(path: Path, head: bytes) -> str | None:
    """Return why torch cannot read, or would read wrongly, a PyTorch file: torch itself ignores check sums."""
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            return f"is cut or corrupt ({path.stat().st_size:,} bytes: {error})"
        return None if damaged is None else f"is corrupt: {damaged} in it does not match its check sum"
    if not head.startswith(b"\x80"):
        return "is no PyTorch file"
    import torch

    try:
        torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of pickle, torch or the file system
        return f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return None


def _weight_parts(weights: Path) -> Iterator[Path]:
    """Yield the file, or with an index the index and every file that it names.

    Raises:
        UsageError: one of them does not exist.
    """
    yield weights
    if weights.suffix != ".json":
        return
    index: Any = json.loads(weights.read_bytes())
    for file in sorted(set(index.get("weight_map", {}).values())):
        part = weights.parent / str(file)
        if part.parent != weights.parent:
            raise UsageError(f"{weights} names {file!r}, which is not in the same folder")
        if not part.is_file():
            raise UsageError(f"{part} does not exist, but {weights.name} names it. Download the missing file.")
        yield part


def _instead(folder: Path) -> str:
    """Return what the folder holds instead of weights, for a message."""
    found = next((text for pattern, text in OTHER_WEIGHTS.items() if next(folder.glob(pattern), None)), None)
    return "" if found is None else f". It holds {found}"

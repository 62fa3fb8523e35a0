"""Remove credentials and local paths from everything that a run records, prints or publishes.

    redacted     credentials: in messages, logs, status.json, and recipe.yaml as it is stored
    shareable    absolute local paths too: in manifest.json, config.json, the model card, reports and benchmarks

Both take a text, or lists and mappings of texts at any depth. A run resumes without stored credentials: they come from
the recipe or the environment at each start, and recipes are compared in their redacted form. `printable` is for texts
that a terminal shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "***"
CONTAINERS = ("abfs://", "abfss://", "wasb://", "wasbs://")  # container@account instead of a user
# user:password@ and ?query#fragment of a URL; the query of an embedded corpus holds its number of rows
_URL = re.compile(
    r"(?P<scheme>\b(?!embedded:)[A-Za-z][A-Za-z0-9+.-]*://)"
    r"(?P<user>[^\s/'\"<>]*@|[^\s/?#'\"<>@]*:(?!\d*/)(?:(?!://)[^\s?#'\"<>@])*@)?"
    r"(?P<place>(?:(?!::[A-Za-z])[^\s?#'\"<>])*)(?P<query>[?#][^\s'\"<>]*)?"
)
_TOKEN = re.compile(
    r"\b(?:hf_|gh[po]_)[A-Za-z0-9]{16,}|\b(?:github_pat_|glpat-|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
)
_SECRET = re.compile(
    r"(?P<name>\b(?:[\w.-]*(?:password|passwd|secret|api_?key|access_?key(?:_?id)?|account_?key|sas_?token|access_?token"
    r"|auth_?token|hf_?token|session_?token|connection_?string)|x-(?:amz|goog)-\w[\w-]*|authorization))"
    r"(?P<sign>['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic)\s+)?)(?P<value>[^\s'\",&;}\]]+)",
    re.IGNORECASE,
)
# a variable of the environment as a shell sets it; code has spaces around "="
_VARIABLE = re.compile(r"(?P<name>\b[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|PASS|PWD)=['\"]?)[^\s'\",&;}\]]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_.=-]{12,}")
# An absolute path up to its last component; not a part of a URL, of a relative path, or of a word with slashes.
_PATH = re.compile(r"(?<![\w.~:/…<-])/(?:[^\s/'\"`<>|:,;()\[\]{}=]+/)+|(?<![^\s='\"])/(?=[A-Za-z0-9_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FILE = re.compile(r"\b(?P<scheme>(?:file|local)://)/(?:[^\s/'\"]+/)*")


def redacted(value: Any) -> Any:
    """Return the value without credentials."""
    return _mapped(_without_credentials, value)


def shareable(value: Any) -> Any:
    """Return the value without credentials, and with the last component only of absolute local paths."""
    return _mapped(lambda text: _without_folders(_without_credentials(text)), value)


def origin(value: Any) -> Any:
    """Return the name of a model without credentials, and only the last component of an absolute path."""
    name = shareable(value)
    return name.rpartition("/")[2] if isinstance(name, str) and "…/" in name else name


def printable(text: str) -> str:
    """Replace control characters but tabs and line ends: files of someone else must not send commands to a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(change, key): _mapped(change, inner) for key, inner in value.items()}
    return [_mapped(change, inner) for inner in value] if isinstance(value, list | tuple) else value


def _without_credentials(text: str) -> str:
    text = _URL.sub(_plain_url, text) if "://" in text else text
    text = _TOKEN.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _VARIABLE.sub(rf"\g<name>{HIDDEN}", _SECRET.sub(rf"\g<name>\g<sign>{HIDDEN}", text))


def _plain_url(match: re.Match[str]) -> str:
    container = match["scheme"] in CONTAINERS and ":" not in (match["user"] or "")
    return match["scheme"] + (match["user"] or "" if container else "") + match["place"]


def _without_folders(text: str) -> str:
    if "/" not in text:
        return text
    return _PATH.sub("…/", _FILE.sub(r"\g<scheme>…/", text))

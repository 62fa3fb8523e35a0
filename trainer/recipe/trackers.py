"""The trackers that `track` of a recipe may list, and their options. No torch here.

An entry is a name, or a mapping of a name to its options: `track: [wandb, {mlflow: {project: mt}}]`. Servers and
credentials are no options: they come from the environment, in the variables of each tracker.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from trainer.errors import UsageError

TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
PROJECT = "rankzero"  # of runs whose recipe names none
COMMON = {"project": str, "name": str, "files": bool}
LEDGER = "ledger"  # deprecated: loop.ledger


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker: the package that it needs, its options besides the common ones, and where its credentials are from.

    Attributes:
        options: by name, with the type of the value.
        environment: variables of its server and credentials, for messages.
        local: it writes files into the run directory only.
        install: what pip installs, if that is not the name.
    """

    name: TrackerName
    package: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    local: bool = False
    install: str = ""

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return importlib.util.find_spec(self.package) is None

    @property
    def known(self) -> dict[str, Any]:
        """All options with the types of their values."""
        return {**({"files": bool} if self.local else COMMON), **self.options}


_SPECS = (
    TrackerSpec("aim", "aim", environment="AIM_SERVER"),
    TrackerSpec("clearml", "clearml", {"tags": list}, "CLEARML_API_HOST, CLEARML_API_ACCESS_KEY, …"),
    TrackerSpec("comet_ml", "comet_ml", {"workspace": str, "tags": list, "online": bool}, "COMET_API_KEY"),
    TrackerSpec("dvclive", "dvclive", local=True),
    TrackerSpec(
        "mlflow",
        "mlflow",
        {"description": str, "tags": dict},
        "MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, …",
        install="'rankzero[mlflow]'",
    ),
    TrackerSpec(
        "swanlab", "swanlab", {"workspace": str, "description": str, "tags": list, "mode": str}, "SWANLAB_API_KEY"
    ),
    TrackerSpec("tensorboard", "tensorboard", local=True, install="'rankzero[track]'"),
    TrackerSpec("trackio", "trackio", {"group": str}, "TRACKIO_SPACE_ID, HF_TOKEN"),
    TrackerSpec(
        "wandb",
        "wandb",
        {"entity": str, "group": str, "job_type": str, "tags": list, "notes": str, "mode": str},
        "WANDB_API_KEY, WANDB_BASE_URL, WANDB_MODE",
        install="'rankzero[wandb]'",
    ),
)
TRACKERS: dict[str, TrackerSpec] = {spec.name: spec for spec in _SPECS}
_WORDS = {str: "a text", bool: "true or false", list: "a list of texts", dict: "a mapping of texts to texts"}
_SECRETS = ("key", "token", "secret", "password", "uri", "url", "host")


def checked_entry(value: Any) -> Any:
    """Return an entry of `track` as it is, if its name and its options are known.

    Raises:
        ValueError: what is wrong, what is allowed and what to write.
    """
    if isinstance(value, Mapping) and len(value) != 1:
        raise ValueError("an entry has one name: write [wandb, {mlflow: {project: mt}}]")
    name, options = next(iter(value.items())) if isinstance(value, Mapping) else (value, {})
    if name not in TRACKERS:
        near = difflib.get_close_matches(str(name), TRACKERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(TRACKERS)}"
        raise ValueError(f"{name!r} is unknown; {hint}")
    if not isinstance(options, Mapping):
        raise ValueError(
            f"options of {name} are a mapping: write {{{name}: {{{next(iter(TRACKERS[name].known))}: …}}}}"
        )
    for key, given in options.items():
        check_option(TRACKERS[name], key, given)
    return value


def check_option(spec: TrackerSpec, key: Any, value: Any) -> None:
    """Check one option of a tracker.

    Raises:
        ValueError: it is unknown, of another type, or a credential.
    """
    if key not in spec.known:
        if any(word in str(key).lower() for word in _SECRETS):
            raise ValueError(
                f"{spec.name}.{key}: servers and credentials are not part of a recipe; set them in the environment "
                f"({spec.environment or 'this tracker needs none'})"
            )
        near = difflib.get_close_matches(str(key), spec.known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(spec.known))}"
        raise ValueError(f"{spec.name}.{key}: unknown option; {hint}")
    kind, parts = spec.known[key], [value]
    if kind in (list, dict) and isinstance(value, kind):
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not isinstance(value, kind) or (
        kind is not bool and not all(isinstance(part, str | list | dict) for part in parts)
    ):
        raise ValueError(f"{spec.name}.{key}: {_WORDS[kind]} is needed (got {value!r})")


Options = dict[str, Any]
TrackerEntry = Annotated[TrackerName | dict[TrackerName, Options], BeforeValidator(checked_entry)]


def options_of(track: Sequence[Any]) -> dict[str, Options]:
    """Return the options of each tracker by its name."""
    entries = [entry if isinstance(entry, Mapping) else {entry: {}} for entry in track]
    return {str(name): dict(options) for entry in entries for name, options in entry.items()}


def repeated(track: Sequence[Any]) -> str | None:
    """Return a tracker that is listed twice."""
    names = Counter(name for entry in track for name in options_of([entry]))
    return next((name for name, count in names.items() if count > 1), None)


def without_ledger(values: Any) -> Any:
    """Return the values of a recipe with the deprecated `track: [ledger]` as `loop.ledger: true`."""
    if not has_ledger(values) or not isinstance(values.get("loop"), dict):
        return values
    track = [entry for entry in values["track"] if entry != LEDGER]
    return {**values, "track": track, "loop": {**values["loop"], "ledger": True}}


def has_ledger(values: Any) -> bool:
    """Return whether a recipe has the deprecated `track: [ledger]`."""
    return isinstance(values, dict) and isinstance(values.get("track"), list) and LEDGER in values["track"]


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of these trackers are installed.

    Raises:
        UsageError: one is not; with the command that installs it.
    """
    for spec in (TRACKERS[name] for name in names):
        if spec.missing:
            raise UsageError(
                f"track: {spec.name} is not installed in this environment; pip install {spec.install or spec.name}, or "
                f"leave it out: rankzero track RUN --to {spec.name} uploads a run later"
            )

"""Site defaults for jobs: read site files, check them, and fill in what the recipe and the command leave open.

Files, each overriding the one before: /etc/rankzero/site.yaml, the file that $RANKZERO_SITE names, and
~/.config/rankzero/site.yaml. Keys of the recipe's `launch` section and options of the command override all of them.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator

from trainer.errors import UsageError
from trainer.rank_env import RANK_VARIABLES
from trainer.recipe import parse_yaml
from trainer.recipe.loop_sections import Chain, LaunchConfig
from trainer.recipe.sections import Section, is_changed

SYSTEM = Path("/etc/rankzero/site.yaml")
VARIABLE = "RANKZERO_SITE"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN = ("RANKZERO_", "SLURM_", "SBATCH_", "SRUN_", *RANK_VARIABLES)  # what the script and SLURM set
PLACEHOLDERS = {"{user}": '"$(id -un)"', "{job}": '"$SLURM_JOB_ID"'}  # in `scratch`


def _one_line(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text) or not text:
        raise ValueError("must be one line of text without control characters")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
_number_as_text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
Word = Annotated[str, _number_as_text, AfterValidator(_one_line)]


class Container(Section):
    """The container in which ranks run: one of `pyxis` and `apptainer`."""

    pyxis: Line | None = Field(None, description="image for srun --container-image")
    apptainer: Line | None = Field(None, description="image for apptainer exec")
    mounts: list[Line] = Field(default_factory=list, description="SOURCE:TARGET, for either")
    options: list[Line] = Field(default_factory=lambda: ["--nv"], description="further options of apptainer exec")
    python: Line | None = Field(None, description="its Python; null = python3 for apptainer, the submitter's for pyxis")

    def lines(self) -> list[str]:
        """Return the shell lines that let the script start ranks in the container."""
        if self.pyxis is not None:
            options = [f"--container-image={self.pyxis}"]
            options += [f"--container-mounts={','.join(self.mounts)}"] if self.mounts else []
            python = [f"PYTHON=({shlex.quote(self.python)})"] if self.python else []
            return [f"SRUN+=({shlex.join(options)})", *python]
        binds = [word for mount in self.mounts for word in ("--bind", mount)]
        words = ["apptainer", "exec", *self.options, *binds, str(self.apptainer), self.python or "python3"]
        return [f"PYTHON=({shlex.join(words)})"]


class Site(Section):
    """Defaults of a site. The keys from `partition` to `chain` are those of the recipe's `launch` section."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    memory: Word | None = None
    time: Word | None = None
    mail: Line | None = None
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    signal_lead: Annotated[int, Field(ge=1)] | None = None
    chain: Chain | None = None
    gpu_request: Literal["gpus-per-node", "gres"] = Field("gpus-per-node", description="the option that asks for GPUs")
    gpu_type: Line | None = Field(None, description="added to a number of GPUs: 4 becomes a100:4")
    modules: list[Line] = Field(default_factory=list, description="loaded with `module load`, in this order")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the job, such as NCCL's")
    container: Container | None = None
    scratch: Line | None = Field(None, description="TMPDIR on each node; {user} and {job} are replaced")
    setup: list[Line] = Field(default_factory=list, description="shell lines before those of the recipe")
    extra: list[Line] = Field(default_factory=list, description="#SBATCH options before those of the recipe")

    @field_validator("environment", mode="before")
    @classmethod
    def _variables(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        for name, value in values.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if name.startswith(OWN):
                raise ValueError(f"{name} is set by the job script or SLURM; omit it")
            if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
                raise ValueError(f"{name} must be a text or a number, not {value!r}")
        return {name: str(value) for name, value in values.items()}

    @field_validator("container")
    @classmethod
    def _one_kind(cls, container: Container | None) -> Container | None:
        if container is not None and (container.pyxis is None) == (container.apptainer is None):
            raise ValueError("give one of pyxis and apptainer, the image")
        return container

    @field_validator("scratch")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and not path.startswith("/"):
            raise ValueError("must begin with /: the script quotes it, and the shell replaces neither ~ nor $NAME")
        return path

    def setup_lines(self) -> list[str]:
        """Return the shell lines of the job script, with quoted values."""
        lines = [f"module load {shlex.quote(module)}" for module in self.modules]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        if self.scratch is not None:
            lines.append(f"export TMPDIR={_with_variables(self.scratch)}")
            lines.append('srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 mkdir -p -- "$TMPDIR"')
        return [*lines, *(self.container.lines() if self.container else ()), *self.setup]

    def fill(self, launch: LaunchConfig, explicit: Collection[str] = ()) -> LaunchConfig:
        """Return `launch` with the site's values for keys that have their defaults.

        Args:
            explicit: keys that were given on the command line, also with the value of the default.
        """
        keys = LaunchConfig.model_fields.keys() & Site.model_fields.keys() - {"setup", "extra"}
        free = {key for key in keys if key not in explicit and not is_changed(launch, key)}
        values = {key: value for key in free if (value := getattr(self, key)) is not None}
        gpus = launch.gpus_per_node
        if self.gpu_type and gpus and str(gpus).isdecimal():
            values["gpus_per_node"] = f"{self.gpu_type}:{gpus}"
        values |= {"setup": [*self.setup_lines(), *launch.setup], "extra": [*self.extra, *launch.extra]}
        return launch.model_copy(update=values)


@dataclass(frozen=True)
class SiteFiles:
    """The site defaults of all files together, and the keys of each file."""

    site: Site
    keys: Mapping[Path, list[str]]

    def describe(self) -> str:
        """Return a line for the checks of a submission."""
        files = [f"{path}: {', '.join(keys) or 'empty'}" for path, keys in self.keys.items()]
        return "; ".join(files) or f"no site file ({', '.join(map(str, site_paths()))})"


def site_paths() -> list[Path]:
    """Return the paths of site files, whether or not they exist, the one that counts most last."""
    named = os.environ.get(VARIABLE)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [SYSTEM, *([Path(named)] if named else []), home / "rankzero" / "site.yaml"]


def read_site() -> SiteFiles:
    """Read all site files. Variables of `environment` are merged one by one, all other keys as a whole.

    Raises:
        UsageError: a file is wrong or cannot be read, or $RANKZERO_SITE names none; all problems of a file at once.
    """
    values: dict[str, Any] = {}
    keys: dict[Path, list[str]] = {}
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_file():
        raise UsageError(f"${VARIABLE}={named}: there is no such file; correct the variable, or unset it")
    for path in site_paths():
        if not path.is_file():
            continue
        found = _read(path)
        keys[path] = list(found)
        environment = {**values.get("environment", {}), **found.get("environment", {})}
        values |= found | ({"environment": environment} if environment else {})
    return SiteFiles(Site.model_validate(values), keys)


def _read(path: Path) -> dict[str, Any]:
    """Return the checked values of a file, nothing for an empty one."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"site file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a site file is a mapping of keys, not {type(values).__name__}")
    try:
        Site.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_problem(dict(problem)) for problem in error.errors())
        raise UsageError(f"site file {path}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    return {str(key): value for key, value in values.items()}


def _problem(problem: Mapping[str, Any]) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}, not {str(problem['input'])[:80]!r}"
    known = (Container if len(problem["loc"]) > 1 else Site).model_fields
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    return f"{key}: unknown key; {f'did you mean {near[0]}? ' if near else ''}known: {', '.join(known)}"


def _with_variables(text: str) -> str:
    """Quote a text for the shell, with variables in place of its placeholders."""
    parts = re.split("({user}|{job})", text)
    return "".join(PLACEHOLDERS.get(part) or (shlex.quote(part) if part else "") for part in parts)

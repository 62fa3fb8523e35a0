"""Accelerate configs: find, read and check them, and fit them to this machine.

Accelerate reads these files again when it launches. Several wrong ones silently train in one process. So the ranks
compare what runs with what is read here, by RANKZERO_ENGINE and RANKZERO_RANKS.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

import yaml

from trainer.cpu_info import EMULATED, bf16_arithmetic
from trainer.engine_specs import ENGINES, EngineName, EngineSpec
from trainer.errors import UsageError

Engine = EngineName
Precision = Literal["no", "bf16", "fp16", "fp8"]

_HERE = Path(__file__).parent
PORT = 29_500  # of machine 0, as in torchrun
PARALLELISM = "parallelism_config"  # a section of a config, and the first words of its keys
FOLDERS = (_HERE / "accelerate_configs", _HERE.parent / "accelerate_configs")  # in the wheel, in a source checkout


@dataclass(frozen=True)
class Machines:
    """The options of `rankzero train` on each of several machines. They replace keys of the config.

    Attributes:
        number: of machines.
        rank: of this machine, from 0.
        address: `HOST` or `HOST:PORT` of machine 0.
    """

    number: int
    rank: int
    address: str

    def applied(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of a config that change. `num_processes` stays the same for each machine.

        Raises:
            UsageError: an address without a host, or with a port that is none.
        """
        host, _, port = self.address.partition(":")
        if not host or not (port or "1").isdigit() or not 0 < int(port or PORT) < 65_536:
            raise UsageError(f"--main-address {self.address}: allowed: HOST or HOST:PORT of the first machine")
        keys = {
            "num_machines": self.number,
            "machine_rank": self.rank,
            "main_process_ip": host,
            "main_process_port": int(port or PORT),
            "rdzv_backend": "static",
        }
        ranks, before = values.get("num_processes"), values.get("num_machines", 1)
        if isinstance(ranks, int) and isinstance(before, int) and before > 0 and ranks % before == 0:
            keys["num_processes"] = ranks // before * self.number
        if "deepspeed_config" in values:
            keys["deepspeed_multinode_launcher"] = "standard"
        return keys


@dataclass(frozen=True)
class LaunchPlan:
    """The content of an Accelerate config.

    Attributes:
        config: name or path, as on the command line.
        ranks: processes of all machines together. None: one for each GPU.
        cpu: no GPU is used.
        copies: of the model, each sharded over its own part of the ranks (HSDP).
        replaced: keys of the file that the command line replaces, but for the number of ranks.
        note: how the plan differs from the file, for the user.
    """

    config: str
    path: Path
    engine: Engine
    ranks: int | None
    precision: Precision
    cpu: bool
    machines: int = 1
    copies: int = 1
    replaced: Mapping[str, object] = field(default_factory=dict)
    note: str = ""

    @property
    def spec(self) -> EngineSpec:
        """The facts about the engine."""
        return ENGINES[self.engine]

    @property
    def ranks_here(self) -> int:
        """The ranks on one machine. Their number must be settled (see `choose`)."""
        assert self.ranks is not None, self
        return self.ranks // self.machines

    @property
    def parts(self) -> int:
        """The ranks that share a copy of the model (HSDP)."""
        assert self.ranks is not None, self
        return self.ranks // self.copies

    def with_ranks(self, ranks: int) -> LaunchPlan:
        """Return the plan with a settled number of ranks. DDP with one rank is one process, which the note says.

        Raises:
            UsageError: the copies of the model need another number of ranks.
        """
        if self.copies > 1 and ranks != self.ranks:
            raise UsageError(
                f"{ranks} ranks: {PARALLELISM} of {self.path} has {self.copies} copies of the model in {self.parts} "
                f"parts each, for {self.ranks} ranks; copy the file and change both sizes and num_processes"
            )
        plan = replace(self, ranks=ranks)
        alone = self.spec.on_one_rank
        if ranks > 1 or alone is self.spec:
            return plan
        text = f"config {self.config} with one rank is one process: engine {alone.name} instead of {self.engine}"
        return replace(plan, engine=alone.name, note=text)


def shipped() -> dict[str, Path]:
    """Return the shipped configs by name, sorted."""
    for folder in FOLDERS:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise UsageError(f"no folder accelerate_configs at {' or '.join(map(str, FOLDERS))}: reinstall rankzero")


def find(config: str) -> Path:
    """Return the file for a shipped name or a path.

    Raises:
        UsageError: neither a shipped name nor an existing file.
    """
    known = shipped()
    if config in known:
        return known[config]
    path = Path(config)
    if path.is_file():
        return path
    near = difflib.get_close_matches(config, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"--config {config}: no shipped config and no file; {hint}shipped: {', '.join(known)}")


def describe(config: str | Path, machines: Machines | None = None) -> LaunchPlan:
    """Read a config (shipped name or path), without a look at this machine.

    Args:
        config: shipped name or path.
        machines: replaces what the file says about machines.

    Raises:
        UsageError: missing file, not YAML, or a value that would not run as written; names the key and the fix.
    """
    path = config if isinstance(config, Path) else find(config)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"config {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"config {path}: an Accelerate config is a mapping, not {type(values).__name__}")
    engine = _engine(values, path)
    if machines and ENGINES[engine].one_process:
        raise UsageError(f"--machines {machines.number}: config {config} is one process; take --config cpu or ddp")
    replaced = machines.applied(values) if machines else {}
    values |= replaced
    plan = LaunchPlan(
        config=str(config),
        path=path,
        engine=engine,
        ranks=_ranks(values, path, engine),
        precision=_precision(values, path),
        cpu=_flag(values, path, "use_cpu"),
        machines=_integer(values, path, "num_machines", 1),
        copies=_copies(values, path, engine),
        replaced=replaced,
    )
    _check_machines(plan, values)
    if plan.cpu and plan.precision == "fp16" and not plan.spec.fp16_on_cpu:
        _refuse(path, "mixed_precision", "fp16", "no or bf16 on CPU, where fp16 silently trains in fp32")
    if plan.precision == "fp8" and (plan.cpu or plan.spec.sharded):
        _refuse(path, "mixed_precision", "fp8", "no or bf16: fp8 needs distributed_type MULTI_GPU, and GPUs")
    return plan


def choose(config: str | None, nproc: int | None, machines: Machines | None = None) -> LaunchPlan:
    """Return the plan for this machine, with a settled number of ranks.

    The note says if DDP becomes one process, and if the processor only emulates bf16.

    Args:
        config: shipped name or path. None: `ddp` if there are two or more GPUs, otherwise `debug`.
        nproc: ranks of all machines together. It overrides the file.
        machines: replaces what the file says about machines.

    Raises:
        UsageError: as `describe`; or more ranks than GPUs, or a number that does not fit the config.
    """
    several = machines is not None and gpus() > 0
    plan = describe(config or ("ddp" if several or gpus() >= 2 else "debug"), machines)
    if nproc is not None and nproc < 1:
        raise UsageError(f"--nproc {nproc}: at least 1 rank")
    if nproc not in (None, 1) and plan.spec.one_process:
        raise UsageError(f"--nproc {nproc}: config {plan.config} is one process; for more take --config cpu or ddp")
    ranks = nproc or plan.ranks
    if not plan.cpu and not plan.spec.one_process:
        ranks = _fit_gpus(plan, ranks)
    assert ranks is not None, "only configs for GPUs may leave the number of ranks open"
    if ranks % plan.machines:
        raise UsageError(f"--nproc {ranks}: not divisible by the {plan.machines} machines of config {plan.config}")
    plan = plan.with_ranks(ranks)
    if plan.cpu and plan.precision == "bf16" and not bf16_arithmetic():
        emulated = f"config {plan.config}: {EMULATED}: --config cpu"
        plan = replace(plan, note=f"{plan.note}; {emulated}" if plan.note else emulated)
    return plan


def gpu_device_files(folder: Path = Path("/dev")) -> bool:
    """Whether there is a device file of a GPU: NVIDIA's, WSL's or AMD's."""
    return any(folder.glob("nvidia[0-9]*")) or (folder / "dxg").exists() or (folder / "kfd").exists()


def gpus() -> int:
    """Return the number of usable CUDA devices. Import torch only if there is a device file of a GPU."""
    if not gpu_device_files():
        return 0
    import torch

    return torch.cuda.device_count()


def gpus_of_new_process() -> int:
    """Return the CUDA devices that a new process would have. This process may still count one that was lost."""
    if not gpu_device_files():
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


def _fit_gpus(plan: LaunchPlan, ranks: int | None) -> int:
    here = gpus()
    if here == 0:
        raise UsageError(f"config {plan.config} needs GPUs and none is visible here; on CPU take cpu or debug")
    ranks = ranks or here * plan.machines
    if ranks > here * plan.machines:
        raise UsageError(f"{ranks} ranks on {plan.machines} x {here} GPUs: --nproc {here * plan.machines} at most")
    return ranks


def _engine(values: dict[str, Any], path: Path) -> Engine:
    kind = values.get("distributed_type")
    specs = [spec for spec in ENGINES.values() if spec.distributed_type == kind]
    if not specs:
        allowed = "'NO' (quoted), MULTI_GPU (also for DDP on CPU, with use_cpu: true), DEEPSPEED or FSDP"
        _refuse(path, "distributed_type", kind, allowed)
    stage = (values.get("deepspeed_config") or {}).get("zero_stage")
    version = (values.get("fsdp_config") or {}).get("fsdp_version")
    if kind == "FSDP" and version != 2:
        _refuse(path, "fsdp_config.fsdp_version", version, "2")
    fitting = [spec.name for spec in specs if spec.zero_stage in (None, stage)]
    if not fitting:
        _refuse(path, "deepspeed_config.zero_stage", stage, "1, 2 or 3")
    return fitting[0]


def _ranks(values: dict[str, Any], path: Path, engine: Engine) -> int | None:
    if ENGINES[engine].one_process:
        if values.get("num_processes", 1) != 1:
            _refuse(path, "num_processes", values["num_processes"], "1 with distributed_type 'NO'")
        return 1
    if values.get("num_processes", "gpu") == "gpu":
        if values.get("use_cpu"):
            _refuse(path, "num_processes", values.get("num_processes"), "a number, with use_cpu: true")
        return None
    return _integer(values, path, "num_processes", 1)


def _copies(values: dict[str, Any], path: Path, engine: Engine) -> int:
    """Return `dp_replicate_size`. The engine checks the sizes again, for ranks that another launcher starts."""
    sizes = values.get(PARALLELISM) or {}
    if not sizes or not ENGINES[engine].replicates:
        return 1
    copies, parts = (_integer(sizes, path, f"{PARALLELISM}_dp_{name}_size", 1) for name in ("replicate", "shard"))
    if copies * parts != values.get("num_processes") or parts < 2:
        key = f"{PARALLELISM}_dp_replicate_size x {PARALLELISM}_dp_shard_size"
        allowed = f"num_processes, which is {values.get('num_processes')!r}, with 2 parts or more"
        _refuse(path, key, f"{copies} x {parts}", allowed)
    return copies


def _precision(values: dict[str, Any], path: Path) -> Precision:
    precision = values.get("mixed_precision", "no")
    if precision not in get_args(Precision):
        _refuse(path, "mixed_precision", precision, "'no' (quoted: a bare no is false in YAML), bf16, fp16 or fp8")
    return cast(Precision, precision)


def _check_machines(plan: LaunchPlan, values: dict[str, Any]) -> None:
    if plan.machines == 1:
        return
    if (plan.ranks is None and not plan.replaced) or (plan.ranks or 0) % plan.machines:
        _refuse(plan.path, "num_processes", values.get("num_processes"), f"a multiple of the {plan.machines} machines")
    rank = values.get("machine_rank", 0)
    if rank not in range(plan.machines):
        _refuse(plan.path, "machine_rank", rank, f"0 to {plan.machines - 1}, another on each machine")
    for key in ("main_process_ip", "main_process_port"):
        if not values.get(key):
            _refuse(plan.path, key, values.get(key), "the first machine's, the same on all machines")


def _integer(values: dict[str, Any], path: Path, key: str, default: int) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse(path, key, value, "a whole number from 1")
    return value


def _flag(values: dict[str, Any], path: Path, key: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        _refuse(path, key, value, "true or false")
    return value


def _refuse(path: Path, key: str, value: Any, allowed: str) -> NoReturn:
    raise UsageError(f"config {path}: {key} is {value!r}; allowed: {allowed}")

"""What goes wrong on purpose, and what is watched, in the ranks of a test; see processes.py.

A hook runs in the rank before its command line. Give it as functools.partial: it travels to the rank by its name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def layers_traced_only() -> None:
    """With loop.compile=layers, trace the layers and run their graphs as they are, which takes seconds less."""
    from trainer.engine import session
    from trainer.models.layers import compile_layers

    session.compile_layers = functools.partial(compile_layers, backend="eager")  # type: ignore[attr-defined]


def killed_once_written(step: int, lane: int, path: str) -> None:
    """The rank that owns `lane` waits in a step until a file exists, and kills itself."""
    from trainer.engine import step as module

    seed_for = module.seed_for

    def wrapped(seed: int, at: int, of: int, part: int = 0) -> None:
        if (at, of) == (step, lane):
            until = time.monotonic() + 60
            while not Path(path).exists() and time.monotonic() < until:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        seed_for(seed, at, of, part)

    module.seed_for = wrapped  # type: ignore[assignment]


def at_micro_batch(step: int, lane: int, number: int = signal.SIGKILL) -> None:
    """The rank that owns `lane` sends itself a signal in the middle of a step, before that lane's forward."""
    from trainer.engine import step as module

    seed_for = module.seed_for

    def wrapped(seed: int, at: int, of: int, part: int = 0) -> None:
        if (at, of) == (step, lane):
            os.kill(os.getpid(), number)
        seed_for(seed, at, of, part)

    module.seed_for = wrapped  # type: ignore[assignment]


def kill_loader(step: int) -> None:
    """In the middle of a step, kill the loader processes of this rank."""
    from trainer.engine import step as module

    seed_for = module.seed_for

    def wrapped(seed: int, at: int, of: int, part: int = 0) -> None:
        if at == step:
            for child in psutil.Process().children():
                child.kill()
        seed_for(seed, at, of, part)

    module.seed_for = wrapped  # type: ignore[assignment]


def log_commits(path: Path) -> None:
    """Write which files are flushed and which folders are renamed, in their order."""
    flush, rename = os.fsync, Path.rename

    def log(text: str) -> None:
        with path.open("a") as file:
            file.write(f"{text}\n")

    def flushed(handle: int) -> None:
        log(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")  # noqa: PTH115
        flush(handle)

    def renamed(self: Path, target: Any) -> Path:
        log(f"rename {Path(target).name}")
        return rename(self, target)

    os.fsync, Path.rename = flushed, renamed  # type: ignore[assignment, method-assign]


def read_only_from_first_save() -> None:
    """From the first save on, rank zero can make no folder and remove no file, as on a disk that is read-only."""
    from trainer.engine import saving

    begin = saving._begin

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    def refused(*arguments: Any) -> Any:
        Path.unlink = Path.mkdir = refuse  # type: ignore[method-assign, assignment]
        return begin(*arguments)

    saving._begin = refused


def arm(point: str, nth: int, then: Callable[[], Any]) -> Callable[[], None]:
    """From now on the nth call of a function does `then` first. Returns what undoes it."""
    from trainer import tensors
    from trainer.engine import saving

    owners: dict[str, Any] = {"saving": saving, "tensors": tensors, "os": os, "Path": Path, "shutil": shutil}
    owner, name = owners[point.partition(".")[0]], point.partition(".")[2]
    original, calls = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            then()
        return original(*arguments, **more)

    setattr(owner, name, wrapped)
    return lambda: setattr(owner, name, original)


def one_decay_group() -> None:
    """Put every parameter into the group that decays, as an earlier version may have grouped them otherwise."""
    from trainer.optim import optimizers

    optimizers._without_decay = lambda model: set()  # type: ignore[assignment]


def at_call(function: str, nth: int = 1, of_rank: int = 0, number: int = signal.SIGKILL) -> None:
    """Rank `of_rank` sends itself a signal when it enters a function ("trainer.engine.evaluate.evaluate") the nth time.

    The function must be called by its module's name, as an attribute or a global of that module.
    """
    if of_rank != rank():
        return
    module, _, name = function.rpartition(".")
    owner: Any = importlib.import_module(module) if module.islower() else _class(module)
    original, calls = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            os.kill(os.getpid(), number)
        return original(*arguments, **more)

    setattr(owner, name, wrapped)


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def slow_step(seconds: float) -> None:
    """Every optimizer step takes so much longer."""
    from trainer.engine.step import Stepper

    gradients = Stepper.gradients

    def wrapped(self: Stepper, *arguments: Any) -> Any:
        time.sleep(seconds)
        return gradients(self, *arguments)

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def first_is_best(then: Callable[[], None]) -> None:
    """Every evaluation of the training gives a worse value than the one before."""
    from trainer.engine import loop as module

    values = itertools.count(1.0)
    module.selection_score = lambda *_: next(values)  # type: ignore[assignment]
    then()


def quick_heartbeat(seconds: float, then: Callable[[], None] | None = None) -> None:
    """The lock of the run directory is updated so often, and a silent one is taken over accordingly sooner."""
    from trainer import lock

    lock.HEARTBEAT_SECONDS = seconds
    if then is not None:
        then()


def kill_rank(main: int) -> None:
    """Kills the second of two ranks, given the process number of the first."""
    launcher = psutil.Process(main).parent()
    assert launcher is not None
    ranks = [child for child in launcher.children() if child.environ().get("RANK") == "1"]
    assert len(ranks) == 1, ranks
    ranks[0].kill()


def at_save(step: int, function: str) -> None:
    """Rank zero is killed in the save of a step when it is about to call a function of saving or checkpoint."""
    from trainer.engine import checkpoint, saving

    module = saving if hasattr(saving, function) else checkpoint
    save, original, now = saving.save_share, getattr(module, function), [0]

    def started(folder: Path, at: int, *more: Any) -> Any:
        now[0] = at
        return save(folder, at, *more)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        if now[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    saving.save_share = started
    setattr(module, function, wrapped)


def save_gradients(path: Path) -> None:
    """Rank zero writes the gradient of each step, {"step.parameter": tensor}, when the last step has been made."""
    from safetensors.torch import save_file

    from trainer.engine.step import Stepper

    gradients, found = Stepper.gradients, {}

    def wrapped(self: Stepper, batches: Any, step: int, totals: Any) -> Any:
        loss = gradients(self, batches, step, totals)
        found.update({f"{step}.{n}": p.grad.clone() for n, p in self.objective.named_parameters()})
        if rank() == 0 and step == self.task.recipe.loop.max_steps:
            save_file({name.replace("module.", ""): tensor for name, tensor in found.items()}, path)
        return loss

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def mean_of_means(path: Path) -> None:
    """The common mistake, as a control: each rank divides by its own count of labels."""
    from trainer.engine.step import Stepper

    save_gradients(path)
    gradients = Stepper.gradients

    def wrapped(self: Stepper, batches: Any, step: int, totals: Any) -> Any:
        own = sum(self.task.targets(b.inputs) for b in batches if b is not None)
        return gradients(self, batches, step, replace(totals, targets=own * self.runtime.data_parallel.size))

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def noise_of_ranks(path: Path) -> None:
    """The other common mistake, as a control: dropout is seeded by the rank."""
    from trainer.engine import step as module

    save_gradients(path)
    seed_for = module.seed_for
    module.seed_for = lambda seed, step, lane, part=0: seed_for(seed, step, rank())  # type: ignore[assignment]


def poison(value: float = math.nan) -> None:
    """The loss of a micro-batch that holds the token "%" is `value`."""
    from trainer.tasks.translation.task import Translation

    loss = Translation.loss

    def wrapped(self: Translation, model: Any, batch: Any) -> Any:
        found = (batch["src"] == self.tokenizer.convert_tokens_to_ids("%")).any()
        return loss(self, model, batch) * (value if found else 1.0)

    Translation.loss = wrapped  # type: ignore[method-assign]


def poison_gradient() -> None:
    """The loss of that micro-batch is finite, its gradient is not."""
    import torch

    from trainer.tasks.translation.task import Translation

    loss = Translation.loss

    def wrapped(self: Translation, model: Any, batch: Any) -> Any:
        total = loss(self, model, batch)
        if (batch["src"] == self.tokenizer.convert_tokens_to_ids("%")).any():
            zero = (total - total.detach()) ** 2  # 0, and the derivative of its root at 0 is infinite
            return total + torch.sqrt(zero)
        return total

    Translation.loss = wrapped  # type: ignore[method-assign]


def spoil_rows(of_rank: int) -> None:
    """Rank `of_rank`, and no other, meets a bad row in training."""
    if of_rank != rank():
        return
    from trainer.data.cleaning import BadRow
    from trainer.engine.corpus import Corpus
    from trainer.errors import DataError

    def encode(self: Corpus, rows: Any) -> Any:
        raise DataError(BadRow(rows[0].id, "is spoiled", "de").describe("train.jsonl"))

    Corpus._encode = encode  # type: ignore[method-assign]


def save_deltas(path: Path) -> None:
    """Each rank writes the δ of every micro-batch of adversarial training, {"step.lane": tensor}, at each step."""
    from safetensors.torch import save_file

    from trainer.engine.step import Stepper
    from trainer.optim.adversarial import Perturbation

    micro_batch, direction, found = Stepper._micro_batch, Perturbation.direction, {}
    name = [""]

    def wrapped(self: Stepper, batch: Any, noise: Any, scale: float, *, last: bool) -> Any:
        name[0] = f"{noise[1]}.{noise[2]}"
        loss = micro_batch(self, batch, noise, scale, last=last)
        save_file(found, f"{path}.{rank()}.safetensors")
        return loss

    def noted(self: Perturbation, *mask: Any) -> Any:
        delta = direction(self, *mask)
        found[name[0]] = delta.clone()
        return delta

    Stepper._micro_batch, Perturbation.direction = wrapped, noted  # type: ignore[method-assign]


def hang(where: str, guilty: int, step: int) -> None:
    """Rank `guilty` sleeps for ever when it is about to make a step: in its loss, or where rows are collated."""
    if rank() != guilty:
        return
    from trainer.engine.step import Stepper
    from trainer.tasks.translation.task import Translation

    def sleeping() -> None:
        time.sleep(10_000)

    gradients, original = Stepper.gradients, getattr(Translation, where)
    made = [0]

    def wrapped(self: Stepper, batches: Any, number: int, totals: Any) -> Any:
        loss = gradients(self, batches, number, totals)
        made[0] = number
        return loss

    def hanging(self: Translation, *arguments: Any) -> Any:
        if made[0] == step - 1:
            sleeping()
        return original(self, *arguments)

    Stepper.gradients = wrapped  # type: ignore[method-assign]
    setattr(Translation, where, hanging)


def without_compiler() -> None:
    """End the process where DeepSpeed would compile a test program. It ignores errors there."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    def refused(*arguments: Any, **more: Any) -> None:
        os._exit(7)

    OpBuilder.has_function = refused


def wait_apart(seconds: float) -> None:
    """Before the first step, rank zero waits in a gathering and rank one in a broadcast, as after a lost connection.

    Args:
        seconds: the least limit of the watchdog if all ranks wait.
    """
    _before_the_first_step(seconds, lambda runtime: runtime.gather(0))


def work_before_the_first_step(seconds: float, waiting: float) -> None:
    """Rank zero works before the first step, outside of `on_main`, while rank one waits for a broadcast."""
    _before_the_first_step(waiting, lambda runtime: time.sleep(seconds))


def _before_the_first_step(waiting: float, of_rank_zero: Callable[[Any], Any]) -> None:
    from trainer.engine import session, watchdog

    watchdog.WAITING_SECONDS, watchdog.LOOK_SECONDS = waiting, 0.1
    prepare = session.Session.__init__

    def wrapped(self: Any, recipe: Any, run: Any, runtime: Any, *arguments: Any, **more: Any) -> None:
        if rank() == 0:
            of_rank_zero(runtime)
        runtime.broadcast(0)
        prepare(self, recipe, run, runtime, *arguments, **more)

    session.Session.__init__ = wrapped  # type: ignore[method-assign]


def long_tokenizer_training(seconds: float) -> None:
    """Rank zero takes its time while the others wait."""
    from trainer.engine import setup

    make_tokenizer = setup.make_tokenizer

    def wrapped(*arguments: Any) -> None:
        time.sleep(seconds)
        make_tokenizer(*arguments)

    setup.make_tokenizer = wrapped


def short_of_memory(of_rank: int, step: int, rows: int) -> None:
    """From step `step` on, rank `of_rank` has memory for micro-batches of fewer than `rows` rows only."""
    if of_rank != rank():
        return
    import torch

    from trainer.engine.objective import Objective
    from trainer.engine.step import Stepper

    gradients, forward, now = Stepper.gradients, Objective.forward, [0]

    def wrapped(self: Stepper, batches: Any, number: int, totals: Any) -> Any:
        now[0] = number
        return gradients(self, batches, number, totals)

    def hungry(self: Objective, **batch: Any) -> Any:
        if now[0] >= step and len(batch["labels"]) >= rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, **batch)

    Stepper.gradients, Objective.forward = wrapped, hungry  # type: ignore[method-assign]


def small_parts(size: int) -> None:
    """Files of tensors are split where they hold more than `size` bytes."""
    from trainer import tensors

    tensors.SHARD_BYTES = size


def report_matmul_precision() -> None:
    """At its end the rank prints in what precision torch multiplies fp32 matrices on a GPU."""
    import torch

    from trainer.engine.loop import Loop

    original = Loop.train

    def wrapped(self: Loop) -> None:
        original(self)
        print("matmul precision", torch.backends.cuda.matmul.fp32_precision)

    Loop.train = wrapped  # type: ignore[method-assign]


def slow_export(seconds: float, timeout: float) -> None:
    """Collectives time out sooner than rank zero has exported."""
    from datetime import timedelta

    from trainer.engine import rendezvous

    rendezvous.GROUP_TIMEOUT = timedelta(seconds=timeout)
    _before_export(lambda: time.sleep(seconds))


def stop_in_export() -> None:
    """Rank zero gets a SIGTERM when it begins to export."""
    _before_export(lambda: os.kill(os.getpid(), signal.SIGTERM))


def _before_export(work: Any) -> None:
    from trainer.export import conversions

    original = conversions.write_artifact

    def wrapped(*arguments: Any) -> None:
        work()
        original(*arguments)

    conversions.write_artifact = wrapped


def fail_on_bears() -> None:
    """A cleaning step of every recipe fails on one kind of text."""
    from trainer.data.cleaning import CLEANERS

    fold = CLEANERS["fold_whitespace"]

    def step(text: str) -> str:
        if "Bär" in text:
            raise ValueError("no bears")
        return fold(text)

    CLEANERS["fold_whitespace"] = step


def no_memory_for_pictures_and_card() -> None:
    """The confusion matrix and the model card run out of memory."""
    from trainer import report_stages
    from trainer.report import confusion_matrix

    def fail(*arguments: Any) -> None:
        raise MemoryError("Unable to allocate 23 GiB")

    confusion_matrix.draw_confusion = fail  # type: ignore[assignment]
    report_stages.write_card = fail  # type: ignore[assignment]


def timers_due(*calls: int) -> None:
    """Timers of rank zero are due at the calls of these numbers, counted from 1. Those of other ranks never are."""
    from trainer.engine.timer import Timer

    asked: dict[int, int] = {}

    def due(self: Timer) -> bool:
        asked[id(self)] = asked.get(id(self), 0) + 1
        return self._seconds is not None and rank() == 0 and asked[id(self)] in calls

    Timer.due = due  # type: ignore[method-assign]


def import_from(folder: str) -> None:
    """Modules of a folder can be imported."""
    sys.path.insert(0, folder)


def import_examples() -> None:
    """Let the rank import the examples, as PYTHONPATH=examples would."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def with_rows(data: dict[str, Any], then: Callable[[], None] | None = None) -> None:
    """Gives `data` to the function that the command `train` calls."""
    from trainer import api

    api.train = functools.partial(api.train, data=data)  # type: ignore[assignment]
    if then is not None:
        then()


def hub_cache(folder: Path) -> None:
    """Let huggingface_hub use another cache, without a connection."""
    from huggingface_hub import constants

    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(folder), True


def read_later(then: Callable[[], None] | None = None) -> None:
    """Steps read no number of the device before the next backward, as on a GPU."""
    from trainer.engine.engines.base import Engine

    Engine.asynchronous = property(lambda self: True)  # type: ignore[assignment, method-assign]
    if then is not None:
        then()


def count_device_waits(path: Path, first: int, last: int) -> None:
    """Each rank writes where the steps from `first` to `last` wait for the device, and the order of what they do."""
    import json

    from device_waits import DeviceWaits

    from trainer.engine import outcomes
    from trainer.engine.device_number import DeviceNumber
    from trainer.engine.engines.base import Engine
    from trainer.engine.loop import Loop
    from trainer.engine.step import Stepper
    from trainer.models import fast_linear

    fast_linear.onednn_is_faster = lambda: False  # of a CPU; it would be the place of what libraries call
    read_later()
    step, gradients, read, update = Loop._step, Stepper.gradients, outcomes.Outcomes.resolve, Engine._step_on_device
    waits, events, now = DeviceWaits(), list[str](), [0]

    def stepping(self: Loop, *arguments: Any) -> None:
        now[0] = self.progress.step + 1
        if now[0] == first:
            waits.__enter__()
        step(self, *arguments)
        if now[0] == last:
            waits.__exit__(None, None, None)
            found = {"waits": waits.sites, "events": events, "late": waits.late}
            Path(f"{path}.{rank()}").write_text(json.dumps(found), encoding="utf-8")

    def computing(self: Stepper, *arguments: Any) -> Any:
        loss = gradients(self, *arguments)
        events.append(f"backward {now[0]}")
        return loss

    def resolving(self: outcomes.Outcomes) -> None:
        if self._unread is not None and isinstance(self._unread.result.grad_norm, DeviceNumber):
            events.append(f"read {self._unread.number}")
        read(self)

    def updating(self: Engine, *arguments: Any) -> Any:
        events.append(f"update {now[0]}")
        return update(self, *arguments)

    Loop._step, Stepper.gradients = stepping, computing  # type: ignore[method-assign]
    outcomes.Outcomes.resolve, Engine._step_on_device = resolving, updating  # type: ignore[method-assign]


def allow_float8() -> None:
    """Let a CPU emulate fp8, which is refused for users: it is slower than bf16."""
    from trainer.engine import runtime

    runtime.check_float8 = lambda *arguments, **named: None  # type: ignore[assignment]


def killed_in_float8(at: int, rank: int) -> None:
    """`allow_float8` and `at_micro_batch`."""
    allow_float8()
    at_micro_batch(at, rank)


def simulated_gpu(rows: Sequence[int], hard: Sequence[int] = (), power: int = 1) -> None:
    """Ranks have GPUs whose memory holds micro-batches of so many rows. It runs out where there are more than `hard`.

    Args:
        rows: of each rank. -1: its memory must not be measured.
        hard: of each rank.
        power: of the rows, with which the memory grows.
    """
    from types import SimpleNamespace

    import torch

    from trainer.engine import fused_lanes
    from trainer.engine.objective import Objective
    from trainer.engine.step import Stepper

    own, a_row, peak, forward, rehearse = rows[rank()], 2**40, [0], Objective.forward, Stepper.rehearse

    def start() -> int:
        assert own >= 0, "the memory is measured again"
        peak[0] = 0
        return 0

    def counted(self: Objective, **batch: Any) -> Any:
        peak[0] = max(peak[0], a_row * len(batch["labels"]) ** power)
        return forward(self, **batch)

    def rehearsed(self: Stepper, batch: Any, forwards: int) -> None:
        assert all(p.grad is None for p in self.objective.parameters()), "a gradient is left"
        if hard and len(batch["labels"]) > hard[rank()]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        rehearse(self, batch, forwards)

    def memory_of(device: torch.device) -> Any:
        most = (own + 0.5) ** power * a_row / fused_lanes.USABLE
        return SimpleNamespace(name="simulated", start=start, peak=lambda: peak[0], available=lambda: int(most))

    Objective.forward, Stepper.rehearse = counted, rehearsed  # type: ignore[method-assign]
    fused_lanes.memory_of = memory_of


class SlowCopies:
    """Streams of a simulated device: a copy has no values before something has waited for it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def copy(self, batch: Any) -> tuple[Any, Any]:
        import torch

        number = 1 + sum(event.startswith("copy") for event in self.events)
        self.events.append(f"copy {number}")
        copied = {name: torch.zeros_like(tensor) for name, tensor in batch.items()}
        return copied, (number, batch, copied)

    def wait(self, event: Any) -> None:
        number, batch, copied = event
        self.events.append(f"wait {number}")
        for name, tensor in batch.items():
            copied[name].copy_(tensor)
        self._last = number

    def keep(self, batch: Any) -> None:
        self.events.append(f"keep {self._last}")


def prefetched(then: Callable[[], None] | None = None) -> None:
    """Micro-batches are copied ahead to a simulated device, as to a GPU."""
    from trainer.engine import prefetch

    prefetch.streams_of = lambda device: SlowCopies()
    if then is not None:
        then()


def no_wait() -> None:
    """The common mistake, as a control: what computes does not wait for the copies."""
    SlowCopies.wait = SlowCopies.keep = lambda self, event: None  # type: ignore[method-assign]


def both(one: Callable[[], None], other: Callable[[], None]) -> None:
    one()
    other()


def nothing() -> None:
    pass


def peak_of_trace(path: Path) -> int:
    """Return the most bytes of tensors in a trace of torch's profiler, besides those before it.

    Events are listed by thread. Collectives allocate in threads of their own.
    """
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    totals = [(e["ts"], e["args"]["Total Allocated"], e["args"]["Bytes"]) for e in events]
    _, total, change = min(totals)
    return int(max(total for _, total, _ in totals) - (total - change))


def saved_in_parts(size: int = 1000) -> None:
    """Checkpoints of small models are written in parts, too."""
    from trainer.engine import parts

    parts.PART_BYTES = size


def memory_of_saves(path: Path, *, at_once: bool = False) -> None:
    """Each rank writes the most bytes that tensors took during its first save in parts, besides what they took before.

    `at_once` is a control: rank zero gathers all tensors before it writes the first one, in one file. A tensor is
    written as late as possible, after the next one is computed, and in the thread whose memory is counted.
    """
    from types import SimpleNamespace

    from torch.profiler import ProfilerActivity, profile

    from trainer import tensors
    from trainer.engine.loop import Loop
    from trainer.engine.parts import Exchange

    save, begin = Loop._save, Exchange.__init__

    def measured(self: Loop) -> None:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            save(self)
        trace = path / f"{rank()}.trace"
        recorded.export_chrome_trace(str(trace))
        (path / f"{rank()}.json").write_text(json.dumps(peak_of_trace(trace)))
        Loop._save = save  # type: ignore[method-assign]

    class Late(contextlib.nullcontext[Any]):
        def __init__(self, *_: Any, **more: Any) -> None:
            super().__init__(self)

        def submit(self, put: Callable[[Any], None], data: Any) -> Any:
            return SimpleNamespace(result=functools.partial(put, data))

    tensors.ThreadPoolExecutor = Late  # type: ignore[assignment, misc]

    def gathered(self: Exchange, *arguments: Any) -> None:
        begin(self, *arguments)
        for own in self.own.values():
            for name in tensors.in_order(own):
                tensor = own[name]
                own[name] = tensor.compute().clone() if isinstance(tensor, tensors.LazyTensor) else tensor
        self.finish()  # a rank that writes nothing takes part

    Loop._save = measured  # type: ignore[method-assign]
    if at_once:
        Exchange.__init__ = gathered  # type: ignore[method-assign]
    else:
        saved_in_parts()


def killed_in_part(name: str, which: int, at: int) -> None:
    """A rank is killed when it begins to write its file of this number whose name begins like this."""
    from trainer import tensors

    saved_in_parts()
    write, calls = tensors._write_file, [0]

    def wrapped(file: Path, *more: Any) -> str:
        calls[0] += file.name.startswith(name)
        if rank() == which and calls[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, *more)

    tensors._write_file = wrapped


def full_disk(file: str, after: int) -> None:
    """On rank zero there is no space left after so many tensors of a file."""
    from trainer import tensors

    write, content, written = tensors._write_file, tensors._bytes_of, [0]

    def limited(path: Path, *more: Any) -> str:
        written[0] = 0 if path.name == file else -sys.maxsize
        return write(path, *more)

    def counted(tensor: Any) -> Any:
        if written[0] == after:
            raise OSError(28, "No space left on device")
        written[0] += 1
        return content(tensor)

    tensors._write_file, tensors._bytes_of = limited, counted


def killed_once_tracked(step: int, logged: int, names: Sequence[str]) -> None:
    """Rank zero waits after the line of `step` until trackers have step `logged`, and is killed with their process."""
    from trainer.engine.reporter import Reporter

    write = Reporter.logged

    def wrapped(self: Any, progress: Any, *values: Any) -> None:
        write(self, progress, *values)
        until = time.monotonic() + 120
        while progress.step == step and time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                last = [json.loads((self._run.path / f"tracking/{name}.json").read_text())["last"] for name in names]
                if all(steps.get("train", 0) >= logged for steps in last):
                    for child in psutil.Process().children(recursive=True):
                        child.kill()
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

    Reporter.logged = wrapped  # type: ignore[method-assign]

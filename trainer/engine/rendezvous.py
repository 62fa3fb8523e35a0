"""Rendezvous of all ranks before the process group exists: report who is missing, and never read old addresses.

Torch's rendezvous waits without a message. With a store that outlives its processes (torchrun's agent), gloo also
reads the addresses that processes of an earlier attempt left there, and hangs. So each attempt gets its own number:
rank zero increments a counter, every rank answers with a random word, and rank zero repeats the words. The restart
count of torchrun (TORCHELASTIC_RESTART_COUNT) is not enough: it differs between the nodes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from trainer.errors import RankError
from trainer.rank_env import UNSET, ranks_text

SECONDS = 600.0  # that ranks wait for each other
ALONE_SECONDS = 10.0  # that a rank without others waits for the store of its launcher
GROUP_TIMEOUT = timedelta(hours=1)  # of collectives: rank zero reads the corpus and trains the tokenizer meanwhile
REPORT_SECONDS = 30.0  # between two messages about who is missing
POLL_SECONDS = 0.1
RECORDED = 2000  # collectives of a rank that are remembered for the case that a rank hangs
ATTEMPT = "RANKZERO_ATTEMPT"  # set here: the number of this attempt, the same on all ranks
LAUNCH = "RANKZERO_LAUNCH"  # set here unless a job script has: the same in all attempts with one store
log = logging.getLogger("rankzero")


def meet(backend: str, seconds: float, check: Callable[[], None]) -> None:
    """Wait for all ranks that WORLD_SIZE names, then make the process group. All ranks call this.

    Args:
        backend: gloo or nccl.
        seconds: how long ranks wait for each other.
        check: called often while waiting; it may raise to give up.

    Raises:
        RankError: a rank did not come in time; names it.
    """
    meeting = _Meeting(seconds, check)
    number = meeting.number()
    os.environ[ATTEMPT] = str(number)
    os.environ.setdefault(LAUNCH, meeting.launch())
    store = PrefixStore(f"rankzero-group-{number}", meeting.store)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(RECORDED))  # torch's flight recorder, which the watchdog reads
    dist.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.world, timeout=GROUP_TIMEOUT)


def number_attempt() -> None:
    """Number the attempt of the only rank of a launcher whose store outlives it (torchrun, on the last node)."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    with contextlib.suppress(RankError):  # without the store, only the record of restarts is incomplete
        meeting = _Meeting(ALONE_SECONDS, lambda: None)
        os.environ[ATTEMPT] = str(meeting.number())
        os.environ.setdefault(LAUNCH, meeting.launch())


class StartLimit:
    """Ends this process with exit code 1 if it is blocked while the ranks connect, within a `with` block.

    Torch waits an hour for a rank that was killed while it connected, and forever for a store whose connection was cut.

    Args:
        seconds: without progress. Time for which the process is stopped (SIGSTOP) does not count.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._waited = seconds, 0.0
        self._ended = threading.Event()

    def progress(self) -> None:
        self._waited = 0.0

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="rankzero-start", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 10)
        while not self._ended.wait(tick):
            self._waited += tick
            if self._waited > self._seconds:
                env = os.environ
                print(
                    f"rankzero: rank {env['RANK']} of {env['WORLD_SIZE']} at {env['MASTER_ADDR']}:{env['MASTER_PORT']} "
                    f"was blocked for {self._seconds:g} s while the ranks connect (launch.rendezvous_seconds): another "
                    "rank has ended, or the network between two machines is blocked. Set GLOO_SOCKET_IFNAME and "
                    "NCCL_SOCKET_IFNAME to the interface that connects them; `rankzero doctor` tests it",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(RankError.exit_code)


class _Meeting:
    """The rendezvous, as one rank sees it."""

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        env = os.environ
        self.rank, self.world = int(env["RANK"]), int(env["WORLD_SIZE"])
        self._address, self._port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
        self._check, self._seconds = check, seconds
        self._start = self._reported = time.monotonic()
        log.info("rank %d of %d connects to the others at %s:%d", self.rank, self.world, self._address, self._port)
        self.store = self._connect()

    def number(self) -> int:
        """Return the number of this attempt, once all ranks agree on it."""
        return self._lead() if self.rank == 0 else self._follow()

    def launch(self) -> str:
        """Return a random name, the same for all ranks and all attempts with this store."""
        return bytes(self.store.compare_set("rankzero-launch", "", f"elastic.{secrets.token_hex(8)}")).decode()

    def _connect(self) -> Any:
        """Return the common store. Rank zero serves it, unless the agent of torchrun or Accelerate does."""
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        while True:
            wait = max(1.0, min(REPORT_SECONDS, self._seconds - (time.monotonic() - self._start)))
            try:
                return TCPStore(
                    self._address, self._port, is_master=serves, wait_for_workers=False, multi_tenant=serves,
                    timeout=timedelta(seconds=wait),
                )  # fmt: skip
            except (dist.DistError, RuntimeError) as error:
                if serves:
                    raise RankError(
                        f"rank 0 cannot listen at {self._address}:{self._port} (MASTER_ADDR, MASTER_PORT): "
                        f"{str(error).splitlines()[0]}; set another MASTER_PORT on all ranks"
                    ) from None
                self._pause("rank 0, which does not answer")

    def _lead(self) -> int:
        number = self.store.add("rankzero-attempts", 1)
        words: dict[int, str] = {}
        while len(words) < self.world - 1:
            missing = [rank for rank in range(1, self.world) if rank not in words]
            arrived = [rank for rank in missing if self.store.check([f"rankzero-{number}-hello-{rank}"])]
            words |= {rank: self.store.get(f"rankzero-{number}-hello-{rank}").decode() for rank in arrived}
            if not arrived:
                self._pause(ranks_text(missing))
        self.store.set(f"rankzero-{number}-ready", json.dumps(words))
        return int(number)

    def _follow(self) -> int:
        word, answered = secrets.token_hex(8), 0
        while True:
            number = int(self.store.add("rankzero-attempts", 0))
            if number != answered and number:
                self.store.set(f"rankzero-{number}-hello-{self.rank}", word)
                answered = number
            if number and self.store.check([f"rankzero-{number}-ready"]):
                words = json.loads(self.store.get(f"rankzero-{number}-ready"))
                if words[str(self.rank)] == word:
                    return number
            self._pause("rank 0, or ranks that rank 0 waits for")

    def _pause(self, missing: str) -> None:
        """Wait a moment for `missing`; report it every half minute, and give up at the end."""
        self._check()
        now = time.monotonic()
        place = f"rank {self.rank} of {self.world} at {self._address}:{self._port}"
        if now - self._start > self._seconds:
            raise RankError(
                f"{place} waited {self._seconds:g} s for {missing} (launch.rendezvous_seconds). Start every rank with "
                f"the same MASTER_ADDR and MASTER_PORT{self._origin()}"
            )
        if now - self._reported > REPORT_SECONDS and (self.rank == 0 or os.environ.get("LOCAL_RANK") == "0"):
            self._reported = now
            waited = f"{place} waits for {missing} since {now - self._start:.0f} s"
            print(f"rankzero: {waited}{self._origin()}", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)

    def _origin(self) -> str:
        """Return where the number of ranks comes from, for users who did not set it on purpose."""
        if os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ["WORLD_SIZE"]:
            return (
                f". SLURM started {self.world} tasks (SLURM_STEP_NUM_TASKS); a shell of `srun --pty` is only the "
                "first of them: use `srun python -m trainer ...`, or one task per shell"
            )
        return f". For one process: {UNSET}"

"""Replays of the engines that gather weights as they are needed: ZeRO-3 and FSDP2."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from launch.planning.rehearsal import Timeline
from launch.planning.replay import BucketReplay, DdpReplay, Peak, Replay, Zero1Replay, Zero2Replay
from launch.planning.states import FULL, part_of, rows_of, states


class Zero3Replay(BucketReplay):
    """Weights are gathered ahead in the order of the last micro-batch, and stay while they are soon needed again."""

    in_fp32 = True

    def begin(self) -> None:
        super().begin()
        self.open_bucket()
        self.hold("gradients", states(self.sketch, self.setup).gradients)
        small = self.setup.zero.persistent
        self.cut = {n for n, p in enumerate(self.sketch.parameters) if p.size > small}
        self.whole: set[int] = set()
        self.flat: dict[int, int] = {}  # parameter under way -> number of the transfer it comes with
        self.transfers: dict[int, tuple[int, list[int]]] = {}  # bytes, parameters not yet asked for

    def play(self, timeline: Timeline) -> Peak:
        modules = len(self.sketch.modules)
        self.trace = [
            self.sketch.modules[e[1]] for e in timeline.events if e[0] in ("enter", "return") and e[1] < modules
        ]
        self.uses: dict[int, list[int]] = {}  # parameter -> where in the trace it is needed
        for at, module in enumerate(self.trace):
            for n in module:
                self.uses.setdefault(n, []).append(at)
        sizes = [sum(self.sketch.parameters[n].size for n in module) for module in self.trace]
        self.passed = [0, *accumulate(sizes)]  # elements of the trace before each place
        return super().play(timeline)

    def begin_forward(self) -> None:
        self.at = -1
        self.asked = 0

    def unit(self, kind: str, number: int) -> None:
        if kind == "leave" or number >= len(self.sketch.modules):
            return
        if self.at >= 0:
            self._release(self.at)
        self.at += 1
        wanted = [n for n in self.trace[self.at] if n in self.cut]
        missing = [n for n in wanted if n not in self.whole and n not in self.flat]
        if missing:
            self._send(missing)
        for n in wanted:
            self._arrive(n)
        self.asked = max(self.asked, self.at + 1)
        self._prefetch()

    def gradient(self, number: int) -> None:
        self.fill(self.sketch.trained[number].size)

    def end_backward(self) -> None:
        self.reduce()
        for n in list(self.whole):
            self._free(n)
        for number in list(self.transfers):
            self.held["buffers"] -= self.transfers.pop(number)[0]
        self.flat.clear()

    def step(self) -> None:
        """The own part of the gradients is made flat for the optimizer; the buffers stay."""
        self.spike("gradients", states(self.sketch, self.setup).gradients)

    # -- weights on their way ------------------------------------------------------------------------------------------

    def _bytes(self, n: int) -> int:
        p = self.sketch.parameters[n]
        return self.setup.width * part_of(p, self.setup.ranks) * self.setup.ranks

    def _send(self, wanted: list[int]) -> None:
        number = 1 + max(self.transfers, default=0)
        size = sum(self._bytes(n) for n in wanted)
        self.transfers[number] = (size, list(wanted))
        self.flat.update(dict.fromkeys(wanted, number))
        self.gathered += size if self.first else 0
        self.hold("buffers", size)

    def _arrive(self, n: int) -> None:
        """All that came with it is taken out of the transfer, whose buffer goes when the last of it is asked for."""
        if n not in self.flat:
            return
        number = self.flat[n]
        size, waiting = self.transfers[number]
        for other in waiting:
            if other not in self.whole:
                self.whole.add(other)
                self.hold("buffers", self.setup.width * self.sketch.parameters[other].size)
        waiting.remove(n)
        del self.flat[n]
        if not waiting:
            del self.transfers[number]
            self.held["buffers"] -= size

    def _prefetch(self) -> None:
        """Asks for what is needed next, in the order of the trace, until enough is under way."""
        found: list[int] = []
        elements = 0
        while self.asked < len(self.trace) and elements < self.setup.zero.prefetch:
            for n in self.trace[self.asked]:
                if n in self.cut and n not in self.whole and n not in self.flat and n not in found:
                    found.append(n)
                    elements += self.sketch.parameters[n].size
            self.asked += 1
        if found:
            self._send(found)

    def _release(self, at: int) -> None:
        for n in self.trace[at]:
            if n in self.whole and n not in self.flat and not self._soon(n, at):
                self._free(n)

    def _soon(self, n: int, at: int) -> bool:
        """Whether a parameter is needed again after `at`, within the elements that DeepSpeed looks ahead."""
        uses = self.uses[n]
        next_use = bisect_right(uses, at)
        return next_use < len(uses) and self.passed[uses[next_use]] - self.passed[at + 1] < self.setup.zero.reuse

    def _free(self, n: int) -> None:
        self.whole.discard(n)
        self.held["buffers"] -= self.setup.width * self.sketch.parameters[n].size


class Fsdp2Replay(Replay):
    """The weights of a layer are gathered for its forward and again for its backward, those outside once for both.

    Gradients stay whole until the last micro-batch, in fp32: Accelerate reduces none before it.
    """

    def begin(self) -> None:
        inside, ranks = self.sketch.gathered, self.setup.ranks
        self.elements = {b: ranks * sum(rows_of(p, ranks) for p in found) for b, found in inside.items()}
        self.trained_in = {b: sum(p.group is not None for p in found) for b, found in inside.items()}
        self.trained_rows = {
            b: sum(rows_of(p, ranks) for p in found if p.group is not None) for b, found in inside.items()
        }
        self.waiting_flat = 0
        self.sending = 0  # the newest buffer that is being reduced

    def begin_forward(self) -> None:
        self.whole: set[int | None] = set()
        self.open = dict(self.trained_in)
        self._gather(None, keep_flat=True)

    def unit(self, kind: str, number: int) -> None:
        block = number - len(self.sketch.modules)
        if block < 0:
            return
        if kind == "return":
            for other in [b for b in self.whole if b is not None and b != block and not self.trained_in[b]]:
                self._free(other)
            self._gather(block, keep_flat=False)
        elif not self.backward:
            if kind == "enter":
                self._gather(block, keep_flat=True)
            else:
                self._free(block)

    def turn(self) -> None:
        self.held["buffers"] -= self.waiting_flat
        self.waiting_flat = 0

    def gradient(self, number: int) -> None:
        p = self.sketch.trained[number]
        if self.first or self.setup.width != FULL:
            self.keep(self.setup.width * p.size)
        self.open[p.block] -= 1
        if not self.open[p.block]:
            self._close(p.block)

    def end_backward(self) -> None:
        for block in list(self.whole):
            self._free(block)
        self.held["buffers"] -= self.sending
        self.sending = 0

    def step(self) -> None:
        self.held["gradients"] = 0

    # -- layers --------------------------------------------------------------------------------------------------------

    def _gather(self, block: int | None, *, keep_flat: bool) -> None:
        if block in self.whole:
            return
        self.whole.add(block)
        size = self.setup.width * self.elements[block]
        if self.setup.width != FULL:
            self.spike("buffers", size // self.setup.ranks)  # the own rows, cast
        self.hold("buffers", size)  # as it arrives
        if keep_flat:  # it goes when the next one has been taken apart
            self.held["buffers"] -= self.waiting_flat
            self.waiting_flat = size
        self.hold("buffers", size)  # taken apart
        if not keep_flat:
            self.held["buffers"] -= size

    def _free(self, block: int | None) -> None:
        if block in self.whole:
            self.whole.discard(block)
            self.held["buffers"] -= self.setup.width * self.elements[block]

    def _close(self, block: int | None) -> None:
        """All gradients of a layer are there."""
        whole = sum(p.size for p in self.sketch.trained if p.block == block)
        if self.setup.width != FULL:  # added to the fp32 sum, or made the first of it
            accumulates = not self.last or not self.first
            if accumulates and self.first:
                self.hold("gradients", FULL * whole)
            self.held["gradients"] -= self.setup.width * whole if accumulates else 0
        self._free(block)
        if self.last:
            self.held["buffers"] -= self.sending
            self.sending = FULL * self.trained_rows[block] * self.setup.ranks
            self.hold("buffers", self.sending)
            own = FULL if not self.first else self.setup.width
            self.held["gradients"] -= own * whole
            self.hold("gradients", FULL * self.trained_rows[block])


REPLAYS: dict[str, type[Replay]] = {
    "single": Replay,
    "ddp": DdpReplay,
    "zero1": Zero1Replay,
    "zero2": Zero2Replay,
    "zero3": Zero3Replay,
    "fsdp2": Fsdp2Replay,
}

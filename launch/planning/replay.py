"""The peak of one rank under an engine: a rehearsed micro-batch played again with what the engine does around it.

Bytes are by kind: parameters, gradients, optimizer, buffers (what an engine works with), average (a moving one),
copy (the whole model that is evaluated, on a CPU), and from the rehearsal activations and logits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from launch.planning.model import Sketch
from launch.planning.rehearsal import Timeline
from launch.planning.states import FULL, Setup, padded_groups, states, touched


@dataclass(frozen=True)
class Peak:
    """The largest sum of a training step, and what it is made of; bytes gathered in one micro-batch (ZeRO-3)."""

    total: int
    parts: dict[str, int]
    gathered: int = 0


@dataclass
class Replay:
    """A single process: gradients are kept as they come, and added up from the second micro-batch on."""

    sketch: Sketch
    setup: Setup
    accumulation: int
    average: bool = False  # a moving average is kept
    held: Counter[str] = field(default_factory=Counter)
    live: int = 0
    logits: int = 0
    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    gathered: int = 0
    first: bool = True
    last: bool = True
    backward: bool = False

    def play(self, timeline: Timeline) -> Peak:
        """The peak over the micro-batches of a step, all as large as the rehearsed one, and the update."""
        kept = states(self.sketch, self.setup)
        self.held.update(parameters=kept.parameters, optimizer=kept.optimizer, buffers=self.sketch.buffers)
        if self.setup.sharded and self.setup.device == "cpu":
            self.held["copy"] = kept.host
        if self.average:
            self.held["average"] = FULL * self.sketch.all_elements
        self.begin()
        for number in range(min(2, self.accumulation)):
            self.first, self.last = number == 0, number == min(2, self.accumulation) - 1
            self._micro_batch(timeline)
        self.step()
        if self.average and self.setup.sharded:
            self.spike("average", FULL * self.sketch.all_elements)  # all weights are gathered for it
        return Peak(self.total, self.parts, self.gathered)

    def resident(self) -> int:
        """What stays between two steps, an evaluation included; after `play`."""
        return self.held.total()

    def _micro_batch(self, timeline: Timeline) -> None:
        sizes: dict[int, tuple[int, bool]] = {}
        self.backward = False
        self.begin_forward()
        for event in timeline.events:
            kind = event[0]
            if kind == "take":
                sizes[event[1]] = event[2:]
                self._live(*event[2:])
            elif kind == "give":
                size, is_logits = sizes.pop(event[1])
                self._live(-size, is_logits)
            elif kind == "grad":
                self.gradient(event[1])
            elif kind == "turn":
                self.backward = True
                self.turn()
            elif kind != "end":
                self.unit(kind, event[1])
        self.end_backward()

    def _live(self, change: int, is_logits: bool) -> None:
        self.live += change
        if is_logits:
            self.logits += change
        if change > 0:
            self.check()

    def hold(self, kind: str, change: int) -> None:
        self.held[kind] += change
        if change > 0:
            self.check()

    def spike(self, kind: str, size: int) -> None:
        """Taken and given back at once."""
        self.hold(kind, size)
        self.held[kind] -= size

    def check(self) -> None:
        total = self.live + self.held.total()
        if total > self.total:
            self.total = total
            self.parts = {k: v for k, v in self.held.items() if v} | {
                "activations": self.live - self.logits,
                "logits": self.logits,
            }

    # -- what an engine does -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first micro-batch of a step."""

    def begin_forward(self) -> None:
        """Before each micro-batch."""

    def turn(self) -> None:
        """Between forward and backward."""

    def gradient(self, number: int) -> None:
        """That of trained parameter `number` is ready."""
        if self.first:
            self.keep(FULL * self.sketch.trained[number].size)

    def keep(self, size: int) -> None:
        """A gradient stays as it came: it is no longer an activation of the rehearsal, which gives it back at once."""
        self.held["gradients"] += size

    def unit(self, kind: str, number: int) -> None:
        """A module's forward is entered or left, or the backward returns to it."""

    def end_backward(self) -> None:
        """After each micro-batch."""

    def step(self) -> None:
        """The update; the gradients go."""
        self.held["gradients"] = 0


class DdpReplay(Replay):
    """The buckets that are reduced stand all the time; only the last micro-batch's gradients are made in them.

    `zero_grad` and `no_sync` leave those of the others in tensors of their own, which are copied in at the end.
    """

    def begin(self) -> None:
        self.hold("gradients", FULL * self.sketch.trained_elements)

    def gradient(self, number: int) -> None:
        size = FULL * self.sketch.trained[number].size
        if self.first and not self.last:
            self.keep(size)
        elif self.last and not self.first:
            self.held["gradients"] -= size

    def step(self) -> None:
        """The buckets stay."""


class BucketReplay(Replay):
    """What ZeRO's stages share: a bucket of fixed size into which gradients are copied before they are reduced.

    A GPU pays for the whole bucket, a CPU only for the part that has been written.
    """

    in_fp32 = False  # the bucket, whatever the weights are

    def begin(self) -> None:
        self.bucket_width = FULL if self.in_fp32 else self.setup.width
        self.bucket = self.bucket_width * self.setup.zero.reduce_bucket
        self.filled = 0
        self.written = 0
        self.open = False

    def open_bucket(self) -> None:
        if not self.open:
            self.open = True
            if self.setup.device == "gpu":
                self.hold("buffers", self.bucket)

    def fill(self, elements: int) -> None:
        """Copies a gradient into the bucket; what is in it is reduced first where it is full."""
        size = self.bucket_width * elements
        if self.filled and self.filled + size > self.bucket:
            self.reduce()
        if size > self.bucket:
            return
        self.filled += size
        if self.setup.device == "cpu" and self.filled > self.written:
            self.hold("buffers", self.filled - self.written)
            self.written = self.filled

    def reduce(self) -> None:
        """All in the bucket goes over the network, from a copy of it."""
        self.spike("buffers", self.filled * (1 if self.bucket_width == FULL else 3))  # another one in fp32 for half
        self.filled = 0

    def close_bucket(self) -> None:
        if self.open:
            self.held["buffers"] -= self.bucket if self.setup.device == "gpu" else self.written
            self.open, self.written = False, 0


class Zero1Replay(BucketReplay):
    """Whole gradients are summed up; after the last micro-batch they are reduced, and each rank keeps its part."""

    def gradient(self, number: int) -> None:
        self.open_bucket()
        if self.first:
            self.keep(self.setup.width * self.sketch.trained[number].size)

    def end_backward(self) -> None:
        if not self.last:
            return
        for p in self.sketch.trained:
            self.held["gradients"] -= self.setup.width * p.size  # its data is moved into the bucket
            self.fill(p.size)
        self.reduce()
        self.hold("gradients", self.setup.width * touched(self.sketch, self.setup.ranks))
        self.close_bucket()

    def step(self) -> None:
        """One group after another; its gradient is made flat, and fp32 where it is not."""
        widths = self.setup.width + (FULL if self.setup.width != FULL else 0)
        self.spike("gradients", widths * max(padded_groups(self.sketch, self.setup.ranks)) // self.setup.ranks)
        self.held["gradients"] = 0


class Zero2Replay(BucketReplay):
    """Each micro-batch's gradients are reduced; each rank adds up its part of them."""

    def gradient(self, number: int) -> None:
        self.open_bucket()
        self.fill(self.sketch.trained[number].size)

    def end_backward(self) -> None:
        part = sum(padded_groups(self.sketch, self.setup.ranks)) // self.setup.ranks
        if self.setup.width == FULL:
            self.reduce()
            size = FULL * touched(self.sketch, self.setup.ranks)
            self.hold("gradients", size)
            if not self.first:
                self.held["gradients"] -= size  # added to the first's
        else:
            if self.first:
                self.hold("gradients", FULL * part)
            self.reduce()
        self.close_bucket()

    def step(self) -> None:
        if self.setup.width == FULL:
            self.spike("gradients", FULL * max(padded_groups(self.sketch, self.setup.ranks)) // self.setup.ranks)
        self.held["gradients"] = 0

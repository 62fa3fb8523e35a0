"""A network of their own for the nodes of a test cluster: a namespace and an address each, on a bridge of this machine.

Where all nodes share 127.0.0.1 a wrong address of the head passes: here ranks of two nodes meet only by the right one.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """`number` (0 to 255) tells networks apart that stand side by side."""

    number: int

    @property
    def bridge(self) -> str:
        return f"rankzero{self.number}"

    def address(self, node: int = 0) -> str:
        """Of a node, counted from 1; of the controller."""
        return f"10.213.{self.number}.{10 + node if node else 1}"

    def missing(self) -> str | None:
        """Why there can be none here; None if there can."""
        if not shutil.which("ip") or not shutil.which("nsenter"):
            return "no ip, nsenter (Debian: iproute2 util-linux)"
        tried = subprocess.run(["ip", "link", "add", self.bridge, "type", "bridge"], capture_output=True, text=True)
        self.remove()
        return tried.stderr.strip() or None

    def make(self) -> None:
        for words in (
            ["link", "add", self.bridge, "type", "bridge"],
            ["address", "add", f"{self.address()}/24", "dev", self.bridge],
            ["link", "set", self.bridge, "up"],
        ):
            subprocess.run(["ip", *words], check=True)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)

    def join(self, node: int) -> str:
        """Lines of bash for a process that `unshare --net` has started: its end of a cable, the other at the bridge."""
        cable, outside = f"{self.bridge}n{node}", "nsenter --net=/proc/$PPID/ns/net ip link"
        return (
            f"ip link set lo up && {outside} add {cable} type veth peer name eth0 netns $$ && "
            f"{outside} set {cable} master {self.bridge} up && "
            f"ip address add {self.address(node)}/24 dev eth0 && ip link set eth0 up && "
        )

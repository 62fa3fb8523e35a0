"""Find what would wait for a GPU, on a machine that has none.

A program waits where it needs the value of a tensor (`item`, `tolist`, `bool`), copies one to the host, or makes a
tensor whose size depends on values (`nonzero`, an index by a mask).
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# `equal` and `is_nonzero` read their result
VALUES = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
SIZES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount}
METHODS = ("tolist", "numpy", "cpu", "__array__")

HOST = ("trainer/data/loader.py", "trainer/engine/host_group.py")  # tensors there have never been on a device
LATE = "trainer/engine/device_number.py"  # reads of a copy that was made in the background


class DeviceWaits:
    """Counts waits by the line that causes them, while it is entered.

    Attributes:
        sites: number of waits by place.
        late: number of reads of copies made in the background.
    """

    def __init__(self) -> None:
        self.sites: Counter[str] = Counter()
        self.late = 0
        self._modes = ExitStack()

    def __enter__(self) -> DeviceWaits:
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Methods(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._modes.close()

    def count(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename != __file__]
        places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        if any(LATE in place for place in places):
            self.late += 1
        elif not any(word in place for place in places for word in HOST):
            own = [place for place in places if "/torch/" not in place] or places
            self.sites[f"{what}: {own[-1]}"] += 1


class _Operations(TorchDispatchMode):
    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masks = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if packet in VALUES or packet in SIZES or masks:
            self._waits.count(str(packet))
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # a torch.device is that of other tensors: here it is "cpu", too
        moved = name == "to" and "cpu" in [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
        if name in METHODS or moved:
            self._waits.count(name)
        return func(*args, **kwargs)

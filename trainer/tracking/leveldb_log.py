"""Read the records of a .wandb file, which has the log format of LevelDB: blocks of 32 KiB with parts of records."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER, FILE_HEADER = 32_768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records_in(path: Path) -> Iterator[bytes]:
    """Yield the complete records of a file. The last one is left out if a killed process has not finished it."""
    content, place, parts = path.read_bytes(), FILE_HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part = content[place + HEADER : place + HEADER + length]
        if len(part) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        place += HEADER + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts

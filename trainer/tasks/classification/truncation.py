"""Cut texts that are too long."""

from __future__ import annotations

from collections.abc import Sequence


def rooms(sizes: Sequence[int], room: int) -> list[int]:
    """Return the tokens that each text of a row may keep.

    The longer text of a pair loses more: each text gets half of the tokens, and what the other one does not need.
    """
    if len(sizes) == 1 or sum(sizes) <= room:
        return [room] * len(sizes)
    first = min(sizes[0], max(room // 2, room - sizes[1]))
    return [first, room - first]


def cut(ids: list[int], room: int, head_share: float) -> list[int]:
    """Return at most `room` tokens of a text, a share of them from its beginning."""
    if len(ids) <= room:
        return ids
    head = round(room * head_share)
    return ids[:head] + ids[len(ids) - (room - head) :]

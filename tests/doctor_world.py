"""What the tests of `rankzero doctor` share."""

from __future__ import annotations

from launch.doctoring.check import Check


def only(checks: list[Check], name: str) -> Check:
    """The one check of that name."""
    found = [one for one in checks if one.name == name]
    assert len(found) == 1, (name, checks)
    return found[0]

"""List each direct dependency with its lower bound and the version that is installed, and fail if they differ."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
wrong = []
for line in project["dependencies"]:
    requirement = Requirement(line)
    bound = min(Version(one.version) for one in requirement.specifier)
    installed = Version(importlib.metadata.version(requirement.name))
    pinned = requirement.name == "torch"  # see test-lowest
    print(f"{requirement.name:20s} >={bound!s:12s} {installed}{' (pinned)' if pinned else ''}")
    # a bound 6 allows 6.0.0; another dependency may need a newer one
    if not pinned and installed.release[: len(bound.release)] != bound.release:
        wrong.append(f"{requirement.name}: {installed} in place of {bound}")
if wrong:
    print("not the lowest, because another package needs a newer one: raise the bound\n  " + "\n  ".join(wrong))
    sys.exit(1)

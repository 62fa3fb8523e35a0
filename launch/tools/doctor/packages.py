"""Check Python, the installed packages, and whether they fit each other."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.findings import Findings

OLDEST_PYTHON = (3, 11)
EXTRAS = {"demo": "demo-sentiment", "deepspeed": "configs zero1, zero2 and zero3", "track": "track: tensorboard"}
KNOWN_BAD = (  # those that the lower bounds of pyproject.toml do not exclude: package, versions, reason
    ("optimum-onnx", "<=0.1.0", "requires transformers < 4.58, and rankzero exports without it"),
)


def check_python(findings: Findings) -> None:
    findings.fact(f"{platform.python_version()} at {sys.executable}")
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        findings.fail(f"older than {oldest}", f"create an environment with Python {oldest} or newer (make setup)")


def check_packages(findings: Findings) -> None:
    """Compare the packages that rankzero requires with those installed."""
    for extra in ("", *EXTRAS):
        for requirement in requirements("rankzero", extra):
            name, version = requirement.name, installed(requirement.name)
            if version is None and extra:
                findings.fact(f"{name} not installed (only for {EXTRAS[extra]})")
            elif version is None:
                findings.fail(f"{name} is missing", _install(requirement))
            elif not matches(version, requirement.specifier):
                findings.fail(f"{name} {version} is not {requirement.specifier}", _install(requirement))
            else:
                findings.fact(f"{name} {version}")


def check_known_bad(findings: Findings) -> None:
    for name, versions, reason in KNOWN_BAD:
        version = installed(name)
        if version is not None and matches(version, SpecifierSet(versions)):
            findings.warn(f"{name} {version}: {reason}", f"pip uninstall {name}")


def check_combination(findings: Findings) -> None:
    """Check what the packages that rankzero requires require of each other, as `pip check` does for all packages."""
    for ours in (requirement for extra in ("", *EXTRAS) for requirement in requirements("rankzero", extra)):
        for theirs in requirements(ours.name):
            version = installed(theirs.name)
            if version is not None and not matches(version, theirs.specifier):
                text = f"{ours.name} requires {theirs.name}{theirs.specifier}, {version} is installed"
                findings.fail(text, f"{_install(theirs)}, or another version of {ours.name}")


def installed(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """Return what an installed package requires on this platform; with `extra`, only what that adds."""
    try:
        lines = [Requirement(line) for line in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return []
    needed = {
        name: [r for r in lines if r.marker is None or r.marker.evaluate({"extra": name})] for name in ("", extra)
    }
    return [r for r in needed[extra] if not extra or r not in needed[""]]


def matches(version: str, specifier: SpecifierSet) -> bool:
    """Whether a version is allowed. Development builds are compared like releases."""
    return specifier.contains(version, prereleases=True)


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"
